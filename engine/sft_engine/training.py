"""One training run from plan to run folder: assemble, train, select, evaluate, write."""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sft_engine import sharding
from sft_engine.assemble import Assembled, assemble, derive_seeds
from sft_engine.checkpoint import Keeper, fingerprint, restore
from sft_engine.devices import own_generators, wrap
from sft_engine.errors import OutputError, RecipeError
from sft_engine.evaluation import Evaluated, evaluate
from sft_engine.interruption import Signals
from sft_engine.loop import Loop
from sft_engine.metrics import direction_of
from sft_engine.dispatch import note_component
from sft_engine.records import Recorder, append_line, provenance, write_json, write_text

if TYPE_CHECKING:
    from sft_engine.catalog import Plan
    from sft_engine.dispatch import Monitor
    from sft_engine.flow import Run


class Progress(Protocol):
    """What shows a run to a person."""

    def say(self, line: str) -> None:
        """Show a line."""

    def start(self, run: Run, precision: str) -> None:
        """Show what is about to be trained, and on what."""

    def show(self, record: dict[str, Any]) -> None:
        """Show a record of metrics.jsonl."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class Silent:
    """A Progress that shows nothing, for notebooks and tests."""

    def say(self, line: str) -> None:
        """Show nothing."""

    def start(self, run: Run, precision: str) -> None:
        """Show nothing."""

    def show(self, record: dict[str, Any]) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Close nothing."""


@dataclass(frozen=True)
class Outcome:
    """What a run left.

    Args:
        folder: The run folder.
        reason: Why training ended.
        split: The split of the final metrics: `test`, or `validation` where there is no test split.
        metrics: Final metrics of that split by name, nested ones too.
        best: Step, metric and value that selected the weights; empty if the last ones are kept.
        fingerprint: SHA-256 of the final training state.
        seconds: Training and evaluation, without assembling.
    """

    folder: Path
    reason: str
    split: str
    metrics: dict[str, Any]
    best: dict[str, Any]
    fingerprint: str
    seconds: float


def train(
    plan: Plan,
    folder: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    stop_after: int = -1,
    monitor: Monitor | None = None,
) -> Outcome:
    """Carry out a plan.

    Args:
        plan: The checked recipe.
        folder: The run folder: new, or with `resume` an interrupted run's.
        resume: Go on from the newest complete checkpoint.
        progress: Shows the run; None shows nothing.
        stop_after: Interrupt, as a signal would, before the step with this index.
        monitor: Called around each hook of each component.

    Raises:
        SftError: whatever stopped the run, as one sentence.
    """
    progress = progress or Silent()
    with Signals() as signals, own_generators(derive_seeds(plan.seeds).noise):
        built = assemble(plan, folder, signals.check, monitor)
        session = Session(built, progress, signals, stop_after)
        error: BaseException | None = None
        try:
            session.begin(resume=resume)
            return session.carry_out()
        except BaseException as caught:
            error = caught
            note_component(caught, built.run.active)
            raise
        finally:
            if built.run.hooks.sft_teardown is not None:
                for failure in built.run.hooks.sft_teardown(run=built.run, error=error):
                    progress.say(f"while ending: {failure}")
            progress.close()


