"""Formats of the backbone's own library: what `Backbone.save` writes, read back and compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sft_engine.errors import ExportError, SftError
from sft_engine.exporting.comparison import Answer, outputs_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sft_engine.flow import Run


def write_library(run: Run, form: str, folder: Path) -> tuple[Answer, list[str]]:
    """Write a model in the layout of its library; return the one read back from there, and notes.

    Raises:
        ExportError: what was written cannot be read.
    """
    run.backbone.save(run.model, folder, run.task)
    backbone: Any = run.backbone
    notes: list[str] = []
    try:
        alone = getattr(backbone, "load_exported", None)
        model = alone(folder, form) if alone is not None else None
        if model is None:
            model = _through_backbone(run, folder)
            notes = ["read back by the backbone of sft-engine, not by its library alone"]
    except (SftError, OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        said = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise ExportError(f"{form}: what was written cannot be read back: {said}") from error
    model.eval()

    def answer(batch: Mapping[str, Tensor]) -> Tensor:
        return outputs_of(run, model, like_weights(model, batch))

    return answer, notes


def _through_backbone(run: Run, folder: Path) -> nn.Module:
    """Read a model with a new backbone, as a run that starts from this folder would."""
    planned = next(a.planned for a in run.active if a.planned.kind == "backbone")
    backbone = planned.build()
    backbone.open(lambda _: str(folder))
    model: nn.Module = backbone.build(run.task)
    return model


def like_weights(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return inputs with their real numbers in the precision of a model's weights."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return {
        n: value.to(dtype) if value.is_floating_point() else value for n, value in batch.items()
    }
