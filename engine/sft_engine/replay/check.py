"""Checks a cut before it is trusted: bit for bit, gradients included, and example by example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from sft_engine.replay.stubs import capture, installed, nothing
from sft_engine.replay.trace import Probe, Refused, Trace, gradients_of, same_draws

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from sft_engine.replay.cut import Cut, Name

TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 3e-2}
"""Largest difference, as a share of the largest value, between an example alone and among others."""


def verify(
    model: nn.Module,
    cut: Cut,
    probes: Sequence[tuple[Probe, Trace]],
    alone: tuple[Probe, int] | None = None,
) -> None:
    """Compare replayed passes with full ones.

    The caller sees to it that nothing is left of the attempts (`trace.pure`).

    Args:
        model: As it trains.
        cut: Found for it.
        probes: Of two sizes, with their traces.
        alone: One example of the last probe by itself, and its place there.

    Raises:
        Refused: outputs or gradients differ, or what is kept of an example depends on others, on its
            padding, or on what trains.
    """
    together: list[Tensor] = []
    for probe, full in probes:
        together = kept_rows(cut, probe)
        _require_same_pass(model, cut, probe, together, (full.outputs, full.gradients))
    among = probes[-1][0]
    one, place = (among, None) if alone is None else alone
    rows = together if alone is None else kept_rows(cut, one)
    with _moved(model):
        moved = kept_rows(cut, one)
    if not all(map(torch.equal, rows, moved)):
        raise Refused("what is kept of an example depends on weights that train")
    if place is not None:
        if among.exact is not None:
            # In half precision an example among longer ones is rounded otherwise: by more than it should depend on.
            together, rows = (kept_rows(cut, each.exactly) for each in (among, one))
        _require_same_alone(cut, among, together, rows, place)


def verify_again(model: nn.Module, cut: Cut, probe: Probe) -> None:
    """Compare one replayed pass with a full one, of a cut that was verified on a model like this one.

    Raises:
        Refused: outputs or gradients differ.
    """
    with same_draws():
        outputs = probe.run()
        full = [each.detach() for each in outputs], gradients_of(model, outputs)
    _require_same_pass(model, cut, probe, kept_rows(cut, probe), full)


def kept_rows(cut: Cut, probe: Probe) -> list[Tensor]:
    """Run the frozen part alone and return what is kept of the examples, one tensor a live leaf.

    Raises:
        Refused: a unit is not called, or cannot be told apart by example.
    """
    try:
        with same_draws():
            found = capture(cut.modules, cut.wanted, probe.run)
    except LookupError as error:
        raise Refused(str(error)) from error
    leaves = zip(cut.kept, cut.leaves_of(found), strict=True)
    try:
        return [leaf.rows(value, probe.valid).clone() for leaf, value in leaves]
    except KeyError as error:
        raise Refused(
            f"it is not known which positions of {error.args[0][0]!r} are padding: the inputs have no "
            "`attention_mask`, and the examples no `lengths`"
        ) from error


def values_of(
    cut: Cut,
    rows: Sequence[Tensor],
    inputs: Mapping[str, Tensor],
    valid: Mapping[tuple[str, int], Tensor],
) -> dict[Name, Tensor]:
    """Return the activations of the live leaves from their rows."""
    return {
        leaf.name: leaf.value(row, inputs, valid) for leaf, row in zip(cut.kept, rows, strict=True)
    }


def replayed(
    model: nn.Module, cut: Cut, probe: Probe, rows: Sequence[Tensor]
) -> tuple[list[Tensor], dict[str, Tensor | None]]:
    """Run a probe from kept rows; return its outputs and the gradients of what trains."""
    inputs = dict(probe.inputs)
    inputs |= {name: nothing(inputs[name].shape, inputs[name]) for name in cut.stand_ins}
    # What trains may write in place.
    own = [row.clone() for row in rows]
    values = values_of(cut, own, probe.inputs, probe.valid)
    with same_draws(), installed(cut.stubs(probe.inputs, values)):
        outputs = probe.run(inputs)
        gradients = gradients_of(model, outputs)
    return [output.detach() for output in outputs], gradients


def require_same(
    what: str, found: Sequence[Tensor], expected: Sequence[Tensor], *, exact: bool = True
) -> None:
    """Raise Refused unless the tensors are equal: bit for bit on a CPU, else up to rounding."""
    for one, other in zip(found, expected, strict=True):
        if one.shape != other.shape or not (
            torch.equal(one, other) if exact else distance(one, other) <= tolerance(other.dtype)
        ):
            by = f" by {distance(one, other):.1e}" if one.shape == other.shape else ""
            raise Refused(f"{what} differs from that of the full pass{by}")


def _require_same_pass(
    model: nn.Module,
    cut: Cut,
    probe: Probe,
    rows: Sequence[Tensor],
    full: tuple[Sequence[Tensor], Mapping[str, Tensor | None]],
) -> None:
    """Compare outputs and gradients of a replayed pass with those of a full one."""
    outputs, gradients = replayed(model, cut, probe, rows)
    exact = probe_device(probe).type == "cpu"
    require_same("a result", outputs, full[0], exact=exact)
    _require_same_gradients(gradients, full[1], exact=exact)


def _require_same_gradients(
    found: Mapping[str, Tensor | None], full: Mapping[str, Tensor | None], *, exact: bool
) -> None:
    for name, gradient in full.items():
        other = found[name]
        if gradient is None or other is None:
            if gradient is not other:
                raise Refused(f"the gradient of `{name}` is there in one of two passes only")
        else:
            require_same(f"the gradient of `{name}`", [other], [gradient], exact=exact)


def _require_same_alone(
    cut: Cut, among: Probe, together: list[Tensor], alone: list[Tensor], place: int
) -> None:
    """Compare what is kept of an example by itself with what is kept of it among longer ones."""
    for leaf, by_itself, all_rows in zip(cut.kept, alone, together, strict=True):
        own = [place]
        if leaf.place is not None:
            lengths = among.valid[leaf.place].sum(1).tolist()
            start = sum(lengths[:place])
            own = list(range(start, start + lengths[place]))
        expected = all_rows[own]
        apart = distance(by_itself, expected) if by_itself.shape == expected.shape else float("inf")
        if not apart <= tolerance(by_itself.dtype):
            raise Refused(
                f"what `{leaf.name[0][0]}` gives for an example depends on its padding or on the other "
                f"examples of its batch (by {apart:.1e})"
            )


def distance(one: Tensor, other: Tensor) -> float:
    """Return the largest difference as a share of the largest value; NaN if there is one."""
    if not one.numel():
        return 0.0
    scale = other.double().abs().max().clamp(min=1e-30)
    return float((one.double() - other.double()).abs().max() / scale)


def tolerance(dtype: torch.dtype) -> float:
    """Return how far rounding may move a result of this type; nothing at all for whole numbers."""
    return TOLERANCES.get(dtype, 0.0)


def probe_device(probe: Probe) -> torch.device:
    """Return the device of a probe's inputs."""
    return next(iter(probe.inputs.values())).device


@contextmanager
def _moved(model: nn.Module) -> Iterator[None]:
    """Move all weights that train, and put them back."""
    own = [(p, p.detach().clone()) for p in model.parameters() if p.requires_grad]
    try:
        with torch.no_grad(), same_draws():
            for parameter, _ in own:
                parameter.add_(torch.randn_like(parameter))
        yield
    finally:
        with torch.no_grad():
            for parameter, value in own:
                parameter.copy_(value)
