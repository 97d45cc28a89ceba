"""Acceptance 4, 10, 12 and 15 in whole runs: the same curve, the same resume, what switches it off."""

from __future__ import annotations

import pytest
import torch
from recorded import (
    DROPOUT,
    FROZEN,
    NOISY,
    OFF,
    ON,
    PICTURES,
    curve,
    evaluations,
    notices,
    same_curves,
)
from safetensors.torch import load_file

from sft_engine import Capabilities, Interrupted, LossTerm, RecipeError, View, hookimpl
from sft_engine.images import ImageExamples
from sft_engine.replay import decision
from sft_engine.replay.decision import Decision
from sft_engine.testing.runs import TINY, run_recipe

COMPONENTS = {
    ("extension", f"test/{name.lower()}"): f"{__name__}:{name}"
    for name in (
        "Reads",
        "Regularizes",
        "Thaws",
        "Tampers",
        "Rewrites",
        "Hooks",
        "Augments",
        "Looks",
        "FreezesAll",
    )
}


def run(folder, text, *overrides, extensions=(), **options):
    text += "".join(f'[[extension]]\nuse = "test/{name}"\n' for name in extensions)
    return run_recipe(folder, text, overrides, COMPONENTS, **options)


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """Carries out a run that several tests compare with; returns its folder and outcome."""
    done = {}

    def carried_out(*arguments, extensions=()):
        key = (*arguments, *extensions)
        if key not in done:
            folder = tmp_path_factory.mktemp("once") / "run"
            done[key] = folder, run(folder, *arguments, extensions=extensions)
        return done[key]

    return carried_out


# --- 12: the same curve ---------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", [(), ("train.replay_memory=0",)], ids=["memory", "file"])
def test_texts_give_the_same_curve(once, tmp_path, overrides):
    off, _ = once(FROZEN, *DROPOUT, OFF)
    run(tmp_path / "on", FROZEN, *DROPOUT, ON, *overrides)
    assert notices(tmp_path / "on")[0].startswith("replay is on")
    assert notices(off) == []
    assert curve(tmp_path / "on") == pytest.approx(curve(off), rel=1e-5)
    assert not (tmp_path / "on" / "replay").exists()


def test_pictures_give_the_same_curve(once, tmp_path):
    off, _ = once(PICTURES, *DROPOUT, OFF)
    run(tmp_path / "on", PICTURES, *DROPOUT, ON)
    assert same_curves(tmp_path / "on", off)
    # An epoch in which every example is computed among the others of its batch: bit for bit.
    assert curve(tmp_path / "on")[:3] == curve(off)[:3]
    assert evaluations(tmp_path / "on")[0] == evaluations(off)[0]


@pytest.mark.parametrize(("kept", "limit"), [("fp16", 1e-3), ("bf16", 1e-2)])
def test_half_the_bytes_give_nearly_the_same_curve(once, tmp_path, kept, limit):
    off, _ = once(FROZEN, *DROPOUT, OFF)
    run(tmp_path / "on", FROZEN, *DROPOUT, ON, f'train.replay_dtype="{kept}"')
    assert curve(tmp_path / "on") != curve(off)
    assert curve(tmp_path / "on") == pytest.approx(curve(off), rel=limit)


def test_draws_are_those_of_a_full_run(tmp_path):
    """What trains has dropout: one number more or less drawn would change every later loss."""
    overrides = [*DROPOUT, 'freezing.keep=["head", "block.1"]']
    run(tmp_path / "off", FROZEN, *overrides, OFF)
    run(tmp_path / "on", FROZEN, *overrides, ON)
    assert curve(tmp_path / "on") == pytest.approx(curve(tmp_path / "off"), rel=1e-5)


def test_autocast_gives_the_same_curve(tmp_path):
    run(tmp_path / "off", PICTURES, *DROPOUT, OFF, "train.precision=bf16")
    run(tmp_path / "on", PICTURES, *DROPOUT, ON, "train.precision=bf16")
    assert curve(tmp_path / "on")[:3] == curve(tmp_path / "off")[:3]
    assert curve(tmp_path / "on") == pytest.approx(curve(tmp_path / "off"), rel=1e-2)


