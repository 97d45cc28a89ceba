from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_engine.errors import RecipeError
from sft_engine.recipe import Recipe, load_recipe, parse_recipe
from sft_engine.toml_lines import key_lines, show_key

WHOLE = """\
seed = 3
[task]
use = "text-classification"
[data]
use = "csv"
path = '''
[not]
a = "table"'''
columns = {text = "review", label = "stars"}
validation = 0.2
[backbone]
use = "transformers"
[optimizer]
use = "adamw"
lr = 5e-5
betas = [
  0.9,  # comment ]
  0.99,
]
[[regularizer]]
use = "l2-sp"
alpha = 0.1
[[regularizer]]
use = "mixout"
[train]
epochs = 2
"""


def write(folder: Path, text: str, name: str = "r.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def sentence(text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "r.toml", overrides)
    return str(caught.value)


# --- What a recipe holds ---------------------------------------------------------------------------


def test_components_stand_in_the_order_of_the_recipe_with_their_lines():
    recipe = parse_recipe(WHOLE)
    assert [(c.key, c.kind, c.use, c.line) for c in recipe.components] == [
        ("task", "task", "text-classification", 2),
        ("data", "data", "csv", 4),
        ("backbone", "backbone", "transformers", 11),
        ("optimizer", "optimizer", "adamw", 13),
        ("regularizer[0]", "regularizer", "l2-sp", 20),
        ("regularizer[1]", "regularizer", "mixout", 23),
    ]


def test_engine_keys_of_data_are_not_options_of_the_data_component():
    recipe = parse_recipe(WHOLE)
    assert recipe.components[1].options == {"path": '[not]\na = "table"'}
    assert recipe.data == {"columns": {"text": "review", "label": "stars"}, "validation": 0.2}


def test_settings_and_seeds_are_given_raw():
    recipe = parse_recipe(WHOLE + "[seeds]\nnoise = 5\n")
    assert recipe.train == {"epochs": 2}
    assert recipe.evaluation == recipe.checkpoint == {}
    assert recipe.seeds == {"seed": 3, "noise": 5}


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("optimizer.lr", "r.toml:15: optimizer.lr"),
        ("optimizer.betas[1]", "r.toml:18: optimizer.betas[1]"),
        ("data.columns.label", "r.toml:9: data.columns.label"),
        ("regularizer[1].use", "r.toml:24: regularizer[1].use"),
        ("regularizer[1].absent", "r.toml:23: regularizer[1].absent"),
        ("train.absent", "r.toml:25: train.absent"),
        ("absent.key", "r.toml: absent.key"),
        ("strange[key", "r.toml: strange[key"),
    ],
)
def test_where_names_the_line_of_a_key_or_of_the_table_around_it(key, place):
    assert parse_recipe(WHOLE, "r.toml").where(key) == place


def test_a_written_recipe_reads_back_equal():
    recipe = parse_recipe(WHOLE)
    again = parse_recipe(recipe.to_toml())
    assert again == recipe
    assert again.to_toml() == recipe.to_toml()
    assert [c.key for c in again.components] == [c.key for c in recipe.components]


values = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1), inner, max_size=3)
    ),
    max_leaves=8,
).filter(lambda value: "\x00" not in str(value))
options = st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), values, max_size=4)


@given(single=options, many=st.lists(options, max_size=3), seed=st.integers(0, 2**62))
def test_any_options_survive_writing_and_reading(single, many, seed):
    tables = {
        "regularizer": [{**table, "use": "x"} for table in many],
        "optimizer": {**single, "use": "y"},
        "seed": seed,
    }
    recipe = Recipe(None, "r", tables, (), {})
    assert parse_recipe(recipe.to_toml()).tables == tables


# --- Lines -----------------------------------------------------------------------------------------

scalars = st.sampled_from(
    [
        "1",
        "-2.5e-5",
        "true",
        "1979-05-27T07:32:00Z",
        '"plain"',
        r'"quote \" hash # bracket ]"',
        "'literal \\ # ['",
        '"""one\n[two]\nthree = 3 # "" \\""""',
        "'''\n[[a]]\n'b' = 1''''",
        '"""\\\n  folded"""',
    ]
)
texts = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: "[" + ", # , ]\n".join([*items, ""]) + "]")
        | st.lists(
            inner.filter(lambda t: "\n" not in t or t[:3] in ('"""', "'''")), max_size=3
        ).map(lambda items: "{" + ", ".join(f"i{n} = {text}" for n, text in enumerate(items)) + "}")
    ),
    max_leaves=6,
)
gaps = st.sampled_from(["", "\n", "# comment = [\n", "   \n\t\n"])


