"""Write the pages of docs/reference/ from the code; `--check` only says which are out of date.

Each page is a function that returns Markdown; `PAGES` names them. The text comes from docstrings and
signatures, so a wrong sentence is corrected in the code.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sft_engine import errors, hookspecs
from sft_engine.cli import cli
from sft_engine.cli.ending import BY_CTRL_C
from sft_engine.components import KINDS, SINGLE_KINDS
from sft_engine.drafts import RECIPE_KINDS
from sft_engine.options import Signature, allowed, signature_of
from sft_engine.plugins import load_plugins
from sft_engine.recipe import show_value

if TYPE_CHECKING:
    from sft_engine.entries import Entry

REFERENCE = Path(__file__).parent / "reference"
NOTICE = (
    "<!-- Written by docs/generate.py from the code: change the code, then run `make docs`. -->\n"
)


# --- Hooks -------------------------------------------------------------------------------------------


def hooks_page() -> str:
    """Return the hook reference: the groups of hookspecs.py in their order, one heading a hook."""
    source = inspect.getsource(hookspecs)
    parts = ["# Hooks", _paragraphs(inspect.getdoc(hookspecs) or "")]
    for title, body in _groups(source):
        parts.append(f"## {title}")
        parts += [_hook(function) for function in _hooks_in(body)]
    return "\n\n".join(parts)


def _groups(source: str) -> Iterator[tuple[str, str]]:
    """Split a module at its banner comments, `# --- Title ---`."""
    _, *pieces = re.split(r"^# --- (.+?) -+$", source, flags=re.MULTILINE)
    yield from zip(pieces[::2], pieces[1::2], strict=True)


def _hooks_in(source: str) -> list[ast.FunctionDef]:
    return [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]


def _hook(function: ast.FunctionDef) -> str:
    summary, _, rest = (ast.get_docstring(function) or "").partition("\n\n")
    names = ", ".join(argument.arg for argument in function.args.args)
    typed = f"{function.name}({ast.unparse(function.args)}) -> {ast.unparse(function.returns)}"
    facts = [f"- *{label}*: {text}" for label, text in _facts(rest)]
    return "\n\n".join(
        [f"### `{function.name}({names})`", summary, f"```python\n{typed}\n```", "\n".join(facts)]
    )


def _facts(text: str) -> Iterator[tuple[str, str]]:
    """Read the labelled sentences of a hook's docstring: `When: … Ranks: … May change: …`."""
    _, *pieces = re.split(r"\b(When|Ranks|May change|Returns): ", " ".join(text.split()))
    for label, sentence in zip(pieces[::2], pieces[1::2], strict=True):
        yield label, sentence.strip()


# --- Exit codes --------------------------------------------------------------------------------------


def exit_codes_page() -> str:
    """Return the table of exit codes: the exceptions of errors.py, and what no exception stands for."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    rows = [(0, "", "Done.")]
    rows += [(kind.exit_code, f"`{kind.__name__}`", _first_line(kind)) for kind in kinds]
    rows += [(click.UsageError.exit_code, "", "The command line is wrong.")]
    rows += [(BY_CTRL_C, "", "Ctrl-C outside of training.")]
    rows = [(str(code), *rest) for code, *rest in sorted(rows, key=lambda row: row[0])]
    table = _table(("code", "exception", "meaning"), rows)
    return f"# Exit codes\n\n{EXIT_CODES}\n\n{table}\n\n{REQUEUE}"


EXIT_CODES = (
    "Every command of `sft-engine` returns one of these. A problem that you can act on is one sentence "
    "on standard error; any other exception is a bug of the engine or of a plugin, shows its traceback "
    "and returns 1. In Python the same problems are exceptions of `sft_engine`, named in the table."
)
REQUEUE = (
    "75 is the code that asks a scheduler to queue the job again (`EX_TEMPFAIL`); `sft-engine resume "
    "FOLDER` goes on from the checkpoint. **Launchers of several processes return 1 whatever their "
    "processes return**: read `status` and `exit_code` in the folder's `run.json`; see "
    "[More than one process](../multi-process.md)."
)


def _first_line(kind: type) -> str:
    return (inspect.getdoc(kind) or "").splitlines()[0]


# --- Recipes and components --------------------------------------------------------------------------

RECIPES = """# Recipes

A recipe is a TOML file. It names components, one `[table]` for each of these kinds:

{single}

and any number of `[[tables]]` for each of these:

{many}

`use` is the component's name; every other key is an [option of that component](components.md).
`[task]`, `[data]` and `[backbone]` must be there; without `[optimizer]` and `[schedule]` a recipe gets AdamW
and a linear schedule with warm-up. `extends = "base.toml"` inherits all keys of another recipe.
The tables below belong to the engine; `[data]` and `[[stream]]` hold keys of the engine and of the data
component. [Phases and streams](../phases.md) says what the last two are for."""


def recipes_page() -> str:
    """Return the recipe reference: the kinds, and the engine's own tables."""
    single, many = (
        _table(
            ("kind", "what it is"),
            [(f"`{k}`", KINDS[k]) for k in RECIPE_KINDS if (k in SINGLE_KINDS) is one],
        )
        for one in (True, False)
    )
    parts = [RECIPES.format(single=single, many=many)]
    for title, name in ENGINE_TABLES.items():
        signature = signature_of(f"sft_engine.settings:{name}")
        parts += [f"## {title}", signature.summary, _options(signature)]
    return "\n\n".join(parts)


