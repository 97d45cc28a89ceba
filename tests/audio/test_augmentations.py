"""Whole audio runs with every augmentation: nothing without strength, alike wherever an example is."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tones import encoded

from sft_engine import Interrupted, RecipeError, hookimpl, plan, run
from sft_engine.plugins import load_plugins
from sft_engine.testing.runs import tiny_plugins
from sft_engine.training import train

CASES = {
    "background-noise": ("wav2vec2", "snr = [0.0, 10.0]\nshare = 1.0", "share = 0"),
    "noise of a folder": ("wav2vec2", 'path = "{noise}"\nshare = 1.0', "until = 0"),
    "time-stretch": ("wav2vec2", "share = 1.0", "speed = [1.0, 1.0]"),
    "pitch-shift": ("wav2vec2", "semitones = 1.0\nshare = 1.0", "semitones = 0"),
    "masks of the model": ("wav2vec2", "model_time = 0.5\nmodel_feature = 0.3", "until = 0"),
    "spec-augment": (
        "whisper",
        "time_width = 20\ntime_share = 1.0\nfrequency_width = 8",
        "time_masks = 0\nfrequency_masks = 0\nmodel_time = 0",
    ),
}
NAMES = {"noise of a folder": "background-noise", "masks of the model": "spec-augment"}
ROWS = ["background-noise", "time-stretch", "pitch-shift", "spec-augment"]
"""Whose draws depend on the example alone."""
SHORT = ["train.epochs=2", "checkpoint.best=last"]

SEEN = {}


class Notes:
    """Notes every training batch; stands below the augmentations in a recipe."""

    @hookimpl
    def sft_batch(self, run, batch):
        for index, row_id in enumerate(batch.ids):
            value = next(iter(batch.inputs.values()))[index]
            SEEN[run.clock.epoch, row_id] = value.flatten().numpy().copy()


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noise")
    (folder / "rain.ogg").write_bytes(
        encoded(np.random.default_rng(0).normal(0, 0.1, 3000), form="OGG")
    )
    return folder


@pytest.fixture
def made(recipe_of, noise):
    def make(case, *overrides, off=False, more="", notes=False):
        kind, on, idle = CASES[case]
        options = (idle if off else on).replace("{noise}", str(noise))
        tables = f'[[augmentation]]\nuse = "{NAMES.get(case, case)}"\n{options}\n{more}\n'
        if notes:
            tables += '[[extension]]\nuse = "test/notes"\n'
        return recipe_of(kind, *SHORT, *overrides, tables=tables)

    return make


@pytest.fixture(scope="module")
def plain(recipe_of, tmp_path_factory):
    """The runs without any augmentation."""
    return {
        kind: run(recipe_of(kind, *SHORT), output=tmp_path_factory.mktemp("plain") / kind)
        for kind in ("wav2vec2", "whisper")
    }


@pytest.fixture
def seen(tmp_path, made):
    def run_it(case, *overrides, name="run", **options):
        SEEN.clear()
        plugins = tiny_plugins({("extension", "test/notes"): f"{__name__}:Notes"})
        train(plan(made(case, *overrides, notes=True, **options), plugins), tmp_path / name)
        return dict(SEEN)

    return run_it


def planned(recipe):
    return plan(recipe, load_plugins())


@pytest.mark.parametrize("case", CASES)
def test_without_strength_it_is_not_there(made, plain, tmp_path, case):
    there = run(made(case, off=True), output=tmp_path / "run")
    assert there.fingerprint == plain[CASES[case][0]].fingerprint


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_is_bit_equal_and_another_one(made, plain, tmp_path, case):
    whole = train(planned(made(case)), tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(planned(made(case)), tmp_path / "cut", stop_after=3)
    np.random.seed(3)  # a fresh process has another state
    torch.manual_seed(3)
    resumed = train(planned(made(case)), tmp_path / "cut", resume=True)
    assert resumed.fingerprint == whole.fingerprint
    assert whole.fingerprint != plain[CASES[case][0]].fingerprint


def heard(values):
    """Leave out padding, which depends on the batch."""
    return np.trim_zeros(values, "b")


@pytest.mark.parametrize("case", ROWS)
def test_an_example_is_changed_alike_in_any_batch(seen, case):
    whole = seen(case, name="whole")
    cut = seen(case, "train.batch_size=4", "train.micro_batch_size=3", "seeds.order=5", name="cut")
    assert whole.keys() == cut.keys()
    assert all(np.array_equal(heard(whole[key]), heard(cut[key])) for key in whole)
    first, second = (
        {row: heard(value) for (epoch, row), value in whole.items() if epoch == number}
        for number in (0, 1)
    )
    assert sum(not np.array_equal(first[row], second[row]) for row in first) > 8


def test_it_is_off_from_an_epoch_on(seen):
    found = seen("pitch-shift", "train.epochs=3", more="until = 0.4", name="until")
    bare = seen("pitch-shift", "train.epochs=3", off=True, name="off")
    differ = [
        sum(
            not np.array_equal(heard(found[key]), heard(bare[key]))
            for key in bare
            if key[0] == epoch
        )
        for epoch in range(3)
    ]
    assert differ[0] > 8
    assert differ[1] > 8
    assert differ[2] == 0


def test_background_processes_change_alike(seen):
    one = seen("time-stretch", name="one")
    two = seen("time-stretch", "train.workers=1", name="two")
    assert all(np.array_equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("case", ["background-noise", "pitch-shift"])
def test_accumulation_changes_nothing(recipe_of, tmp_path, case):
    tables = f'[[augmentation]]\nuse = "{case}"\n{CASES[case][1]}\n'
    options = ["optimizer.use=sgd", "optimizer.lr=0.05", "train.steps=4", "checkpoint.best=last"]
    outcomes = [
        run(recipe_of("still", *options, *parts, tables=tables), output=tmp_path / str(len(parts)))
        for parts in ([], ["train.micro_batch_size=3"])
    ]
    one, two = (load_file(each.folder / "model" / "model.safetensors") for each in outcomes)
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)


def test_masks_of_the_model_leave_its_configuration_alone(made, tmp_path):
    outcome = run(made("masks of the model"), output=tmp_path / "run")
    config = json.loads((outcome.folder / "model" / "config.json").read_text())
    assert (config["apply_spec_augment"], config["mask_time_prob"]) == (False, 0.05)


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ('use = "background-noise"\npath = "nowhere"', "should be a folder of recordings"),
        ('use = "background-noise"\nsnr = [9.0, 1.0]', "the smaller one first"),
        ('use = "time-stretch"\nspeed = [0.01, 1.0]', "two numbers from 0.1 to 10"),
    ],
)
def test_what_does_not_fit_is_one_sentence(recipe_of, tmp_path, tables, says):
    with pytest.raises(RecipeError, match=says):
        run(recipe_of(tables=f"[[augmentation]]\n{tables}\n"), output=tmp_path / "run")


@pytest.mark.parametrize(
    "name", ["background-noise", "time-stretch", "pitch-shift", "spec-augment"]
)
def test_texts_are_refused(tmp_path, name):
    from sft_engine.testing.runs import TINY, run_recipe

    with pytest.raises(
        RecipeError, match="changes the column 'audio', which the training split has"
    ):
        run_recipe(tmp_path / "run", f'{TINY}\n[[augmentation]]\nuse = "{name}"\n')


def test_a_missing_library_is_named(monkeypatch, recipe_of):
    monkeypatch.setattr("sft_augmentations.libraries.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"needs audiomentations.*sft-augmentations\[audio\]"):
        planned(recipe_of(tables='[[augmentation]]\nuse = "pitch-shift"\n'))


def test_a_checkpoint_without_a_vector_for_masks_is_refused(recipe_of, models, tmp_path):
    from tones import checkpoint

    bare = checkpoint(tmp_path / "bare", mask_time_prob=0.0)
    tables = '[[augmentation]]\nuse = "spec-augment"\n'
    with pytest.raises(RecipeError, match="no vector for masked frames"):
        run(recipe_of("wav2vec2", f"backbone.name={bare}", tables=tables), output=tmp_path / "run")
