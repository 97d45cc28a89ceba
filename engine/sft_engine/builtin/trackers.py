"""Trackers: pass the numbers of a run on to TensorBoard, Weights & Biases or MLflow.

All three go through `accelerate.tracking`. Rank 0 alone sends; metrics.jsonl is written in any case.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import uuid
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sft_engine.errors import Interrupted, RecipeError
from sft_engine.hookspecs import hookimpl

if TYPE_CHECKING:
    from collections.abc import Mapping

    from accelerate.tracking import GeneralTracker

    from sft_engine.catalog import Plan
    from sft_engine.flow import Run


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a record as `train/loss`, `validation/accuracy`, `test/VIEW/accuracy`.

    NaN and infinity are numbers too: a tracker shows what happened.
    """
    prefix = "/".join(filter(None, (record.get("split") or record["kind"], record.get("view"))))
    return {
        f"{prefix}/{name}": value
        for name, value in record.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and name != "step"
    }


def hyper_parameters(plan: Plan) -> dict[str, str | int | float | bool]:
    """Return every option of a plan, defaults included, as `optimizer.lr` or `regularizer.0.alpha`."""
    tables: dict[str, Mapping[str, Any]] = {
        name: vars(getattr(plan, name))
        for name in ("seeds", "train", "data", "evaluation", "checkpoint")
    }
    found = {
        f"{name}.{key}": value for name, table in tables.items() for key, value in table.items()
    }
    for component in plan.components:
        key = component.key.replace("[", ".").replace("]", "")
        found[f"{key}.use"] = component.name
        found |= {f"{key}.{name}": value for name, value in component.options.items()}
    return {name: _plain(value) for name, value in found.items()}


def _plain(value: Any) -> str | int | float | bool:
    if isinstance(value, (str, int, float, bool)):
        return value
    return json.dumps(value, default=str)


class AccelerateTracker:
    """What the trackers share: open when the run is ready, send records, close at any end.

    Attributes:
        package: What must be installed; also the name of our extra that brings it.
    """

    package: ClassVar[str] = ""
    tracker: GeneralTracker | None

    def check(self) -> None:
        """Raise RecipeError if the package is missing; imports nothing."""
        if importlib.util.find_spec(self.package) is None:
            raise RecipeError(
                f"`tracker`: {type(self).__name__} needs the package {self.package}, which is not "
                f"installed: pip install 'sft-engine[{self.package}]'"
            )

    def open(self, run: Run) -> GeneralTracker:
        """Return the started tracker of Accelerate."""
        raise NotImplementedError

    def send(self, tracker: GeneralTracker, values: dict[str, float], step: int) -> None:
        """Send the numbers of one record."""
        tracker.log(values, step=step)

    def finish(
        self,
        tracker: GeneralTracker,
        error: BaseException | None,  # noqa: ARG002 (others tell their server)
    ) -> None:
        """Close the tracker."""
        tracker.finish()

    @hookimpl
    def sft_setup(self, run: Run) -> None:
        """Open the tracker on rank 0, with the recipe as hyper-parameters."""
        self.check()  # on every rank, so that all of them stop
        if run.is_main:
            self.tracker = self.open(run)
            self.tracker.store_init_configuration(hyper_parameters(run.plan))

    @hookimpl
    def sft_log(self, run: Run, record: dict[str, Any]) -> None:
        """Send a record that holds numbers; a server that does not answer must not end the run."""
        values = scalars(record)
        if self.tracker is None or not values:
            return
        step = record.get("step", run.clock.step)
        try:
            self.send(self.tracker, values, step)
        except Exception as error:  # noqa: BLE001 (whatever a tracker's library raises)
            warnings.warn(
                f"{self.package} did not take the record of step {step}, metrics.jsonl has it: {error}",
                RuntimeWarning,
                stacklevel=2,
            )

    @hookimpl
    def sft_teardown(self, error: BaseException | None) -> None:
        """Close the tracker, if it was opened."""
        tracker, self.tracker = self.tracker, None
        if tracker is not None:
            self.finish(tracker, error)


@dataclass(eq=False, kw_only=True)
class TensorBoard(AccelerateTracker):
    """Writes events that `tensorboard --logdir RUN` shows, to `tensorboard/` in the run folder."""

    package: ClassVar[str] = "tensorboard"
    tracker: GeneralTracker | None = field(default=None, init=False)

    def open(self, run: Run) -> GeneralTracker:
        """Return the started tracker; a resumed run hides what it is about to write again."""
        from accelerate.tracking import TensorBoardTracker

        step = run.clock.step
        again = {"purge_step": step + 1} if step else {}
        tracker = TensorBoardTracker("tensorboard", run.folder, **again)
        tracker.start()
        return tracker


