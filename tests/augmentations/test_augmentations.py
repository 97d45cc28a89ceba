"""Whole runs with every augmentation: an example is changed alike wherever it is drawn.

Absence without strength, resume, accumulation, processes and pairs are claims of tests/methods.
"""

from __future__ import annotations

import json
from dataclasses import replace

import observers
import pytest
import torch
from observers import COMPONENTS, RECIPES

from sft_engine import DataError, RecipeError
from sft_engine.assemble import assemble
from sft_engine.evaluation import evaluate
from sft_engine.testing.runs import plan_recipe

ROWS = {
    "keyboard-typos": ("text", "rate = 0.3"),
    "character-noise": ("text", "rate = 0.3"),
    "word-dropout": ("text", 'rate = 0.5\ntoken = "q"'),
    "casing": ("text", "share = 0.9"),
    "eda": ("text", 'synonyms = "{folder}/synonyms.txt"'),
    "paraphrases": ("text", 'path = "{folder}/wordings.jsonl"'),
    "rand-augment": ("picture", ""),
    "trivial-augment": ("picture", ""),
    "augmix": ("picture", ""),
    "random-erasing": ("picture", ""),
    "colour": ("picture", ""),
    "feature-noise": ("number", ""),
    "swap-noise": ("number", ""),
}
"""Name, kind of data, options."""
BATCHES = {
    "mixup": ("picture", "alpha = 1.0"),
    "cutmix": ("picture", "share = 1.0"),
    "kornia": (
        "picture",
        'transforms = [{name = "RandomHorizontalFlip", p = 0.9}, {name = "RandomGamma"}]',
    ),
}
ALL = [*ROWS.items(), *BATCHES.items()]
IDS = [*ROWS, *BATCHES]
LIKE_OTHERS = set(ROWS) - {"keyboard-typos", "rand-augment", "swap-noise"}
"""They differ from others in pure functions alone, which have tests of their own."""
SOME = ["keyboard-typos", "rand-augment", "swap-noise"]


def cases(names, found):
    return [
        pytest.param(name, case, id=key, marks=[pytest.mark.slow] * (key in LIKE_OTHERS))
        for key, (name, case) in zip(names, found, strict=True)
    ]


@pytest.fixture(autouse=True)
def files(tmp_path):
    """Write synonyms and other wordings for every tiny text."""
    texts = observers.Words().load()["train"]["text"]
    words = {word for text in texts for word in text.split()}
    (tmp_path / "synonyms.txt").write_text("".join(f"{word}, {word}h\n" for word in words))
    lines = [json.dumps({"text": t, "alternatives": [f"{t}h", f"a{t}"]}) for t in texts]
    (tmp_path / "wordings.jsonl").write_text("\n".join(lines))


@pytest.fixture
def table(tmp_path):
    def make(name, options):
        return f'[[augmentation]]\nuse = "{name}"\n{options}\n'.replace("{folder}", str(tmp_path))

    return make


@pytest.mark.parametrize(("name", "case"), cases(ROWS, ROWS.items()))
def test_an_example_is_changed_alike_in_any_batch(seen, plain, table, name, case) -> None:
    kind, on = case
    epoch = "train.epochs=1"
    whole = seen(kind, table(name, on), overrides=[epoch], name="whole")
    others = [epoch, "train.batch_size=8", "train.micro_batch_size=3", "seeds.order=5"]
    cut = seen(kind, table(name, on), overrides=others, name="cut")
    assert len(whole) == 48
    assert _same(whole, cut)
    assert not _same(whole, plain(kind, epoch)[1])


def test_another_noise_seed_changes_otherwise(seen, table) -> None:
    typos = table("keyboard-typos", "rate = 0.3")
    whole = seen("text", typos, name="whole")
    assert not _same(whole, seen("text", typos, overrides=["seeds.noise=7"], name="other"))


@pytest.mark.parametrize("name", SOME)
def test_background_processes_change_alike(seen, table, name) -> None:
    kind, on = ROWS[name]
    tables = table(name, on + "\nuntil = 0.5")
    assert seen(kind, tables, name="none") == seen(
        kind, tables, overrides=["train.workers=2"], name="two"
    )


@pytest.mark.parametrize(("name", "case"), cases(IDS, ALL))
def test_it_is_off_from_an_epoch_on(seen, plain, table, name, case) -> None:
    """Three epochs of three steps: 0.4 of the run is in the second one."""
    kind, on = case
    changed = seen(kind, table(name, on + "\nuntil = 0.4"), overrides=["train.epochs=3"])
    _, bare = plain(kind, "train.epochs=3")
    differ = [_changed(bare, changed, epoch) for epoch in range(3)]
    assert differ[0] > 5
    assert differ[1] > 5
    assert differ[2] == 0


def test_changes_differ_between_epochs_and_examples(seen, table) -> None:
    """Equal texts, so that what differs is what was drawn."""
    found = seen(
        "text",
        table("keyboard-typos", "rate = 0.5\nshare = 1.0"),
        overrides=["train.epochs=4"],
    )
    drawn = {json.dumps(tensors) for (_, row), tensors in found.items() if row == 0}
    assert len(drawn) == 4


