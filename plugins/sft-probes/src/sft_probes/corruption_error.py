"""Corruption errors, mCE and relative mCE (Hendrycks and Dietterich 2019, section 4.1), as pure functions."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from sft_engine import RecipeError

Corruption = Literal[
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
    "speckle_noise",
    "gaussian_blur",
    "spatter",
    "saturate",
]
EVERY: tuple[Corruption, ...] = get_args(Corruption)
USUAL = EVERY[:15]
"""Those that mCE is made of, in the order of the benchmark; the other four are for validation."""
LEVELS = (1, 2, 3, 4, 5)
GROUPS = {
    "noise": USUAL[:3],
    "blur": USUAL[3:7],
    "weather": USUAL[7:11],
    "digital": USUAL[11:],
    "extra": EVERY[15:],
}

ALEXNET = "alexnet"
_ALEXNET_MEANS = (
    0.886428,
    0.894468,
    0.922640,
    0.819880,
    0.826268,
    0.785948,
    0.798360,
    0.866816,
    0.826572,
    0.819324,
    0.564592,
    0.853204,
    0.646056,
    0.717840,
    0.606500,
)
"""Error of AlexNet on ImageNet-C, mean over the five severities, as the benchmark's authors publish it."""
_ALEXNET_CLEAN = 0.435
"""Its top-1 error on ImageNet (Hendrycks and Dietterich 2019, table 1)."""
IMAGENET = 1000


@dataclass(frozen=True)
class Errors:
    """Top-1 errors of one model.

    Args:
        clean: On the examples as they are.
        corrupted: By corruption, one for each severity.
        name: What the model is called.
        setting: What must be equal for two to be compared: split, examples, seed, size, severities.
    """

    clean: float
    corrupted: Mapping[str, Sequence[float]]
    name: str = ""
    setting: Mapping[str, Any] | None = None

    @property
    def mean(self) -> float:
        """Mean corrupted error: over severities, then over corruptions."""
        return _mean([_mean(each) for each in self.corrupted.values()])


def alexnet(levels: Sequence[int]) -> Errors:
    """Return AlexNet's published errors on ImageNet-C: the mean stands for each of the five severities.

    Raises:
        RecipeError: other severities were asked for, for which nothing is published.
    """
    if tuple(sorted(levels)) != LEVELS:
        raise RecipeError(
            f'[[probe]] reference = "{ALEXNET}" holds for the severities 1 to 5 together, found '
            f"{list(levels)}: leave `severities` out, or name a run as reference"
        )
    each = zip(USUAL, _ALEXNET_MEANS, strict=True)
    return Errors(_ALEXNET_CLEAN, {name: [mean] * len(LEVELS) for name, mean in each}, "AlexNet")


def corruption_errors(model: Errors, reference: Errors) -> dict[str, float]:
    """Return `sum_s E_s / sum_s E_s^ref` of each corruption that both have; NaN where the reference has none."""
    return {
        name: _ratio(sum(errors), sum(reference.corrupted[name]))
        for name, errors in model.corrupted.items()
        if name in reference.corrupted
    }


def relative_corruption_errors(model: Errors, reference: Errors) -> dict[str, float]:
    """Return `sum_s (E_s - E_clean) / sum_s (E_s^ref - E_clean^ref)` of each corruption that both have."""
    return {
        name: _ratio(
            sum(each - model.clean for each in errors),
            sum(each - reference.clean for each in reference.corrupted[name]),
        )
        for name, errors in model.corrupted.items()
        if name in reference.corrupted
    }


def in_percent(ratios: Mapping[str, float]) -> float:
    """Return mCE, or relative mCE: 100 times the mean over the 15 corruptions that belong to it."""
    return 100 * _mean([ratio for name, ratio in ratios.items() if name in USUAL])


def read_reference(path: str) -> Errors:
    """Return the errors that the probe `corruptions` found for another model.

    Args:
        path: A run folder, or a folder that `sft-engine probe` wrote.

    Raises:
        RecipeError: there is nothing of the kind.
    """
    for name in ("report.json", "probes.json"):
        file = Path(path) / name
        if file.exists():
            facts = _facts(file)
            if facts is not None:
                return Errors(facts["clean_error"], facts["errors"], path, facts["setting"])
    raise RecipeError(
        f'[[probe]] reference = "{path}": allowed are "{ALEXNET}" (ImageNet) and a folder whose report.json '
        f"or probes.json has the probe `corruptions`: run `sft-engine probe {path} --with corruptions --update`"
    )


def _facts(file: Path) -> dict[str, Any] | None:
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))["probes"]["corruptions"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return facts if isinstance(facts, dict) and facts.get("errors") else None


def require_same_setting(reference: Errors, setting: Mapping[str, Any]) -> None:
    """Raise RecipeError if a reference was measured in another way."""
    if reference.setting is None:
        return
    for key, ours in setting.items():
        theirs = reference.setting.get(key)
        if theirs != ours:
            raise RecipeError(
                f'[[probe]] reference = "{reference.name}" was measured with {key} = {theirs}, this probe '
                f"has {ours}: they can only be compared if it is the same"
            )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _ratio(one: float, other: float) -> float:
    return one / other if other else math.nan
