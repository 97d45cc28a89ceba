"""Behavioural tests of texts from a file (Ribeiro et al. 2020, "Beyond Accuracy: CheckList")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Ge

from sft_engine import RecipeError, sections
from sft_probes.asking import probabilities, require_classes, require_whole_model
from sft_probes.checklist_file import Test, read_tests
from sft_probes.severity import Probe

if TYPE_CHECKING:
    from torch import Tensor

    from sft_engine import Run, Split, View
    from sft_engine.sections import Block

TEXT = "text"
SHOWN = 3
"""Failures of each test that the section shows."""


@dataclass(frozen=True)
class Case:
    """One text of a test, and what came of it.

    Args:
        text: As it is.
        changed: The changed text that failed first; empty for an MFT, and where none failed.
        before: Predicted class of the text.
        after: That of the changed one.
        failed: Whether the test fails for it.
    """

    text: str
    changed: str
    before: str
    after: str
    failed: bool


def fails(test: Test, before: Tensor, after: Tensor, names: Sequence[str]) -> bool:
    """Say whether a changed text fails a test of the type INV or DIR.

    Args:
        test: The test.
        before: Class probabilities of the text (classes,).
        after: Those of the changed text.
        names: Of the classes.
    """
    if test.type == "INV":
        return int(before.argmax()) != int(after.argmax())
    place = names.index(test.label)
    rise = float(after[place] - before[place])
    return {
        "up": rise < test.margin,
        "down": rise > -test.margin,
        "not-down": rise < -test.margin,
        "not-up": rise > test.margin,
    }[test.direction]


class Checklist(Probe):
    """Run behavioural tests from a file: minimum functionality, invariance, direction.

    A minimum functionality test (MFT) fails for a text whose prediction is not the one that is expected;
    an invariance test (INV) where the prediction changes with the text; a directional test (DIR) where
    the probability of a class does not move as it must. A text with several changes fails if any does.

    Args:
        path: TOML or JSON file with the tests; the README of sft-probes shows its format.
        split: Whose examples are changed by tests that have no texts of their own.
        examples: How many of its examples, drawn at random, the same for every model; 0 for all.
        seed: Of that draw.
    """

    title = "Behavioural tests"
    inputs: ClassVar[frozenset[str]] = frozenset({TEXT})

    def __init__(
        self,
        path: str,
        split: str = "test",
        examples: Annotated[int, Ge(0)] = 200,
        seed: Annotated[int, Ge(0)] = 0,
    ) -> None:
        super().__init__((), split, examples, seed)
        self.path = path
        self.tests: tuple[Test, ...] = ()
        self.results: dict[str, list[Case]] = {}

    def check(self) -> None:
        """Read the tests; raise DataError if the file cannot be used."""
        self.tests = read_tests(self.path)

    def prepare(self, run: Run, data: Split) -> None:
        """Refuse labels that the task does not have."""
        super().prepare(run, data)
        require_classes(run, self.name)
        require_whole_model(run, self.name)
        names = run.task.head.names
        for test in self.tests:
            if test.type != "INV" and test.label not in names:
                raise RecipeError(
                    f"'{self.path}', test '{test.name}': the label '{test.label}' is none of the task's "
                    f"({', '.join(names)})"
                )

    def views(self, run: Run) -> list[View]:  # noqa: ARG002 - contract
        """Return none: the tests have texts of their own."""
        return []

    def collect(
        self,
        run: Run,
        view: View | None,
        values: dict[str, float],
        predictions: Mapping[str, Tensor],
    ) -> None:
        """Run the tests, beside the clean evaluation of the split."""
        super().collect(run, view, values, predictions)
        rows = run.splits[self.split].rows
        chosen = rows if self.ids is None else rows.select(self.ids)
        examples = [text for text in chosen[TEXT][:] if text]
        self.results = {test.name: _outcome(run, test, examples) for test in self.tests}

    def summary(self, run: Run) -> str:  # noqa: ARG002 - contract
        """Say how many tests fail for more than no text."""
        found = [_rate(cases) for cases in self.results.values() if cases]
        failing = sum(rate > 0 for rate in found)
        worst = max(self.results, key=lambda name: _rate(self.results[name]))
        if not failing:
            return f"All {len(found)} tests pass."
        return (
            f"{failing} of {len(found)} tests fail for some text; '{worst}' for "
            f"{_rate(self.results[worst]):.1%}."
        )

    def blocks(self, run: Run) -> list[Block]:  # noqa: ARG002 - contract
        """Return the failure rates, and a few failures of each test."""
        rows = [
            [test.name, test.type, len(cases), sum(c.failed for c in cases), _rate(cases)]
            for test, cases in self._with_cases()
        ]
        columns = ["test", "type", "texts", "failures", "failure rate"]
        note = (
            "MFT: the prediction must be the label. INV: it must not change. DIR: the probability of a "
            "class must move as the test says."
        )
        shown = [
            {
                "test": test.name,
                "text": case.text,
                "changed": case.changed,
                "before": case.before,
                "after": case.after,
            }
            for test, cases in self._with_cases()
            for case in [c for c in cases if c.failed][:SHOWN]
        ]
        blocks = [sections.table("Failure rates", columns, rows, note=note)]
        if shown:
            names = ["test", "text", "changed", "before", "after"]
            blocks.append(sections.examples("Failures", names, shown))
        return blocks

    def facts(self, run: Run) -> dict[str, Any]:  # noqa: ARG002 - contract
        """Return the figures of each test."""
        return {
            "split": self.split,
            "seed": self.seed,
            "tests": [
                {
                    "name": test.name,
                    "type": test.type,
                    "texts": len(cases),
                    "failures": sum(case.failed for case in cases),
                    "failure_rate": _rate(cases) if cases else None,
                }
                for test, cases in self._with_cases()
            ],
        }

    def _with_cases(self) -> list[tuple[Test, list[Case]]]:
        return [(test, self.results[test.name]) for test in self.tests]


def _rate(cases: Sequence[Case]) -> float:
    return sum(case.failed for case in cases) / len(cases) if cases else 0.0


def _outcome(run: Run, test: Test, examples: Sequence[str]) -> list[Case]:
    """Ask the model about all texts of a test, and judge each."""
    cases = list(test.cases(examples))
    texts = list(dict.fromkeys(t for text, changed in cases for t in (text, *changed)))
    answers = probabilities(run, [{TEXT: text} for text in texts])
    by_text = dict(zip(texts, answers, strict=True))
    names = run.task.head.names
    return [_case(test, text, changed, by_text, names) for text, changed in cases]


def _case(
    test: Test,
    text: str,
    changed: Sequence[str],
    answers: Mapping[str, Tensor],
    names: Sequence[str],
) -> Case:
    before = names[int(answers[text].argmax())]
    if test.type == "MFT":
        return Case(text, "", before, "", before != test.label)
    for each in changed:
        if fails(test, answers[text], answers[each], names):
            return Case(text, each, before, names[int(answers[each].argmax())], failed=True)
    return Case(text, "", before, before, failed=False)
