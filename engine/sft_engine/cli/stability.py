"""`sft-engine stability`."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Any

import click

from sft_engine.cli.parameters import (
    json_option,
    recipe_argument,
    set_option,
    study_option,
    verb,
)
from sft_engine.cli.shown import new_console, say

if TYPE_CHECKING:
    from sft_engine.study import Study

DROP_AFTER = 0.3
"""Share of a run after which `--drop-hopeless` judges it."""


@verb
@recipe_argument
@set_option
@click.option(
    "--data",
    type=click.IntRange(min=1),
    help="Draws of the training examples.  [default: 4; 1 if --vary leaves data out]",
)
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    help="Seeds; every draw is trained with every seed.  [default: 4; 1 if --vary names data alone]",
)
@click.option(
    "--resample",
    type=click.Choice(["bootstrap", "subsample", "kfold"]),
    default="bootstrap",
    show_default=True,
    help="How training examples are drawn; the test split is always the same.",
)
@click.option(
    "--share",
    type=click.FloatRange(min=0, max=1, min_open=True, max_open=True),
    default=0.632,
    show_default=True,
    help="Of the examples that `subsample` draws.",
)
@click.option(
    "--vary",
    default="init,order,noise,data",
    show_default=True,
    metavar="FACTORS",
    help="What differs between runs, with commas between.",
)
@click.option(
    "--jobs", "-j", type=click.IntRange(min=1), default=None, help="Runs at a time.  [default: 1]"
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=None,
    help="Of each run.  [default: processors / jobs; with ray 1]",
)
@study_option
@click.option(
    "--drop-hopeless",
    is_flag=True,
    help=f"After {DROP_AFTER:.0%} of a run, stop it if it is clearly behind the others; it counts as failed.",
)
@click.option(
    "--executor",
    type=click.Choice(["local", "inline", "ray"]),
    default="local",
    show_default=True,
    help="Processes of this machine, this process, or a Ray cluster (extra `ray`).",
)
@click.option("--quiet", "-q", is_flag=True, help="Print the verdict alone.")
@json_option
def command(
    recipe: str,
    overrides: tuple[str, ...],
    output: str,
    *,
    vary: str,
    drop_hopeless: bool,
    quiet: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Train a recipe many times, with other training examples and seeds, and say how far that matters.

    Every run is a run folder in OUTPUT/runs; results are in OUTPUT/study.json and report.html. The same command
    goes on after an interruption or a kill: what has ended is not done again. Running it several times at once
    is allowed: all work on the same study.
    """
    from sft_engine import verbs
    from sft_engine.study import StudySettings

    console = new_console(quiet=quiet, as_json=as_json)
    given = {name: value for name, value in settings.items() if value is not None}
    found = verbs.stability(
        recipe,
        output=output,
        settings=StudySettings(
            vary=tuple(word.strip() for word in vary.split(",") if word.strip()),
            drop=DROP_AFTER if drop_hopeless else 0.0,
            **given,
        ),
        overrides=overrides,
        say=console.say,
    )
    if as_json:
        console.result(dataclasses.asdict(found))
        return
    if not quiet:
        _show(found)
    say(found.verdict if quiet else f"\n{found.verdict}\n{found.folder / 'report.html'}")


def _show(found: Study) -> None:
    """Print scores by data and seed, and the figures of the study."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from sft_engine.output import Output

    rich = Output(sys.stdout).rich()
    seeds = sorted({cell["seed"] for cell in found.cells})
    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in (str(found.results["metric"]), *(f"seed {seed}" for seed in seeds)):
        grid.add_column(Text(name))
    for data in sorted({cell["data"] for cell in found.cells}):
        row = [cell for cell in found.cells if cell["data"] == data]
        grid.add_row(f"data {data}", *(_cell(cell) for cell in row))
    figures = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, show_header=False)
    for name, text in _figures(found.results):
        figures.add_row(Text(name), Text(text))
    say("")
    rich.print(grid)
    rich.print(figures)


def _cell(cell: Any) -> str:
    score = "" if cell["score"] is None else f"{cell['score']:.4g}"
    return score if cell["state"] == "complete" else f"{cell['state']} {score}".strip()


def _figures(results: Any) -> list[tuple[str, str]]:
    score, failed, agreed = results["score"] or {}, results["failed"], results["agreement"] or {}
    variance, moves = results["variance"], results["instability"] or {}
    shares = variance.get("shares") or {}
    found = [
        *((name, score.get(name)) for name in ("mean", "sd", "least", "worst", "cvar")),
        ("failed runs", failed["value"]),
        ("failed runs, 95 % interval", (failed["low"], failed["high"])),
        *((f"variance from {name}", share) for name, share in shares.items()),
        ("disagreement of two runs", agreed.get("disagreement")),
        ("negative flips", agreed.get("negative_flips")),
        ("instability of examples", moves.get("mean")),
    ]
    return [(name, _text(value)) for name, value in found if value is not None]


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return " to ".join("-" if each is None else f"{each:.4g}" for each in value)
    return f"{value:.4g}"
