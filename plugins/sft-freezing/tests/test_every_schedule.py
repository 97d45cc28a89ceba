"""What holds for every component of sft-freezing alone: timetable, replay, all rates together.

Accumulation, resume, absence, processes and pairs are claims of tests/methods, for these too.
"""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from freezing_parts import COMPONENTS, Note
from safetensors.torch import load_file

from sft_engine import Interrupted, RecipeError
from sft_engine.testing.runs import TINY, plan_recipe, run_recipe
from sft_freezing import RATES, SCHEDULES

NOTED = TINY + '[[extension]]\nuse = "test/note"\n'
SHORT = [
    "train.epochs=4",  # of three steps
    "backbone.dtype=float64",
    "optimizer.use=adamw",
    "optimizer.lr=0.01",
    "optimizer.weight_decay=0.1",
    "train.decay_all=true",
    "schedule.use=constant",
    "checkpoint.best=last",
    "checkpoint.every_epochs=0",
    "evaluation.every_epochs=0",
    "evaluation.test=false",
    "train.replay=false",  # "auto" goes by what it measures
    "evaluation.predictions=false",
]
ALL, HEAD = [0, 1, 2, 3], [3]

CASES = {
    "frozen": "",
    "gradual-unfreezing": "rewarm = 2",
    "lp-ft": "until = 0.4\nscale = 0.5\nrewarm = 2",
    "chain-thaw": "rewarm = 2",
    "surgical": 'train = "first"',
    "progressive-freezing": "first = 0.25\nanneal = true",
    "layer-decay": "decay = 0.5\nhead = 2.0",
    "discriminative": "lowest = 0.1",
    "auto-rgn": "",
    "bn-freeze": "",
}


def table(name, options):
    head = "[freezing]" if name in SCHEDULES else "[[extension]]"
    return f'{head}\nuse = "{name}"\n{options}\n'


def text_of(name):
    text = NOTED + table(name, CASES[name])
    return text.replace('"tiny/text"', '"test/normed"') if name == "bn-freeze" else text