@dataclass(eq=False, kw_only=True)
class WandB(AccelerateTracker):
    """Sends records to Weights & Biases; a resumed run goes on in the same W&B run.

    Args:
        project: Project in W&B.
        name: Name of the run there; empty means that of the run folder.
        entity: User or team; empty means W&B's own default.
        mode: `offline` writes to the run folder, for `wandb sync`.
        tags: Words to find the run by.
    """

    package: ClassVar[str] = "wandb"
    project: str = "sft-engine"
    name: str = ""
    entity: str = ""
    mode: Literal["online", "offline", "disabled"] = "online"
    tags: tuple[str, ...] = ()
    tracker: GeneralTracker | None = field(default=None, init=False)

    def open(self, run: Run) -> GeneralTracker:
        """Return the started tracker."""
        from accelerate.tracking import WandBTracker

        memory = run.folder / "wandb-id"
        if not memory.exists():
            memory.write_text(uuid.uuid4().hex[:8], encoding="utf-8")
        tracker = WandBTracker(
            self.project,
            name=self.name or run.folder.name,
            entity=self.entity or None,
            mode=self.mode,
            tags=self.tags,
            dir=str(run.folder),
            id=memory.read_text(encoding="utf-8"),
            resume="allow",
        )
        tracker.start()
        # Our own step, because W&B drops what comes with a smaller step: after a resume, and for the
        # final evaluation of weights from an earlier step.
        tracker.tracker.define_metric("step")
        tracker.tracker.define_metric("*", step_metric="step")
        return tracker

    def send(self, tracker: GeneralTracker, values: dict[str, float], step: int) -> None:
        """Send the numbers of one record."""
        tracker.log({**values, "step": step})

    def finish(self, tracker: GeneralTracker, error: BaseException | None) -> None:
        """Close the W&B run, as failed where the run has failed."""
        failed = error is not None and not isinstance(error, Interrupted)
        tracker.tracker.finish(exit_code=int(failed))


@dataclass(eq=False, kw_only=True)
class MlFlow(AccelerateTracker):
    """Sends records to MLflow; a resumed run goes on in the same MLflow run.

    The server is MLflow's own choice: set MLFLOW_TRACKING_URI.

    Args:
        experiment: Experiment in MLflow.
        name: Name of the run there; empty means that of the run folder.
    """

    package: ClassVar[str] = "mlflow"
    experiment: str = "sft-engine"
    name: str = ""
    tracker: GeneralTracker | None = field(default=None, init=False)

    def open(self, run: Run) -> GeneralTracker:
        """Return the started tracker."""
        from accelerate.tracking import MLflowTracker

        memory = run.folder / "mlflow-id"
        tracker = MLflowTracker(
            self.experiment,
            run_id=memory.read_text(encoding="utf-8") if memory.exists() else None,
            run_name=self.name or run.folder.name,
        )
        tracker.start()
        memory.write_text(tracker.tracker.info.run_id, encoding="utf-8")
        return tracker

    def send(self, tracker: GeneralTracker, values: dict[str, float], step: int) -> None:
        """Send the numbers of one record under names that MLflow allows."""
        tracker.log({mlflow_name(name): value for name, value in values.items()}, step=step)

    def finish(
        self,
        tracker: GeneralTracker,  # noqa: ARG002 (MLflow has one active run)
        error: BaseException | None,
    ) -> None:
        """Close the MLflow run with the status that fits."""
        ended = "KILLED" if isinstance(error, Interrupted) else "FAILED"
        mlflow = importlib.import_module("mlflow")  # Accelerate's tracker would say FINISHED
        mlflow.end_run("FINISHED" if error is None else ended)


def mlflow_name(name: str) -> str:
    """Return a metric name that every store of MLflow takes: `validation/f1/a:b` → `validation/f1.a_b`.

    A file store makes folders of slashes, so `train/loss` and `train/loss/task` exclude each other.
    """
    prefix, _, rest = name.partition("/")
    return re.sub(r"[^\w\-. /]", "_", f"{prefix}/{rest.replace('/', '.')}")
