"""Freezing that depends on nothing but the phase: a head alone, or everything but the first layers."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge

from sft_engine import RecipeError, hookimpl
from sft_freezing.layers import listed

if TYPE_CHECKING:
    from sft_engine import LayerGroup, Run

HEAD = "head"
"""Stands for the last layer group, whatever its name."""


def frozen_parameters(
    groups: Sequence[LayerGroup],
    *,
    keep: Sequence[str] = (HEAD,),
    first: int = 0,
    patterns: Sequence[str] = (),
) -> set[str]:
    """Return the names of the parameters that are frozen.

    Without `first` and `patterns`, all are but those of `keep`; with them, what either of them names.

    Args:
        groups: The layer groups, input first.
        keep: Shell patterns of layer groups that train; `head` is the last one.
        first: Number of groups, from the input on.
        patterns: Shell patterns of layer groups or of full parameter names.

    Raises:
        RecipeError: a pattern matches nothing, or nothing is left to train.
    """
    everything = {name for group in groups for name in group.parameters}
    if first or patterns:
        frozen = {name for group in groups[:first] for name in group.parameters}
        for pattern in patterns:
            frozen |= _matching(pattern, groups, "patterns")
    else:
        kept = (_matching(pattern, groups, "keep", head=True) for pattern in keep)
        frozen = everything.difference(*kept)
    if frozen == everything:
        raise RecipeError(
            f"`freezing`: this freezes the whole model ({listed(groups)}); leave something to train, "
            'such as with `keep = "head"`'
        )
    return frozen


def _matching(
    pattern: str, groups: Sequence[LayerGroup], option: str, *, head: bool = False
) -> set[str]:
    if head and pattern == HEAD:
        return set(groups[-1].parameters)
    found: set[str] = set()
    for group in groups:
        whole = fnmatchcase(group.name, pattern)
        found |= {name for name in group.parameters if whole or fnmatchcase(name, pattern)}
    if not found:
        raise RecipeError(
            f'`freezing.{option}`: "{pattern}" matches neither a layer group ({listed(groups)}) nor a '
            f"parameter, such as `{groups[0].parameters[0]}`"
        )
    return found


class Frozen:
    """Keep a part of the model as it is: weights, and statistics of batch norm.

    Args:
        keep: What trains while all else is frozen: shell patterns of layer groups or parameters, one
            or a list; `head` is the last group. Without effect beside `first` or `patterns`.
        first: Freeze this many layer groups, from the input on.
        patterns: Freeze what matches one of these shell patterns: layer groups such as `block.*`,
            or full names of parameters.
        phases: Names of the phases in which it is so; empty for all of the run.
    """

    def __init__(
        self,
        keep: str | tuple[str, ...] = "head",
        first: Annotated[int, Ge(0)] = 0,
        patterns: tuple[str, ...] = (),
        phases: tuple[str, ...] = (),
    ) -> None:
        self.keep = (keep,) if isinstance(keep, str) else tuple(keep)
        self.first, self.patterns, self.phases = first, tuple(patterns), tuple(phases)
        self._frozen: set[str] = set()
        self._trainable: dict[str, Any] = {}

    @hookimpl
    def sft_setup(self, run: Run) -> None:
        """Find the parameters; those that something else has frozen before are left alone."""
        self._frozen = frozen_parameters(
            run.layer_groups, keep=self.keep, first=self.first, patterns=self.patterns
        )
        self._trainable = {n: p for n, p in run.model.named_parameters() if p.requires_grad}

    @hookimpl
    def sft_phase_start(self, run: Run) -> None:
        """Freeze in the phases that are named, thaw in all others."""
        at_work = not self.phases or run.phase.name in self.phases
        for name, parameter in self._trainable.items():
            parameter.requires_grad_(not (at_work and name in self._frozen))