def test_statistics_of_batch_norm_are_those_of_a_full_run(tmp_path):
    """Planning runs NaN through batch norm in training mode; nothing of it may stay."""
    overrides = [*DROPOUT, 'freezing.keep=["head", "block"]']
    run(tmp_path / "off", PICTURES, *overrides, OFF)
    run(tmp_path / "on", PICTURES, *overrides, ON)
    on, off = (load_file(tmp_path / n / "model/model.safetensors") for n in ("on", "off"))
    assert notices(tmp_path / "on") == ["replay is on: kept of each example: `stem`"]
    assert on["block.1.num_batches_tracked"] == off["block.1.num_batches_tracked"] > 1
    for name in ("block.1.running_mean", "block.1.running_var"):
        assert torch.allclose(on[name], off[name], rtol=1e-5)
    assert torch.equal(on["stem.1.running_var"], torch.ones(6))  # as it began


# --- pictures are not decoded ---------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_are_fetched_in_the_first_epoch_alone(tmp_path, monkeypatch, workers):
    fetched = []
    take = ImageExamples.take

    def counted(self, ids):
        fetched.extend(ids)
        return take(self, ids)

    monkeypatch.setattr(ImageExamples, "take", counted)
    run(tmp_path / "off", PICTURES, *DROPOUT, OFF)
    # Four epochs of 48 examples, four evaluations of 8 with a sample of all 48, and the test split of 8.
    assert len(fetched) == 4 * 48 + 4 * (8 + 48) + 8
    fetched.clear()
    run(tmp_path / "on", PICTURES, *DROPOUT, ON, f"train.workers={workers}")
    assert same_curves(tmp_path / "on", tmp_path / "off")
    # Once each, and a few to plan with. Background processes count for themselves.
    assert len(fetched) <= 48 + (8 + 48) + 8 + 40


def test_thawing_brings_pictures_back(once, tmp_path):
    """The window that is thawed for was fetched before, with stand-ins."""
    run(tmp_path / "off", PICTURES, *DROPOUT, OFF, extensions=["thaws"])
    on, _ = once(PICTURES, *DROPOUT, ON, extensions=["thaws"])
    assert same_curves(on, tmp_path / "off")
    kept = ["`block`", "`stem`"]
    lines = [f"replay is on: kept of each example: {name}" for name in kept]
    assert notices(on) == lines


class Thaws:
    """Thaws the second block after two epochs."""

    @hookimpl
    def sft_step_start(self, run):
        for name, parameter in run.model.named_parameters():
            if name.startswith("block."):
                parameter.requires_grad_(run.clock.step >= 7)


# --- 12: resume -----------------------------------------------------------------------------------


def resumed(folder, text, at, *overrides, extensions=()):
    with pytest.raises(Interrupted):
        run(folder, text, *overrides, extensions=extensions, stop_after=at)
    torch.manual_seed(99)
    return run(folder, text, *overrides, extensions=extensions, resume=True)


@pytest.mark.parametrize(
    ("at", "place"),
    [
        (2, "memory"),
        (8, "memory"),
        (4, "file"),
        pytest.param(0, "memory", marks=pytest.mark.slow),
        pytest.param(4, "memory", marks=pytest.mark.slow),
        pytest.param(2, "file", marks=pytest.mark.slow),
        pytest.param(8, "file", marks=pytest.mark.slow),
    ],
)
def test_resume_is_bit_equal(once, tmp_path, at, place):
    overrides = [*DROPOUT, ON, f"train.replay_memory={0.25 if place == 'memory' else 0}"]
    folder, whole = once(FROZEN, *overrides)
    again = resumed(tmp_path / "parted", FROZEN, at, *overrides)
    assert again.fingerprint == whole.fingerprint
    assert curve(tmp_path / "parted") == curve(folder)
    assert evaluations(tmp_path / "parted") == evaluations(folder)
    assert notices(tmp_path / "parted") == notices(folder)


