"""Which runs may be averaged: finished ones of one architecture, one task and one start."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_engine import RecipeError
from sft_engine.verbs import finished_run
from sft_regularizers.soups import first_difference, shapes_of

if TYPE_CHECKING:
    from sft_engine.catalog import Plan

CHANGE_THE_START = ("re-init", "noisy-tune")
"""Components of this package that change the weights before the first step."""

HELD_OUT = ("validation", "test")


@dataclass(frozen=True)
class Member:
    """A finished run.

    Args:
        folder: Its run folder.
        plan: Its recipe.
        labels: What training called the outputs.
        facts: Its run.json.
    """

    folder: Path
    plan: Plan
    labels: tuple[str, ...]
    facts: Mapping[str, Any]

    @property
    def model(self) -> Path:
        """Where its weights are."""
        return self.folder / "model"

    def table(self, kind: str) -> dict[str, Any]:
        """Return a table of its recipe."""
        return dict(self.plan.recipe.tables.get(kind, {}))


def read_members(folders: Sequence[Path], overrides: Sequence[str]) -> list[Member]:
    """Read the runs, of which there must be two or more, each once.

    Raises:
        RecipeError: there are fewer, or one is named twice.
        CheckpointError: one holds no run, or one that has not ended.
    """
    if len(folders) < 2:  # noqa: PLR2004
        found = ", ".join(map(str, folders)) or "none"
        raise RecipeError(f"a soup is of two runs or more, found: {found}; name more run folders")
    for index, folder in enumerate(folders):
        if folder.resolve() in {each.resolve() for each in folders[:index]}:
            raise RecipeError(f"{folder} is named twice: it would count double, name each run once")
    members = []
    for folder in folders:
        planned, labels = finished_run(folder, overrides)
        facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        members.append(Member(folder, planned, labels, facts))
    return members


def check_alike(members: Sequence[Member], *, different_start: bool) -> None:
    """Refuse runs whose weights have no common meaning, or that were not tested on the same rows.

    Args:
        members: The runs.
        different_start: Accept other start weights, or another seed of the head.

    Raises:
        RecipeError: naming the first two that differ, and in what.
    """
    first = members[0]
    for other in members[1:]:
        for problem in _differences(first, other):
            raise RecipeError(problem)
        if not different_start:
            for problem in _other_start(first, other):
                raise RecipeError(
                    f"{problem}; the mean of weights says something only between runs of one start: leave "
                    "the run out, or add --allow-different-start"
                )


def _differences(one: Member, other: Member) -> Iterator[str]:
    """Yield what no option allows."""
    pair = f"{one.folder} and {other.folder}"
    tasks = [each.table("task").get("use") for each in (one, other)]
    if tasks[0] != tasks[1]:
        yield f"{pair} have other tasks ({tasks[0]}, {tasks[1]}): a soup is of runs of one task"
    if sorted(one.labels) != sorted(other.labels):
        yield f"{pair} have other classes ({_listed(one)}; {_listed(other)}): a soup is of runs with the same"
    if one.labels != other.labels:
        yield (
            f"{pair} have the same classes in another order ({_listed(one)}; {_listed(other)}): train them "
            "with the same data.label_names"
        )
    shapes = shapes_of(one.model), shapes_of(other.model)
    name = first_difference(*shapes)
    if name:
        found = " and ".join(str(each.get(name, ("nothing",))[0]) for each in shapes)
        yield f"{pair} have other architectures: {found} in {name}; a soup is of runs of one architecture"
    key = first_difference(*(_settings(each) for each in (one, other)))
    if key:
        yield f"{pair} have other models: `{key}` in model/config.json differs; leave one out"
    for split in HELD_OUT:
        rows = [each.facts.get("data", {}).get(split) for each in (one, other)]
        if rows[0] != rows[1]:
            yield (
                f"{pair} have other {split} rows, so that one may have learnt what the other is tested on: "
                "train them with the same [data]"
            )


def _listed(member: Member) -> str:
    return ", ".join(member.labels[:10])


def _settings(member: Member) -> dict[str, Any]:
    """Return what the saved model's configuration says, but for dropout, versions and where it was."""
    path = member.model / "config.json"
    if not path.exists():
        return {}
    found: dict[str, Any] = _pruned(json.loads(path.read_text(encoding="utf-8")))
    return found


def _pruned(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    kept = {k: v for k, v in value.items() if not ("drop" in k or "version" in k or k[:1] == "_")}
    return {key: _pruned(each) for key, each in kept.items()}


def _other_start(one: Member, other: Member) -> Iterator[str]:
    """Yield in what the starts of two runs differ, as far as their recipes tell."""
    tables = one.table("backbone"), other.table("backbone")
    key = first_difference(*({k: v for k, v in t.items() if "drop" not in k} for t in tables))
    if key:
        found = " and ".join(repr(table.get(key, "not set")) for table in tables)
        yield f"{one.folder} and {other.folder} began with other weights: backbone.{key} is {found}"
    seeds = [each.facts.get("seeds", {}).get("init") for each in (one, other)]
    if seeds[0] != seeds[1]:
        yield (
            f"{one.folder} and {other.folder} began with other heads: seeds.init is {seeds[0]} and "
            f"{seeds[1]} (to vary the rest alone, set seeds.order and seeds.noise, not seed)"
        )
    if _changes(one) != _changes(other):
        yield (
            f"{one.folder} and {other.folder} began with other weights: only one of them has the same "
            f"{' or '.join(CHANGE_THE_START)}"
        )


def _changes(member: Member) -> list[Any]:
    tables = member.plan.recipe.tables.get("regularizer", ())
    return [dict(table) for table in tables if table.get("use") in CHANGE_THE_START]