class Session:
    """The parts of one `train` call that need each other: run, loop, checkpoints, best weights."""

    def __init__(
        self, built: Assembled, progress: Progress, signals: Signals, stop_after: int = -1
    ) -> None:
        self.built, self.progress, self.signals = built, progress, signals
        run = self.run = built.run
        self.stop_after = stop_after
        self.notices: list[str] = []
        self.recorder = Recorder(run, progress.show)
        self.keeper = Keeper(
            run.folder / "checkpoints",
            keep=run.plan.checkpoint.keep,
            notice=self.notices.append,
        )
        self.best_metric = best_metric(run)
        self.began = time.perf_counter()

    # --- before ----------------------------------------------------------------------------------

    def begin(self, *, resume: bool) -> None:
        """Write or reopen the run folder, restore, and let components attach."""
        run = self.run
        if not resume and run.is_main:
            self._write_folder()
        run.accelerator.wait_for_everyone()
        run.record = self.recorder
        self.progress.start(run, self.built.precision.name)
        if resume:
            self._restore()
        else:
            for finding in self.built.findings:
                run.record(
                    {"kind": "preflight", "level": finding.level, "message": finding.message}
                )
        if run.hooks.sft_setup is not None:
            run.hooks.sft_setup(run=run)

    def _write_folder(self) -> None:
        run = self.run
        try:
            run.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot create the run folder {run.folder}: {error.strerror or error}; choose another "
                "one with --output"
            ) from error
        write_text(run.folder / "recipe.toml", run.plan.resolved().to_toml())
        write_json(
            run.folder / "run.json",
            {
                **provenance(run, self.built.precision.name, self.built.fingerprints),
                "label_names": list(run.task.head.names),
            },
        )

    def _restore(self) -> None:
        run = self.run
        state = self.keeper.newest()
        extra = state.pop("extra")
        self.keeper.snapshot = state.pop("snapshot")
        self.recorder.cut(extra.pop("metrics_bytes"))
        self.built.feed.micro_batch_size = extra.pop("micro_batch_size")
        self.keeper.extra = extra
        restore(run, state)
        for sentence in self.notices:
            run.record({"kind": "notice", "step": run.clock.step, "message": sentence})
        self.progress.say(f"resumed from step {run.clock.step} of {run.clock.total_steps}")

    # --- during ----------------------------------------------------------------------------------

    def carry_out(self) -> Outcome:
        """Train, select the best weights, evaluate them and write the results."""
        run = self.run
        reason = self.loop().train()
        state = fingerprint(run)
        best = self.keeper.extra.get("best", {})
        if best and best["step"] != run.clock.step:
            self._load_best(best["step"])
        final = self._final_evaluation()
        outcome = Outcome(
            folder=run.folder,
            reason=reason,
            split=final[0],
            metrics=final[1].values if final[1] else {},
            best=best,
            fingerprint=state,
            seconds=time.perf_counter() - self.began,
        )
        self._write_results(outcome, final[1])
        return outcome

    def loop(self) -> Loop:
        """Build the training loop from the recipe's settings."""
        built, run = self.built, self.run
        plan, per_epoch = run.plan, run.clock.steps_per_epoch
        heals = any(
            getattr(getattr(a.component, "capabilities", None), "rolls_back", False)
            for a in run.active
        )
        evaluation, checkpoint = plan.evaluation, plan.checkpoint
        return Loop(
            run=run,
            feed=built.feed,
            precision=built.precision,
            signals=self.signals,
            wrap=wrap,
            evaluate=self._evaluate,
            save=self._save,
            base_lr=built.base_lr,
            evaluate_every=_interval(evaluation.every_steps, evaluation.every_epochs, per_epoch),
            save_every=_interval(checkpoint.every_steps, checkpoint.every_epochs, per_epoch),
            log_every=plan.train.log_every,
            clip_norm=plan.train.clip_norm,
            keep_snapshot=(lambda: self.keeper.keep_snapshot(run)) if heals else None,
            roll_back=(lambda: self.keeper.roll_back(run)) if heals else None,
            stop_after=self.stop_after,
        )

    def _save(self) -> None:
        self.keeper.extra["metrics_bytes"] = self.recorder.size()
        self.keeper.extra["micro_batch_size"] = self.built.feed.micro_batch_size
        self.keeper.save(self.run)

    def _evaluate(self) -> None:
        """Evaluate the validation split; have a checkpoint saved if it is the best so far."""
        run = self.run
        if "validation" not in run.splits:
            return
        plain = self._evaluate_split("validation")[0]
        if not self.best_metric:
            return
        value = plain.scalars.get(self.best_metric)
        if value is None:
            raise RecipeError(
                f"`checkpoint.best`: there is no metric {self.best_metric!r}, the validation split has "
                f"{', '.join(plain.scalars)}"
            )
        if is_better(value, self.keeper.extra.get("best"), self._direction()):
            self.keeper.extra["best"] = {
                "step": run.clock.step,
                "metric": self.best_metric,
                "value": value,
            }
            run.control.save = True

    def _direction(self) -> str:
        wanted = self.run.plan.checkpoint.direction
        return direction_of(self.best_metric) if wanted == "auto" else wanted

    def _evaluate_split(self, name: str) -> list[Evaluated]:
        settings = self.run.plan.evaluation
        return evaluate(
            self.run,
            name,
            self.built.precision,
            batch_size=settings.batch_size or 2 * self.built.feed.micro_batch_size,
            metrics=settings.metrics,
        )

    # --- after -----------------------------------------------------------------------------------

    def _load_best(self, step: int) -> None:
        run = self.run
        run.accelerator.wait_for_everyone()
        sharding.load_model(run, self.keeper.read(step)["model"])

    def _final_evaluation(self) -> tuple[str, Evaluated | None]:
        run = self.run
        for name in ("test", "validation"):
            if name in run.splits and (name != "test" or run.plan.evaluation.test):
                return name, self._evaluate_split(name)[0]
        return "", None

    def _write_results(self, outcome: Outcome, final: Evaluated | None) -> None:
        run = self.run
        weights = sharding.whole_model(run)
        if not run.is_main:
            return
        report: dict[str, Any] = {
            "recipe": run.plan.recipe.path.name if run.plan.recipe.path else "recipe",
            "reason": outcome.reason,
            "steps": run.clock.step,
            "split": outcome.split,
            "metrics": outcome.metrics,
            "best": outcome.best,
            "fingerprint": outcome.fingerprint,
            "seconds": round(outcome.seconds, 1),
            "preflight": [{"level": f.level, "message": f.message} for f in self.built.findings],
        }
        if run.hooks.sft_report is not None:
            run.hooks.sft_report(run=run, report=report)
        write_json(run.folder / "report.json", report)
        if final is not None and run.plan.evaluation.predictions:
            write_predictions(run, outcome.split, final)
        save_model(run, weights, report)


