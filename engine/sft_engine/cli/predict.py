"""`sft-engine predict`."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import click

from sft_engine.cli.ending import rank
from sft_engine.cli.files import whole_file
from sft_engine.cli.images import file_rows, rows_shown
from sft_engine.cli.parameters import output_option, run_argument, set_option, verb
from sft_engine.cli.rows import FORMATS, Row, joined, read_lines, read_rows, write_records
from sft_engine.errors import DataError

STDIN = "-"


@verb
@run_argument
@click.argument("texts", metavar="[TEXT]...", nargs=-1)
@click.option(
    "--file",
    "-f",
    type=click.Path(),
    help="Read rows from a txt (a text or a path a line), csv, tsv, jsonl or parquet file.",
)
@output_option
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    help="By default csv for an --output that ends in .csv, else jsonl.",
)
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=64, show_default=True, help="Rows a pass."
)
@click.option(
    "--explain",
    is_flag=False,
    flag_value="",
    default=None,
    metavar="[NAME]",
    help="Say which words, cells or columns each answer is owed to; NAME by default as in the recipe, else "
    "integrated-gradients. Without NAME it goes last, or before another option.",
)
@set_option
def command(
    run: str,
    texts: tuple[str, ...],
    file: str | None,
    output: str | None,
    form: str | None,
    *,
    overrides: tuple[str, ...],
    **settings: Any,
) -> None:
    """Predict with the final weights of a run: texts, images, recordings, a file, or standard input.

    Without TEXT and --file, or with `-`, reads standard input: a text a line, or a JSON object a line
    with the task's inputs by role or by the recipe's column (`{"text": ..., "text_pair": ...}`). Where
    the task is about images or recordings, TEXT is the path of one, or of a folder with some in it.

    Writes a line for each row, as soon as its batch is done: the row, the prediction, and probabilities
    (in csv the columns `p(LABEL)`). With --explain also what the answer is owed to, as `explanation`.
    """
    from sft_engine import verbs

    found = _rows(texts, file)
    role, column = verbs.file_column(run, overrides=overrides)
    if role:
        found = file_rows(found, role, column, file)
    rows, given = itertools.tee(found)
    given = rows_shown(given, role, column) if role else given
    records = joined(
        given,
        verbs.predict(run, rows, overrides=overrides, **settings),
        column or "text",
    )
    form = form or ("csv" if output and output.endswith(".csv") else "jsonl")
    with whole_file(output) if output else nullcontext(sys.stdout) as sink:
        count = write_records(records if not rank() else (), sink, form)
        if not count and not rank():
            raise DataError("there is nothing to predict: no TEXT, and no row that is not blank.")


def _rows(texts: tuple[str, ...], file: str | None) -> Iterator[Row]:
    if file and texts:
        raise click.UsageError("Give TEXT or --file, not both.")
    if file and file != STDIN:
        return read_rows(file)
    if texts and texts != (STDIN,):
        return iter(texts)
    if not texts and not file and sys.stdin.isatty():
        raise click.UsageError("Nothing to predict: give a TEXT, --file FILE, or pipe texts in.")
    return read_lines(sys.stdin.buffer, "standard input")
