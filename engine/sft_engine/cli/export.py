"""`sft-engine export`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from sft_engine.cli.parameters import json_option, run_argument, set_option, verb
from sft_engine.cli.shown import new_console, say

if TYPE_CHECKING:
    from sft_engine.exporting import Exported


@verb
@run_argument
@click.option(
    "--format",
    "form",
    required=True,
    metavar="hf|timm|torchvision|onnx|torch-export",
    help="hf, timm and torchvision are what the library of that name reads by itself, for runs with a "
    "backbone of it; onnx needs the extra `onnx`.",
)
@click.option(
    "--output",
    "-o",
    type=click.Path(),
    help="A new or empty folder.  [default: RUN/export/FORMAT]",
)
@click.option(
    "--opset", type=int, help="Version of ONNX's operators; by default what torch recommends."
)
@click.option(
    "--dtype",
    default="fp32",
    show_default=True,
    metavar="fp32|bf16|fp16",
    help="Of the exported weights, whatever the run trained in.",
)
@set_option
@json_option
def command(
    run: str,
    form: str,
    output: str | None,
    opset: int | None,
    dtype: str,
    overrides: tuple[str, ...],
    *,
    as_json: bool,
) -> None:
    """Export a run for others to load: ONNX, torch.export, or its own library.

    RUN is the run folder. The exported model is read back and compared with the run on examples of its
    data, at two sizes of batch and, for texts, two lengths. Only if the outputs are equal up to rounding
    is anything left in the output folder; the largest difference is printed.
    """
    from sft_engine import verbs

    done = verbs.export(run, form, output=output, opset=opset, dtype=dtype, overrides=overrides)
    if as_json:
        new_console(as_json=True).result(
            {"run": run, **dataclasses.asdict(done), "folder": str(done.folder)}
        )
        return
    _show(done)


def _show(done: Exported) -> None:
    for name, facts in done.inputs.items():
        sizes = ", ".join(map(str, facts["dimensions"]))
        say(f"input     {name}: {facts['dtype']} [{sizes}]")
    shapes = ", ".join("x".join(map(str, shape)) for shape in done.compared)
    say(f"compared  {len(done.compared)} batches of {done.examples}: {shapes}")
    say(
        f"largest difference from the run's outputs: {done.difference:.2g} (allowed: {done.allowed:.2g})"
    )
    for note in done.notes:
        say(f"note: {note}")
    say(f"done: {done.folder}: {', '.join(done.files)}")