@st.composite
def documents(draw):
    """A TOML text, and the lines of its headers and of the keys below them."""
    text, expected = "", {}

    def add(line: str) -> int:
        nonlocal text
        text += draw(gaps)
        number = text.count("\n") + 1
        text += line + "\n"
        return number

    for table in range(draw(st.integers(0, 4))):
        items = draw(st.integers(0, 2))
        for item in range(max(items, 1)):
            path = (f"t{table}", item) if items else (f"t{table}",)
            header = f"[[ t{table} ]]" if items else f"[t{table}]"
            expected[path] = add(header)
            for key in range(draw(st.integers(0, 3))):
                written, parts = draw(
                    st.sampled_from(
                        [
                            (f"k{key}", (f"k{key}",)),
                            (f'"k {key}"', (f"k {key}",)),
                            (f"k{key} . 'x.y'", (f"k{key}", "x.y")),
                        ]
                    )
                )
                expected[*path, *parts] = add(f"{written} = {draw(texts)}")
            if items and draw(st.booleans()):
                expected[*path, "below"] = add(f"[t{table}.below]")
    return text, expected


def paths(value, path=()):
    if path:
        yield path
    if isinstance(value, (dict, list)):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from paths(each, (*path, key))


@given(documents())
def test_the_scanner_finds_the_keys_of_tomllib_on_their_lines(document):
    text, expected = document
    found = key_lines(text)
    tables = tomllib.loads(text)
    walked = {p for p in paths(tables) if not isinstance(_at(tables, p), (dict, list))}
    assert walked <= set(found)
    assert {path: found[path] for path in expected} == expected


def _at(value, path):
    for part in path:
        value = value[part]
    return value


def test_keys_are_shown_as_messages_write_them():
    assert show_key(("regularizer", 0, "a b", "c")) == 'regularizer[0]."a b".c'


# --- extends ---------------------------------------------------------------------------------------


def test_extends_merges_tables_key_by_key_and_replaces_lists(tmp_path):
    write(tmp_path, WHOLE, "base.toml")
    own = """\
extends = "base.toml"
[optimizer]
lr = 1e-3
[data]
columns = {label = "mark"}
[[regularizer]]
use = "l2-sp"
"""
    recipe = load_recipe(write(tmp_path, own))
    assert recipe.tables["optimizer"] == {"use": "adamw", "lr": 1e-3, "betas": [0.9, 0.99]}
    assert recipe.data["columns"] == {"text": "review", "label": "mark"}
    assert recipe.tables["regularizer"] == [{"use": "l2-sp"}]
    assert "extends" not in recipe.tables


def test_each_key_is_placed_in_the_file_that_wrote_it(tmp_path):
    base = write(tmp_path, WHOLE, "base.toml")
    own = write(
        tmp_path, 'extends = "base.toml"\n[optimizer]\nlr = 1e-3\n[[regularizer]]\nuse = "x"\n'
    )
    recipe = load_recipe(own)
    assert recipe.where("optimizer.lr") == f"{own}:3: optimizer.lr"
    assert recipe.where("optimizer.use") == f"{base}:14: optimizer.use"
    assert recipe.where("regularizer[0].alpha") == f"{own}:4: regularizer[0].alpha"


def test_options_of_another_component_are_not_inherited(tmp_path):
    write(tmp_path, WHOLE, "base.toml")
    own = write(tmp_path, 'extends = "base.toml"\n[optimizer]\nuse = "sgd"\nmomentum = 0.9\n')
    assert load_recipe(own).tables["optimizer"] == {"use": "sgd", "momentum": 0.9}