def best_metric(run: Run) -> str:
    """Return the validation metric that selects the weights; empty to keep the last ones."""
    wanted = run.plan.checkpoint.best
    if wanted == "last" or "validation" not in run.splits:
        return ""
    return run.task.main_metric if wanted == "auto" else wanted


def is_better(value: float, best: dict[str, Any] | None, direction: str) -> bool:
    """Compare with the best value so far; NaN is never better."""
    if math.isnan(value):
        return False
    if best is None:
        return True
    return bool(value > best["value"] if direction == "max" else value < best["value"])


def write_predictions(run: Run, split: str, result: Evaluated) -> None:
    """Write `predictions/SPLIT.jsonl`, one line an example in the order of the split."""
    folder = run.folder / "predictions"
    folder.mkdir(exist_ok=True)
    path = folder / f"{split}.jsonl"
    path.unlink(missing_ok=True)
    rows = run.splits[split].rows
    numbers = rows["row"] if "row" in rows.column_names else range(len(rows))
    for number, record in zip(numbers, run.task.records(result.predictions), strict=True):
        append_line(path, {"row": number, **record})


def save_model(run: Run, weights: Any, report: dict[str, Any]) -> None:
    """Write `model/` whole or not at all, with a model card."""
    final, temporary = run.folder / "model", run.folder / ".tmp-model"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        run.backbone.save(weights, temporary, run.task)
        write_text(temporary / "README.md", model_card(run, report))
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise OutputError(
            f"cannot write {final}: {error.strerror or error}; make room, then `sft-engine resume "
            f"{run.folder}` writes it from the checkpoint"
        ) from error


def model_card(run: Run, report: dict[str, Any]) -> str:
    """Return a model card in Markdown: what was trained on what, and what it reached."""
    numbers = [
        f"| {name} | {value:.4f} |"
        for name, value in report["metrics"].items()
        if isinstance(value, (int, float))
    ]
    table = "\n".join(["| metric | value |", "| --- | --- |", *numbers])
    labels = ", ".join(run.task.head.names)
    backbone = next(a.planned for a in run.active if a.planned.kind == "backbone")
    options = "".join(f" `{backbone.options[key]}`" for key in ("name",) if key in backbone.options)
    return (
        f"# {report['recipe'].removesuffix('.toml')}\n\n"
        f"Fine-tuned with sft-engine from {backbone.name}{options}; outputs: {labels}.\n\n"
        f"Metrics on the {report['split'] or 'training'} split:\n\n{table}\n\n"
        f"```toml\n{run.plan.recipe.to_toml()}```\n"
    )


def _interval(steps: int, epochs: float, per_epoch: int) -> int:
    if steps:
        return steps
    return max(1, round(epochs * per_epoch)) if epochs else 0