@pytest.mark.parametrize("at", [pytest.param(5, marks=pytest.mark.slow), 8])
def test_resume_is_bit_equal_with_drawn_examples(tmp_path, at):
    """Drawn with replacement, an epoch has not all examples: the store fills over several."""
    overrides = [*DROPOUT, ON]
    whole = run(tmp_path / "whole", FROZEN, *overrides, extensions=["looks"])
    again = resumed(tmp_path / "parted", FROZEN, at, *overrides, extensions=["looks"])
    assert again.fingerprint == whole.fingerprint


class Looks:
    """Draws examples by weights."""

    @hookimpl
    def sft_build_data(self, run, split, data):
        import numpy as np

        if split == "train":
            data.weights = np.linspace(0.2, 1.0, len(data))


@pytest.mark.parametrize(
    "at", [pytest.param(4, marks=pytest.mark.slow), 7, pytest.param(9, marks=pytest.mark.slow)]
)
def test_resume_is_bit_equal_around_a_thaw(once, tmp_path, at):
    _, whole = once(PICTURES, *DROPOUT, ON, extensions=["thaws"])
    again = resumed(tmp_path / "parted", PICTURES, at, *DROPOUT, ON, extensions=["thaws"])
    assert again.fingerprint == whole.fingerprint
    assert sum("replay is on" in line for line in notices(tmp_path / "parted")) == 2


@pytest.mark.parametrize("at", [1, pytest.param(6, marks=pytest.mark.slow), 10])
def test_an_automatic_decision_is_kept_on_resume(tmp_path, monkeypatch, at):
    """Measured again, it might come out otherwise."""
    answers = iter([Decision(on=True, line="on"), Decision(on=False, line="off")])
    monkeypatch.setattr(decision, "decide", lambda figures, amounts: next(answers))
    whole = run(tmp_path / "whole", FROZEN, *DROPOUT)
    again = resumed(tmp_path / "parted", FROZEN, at, *DROPOUT)
    assert again.fingerprint == whole.fingerprint
    assert notices(tmp_path / "whole")[0].startswith("on; kept of each example: ")
    assert notices(tmp_path / "parted")[0].endswith("; measured in an earlier run")
    assert len(notices(tmp_path / "parted")) == 1


# --- what switches it off -------------------------------------------------------------------------


def test_a_tiny_run_is_not_worth_it(tmp_path):
    run(tmp_path / "run", FROZEN, *NOISY)
    (line,) = notices(tmp_path / "run")
    assert line.startswith("replay is off: ")
    assert "an example is" in line or "a training example is the frozen part" in line


def test_one_epoch_is_not_worth_it(tmp_path):
    run(tmp_path / "run", FROZEN, "train.epochs=1")
    assert notices(tmp_path / "run") == ["replay is off: no example is seen twice"]


def test_nothing_frozen_nothing_said(tmp_path):
    run(tmp_path / "run", TINY)
    assert notices(tmp_path / "run") == []


class Reads:
    """Sees batches."""

    @hookimpl
    def sft_batch(self, run, batch):
        """Change nothing."""


class Regularizes:
    """Adds a term that reads weights alone, and says so."""

    capabilities = Capabilities(replayable=True)

    @hookimpl
    def sft_loss_terms(self, run, batch, outputs):
        return [LossTerm("size", run.model.head.weight.square().sum(), 0.01, "step")]


class Hooks:
    """Wants to see hidden states."""

    @hookimpl
    def sft_setup(self, run):
        run.model.blocks[0].register_forward_hook(lambda module, args, output: None)


class Augments:
    """Changes the training rows."""

    @hookimpl
    def sft_build_data(self, run, split, data):
        if split == "train":
            data.transforms.append(lambda row, draws: {**row, "text": row["text"][::-1]})


