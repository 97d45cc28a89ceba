"""`sft-engine schema`."""

from __future__ import annotations

from sft_engine.cli.files import whole_file
from sft_engine.cli.parameters import output_option, verb
from sft_engine.cli.shown import say


@verb
@output_option
def command(output: str | None) -> None:
    """Print the JSON Schema of recipes with every installed component.

    An editor with a TOML language server completes and checks recipes whose first line is the comment
    `#:schema FILE`.
    """
    import json

    from sft_engine.plugins import load_plugins
    from sft_engine.schema import schema

    text = json.dumps(schema(load_plugins()), indent=2, ensure_ascii=False)
    if output is None:
        say(text)
        return
    with whole_file(output) as file:
        file.write(text + "\n")
