"""Whether a difference is more than chance: the few tests that the rules need."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

CHANCE = 2.33
"""Standard errors that chance exceeds once in a hundred times, one-sided."""


def has_learned(look: Mapping[str, Any]) -> bool:
    """Say whether predictions are better than those of no model, as far as is known.

    With classes: more right answers than the largest class alone would give, or a mean recall above that of
    guessing, either beyond chance. Otherwise: outputs that explain a part of the targets' variance.
    """
    labels, hits = look.get("labels"), look.get("hits")
    if labels and hits:
        return _beats_majority(labels, hits, look) or _beats_guessing(labels, hits)
    if look.get("label_spread"):
        mean = float(look.get("loss", math.inf))
        return mean < 0.9 * float(look["label_spread"]) ** 2
    return bool(look)


def _beats_majority(labels: list[int], hits: list[int], look: Mapping[str, Any]) -> bool:
    examples = sum(labels)
    if not examples or examples != look.get("examples", examples):
        return False
    share = max(labels) / examples
    error = math.sqrt(max(share * (1 - share), 1 / examples) / examples)
    return sum(hits) / examples > share + CHANCE * error


def _beats_guessing(labels: list[int], hits: list[int]) -> bool:
    present = [(n, h) for n, h in zip(labels, hits, strict=True) if n]
    if len(present) < 2:  # noqa: PLR2004  (there is nothing to guess)
        return False
    guess = 1 / len(present)
    mean = sum(h / n for n, h in present) / len(present)
    error = math.sqrt(sum(guess * (1 - guess) / n for n, _ in present)) / len(present)
    return mean > guess + CHANCE * error


def gap_error(one: Mapping[str, Any], other: Mapping[str, Any], key: str) -> float:
    """Return the standard error of the difference of two independent means: of `loss` or `accuracy`."""
    return math.hypot(_error(one, key), _error(other, key))


def _error(look: Mapping[str, Any], key: str) -> float:
    if key == "loss":
        return float(look.get("loss_error", math.nan))
    share, number = float(look.get("accuracy", math.nan)), max(int(look.get("examples", 1)), 1)
    return math.sqrt(max(share * (1 - share), 1 / number) / number)