def test_extends_is_relative_to_its_own_file(tmp_path):
    (tmp_path / "deep").mkdir()
    write(tmp_path, WHOLE, "base.toml")
    write(tmp_path, 'extends = "../base.toml"\nseed = 4\n', "deep/middle.toml")
    top = write(tmp_path, 'extends = "deep/middle.toml"\n[train]\nepochs = 9\n')
    recipe = load_recipe(top)
    assert (recipe.seeds["seed"], recipe.train["epochs"]) == (4, 9)


def test_a_circle_of_recipes_is_an_error(tmp_path):
    a = write(tmp_path, '\nextends = "b.toml"\n', "a.toml")
    b = write(tmp_path, 'extends = "a.toml"\n', "b.toml")
    with pytest.raises(RecipeError) as caught:
        load_recipe(a)
    assert str(caught.value) == (
        f'{b}:1: `extends`: found "a.toml", which leads back to this recipe; break the circle.'
    )


def test_a_missing_parent_is_named_with_the_line_that_asks_for_it(tmp_path):
    write(tmp_path, WHOLE, "base.toml")
    path = write(tmp_path, 'extends = "bass.toml"\n')
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(caught.value) == (
        f"{path}:1: `extends`: {tmp_path}/bass.toml: no such file; "
        f"did you mean {tmp_path}/base.toml?"
    )


# --- Overrides -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("optimizer.lr=2e-5", ("optimizer", "lr"), 2e-5),
        ("optimizer.betas=[0.8, 0.9]", ("optimizer", "betas"), [0.8, 0.9]),
        ("backbone.name=google-bert/bert-base", ("backbone", "name"), "google-bert/bert-base"),
        ("backbone.name=", ("backbone", "name"), ""),
        ('backbone.name="12"', ("backbone", "name"), "12"),
        ("backbone.name=a=b", ("backbone", "name"), "a=b"),
        ("regularizer.0.alpha=3", ("regularizer", 0, "alpha"), 3),
        ("regularizer[1].alpha=3", ("regularizer", 1, "alpha"), 3),
        ("regularizer.2.use=new", ("regularizer", 2, "use"), "new"),
        ("probe.0.use=typos", ("probe", 0, "use"), "typos"),
        ("freezing.use=gradual", ("freezing", "use"), "gradual"),
        ("data.columns.text=body", ("data", "columns", "text"), "body"),
        ("data.columns.'a b'=body", ("data", "columns", "a b"), "body"),
        ("optimizer.betas.0=0.5", ("optimizer", "betas", 0), 0.5),
        ("seed=7", ("seed",), 7),
    ],
)
def test_an_override_sets_one_key(override, path, value):
    recipe = parse_recipe(WHOLE, "r.toml", [override])
    assert _at(recipe.tables, path) == value
    assert recipe.where(show_key(path)) == f"--set: {show_key(path)}"


def test_an_override_of_use_drops_the_other_options_whatever_the_order():
    overrides = ["optimizer.momentum=0.5", "optimizer.use=sgd"]
    for order in (overrides, overrides[::-1]):
        recipe = parse_recipe(WHOLE, overrides=order)
        assert recipe.tables["optimizer"] == {"use": "sgd", "momentum": 0.5}


def test_an_override_of_use_with_its_own_value_drops_nothing():
    recipe = parse_recipe(WHOLE, overrides=["optimizer.use=adamw"])
    assert recipe.tables["optimizer"]["lr"] == 5e-5


def test_with_overrides_leaves_the_recipe_as_it_was():
    recipe = parse_recipe(WHOLE)
    other = recipe.with_overrides(["regularizer.0.alpha=9", "data.columns.text=z"])
    assert other.tables["regularizer"][0]["alpha"] == 9
    assert recipe == parse_recipe(WHOLE)


# --- What is wrong, in one sentence ----------------------------------------------------------------

