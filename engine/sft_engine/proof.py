"""Shows that a recipe, with its plugins, resumes bit for bit: one run in one piece, one in two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_engine import launch
from sft_engine.errors import CheckpointError, Interrupted, SftError
from sft_engine.verbs import RecipeLike, check, given_recipe

if TYPE_CHECKING:
    from sft_engine.catalog import Plan
    from sft_engine.training import Progress


@dataclass(frozen=True)
class ResumeProof:
    """Two runs of one recipe, one of them interrupted.

    Args:
        steps: Steps of each run.
        interrupted_at: Step before which the second one was interrupted and resumed elsewhere.
        uninterrupted: SHA-256 of the final state of the first run.
        resumed: SHA-256 of the final state of the second run.
        loss_equal: Whether every recorded loss is the same number.
    """

    steps: int
    interrupted_at: int
    uninterrupted: str
    resumed: str
    loss_equal: bool

    @property
    def equal(self) -> bool:
        """Whether resuming changed nothing."""
        return self.uninterrupted == self.resumed and self.loss_equal


def verify_resume(
    recipe: RecipeLike,
    *,
    overrides: Sequence[str] = (),
    steps: int = 12,
    interrupt_at: int = 5,
    progress: Progress | None = None,
) -> ResumeProof:
    """Show that a recipe, with its plugins, resumes bit for bit.

    Trains `steps` steps in this process (a recipe with phases: as many in each as its share); then
    trains again, interrupts before step `interrupt_at`, and resumes in a fresh process.
    """
    launch.require_one_process("verify-resume")
    from sft_engine.training import train

    planned = check_short(recipe, overrides, steps)
    with tempfile.TemporaryDirectory(prefix="sft-verify-") as scratch:
        whole = Path(scratch, "whole")
        outcome = train(planned, whole, progress=progress)
        parted = Path(scratch, "parted")
        try:
            train(planned, parted, progress=progress, stop_after=interrupt_at)
        except Interrupted:
            resumed = _resume_elsewhere(parted)
        else:
            raise CheckpointError(
                f"there is no step {interrupt_at} to interrupt: use a larger --steps"
            )
        return ResumeProof(
            steps=_report_of(whole)["steps"],
            interrupted_at=interrupt_at,
            uninterrupted=outcome.fingerprint,
            resumed=resumed["fingerprint"],
            loss_equal=_losses(whole) == _losses(parted),
        )


def check_short(recipe: RecipeLike, overrides: Sequence[str], steps: int) -> Plan:
    """Check a recipe shortened to some steps, with a record of each; phases share them equally."""
    # A record a step, and no thinning of them, so that every loss is compared.
    short = [*overrides, f"train.steps={steps}", "train.log_every=1"]
    phases = len(given_recipe(recipe, overrides).phases)
    short += [f"phase.{index}.steps={-(-steps // phases)}" for index in range(phases)]
    return check(recipe, overrides=short)


def _resume_elsewhere(folder: Path) -> dict[str, Any]:
    process = subprocess.run(
        [sys.executable, "-m", "sft_engine", "resume", str(folder), "--quiet"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )
    if process.returncode:
        raise SftError(f"the fresh process could not resume: {process.stderr.strip()[-2000:]}")
    return _report_of(folder)


def _report_of(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return report


def _losses(folder: Path) -> list[tuple[int, float]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return [(r["step"], r["loss"]) for r in records if r["kind"] == "train"]
