"""One run of a study: an ordinary one, and at its end a look at what became of its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sft_engine.catalog import plan as make_plan
from sft_engine.errors import DivergedError, OutOfMemoryError, SftError
from sft_engine.metrics import direction_of
from sft_engine.recipe import load_recipe
from sft_engine.records import remove, update_json
from sft_engine.replay import together
from sft_engine.replay.shared import sharing
from sft_engine.study.aftermath import DRIFT, Aftermath
from sft_engine.study.hopeless import HopelessWatch
from sft_engine.training import train

if TYPE_CHECKING:
    from sft_engine.catalog import Plan
    from sft_engine.flow import Run
    from sft_engine.interruption import Signals
    from sft_engine.replay.shared import SharedTrunk
    from sft_engine.study.design import Cell
    from sft_engine.study.folder import Ending, StudyFolder


@dataclass
class CellProgress:
    """A `Progress` of `training` that shows nothing, and looks on.

    Args:
        aftermath: Notes the weights at the begin.
        hopeless: Judges the run; None where none is stopped early.
    """

    aftermath: Aftermath
    hopeless: HopelessWatch | None = None

    def say(self, line: str) -> None:
        """Show nothing."""

    def start(self, run: Run, precision: str) -> None:  # noqa: ARG002 (the protocol)
        """Let both know the run."""
        self.aftermath.start(run)
        if self.hopeless is not None:
            self.hopeless.start(run)

    def show(self, record: dict[str, Any]) -> None:
        """Let the run be judged."""
        if self.hopeless is not None:
            self.hopeless.show(record)

    def close(self) -> None:
        """Close nothing."""


def carry_out(
    study: StudyFolder,
    cell: Cell,
    signals: Signals | None = None,
    trunk: SharedTrunk | None = None,
) -> Ending:
    """Run a cell, or go on with it where it was interrupted; the caller holds its lock.

    Args:
        study: The study.
        cell: Of its design.
        signals: Open already.
        trunk: What the runs of this process have in common, if layers are frozen.

    Raises:
        SftError: what stopped it and is no result, such as a signal or a full disk.
    """
    ending = study.ending(cell)
    if ending.state != "open":
        return ending
    folder = study.run_of(cell)
    again = (folder / "recipe.toml").exists()
    plan = make_plan(load_recipe(folder / "recipe.toml") if again else study.recipe_of(cell))
    progress = CellProgress(Aftermath(folder), _watch(study, cell, plan))
    own = trunk.view() if trunk else None
    try:
        with sharing(own):
            train(plan, folder, resume=again, progress=progress, signals=signals)
    except (DivergedError, OutOfMemoryError) as error:
        ending = study.ending(cell)
        if ending.state == "open":  # before there was a run folder
            raise
        error.__traceback__ = None
        return ending
    except SftError as error:
        error.add_note(f"in {cell.name}")
        raise
    progress.aftermath.look()
    if own is not None:
        joint = together.current()
        passes: dict[str, Any] = {"computed": own.computed, "reused": own.reused}
        if joint is not None:
            passes |= {"joint_steps": joint.steps[str(folder)], "refusal": joint.reason(folder)}
        update_json(folder / DRIFT, {"trunk_passes": passes})
    remove([folder / "checkpoints"])  # a study of sixteen would fill the disk; model/ is the result
    return study.ending(cell)


def _watch(study: StudyFolder, cell: Cell, plan: Plan) -> HopelessWatch | None:
    share = study.terms().drop
    if not share:
        return None
    others = [study.run_of(other) for other in study.cells() if other != cell]
    return HopelessWatch(share, others, _direction(plan))


def _direction(plan: Plan) -> str:
    if plan.checkpoint.direction != "auto":
        return plan.checkpoint.direction
    task = plan.one("task")
    assert task is not None
    best = plan.checkpoint.best
    return direction_of(task.build().main_metric if best in ("auto", "last") else best)
