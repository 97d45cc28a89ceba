"""`sft-engine probe` as a function: probes on a finished run, or on a model that others have trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_engine import CheckpointError, OutputError, RecipeError, launch
from sft_engine.sentences import choices, suggest
from sft_engine.verbs import check, finished_run, given_recipe
from sft_probes import DEFAULTS, OF_CLASSES

if TYPE_CHECKING:
    from sft_engine import Recipe, Run
    from sft_engine.catalog import Plan
    from sft_engine.devices import Precision
    from sft_engine.evaluation import Evaluated

FILE = "probes.json"
_SMALLER = "set a smaller batch size (`--set evaluation.batch_size=…`)"


@dataclass(frozen=True)
class Probed:
    """What probes found.

    Args:
        model: The run folder, or the model's folder or hub id, as given.
        folder: Where `probes.json` was written, or the run that was updated.
        views: Metrics of each view by its name, `SPLIT` or `SPLIT/VIEW`.
        probes: The figures of each probe.
        sections: As a report shows them.
    """

    model: str
    folder: Path
    views: dict[str, dict[str, Any]]
    probes: dict[str, Any]
    sections: list[dict[str, Any]]


def probe(
    model: str | Path,
    names: Sequence[str] = (),
    *,
    recipe: str | Path | Recipe | None = None,
    overrides: Sequence[str] = (),
    output: str | Path | None = None,
    update: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Probed:
    """Run probes on a model and write what they find.

    Args:
        model: A run folder; with `recipe`, a folder or hub id of a model that the recipe's backbone reads.
        names: Probes; none for those of the recipe, and for the usual ones of the task if it has none.
        recipe: Task and data for a model that is no run's; its backbone's `name` becomes `model`.
        overrides: `NAME.OPTION=VALUE` for an option of a probe, `KEY=VALUE` for any other key of the recipe.
        output: A new or empty folder; None picks `probes/MODEL`, `probes/MODEL-2`, …
        update: Write into the run's own report.json and predictions, instead.
        say: Shows a line.

    Raises:
        RecipeError: there is no such probe, or the model does not fit the recipe.
        CheckpointError: the folder holds no finished run.
        OutputError: the output folder holds something, or cannot be written.
    """
    launch.require_one_process("probe")
    target = _target(str(model), recipe, output, update=update)
    from sft_engine.devices import enough_memory, own_state

    with own_state(0), enough_memory(_SMALLER):
        if recipe is None:
            run, precision = _of_run(Path(model), names, overrides)
        else:
            from sft_probes.foreign import open_model

            planned = _planned(given_recipe(recipe, ()), names, overrides)
            run, precision = open_model(str(model), planned)
        results = evaluated(run, precision, say)
        return _written(str(model), run, results, target, update=update)


def _target(model: str, recipe: Any, output: str | Path | None, *, update: bool) -> Path:
    """Return the folder to write to."""
    from sft_engine.exporting.folder import choose_output

    is_run = (Path(model) / "recipe.toml").exists()
    if recipe is None and not is_run:
        raise CheckpointError(
            f"{model} is not a run folder: it has no recipe.toml; for a model that is no run's, name a "
            "recipe with its task and data: `--recipe FILE`"
        )
    if recipe is not None and is_run:
        raise RecipeError(
            f"{model} is a run folder, which has a recipe of its own: leave out --recipe, or name the "
            f"model in it, {Path(model) / 'model'}"
        )
    if not update:
        return choose_output(_free(model) if output is None else Path(output))
    if output is not None or recipe is not None:
        other = "--output" if output is not None else "--recipe"
        raise OutputError(f"--update writes into the run's own folder, which excludes {other}")
    return Path(model)


def _free(model: str) -> Path:
    name = Path(model).resolve().name if Path(model).exists() else model.strip("/").split("/")[-1]
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip(".") or "model"
    folder, number = Path("probes", safe), 1
    while folder.exists():
        number += 1
        folder = Path("probes", f"{safe}-{number}")
    return folder


# --- which probes ---------------------------------------------------------------------------------


def _of_run(folder: Path, names: Sequence[str], overrides: Sequence[str]) -> tuple[Run, Precision]:
    """Open a finished run again, with the probes that were asked for."""
    from sft_engine.assemble import reopen

    before, labels = finished_run(folder, ())
    planned = _planned(before.recipe, names, overrides)
    opened = reopen(planned, folder, labels)
    return opened.run, opened.precision


def _planned(recipe: Recipe, names: Sequence[str], overrides: Sequence[str]) -> Plan:
    """Return the plan of a recipe whose probes are those that were asked for."""
    from sft_engine.recipe import dump_tables, parse_recipe

    tables = _tables(recipe, names)
    own, others = _told_apart(overrides, [table["use"] for table in tables])
    changed = {**recipe.tables, "probe": tables}
    # As text, so that each key's line is that of the recipe which `check` names.
    asked = parse_recipe(dump_tables(changed), recipe.name, [*others, *own])
    return check(asked)


def _tables(recipe: Recipe, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return a table for each probe: that of the recipe, if it has one."""
    there: list[dict[str, Any]] = list(recipe.tables.get("probe", ()))
    if not names and there:
        return there
    tables = []
    for name in names or _usual(recipe):
        _require_known(name)
        tables += [t for t in there if t["use"] == name] or [{"use": name}]
    return tables


