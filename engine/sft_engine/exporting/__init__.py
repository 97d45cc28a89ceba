"""A finished run as a model that others load: by the backbone's own library, ONNX or `torch.export`.

Nothing is called done before the exported files, read back, gave the run's own outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sft_engine.assemble import reopen
from sft_engine.errors import DataError
from sft_engine.exporting.comparison import Answer, Compared, compare, outputs_of
from sft_engine.exporting.folder import choose_output, finish, new_folder
from sft_engine.exporting.formats import GRAPHS, check_request
from sft_engine.exporting.graphs import write_graph
from sft_engine.exporting.libraries import write_library
from sft_engine.exporting.samples import Samples, real_samples, synthetic_samples

if TYPE_CHECKING:
    from torch import nn

    from sft_engine.catalog import Plan
    from sft_engine.flow import Run

__all__ = ["Exported", "export_run"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_TOLERANCES = {"fp32": 1e-4, "bf16": 1e-1, "fp16": 2e-2}
"""Largest difference allowed, as a share of the largest output, or of 1 if that is less.

Other kernels round differently: a few 1e-6 of the largest output through many layers in float32.
"""


@dataclass(frozen=True)
class Exported:
    """A model that was exported and gave the run's outputs.

    Args:
        folder: Where it is.
        format: Such as `onnx`.
        files: What is in the folder.
        inputs: Element type and dimensions of each input; a dimension is a number, or a name if any goes.
        difference: Largest difference from the run's outputs.
        allowed: How large it might have been.
        compared: Shapes of the first input in the batches that were compared.
        examples: What these batches were made of, such as `the test split`.
        notes: What the user should know of the comparison.
    """

    folder: Path
    format: str
    files: tuple[str, ...]
    inputs: dict[str, dict[str, Any]]
    difference: float
    allowed: float
    compared: tuple[tuple[int, ...], ...]
    examples: str
    notes: tuple[str, ...]


def export_run(
    plan: Plan,
    folder: Path,
    label_names: tuple[str, ...],
    *,
    form: str,
    output: Path | None = None,
    opset: int | None = None,
    dtype: str = "fp32",
) -> Exported:
    """Export the final weights of a run, and compare the result with the run.

    Args:
        plan: The recipe of the run folder, for one process on the CPU.
        folder: The run folder.
        label_names: What training called the outputs.
        form: `onnx`, `torch-export`, or a format that the backbone declares.
        output: New or empty folder; None for `RUN/export/FORMAT`.
        opset: Version of ONNX's operators; None for what torch recommends.
        dtype: Of the exported weights: `fp32`, `bf16` or `fp16`.

    Raises:
        RecipeError: the run has no such format, or a library is missing.
        ExportError: the model cannot be exported, or gives other outputs when it is.
        OutputError: the folder holds something, or cannot be written.
    """
    check_request(plan, form, opset, dtype)
    target = choose_output(folder / "export" / form if output is None else output)
    run, samples, notes = _open(plan, folder, label_names)
    model = _settled(run.model)
    expected = [outputs_of(run, model, batch) for batch in samples.batches]
    model.to(_DTYPES[dtype])
    with new_folder(target) as temporary:
        answer = _write(run, samples, form, temporary, opset, notes)
        result = compare(form, answer, samples.batches, expected, _TOLERANCES[dtype])
        facts = _facts(form, dtype, samples, result)
        files = finish(temporary, run, folder / "model", facts, graph=form in GRAPHS)
    return Exported(
        folder=target,
        format=form,
        files=files,
        inputs=samples.described(),
        difference=result.difference,
        allowed=result.allowed,
        compared=samples.shapes(),
        examples=samples.source,
        notes=tuple(notes),
    )


def _facts(form: str, dtype: str, samples: Samples, result: Compared) -> dict[str, Any]:
    """Return what `export.json` says of the exported model itself."""
    return {
        "format": form,
        "dtype": dtype,
        "inputs": samples.described(),
        "outputs": {"logits": {"dtype": "float32", "dimensions": ["batch", *result.shape]}},
        "difference": result.difference,
        "allowed": result.allowed,
        "compared": samples.shapes(),
        "examples": samples.source,
    }


def _open(plan: Plan, folder: Path, label_names: tuple[str, ...]) -> tuple[Run, Samples, list[str]]:
    """Open a run with examples of its data, or with synthetic ones if that is gone."""
    try:
        run = reopen(plan, folder, label_names).run
    except DataError as error:
        run = reopen(plan, folder, label_names, rows={}).run
        samples = synthetic_samples(run)
        if samples is None:
            raise
        return (
            run,
            samples,
            [f"compared on synthetic inputs, because the data cannot be read: {error}"],
        )
    return run, real_samples(run), []


def _settled(model: nn.Module) -> nn.Module:
    """Put a model in the state that is exported: on the CPU, dropout off, nothing to train.

    Half-precision weights become float32, so that the outputs to compare with are exact, and convolutions
    get torch's usual memory format, whatever was quickest in training.
    """
    half = any(p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters())
    model.to(device="cpu", dtype=torch.float32 if half else None)
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return model.eval().requires_grad_(requires_grad=False)


def _write(
    run: Run, samples: Samples, form: str, folder: Path, opset: int | None, notes: list[str]
) -> Answer:
    """Write the model and read it back; return what it answers."""
    if form in GRAPHS:
        return write_graph(run, samples, form, folder, opset)
    answer, note = write_library(run, form, folder)
    notes += note
    return answer
