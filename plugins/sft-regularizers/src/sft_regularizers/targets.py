"""What the answers shall be like beside the labels: less sure, or those of a teacher."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn
from torch.nn import functional

from sft_engine import Capabilities, LossTerm, RecipeError, hookimpl, logits_of
from sft_regularizers.answers import entropy, kl_at_temperature, sum_over_items
from sft_regularizers.selection import last_linear
from sft_regularizers.teachers import START, Teacher

if TYPE_CHECKING:
    from sft_engine import Batch, Run


class ConfidencePenalty:
    """Reward answers that are less sure, by the entropy of the prediction.

    Pereyra et al. 2017, "Regularizing Neural Networks by Penalizing Confident Output Distributions".

    Args:
        strength: Nats of loss that a nat of entropy is worth.
    """

    def __init__(self, strength: Annotated[float, Ge(0)] = 0.1) -> None:
        self.strength = strength

    @hookimpl
    def sft_setup(self, run: Run) -> None:
        """Refuse a head without probabilities."""
        if run.task.head.kind == "regression":
            raise RecipeError(
                "confidence-penalty needs a task that predicts probabilities, and `[task]` predicts real "
                "values: leave it out"
            )

    @hookimpl
    def sft_loss_terms(self, run: Run, batch: Batch, outputs: Any) -> Iterator[LossTerm]:
        """Add the negative entropy."""
        if self.strength:
            each = entropy(logits_of(outputs), run.task.head.kind)
            yield LossTerm("confidence-penalty", -sum_over_items(each, batch), self.strength)


class LabelSmoothing:
    """Spread a share of each target evenly over all classes.

    Szegedy et al. 2016, "Rethinking the Inception Architecture for Computer Vision", section 7. Another
    way to say `task.label_smoothing`, of which a recipe has one: class weights, focal loss and mixed
    targets see it as they see that.

    Args:
        strength: The share.
    """

    capabilities = Capabilities(replayable=True)

    def __init__(self, strength: Annotated[float, Ge(0), Lt(1)] = 0.1) -> None:
        self.strength = strength

    @hookimpl
    def sft_build_data(self, run: Run, split: str) -> None:
        """Tell the task, before anything asks it for its loss.

        Raises:
            RecipeError: it has no classes.
        """
        if split != "train" or not self.strength:
            return
        task: Any = run.task
        if task.head.kind == "regression" or not hasattr(task, "label_smoothing"):
            raise RecipeError(
                f"label-smoothing needs classes, and the task {type(task).__name__} predicts other "
                "values: leave it out"
            )
        task.label_smoothing = self.strength


class Distillation:
    """Learn from a teacher's probabilities as well as from the labels.

    The objective is `(1 - alpha) * task + alpha * T^2 * KL(teacher, student)`, both at temperature T
    (Hinton, Vinyals, Dean 2015). A teacher whose preprocessing is that of `[backbone]` sees the same
    inputs, augmentations included; any other reads the same examples as they are in the data.

    Args:
        teacher: `start` for the model that this run begins with, the folder of a finished run on the
            same classes, or what `backbone.name` may be (hub id, local folder, a plugin's name), with a
            trained head for them.
        alpha: Share of the teacher in the objective.
        temperature: Of both probabilities.
    """

    def __init__(
        self,
        teacher: str = START,
        alpha: Annotated[float, Ge(0), Le(1)] = 0.5,
        temperature: Annotated[float, Gt(0)] = 2.0,
    ) -> None:
        self.teacher, self.alpha, self.temperature = teacher, alpha, temperature
        self._teacher = Teacher()

    @hookimpl(trylast=True)
    def sft_setup(self, run: Run) -> None:
        """Build the teacher."""
        if self.alpha:
            self._teacher.attach(run, self.teacher)

    @hookimpl
    def sft_loss_terms(self, run: Run, batch: Batch, outputs: Any) -> Iterator[LossTerm]:
        """Add the distance to the teacher, and take its share off the task."""
        if not self.alpha:
            return
        taught = self._teacher.answer(run, batch)
        each = kl_at_temperature(logits_of(outputs), taught, self.temperature, run.task.head.kind)
        yield LossTerm("distillation", sum_over_items(each, batch), self.alpha)
        task = run.task.loss(outputs, batch)
        # The task's own term counts in full: this leaves (1 - alpha) of it.
        yield LossTerm("distillation/task", task.value, -self.alpha, per=task.per)

    def state_dict(self) -> dict[str, Any]:
        """Return the weights of the teacher."""
        return self._teacher.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self._teacher.load_state_dict(state)


class LwF:
    """Learning without forgetting: the old head on the new features shall answer as it did at the start.

    Li, Hoiem 2016, equation 4, with the old head held fixed. It says something only if the head at the
    start is trained: a model that goes on from an earlier task.

    Args:
        strength: Factor of the distance between old and new answers of the old head.
        temperature: At which they are compared.
    """

    def __init__(
        self, strength: Annotated[float, Ge(0)] = 1.0, temperature: Annotated[float, Gt(0)] = 2.0
    ) -> None:
        self.strength, self.temperature = strength, temperature
        self._teacher = Teacher()
        self._head: nn.Linear | None = None
        self._old_head: nn.Linear | None = None
        self._features = torch.empty(0)

    @hookimpl(trylast=True)
    def sft_setup(self, run: Run) -> None:
        """Build the teacher, and listen to what goes into the last linear layer."""
        if not self.strength:
            return
        self._teacher.attach(run, START)
        assert self._teacher.model is not None
        head = last_linear(run, "lwf")
        name = next(n for n, m in run.model.named_modules() if m is head)
        self._old_head = self._teacher.model.get_submodule(name)  # type: ignore[assignment]
        self._head = head
        head.register_forward_pre_hook(self._listen)

    def __deepcopy__(self, memo: dict[int, Any]) -> LwF:
        """Return itself: copies of the model bring the hook along, but they do not train."""
        return self

    def _listen(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # Not by `layer.training`: a frozen head is in evaluation mode, and what is below it trains.
        if layer is self._head and torch.is_grad_enabled():
            self._features = inputs[0]

    @hookimpl(tryfirst=True)
    def sft_loss_terms(self, run: Run, batch: Batch) -> Iterator[LossTerm]:
        """Add the distance; before another term runs the model again and other features come by."""
        if self._old_head is None:
            return
        answers = functional.linear(self._features, self._old_head.weight, self._old_head.bias)
        before = self._teacher.answer(run, batch)
        each = kl_at_temperature(answers, before, self.temperature, run.task.head.kind)
        self._features = torch.empty(0)
        yield LossTerm("lwf", sum_over_items(each, batch), self.strength)

    def state_dict(self) -> dict[str, Any]:
        """Return the weights of the start."""
        return self._teacher.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self._teacher.load_state_dict(state)
