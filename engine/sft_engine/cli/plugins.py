"""`sft-engine plugins`: list, show, trace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sft_engine.cli.group import SETTINGS, verbs_of_plugins
from sft_engine.cli.parameters import json_option, recipe_argument, set_option
from sft_engine.cli.shown import definitions, new_console, say
from sft_engine.components import KINDS
from sft_engine.errors import RecipeError

if TYPE_CHECKING:
    from sft_engine.entries import Entry
    from sft_engine.options import Option
    from sft_engine.plugins import Plugins
    from sft_engine.tracing import Trace


@click.group(name="plugins", invoke_without_command=True, context_settings=SETTINGS)
@json_option
@click.pass_context
def command(ctx: click.Context, *, as_json: bool) -> None:
    """List installed plugins and the components that a recipe can name.

    A plugin that cannot be loaded is listed with its error. Imports no component.
    """
    if ctx.invoked_subcommand is not None:
        return
    from sft_engine.plugins import load_plugins

    plugins = load_plugins()
    if as_json:
        new_console(as_json=True).result(_summary(plugins))
        return
    definitions(_distributions(plugins), "Plugins")
    if verbs := verbs_of_plugins(plugins):
        say("")
        definitions([(n, c.get_short_help_str(80)) for n, c in verbs.items()], "Verbs of plugins")
    for kind, meaning in KINDS.items():
        rows = [(entry.name, entry.summary) for entry in plugins.catalog.entries(kind)]
        if rows:
            say("")
            definitions(rows, f"{kind}, {meaning}")
    say("\n`sft-engine plugins show NAME` shows the options of one.")


def _distributions(plugins: Plugins) -> list[tuple[str, str]]:
    entries = plugins.catalog.entries()
    rows = []
    for plugin in plugins.loaded:
        count = sum(entry.distribution == plugin.distribution for entry in entries)
        plural = "" if count == 1 else "s"
        rows.append((f"{plugin.distribution} {plugin.version}", f"{count} component{plural}"))
    for broken in plugins.broken:
        cause = f"cannot be loaded: {type(broken.error).__name__}: {broken.error}"
        rows.append((f"{broken.distribution} {broken.version}", click.style(cause, fg="red")))
    return rows


def _summary(plugins: Plugins) -> dict[str, Any]:
    loaded = [
        {
            "name": each.name,
            "distribution": each.distribution,
            "version": each.version,
            "hooks": list(each.hooks),
        }
        for each in plugins.loaded
    ]
    broken = [
        {
            "name": each.name,
            "distribution": each.distribution,
            "version": each.version,
            "error": f"{type(each.error).__name__}: {each.error}",
        }
        for each in plugins.broken
    ]
    components = [vars(entry) for entry in plugins.catalog.entries()]
    verbs = list(verbs_of_plugins(plugins))
    return {"plugins": loaded, "broken": broken, "verbs": verbs, "components": components}


# --- show ----------------------------------------------------------------------------------------


@command.command(context_settings=SETTINGS)
@click.argument("name")
@click.option("--kind", type=click.Choice(list(KINDS)), help="Where several kinds have the name.")
@json_option
def show(name: str, kind: str | None, *, as_json: bool) -> None:
    """Show a component: its options with types and defaults, and what to write in a recipe.

    NAME is what a recipe writes after `use`, or a distribution, of which everything is shown.
    """
    from sft_engine.plugins import load_plugins

    entries = _named(name, kind, load_plugins())
    if as_json:
        new_console(as_json=True).result({"components": [_facts(entry) for entry in entries]})
        return
    for position, entry in enumerate(entries):
        if position:
            say("")
        _show(entry)


def _named(name: str, kind: str | None, plugins: Plugins) -> list[Entry]:
    entries = plugins.catalog.entries(kind)
    found = [entry for entry in entries if name in (entry.name, entry.distribution)]
    if not found:
        from sft_engine.sentences import choices, suggest

        known = list(dict.fromkeys(entry.name for entry in entries))
        broken = "".join(f"; {each}" for each in plugins.broken)
        what = f"no installed plugin offers as {kind}" if kind else "no installed plugin offers"
        hint = suggest(name, known) or choices(known) or "`sft-engine plugins` lists what there is"
        raise RecipeError(f'found "{name}", which {what}{broken}; {hint}')
    return found


def _show(entry: Entry) -> None:
    from sft_engine.new_recipe import component_signature, snippet

    signature = component_signature(entry)
    say(f"{entry.kind} {click.style(entry.name, bold=True)}: {entry.summary}")
    say(f"{entry.owner}, {entry.target}")
    if signature.options:
        say("")
        definitions([(o.name, _described(o)) for o in signature.options], "Options")
    if signature.open:
        say("Any further option is passed on.")
    say(f"\nIn a recipe:\n\n{snippet(entry).rstrip()}")


def _described(option: Option) -> str:
    from sft_engine.options import allowed

    return f"{option.help} ({allowed(option.annotation)}; {_default(option)})".strip()


def _default(option: Option) -> str:
    from sft_engine.sentences import show_value

    if option.required:
        return "needed"
    return "not set" if option.default is None else f"default {show_value(option.default)}"


def _facts(entry: Entry) -> dict[str, Any]:
    from sft_engine.new_recipe import component_signature, snippet
    from sft_engine.options import allowed

    signature = component_signature(entry)
    options = [
        {
            "name": option.name,
            "allowed": allowed(option.annotation),
            "required": option.required,
            "default": None if option.required else option.default,
            "help": option.help,
        }
        for option in signature.options
    ]
    return {**vars(entry), "options": options, "open": signature.open, "snippet": snippet(entry)}


# --- trace ---------------------------------------------------------------------------------------


@command.command(context_settings=SETTINGS)
@recipe_argument
@set_option
@click.option("--steps", type=click.IntRange(min=1), default=5, show_default=True, help="To train.")
@json_option
def trace(recipe: str, overrides: tuple[str, ...], steps: int, *, as_json: bool) -> None:
    """Train a few steps in a temporary folder and show what each hook of each component did.

    How often it was called, how long it took, and what it changed: `requires_grad`, weights, gradients,
    batches, loss terms, metrics, control. A hook that was never called is shown as well.
    """
    from sft_engine.tracing import trace as trace_recipe

    with new_console(quiet=True, as_json=as_json) as console:
        traced = trace_recipe(recipe, overrides=overrides, steps=steps)
        if as_json:
            console.result(traced.as_dict())
            return
    _show_trace(traced)


def _show_trace(traced: Trace) -> None:
    import sys

    from rich import box
    from rich.table import Table
    from rich.text import Text

    from sft_engine.output import Output

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("component", "hook", "calls", "ms", "what changed (calls)"):
        table.add_column(name, justify="right" if name in ("calls", "ms") else "left")
    for row in traced.hooks:
        changes = "\n".join(f"{what} ({calls})" for what, calls in row.changes.items())
        cells = [f"{row.component} {row.name}", row.hook, str(row.calls)]
        cells += [f"{row.seconds * 1000:.1f}", changes or ("" if row.calls else "never called")]
        table.add_row(*map(Text, cells), style="" if row.calls else "yellow")
    if traced.hooks:
        Output(sys.stdout).rich().print(table)
    else:
        say("No component of this recipe implements a hook of the run.")
    say(f"{traced.steps} steps, {traced.seconds:.1f} s with the looks of the tracer.")
