"""Acceptance 6 and 10: two fingerprints are equal only if the activations are."""

from __future__ import annotations

import pytest
import torch
from recorded import FROZEN, PICTURES

from sft_engine import Capabilities, hookimpl
from sft_engine.testing.runs import run_recipe
from sft_engine.testing.tiny_images import TinyImage

SEEN = []


class Notes:
    """Notes the fingerprint of what is kept.

    Args:
        shift: Added to all of a frozen weight before a norm, which takes it away again.
    """

    capabilities = Capabilities(replayable=True)

    def __init__(self, shift: float = 0.0) -> None:
        self.shift = shift

    @hookimpl
    def sft_setup(self, run):
        with torch.no_grad():
            next(run.model.parameters()).add_(self.shift)

    @hookimpl
    def sft_train_end(self, run):
        SEEN.append(run.replay.keeping.fingerprint)


class Lighter(TinyImage):
    """Prepares pictures otherwise, which no option says."""

    def open(self, resolve):
        """Make the pipeline."""
        super().open(resolve)
        self.pipeline = type(self.pipeline)((self.size, self.size), crop_pct=0.9)


COMPONENTS = {
    ("extension", "test/notes"): f"{__name__}:Notes",
    ("backbone", "test/lighter"): f"{__name__}:Lighter",
}


def fingerprint(folder, text, *overrides):
    options = ["train.epochs=2", "train.replay=true", *overrides]
    run_recipe(folder, text + '[[extension]]\nuse = "test/notes"\n', options, COMPONENTS)
    return SEEN.pop()


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return {text: fingerprint(tmp_path_factory.mktemp("here"), text) for text in (FROZEN, PICTURES)}


@pytest.mark.parametrize(
    "overrides",
    [
        ["extension.0.shift=1e-3"],
        ["train.replay_dtype=fp16"],
        ["train.precision=bf16"],
        ["backbone.size=12"],
        ["backbone.use=test/lighter"],
        ["data.seed=1"],
        ['freezing.keep=["head", "block"]'],
    ],
    ids=lambda overrides: overrides[0],
)
def test_whatever_changes_activations_changes_the_fingerprint(here, tmp_path, overrides):
    assert fingerprint(tmp_path, PICTURES, *overrides) != here[PICTURES]


def test_a_change_that_a_norm_takes_away_changes_the_fingerprint(here, tmp_path):
    assert fingerprint(tmp_path, FROZEN, "extension.0.shift=1e-3") != here[FROZEN]


@pytest.mark.parametrize("overrides", [[], ["optimizer.lr=0.1", "train.epochs=3"]])
def test_what_only_the_head_learns_from_changes_nothing(here, tmp_path, overrides):
    assert fingerprint(tmp_path, PICTURES, *overrides) == here[PICTURES]
