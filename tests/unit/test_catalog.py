from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from sft_engine.catalog import Catalog, Plan, plan
from sft_engine.errors import DataError, RecipeError
from sft_engine.hookspecs import hookimpl
from sft_engine.plugins import Broken, Plugins
from sft_engine.recipe import Problem, load_recipe, parse_recipe

COMPONENTS = '''
from __future__ import annotations
import torch
from typing import Annotated, Literal
from annotated_types import Ge, Gt

class Task:
    """A task.

    Args:
        labels: One or many.
    """
    def __init__(self, labels: Literal["single", "multi"] = "single"):
        self.labels = labels

class Csv:
    """Read CSV.

    Args:
        path: The file.
    """
    def __init__(self, path: str):
        self.path = path

class Backbone:
    """A model.

    Args:
        name: A hub id.
    """
    def __init__(self, name: str):
        self.name = name

class AdamW:
    """AdamW.

    Args:
        lr: Learning rate.
    """
    def __init__(self, lr: Annotated[float, Gt(0)] = 5e-5, betas: tuple[float, float] = (0.9, 0.99)):
        self.lr, self.betas = lr, betas

class Linear:
    """Linear.

    Args:
        warmup: Share of the run.
    """
    def __init__(self, warmup: Annotated[float, Ge(0)] = 0.0):
        self.warmup = warmup

class Pull:
    """Pull.

    Args:
        alpha: Strength.
    """
    def __init__(self, alpha: float = 0.1, norm: str | None = None):
        if alpha == 13:
            raise ValueError("alpha brings bad luck")
        if alpha == 14:
            raise RuntimeError("broken")
        self.alpha = alpha
'''

RECIPE = """\
[task]
use = "text-classification"
[data]
use = "csv"
path = "reviews.csv"
[backbone]
use = "transformers"
name = "demo:minilm"
"""


