"""Draw rows: validation and test splits where a source has none, subsets, and rows drawn again.

Everything draws with `order.permutation` from a seed of its own, so that the same recipe gets the same
test split in every run of a study, on every machine, with every version of every library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sft_engine import order
from sft_engine.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

    from sft_engine.components import Task
    from sft_engine.settings import DataSettings

    Ids = NDArray[np.int64]


def hold_out(splits: dict[str, Dataset], settings: DataSettings, task: Task) -> dict[str, Dataset]:
    """Draw the test split, then the validation split, from training where the source lacks them.

    Raises:
        DataError: a split would be empty, or take all of the training rows or of a class.
    """
    train = splits["train"]
    total, left = len(train), np.arange(len(train))
    strata = _strata(train, settings, task)
    drawn = {}
    for name, amount in (("test", settings.test), ("validation", settings.validation)):
        if name in splits or not amount:
            continue
        count = amount_of(amount, total, name)
        classes = None if strata is None else strata[left]
        seed = order.mix(settings.split_seed, order.name_key(name))
        _check_held_out(count, len(left), classes, f"{name} = {amount:g}")
        held = choose(len(left), count, seed, classes, leave_one=True)
        drawn[name] = left[held]
        left = np.delete(left, held)
    if not drawn:
        return splits
    selected = {name: train.select(ids) for name, ids in drawn.items()}
    return splits | selected | {"train": train.select(left)}


def amount_of(amount: float, total: int, key: str) -> int:
    """Return how many of `total` rows a share (below 1) or a number of rows is.

    Raises:
        DataError: it is none, or more than there are.
    """
    count = int(amount * total + 0.5) if amount < 1 else int(amount)
    if count == 0:
        raise DataError(f"[data] {key} = {amount:g} of {total} rows is no row; raise it, or set 0.")
    if count > total:
        raise DataError(f"[data] {key} = {count}: there are only {total} training rows.")
    return count


def _check_held_out(count: int, total: int, classes: Ids | None, where: str) -> None:
    if count >= total:
        raise DataError(f"[data] {where} leaves none of {total} rows to train on; lower it.")
    if classes is None:
        return
    sizes = np.bincount(classes - classes.min())
    number = int((sizes > 0).sum())
    if count < number:
        raise DataError(
            f"[data] {where} holds out {count} rows, fewer than the {number} classes; raise it to "
            f"{number} rows or more, or set stratify = false."
        )
    if count > np.maximum(sizes - 1, 0).sum():
        raise DataError(
            f"[data] {where} holds out {count} of {total} rows, which leaves some of the {number} "
            "classes without a training row; lower it, or set stratify = false."
        )


def _strata(rows: Dataset, settings: DataSettings, task: Task) -> Ids | None:
    """Return a number for each row, equal where classes are, or None if there are no classes."""
    read = getattr(task, "strata", None)
    if not settings.stratify or read is None:
        return None
    strata: Ids | None = read(rows)
    return strata


def choose(
    n: int, count: int, seed: int, strata: Ids | None = None, *, leave_one: bool = False
) -> Ids:
    """Draw `count` of the numbers 0..n-1 without replacement, and return them in order.

    Args:
        n: How many there are.
        count: How many to draw.
        seed: Decides, together with n and the strata, and nothing else does.
        strata: The class of each number; classes are drawn in proportion to their size.
        leave_one: Leave at least one of each class; else draw at least one where count allows.
    """
    ids = order.permutation(n, seed, 0)
    if strata is None:
        return np.sort(ids[:count])
    _, classes, sizes = np.unique(strata, return_inverse=True, return_counts=True)
    quotas = _quotas(sizes, count, leave_one=leave_one)
    shuffled = classes[ids]
    grouped = np.argsort(shuffled, kind="stable")
    place = np.empty(n, dtype=np.int64)
    place[grouped] = np.arange(n) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(ids[place < quotas[shuffled]])


def _quotas(sizes: Ids, count: int, *, leave_one: bool) -> Ids:
    """Return how many to draw of each class: in proportion, by largest remainder, within limits."""
    exact = sizes * (count / sizes.sum())
    most = np.maximum(sizes - 1, 0) if leave_one else sizes
    least = np.zeros_like(sizes) if leave_one or count < len(sizes) else np.minimum(sizes, 1)
    quotas: Ids = np.clip(np.floor(exact).astype(np.int64), least, most)
    while quotas.sum() != count:
        short = quotas.sum() < count
        wanted = np.where(quotas < most, exact - quotas, -np.inf)
        excess = np.where(quotas > least, quotas - exact, -np.inf)
        quotas[np.argmax(wanted if short else excess)] += 1 if short else -1
    return quotas


def reduced(train: Dataset, settings: DataSettings, task: Task, seed: int) -> Dataset:
    """Apply `subset`, then `draw`, then `resample`, to the training split.

    Raises:
        DataError: `subset` is no row, or more than there are; or rows have no classes to balance.
    """
    if settings.subset:
        count = amount_of(settings.subset, len(train), "subset")
        train = train.select(choose(len(train), count, seed, _strata(train, settings, task)))
    if settings.draw != "all":
        train = train.select(drawn(len(train), settings, _strata(train, settings, task)))
    if settings.resample == "bootstrap":
        ones = np.ones(len(train))
        return train.select(np.sort(order.draw(ones, len(train), order.mix(seed, 1), 0)))
    if settings.resample == "balanced":
        return train.select(_balanced(train, task, seed))
    return train


def drawn(n: int, settings: DataSettings, strata: Ids | None = None) -> Ids:
    """Return which of the numbers 0..n-1 a run of a study sees, in order; a bootstrap repeats some.

    A pure function of the settings: draw number, split seed and nothing else decides. No class is lost.

    Args:
        n: How many training examples there are.
        settings: `draw` and what belongs to it.
        strata: The class of each example; each is drawn from by itself.

    Raises:
        DataError: there is no such fold, or too few examples.
    """
    seed = order.mix(settings.split_seed, order.name_key(settings.draw))
    if settings.draw == "fold":
        return _all_but_fold(n, settings, seed, strata)
    seed = order.mix(seed, settings.draw_number)
    if settings.draw == "subsample":
        return choose(n, amount_of(settings.draw_share, n, "draw_share"), seed, strata)
    classes = np.zeros(n, dtype=np.int64) if strata is None else strata
    parts = (np.flatnonzero(classes == each) for each in np.unique(classes))
    draws = [
        part[order.draw(np.ones(len(part)), len(part), order.mix(seed, index), 0)]
        for index, part in enumerate(parts)
    ]
    return np.sort(np.concatenate(draws))


def _all_but_fold(n: int, settings: DataSettings, seed: int, strata: Ids | None) -> Ids:
    """Leave out every `draw_folds`th example of a shuffled row of them, class after class."""
    folds, number = settings.draw_folds, settings.draw_number
    if number >= folds or folds > n:
        raise DataError(
            f"[data] draw_number = {number} of draw_folds = {folds}: there are folds 0 to {folds - 1}, and "
            f"{n} training rows; choose one of them."
        )
    ids = order.permutation(n, seed, 0)
    if strata is not None:
        ids = ids[np.argsort(strata[ids], kind="stable")]
    left_out = ids[number::folds]
    if strata is not None:  # the only one of its class stays
        _, places, sizes = np.unique(strata, return_inverse=True, return_counts=True)
        left_out = left_out[sizes[places[left_out]] > 1]
    return np.setdiff1d(np.arange(n), left_out)


def _balanced(train: Dataset, task: Task, seed: int) -> Ids:
    """Repeat rows of the smaller classes until every class has as many rows as the largest one."""
    read = getattr(task, "strata", None)
    strata = None if read is None else read(train)
    if strata is None:
        raise DataError(
            '[data] resample = "balanced" needs one class a row, and this task has none; use "none" '
            'or "bootstrap".'
        )
    ids = order.permutation(len(train), order.mix(seed, 2), 0)
    _, classes, sizes = np.unique(strata[ids], return_inverse=True, return_counts=True)
    members = (ids[classes == index] for index in range(len(sizes)))
    repeated: Ids = np.concatenate([np.resize(each, sizes.max()) for each in members])
    repeated.sort()
    return repeated