def trained(folder, text, overrides=(), **options):
    own = SHORT
    if 'normed"' in text:
        own = [each for each in SHORT if "dtype" not in each]
    return run_recipe(folder, text, [*own, *overrides], COMPONENTS, **options)


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def difference(one, other):
    ours, theirs = (load_file(o.folder / "model/model.safetensors") for o in (one, other))
    return max((ours[name] - theirs[name]).abs().max().item() for name in theirs)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return a function: the uninterrupted run of a component, trained once for all tests."""
    outcomes = {}

    def of(name):
        if name not in outcomes:
            text = text_of(name) if name else NOTED
            outcomes[name] = trained(tmp_path_factory.mktemp("whole") / "run", text)
        return outcomes[name]

    return of


def test_the_cases_are_all_components():
    assert set(CASES) == {*SCHEDULES, *RATES}


# --- what trains when, and how fast -----------------------------------------------------------------

TIMETABLES = {
    ("gradual-unfreezing", ""): {0: HEAD, 3: [2, 3], 6: [1, 2, 3], 9: ALL},
    ("gradual-unfreezing", "every = 0.5"): {0: HEAD, 2: [2, 3], 3: [1, 2, 3], 4: ALL},
    ("gradual-unfreezing", "until = 0.5"): {0: HEAD, 2: [2, 3], 4: [1, 2, 3], 6: ALL},
    ("gradual-unfreezing", "first = 2\nat_once = 2\nuntil = 0.5"): {0: [2, 3], 6: ALL},
    ("lp-ft", ""): {0: HEAD, 6: ALL},
    ("lp-ft", "until = 0.25\nhead = 2"): {0: [2, 3], 3: ALL},
    ("chain-thaw", ""): {0: HEAD, 2: [0], 5: [1], 7: [2], 10: ALL},
    ("chain-thaw", "every = 0.67"): {0: HEAD, 2: [0], 4: [1], 6: [2], 8: ALL},
    ("surgical", ""): {0: [0, 3]},
    ("surgical", 'train = "middle"\nhead = false'): {0: [1]},
    ("surgical", 'train = ["last", "emb*"]'): {0: [0, 2, 3]},
    ("progressive-freezing", ""): {0: ALL, 6: [1, 2, 3], 8: [2, 3], 10: HEAD},
    ("progressive-freezing", "keep = 2\ncubic = true"): {0: ALL, 2: [1, 2, 3], 4: [2, 3]},
}


@pytest.mark.parametrize("case", TIMETABLES, ids=" ".join)
def test_what_trains_when(tmp_path, case):
    """A share of 2/5 of twelve steps is 4.8, so step 5 is the first after it."""
    trained(tmp_path / "run", NOTED + table(*case))
    changes = {0: Note.groups[0]}
    for step, (before, now) in enumerate(itertools.pairwise(Note.groups), 1):
        if now != before:
            changes[step] = now
    assert changes == TIMETABLES[case]


@pytest.mark.parametrize("name", SCHEDULES)
def test_what_does_not_train_does_not_move(tmp_path, name):
    """Neither by weight decay nor by the momentum that it has had."""
    trained(tmp_path / "run", text_of(name))
    for trains, step in zip(Note.groups, Note.steps, strict=True):
        for parameter, before in step["weights"].items():
            group = list(dict.fromkeys(Note.group_of.values())).index(Note.group_of[parameter])
            stays = torch.equal(before, step["after"][parameter])
            assert stays is (group not in trains), parameter


def test_what_has_thawed_is_warmed_up_again(tmp_path):
    """The head thaws with the run itself; each block rises by thirds from its thaw on."""
    trained(tmp_path / "run", NOTED + table("gradual-unfreezing", "rewarm = 3"))
    rates = [[rate / 0.01 for rate in step] for step in Note.rates]
    for step in range(12):
        for group, thaw in ((3, 0), (2, 3), (1, 6), (0, 9)):
            if step < thaw:
                continue
            expected = min(1.0, (step - thaw + 1) / 3) if thaw else 1.0
            assert rates[step][group] == pytest.approx(expected), (step, group)


def test_fine_tuning_may_have_another_rate_than_the_head(tmp_path):
    trained(tmp_path / "run", NOTED + table("lp-ft", "scale = 0.1"))
    assert [step[3] / 0.01 for step in Note.rates] == pytest.approx([1.0] * 6 + [0.1] * 6)
    assert Note.rates[11] == pytest.approx([0.001] * 4)


def test_progressive_freezing_anneals_to_the_step_of_freezing(tmp_path):
    trained(tmp_path / "run", NOTED + table("progressive-freezing", "anneal = true"))
    embeddings = [step[0] / 0.01 for step in Note.rates[:6]]
    cosines = torch.cos(torch.arange(6) * torch.pi / 6)
    assert embeddings == pytest.approx((0.5 * (1 + cosines)).tolist())
    assert [step[3] for step in Note.rates] == [0.01] * 12


def test_only_the_phases_that_are_named(tmp_path):
    phases = "".join(f'[[phase]]\nname = "{n}"\nsteps = {s}\n' for n, s in (("a", 4), ("b", 5)))
    options = 'until = 0.75\nphases = ["a"]'
    trained(tmp_path / "run", NOTED + table("gradual-unfreezing", options) + phases)
    assert Note.groups == [HEAD, [2, 3], [1, 2, 3], ALL, *[ALL] * 5]
    trained(tmp_path / "other", NOTED + table("lp-ft", 'phases = ["b"]\nuntil = 0.4') + phases)
    assert Note.groups == [*[ALL] * 4, HEAD, HEAD, ALL, ALL, ALL]


# --- the head until it has converged ---------------------------------------------------------------


def notices(folder):
    return [r for r in records(folder) if "train from here" in r.get("message", "")]


CONVERGED = (
    table("lp-ft", 'until = 1.0\npatience = 2\nmetric = "nll"\nmin_delta = 100.0')
    + "[evaluation]\nevery_steps = 2\n"
)
"""No evaluation after the first one beats it by 100: two of them are at step 6."""


def test_a_head_that_has_converged_lets_all_train(tmp_path):
    trained(tmp_path / "run", NOTED + CONVERGED)
    assert Note.groups == [*[HEAD] * 6, *[ALL] * 6]
    (notice,) = notices(tmp_path / "run")
    assert notice["step"] == 6
    assert "nll has not improved" in notice["message"]


def test_what_validation_has_said_survives_a_resume(tmp_path):
    text = NOTED + CONVERGED
    one = trained(tmp_path / "one", text)
    for stop in (5, 9):
        folder = tmp_path / f"parted-{stop}"
        with pytest.raises(Interrupted):
            trained(folder, text, stop_after=stop)
        assert trained(folder, text, resume=True).fingerprint == one.fingerprint
        assert len(notices(folder)) == 1


# --- exactness -------------------------------------------------------------------------------------


REPLAYED = {
    "frozen": [0],
    "gradual-unfreezing": [0, 3, 6],
    "lp-ft": [0],
    "progressive-freezing": [3, 6, 9],
}
"""Steps at which replay plans anew: the rest of the time the part that runs once is the same, or empty."""


@pytest.mark.parametrize("name", REPLAYED)
def test_replay_follows_the_border(tmp_path, whole, name):
    """Where frozen parts run once an example, the weights are the same, and a resumed run's too."""
    on = ["train.replay=true"]
    one = trained(tmp_path / "one", text_of(name), on)
    assert difference(one, whole(name)) < 1e-11
    said = [r for r in records(one.folder) if "replay is on" in r.get("message", "")]
    assert [record["step"] for record in said] == REPLAYED[name]
    folder = tmp_path / "two"
    with pytest.raises(Interrupted):
        trained(folder, text_of(name), on, stop_after=7)
    assert trained(folder, text_of(name), on, resume=True).fingerprint == one.fingerprint


