"""design.md 6.2: how a window is cut in micro-batches changes nothing."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from sft_engine import loop
from sft_engine.gradients import Gradients
from sft_engine.testing.runs import run_recipe

LONG = ["data.examples=219", "train.steps=30", "train.clip_norm=1.0", "checkpoint.best=last"]
"""203 training examples, 13 windows an epoch, the last one of 11: ragged windows come up twice."""

OPTIMIZERS = {
    "sgd": ["optimizer.use=sgd", "optimizer.lr=0.1", "optimizer.momentum=0.9"],
    "adamw": ["optimizer.use=adamw", "optimizer.lr=0.01"],
}


def train(folder, *overrides):
    outcome = run_recipe(folder, overrides=[*LONG, *overrides])
    weights = load_file(outcome.folder / "model" / "model.safetensors")
    lines = (outcome.folder / "metrics.jsonl").read_text().splitlines()
    losses = [r["loss"] for r in map(json.loads, lines) if r["kind"] == "train"]
    return weights, losses


def difference(one, other):
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.mark.parametrize("extra", ["", "task.class_weights=balanced", "task.label_smoothing=0.2"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_float64_is_the_same_to_the_last_digits(tmp_path, optimizer, extra):
    overrides = ["backbone.dtype=float64", *OPTIMIZERS[optimizer], *filter(None, [extra])]
    whole, whole_losses = train(tmp_path / "16", *overrides)
    parts, parts_losses = train(tmp_path / "4", *overrides, "train.micro_batch_size=4")
    assert len(whole_losses) == 30
    assert difference(whole, parts) < 1e-11
    assert parts_losses == pytest.approx(whole_losses, rel=1e-11)


def test_float32_sgd_is_the_same_to_rounding(tmp_path):
    whole, _ = train(tmp_path / "16", *OPTIMIZERS["sgd"])
    parts, _ = train(tmp_path / "4", *OPTIMIZERS["sgd"], "train.micro_batch_size=4")
    assert difference(whole, parts) < 1e-6


def test_a_mean_of_means_fails_this_test(tmp_path, monkeypatch):
    """The usual mistake, planted: every micro-batch's mean counts the same."""
    share = Gradients._share

    def mean_of_means(self, per, batch):
        return 1.0 / batch.units[per] / len(self._window)

    overrides = ["backbone.dtype=float64", *OPTIMIZERS["sgd"]]
    whole, _ = train(tmp_path / "16", *overrides)
    monkeypatch.setattr(Gradients, "_share", mean_of_means)
    # Micro-batches of 6, 6 and 4: the four examples count more than the six.
    parts, _ = train(tmp_path / "6", *overrides, "train.micro_batch_size=6")
    assert difference(whole, parts) > 1e-4
    monkeypatch.setattr(Gradients, "_share", share)
    parts, _ = train(tmp_path / "right", *overrides, "train.micro_batch_size=6")
    assert difference(whole, parts) < 1e-11


def test_fp16_takes_every_step_however_the_window_is_cut(tmp_path):
    """Unnormalised sums overflow fp16: the division comes before `backward`."""
    overrides = ["train.precision=fp16", "optimizer.use=sgd", "optimizer.lr=0.01"]
    whole, whole_losses = train(tmp_path / "16", *overrides)
    parts, parts_losses = train(tmp_path / "4", *overrides, "train.micro_batch_size=4")
    assert difference(whole, parts) < 2e-3  # fp16 has eleven bits
    assert parts_losses == pytest.approx(whole_losses, rel=2e-2)
    assert all(torch.isfinite(w).all() for w in whole.values())


def test_clipping_has_the_bits_of_torch(tmp_path):
    """Our clipping leaves out multiplications by one, and is otherwise torch's own."""
    norms = []

    def watched(parameters, limit, **options):
        copies = [p.grad.clone() for p in parameters]
        own = torch.nn.utils.clip_grad_norm_(shadow(copies), limit)
        norm = clip(parameters, limit, **options)
        assert torch.equal(own, norm)
        for parameter, copy in zip(parameters, shadows, strict=True):
            assert torch.equal(parameter.grad, copy.grad)
        norms.append(norm.item())
        return norm

    shadows: list[torch.nn.Parameter] = []

    def shadow(grads):
        shadows[:] = [torch.nn.Parameter(torch.zeros_like(g)) for g in grads]
        for parameter, grad in zip(shadows, grads, strict=True):
            parameter.grad = grad
        return shadows

    clip = loop.clip_gradients
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "clip_gradients", watched)
        train(tmp_path, *OPTIMIZERS["adamw"], "train.clip_norm=0.3")
    assert any(n > 0.3 for n in norms)
    assert any(n < 0.3 for n in norms)
