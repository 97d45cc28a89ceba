"""Which formats a run can be exported in, and what each one needs."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from sft_engine.errors import RecipeError
from sft_engine.sentences import choices, suggest

if TYPE_CHECKING:
    from sft_engine.catalog import Plan

GRAPHS = ("onnx", "torch-export")
"""Formats of the computation itself, which every backbone has."""

DTYPES = ("fp32", "bf16", "fp16")
OLDEST_OPSET = 18
"""The first that torch writes."""

_NEEDED = {"onnx": ("onnx", "onnxscript", "onnxruntime")}


def formats_of(plan: Plan) -> tuple[str, ...]:
    """Return the formats that fit a run: those that its backbone declares, and the graphs."""
    planned = plan.one("backbone")
    own = getattr(planned.load(), "export_formats", ()) if planned else ()
    return (*own, *GRAPHS)


def check_request(plan: Plan, form: str, opset: int | None, dtype: str) -> None:
    """Refuse what cannot be done, before anything is loaded.

    Raises:
        RecipeError: the format is not one of this run's, a library is missing, or an option is wrong.
    """
    known = formats_of(plan)
    planned = plan.one("backbone")
    if form not in known:
        name = planned.name if planned else ""
        hint = suggest(form, known) or choices(known)
        raise RecipeError(
            f'--format: found "{form}", which backbone "{name}" does not have; {hint}'
        )
    if dtype not in DTYPES:
        raise RecipeError(f'--dtype: found "{dtype}", {choices(DTYPES)}')
    if opset is not None and form != "onnx":
        raise RecipeError(f'--opset: belongs to --format onnx, found "{form}"; leave it out')
    if opset is not None and opset < OLDEST_OPSET:
        raise RecipeError(
            f"--opset: found {opset}, allowed: {OLDEST_OPSET} and newer; leave it out for the one that "
            "torch recommends"
        )
    missing = [name for name in _NEEDED.get(form, ()) if find_spec(name) is None]
    if missing:
        raise RecipeError(
            f"--format {form} needs {' and '.join(missing)}: `pip install 'sft-engine[{form}]'` "
            "brings what is missing"
        )
