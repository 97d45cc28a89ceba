"""Checks of an attack's own figures: does a model withstand it, or does it only hide its gradients?

Athalye et al. 2018, "Obfuscated Gradients Give a False Sense of Security", section 3.1; Carlini et al. 2019, "On
Evaluating Adversarial Robustness", section 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sft_engine import sections

if TYPE_CHECKING:
    from sft_engine.sections import Block

NEAR_ZERO = 0.05
"""Accuracy that an attack without real bounds may leave."""

NAME = "masked gradients, or too weak an attack"

REMEDIES = (
    (
        "Square, a part of AutoAttack, needs no gradients: believe its figure",
        '[[probe]]\nuse = "autoattack"',
    ),
    (
        "more steps and starts get further where the loss is flat",
        '[[probe]]\nuse = "pgd"\nsteps = 50\nrestarts = 5',
    ),
)


@dataclass(frozen=True)
class Check:
    """One figure that tells of masked gradients.

    Args:
        name: What was looked at.
        found: The figure.
        most: What it may be at most.
    """

    name: str
    found: float
    most: float

    @property
    def passed(self) -> bool:
        """Whether the figure is what it must be; NaN is not."""
        return self.found <= self.most


def masking_checks(
    eps: float,
    attacked: float,
    *,
    fgsm: float | None = None,
    noise: float | None = None,
    unbounded: float | None = None,
    flat: float | None = None,
    unsteady: float | None = None,
) -> list[Check]:
    """Return the checks that these figures allow; None leaves one out.

    Args:
        eps: Radius in 1/255.
        attacked: Accuracy under the attack.
        fgsm: Accuracy under FGSM of the same radius.
        noise: Accuracy under random noise of the same radius.
        unbounded: Accuracy under the attack at 64/255.
        flat: Share of examples whose gradient is zero.
        unsteady: Greatest difference of two forward passes, relative to the largest logit.
    """
    at = f"at {eps:g}/255"
    found = (
        ("accuracy of the attack at 64/255: near 0", unbounded, NEAR_ZERO),
        (f"accuracy of the attack {at}: at most that of FGSM", attacked, fgsm),
        (f"accuracy of the attack {at}: at most that of random noise", attacked, noise),
        ("share of examples without a gradient: 0", flat, 0.0),
        ("difference of two forward passes: 0", unsteady, 1e-3),
    )
    return [Check(n, f, m) for n, f, m in found if f is not None and m is not None]


def masking_blocks(checks: Sequence[Check]) -> list[Block]:
    """Return the table of checks, and a finding if one fails."""
    if not checks:
        return []
    rows = [[c.name, c.found, c.most, "yes" if c.passed else "NO"] for c in checks]
    columns = ["check", "found", "at most", "passed"]
    note = "If one fails, gradients may be masked or the attack too weak: accuracy under it is too good to be true."
    blocks = [sections.table("Can the attack be believed?", columns, rows, note=note)]
    failed = [check for check in checks if not check.passed]
    if failed:
        evidence = "; ".join(
            f"{c.name} - found {c.found:.3g}, at most {c.most:.3g}" for c in failed
        )
        finding = sections.finding(NAME, "warning", evidence, remedies=REMEDIES)
        blocks.append(sections.findings([finding]))
    return blocks


def masking_facts(checks: Sequence[Check]) -> list[dict[str, Any]]:
    """Return the checks as JSON values."""
    return [{**asdict(check), "passed": check.passed} for check in checks]
