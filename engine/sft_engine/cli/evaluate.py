"""`sft-engine evaluate`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sft_engine.cli.parameters import json_option, run_argument, set_option, verb
from sft_engine.cli.shown import new_console

if TYPE_CHECKING:
    from sft_engine.console import Console


@verb
@run_argument
@click.option("--split", default="test", show_default=True, help="Split of the recipe's data.")
@click.option(
    "--data",
    type=click.Path(),
    help="Evaluate this csv, tsv, jsonl or parquet file, with the recipe's columns, or this folder of "
    "images or recordings (a folder for each class), instead.",
)
@click.option(
    "--per-class",
    is_flag=True,
    help="Compute and print precision, recall, F1 and support of every class, however many.",
)
@set_option
@json_option
def command(
    run: str,
    split: str,
    data: str | None,
    overrides: tuple[str, ...],
    *,
    per_class: bool,
    as_json: bool,
) -> None:
    """Evaluate the final weights of a run on one of its splits or on other data.

    RUN is the run folder. Nothing in it is changed. Up to 20 classes are printed one by one, more with
    --per-class.
    """
    from sft_engine import verbs

    values = verbs.evaluate(run, split=split, data=data, overrides=overrides, per_class=per_class)
    console = new_console(as_json=as_json)
    if as_json:
        console.result({"run": run, "split": split, "data": data, "metrics": values})
        return
    _show(console, data or split, values, _label_names(Path(run)), per_class=per_class)


def _show(
    console: Console,
    title: str,
    values: Mapping[str, Any],
    names: tuple[str, ...],
    *,
    per_class: bool,
) -> None:
    """Print the plain view in full, and of each other view the metrics over all classes."""
    plain, views = _by_view(values)
    console.metrics(title, plain, names, per_class=per_class)
    for view, metrics in views.items():
        console.metrics(f"{title}, {view}", metrics)


def _by_view(
    values: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Tell `VIEW/METRIC` from `METRIC/CLASS`: without its first part, the former is a metric, too."""
    plain: dict[str, Any] = {}
    views: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        view, slash, metric = name.partition("/")
        if slash and metric in values:
            if "/" not in metric:
                views.setdefault(view, {})[metric] = value
        else:
            plain[name] = value
    return plain, views


def _label_names(folder: Path) -> tuple[str, ...]:
    facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return tuple(facts["label_names"])
