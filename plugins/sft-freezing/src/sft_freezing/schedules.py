"""Freezing schedules by position: gradual unfreezing, chain-thaw, progressive freezing, surgical."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Le

from sft_engine import RecipeError
from sft_freezing import stages
from sft_freezing.layers import listed, matching_groups
from sft_freezing.scheduled import Scheduled
from sft_freezing.stages import Stage

if TYPE_CHECKING:
    from sft_engine import LayerGroup
    from sft_freezing.spans import Span

THIRDS = ("first", "middle", "last")


class GradualUnfreezing(Scheduled):
    """Train the head first, and thaw one layer group after the other, from the head down.

    Howard, Ruder 2018 (ULMFiT): one more layer group after each epoch.

    Args:
        every: Epochs between two thaws; a fraction is allowed. Without effect beside `until`.
        until: Share of the run after which all layer groups train, thawed at equal distances; 0 goes
            by `every`.
        first: Layer groups, from the head on, that train from the start.
        at_once: Layer groups that thaw together.
        rewarm: Steps over which the learning rate of a newly thawed group rises to its full value.
        phases: Names of the phases over which this is spread, in the others all train; empty for all of
            the run.
    """

    reaches_all = True

    def __init__(
        self,
        every: Annotated[float, Ge(0)] = 1.0,
        until: Annotated[float, Ge(0), Le(1)] = 0.0,
        first: Annotated[int, Ge(1)] = 1,
        at_once: Annotated[int, Ge(1)] = 1,
        rewarm: Annotated[int, Ge(0)] = 0,
        phases: tuple[str, ...] = (),
    ) -> None:
        super().__init__(phases, rewarm)
        self.every, self.until, self.first, self.at_once = every, until, first, at_once

    def timetable(self, groups: Sequence[LayerGroup], span: Span) -> list[Stage]:
        """Thaw at the ends of epochs, or at equal shares of the run."""
        thaws = stages.thaws(len(groups), self.first, self.at_once)

        def thaw(number: int) -> int:
            if self.until:
                return span.after_share(self.until * number / thaws)
            return span.after_epochs(self.every * number)

        return stages.gradual(len(groups), self.first, self.at_once, thaw)


class ChainThaw(Scheduled):
    """Train the head alone, then each other layer group alone from the input on, then all together.

    Felbo et al. 2017 (DeepMoji). There each stage lasts until validation is no better and keeps its
    best weights; here its length is given, and the weights go on as they are.

    Args:
        every: Epochs of each stage; the last one, in which all train, has the rest of the run. 0 shares
            the run equally.
        rewarm: Steps over which the learning rate of a newly thawed group rises to its full value.
        phases: Names of the phases over which this is spread, in the others all train; empty for all of
            the run.
    """

    reaches_all = True

    def __init__(
        self,
        every: Annotated[float, Ge(0)] = 0.0,
        rewarm: Annotated[int, Ge(0)] = 0,
        phases: tuple[str, ...] = (),
    ) -> None:
        super().__init__(phases, rewarm)
        self.every = every

    def timetable(self, groups: Sequence[LayerGroup], span: Span) -> list[Stage]:
        """Begin stages at the ends of epochs, or at equal shares of the run."""

        def begin(number: int) -> int:
            if self.every:
                return span.after_epochs(self.every * number)
            return span.after_share(number / (len(groups) + 1))

        return stages.chain(len(groups), begin)


class ProgressiveFreezing(Scheduled):
    """Freeze one layer group after the other, from the input on, as the run goes on.

    Brock et al. 2017 (FreezeOut): what is near the input needs least training, and every frozen group
    saves its backward pass.

    Args:
        first: Share of the run after which the layer group at the input is frozen; the others follow
            at equal distances up to the end.
        cubic: Cube the shares, so that early groups freeze much earlier.
        anneal: Lower the learning rate of each group along half a cosine to 0 where it freezes, times
            what the schedule says.
        keep: Layer groups, from the head on, that are never frozen.
        phases: Names of the phases over which this is spread, in the others all train; empty for all of
            the run.
    """

    def __init__(
        self,
        first: Annotated[float, Ge(0), Le(1)] = 0.5,
        cubic: bool = False,  # noqa: FBT001, FBT002  an option of a recipe
        anneal: bool = False,  # noqa: FBT001, FBT002
        keep: Annotated[int, Ge(1)] = 1,
        phases: tuple[str, ...] = (),
    ) -> None:
        super().__init__(phases)
        self.first, self.cubic, self.keep = first, cubic, keep
        self.changes_rates = anneal
        self._ends: list[int] = []

    def timetable(self, groups: Sequence[LayerGroup], span: Span) -> list[Stage]:
        """Freeze from the input on."""
        self._ends = [
            span.after_share(
                stages.freezing_share(group, len(groups), self.first, cubic=self.cubic)
            )
            for group in range(len(groups) - self.keep)
        ]
        return stages.progressive(len(groups), self._ends)

    def rate(self, group: int, position: int) -> float:
        """Anneal to the step at which the group freezes; what is kept has the rate of the schedule."""
        kept = group >= len(self._ends)
        return 1.0 if kept else stages.annealed(position, self._ends[group])


class Surgical(Scheduled):
    """Train a few chosen layer groups, and the head.

    Lee et al. 2022: the first ones where inputs have changed, those in the middle where features have,
    the last ones where the output has.

    Args:
        train: `first`, `middle` or `last` for that third of the layer groups below the head, or shell
            patterns of layer groups, one or a list.
        head: Train the head too, as a new one must.
        phases: Names of the phases in which it is so; empty for all of the run.
    """

    def __init__(
        self,
        train: str | tuple[str, ...] = "first",
        head: bool = True,  # noqa: FBT001, FBT002  an option of a recipe
        phases: tuple[str, ...] = (),
    ) -> None:
        super().__init__(phases)
        self.train = (train,) if isinstance(train, str) else tuple(train)
        self.head = head

    def timetable(self, groups: Sequence[LayerGroup], span: Span) -> list[Stage]:  # noqa: ARG002
        """One stage: it is so all the time."""
        chosen = {len(groups) - 1} if self.head else set()
        for pattern in self.train:
            chosen |= self._chosen(pattern, groups)
        return [Stage(0, frozenset(chosen))]

    def _chosen(self, pattern: str, groups: Sequence[LayerGroup]) -> frozenset[int] | set[int]:
        if pattern not in THIRDS:
            return matching_groups(pattern, groups, "freezing.train")
        found = stages.third(pattern, len(groups))
        if not found:
            raise RecipeError(
                f"`freezing.train`: there is no {pattern} third of {listed(groups[:-1]) or 'nothing'}; "
                "name layer groups instead"
            )
        return found
