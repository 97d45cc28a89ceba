"""What became of a run's weights: how far they moved, and how the model sees a few test examples.

Looked at in the process that trained, where the model is in memory; written beside the run's own files as
`aftermath.safetensors` (features) and `aftermath.json` (drift).
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sft_engine.features import last_input
from sft_engine.feed import evaluation_batches
from sft_engine.flow import View
from sft_engine.records import write_json
from sft_engine.significance.drift import relative_drift

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from sft_engine.flow import Run

FEATURES = "aftermath.safetensors"
DRIFT = "aftermath.json"
MOST = 200
"""Test examples whose features are kept."""

_BATCH = 32


@dataclass
class Aftermath:
    """Compares a run's weights with those that it began with.

    Args:
        folder: Of the run.
    """

    folder: Path
    _run: Run | None = field(default=None, init=False)
    _start: dict[str, Tensor] = field(default_factory=dict, init=False)

    def start(self, run: Run) -> None:
        """Note the weights; called before any are restored from a checkpoint."""
        self._run = run
        self._start = {name: p.detach().cpu().clone() for name, p in run.model.named_parameters()}

    def look(self) -> None:
        """Write drift and features; a model that allows no look is left alone."""
        run, start = self._run, self._start
        self._run, self._start = None, {}
        if run is None or not run.is_main:
            return
        drift = drift_of(run, start)
        write_json(self.folder / DRIFT, drift)
        if drift["trunk"] == 0:
            return  # the same features in every run, at the cost of a pass through the frozen layers
        split = next((name for name in ("test", "validation") if name in run.splits), "")
        if not split:
            return
        with contextlib.suppress(RuntimeError, LookupError, TypeError, ValueError):
            _write(self.folder / FEATURES, features_of(run, split))


def drift_of(run: Run, start: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return how far weights moved, as a share of their size: by layer group, and without the last one.

    The last group is a new head in most recipes, and its start is noise.
    """
    ends = {name: p.detach().cpu() for name, p in run.model.named_parameters()}
    groups: dict[str, float | None] = {}
    for group in run.layer_groups:
        names = [name for name in group.parameters if name in start and name in ends]
        groups[group.name] = _drift(start, ends, names)
    trunk = [n for g in run.layer_groups[:-1] for n in g.parameters if n in start and n in ends]
    return {"trunk": _drift(start, ends, trunk), "groups": groups}


def _drift(
    start: Mapping[str, Tensor], ends: Mapping[str, Tensor], names: list[str]
) -> float | None:
    same = [name for name in names if start[name].shape == ends[name].shape]
    if not same:
        return None
    if all(torch.equal(start[name], ends[name]) for name in same):
        return 0.0
    value, _ = relative_drift(
        {name: start[name].float().numpy() for name in same},
        {name: ends[name].float().numpy() for name in same},
    )
    return value if math.isfinite(value) else None


def features_of(run: Run, split: str) -> NDArray[np.float32]:
    """Return what enters the last layer of the model, for the first test examples (examples, features).

    Raises:
        LookupError: no layer has weights, or the last one does not see examples one by one, of one size.
    """
    data = run.splits[split]
    ids = list(range(min(MOST, len(data))))
    view = View(name="aftermath", ids=ids)
    rows: dict[int, Tensor] = {}
    run.model.eval()
    for start in range(0, len(ids), _BATCH):
        for batch in evaluation_batches(data, run.task, run.backbone, view, _BATCH, [start]):
            batch.to(run.device)
            with torch.no_grad(), last_input(run.model) as seen:
                run.backbone.forward(run.model, batch.inputs)
            found = seen[-1].detach().float().cpu().flatten(1)
            if len(found) != len(batch.ids):
                raise LookupError("the last layer does not see examples one by one")
            rows |= dict(zip(batch.ids, found, strict=True))
    if len({len(row) for row in rows.values()}) > 1:
        raise LookupError("the last layer sees more of longer examples")
    return np.stack([rows[i].numpy() for i in ids])


def _write(path: Path, features: NDArray[np.float32]) -> None:
    from safetensors.numpy import save_file

    temporary = path.with_name(f".tmp-{path.name}")
    save_file({"features": features}, temporary)
    temporary.replace(path)


def aftermath_of(folder: Path) -> dict[str, Any]:
    """Return what is known of a run's weights and passes; empty if nothing is."""
    path = folder / DRIFT
    if not path.exists():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def read_features(folder: Path) -> NDArray[np.float32] | None:
    """Return the features of a run; None if there are none."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return np.asarray(load_file(folder / FEATURES)["features"])
    except (OSError, KeyError, SafetensorError):
        return None