@pytest.mark.parametrize("stop", [4, 5, 8, 9, 11])
def test_a_run_interrupted_while_replay_measures_goes_the_same_way(tmp_path, monkeypatch, stop):
    """Whether replay pays is settled in the checkpoint, and not measured anew."""
    auto, folder = ["train.replay=auto"], tmp_path / "two"
    monkeypatch.setenv("SFT_ENGINE_CACHE", str(tmp_path / "measured by one"))
    one = trained(tmp_path / "one", text_of("chain-thaw"), auto)
    monkeypatch.setenv("SFT_ENGINE_CACHE", str(tmp_path / "measured by two"))
    with pytest.raises(Interrupted):
        trained(folder, text_of("chain-thaw"), auto, stop_after=stop)
    assert trained(folder, text_of("chain-thaw"), auto, resume=True).fingerprint == one.fingerprint


# --- together --------------------------------------------------------------------------------------

FAST = "gradual-unfreezing"
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in SCHEDULES if name != FAST]


@pytest.mark.parametrize("schedule", [FAST, *SLOW])
def test_schedules_go_with_all_rates(tmp_path, schedule):
    """And resume bit for bit with them."""
    rates = [name for name in RATES if name != "discriminative"]
    text = text_of("bn-freeze") + "".join(
        table(name, CASES[name]) for name in (schedule, *rates) if name != "bn-freeze"
    )
    one = trained(tmp_path / "one", text)
    folder = tmp_path / "two"
    with pytest.raises(Interrupted):
        trained(folder, text, stop_after=7)
    assert trained(folder, text, resume=True).fingerprint == one.fingerprint


@pytest.mark.parametrize(
    ("tables", "sentence"),
    [
        (
            table("layer-decay", "") + table("discriminative", ""),
            r"`extension\[1\]`: discriminative beside layer-decay: both set learning rates by depth",
        ),
        (
            table("layer-decay", "") * 2,
            r"`extension\[1\]`: layer-decay beside layer-decay: both set learning rates by depth",
        ),
        (table("auto-rgn", "") * 2, r"`extension\[1\]`: auto-rgn stands here twice; leave one out"),
        (
            table("lp-ft", "patience = 2") + "[evaluation]\nevery_epochs = 0\n",
            r"`freezing.patience`: lp-ft watches the validation split, and .* leaves it unseen",
        ),
        (
            table("surgical", 'phases = ["x"]'),
            r'`freezing.phases\[0\]`: the recipe has no phase "x"',
        ),
    ],
)
def test_check_refuses_with_the_reason(tables, sentence):
    with pytest.raises(RecipeError, match=sentence):
        plan_recipe(TINY + tables)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ('train = "blok.*"', r'`freezing.train`: "blok.\*" matches no layer group; .* embeddings'),
        ('train = "middle"', r"`freezing.train`: there is no middle third of embeddings, block.0;"),
    ],
)
def test_surgery_on_what_is_not_there(tmp_path, options, sentence):
    shallow = ["backbone.depth=1"]
    with pytest.raises(RecipeError, match=sentence):
        trained(tmp_path / "run", NOTED + table("surgical", options), shallow)
    assert not (tmp_path / "run").exists()


def test_a_stage_in_which_nothing_can_train_is_refused_before_training(tmp_path):
    text = NOTED + '[[extension]]\nuse = "test/frozenbelow"\n' + table("chain-thaw", "")
    with pytest.raises(
        RecipeError, match=r"from step 2 on only embeddings would train, and there is"
    ):
        trained(tmp_path / "run", text)


def test_what_the_timetable_never_comes_to_is_said(tmp_path):
    trained(tmp_path / "run", NOTED + table("gradual-unfreezing", ""), ["train.epochs=2"])
    (said,) = [r["message"] for r in records(tmp_path / "run") if "timetable" in str(r)]
    assert said.startswith("the timetable of `[freezing]` never comes to embeddings, block.0;")