def _usual(recipe: Recipe) -> Sequence[str]:
    """Return the usual probes of a recipe's task."""
    from sft_engine.builtin.classification import Classification

    planned = check(recipe).one("task")
    assert planned is not None
    kind = planned.load()
    inputs = getattr(kind, "inputs", {})
    of_classes = OF_CLASSES if isinstance(kind, type) and issubclass(kind, Classification) else ()
    for role, names in DEFAULTS.items():
        if role in inputs:
            return (*names, *of_classes)
    raise RecipeError(
        f'the task "{planned.name}" has no usual probes: name some, `--with NAME`; `sft-engine plugins` '
        "lists them"
    )


def _require_known(name: str) -> None:
    from sft_engine.plugins import load_plugins

    known = [entry.name for entry in load_plugins().catalog.entries("probe")]
    if name not in known:
        hint = suggest(name, known) or choices(known)
        raise RecipeError(
            f'--with: found "{name}", which no installed plugin offers as probe; {hint}'
        )


def _told_apart(overrides: Sequence[str], uses: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return overrides of the probes, by their number in the recipe, and all others."""
    own, others = [], []
    for text in overrides:
        key, equals, value = text.partition("=")
        name, dot, option = key.strip().partition(".")
        if dot and name in uses:
            places = [place for place, use in enumerate(uses) if use == name]
            own += [f"probe[{place}].{option}{equals}{value}" for place in places]
        else:
            others.append(text)
    return own, others


# --- running and writing --------------------------------------------------------------------------


def evaluated(
    run: Run, precision: Precision, say: Callable[[str], None] = lambda _: None
) -> dict[str, list[Evaluated]]:
    """Evaluate every split that the run's probes look at, in the views of probes alone.

    Args:
        run: A run that was opened; other components than its probes are not asked for views any more.
        precision: Autocast.
        say: Shows a line.
    """
    from sft_engine.dispatch import RunHooks
    from sft_engine.evaluation import evaluate
    from sft_probes.asking import batch_size

    run.hooks = RunHooks([active for active in run.active if active.planned.kind == "probe"])
    splits = in_order([splits_of(probe) for probe in probes_of(run)])
    for split in splits:
        if split not in run.splits:
            raise RecipeError(
                f"there is no split '{split}', the data has {', '.join(run.splits)}: `--set "
                "NAME.split=…` names another one for a probe"
            )
    results = {}
    for split in splits:
        say(f"{split}: {len(run.splits[split])} examples")
        size, metrics = batch_size(run), run.plan.evaluation.metrics
        results[split] = evaluate(run, split, precision, batch_size=size, metrics=metrics)
    return results


def probes_of(run: Run) -> list[Any]:
    """Return the run's components of the kind `probe`."""
    return [active.component for active in run.active if active.planned.kind == "probe"]


def in_order(needs: Iterable[Sequence[str]]) -> list[str]:
    """Return every split once, none before one that any probe needs earlier."""
    order: TopologicalSorter[str] = TopologicalSorter()
    for splits in needs:
        for place, split in enumerate(splits):
            order.add(split, *splits[:place])
    return list(order.static_order())


def splits_of(probe: Any) -> tuple[str, ...]:
    """Return the splits that a probe looks at, in the order in which it needs them."""
    return tuple(getattr(probe, "splits", ())) or (getattr(probe, "split", "test"),)


def _written(
    model: str,
    run: Run,
    results: dict[str, list[Evaluated]],
    target: Path,
    *,
    update: bool,
) -> Probed:
    """Write the results, into a new folder or into the run's own."""
    from sft_engine.exporting.folder import new_folder

    report: dict[str, Any] = {}
    if run.hooks.sft_report is not None:
        run.hooks.sft_report(run=run, report=report)
    views = {
        f"{split}/{result.view.name}" if result.view.name else split: dict(result.values)
        for split, several in results.items()
        for result in several
    }
    probed = Probed(
        model=model,
        folder=target,
        views=views,
        probes=report.get("probes", {}),
        sections=report.get("sections", []),
    )
    if update:
        _update(run, results, probed)
        return probed
    with new_folder(target) as folder:
        _write(run, results, probed, folder)
    return probed


def _write(run: Run, results: dict[str, list[Evaluated]], probed: Probed, folder: Path) -> None:
    """Write `probes.json` and the predictions into a folder."""
    from sft_engine.records import library_versions, write_json, write_text
    from sft_engine.run_files import write_predictions

    plain = asdict(probed)
    del plain["folder"]
    about = {"labels": list(run.task.head.names), "libraries": library_versions()}
    write_json(folder / FILE, {**plain, **about})
    write_text(folder / "recipe.toml", run.plan.resolved().to_toml())
    for split, several in results.items():
        for result in several:
            write_predictions(run, split, result, folder)


def _update(run: Run, results: dict[str, list[Evaluated]], probed: Probed) -> None:
    """Put the sections into the run's report, in place of those of the same probes."""
    import json

    from sft_engine.records import write_json
    from sft_engine.reporting import PAGE, write_page
    from sft_engine.run_files import write_predictions
    from sft_engine.sections import add_section

    path = probed.folder / "report.json"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}): write to another folder with --output"
        ) from error
    report["probes"] = {**report.get("probes", {}), **probed.probes}
    for section in probed.sections:
        add_section(
            report, section["id"], section["title"], section["blocks"], summary=section["summary"]
        )
    for split, several in results.items():
        for result in several:
            if result.view.name:
                write_predictions(run, split, result, probed.folder)
    write_json(path, report)
    if (probed.folder / PAGE).exists():
        write_page(probed.folder)
