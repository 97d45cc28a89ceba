"""One training run from plan to run folder: assemble, train, select, evaluate, write."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sft_engine import launch, ranks, sharding
from sft_engine.assemble import Assembled, assemble, derive_seeds
from sft_engine.checkpoint import Keeper, MemoryKeeper, fingerprint, require_finite, restore
from sft_engine.devices import enough_memory, own_state, wrap
from sft_engine.diagnosis.watch import Watch
from sft_engine.dispatch import note_component
from sft_engine.errors import Interrupted, RecipeError
from sft_engine.evaluation import Evaluated, evaluate
from sft_engine.interruption import Signals
from sft_engine.loop import Interval, Loop
from sft_engine.metrics import direction_of
from sft_engine.records import Recorder, failure_of_main, recorded_end, sweep, update_json
from sft_engine.replay import together
from sft_engine.replay.replay import Replay
from sft_engine.run_files import RunFiles

if TYPE_CHECKING:
    from sft_engine.catalog import Plan
    from sft_engine.dispatch import Monitor
    from sft_engine.flow import Run
    from sft_engine.ledger import Ledger


_LESS_MEMORY = (
    "set a smaller `train.micro_batch_size` or `evaluation.batch_size`, or take a smaller backbone; what "
    "was saved can be resumed"
)


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
    signals: Signals | None = None,
) -> Outcome:
    """Carry out a plan.

    Args:
        plan: The checked recipe.
        folder: The run folder: new, or with `resume` an interrupted run's.
        resume: Go on from the newest complete checkpoint.
        progress: Shows the run; None shows nothing.
        stop_after: Interrupt, as a signal would, before the step with this index.
        monitor: Called around each hook of each component.
        signals: Open already, so that none was missed while libraries were imported.

    Raises:
        SftError: whatever stopped the run, as one sentence.
    """
    progress = progress or Silent()
    with (
        contextlib.nullcontext(signals) if signals else Signals() as received,
        own_state(derive_seeds(plan.seeds).noise),
        recorded_end(folder),
        ranks.shared_end(lambda: failure_of_main(folder)),
        enough_memory(_LESS_MEMORY),
    ):
        received.check()
        built = assemble(plan, folder, received.check, monitor)
        session = Session(built, progress, received, stop_after)
        error: BaseException | None = None
        with contextlib.closing(session.recorder):  # though the end itself may fail
            try:
                session.begin(resume=resume)
                return session.carry_out()
            except BaseException as caught:
                error = caught
                note_component(caught, built.run.active)
                if isinstance(caught, Interrupted):
                    session.keeper.flush()
                raise
            finally:
                if built.run.hooks.sft_teardown is not None:
                    for failure in built.run.hooks.sft_teardown(run=built.run, error=error):
                        progress.say(f"while ending: {failure}")
                if built.run.replay is not None:
                    built.run.replay.close(finished=error is None)
                session.files.take_back()
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
        self.recorder = Recorder(run, self._show)
        # For runs whose heads train together a checkpoint may take longer than an epoch.
        kind = Keeper if together.current() is None else MemoryKeeper
        self.keeper = kind(
            run.folder / "checkpoints",
            keep=run.plan.checkpoint.keep,
            notice=self.notices.append,
        )
        self.best_metric = best_metric(run)
        self.watch = Watch(run, built.precision, run.plan.resolved().tables)
        self.began = time.perf_counter()
        self.files = RunFiles(built)
        self.ledger: Ledger | None = None  # of the loop, once there is one
        self.noted: list[dict[str, Any]] = []  # of the interrupted run since its last record
        self.room = 0  # examples of an evaluation batch, once memory did not suffice for more

    # --- before ----------------------------------------------------------------------------------

    def begin(self, *, resume: bool) -> None:
        """Write or reopen the run folder, restore, and let components attach."""
        run = self.run
        again = resume
        with ranks.together(run.accelerator):
            if run.is_main:
                again = self._open_folder(resume=resume)
        again = ranks.from_main(run.accelerator, again)
        run.record = self.recorder
        if run.plan.train.replay is not False:
            run.replay = Replay(run, self.built.precision, self.built.fingerprints)
        self.progress.start(run, self.built.precision.name)
        for sentence in launch.notices(run.plan.train, run.accelerator.num_processes):
            self._notice(sentence)
        if again:
            self._restore()
        elif resume:
            self.progress.say("there is no checkpoint yet: the run begins anew")
        if run.hooks.sft_setup is not None:
            run.hooks.sft_setup(run=run)
        if not again:
            self._record_findings()
        self.files.keep()

    def _record_findings(self) -> None:
        """Record what was seen of the data before training; trackers are attached by now."""
        with ranks.together(self.run.accelerator):
            for finding in self.built.findings:
                self.run.record(
                    {"kind": "preflight", "level": finding.level, "message": finding.message}
                )
            self.watch.begin()

    def _open_folder(self, *, resume: bool) -> bool:
        """Write the run folder, or clean up one that is there; return whether it has checkpoints."""
        folder = self.run.folder
        if not resume:
            self.files.remember()
        for part in (folder, folder / "predictions", self.keeper.folder):
            sweep(part)
        if not resume or not self.keeper.steps():
            self.recorder.cut(0)
            self.files.write_first()
            return False
        update_json(folder / "run.json", {"status": "running"})
        return True

    def _restore(self) -> None:
        run = self.run
        state = self._read_newest()
        extra = state.pop("extra")
        self.keeper.snapshot = state.pop("snapshot")
        self.recorder.cut(extra.pop("metrics_bytes"))
        self.watch.go_on()
        # Smaller than the recipe's after a lack of memory, larger if more processes share the work now.
        feed, size = self.built.feed, extra.pop("micro_batch_size")
        feed.micro_batch_size = min(feed.micro_batch_size, size)
        self.noted = extra.pop("ledger", [])
        replay = extra.pop("replay", None)
        if run.replay is not None and replay is not None:
            run.replay.restore(replay)
        scaler = extra.pop("scaler", None)
        if self.built.precision.scaler is not None and scaler is not None:
            self.built.precision.scaler.load_state_dict(scaler)
        self.keeper.extra = extra
        restore(run, state)
        self.keeper.current = run.clock.step
        before, now = len(state["generators"]), run.accelerator.num_processes
        if before != now:
            self.notices.append(
                f"the checkpoint is of {before} process{'es' if before > 1 else ''}, this run has {now}: "
                "it goes on from the same weights and order, but not bit for bit"
            )
        for sentence in self.notices:
            self._notice(sentence)
        self.progress.say(f"resumed from step {run.clock.step} of {run.clock.total_steps}")

    def _read_newest(self) -> dict[str, Any]:
        """Read the newest checkpoint that rank 0 finds complete, on every rank."""
        run = self.run
        state: dict[str, Any] = {}
        with ranks.together(run.accelerator):
            if run.is_main:
                state = self.keeper.newest()
        step: int = ranks.from_main(run.accelerator, state["position"]["step"] if state else 0)
        with ranks.together(run.accelerator):
            return state or self.keeper.read(step)

    def _show(self, record: dict[str, Any]) -> None:
        self.watch.see(record)
        self.progress.show(record)

    def _notice(self, sentence: str) -> None:
        self.run.record({"kind": "notice", "step": self.run.clock.step, "message": sentence})

    # --- during ----------------------------------------------------------------------------------

    def carry_out(self) -> Outcome:
        """Train, select the best weights, evaluate them and write the results."""
        run = self.run
        loop = self.loop()
        self.ledger = loop.ledger
        self.ledger.restore(self.noted)
        reason = loop.train()
        require_finite(run)
        if any(ranks.everyones(run.accelerator, self.signals.received)) and self._is_saved():
            raise Interrupted(self.signals.after_training())
        state = fingerprint(run)
        best = self.keeper.extra.get("best", {})
        if best and best["step"] != run.clock.step:
            self._load_best(best["step"])
        final = self._final_evaluation()
        if final[1]:
            self.watch.end(final[0], final[1][0])
        outcome = Outcome(
            folder=run.folder,
            reason=reason,
            split=final[0],
            metrics=final[1][0].values if final[1] else {},
            best=best,
            fingerprint=state,
            seconds=time.perf_counter() - self.began,
        )
        self._write_results(outcome, final[1])
        return outcome

    def loop(self) -> Loop:
        """Build the training loop from the recipe's settings."""
        built, run = self.built, self.run
        plan = run.plan
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
            evaluate_every=Interval(evaluation.every_steps, evaluation.every_epochs),
            save_every=Interval(checkpoint.every_steps, checkpoint.every_epochs),
            log_every=plan.train.log_every,
            clip_norm=plan.train.clip_norm,
            keep_snapshot=(lambda: self.keeper.keep_snapshot(run)) if heals else None,
            roll_back=(lambda: self.keeper.roll_back(run)) if heals else None,
            stop_after=self.stop_after,
            vitals=self.watch.vitals,
        )

    def _save(self) -> None:
        self.keeper.extra["metrics_bytes"] = self.recorder.size()
        self.keeper.extra["micro_batch_size"] = self.built.feed.micro_batch_size
        if self.ledger is not None:
            self.keeper.extra["ledger"] = self.ledger.state()
        if self.run.replay is not None and self.keeper.current != self.run.clock.step:
            self.keeper.extra["replay"] = self.run.replay.state()
        if self.built.precision.scaler is not None:
            self.keeper.extra["scaler"] = self.built.precision.scaler.state_dict()
        self.keeper.save(self.run)

    def _evaluate(self) -> None:
        """Evaluate the validation split; have a checkpoint saved if it is the best so far."""
        run = self.run
        if "validation" not in run.splits:
            return
        plain = self._evaluate_split("validation")[0]
        self.watch.look(plain, plain.batch_size)
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

    def _evaluate_split(
        self, name: str, check: Callable[[], None] = lambda: None
    ) -> list[Evaluated]:
        settings = self.run.plan.evaluation
        wanted = settings.batch_size or 2 * self.built.feed.micro_batch_size
        size = min(wanted, self.room or wanted)
        results = evaluate(
            self.run,
            name,
            self.built.precision,
            batch_size=size,
            metrics=settings.metrics,
            check=check,
        )
        if results[-1].batch_size < size:
            self.room = results[-1].batch_size
        return results

    # --- after -----------------------------------------------------------------------------------

    def _load_best(self, step: int) -> None:
        run = self.run
        with ranks.together(run.accelerator):
            weights = self.keeper.read(step)["model"]
        sharding.load_model(run, weights)

    def _final_evaluation(self) -> tuple[str, list[Evaluated]]:
        run = self.run
        for name in ("test", "validation"):
            if name in run.splits and (name != "test" or run.plan.evaluation.test):
                return name, self._evaluate_split(name, self._check_final)
        return "", []

    def _check_final(self) -> None:
        """Leave the final evaluation at a signal, if a checkpoint is there to begin it again from."""
        alone = self.run.accelerator.num_processes == 1  # other ranks would wait for this one
        if self.signals.received and alone and self._is_saved():
            raise Interrupted(self.signals.after_training())

    def _is_saved(self) -> bool:
        return self.keeper.current == self.run.clock.step

    def _write_results(self, outcome: Outcome, final: list[Evaluated]) -> None:
        run = self.run
        weights = sharding.whole_model(run)
        with ranks.together(run.accelerator):
            if run.is_main:
                self.files.write_last(outcome, final, weights, self.watch)


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
