"""The frame of all probes: which examples, which views, and the section of the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from sft_engine import RecipeError, View, hookimpl, order
from sft_engine.feed import transformed, view_key
from sft_engine.metrics import direction_of
from sft_engine.sections import add_section
from sft_probes.answers import answers_of, changed, label_of, named
from sft_probes.blocks import Curve, affected_block, curve_blocks, curve_summary

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from torch import Tensor

    from sft_engine import Batch, Run, Split
    from sft_engine.sections import Block

    Draws = np.random.Generator
    Row = dict[str, Any]
    Severity = float | str

SHOWN = 8
"""Examples that a section shows."""


def chosen(count: int, examples: int, seed: int) -> list[int] | None:
    """Return which examples of a split are looked at; None for all.

    Args:
        count: Examples of the split.
        examples: How many are wanted; 0 for all.
        seed: Decides which, with `count`; nothing else does.
    """
    if not examples or examples >= count:
        return None
    return sorted(order.permutation(count, seed, 0)[:examples].tolist())


def written(severity: Severity) -> str:
    """Return a severity as it stands in the name of a view."""
    return severity if isinstance(severity, str) else f"{severity:g}"


@dataclass(frozen=True)
class Look:
    """What the model answered in one view.

    Args:
        view: The view; None for the clean examples.
        severity: Of the view; 0 for the clean examples.
        value: Of the task's main metric; None where there are no targets.
        answers: As `answers_of` returns them.
        loss: Of each example (n,); None where there are no targets.
        more: Further numbers of the view, such as what an attack cost.
    """

    view: View | None
    severity: Severity
    value: float | None
    answers: Tensor
    loss: Tensor | None
    more: Mapping[str, float]


class Probe:
    """Views of one split, and what they gave; a subclass says which views, in `views`.

    Args:
        severities: Of the views.
        split: Which split is looked at.
        examples: How many examples of it, drawn at random; 0 for all.
        seed: Of that draw and of all changes.
    """

    title: ClassVar[str] = ""
    """Heading of the section."""
    axis: ClassVar[str] = "severity"
    """What the severities are: label of the curve's axis."""
    inputs: ClassVar[frozenset[str]] = frozenset()
    """Inputs of a task, one of which this probe can disturb; empty for any task."""

    def __init__(
        self, severities: Sequence[Severity], split: str, examples: int, seed: int
    ) -> None:
        self.severities = tuple(severities)
        self.split, self.examples, self.seed = split, examples, seed
        self.name = ""
        self.ids: list[int] | None = None
        self.ready = False
        self.clean: Look | None = None
        self.looks: list[Look] = []
        self.labels: Tensor | None = None

    # --- for subclasses --------------------------------------------------------------------------

    def prepare(self, run: Run, data: Split) -> None:
        """Look at the data once, before anything is trained; may raise RecipeError."""

    def views(self, run: Run) -> list[View]:
        """Return the views, made by `view`; called at the start of each evaluation of the split."""
        raise NotImplementedError

    def shown(self, row: Row) -> dict[str, Any]:  # noqa: ARG002 - for subclasses
        """Return how an example looks in the report: texts and numbers by column, and `image`."""
        return {}

    def changed_row(self, data: Split, view: View, example: int) -> Row:
        """Return an example as the model got it in a view, for the report."""
        transforms = [] if view.transform is None else [view.transform]
        return transformed(data, [example], view_key(view), transforms)[0]

    def measured(self, run: Run, view: View) -> dict[str, float]:  # noqa: ARG002 - for subclasses
        """Return further metrics of a view, equal on all ranks."""
        return {}

    def blocks(self, run: Run) -> list[Block]:
        """Return the blocks of the section, on rank 0, when all views have been evaluated."""
        assert self.clean is not None
        curve = self.curve(run)
        return [*curve_blocks(curve), *self._affected(run)]

    def summary(self, run: Run) -> str:
        """Return one sentence for the top of the section."""
        return curve_summary(self.curve(run))

    def facts(self, run: Run) -> dict[str, Any]:
        """Return what `report["probes"][NAME]` says, for programs."""
        return self.curve(run).facts()

    def view(
        self,
        severity: Severity,
        *,
        transform: Callable[[Row, Draws], Row] | None = None,
        perturb: Callable[[Run, Batch], None] | None = None,
        model: torch.nn.Module | None = None,
    ) -> View:
        """Return a view of the chosen examples, by the name `NAME@SEVERITY`.

        What it draws depends on the probe's name and seed and the example, not on the severity: what is
        hit at a low rate is hit at a higher one too, and the curve is that of the same examples.
        """
        return View(
            name=f"{self.name}@{written(severity)}",
            model=model,
            transform=transform,
            perturb=perturb,
            tags={"probe": self.name, "severity": severity},
            ids=self.ids,
            seed=order.mix(self.seed, order.name_key(type(self).__name__)),
        )

    # --- hooks -----------------------------------------------------------------------------------

    @hookimpl
    def sft_build_model(self, run: Run) -> None:
        """Choose the examples, and let the subclass look at the data."""
        self.name = name_of(self, run)
        data = run.splits.get(self.split)
        self.ready = data is not None
        if data is None:
            if run.reopened:
                return  # other data was given, or none
            raise RecipeError(
                f"`{self.name}` looks at the split '{self.split}', and the data has "
                f"{', '.join(run.splits)}: set `split` of the probe to one of them, or hold one out "
                "(`data.test = 0.1`)"
            )
        if self.inputs and not self.inputs & set(data.rows.column_names):
            raise RecipeError(
                f"`{self.name}` disturbs {' or '.join(map(repr, sorted(self.inputs)))}, and the split "
                f"'{self.split}' has {', '.join(data.rows.column_names)}: remove the probe"
            )
        self.ids = chosen(len(data), self.examples, self.seed)
        self.prepare(run, data)

    @hookimpl
    def sft_eval_views(self, run: Run, split: str) -> list[View]:
        """Offer the views of the split."""
        if split != self.split or not self.ready:
            return []
        self.clean, self.looks = None, []
        return self.views(run)

    @hookimpl
    def sft_metrics(
        self, run: Run, view: View, values: dict[str, float], predictions: Mapping[str, Tensor]
    ) -> None:
        """Keep what a view gave; add `drop` and `changed` to its metrics."""
        if run.evaluating != self.split or not self.ready:
            return
        if not view.name:
            self.collect(run, None, {}, self._of_chosen(predictions))
        elif view.tags.get("probe") == self.name:
            self.collect(run, view, values, predictions)

    @hookimpl
    def sft_report(self, run: Run, report: dict[str, Any]) -> None:
        """Add the section, and the same numbers under `probes`."""
        if self.clean is None:
            return  # the split was not evaluated
        report.setdefault("probes", {})[self.name] = self.facts(run)
        blocks = self.blocks(run)
        add_section(report, self.name, self.heading, blocks, summary=self.summary(run))

    # --- what views gave -------------------------------------------------------------------------

    @property
    def heading(self) -> str:
        """The title, with the number of a probe that a recipe has several times."""
        _, dash, number = self.name.rpartition("-")
        return f"{self.title} ({number})" if dash and number.isdecimal() else self.title

    def collect(
        self,
        run: Run,
        view: View | None,
        values: dict[str, float],
        predictions: Mapping[str, Tensor],
    ) -> None:
        """Keep what a view gave.

        Args:
            run: The run.
            view: The view; None for the clean one, which comes first.
            values: Its metrics, to be added to.
            predictions: Of the chosen examples, by id.
        """
        head, metric = run.task.head, run.task.main_metric
        value = run.task.metrics(predictions, (metric,)).get(metric)
        more = {} if view is None else self.measured(run, view)
        severity: Severity = 0.0 if view is None else view.tags["severity"]
        answers = answers_of(predictions, head)
        look = Look(view, severity, value, answers, predictions.get("loss"), more)
        if view is None:
            self.clean = look
            self.labels = predictions.get("label")
            return
        self.looks.append(look)
        values |= more | self._compared(look, run)

    def _compared(self, look: Look, run: Run) -> dict[str, float]:
        """Return `drop`, how much worse the main metric is, and how far the answers have changed."""
        assert self.clean is not None
        found: dict[str, float] = {}
        if look.value is not None and self.clean.value is not None:
            sign = 1 if direction_of(run.task.main_metric) == "max" else -1
            found["drop"] = sign * (self.clean.value - look.value)
        if run.task.head.kind == "regression":
            found["moved"] = float((look.answers - self.clean.answers).abs().mean())
        else:
            found["changed"] = float(changed(self.clean.answers, look.answers).double().mean())
        return found

    def _of_chosen(self, predictions: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if self.ids is None:
            return predictions
        ids = torch.tensor(self.ids)
        return {name: tensor[ids] for name, tensor in predictions.items()}

    def curve(self, run: Run) -> Curve:
        """Return metric and changes by severity, the clean values first."""
        assert self.clean is not None
        found = [self._compared(look, run) for look in self.looks]
        regression = run.task.head.kind == "regression"
        first: dict[str, float] = {"moved" if regression else "changed": 0.0}
        if self.clean.value is not None:
            first["drop"] = 0.0
        return Curve(
            metric=run.task.main_metric,
            axis=self.axis,
            split=self.split,
            examples=len(self.clean.answers),
            seed=self.seed,
            severities=[0.0, *(look.severity for look in self.looks)],
            values=[self.clean.value, *(look.value for look in self.looks)],
            more=[first, *({**f, **look.more} for f, look in zip(found, self.looks, strict=True))],
        )

    # --- examples --------------------------------------------------------------------------------

    def _affected(self, run: Run) -> list[Block]:
        """Show the examples whose answers change first, and most."""
        data, head = run.splits[self.split], run.task.head
        rows = []
        for example, look in self._most_affected():
            assert self.clean is not None
            assert look.view is not None
            row_id = example if self.ids is None else self.ids[example]
            before = transformed(data, [row_id], (0,), [])[0]
            after = self.shown(self.changed_row(data, look.view, row_id))
            shown = {k: v for k, v in self.shown(before).items() if k != "image"}
            shown |= {k if k == "image" else f"{k}, changed": v for k, v in after.items()}
            if self.labels is not None:
                shown["label"] = label_of(self.labels[example], head)
            shown["before"] = named(self.clean.answers[example], head)
            shown["after"] = named(look.answers[example], head)
            rows.append({"row": before.get("row", row_id), **shown, "severity": look.severity})
        return affected_block(rows)

    def _most_affected(self) -> list[tuple[int, Look]]:
        """Return examples and views, those first that change at the least severity."""
        assert self.clean is not None
        found: dict[int, tuple[int, float, Look]] = {}
        for place, look in enumerate(self.looks):
            rise = _rise(self.clean, look)
            worse = changed(self.clean.answers, look.answers) & (rise > 0)
            for example in worse.nonzero().flatten().tolist():
                found.setdefault(example, (place, -float(rise[example]), look))
        ranked = sorted(found.items(), key=lambda item: (*item[1][:2], item[0]))
        return [(example, look) for example, (_, _, look) in ranked[:SHOWN]]


def _rise(clean: Look, look: Look) -> Tensor:
    """Return how much the loss of each example rises, (n,); 1 where it is unknown."""
    if clean.loss is None or look.loss is None:
        return torch.ones(len(clean.answers))
    return (look.loss - clean.loss).double().nan_to_num(nan=math.inf)


class RowProbe(Probe):
    """Changes raw rows at several severities; a subclass says how, in `disturb`."""

    def disturb(self, row: Row, severity: Any, draws: Draws) -> Row:
        """Return the changed row; the row given may be changed in place. Severity 0 changes nothing."""
        raise NotImplementedError

    def views(self, run: Run) -> list[View]:  # noqa: ARG002 - contract
        """Return a view for each severity; that of 0 is the clean one, which there is anyway."""
        return [
            self.view(severity, transform=self._at(severity))
            for severity in self.severities
            if severity
        ]

    def _at(self, severity: Severity) -> Callable[[Row, Draws], Row]:
        return lambda row, draws: self.disturb(row, severity, draws)


def name_of(probe: object, run: Run) -> str:
    """Return the name of a probe in a run: as in the recipe, with a number if it is not the first."""
    same = [a for a in run.active if a.planned.kind == "probe" and type(a.component) is type(probe)]
    place = next(i for i, active in enumerate(same) if active.component is probe)
    name = same[place].planned.name.replace("/", "-")
    return f"{name}-{place + 1}" if place else name
