"""The diagnosis of a run while it trains: what is recorded for the rules, and what must be said at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_engine import order
from sft_engine.columns import row_numbers
from sft_engine.diagnosis import data_look, outputs
from sft_engine.diagnosis.evidence import evidence_of, read_evidence, read_records
from sft_engine.diagnosis.finding import Finding, add_to_report
from sft_engine.diagnosis.rules import findings_of, serious_now
from sft_engine.diagnosis.vitals import Vitals, plain
from sft_engine.evaluation import predict_split
from sft_engine.flow import Split

if TYPE_CHECKING:
    from sft_engine.components import Example
    from sft_engine.devices import Precision
    from sft_engine.evaluation import Evaluated
    from sft_engine.flow import Run

SAMPLE = "train-sample"
"""Split of the training examples that are evaluated beside the validation split."""
FIRST, LATEST = 100, 400
"""Training records that are kept in memory: from the begin, and of late."""


class Chosen:
    """Some examples of a split.

    Args:
        examples: Of the split.
        ids: Which.
    """

    def __init__(self, examples: Any, ids: np.ndarray[Any, Any]) -> None:
        self.examples, self.ids = examples, ids
        lengths = getattr(examples, "lengths", None)
        if lengths is not None:
            self.lengths = np.asarray(lengths)[ids]
        if hasattr(examples, "take"):
            self.take = lambda ids: examples.take(self.ids[ids].tolist())

    def __len__(self) -> int:
        return len(self.ids)

    def __getitems__(self, ids: Sequence[int]) -> list[Example]:
        """Fetch examples by their places in the choice."""
        found: list[Example] = self.examples.__getitems__(self.ids[list(ids)].tolist())
        return found


def training_sample(split: Split, number: int) -> Split:
    """Return so many examples of a split, always the same ones, without its random changes."""
    draws = order.generator(order.name_key(SAMPLE))
    ids = np.sort(draws.choice(len(split), size=min(number, len(split)), replace=False))
    return Split(SAMPLE, split.rows.select(ids), Chosen(split.examples, ids))


@dataclass
class History:
    """The records of a run that rules judge in mid-training, in bounded memory."""

    first: list[Mapping[str, Any]] = field(default_factory=list)
    latest: deque[Mapping[str, Any]] = field(default_factory=lambda: deque(maxlen=LATEST))
    others: list[Mapping[str, Any]] = field(default_factory=list)

    def add(self, record: Mapping[str, Any]) -> None:
        """Keep a record, if a rule may look at it."""
        kind = record.get("kind")
        if kind == "train":
            (self.first if len(self.first) < FIRST else self.latest).append(record)
        elif kind in ("evaluation", "diagnostics") and not record.get("view"):
            self.others.append(record)

    @property
    def records(self) -> list[Mapping[str, Any]]:
        """All of them; training records among themselves, and the others, in the order of time."""
        return [*self.others, *self.first, *self.latest]


class Watch:
    """Diagnoses one run: measures, judges after each look at the validation split, and at the end.

    Args:
        run: Assembled; its weights are those of the start.
        precision: Autocast.
        recipe: As the run folder holds it.
    """

    def __init__(self, run: Run, precision: Precision, recipe: Mapping[str, Any]) -> None:
        self.run, self.precision, self.recipe = run, precision, recipe
        self.history = History()
        self.said: set[str] = set()
        # Every rank would measure the same; parameters that are spread over ranks are not measured.
        measures = run.is_main and not precision.sharded
        self.vitals = Vitals(run, run.plan.train.log_every) if measures else None
        if run.plan.evaluation.train_sample and "validation" in run.splits:
            number = run.plan.evaluation.train_sample
            run.splits[SAMPLE] = training_sample(run.splits["train"], number)

    # --- records ---------------------------------------------------------------------------------

    def see(self, record: Mapping[str, Any]) -> None:
        """Take a record that was written."""
        if record.get("kind") == "finding":
            self.said.add(str(record["name"]))
        else:
            self.history.add(record)

    def go_on(self) -> None:
        """Take the records of a run that is resumed: what was said is not said again."""
        for record in read_records(self.run.folder / "metrics.jsonl"):
            self.see(record)

    def begin(self) -> None:
        """Record what is seen of the data before training."""
        run = self.run
        if not run.is_main:
            return
        splits: dict[str, Any] = {
            name: run.splits[name].rows
            for name in ("train", "validation", "test")
            if name in run.splits
        }
        run.record(
            {
                "kind": "diagnostics",
                "of": "start",
                "step": 0,
                "total_steps": run.clock.total_steps,
                "layer_groups": [group.name for group in run.layer_groups],
                **data_look.look(splits, run.task),
            }
        )
        self._say()

    def look(self, validation: Evaluated, batch_size: int) -> None:
        """Record what an evaluation of the validation split shows, and say what is serious."""
        run = self.run
        record: dict[str, Any] = {"kind": "diagnostics", "of": "validation", **self._position()}
        record |= self._summary("validation", validation.predictions)
        if SAMPLE in run.splits:
            sample = predict_split(run, SAMPLE, self.precision, batch_size=batch_size)
            kept = ("examples", "loss", "loss_error", "accuracy")
            summed = self._summary(SAMPLE, sample)
            record["train"] = {name: summed[name] for name in kept if name in summed}
        if self.vitals is not None:
            record |= self.vitals.position()
        run.record(record)
        self._say()

    def end(self, split: str, final: Evaluated) -> None:
        """Record what the final evaluation shows, if it is of a split that was not looked at before."""
        if split == "test":
            summed = self._summary(split, final.predictions)
            self.run.record({"kind": "diagnostics", "of": split, **self._position(), **summed})

    def _position(self) -> dict[str, Any]:
        clock = self.run.clock
        return {"step": clock.step, **self.run.phase_note, "epoch": clock.epochs}

    def _summary(self, split: str, predictions: Mapping[str, Any]) -> dict[str, Any]:
        run = self.run
        if not run.is_main:
            return {}
        rows = row_numbers(run.splits[split].rows).tolist()
        return outputs.summary(plain(dict(predictions)), run.task.head.kind, rows)

    # --- findings --------------------------------------------------------------------------------

    def _say(self) -> None:
        """Say what is serious and has not been said: a record, which the console shows as a line."""
        if not self.run.is_main:
            return
        evidence = evidence_of(
            self.history.records, self.recipe, ended=False, label_names=self.run.task.head.names
        )
        for finding in serious_now(evidence):
            if finding.name not in self.said:
                self.run.record(
                    {
                        "kind": "finding",
                        "step": self.run.clock.step,
                        "level": finding.level,
                        "name": finding.name,
                        "message": finding.line(),
                    }
                )

    def report(self, report: dict[str, Any]) -> list[Finding]:
        """Diagnose the whole run from its folder, and add a section to the report."""
        found = findings_of(read_evidence(self.run.folder))
        add_to_report(report, found)
        return found
