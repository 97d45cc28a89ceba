"""Read what is compared: finished run folders, studies, and several runs under one name."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from sft_engine.comparing.answers import Answers, read_answers
from sft_engine.errors import CheckpointError, DataError, RecipeError
from sft_engine.records import GIVEN_UP, HOPELESS

CLEAN = "clean"
"""What the plain view is called."""

Given = Sequence[str | Path] | Mapping[str, Sequence[str | Path]]


@dataclass(frozen=True)
class Member:
    """A finished run.

    Args:
        folder: Of the run.
        split: That it was evaluated on at the end.
        seeds: Of initialisation, order and noise.
        data: Hash of the training split: which resample of the data it saw.
        examples: Hash of the split that it was evaluated on.
        values: Metrics by view and name, as the run wrote them.
        sizes: Number of examples of a view, as the run wrote it.
        hopeless: Why its study stopped it early; empty if it trained to its end.
    """

    folder: Path
    split: str
    seeds: tuple[Any, ...]
    data: str
    examples: str
    values: Mapping[str, Mapping[str, float]]
    sizes: Mapping[str, int] = field(default_factory=dict)
    hopeless: str = ""

    @cached_property
    def views(self) -> tuple[str, ...]:
        """The views that there is anything about, the clean one first."""
        files = sorted((self.folder / "predictions" / self.split).glob("*.jsonl"))
        written = {_file_name(name) for name in self.values}
        others = [path.stem for path in files if path.stem not in written]
        return tuple(dict.fromkeys([CLEAN, *self.values, *others]))

    def answers(self, view: str) -> Answers | None:
        """Return the predictions in a view; None if they were not written."""
        if view not in self._read:
            folder = self.folder / "predictions"
            name = self.split if view == CLEAN else f"{self.split}/{_file_name(view)}"
            self._read[view] = read_answers(folder / f"{name}.jsonl")
        return self._read[view]

    @cached_property
    def _read(self) -> dict[str, Answers | None]:
        return {}


@dataclass(frozen=True)
class LeftOut:
    """A run of a study that counts in no figure.

    Args:
        run: Its name.
        why: `stopped as hopeless`, `failed` or `not finished`.
        reason: In the words of the run, without its advice; empty if it is not finished.
    """

    run: str
    why: str
    reason: str


@dataclass(frozen=True)
class Group:
    """Runs of one recipe that differ in seeds or training data; or a single run.

    Args:
        name: As the results call it.
        members: The runs.
        study: Whether they are of a study folder.
        left_out: Runs of the study that did not train to their end.
    """

    name: str
    members: tuple[Member, ...]
    study: bool = False
    left_out: tuple[LeftOut, ...] = field(default=())

    @property
    def planned(self) -> int:
        """How many runs there are, those that are left out among them."""
        return len(self.members) + len(self.left_out)


def read_groups(given: Given) -> list[Group]:
    """Read everything that is to be compared.

    Args:
        given: Run folders, study folders, or texts `NAME=RUN,RUN`; or lists of folders by name.

    Raises:
        CheckpointError: a folder holds no finished run or study.
        RecipeError: there are fewer than two, or two of one name.
    """
    named = _by_name(given)
    if len(named) < 2:  # noqa: PLR2004
        raise RecipeError(
            f"{len(named)} to compare: name at least two run folders, study folders or groups "
            "`NAME=RUN,RUN`"
        )
    return [_read_group(name, folders) for name, folders in named]


def _by_name(given: Given) -> list[tuple[str, list[Path]]]:
    if isinstance(given, Mapping):
        return [(name, [Path(each) for each in folders]) for name, folders in given.items()]
    split = [_split(each) for each in given]
    short = [name or folders[0].resolve().name for name, folders in split]
    names = [
        name if short.count(name) == 1 else own or str(folders[0])
        for name, (own, folders) in zip(short, split, strict=True)
    ]
    for name in names:
        if names.count(name) > 1:
            raise RecipeError(f"{name!r} is to be compared twice: give each a name, `NAME=RUN`")
    return list(zip(names, (folders for _, folders in split), strict=True))


def _split(text: str | Path) -> tuple[str, list[Path]]:
    """Read `NAME=RUN,RUN`, unless it is a folder."""
    if isinstance(text, Path) or Path(text).exists():
        return "", [Path(text)]
    name, equals, rest = text.partition("=")
    folders = rest if equals else text
    parts = [folders] if Path(folders).exists() else folders.split(",")
    if equals and (not name or not all(parts)):
        raise RecipeError(f"{text!r}: a group of runs is written `NAME=RUN,RUN`")
    return (name if equals else ""), [Path(each) for each in parts]


def _read_group(name: str, folders: Sequence[Path]) -> Group:
    studies = [folder for folder in folders if (folder / "study.json").exists()]
    if studies and folders[1:]:
        raise RecipeError(
            f"{name}: {studies[0]} is a study, a group of its own; name it alone, or its runs one by one"
        )
    if studies:
        return _read_study(name, studies[0])
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise RecipeError(f"{name}: the same run is named twice; a run counts once")
    return Group(name, tuple(read_member(folder) for folder in folders))


def _read_study(name: str, folder: Path) -> Group:
    if (folder / "trials").is_dir():
        raise CheckpointError(
            f"{folder} is a search of `sft-engine tune`, whose trials differ in more than their seeds: "
            f"compare run folders in {folder / 'trials'}"
        )
    begun = {path.name for path in (folder / "runs").glob("*") if path.is_dir()}
    planned = {cell["name"] for cell in _read_json(folder / "study.json").get("cells", ())}
    cells = {cell: left_out(folder / "runs" / cell) for cell in sorted(begun | planned)}
    odd = tuple(each for each in cells.values() if each is not None)
    if len(odd) == len(cells):
        raise CheckpointError(
            f"{folder} is a study without a run that trained to its end{_counted(odd)}: finish it with "
            "`sft-engine stability`, or leave it out"
        )
    members = tuple(read_member(folder / "runs" / cell) for cell in cells if cells[cell] is None)
    return Group(name, members, study=True, left_out=odd)


def left_out(folder: Path) -> LeftOut | None:
    """Say why a run of a study does not count; None if it trained to its end."""
    if (folder / "report.json").exists():
        reason = _hopeless(_read_json(folder / "report.json"))
        return LeftOut(folder.name, "stopped as hopeless", reason) if reason else None
    facts = _read_json(folder / "run.json") if (folder / "run.json").exists() else {}
    if facts.get("error") in GIVEN_UP:
        return LeftOut(folder.name, "failed", str(facts.get("message", "")).partition(": ")[0])
    return LeftOut(folder.name, "not finished", "")


def _hopeless(report: Mapping[str, Any]) -> str:
    """Return why a run was stopped as hopeless; empty if it was not."""
    reason = str(report.get("reason", ""))
    return reason.removeprefix(f"{HOPELESS}: ") if reason.startswith(HOPELESS) else ""


def said_of(odd: Sequence[LeftOut]) -> str:
    """Count what is left out: `1 stopped as hopeless, 2 failed`; a single cause needs no number."""
    causes = [each.why for each in odd]
    if len(set(causes)) == 1:
        return causes[0]
    return ", ".join(f"{causes.count(why)} {why}" for why in dict.fromkeys(causes))


def _counted(odd: Sequence[LeftOut]) -> str:
    return f" ({said_of(odd)})" if odd else ""


def read_member(folder: Path) -> Member:
    """Read a finished run.

    Raises:
        CheckpointError: the folder holds no run, or one that has not ended.
    """
    if not (folder / "run.json").exists():
        raise CheckpointError(
            f"{folder} is neither a run folder (it has no run.json) nor a study folder (no study.json)"
        )
    if not (folder / "report.json").exists():
        raise CheckpointError(
            f"{folder} has no report.json, its run has not ended: `sft-engine resume {folder}` finishes it"
        )
    facts, report = _read_json(folder / "run.json"), _read_json(folder / "report.json")
    split = str(report.get("split", ""))
    if not split:
        raise CheckpointError(
            f"{folder} was evaluated on no split, so there is nothing to compare: give the recipe "
            "`data.test`, and run it again"
        )
    seeds, data = facts.get("seeds", {}), facts.get("data", {})
    recorded = {
        record.get("view") or CLEAN: record
        for record in _evaluations(folder / "metrics.jsonl", split)
    }
    return Member(
        folder,
        split,
        tuple(seeds.get(name) for name in ("init", "order", "noise")),
        data.get("train", ""),
        data.get(split, ""),
        _values(recorded, report),
        {view: int(record.get("examples", 0)) for view, record in recorded.items()},
        _hopeless(report),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}): put it back, or run the recipe again"
        ) from error
    return value if isinstance(value, dict) else {}


def _values(
    recorded: Mapping[str, Mapping[str, Any]], report: Mapping[str, Any]
) -> dict[str, dict[str, float]]:
    """Return metrics by view: those of the report, and of other views what the run recorded last."""
    values: dict[str, dict[str, float]] = {CLEAN: {}}
    values |= {view: _scalars(each) for view, each in recorded.items() if view != CLEAN}
    scalars = _scalars(report.get("metrics", {}))
    for name, value in scalars.items():
        view, slash, metric = name.partition("/")
        # `VIEW/METRIC`, but not `METRIC/CLASS`: without its first part, the former is a metric, too.
        if slash and metric in scalars:
            values.setdefault(view, {})[metric] = value
        else:
            values[CLEAN][name] = value
    return values


def _evaluations(path: Path, split: str) -> Iterable[dict[str, Any]]:
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            if '"evaluation"' not in line:
                continue
            record = json.loads(line)
            if record.get("kind") == "evaluation" and record.get("split") == split:
                yield record


_FACTS = {"step", "epoch", "seconds", "examples"}


def _scalars(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: math.nan if value == "NaN" else float(value)
        for name, value in values.items()
        if name not in _FACTS and (isinstance(value, (int, float)) or value == "NaN")
    }


def _file_name(view: str) -> str:
    return view.replace("/", "-")


# --- The same examples? --------------------------------------------------------------------------


def require_same_examples(groups: Sequence[Group]) -> None:
    """Refuse runs that were not asked the same.

    Raises:
        DataError: splits, examples or labels differ between two runs, or predictions are missing.
    """
    members = [member for group in groups for member in group.members]
    first = members[0]
    for other in members[1:]:
        _require_same(first, other)


def _require_same(first: Member, other: Member) -> None:
    both = f"{first.folder} and {other.folder}"
    if first.split != other.split:
        raise DataError(
            f"{both} were judged on different splits ({first.split}, {other.split}): compare runs with "
            "the same `[data]`"
        )
    answers = first.answers(CLEAN), other.answers(CLEAN)
    why = _difference(*answers)
    if None in answers and "" in (first.examples, other.examples):
        why = "there are neither predictions nor fingerprints to tell by"
    if not why and first.examples != other.examples:
        why = "what stands in them is not the same (the fingerprints in run.json differ)"
    if why:
        raise DataError(
            f"{both} did not predict the same examples: {why}; compare runs whose {first.split} split "
            "is the same"
        )


def _difference(one: Answers | None, two: Answers | None) -> str:
    if one is None or two is None:
        return ""  # then only the fingerprints can tell
    if one.kind != two.kind:
        return f"one is {one.kind}, the other {two.kind}"
    if one.rows != two.rows:
        odd = set(one.rows) ^ set(two.rows)
        return f"{len(one.rows)} rows in one, {len(two.rows)} in the other, {len(odd)} in only one"
    if one.records != two.records:
        places = [
            row for row, a, b in zip(one.rows, one.records, two.records, strict=True) if a != b
        ]
        return f"the true labels of {len(places)} rows differ (row {places[0]} is the first)"
    return ""


def same_rows(answers: Sequence[Answers | None]) -> bool:
    """Say whether all predicted the same rows of a view."""
    if any(each is None for each in answers):
        return False
    first = answers[0]
    return not any(_difference(first, each) for each in answers[1:])
