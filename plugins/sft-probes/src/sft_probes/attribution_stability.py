"""Whether the runs of a study owe their answers to the same parts of the inputs."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import rankdata

from sft_engine import sections

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

KEY = "attributions"
LEAST_STABLE = 12
"""Examples that are named."""
MOST_RUNS = 16
"""Runs of which a matrix can still be read."""
NAMED = 3
"""Parts of an example that are named."""
LEAST_PARTS = 2
"""Of an example whose parts can be put in an order."""

ALL = "all pairs of runs"
KINDS = ("other seed, same training data", "other training data, same seed", "both differ", ALL)


@dataclass(frozen=True)
class Compared:
    """One example as all runs explain it.

    Args:
        row: Its number.
        output: Which answer is explained.
        parts: Words, cells or columns.
        scores: (runs, parts).
    """

    row: int
    output: str
    parts: tuple[str, ...]
    scores: Floats


def rank_correlation(scores: Floats) -> Floats:
    """Return Spearman's correlation of each two rows (runs, parts); NaN where a row has one value alone."""
    ranks = rankdata(scores, axis=1)
    away = ranks - ranks.mean(axis=1, keepdims=True)
    lengths = np.sqrt((away**2).sum(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Floats = (away @ away.T) / np.outer(lengths, lengths)
    return found


def top_overlap(scores: Floats, top: int) -> Floats:
    """Return for each two rows (runs, parts) the share of the `top` parts with the largest scores, by size, in both.

    NaN where there are no more parts than that: all of them would be in both.
    """
    runs, parts = scores.shape
    if parts <= top:
        return np.full((runs, runs), np.nan)
    strongest = np.argsort(-np.abs(scores), axis=1, kind="stable")[:, :top]
    there = np.zeros((runs, parts))
    np.put_along_axis(there, strongest, 1.0, axis=1)
    found: Floats = there @ there.T / top
    return found


def compared(per_run: Sequence[Mapping[str, Any]]) -> list[Compared]:
    """Return the examples that every run explains, for the same answer and by the same parts.

    Args:
        per_run: What `report["probes"]["attributions"]` of each run says.
    """
    by_row = [{each["row"]: each for each in found[KEY]} for found in per_run]
    alike = []
    for row, first in by_row[0].items():
        all_ = [rows.get(row) for rows in by_row]
        same = all(
            each is not None
            and each["output"] == first["output"]
            and each["parts"] == first["parts"]
            and None not in each["scores"]
            for each in all_
        )
        if same and len(first["parts"]) >= LEAST_PARTS:
            scores = np.array([each["scores"] for each in all_ if each is not None], np.float64)
            alike.append(Compared(row, first["output"], tuple(first["parts"]), scores))
    return alike


def figures_of(
    found: Sequence[Compared], cells: Sequence[Mapping[str, Any]], top: int
) -> dict[str, Any]:
    """Return how far runs agree: by kind of pair, for each two runs, and for each example.

    Args:
        found: Examples.
        cells: Name, `data` and `seed` of each run.
        top: Parts that are looked at for the overlap.
    """
    correlations = np.array([rank_correlation(each.scores) for each in found])
    overlaps = np.array([top_overlap(each.scores, top) for each in found])
    pairs = list(itertools.combinations(range(len(cells)), 2))
    kinds = [_kind(cells[a], cells[b]) for a, b in pairs]
    by_pair = np.array([correlations[:, a, b] for a, b in pairs])
    shared = np.array([overlaps[:, a, b] for a, b in pairs])
    rows = {}
    for kind in KINDS:
        which = [place for place, each in enumerate(kinds) if kind in (each, ALL)]
        if which:
            rows[kind] = {"pairs": len(which), **_agreement(by_pair[which], shared[which])}
    return {
        "examples": len(found),
        "top": top,
        "kinds": rows,
        "runs": [str(cell["name"]) for cell in cells],
        "matrix": _means(correlations),
        "by_example": [
            {
                "row": each.row,
                "output": each.output,
                **_agreement(by_pair[:, place], shared[:, place]),
                "strongest": _strongest(each),
            }
            for place, each in enumerate(found)
        ],
    }


def _kind(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    if one["data"] == other["data"]:
        return KINDS[0]
    return KINDS[1] if one["seed"] == other["seed"] else KINDS[2]


def _agreement(correlations: Floats, overlaps: Floats) -> dict[str, float | None]:
    return {
        "spearman": _mean(correlations),
        "least_spearman": _least(correlations),
        "overlap": _mean(overlaps),
    }


def _known(values: Floats) -> Floats:
    known: Floats = values[np.isfinite(values)]
    return known


def _mean(values: Floats) -> float | None:
    known = _known(values)
    return float(known.mean()) if len(known) else None


def _least(values: Floats) -> float | None:
    known = _known(values)
    return float(known.min()) if len(known) else None


def _means(correlations: Floats) -> list[list[float | None]]:
    runs = correlations.shape[1]
    return [[_mean(correlations[:, a, b]) for b in range(runs)] for a in range(runs)]


def _strongest(each: Compared) -> dict[str, int]:
    """Return which parts are the strongest of a run, and in how many runs."""
    places = Counter(np.abs(each.scores).argmax(axis=1).tolist())
    counts: Counter[str] = Counter()
    for place, count in places.items():
        counts[each.parts[place]] += count
    return dict(counts.most_common(NAMED))


# --- The section ---------------------------------------------------------------------------------


def add_study_sections(folder: Path, study: Mapping[str, Any], report: dict[str, Any]) -> None:
    """Add a section for each probe `attributions` of the study's recipe.

    Args:
        folder: Of the study.
        study: study.json.
        report: Gets the section, and the figures under `probes`.
    """
    cells = [cell for cell in study["cells"] if cell["state"] == "complete"]
    probes = [(cell, _probes(folder / "runs" / cell["name"])) for cell in cells]
    for name in dict.fromkeys(name for _, found in probes for name in found):
        there = [(cell, found[name]) for cell, found in probes if name in found]
        alike = compared([found for _, found in there]) if there[1:] else []
        if not alike:
            continue
        figures = figures_of(alike, [cell for cell, _ in there], int(there[0][1]["top"]))
        report.setdefault("probes", {})[name] = figures
        summary = _summary(figures, there[0][1]["method"])
        title = "Do runs owe their answers to the same?"
        sections.add_section(report, name, title, _blocks(figures), summary=summary)


def _probes(run: Path) -> dict[str, Any]:
    """Return what a run says of its attributions, by the name of the probe."""
    path = run / "report.json"
    if not path.exists():
        return {}
    probes = json.loads(path.read_text(encoding="utf-8")).get("probes") or {}
    return {name: found for name, found in probes.items() if KEY in found}


def _summary(figures: Mapping[str, Any], method: str) -> str:
    kind = KINDS[0] if KINDS[0] in figures["kinds"] else ALL
    found = figures["kinds"][kind]
    if found["spearman"] is None:
        return f"By {method}; the runs leave nothing to put in an order."
    shared = "" if found["overlap"] is None else _shared(found["overlap"], figures["top"])
    return (
        f"By {method}, on {figures['examples']} examples: the orders in which two runs ({kind}) rank the parts of "
        f"an input correlate by {found['spearman']:.2f}{shared}. Reasons that change with the seed are not those "
        "of the data."
    )


def _shared(overlap: float, top: int) -> str:
    return f", and of the {top} strongest parts they share {overlap:.0%}"


def _blocks(figures: Mapping[str, Any]) -> list[sections.Block]:
    top = f"share of the {figures['top']} strongest in both"
    columns = ["pairs", "count", "Spearman, mean", "Spearman, least", top]
    rows = [
        [kind, each["pairs"], each["spearman"], each["least_spearman"], each["overlap"]]
        for kind, each in figures["kinds"].items()
    ]
    note = (
        "Of the scores for the true answer to each example; 1 is the same order. An example with no more parts "
        f"than {figures['top']} has no share."
    )
    blocks = [sections.table("Agreement of attributions", columns, rows, note=note)]
    names = figures["runs"]
    if len(names) <= MOST_RUNS:
        title = "Spearman's correlation of two runs, mean over examples"
        blocks.append(sections.matrix(title, names, names, figures["matrix"]))
    return [*blocks, _least_stable(figures)]


def _least_stable(figures: Mapping[str, Any]) -> sections.Block:
    ranked = sorted(
        figures["by_example"], key=lambda each: (each["spearman"] is None, each["spearman"] or 0)
    )
    rows = [
        [
            str(each["row"]),
            each["output"],
            each["spearman"],
            each["overlap"],
            ", ".join(f"{part} ({count})" for part, count in each["strongest"].items()),
        ]
        for each in ranked[:LEAST_STABLE]
    ]
    columns = ["row", "answer", "Spearman, mean", "overlap", "strongest part (runs)"]
    return sections.table("Least stable examples", columns, rows)
