"""`sft-engine back-translate`: parsing and printing."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from sft_engine.cli.parameters import json_option, recipe_argument, set_option, verb
from sft_engine.cli.shown import new_console, say


@verb
@recipe_argument
@click.option(
    "--forward",
    required=True,
    metavar="MODEL",
    help="Into another language: hub id or local folder of a sequence-to-sequence model of transformers.",
)
@click.option(
    "--backward", required=True, metavar="MODEL", help="Back into the language of the texts."
)
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False),
    required=True,
    metavar="FILE",
    help="The file for `paraphrases`; what it holds already is left as it is.",
)
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Other wordings of each text; equal ones are kept once.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=0.9,
    show_default=True,
    help="Of sampling; 0 for the models' own search, which gives one wording.",
)
@click.option(
    "--prefixes",
    nargs=2,
    default=("", ""),
    metavar="THERE BACK",
    help='Put before each sentence, such as "translate English to German: " for T5.',
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Sentences of a forward pass.",
)
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@set_option
@click.option("--quiet", "-q", is_flag=True, help="Print the file alone.")
@json_option
def command(recipe: str, *, quiet: bool, as_json: bool, **options: Any) -> None:
    """Translate a recipe's training texts there and back into the file that `paraphrases` reads.

    Sentence by sentence, with sampled words. Interrupted, the same command goes on: texts that the file
    has are not translated again. What is held out for validation and test is not translated. Needs the
    extra `back-translation`.
    """
    from sft_augmentations.back_translation import back_translate

    console = new_console(quiet=quiet, as_json=as_json)
    filled = back_translate(recipe, say=console.say, **options)
    if as_json:
        console.result({**dataclasses.asdict(filled), "file": str(filled.file)})
    elif quiet:
        say(str(filled.file))
    else:
        new = filled.texts - filled.known
        say(
            f"{filled.file}: {filled.wordings} other wordings of {new} texts "
            f"({filled.known} were there, {filled.unchanged} came back as they were)"
        )
