"""Averages of the weights along the way: EMA, SWA, LAWA."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from sft_engine import View, hookimpl
from sft_regularizers.selection import beside, snapshot
from sft_regularizers.statistics import recompute_statistics

if TYPE_CHECKING:
    from sft_engine import Run

Tensors = dict[str, Tensor]


# --- The methods themselves, for any loop ---------------------------------------------------------


@torch.no_grad()
def move_average_(average: Mapping[str, Tensor], now: Mapping[str, Tensor], decay: float) -> None:
    """Move an exponential average: `average <- decay * average + (1 - decay) * now`, in place.

    What is not floating point, such as a counter, is copied.
    """
    for name, mean in average.items():
        if mean.is_floating_point():
            mean.lerp_(now[name].to(mean.dtype), 1 - decay)
        else:
            mean.copy_(now[name])


@torch.no_grad()
def include_(average: Mapping[str, Tensor], now: Mapping[str, Tensor], count: int) -> None:
    """Include one more in an arithmetic mean of `count` members, in place."""
    move_average_(average, now, count / (count + 1))


@torch.no_grad()
def mean_of(members: Sequence[Mapping[str, Tensor]]) -> Tensors:
    """Return the arithmetic mean of several sets of weights; what is no float, of the last."""
    total = snapshot(members[0])
    for count, member in enumerate(members[1:], start=1):
        include_(total, member, count)
    return total


def warm_decay(decay: float, updates: int) -> float:
    """Return the decay of an update, lower for the first ones: `min(decay, (1 + n) / (10 + n))`."""
    return min(decay, (1 + updates) / (10 + updates))


# --- The components -------------------------------------------------------------------------------


class Average:
    """What the components below share: an average that is evaluated as a view and may be the result."""

    view = ""

    def __init__(self, *, final: bool, evaluate: bool) -> None:
        self.final, self.evaluate = final, evaluate
        self._own: Tensors = {}
        self._loaded: dict[str, Any] = {}

    def average(self) -> Tensors | None:
        """Return the average, if there is one yet."""
        raise NotImplementedError

    def adjust(self, run: Run, model: nn.Module) -> None:
        """Make a model with averaged weights fit to use."""

    @hookimpl(trylast=True)
    def sft_setup(self, run: Run) -> None:
        """Find the weights and the statistics of batch norm."""
        self._own = tensors_of(run.model)

    @hookimpl
    def sft_eval_views(self, run: Run) -> Iterable[View]:
        """Offer the averaged weights as a view."""
        average = self.average()
        if not self.evaluate or average is None:
            return []
        model = copy.deepcopy(run.model)
        fill_(tensors_of(model), average)
        self.adjust(run, model)
        return [View(self.view, model=model)]

    @hookimpl
    def sft_train_end(self, run: Run) -> None:
        """Put the averaged weights in place of the last ones."""
        average = self.average()
        if self.final and average is not None:
            fill_(self._own, average)
            self.adjust(run, run.model)


class EMA(Average):
    """Keep an exponential moving average of the weights.

    Args:
        decay: Share of the average that a step leaves.
        warmup: Begin with a lower decay, `(1 + n) / (10 + n)` after n steps: short runs forget the start.
        final: The average is what the run ends with; needs `checkpoint.best = "last"`.
        evaluate: Evaluate the average beside the weights themselves, as view `ema`.
    """

    view = "ema"

    def __init__(
        self,
        decay: Annotated[float, Ge(0), Lt(1)] = 0.999,
        warmup: bool = True,  # noqa: FBT001, FBT002  an option of a recipe
        final: bool = True,  # noqa: FBT001, FBT002
        evaluate: bool = True,  # noqa: FBT001, FBT002
    ) -> None:
        super().__init__(final=final, evaluate=evaluate)
        self.decay, self.warmup = decay, warmup
        self._average: Tensors = {}
        self._updates = 0

    def average(self) -> Tensors | None:
        """Return the average; there is none in a run that only evaluates."""
        return self._average or None

    @hookimpl(trylast=True)
    def sft_setup(self, run: Run) -> None:
        """Begin the average, unless a checkpoint holds it."""
        self._own = tensors_of(run.model)
        self._average = beside(self._average or snapshot(self._own), self._own)

    @hookimpl(trylast=True)
    def sft_step_end(self, run: Run) -> None:  # noqa: ARG002
        """Move the average, after everything that changes the weights."""
        decay = warm_decay(self.decay, self._updates) if self.warmup else self.decay
        move_average_(self._average, self._own, decay)
        self._updates += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the average."""
        return {"average": self._average, "updates": self._updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self._average = beside(state["average"], self._own or state["average"])
        self._updates = state["updates"]


class SWA(Average):
    """Average the weights at the end of each of the last epochs, or every so many steps.

    Izmailov et al. 2018. Batch norm's statistics are computed anew for the average, by a pass over the
    training data.

    Args:
        start: Share of the run after which averaging begins.
        every_steps: Steps between members of the average; 0 for the end of each epoch.
        lr: Constant learning rate after `start`; 0 keeps the schedule.
        final: The average is what the run ends with; needs `checkpoint.best = "last"`.
        evaluate: Evaluate the average beside the weights themselves, as view `swa`.
    """

    view = "swa"

    def __init__(
        self,
        start: Annotated[float, Ge(0)] = 0.75,
        every_steps: Annotated[int, Ge(0)] = 0,
        lr: Annotated[float, Ge(0)] = 0.0,
        final: bool = True,  # noqa: FBT001, FBT002  an option of a recipe
        evaluate: bool = True,  # noqa: FBT001, FBT002
    ) -> None:
        super().__init__(final=final, evaluate=evaluate)
        self.start, self.every_steps, self.lr = start, every_steps, lr
        self._average: Tensors = {}
        self._members = 0

    def average(self) -> Tensors | None:
        """Return the average, if it has a member."""
        return self._average if self._members else None

    def adjust(self, run: Run, model: nn.Module) -> None:
        """Compute batch norm's statistics anew."""
        recompute_statistics(run, model)

    @hookimpl
    def sft_gradients(self, run: Run) -> None:
        """Set the constant learning rate of this step, after the schedule has set its own."""
        if self.lr and run.clock.progress >= self.start:
            pairs = zip(run.optimizer.param_groups, run.parameter_groups, strict=True)
            for group, of_recipe in pairs:
                group["lr"] = self.lr * of_recipe.lr_scale

    @hookimpl(trylast=True)
    def sft_step_end(self, run: Run) -> None:
        """Include the weights, where a member is due."""
        clock = run.clock
        done = clock.step + 1
        last = clock.window + 1 == clock.steps_per_epoch or done == clock.total_steps
        due = done % self.every_steps == 0 if self.every_steps else last
        if not due or done <= self.start * clock.total_steps:
            return
        if self._members:
            include_(self._average, self._own, self._members)
        else:
            self._average = snapshot(self._own)
        self._members += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the average."""
        return {"average": self._average, "members": self._members}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self._average = beside(state["average"], self._own or state["average"])
        self._members = state["members"]


class LAWA(Average):
    """Average the latest few weights, taken at the end of each epoch or every so many steps.

    Kaddour 2022, "Stop Wasting My Time! Saving Days of ImageNet and BERT Training with Latest Weight
    Averaging". Keeps that many copies of the weights, in checkpoints too.

    Args:
        members: How many of the latest.
        every_steps: Steps between them; 0 for the end of each epoch.
        final: The average is what the run ends with; needs `checkpoint.best = "last"`.
        evaluate: Evaluate the average beside the weights themselves, as view `lawa`.
    """

    view = "lawa"

    def __init__(
        self,
        members: Annotated[int, Gt(0)] = 6,
        every_steps: Annotated[int, Ge(0)] = 0,
        final: bool = True,  # noqa: FBT001, FBT002  an option of a recipe
        evaluate: bool = True,  # noqa: FBT001, FBT002
    ) -> None:
        super().__init__(final=final, evaluate=evaluate)
        self.members, self.every_steps = members, every_steps
        self._latest: list[Tensors] = []

    def average(self) -> Tensors | None:
        """Return the mean of the latest, if there is one."""
        return mean_of(self._latest) if self._latest else None

    def adjust(self, run: Run, model: nn.Module) -> None:
        """Compute batch norm's statistics anew."""
        recompute_statistics(run, model)

    @hookimpl(trylast=True)
    def sft_step_end(self, run: Run) -> None:
        """Remember the weights, where a member is due."""
        clock = run.clock
        done = clock.step + 1
        last = clock.window + 1 == clock.steps_per_epoch or done == clock.total_steps
        if done % self.every_steps == 0 if self.every_steps else last:
            self._latest = [*self._latest, snapshot(self._own)][-self.members :]

    def state_dict(self) -> dict[str, Any]:
        """Return the latest weights."""
        return {"latest": self._latest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self._latest = [beside(each, self._own or each) for each in state["latest"]]


# --- What they share ------------------------------------------------------------------------------


def tensors_of(model: nn.Module) -> Tensors:
    """Return the parameters and buffers of a model themselves, by name; tied ones once."""
    return dict(_named(model))


def _named(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        yield name, parameter.data
    yield from model.named_buffers()


@torch.no_grad()
def fill_(own: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Write values over a model's tensors, in place."""
    for name, tensor in own.items():
        tensor.copy_(values[name])
