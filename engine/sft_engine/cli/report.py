"""`sft-engine report`."""

from __future__ import annotations

import click

from sft_engine.cli.parameters import json_option, run_argument, verb
from sft_engine.cli.shown import new_console, say


@verb
@run_argument
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False),
    help="The file to write.  [default: RUN/report.html, or RUN/report.md with --md]",
)
@click.option(
    "--md", "markdown", is_flag=True, help="Write a Markdown summary instead of the page."
)
@click.option("--open", "opens", is_flag=True, help="Open it when it is written.")
@json_option
def command(run: str, output: str | None, *, markdown: bool, opens: bool, as_json: bool) -> None:
    """Write the report of a run: a page that opens offline, or Markdown.

    RUN is the folder of a run, a study or a comparison. The page is drawn anew from report.json, run.json
    and metrics.jsonl, so that it shows probes that were run since; of a run that has not ended it shows what
    there is.
    """
    from sft_engine import verbs

    path = verbs.report(run, output=output, markdown=markdown)
    if as_json:
        new_console(as_json=True).result({"run": run, "report": str(path)})
    else:
        say(str(path))
    if opens:
        click.launch(str(path))