class FakePlugin:
    """What `sft_register` would be in a plugin's module."""

    def __init__(self, *components, check=()):
        self.components = components
        self.check = check

    @hookimpl
    def sft_register(self, catalog):
        for kind, name, target in self.components:
            catalog.add(kind, name, target, f"The {name}.")

    @hookimpl
    def sft_check_recipe(self, recipe):
        return self.check


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder on `sys.path` with the components above in `acme_parts`."""
    (tmp_path / "acme_parts.py").write_text(COMPONENTS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it fails
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("acme")]:
        del sys.modules[name]


@pytest.fixture
def plugins(folder):
    made = Plugins()
    basics = [
        ("task", "text-classification", "acme_parts:Task"),
        ("data", "csv", "acme_parts:Csv"),
        ("backbone", "transformers", "acme_parts:Backbone"),
        ("optimizer", "adamw", "acme_parts:AdamW"),
        ("schedule", "linear", "acme_parts:Linear"),
    ]
    made.add(FakePlugin(*basics), "basics", "sft-engine", "0.1.0")
    return made


@pytest.fixture
def with_pull(plugins):
    plugins.add(FakePlugin(("regularizer", "l2-sp", "acme_parts:Pull")), "acme", "sft-acme", "2.1")
    return plugins


def sentences(plugins, text, *overrides) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        plan(parse_recipe(text, "r.toml", overrides), plugins)
    return str(caught.value).splitlines()


# --- The catalog -----------------------------------------------------------------------------------


def test_entries_are_sorted_by_kind_and_name():
    catalog = Catalog("sft-acme", "1.0")
    for kind, name in [("probe", "b"), ("task", "z"), ("probe", "a"), ("backbone", "q")]:
        catalog.add(kind, name, "a.b:C", "Summary.")
    assert [(e.kind, e.name) for e in catalog.entries()] == [
        ("backbone", "q"),
        ("task", "z"),
        ("probe", "a"),
        ("probe", "b"),
    ]
    assert [e.name for e in catalog.entries("probe")] == ["a", "b"]
    assert catalog.get("probe", "a").owner == "sft-acme 1.0"
    assert catalog.get("probe", "c") is None


def test_a_kind_that_does_not_exist_is_an_error_with_a_suggestion():
    with pytest.raises(RecipeError) as caught:
        Catalog("sft-acme", "1.0").add("regulariser", "x", "a:B", "")
    assert str(caught.value) == (
        'sft-acme 1.0 adds "x" of the kind `regulariser`; did you mean `regularizer`?'
    )


def test_a_target_is_a_module_and_a_name():
    with pytest.raises(RecipeError, match=r"target 'a\.B', allowed: \"package\.module:Class\"\.$"):
        Catalog("sft-acme", "1.0").add("probe", "x", "a.B", "")


def test_a_name_offered_twice_names_both_distributions(with_pull):
    rival = FakePlugin(("probe", "other", "rival:Probe"), ("regularizer", "l2-sp", "rival:Pull"))
    with pytest.raises(RecipeError) as caught:
        with_pull.add(rival, "rival", "sft-rival", "0.3")
    assert str(caught.value) == (
        'the regularizer "l2-sp" is offered twice, by sft-acme 2.1 (acme_parts:Pull) and by '
        "sft-rival 0.3 (rival:Pull); uninstall one of them, or load the other plugins alone with "
        "SFT_ENGINE_PLUGINS."
    )
    assert with_pull.catalog.get("probe", "other") is None


def test_one_name_may_stand_for_two_kinds(plugins):
    twice = FakePlugin(("probe", "x", "a:B"), ("tracker", "x", "a:B"))
    plugins.add(twice, "acme", "sft-acme", "1")
    assert plugins.catalog.get("probe", "x").kind == "probe"


# --- A good recipe ---------------------------------------------------------------------------------


def test_a_plan_holds_checked_options_and_settings_without_importing_components(with_pull):
    text = (
        RECIPE + "[optimizer]\nuse = 'adamw'\nbetas = [0.5, 0.9]\n[[regularizer]]\nuse = 'l2-sp'\n"
    )
    made = plan(
        parse_recipe("seed = 5\n" + text + "[train]\nepochs = 1\n[seeds]\nnoise = 2\n"), with_pull
    )
    assert made.one("optimizer").options == {"lr": 5e-5, "betas": (0.5, 0.9)}
    assert made.one("regularizer").options == {"alpha": 0.1, "norm": None}
    assert [c.key for c in made.components] == [
        "task",
        "data",
        "backbone",
        "optimizer",
        "regularizer[0]",
        "schedule",
    ]
    assert (made.train.epochs, made.seeds.seed, made.seeds.noise, made.seeds.order) == (
        1,
        5,
        2,
        None,
    )
    assert made.data.validation == 0.1
    assert made.one("freezing") is None
    assert "acme_parts" not in sys.modules


def test_optimizer_and_schedule_have_defaults(plugins):
    made = plan(parse_recipe(RECIPE), plugins)
    assert (made.one("optimizer").name, made.one("schedule").name) == ("adamw", "linear")
    assert made.one("schedule").options == {"warmup": 0.1}


def test_the_resolved_recipe_writes_every_option_and_gives_the_same_plan(with_pull):
    text = RECIPE + "[[regularizer]]\nuse = 'l2-sp'\n[train]\nepochs = 1\n"
    made = plan(parse_recipe(text), with_pull)
    resolved = made.resolved()
    assert resolved.tables["optimizer"] == {"use": "adamw", "lr": 5e-5, "betas": [0.9, 0.99]}
    assert resolved.tables["regularizer"] == [{"use": "l2-sp", "alpha": 0.1}]
    assert resolved.tables["train"]["batch_size"] == 32
    again = plan(parse_recipe(resolved.to_toml()), with_pull)
    assert [(c.key, c.options) for c in again.components] == [
        (c.key, c.options) for c in sorted(made.components, key=again_order(again))
    ]
    assert (again.train, again.seeds, again.data) == (made.train, made.seeds, made.data)


def again_order(again):
    keys = [c.key for c in again.components]
    return lambda planned: keys.index(planned.key)


# --- A wrong recipe --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "seed = 1\n",
            [
                (
                    "r.toml: `task`: a recipe needs this table, `[task]`: "
                    "targets, loss, predictions and metrics."
                ),
                "r.toml: `data`: a recipe needs this table, `[data]`: where examples come from.",
                (
                    "r.toml: `backbone`: a recipe needs this table, `[backbone]`: "
                    "the pretrained model and its preprocessing."
                ),
            ],
        ),
        (
            RECIPE + "[optimizer]\nuse = 'adam'\n",
            [
                (
                    'r.toml:10: `optimizer.use`: found "adam", which no installed plugin offers as '
                    "optimizer; did you mean `adamw`?"
                )
            ],
        ),
        (
            RECIPE + "[[tracker]]\nuse = 'adamw'\n",
            [
                (
                    'r.toml:10: `tracker[0].use`: found "adamw", which no installed plugin offers as '
                    'tracker; "adamw" is of the kind `optimizer`.'
                )
            ],
        ),
        (
            RECIPE.replace('"transformers"', '"timm"'),
            [
                (
                    'r.toml:7: `backbone.use`: found "timm", which no installed plugin offers as '
                    "backbone; allowed: `transformers`; perhaps `pip install sft-timm` brings it."
                )
            ],
        ),
        (
            RECIPE + "[freezing]\nuse = 'gradual-unfreezing'\n",
            [
                (
                    'r.toml:10: `freezing.use`: found "gradual-unfreezing", which no installed plugin '
                    "offers as freezing; perhaps `pip install sft-freezing` brings it."
                )
            ],
        ),
        (
            RECIPE + "[optimizer]\nuse = 'adamw'\nlr = 'a lot'\nbeta = 1\n",
            [
                'r.toml:11: `optimizer.lr`: found "a lot", allowed: a number greater than 0.',
                (
                    'r.toml:12: `optimizer.beta`: optimizer "adamw" has no such option; '
                    "did you mean `betas`? Allowed: `lr`, `betas`."
                ),
            ],
        ),
        (
            RECIPE.replace("path =", "pth ="),
            [
                "r.toml:3: `data.path`: missing, needed: a string; its help says: The file.",
                (
                    'r.toml:5: `data.pth`: data "csv" has no such option; did you mean `path`? '
                    "Allowed: `path`, and the engine's `columns`, `label_names`, `splits`, "
                    "`validation`, `test`, `split_seed`, `stratify`, `subset`, `resample`, `draw`, "
                    "`draw_number`, `draw_share`, `draw_folds`, `on_error`."
                ),
            ],
        ),
        (
            RECIPE + "[data.columns]\ntext = 3\n",
            [
                (
                    'r.toml:9: `data.columns`: found {"text": 3}, allowed: a table of items, each a '
                    "string or a list of strings."
                )
            ],
        ),
        (
            RECIPE + "[train]\nbatch_size = 0\nprecision = 'int8'\nepoch = 3\n",
            [
                "r.toml:10: `train.batch_size`: found 0, allowed: a whole number of at least 1.",
                (
                    'r.toml:11: `train.precision`: found "int8", allowed: "auto", "fp32", "bf16" '
                    'or "fp16".'
                ),
                (
                    "r.toml:12: `train.epoch`: `[train]` has no such option; did you mean `epochs`? "
                    "Allowed: `epochs`, `steps`, `batch_size`, `micro_batch_size`, `length_buckets`, "
                    "`precision`, `clip_norm`, `decay_all`, `gradient_checkpointing`, `compile`, "
                    "`device`, `threads`, `workers`, `log_every`, `deterministic`, `replay`, "
                    "`replay_dtype`, `replay_memory`."
                ),
            ],
        ),
        (
            "seed = -1\n" + RECIPE + "[seeds]\nseed = 3\nordr = 1\n",
            [
                (
                    "r.toml:1: `seed`: found -1, allowed: a whole number of at least 0 and at most "
                    "9223372036854775807."
                ),
                (
                    "r.toml:11: `seeds.seed`: `[seeds]` has no such option; "
                    "allowed: `init`, `order`, `subset`, `noise`."
                ),
                (
                    "r.toml:12: `seeds.ordr`: `[seeds]` has no such option; did you mean `order`? "
                    "Allowed: `init`, `order`, `subset`, `noise`."
                ),
            ],
        ),
        (
            RECIPE + "[[regularizer]]\nuse = 'l2-sp'\nalpa = 1\n",
            [
                (
                    'r.toml:11: `regularizer[0].alpa`: regularizer "l2-sp" has no such option; '
                    "did you mean `alpha`? Allowed: `alpha`, `norm`."
                )
            ],
        ),
    ],
)
def test_a_wrong_recipe_is_told_in_sentences(with_pull, text, expected):
    assert sentences(with_pull, text) == expected
    assert "acme_parts" not in sys.modules


def test_a_broken_plugin_is_named_where_it_may_be_missed(plugins):
    plugins.broken += (Broken("acme", "sft-acme", "0.2", ImportError("no foo")),)
    assert sentences(plugins, RECIPE + "[[regularizer]]\nuse = 'l2-sp'\n") == [
        (
            'r.toml:10: `regularizer[0].use`: found "l2-sp", which no installed plugin offers as '
            "regularizer; sft-acme 0.2 cannot be loaded (ImportError: no foo); "
            "perhaps `pip install sft-regularizers` brings it."
        )
    ]


def test_plugins_that_supply_a_component_are_asked_about_the_recipe(plugins):
    problem = Problem("regularizer[0].alpha", "does not go with adamw", "remove one")
    named = FakePlugin(("regularizer", "l2-sp", "acme_parts:Pull"), check=[problem])
    plugins.add(named, "named", "sft-named", "1")
    silent = FakePlugin(("probe", "x", "acme_parts:Pull"), check=[Problem("seed", "not asked")])
    plugins.add(silent, "silent", "sft-silent", "1")
    assert sentences(plugins, RECIPE + "[[regularizer]]\nuse = 'l2-sp'\nalpha = 1\n") == [
        "r.toml:11: `regularizer[0].alpha`: does not go with adamw; remove one."
    ]
    assert plan(parse_recipe(RECIPE), plugins).one("regularizer") is None


def test_a_component_whose_signature_needs_an_import_that_fails_is_named(plugins):
    source = Path(sys.path[0], "acme_broken.py")
    source.write_text("import nothing_such\nPull = nothing_such.make()\n", encoding="utf-8")
    plugins.add(FakePlugin(("regularizer", "x", "acme_broken:Pull")), "acme", "sft-acme", "2.1")
    assert sentences(plugins, RECIPE + "[[regularizer]]\nuse = 'x'\n") == [
        (
            'r.toml:9: regularizer[0] "x" of sft-acme 2.1: acme_broken:Pull cannot be imported: '
            "ModuleNotFoundError: No module named 'nothing_such'."
        )
    ]


def test_an_option_that_hides_a_key_of_the_engine_is_an_error_of_the_plugin(plugins):
    source = Path(sys.path[0], "acme_source.py")
    source.write_text("class Source:\n    def __init__(self, splits: int = 1): ...\n")
    plugins.add(FakePlugin(("data", "x", "acme_source:Source")), "acme", "sft-acme", "2.1")
    assert sentences(plugins, RECIPE.replace('"csv"\npath = "reviews.csv"', '"x"')) == [
        (
            'r.toml:3: `data`: data "x" of sft-acme 2.1 takes `splits`, which belongs to the engine; '
            "report it to the plugin's author."
        )
    ]


# --- Building --------------------------------------------------------------------------------------


@pytest.fixture
def importable(monkeypatch, with_pull):
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setitem(sys.modules, "torch", sys)  # any module: the components only import it
    return with_pull


def planned_pull(plugins, line="alpha = 3"):
    return plan(
        parse_recipe(RECIPE + f"[[regularizer]]\nuse = 'l2-sp'\n{line}\n", "r.toml"), plugins
    ).one("regularizer")


def test_a_component_is_built_with_its_options(importable):
    assert planned_pull(importable).build().alpha == 3.0


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [
        (13, "alpha brings bad luck."),
        (14, "cannot be built: RuntimeError: broken."),
    ],
)
def test_what_a_constructor_refuses_is_told_with_its_place(importable, alpha, expected):
    with pytest.raises(RecipeError) as caught:
        planned_pull(importable, f"alpha = {alpha}").build()
    assert str(caught.value) == f'r.toml:9: regularizer[0] "l2-sp" of sft-acme 2.1: {expected}'


def test_a_component_that_cannot_be_imported_is_named_with_its_cause(with_pull):
    with pytest.raises(RecipeError) as caught:
        planned_pull(with_pull).load()
    assert str(caught.value) == (
        'r.toml:9: regularizer[0] "l2-sp" of sft-acme 2.1: acme_parts:Pull cannot be imported: '
        "ModuleNotFoundError: import of torch halted; None in sys.modules."
    )


def test_a_target_that_lacks_its_class_is_named(plugins):
    source = Path(sys.path[0], "acme_moved.py")
    source.write_text("def __getattr__(name):\n    raise AttributeError(f'no {name} here')\n")
    catalog = Catalog("sft-acme", "2.1")
    catalog.add("weights", "demo:x", "acme_moved:fetch", "")
    plugins.catalog.merge(catalog)
    with pytest.raises(RecipeError) as caught:
        plan(parse_recipe(RECIPE), plugins).resolve("demo:x")
    assert str(caught.value) == (
        'the weights "demo:x" of sft-acme 2.1: acme_moved:fetch cannot be imported: '
        "AttributeError: no fetch here."
    )


# --- Weights ---------------------------------------------------------------------------------------


@pytest.fixture
def with_weights(plugins) -> Plan:
    source = Path(sys.path[0], "acme_weights.py")
    source.write_text(
        textwrap.dedent(
            """
            from pathlib import Path
            from sft_engine.errors import DataError
            def minilm(): return Path("/weights/minilm")
            def absent(): raise DataError("no network")
            """
        )
    )
    catalog = Catalog("sft-demos", "1")
    catalog.add("weights", "demo:minilm", "acme_weights:minilm", "")
    catalog.add("weights", "demo:absent", "acme_weights:absent", "")
    plugins.catalog.merge(catalog)
    return plan(parse_recipe(RECIPE, "r.toml"), plugins)


def test_a_known_name_of_weights_becomes_their_folder(with_weights):
    assert with_weights.resolve("demo:minilm") == "/weights/minilm"


def test_an_error_of_the_fetching_plugin_passes_through(with_weights):
    with pytest.raises(DataError, match="no network"):
        with_weights.resolve("demo:absent")


@pytest.mark.parametrize(
    "name",
    [
        "google-bert/bert-base-uncased",
        "./folder",
        "/a:b",
        "C:\\models",
        "hf-hub:timm/resnet",
        "https://a",
    ],
)
def test_other_names_stay_as_they_are(with_weights, name):
    assert with_weights.resolve(name) == name


def test_an_unknown_demo_is_an_error_with_suggestion(with_weights):
    with pytest.raises(RecipeError) as caught:
        with_weights.resolve("demo:minlm")
    assert str(caught.value) == (
        'r.toml:8: `backbone.name`: found "demo:minlm", which no installed plugin offers; '
        "did you mean `demo:minilm`?"
    )


def test_without_the_demos_installed_their_home_is_named(plugins):
    with pytest.raises(RecipeError, match=r"perhaps `pip install sft-demos` brings it\.$"):
        plan(parse_recipe(RECIPE), plugins).resolve("demo:minilm")


# --- What planning imports -------------------------------------------------------------------------


def test_planning_imports_no_torch(folder):
    """With the engine's own components, in a fresh process."""
    path = folder / "r.toml"
    path.write_text(
        '[task]\nuse = "text-classification"\n[data]\nuse = "csv"\npath = "x.csv"\n'
        '[backbone]\nuse = "acme"\n[[extension]]\nuse = "early-stopping"\n',
        encoding="utf-8",
    )
    code = f"""
        import sys
        from sft_engine import hookimpl, load_recipe, plan
        from sft_engine.plugins import load_plugins

        class Acme:
            @hookimpl
            def sft_register(self, catalog):
                catalog.add("backbone", "acme", "acme_parts:Csv", "")

        plugins = load_plugins()
        plugins.add(Acme(), "acme", "sft-acme", "1")
        made = plan(load_recipe({str(path)!r}, ["backbone.path=x"]), plugins)
        assert made.one("optimizer").options["lr"] > 0
        heavy = {{"torch", "numpy", "transformers", "datasets", "accelerate", "acme_parts"}}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
    """
    _run(code, folder)


def _run(code: str, folder: Path) -> None:
    environment = {
        **os.environ,
        "SFT_ENGINE_PLUGINS": "",
        "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_recipe_file_is_planned_with_what_is_installed(tmp_path, monkeypatch):
    monkeypatch.setenv("SFT_ENGINE_PLUGINS", "")
    path = tmp_path / "r.toml"
    path.write_text('[task]\nuse = "text-clasification"\n', encoding="utf-8")
    with pytest.raises(RecipeError, match="did you mean `text-classification`"):
        plan(load_recipe(path))