@pytest.mark.parametrize(
    ("extension", "overrides", "reason"),
    [
        ("reads", [], "(`sft_batch`) may read inputs or hidden states"),
        ("hooks", [], "there is a hook on `blocks.0`, which would not be called"),
        ("augments", [], "augmentations make another input of every example"),
        ("looks", ["train.compile=true"], "`train.compile` makes one program"),
    ],
)
def test_refused_with_its_reason(tmp_path, monkeypatch, extension, overrides, reason):
    monkeypatch.setattr(torch, "compile", lambda model: model)
    run(tmp_path / "auto", FROZEN, *NOISY, *overrides, extensions=[extension])
    (line,) = notices(tmp_path / "auto")
    assert line.startswith("replay is off: ")
    assert reason in line
    with pytest.raises(RecipeError, match="cannot hold at step 0: "):
        run(tmp_path / "true", FROZEN, *NOISY, ON, *overrides, extensions=[extension])


def test_a_component_may_say_that_it_is_content(tmp_path):
    run(tmp_path / "off", FROZEN, *DROPOUT, OFF, extensions=["regularizes"])
    run(tmp_path / "on", FROZEN, *DROPOUT, ON, extensions=["regularizes"])
    assert notices(tmp_path / "on")[0].startswith("replay is on")
    assert curve(tmp_path / "on") == pytest.approx(curve(tmp_path / "off"), rel=1e-5)


class FreezesAll:
    """Freezes everything, and leaves nothing to train."""

    @hookimpl
    def sft_step_start(self, run):
        run.model.requires_grad_(run.clock.step < 4)


@pytest.mark.parametrize("replay", [ON, OFF])
def test_nothing_left_to_train_is_a_mistake(tmp_path, replay):
    with pytest.raises(RecipeError, match="nothing is left to train at step 4: every layer group"):
        run(tmp_path / "run", TINY, *NOISY, replay, extensions=["freezesall"])


# --- 6 and 10: stale weights ----------------------------------------------------------------------


class Tampers:
    """Changes a frozen weight though it must not, by so little that a norm hides it."""

    capabilities = Capabilities(replayable=True)

    @hookimpl
    def sft_step_end(self, run):
        if run.clock.step == 5:
            with torch.no_grad():
                run.model.blocks[1][0].bias.add_(1e-6)


class Rewrites:
    """Writes frozen weights with the values that they have."""

    capabilities = Capabilities(replayable=True)

    @hookimpl
    def sft_step_end(self, run):
        run.model.load_state_dict({k: v.clone() for k, v in run.model.state_dict().items()})


def test_changed_weights_are_noticed_by_their_bits(tmp_path):
    off = run(tmp_path / "off", FROZEN, *DROPOUT, OFF, extensions=["tampers"])
    on = run(tmp_path / "on", FROZEN, *DROPOUT, ON, extensions=["tampers"])
    assert "replay begins anew: frozen weights have changed" in notices(tmp_path / "on")
    assert curve(tmp_path / "on") == pytest.approx(curve(tmp_path / "off"), rel=1e-5)
    assert on.metrics["accuracy"] == off.metrics["accuracy"]


def test_weights_written_with_the_same_values_are_the_same(tmp_path):
    run(tmp_path / "run", FROZEN, *DROPOUT, ON, extensions=["rewrites"])
    assert len(notices(tmp_path / "run")) == 1


# --- evaluation -----------------------------------------------------------------------------------


class OtherViews:
    """Looks at other models and at changed batches."""

    @hookimpl
    def sft_eval_views(self, run, split):
        def brighten(run, batch):
            assert batch.inputs["image"].isfinite().all()
            batch.inputs["image"] = batch.inputs["image"] + 1.0

        return [View("same", model=run.model), View("bright", perturb=brighten)]


COMPONENTS["extension", "test/otherviews"] = f"{__name__}:OtherViews"


def test_only_the_plain_view_is_served(tmp_path):
    run(tmp_path / "off", PICTURES, *DROPOUT, OFF, extensions=["otherviews"])
    run(tmp_path / "on", PICTURES, *DROPOUT, ON, extensions=["otherviews"])
    assert same_curves(tmp_path / "on", tmp_path / "off")
    views = {record["view"] for record in evaluations(tmp_path / "on")}
    assert views == {"", "same", "bright"}