@pytest.mark.parametrize("name", SOME)
def test_ranks_change_alike(table, name, tmp_path) -> None:
    """The feeds of three ranks give what the feed of one gives."""
    kind, on = ROWS[name]
    plan = plan_recipe(RECIPES[kind] + table(name, on), (), COMPONENTS)
    feed = assemble(plan, tmp_path / "run").feed.feeds["data"]
    whole = _examples(feed.window(1, 0))
    parts = [replace(feed, rank=rank, world=3, micro_batch_size=2) for rank in range(3)]
    shares = [_examples(part.window(1, 0)) for part in parts]
    assert sum(map(len, shares)) == len(whole) == 16
    assert {row: each for share in shares for row, each in share.items()} == whole


def test_evaluation_sees_what_is_there(table, tmp_path) -> None:
    tables = table("rand-augment", "magnitude = 30") + table("mixup", "")
    results = []
    for name, extra in (("plain", ""), ("augmented", tables)):
        plan = plan_recipe(RECIPES["picture"] + extra, (), COMPONENTS)
        built = assemble(plan, tmp_path / name)
        (result,) = evaluate(built.run, "train", built.precision, batch_size=16)
        results.append(result.predictions["logits"])
    assert torch.equal(*results)


def test_an_idle_one_does_not_shift_the_draws_of_others(carry_out, table) -> None:
    typos = table("keyboard-typos", "rate = 0.3")
    alone = carry_out("text", typos, name="alone")
    both = carry_out("text", table("casing", "share = 0"), typos, name="both")
    assert alone.fingerprint == both.fingerprint


def test_mixtures_for_consistency_are_of_the_same_crop(table, tmp_path, monkeypatch) -> None:
    """With the mixing left out, the further views are the batch itself: what others drew is the same."""
    tables = table("random-erasing", "share = 1.0") + table("augmix", "consistency = 12.0")
    built = assemble(plan_recipe(RECIPES["picture"] + tables, (), COMPONENTS), tmp_path / "run")
    built.run.hooks.sft_setup(run=built.run)
    augmix = next(a.component for a in built.run.active if a.key == "augmentation[1]")
    (batch,) = built.feed.window(0)
    images = batch.inputs["image"]
    first, second = (augmix.view(built.run, batch, number).inputs["image"] for number in (1, 2))
    assert not torch.equal(first, second)
    assert torch.equal(first, augmix.view(built.run, batch, 1).inputs["image"])
    monkeypatch.setattr(augmix, "change", lambda row, draws: row)
    assert torch.equal(augmix.view(built.run, batch, 1).inputs["image"], images)
    assert torch.equal(batch.inputs["image"], images)


# --- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name", "options", "says"),
    [
        ("picture", "keyboard-typos", "", "has none of it"),
        ("text", "rand-augment", "", "changes the column 'image'"),
        ("text", "swap-noise", "", "changes the column 'features'"),
        ("text", "mixup", "", "`mixup` mixes inputs of real numbers"),
        ("number", "cutmix", "share = 1.0", "`cutmix` mixes images"),
        ("text", "cutoff", "share = 1.0", "`cutoff` hides tokens"),
        ("picture", "random-erasing", "area = [0.5, 0.1]", "needed: the smaller number first"),
        ("text", "paraphrases", 'path = "nowhere.jsonl"', "cannot be read"),
        ("text", "eda", 'synonyms = "nowhere.txt"', "cannot be read"),
    ],
)
def test_what_does_not_fit_is_one_sentence(carry_out, table, kind, name, options, says) -> None:
    with pytest.raises((RecipeError, DataError), match=says):
        carry_out(kind, table(name, options))


def test_wordings_of_other_texts_are_refused(carry_out, table, tmp_path) -> None:
    (tmp_path / "wordings.jsonl").write_text('{"text": "?", "alternatives": ["!"]}')
    with pytest.raises(RecipeError, match="none of them is in the training split"):
        carry_out("text", table("paraphrases", 'path = "{folder}/wordings.jsonl"'))


def test_consistency_and_mixing_exclude_each_other(table) -> None:
    tables = table("augmix", "consistency = 12.0") + table("cutmix", "")
    with pytest.raises(RecipeError, match=r"augmentation\[0\].consistency.*`cutmix` mixes two"):
        plan_recipe(RECIPES["picture"] + tables)
    plan_recipe(RECIPES["picture"] + table("augmix", "") + table("cutmix", ""))


# --- parts -----------------------------------------------------------------------------------------


def _same(one, other):
    """Whether examples are equal, apart from padding, which depends on the batch."""
    keys = one.keys() & other.keys()
    assert keys
    return all(_bare(one[key]) == _bare(other[key]) for key in keys)


def _changed(one, other, epoch):
    keys = [key for key in one if key[0] == epoch]
    return sum(_bare(one[key]) != _bare(other[key]) for key in keys)


def _bare(tensors):
    if isinstance(tensors[0][0], int):
        return [[n for n in tensors[0] if n], *tensors[1:]]
    return tensors


def _examples(window):
    found = {}
    for batch in window:
        for index, row in enumerate(batch.ids if batch.real else []):
            found[row] = _bare([t[index].tolist() for t in batch.inputs.values()])
    return found