ALLOWED = (
    "allowed: `extends`, `seed`, `seeds`, `backbone`, `task`, `data`, `optimizer`, `schedule`, "
    "`freezing`, `regularizer`, `augmentation`, `probe`, `explanation`, `tracker`, `extension`, `stream`, "
    "`train`, `evaluation`, `checkpoint`, `phase`"
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "r.toml: the recipe is empty; `sft-engine new-recipe` writes one to begin with."),
        ("# x\n", "r.toml: the recipe is empty; `sft-engine new-recipe` writes one to begin with."),
        (
            "\n[optimzer]\nuse = 'adamw'\n",
            f"r.toml:2: `optimzer`: no recipe has this key, {ALLOWED}; did you mean `optimizer`?",
        ),
        (
            "lr = 1\n",
            f"r.toml:1: `lr`: no recipe has this key, {ALLOWED}.",
        ),
        (
            "[[weights]]\nuse = 'x'\n",
            (
                f"r.toml:1: `weights`: no recipe has this key, {ALLOWED}; "
                "name weights in the backbone: `[backbone]`, `name = ...`."
            ),
        ),
        (
            "\n\n[backbone]\nname = 'x'\n",
            (
                "r.toml:3: `backbone`: `use` is missing, it names the backbone; "
                "`sft-engine plugins` lists each backbone that is installed."
            ),
        ),
        (
            "[[probe]]\nuse='x'\n[[probe]]\nkind='y'\n",
            (
                "r.toml:3: `probe[1]`: `use` is missing, it names the probe; "
                "`sft-engine plugins` lists each probe that is installed."
            ),
        ),
        (
            "[optimizer]\nuse = 3\n",
            "r.toml:2: `optimizer.use`: found 3, allowed: the name of an installed optimizer.",
        ),
        (
            "[regularizer]\nuse = 'l2-sp'\n",
            (
                "r.toml:1: `regularizer`: found one table, `[regularizer]`, allowed: a list of them, "
                "each written `[[regularizer]]`."
            ),
        ),
        (
            "[[optimizer]]\nuse = 'sgd'\n",
            (
                "r.toml:1: `optimizer`: found a list, `[[optimizer]]`, allowed: one optimizer, "
                "written `[optimizer]`."
            ),
        ),
        (
            "optimizer = 'adamw'\n",
            (
                'r.toml:1: `optimizer`: found "adamw", allowed: a table, `[optimizer]` with '
                '`use = "adamw"` below it.'
            ),
        ),
        (
            "probe = ['a', 'b']\n",
            (
                'r.toml:1: `probe`: found ["a", "b"], allowed: a table, `[[probe]]` with '
                '`use = "..."` below it.'
            ),
        ),
        ("seed = 1.5\n", "r.toml:1: `seed`: found 1.5, allowed: a whole number, 0 or more."),
        ("seed = true\n", "r.toml:1: `seed`: found true, allowed: a whole number, 0 or more."),
        ("train = 3\n", "r.toml:1: `train`: found 3, allowed: a table, `[train]`."),
        (
            "[train]\nepochs = 1\nepochs = 2\n",
            (
                "r.toml:3: `train.epochs`: found a second time, allowed: once, as on line 2; "
                "keep one of them."
            ),
        ),
        (
            "seed = 1\n[train]\nepochs = 1\n\n[train]  # again\nsteps = 3\n",
            (
                "r.toml:5: `train`: found a second table `[train]`, allowed: one, as on line 2; "
                "move its keys there."
            ),
        ),
        (
            '[probe]\nuse = "a"\n[probe]\nuse = "b"\n',
            (
                "r.toml:3: `probe`: found a second table `[probe]`, allowed: one, as on line 1; "
                "write `[[probe]]` for each of several."
            ),
        ),
        (
            '[probe]\nuse = "a"\n[[probe]]\nuse = "b"\n',
            (
                "r.toml:3: `probe`: found a second table `[probe]`, allowed: one, as on line 1; "
                "write `[[probe]]` for each of several."
            ),
        ),
        (
            "train = { epochs = 1 }\n[train]\nsteps = 3\n",
            (
                "r.toml:2: `train`: found a second table `[train]`, allowed: one, as on line 1; "
                "move its keys there."
            ),
        ),
        (
            "[[probe]]\nuse = 'a'\n[[probe]]\nuse = 'b'\nuse = 'c' [ } ]\n",
            (
                "r.toml:5: `probe[1].use`: found a second time, allowed: once, as on line 4; "
                "keep one of them."
            ),
        ),
        (
            "seed = 1\nseed = 2",
            "r.toml:2: `seed`: found a second time, allowed: once, as on line 1; keep one of them.",
        ),
        (
            "train = { epochs = 1 }\ntrain.steps = 3\n",
            (
                "r.toml:2: not valid TOML: cannot mutate immutable namespace ('train',); "
                "correct this line."
            ),
        ),
        (
            "[train]\nepochs = \n",
            "r.toml:2: not valid TOML: invalid value; correct this line.",
        ),
        (
            "[train]\ndevice = cpu\n",
            "r.toml:2: not valid TOML: invalid value; correct this line.",
        ),
        (
            "extends = 3\n",
            (
                "r.toml:1: `extends`: found 3, allowed: the path of another recipe, "
                "relative to this one."
            ),
        ),
    ],
)
def test_a_broken_recipe_is_told_in_one_sentence(text, expected):
    assert sentence(text) == expected


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "optimizer.lr",
            '--set optimizer.lr: found no "=", allowed: KEY=VALUE, such as `--set optimizer.lr=2e-5`.',
        ),
        (
            "=3",
            (
                '--set =3: found the key "", allowed: names with dots between them, '
                "such as `optimizer.lr` or `regularizer.0.alpha`."
            ),
        ),
        (
            "a b=3",
            (
                '--set a b=3: found the key "a b", allowed: names with dots between them, '
                "such as `optimizer.lr` or `regularizer.0.alpha`."
            ),
        ),
        (
            "regularizer.alpha=3",
            (
                "--set: `regularizer.alpha`: `regularizer` is a list of 2; "
                "address one by its number, such as `regularizer[0]`."
            ),
        ),
        (
            "regularizer.7.alpha=3",
            (
                "--set: `regularizer[7].alpha`: `regularizer` is a list of 2; "
                "address one by its number, such as `regularizer[0]`."
            ),
        ),
        (
            "optimizer.betas.5=1",
            (
                "--set: `optimizer.betas[5]`: `optimizer.betas` is a list of 2; "
                "address one by its number, such as `optimizer.betas[0]`."
            ),
        ),
        ("seed.x=3", "--set: `seed.x`: `seed` is no table."),
        ("extends=base.toml", "--set: `extends`: allowed in a file only."),
        (
            "optimzer.lr=3",
            f"--set: `optimzer`: no recipe has this key, {ALLOWED}; did you mean `optimizer`?",
        ),
    ],
)
def test_a_broken_override_is_told_in_one_sentence(override, expected):
    assert sentence(WHOLE, override) == expected


