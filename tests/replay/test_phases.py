"""Replay over the borders of phases: planned and decided anew, for streams of other data too."""

from __future__ import annotations

import pytest
import torch
from recorded import DROPOUT, FROZEN, OFF, ON, PICTURES, curve, evaluations, notices, same_curves

from sft_engine import Interrupted, RecipeError, hookimpl
from sft_engine.replay import decision
from sft_engine.replay.decision import Decision
from sft_engine.testing.runs import run_recipe
from sft_engine.testing.tiny_images import TinyImage

TWO = """
[[phase]]
name = "alone"
epochs = 2
[[phase]]
name = "both"
epochs = 2
streams = {more = 1.0, data = 0.5}
[[stream]]
name = "more"
examples = 40
seed = 5
"""
TEXTS = FROZEN + TWO + 'use = "tiny/texts"\n'
IMAGES = PICTURES + TWO + 'use = "tiny/pictures"\n'
COMPONENTS = {
    (kind, f"test/{name.lower()}"): f"{__name__}:{name}"
    for kind, name in (("extension", "Inflates"), ("backbone", "Wavering"))
}


def run(folder, text, *overrides, **options):
    return run_recipe(folder, text, overrides, COMPONENTS, **options)


@pytest.mark.parametrize("text", [TEXTS, IMAGES], ids=["texts", "images"])
def test_phases_give_the_same_curve(tmp_path, text):
    run(tmp_path / "off", text, *DROPOUT, OFF)
    run(tmp_path / "on", text, *DROPOUT, ON)
    assert same_curves(tmp_path / "on", tmp_path / "off")
    first, second = notices(tmp_path / "on")
    assert first == second
    assert first.startswith("replay is on: kept of each example: ")


@pytest.mark.parametrize(
    ("at", "memory"),
    [
        (6, 0),  # the border: what the first phase has left in files is not for the second
        (8, 0.25),
        pytest.param(5, 0.25, marks=pytest.mark.slow),
        pytest.param(6, 0.25, marks=pytest.mark.slow),
        pytest.param(8, 0, marks=pytest.mark.slow),
        pytest.param(11, 0.25, marks=pytest.mark.slow),
    ],
)
def test_resume_is_bit_equal_in_every_phase(tmp_path, at, memory):
    overrides = [*DROPOUT, ON, f"train.replay_memory={memory}"]
    whole = run(tmp_path / "whole", TEXTS, *overrides)
    with pytest.raises(Interrupted):
        run(tmp_path / "parted", TEXTS, *overrides, stop_after=at)
    torch.manual_seed(99)
    again = run(tmp_path / "parted", TEXTS, *overrides, resume=True)
    assert again.fingerprint == whole.fingerprint
    assert curve(tmp_path / "parted") == curve(tmp_path / "whole")
    assert evaluations(tmp_path / "parted") == evaluations(tmp_path / "whole")
    assert notices(tmp_path / "parted") == notices(tmp_path / "whole")


def test_every_phase_is_decided_for_itself(tmp_path, monkeypatch):
    """The first phase sees no example twice; the second does, though nothing else trains in it."""
    left = []

    def decide(figures, amounts):
        left.append(amounts.epochs)
        return Decision(on=True, line="on")

    monkeypatch.setattr(decision, "decide", decide)
    run(tmp_path / "run", TEXTS, *DROPOUT, "phase.0.epochs=1")
    off, on = notices(tmp_path / "run")
    assert off == "replay is off: no example is seen twice"
    assert on.startswith("on; kept of each example: ")
    assert len(left) == 1
    assert 1.0 < left[0] <= 2.0


# --- a stream with which the cut was not found ----------------------------------------------------


class Wavering(TinyImage):
    """Gives the pictures of the second stream another brightness each time."""

    def encode(self, rows, task):
        """Encode a split."""
        examples = super().encode(rows, task)
        if len(rows) == 40:
            take = examples.take

            def wavering(ids):
                tensors = take(ids)
                return {**tensors, "image": tensors["image"] + torch.rand(())}

            examples.take = wavering
        return examples


def test_a_stream_that_differs_each_time_is_not_replayed(tmp_path, monkeypatch):
    monkeypatch.setattr(decision, "decide", lambda figures, amounts: Decision(on=True, line="on"))
    text = IMAGES.replace("tiny/image", "test/wavering").replace("more = 1.0, ", "")
    text = text.replace("data = 0.5}", "data = 0.5, more = 1.0}")
    with pytest.raises(RecipeError, match="at step 6: the input 'image' of an example is not the"):
        run(tmp_path / "true", text, *DROPOUT, ON)
    run(tmp_path / "auto", text, *DROPOUT)
    said = (
        "replay is off for the examples of `more`: the input 'image' of an example is not the same"
    )
    assert f"{said} twice" in notices(tmp_path / "auto")


# --- mistakes that show in the middle -------------------------------------------------------------


class Inflates:
    """Makes the weights of what is frozen so large that its activations do not fit into fp16."""

    @hookimpl
    def sft_build_model(self, run):
        with torch.no_grad():
            run.model.embeddings.weight.mul_(1e8)


INFLATED = FROZEN + '[[extension]]\nuse = "test/inflates"\n'
FP16 = 'train.replay_dtype="fp16"'


def test_too_large_for_the_kept_type_stops_who_insists(tmp_path):
    with pytest.raises(RecipeError, match="at step 0: an activation is too large for fp16: set"):
        run(tmp_path / "run", INFLATED, *DROPOUT, ON, FP16)


def test_too_large_for_the_kept_type_is_no_reason_to_end(tmp_path):
    run(tmp_path / "off", INFLATED, *DROPOUT, OFF)
    whole = run(tmp_path / "auto", INFLATED, *DROPOUT, FP16)
    assert curve(tmp_path / "auto") == curve(tmp_path / "off")
    (line,) = notices(tmp_path / "auto")
    assert line.startswith("replay is off for the examples of `train`: an activation is too large")
    with pytest.raises(Interrupted):
        run(tmp_path / "parted", INFLATED, *DROPOUT, FP16, stop_after=4)
    again = run(tmp_path / "parted", INFLATED, *DROPOUT, FP16, resume=True)
    assert again.fingerprint == whole.fingerprint
    assert len(notices(tmp_path / "parted")) == 1


def test_drawn_examples_are_decided_on_too(tmp_path):
    """A batch holds an example twice, or one of before: still it is measured."""
    run(tmp_path / "run", FROZEN, *DROPOUT, "data.resample=bootstrap")
    (line,) = notices(tmp_path / "run")
    assert "a training example is the frozen part" in line
