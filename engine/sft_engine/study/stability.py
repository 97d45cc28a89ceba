"""A stability study: carry out its cells, then say what they show."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sft_engine.catalog import plan as make_plan
from sft_engine.errors import DataError, RecipeError, SftError
from sft_engine.records import facts_in_common, write_json
from sft_engine.sentences import choices
from sft_engine.study.design import FACTORS, Cell, cells_of, make_design
from sft_engine.study.folder import STUDY, StudyFolder, Terms
from sft_engine.study.processes import Executor, InProcess, Local

if TYPE_CHECKING:
    from sft_engine.catalog import Plan
    from sft_engine.interruption import Signals
    from sft_engine.recipe import Recipe

Say = Callable[[str], None]
Where = Literal["local", "inline", "ray"]
EXECUTORS = ("local", "inline", "ray")

SEPARATE = "separate runs"
SHARED = "shared trunk"


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """What a study consists of, and how it is carried out.

    Args:
        data: Draws of the training examples; None for 4, or 1 if they do not vary.
        seeds: Seeds; None for 4, or 1 if none varies.
        resample: `bootstrap`, `subsample` or `kfold`.
        vary: What differs between runs: any of `init`, `order`, `noise`, `data`.
        share: Of the examples that `subsample` draws.
        drop: Share of a run after which it is stopped if it is clearly behind; 0 for never.
        jobs: Processes at a time; 0 for one, or with Ray for as many as there is room for.
        threads: Of each process; 0 for the processors of this machine divided by `jobs`.
        executor: `local` processes, `inline` one run after the other in this process, or `ray`.
    """

    data: int | None = None
    seeds: int | None = None
    resample: str = "bootstrap"
    vary: Sequence[str] = FACTORS
    share: float = 0.632
    drop: float = 0.0
    jobs: int = 0
    threads: int = 0
    executor: str = "local"


@dataclass(frozen=True)
class Study:
    """A study that has ended.

    Args:
        folder: Of the study.
        verdict: What it shows, in a sentence.
        results: The figures, as study.json holds them.
        cells: One mapping a cell: its name, seeds, state and score.
        path: How it was carried out.
    """

    folder: Path
    verdict: str
    results: Mapping[str, Any]
    cells: tuple[Mapping[str, Any], ...]
    path: str


def stability(
    recipe: Recipe,
    folder: Path,
    settings: StudySettings,
    signals: Signals,
    say: Say = lambda _: None,
) -> Study:
    """Carry out a study, or go on with it.

    Args:
        recipe: The recipe.
        folder: Of the study; if it holds this one already, it goes on.
        settings: What it consists of.
        signals: Open already.
        say: Shows a line.

    Raises:
        RecipeError: the recipe or a setting is wrong.
        OutputError: the folder cannot be used.
        Interrupted: a signal came; the same command goes on.
    """
    design = make_design(
        settings.data, settings.seeds, settings.resample, settings.vary, settings.share
    )
    executor = executor_of(settings)
    plan = make_plan(recipe)
    _require_test(plan)
    cells = cells_of(design, plan.seeds)
    terms = Terms(recipe=recipe.to_toml(), design=design, drop=settings.drop)
    make_plan(recipe.with_overrides(cells[-1].overrides(design)))
    study = StudyFolder(folder)
    study.open(terms, recipe.path.name if recipe.path else "recipe.toml", cells)
    missing = [cell.name for cell in cells if study.ending(cell).state == "open"]
    say(f"{len(cells)} runs, {len(cells) - len(missing)} of them done")
    try:
        _carry_out(study, cells, missing, executor, signals, say)
    except SftError as error:
        if error.exit_code in (RecipeError.exit_code, DataError.exit_code):
            study.discard()
        raise
    return finish(study, cells)


def _carry_out(
    study: StudyFolder,
    cells: Sequence[Cell],
    missing: Sequence[str],
    executor: Executor,
    signals: Signals,
    say: Say,
) -> None:
    done = len(cells) - len(missing)

    def tell(said: Mapping[str, Any]) -> None:
        nonlocal done
        done += 1
        reason = f": {said['reason']}" if said.get("reason") else ""
        say(f"{said['cell']}  {said['state']}{reason}  ({done} of {len(cells)})")

    if missing:
        executor.carry_out(study.path, missing, tell, signals)


def executor_of(settings: StudySettings) -> Executor:
    """Return what carries out the runs.

    Raises:
        RecipeError: there is no such executor, or Ray is missing.
    """
    jobs = settings.jobs or 1
    threads = settings.threads or max(1, processors() // jobs)
    if settings.executor == "inline":
        return InProcess()
    if settings.executor == "local":
        return Local(jobs, threads)
    if settings.executor == "ray":
        from sft_engine.study.ray_cluster import OnRay, require_ray

        require_ray()
        return OnRay(settings.jobs, settings.threads or 1)
    raise RecipeError(f"--executor: found {settings.executor!r}; {choices(EXECUTORS)}")


def processors() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _require_test(plan: Plan) -> None:
    if not plan.evaluation.test or not plan.evaluation.predictions:
        raise RecipeError(
            "a study compares what its runs answer to the test split: leave `evaluation.test` and "
            "`evaluation.predictions` true"
        )


# --- the end -------------------------------------------------------------------------------------


def path_of(study: StudyFolder, cells: Sequence[Cell]) -> str:
    """Say how the runs went: each by itself, or with the activations of frozen layers in common."""
    from sft_engine.study.aftermath import aftermath_of

    found = [aftermath_of(study.run_of(cell)).get("trunk_passes") or {} for cell in cells]
    reused = [passes["reused"] for passes in found if passes.get("reused")]
    if not reused:
        return SEPARATE
    return (
        f"{SHARED}: frozen layers ran for {sum(each.get('computed', 0) for each in found)} examples, "
        f"{len(reused)} runs took {sum(reused)} over from others; {_heads(found)}"
    )


def _heads(found: Sequence[Mapping[str, Any]]) -> str:
    """Say how what is not frozen was trained."""
    joint = sum(bool(passes.get("joint_steps")) for passes in found)
    if joint:
        return f"the heads of {joint} runs were trained together"
    reason = next((passes["refusal"] for passes in found if passes.get("refusal")), "")
    return f"heads were trained one run after the other{reason and f', because {reason}'}"


def finish(study: StudyFolder, cells: Sequence[Cell]) -> Study:
    """Compute the results and write study.json, report.json and report.html.

    Args:
        study: All of its cells have ended.
        cells: Of its design.
    """
    from sft_engine.reporting import write_page
    from sft_engine.study.evidence import read_evidence
    from sft_engine.study.reported import add_sections, verdict
    from sft_engine.study.results import plain, results_of

    evidence = read_evidence(study, cells)
    found = results_of(evidence, study)
    said, path = verdict(found), path_of(study, cells)
    rows = [
        {
            **each.cell.as_dict(),
            "state": each.ending.state,
            "reason": each.ending.reason,
            "score": plain(each.score),
            "seconds": plain(each.seconds),
        }
        for each in evidence.cells
    ]
    with study.alone():
        content = {
            **study.read(),
            "state": "complete",
            "path": path,
            "cells": rows,
            "results": found,
        }
        report: dict[str, Any] = {
            "recipe": content["recipe"],
            "title": f"Stability of {Path(content['recipe']).stem}",
            "verdict": said,
            "seconds": round(sum(row["seconds"] or 0.0 for row in rows), 1),
            "facts": facts_in_common(
                study.run_of(each.cell)
                for each in evidence.cells
                if each.ending.state == "complete"
            ),
        }
        add_sections(report, found, content, _inputs(study, found))
        _add_those_of_plugins(study, content, report)
        write_json(study.path / STUDY, content)
        write_json(study.path / "report.json", report)
        write_page(study.path)
    return Study(study.path, said, found, tuple(rows), path)


def _add_those_of_plugins(
    study: StudyFolder, content: Mapping[str, Any], report: dict[str, Any]
) -> None:
    from sft_engine.plugins import load_plugins

    plugins = load_plugins()
    owners = {planned.entry.distribution for planned in make_plan(study.recipe()).components}
    plugins.report_study(owners, study.path, content, report)


def _inputs(study: StudyFolder, found: Mapping[str, Any]) -> Callable[[int], Mapping[str, Any]]:
    """Return what shows an example by its row number; only the number if its data cannot be read again."""
    shown: dict[int, Mapping[str, Any]] = {}
    wanted = [each["row"] for each in found["shakiest"]]
    if wanted:
        with contextlib.suppress(SftError, OSError):
            shown = _read_inputs(study, found["split"], wanted)
    return lambda row: shown.get(row, {})


def _read_inputs(
    study: StudyFolder, split: str, wanted: Sequence[int]
) -> dict[int, Mapping[str, Any]]:
    from sft_engine.assemble import read_rows
    from sft_engine.columns import row_numbers
    from sft_engine.reporting.shown_examples import rows_of

    plan = make_plan(study.recipe())
    rows, roles = read_rows(plan, split)
    places = {int(number): place for place, number in enumerate(row_numbers(rows))}
    show = rows_of(rows, roles)
    return {row: show(places[row]) for row in wanted if row in places}


__all__ = ["Study", "StudySettings", "stability"]