def test_optimizer_and_schedule_have_a_usual_one():
    recipe = parse_recipe("[optimizer]\nlr = 1\n[schedule]\nwarmup = 0.2\n", "r.toml")
    assert [c.use for c in recipe.components] == ["adamw", "linear"]
    assert parse_recipe("seed = 1", "r.toml", ["optimizer.lr=1"]).components[0].options == {"lr": 1}


def test_all_problems_are_listed_at_once():
    lines = sentence("seed = 1.5\n[optimzer]\n[task]\n").splitlines()
    assert [line.split(": ")[0] for line in lines] == ["r.toml:1", "r.toml:2", "r.toml:3"]


def test_a_file_that_is_not_there(tmp_path):
    write(tmp_path, WHOLE, "bert_sentiment.toml")
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "bert_sentimnt.toml")
    assert str(caught.value) == (
        f"{tmp_path}/bert_sentimnt.toml: no such file; did you mean {tmp_path}/bert_sentiment.toml?"
    )


def test_a_file_in_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(RecipeError, match=r"no such file; check the path\.$"):
        load_recipe(tmp_path / "none" / "r.toml")


def test_a_folder_is_no_recipe(tmp_path):
    path = write(tmp_path, WHOLE)
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: found a folder, allowed: a recipe file, such as {path}."
    )


def test_broken_utf8_is_placed_on_its_line(tmp_path):
    path = tmp_path / "r.toml"
    path.write_bytes(b"seed = 1\n# caf\xe9\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(caught.value) == (
        f"{path}:2: found the byte 0xe9, allowed: UTF-8 text; save the file as UTF-8."
    )


def test_windows_files_are_recipes_too(tmp_path):
    path = tmp_path / "r.toml"
    path.write_bytes(b"\xef\xbb\xbf" + WHOLE.replace("\n", "\r\n").encode())
    recipe = load_recipe(path)
    assert recipe == parse_recipe(WHOLE)
    assert recipe.origin("train.epochs").line == 26
