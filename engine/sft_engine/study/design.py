"""The design of a study: which training sets and which seeds its runs have.

A study is a crossed design: every one of D draws of the training examples is trained with every one of S
seeds. Draw number d and seed number s mean the same in every study, so that two studies can be compared run by
run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from sft_engine import order
from sft_engine.errors import RecipeError
from sft_engine.sentences import choices, suggest

if TYPE_CHECKING:
    from sft_engine.settings import SeedSettings

Resample = Literal["bootstrap", "subsample", "kfold"]
Factor = Literal["init", "order", "noise", "data"]

FACTORS: tuple[Factor, ...] = get_args(Factor)
RESAMPLES: tuple[Resample, ...] = get_args(Resample)
SEEDS = ("init", "order", "noise")
"""Factors that a seed decides; `subset` stays: which examples are there is what `data` varies."""

DEFAULT = 4
"""Draws, and seeds: a study of sixteen runs."""

_DRAWS: Mapping[Resample, str] = {
    "bootstrap": "bootstrap",
    "subsample": "subsample",
    "kfold": "fold",
}


@dataclass(frozen=True, kw_only=True)
class Design:
    """Which runs a study consists of.

    Args:
        data: Draws of the training examples; with `kfold` the number of folds.
        seeds: Seeds.
        resample: How training examples are drawn: `bootstrap` as many with replacement, `subsample` a share
            of them without, `kfold` all but one fold. The test split is always the same, and so is the
            validation split: the fold that is left out is not used.
        vary: What differs between runs; all else is as in the recipe.
        share: Of the examples that `subsample` draws.
    """

    data: int
    seeds: int
    resample: Resample = "bootstrap"
    vary: tuple[Factor, ...] = FACTORS
    share: float = 0.632


def make_design(
    data: int | None = None,
    seeds: int | None = None,
    resample: str = "bootstrap",
    vary: Sequence[str] = FACTORS,
    share: float = 0.632,
) -> Design:
    """Check what a user asks for; what does not vary has one level.

    Raises:
        RecipeError: an unknown word, or counts that make no study.
    """
    _check_words("--resample", [resample], RESAMPLES)
    _check_words("--vary", vary, FACTORS)
    counts = {
        "data": _levels("data", data, varied="data" in vary, factors="data"),
        "seeds": _levels(
            "seeds", seeds, varied=any(n in vary for n in SEEDS), factors="init, order or noise"
        ),
    }
    found = Design(
        **counts,
        resample=resample,  # type: ignore[arg-type]  # checked above
        vary=tuple(name for name in FACTORS if name in vary),
        share=share,
    )
    if found.data * found.seeds < 2:  # noqa: PLR2004
        raise RecipeError(
            "one run shows nothing of how runs differ: set --data or --seeds to 2 or more"
        )
    if found.resample == "kfold" and "data" in found.vary and found.data < 2:  # noqa: PLR2004
        raise RecipeError(
            "--resample kfold leaves out one of --data folds: set --data to 2 or more"
        )
    return found


def _check_words(option: str, words: Sequence[str], allowed: Sequence[str]) -> None:
    for word in words:
        if word not in allowed:
            hint = suggest(word, allowed) or choices(allowed)
            raise RecipeError(f"{option}: found {word!r}; {hint}")


def _levels(name: str, count: int | None, *, varied: bool, factors: str) -> int:
    """Return how many draws or seeds there are."""
    if count is None:
        return DEFAULT if varied else 1
    if count < 1:
        raise RecipeError(f"--{name} {count}: allowed: 1 or more")
    if count > 1 and not varied:
        raise RecipeError(
            f"--{name} {count}, but --vary does not name {factors}: its runs would all be equal; name it, "
            f"or set --{name} 1"
        )
    return count


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Args:
        name: Of its folder in `runs/`.
        data: Number of the draw of training examples.
        seed: Number of the seed.
        init: Seed of new weights.
        order: Seed of the order of examples.
        noise: Seed of dropout, augmentation and the like.
    """

    name: str
    data: int
    seed: int
    init: int
    order: int
    noise: int

    def overrides(self, design: Design) -> list[str]:
        """Return what makes a recipe that of this cell, as `--set` takes it."""
        made = [f"seeds.{name}={getattr(self, name)}" for name in SEEDS]
        if "data" in design.vary:
            made += [f"data.draw={_DRAWS[design.resample]}", f"data.draw_number={self.data}"]
            if design.resample == "subsample":
                made.append(f"data.draw_share={design.share!r}")
            if design.resample == "kfold":
                made.append(f"data.draw_folds={design.data}")
        return made

    def as_dict(self) -> dict[str, Any]:
        """Return it as study.json holds it."""
        return asdict(self)


def cells_of(design: Design, settings: SeedSettings) -> list[Cell]:
    """Return the cells of a study, first all draws of the first seed.

    Seed number s is what a recipe with `seed = SEED + s` would derive, for the factors that vary; for
    the others it is the recipe's own. In this order a study that was stopped early has seen all draws.
    """
    own = _seeds(settings)
    made = []
    for seed in range(design.seeds):
        moved = _seeds(
            replace(settings, seed=settings.seed + seed, init=None, order=None, noise=None)
        )
        chosen = {name: moved[name] if name in design.vary else own[name] for name in SEEDS}
        made += [
            Cell(f"data-{data:02d}-seed-{seed:02d}", data, seed, **chosen)
            for data in range(design.data)
        ]
    return made


def _seeds(settings: SeedSettings) -> dict[str, int]:
    """Return the seeds as a run derives them."""
    return {
        name: own
        if (own := getattr(settings, name)) is not None
        else order.mix(settings.seed, order.name_key(name)) >> 1
        for name in SEEDS
    }
