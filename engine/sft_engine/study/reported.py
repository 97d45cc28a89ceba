"""The report of a study: sections, and the verdict in plain words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sft_engine import sections

Figures = Mapping[str, Any]
Inputs = Callable[[int], Mapping[str, Any]]
"""Returns what is shown of the example with this row number."""

SHAKY = 0.05
"""Share of examples on which two runs differ from which on the verdict calls single answers shaky."""

FEW = 0.1
"""Share below which a percentage has a decimal."""

_RESAMPLED = {
    "bootstrap": "bootstrap draws of the training examples",
    "subsample": "subsamples of the training examples",
    "kfold": "training sets with one fold left out",
}


def verdict(found: Figures) -> str:
    """Say in one sentence what the study shows."""
    runs, score = found["runs"], found["score"]
    if not score or score["mean"] is None:
        return f"No run of {runs['all']} reached a result that can be judged."
    parts = [
        (
            f"Over {score['runs']} runs {found['metric']} on the {found['split']} split is "
            f"{_short(score['mean'])}{_sd(score)}, at worst {_short(score['worst'])}"
        ),
        _failures(found),
        *_sources(found),
        *_changes(found),
    ]
    return "; ".join(parts) + "."


def _sd(score: Figures) -> str:
    return "" if score["sd"] is None else f" ± {_short(score['sd'])}"


def _failures(found: Figures) -> str:
    failed, runs = found["failed"], found["runs"]
    ended = runs["all"] - runs["open"]
    count = round((failed["value"] or 0.0) * ended)
    if not count:
        return f"none of {ended} runs failed (95 % interval up to {_percent(failed['high'])})"
    interval = f"{_percent(failed['low'])} to {_percent(failed['high'])}"
    return f"{count} of {ended} runs failed (95 % interval {interval})"


def _sources(found: Figures) -> Iterator[str]:
    shares = found["variance"].get("shares")
    if not shares or any(value is None for value in shares.values()):
        return
    yield (
        f"of the variance {_percent(shares['data'])} comes from the training data, "
        f"{_percent(shares['seed'])} from the seed and {_percent(shares['rest'])} from neither alone"
    )


def _changes(found: Figures) -> Iterator[str]:
    agreed = found["agreement"]
    if not agreed:
        return
    share = agreed["disagreement"]
    shaky = ", so single answers depend on chance" if share >= SHAKY else ""
    yield f"two runs differ on {_percent(share)} of the examples{shaky}"


def add_sections(report: dict[str, Any], found: Figures, study: Figures, inputs: Inputs) -> None:
    """Add the sections of a study to its report.

    Args:
        report: Gets `sections`.
        found: What `results_of` returned.
        study: study.json.
        inputs: Shows examples.
    """
    blocks = [_summary(found), *_cells(study)]
    sections.add_section(report, "runs", "Runs", blocks, summary=_about(study))
    variance = list(_variance(found))
    sections.add_section(report, "variance", "Where the variance comes from", variance)
    agreed = list(_agreement(found))
    if agreed:
        summary = "Runs of equal score may give different answers; this is how many."
        sections.add_section(report, "agreement", "Agreement of runs", agreed, summary=summary)
    shaky = list(_shakiest(found, inputs))
    if shaky:
        summary = "The examples whose answer depends most on which run is asked."
        sections.add_section(report, "shakiest", "Shakiest examples", shaky, summary=summary)
    weights = list(_weights(found))
    if weights:
        sections.add_section(report, "weights", "Weights and representations", weights)


def _about(study: Figures) -> str:
    design = study["terms"]["design"]
    data, seeds = design["data"], design["seeds"]
    drawn = (
        f"{data} {_RESAMPLED[design['resample']]}"
        if "data" in design["vary"]
        else "one training set"
    )
    varied = [name for name in design["vary"] if name != "data"]
    seeded = f"{seeds} seeds of {', '.join(varied)}" if varied else "one seed"
    return (
        f"{drawn.capitalize()}, crossed with {seeded}; the test split is always the same. Path: "
        f"{study.get('path', '')}"
    )


def _summary(found: Figures) -> sections.Block:
    score, failed, runs = found["score"] or {}, found["failed"], found["runs"]
    rows: list[list[Any]] = [
        [label, score.get(key)]
        for label, key in (
            ("mean", "mean"),
            ("standard deviation", "sd"),
            ("smallest", "least"),
            ("largest", "largest"),
            ("interquartile range", "iqr"),
            ("worst", "worst"),
            ("mean of the worst fifth (CVaR)", "cvar"),
        )
    ]
    rows.append(["best constant answer", failed["constant"]])
    rows += [
        ["share of failed runs", failed["value"]],
        ["share of failed runs, low", failed["low"]],
        ["share of failed runs, high", failed["high"]],
    ]
    note = (
        f"Scores are of the {runs['complete']} runs that trained to their end. Failed is a run that is no better "
        "than the best constant answer, that diverged, or that was stopped as hopeless; interval: Wilson, 95 %."
    )
    title = f"{found['metric']} on the {found['split']} split"
    return sections.table(title, ["figure", "value"], rows, note=note)


def _cells(study: Figures) -> Iterator[sections.Block]:
    design = study["terms"]["design"]
    cells = {(each["data"], each["seed"]): each for each in study["cells"]}
    rows = [f"data {data}" for data in range(design["data"])]
    columns = [f"seed {seed}" for seed in range(design["seeds"])]
    values = [
        [cells[data, seed]["score"] for seed in range(design["seeds"])]
        for data in range(design["data"])
    ]
    yield sections.matrix("Score of each run", rows, columns, values)
    odd = [each for each in study["cells"] if each["state"] != "complete"]
    if odd:
        listed = [[each["name"], each["state"], each["reason"]] for each in odd]
        yield sections.table("Runs without a full result", ["run", "state", "reason"], listed)


def _variance(found: Figures) -> Iterator[sections.Block]:
    split = found["variance"]
    if "missing" in split:
        yield sections.text(f"The variance cannot be split: {split['missing']}.")
        return
    rows = [
        [name, split[name]["value"], split[name]["low"], split[name]["high"], split["shares"][name]]
        for name in ("data", "seed", "rest")
    ]
    note = (
        "Crossed random effects, estimated by the analysis of variance; 95 % limits. The rest is what data and "
        "seed do together, and chance that no seed decides."
    )
    if split["negative"]:
        note += f" Estimated below zero, and set to zero: {', '.join(split['negative'])}."
    columns = ["source", "variance", "low", "high", "share"]
    yield sections.table("Variance components", columns, rows, note=note)
    names = ["training data", "seed", "rest"]
    shares = [split["shares"][name] for name in ("data", "seed", "rest")]
    if None not in shares:
        yield sections.bars("Share of the variance", names, shares, label="share")


def _agreement(found: Figures) -> Iterator[sections.Block]:
    moves, agreed = found["instability"], found["agreement"]
    rows: list[list[Any]] = []
    if agreed:
        rows += [
            ["examples on which two runs differ (churn), mean", agreed["disagreement"]],
            ["the same, the two runs that differ most", agreed["largest_disagreement"]],
            ["the least that their scores allow, mean", agreed["least_disagreement"]],
            ["negative flips: right in one, wrong in the other, mean", agreed["negative_flips"]],
            ["negative flips, most", agreed["most_negative_flips"]],
            ["Fleiss' kappa", agreed["kappa"]],
        ]
        if "jensen_shannon" in agreed:
            rows.append(["Jensen-Shannon divergence of two runs, mean", agreed["jensen_shannon"]])
    if moves:
        rows += [
            ["instability of an example, mean (MIS)", moves["mean"]],
            ["instability, median", moves["median"]],
            ["instability, ninth decile", moves["ninth_decile"]],
        ]
    if rows:
        yield sections.table("Agreement", ["figure", "value"], rows)
    if agreed:
        names = [each.replace("data-", "d").replace("-seed-", " s") for each in agreed["names"]]
        yield sections.matrix(
            "Share of examples on which two runs differ", names, names, agreed["matrix"]
        )


def _shakiest(found: Figures, inputs: Inputs) -> Iterator[sections.Block]:
    rows = []
    for each in found["shakiest"]:
        row = {**inputs(each["row"]), "row": each["row"], "true": _written(each["label"])}
        if each["answers"] is not None:
            said = ", ".join(f"{name} {count}" for name, count in each["answers"].items())
            row |= {"answers": said, "disagreement": each["disagreement"]}
        rows.append({**row, "instability": each["instability"]})
    columns = list(dict.fromkeys(name for row in rows for name in row if name != "image"))
    if rows:
        yield sections.examples("Shakiest examples", columns, rows)


def _weights(found: Figures) -> Iterator[sections.Block]:
    drift, cka = found["drift"], found["cka"]
    if drift:
        parts = {"all but the last group": drift["trunk"], **drift["groups"]}
        rows = [[name, each["mean"], each["sd"]] for name, each in parts.items() if each]
        note = "|end - start| / |start|. The start of a new head is noise."
        yield sections.table("Drift of weights", ["layer group", "mean", "sd"], rows, note=note)
    if cka:
        rows = [["mean", cka["mean"]], ["least", cka["least"]]]
        note = (
            f"Linear CKA of what enters the last layer, {cka['examples']} test examples and {cka['features']} "
            f"features, {cka['pairs']} pairs of runs; 1 is alike."
        )
        yield sections.table("Likeness of representations", ["over pairs", "CKA"], rows, note=note)


def _written(label: Any) -> str:
    if isinstance(label, list):
        return ", ".join(map(str, label)) or "none"
    if isinstance(label, dict):
        return ", ".join(f"{name} {value:.4g}" for name, value in label.items())
    return str(label)


def _short(value: float) -> str:
    return f"{value:.3g}"


def _percent(share: float) -> str:
    return f"{100 * share:.{0 if share >= FEW else 1}f} %"
