"""What a diagnosis says: a finding with its evidence, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sft_engine import sections
from sft_engine.sections import LEVELS, Level

__all__ = ["LEVELS", "Finding", "Level", "Remedy"]


@dataclass(frozen=True)
class Remedy:
    """Something to try.

    Args:
        why: One sentence: what it does, and who found that it helps.
        toml: Lines for the recipe: keys of a table that it has replace its own, `[[...]]` is added. Empty
            where the recipe cannot help, such as for data that must be cleaned.
    """

    why: str
    toml: str = ""


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a run, or worth knowing.

    Args:
        name: As `docs/diagnosis.md` calls it.
        level: `info`, `warning` (the result is worse than it need be, or means less than it seems) or
            `serious` (it is worth nothing).
        evidence: One or two sentences with the figures.
        step: Where it begins; None if it is not bound to a step.
        remedies: What to try, the likeliest first.
    """

    name: str
    level: Level
    evidence: str
    step: int | None = None
    remedies: tuple[Remedy, ...] = ()

    def at(self, level: Level) -> Finding:
        """Return the same finding at another level."""
        return replace(self, level=level)

    def as_json(self) -> dict[str, Any]:
        """Return it as a `findings` block of a report holds it."""
        remedies = [(each.why, each.toml) for each in self.remedies]
        return sections.finding(
            self.name, self.level, self.evidence, step=self.step, remedies=remedies
        )

    def line(self) -> str:
        """Return it in one line, for the console."""
        where = "" if self.step is None else f" (step {self.step})"
        return f"{self.name}{where}: {self.evidence}"


def add_to_report(report: dict[str, Any], findings: Sequence[Finding]) -> None:
    """Add the section `diagnosis` to a report."""
    block = sections.findings(finding.as_json() for finding in findings)
    sections.add_section(report, "diagnosis", "Diagnosis", [block], summary=verdict(findings))


def verdict(findings: Iterable[Finding]) -> str:
    """Say in a sentence what was found."""
    names: dict[str, list[str]] = {level: [] for level in LEVELS}
    for finding in findings:
        names[finding.level].append(finding.name)
    said = [
        f"{len(names[level])} {word}: {', '.join(names[level])}"
        for level, word in (("serious", "serious"), ("warning", "to look at"), ("info", "to know"))
        if names[level]
    ]
    return "; ".join(said) + "." if said else "Nothing was found that is wrong with this run."