ENGINE_TABLES = {
    "`[train]`": "TrainSettings",
    "`[evaluation]`": "EvaluationSettings",
    "`[checkpoint]`": "CheckpointSettings",
    "`[data]`": "DataSettings",
    "`[[stream]]`": "StreamSettings",
    "`[[phase]]`": "PhaseSettings",
    "`seed` and `[seeds]`": "SeedSettings",
}


def components_page() -> str:
    """Return the component reference: what this repository's distributions add to the catalog."""
    entries = [
        e for e in load_plugins().catalog.entries() if e.distribution in _own_distributions()
    ]
    parts = ["# Components", "What a recipe can name, by kind; `sft-engine plugins` lists yours."]
    for kind, summary in KINDS.items():
        found = [entry for entry in entries if entry.kind == kind]
        if found:
            parts += [f"## {kind}", f"{summary[0].upper()}{summary[1:]}."]
            parts += [_component(entry) for entry in found]
    return "\n\n".join(parts)


def _own_distributions() -> set[str]:
    root = Path(__file__).parents[1]
    projects = [root / "pyproject.toml", *root.glob("plugins/*/pyproject.toml")]
    return {tomllib.loads(path.read_text("utf-8"))["project"]["name"] for path in projects}


def _component(entry: Entry) -> str:
    heading = f"### {entry.kind} `{entry.name}`"
    origin = f"{entry.summary} *({entry.distribution})*"
    if entry.kind == "weights":
        return f"{heading}\n\n{origin}"
    return f"{heading}\n\n{origin}\n\n{_options(signature_of(entry.target))}"


def _options(signature: Signature) -> str:
    rows = [
        (
            f"`{option.name}`",
            allowed(option.annotation),
            "*needed*" if option.required else f"`{_toml(option.default)}`",
            option.help,
        )
        for option in signature.options
    ]
    if signature.open:
        rows += [("…", "", "", "Any further option is passed on.")]
    return _table(("option", "allowed", "default", ""), rows) if rows else "No options."


def _toml(value: object) -> str:
    return "not set" if value is None else show_value(value)


# --- Commands ----------------------------------------------------------------------------------------


def commands_page() -> str:
    """Return the command line's reference: the help of each verb, those of our plugins last."""
    parts = ["# Command line", *_helps(cli, "sft-engine")]
    for name, (command, owner) in _plugin_verbs().items():
        parts += [f"## {name}", f"*({owner})*", *_helps(command, f"sft-engine {name}")]
    return "\n\n".join(parts)


def _plugin_verbs() -> dict[str, tuple[click.Command, str]]:
    """Return the verbs of this repository's plugins, with the distribution of each."""
    found: dict[str, tuple[click.Command, str]] = {}
    own = _own_distributions()
    for loaded in load_plugins().loaded:
        if loaded.distribution in own and hasattr(loaded.plugin, "sft_cli"):
            group = click.Group()
            loaded.plugin.sft_cli(group)
            found |= {name: (each, loaded.distribution) for name, each in group.commands.items()}
    return dict(sorted(found.items()))


def _helps(command: click.Command, path: str) -> Iterator[str]:
    """Yield the help of a command, then of those below it."""
    context = command.make_context(path, [], resilient_parsing=True, terminal_width=100)
    yield f"```text\n{command.get_help(context)}\n```"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None, name
            yield f"## {path.removeprefix('sft-engine').strip()} {name}".replace("##  ", "## ")
            yield from _helps(below, f"{path} {name}")


# --- Writing -----------------------------------------------------------------------------------------

PAGES: dict[str, Callable[[], str]] = {
    "recipes.md": recipes_page,
    "components.md": components_page,
    "hooks.md": hooks_page,
    "commands.md": commands_page,
    "exit-codes.md": exit_codes_page,
}


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a Markdown table; a bar inside a cell is escaped."""
    lines = [heads, ("---",) * len(heads), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )


def _paragraphs(text: str) -> str:
    """Join the lines of each paragraph."""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def main(arguments: list[str]) -> int:
    """Write the pages that differ from the code, or with `--check` only name them."""
    check = arguments == ["--check"]
    stale = []
    for name, page in PAGES.items():
        path, text = REFERENCE / name, NOTICE + page().rstrip() + "\n"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not check:
                REFERENCE.mkdir(exist_ok=True)
                path.write_text(text, encoding="utf-8")
    for name in stale:
        print(f"docs/reference/{name} {'is out of date: run `make docs`' if check else 'written'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
