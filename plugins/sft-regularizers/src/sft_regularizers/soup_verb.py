"""`sft-engine soup` as a function: read the runs, choose, average, measure, write a run folder."""

from __future__ import annotations

import dataclasses
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch.nn.modules.batchnorm import _BatchNorm

from sft_engine import RecipeError, launch
from sft_engine.assemble import build_model, reopen
from sft_engine.devices import enough_memory, own_state, wrap
from sft_engine.evaluation import Evaluated, evaluate
from sft_engine.exporting.folder import choose_output, new_folder
from sft_engine.metrics import direction_of
from sft_engine.records import library_versions, write_json, write_text
from sft_engine.run_files import model_card
from sft_engine.training import best_metric
from sft_regularizers.soup_members import HELD_OUT, Member, check_alike, read_members
from sft_regularizers.soups import PATTERN, average_files, greedy
from sft_regularizers.statistics import recompute_statistics

if TYPE_CHECKING:
    from sft_engine import Run
    from sft_engine.assemble import Reopened

Method = Literal["uniform", "greedy"]
DESCRIPTION = "soup.json"
_LESS_MEMORY = "set a smaller batch size (`--set evaluation.batch_size=…`)"


@dataclasses.dataclass(frozen=True)
class Soup:
    """A soup that was written.

    Args:
        folder: Where it is.
        method: `uniform` or `greedy`.
        metric: Of the validation split; empty if there is none.
        direction: `max` or `min`.
        members: Of each run its folder, its value alone, and whether it is in the soup.
        steps: Of the greedy recipe: the run that was tried, the soup's value with it, whether it was kept.
        value: What the soup reaches on the validation split; None if there is none.
        split: Of `metrics`: `test`, or `validation` where there is none; empty if neither is there.
        metrics: What the soup reaches there.
        batch_norm: `none` in the model, `recomputed` on training data, or the `mean` of the members'.
    """

    folder: Path
    method: str
    metric: str
    direction: str
    members: list[dict[str, Any]]
    steps: list[dict[str, Any]]
    value: float | None
    split: str
    metrics: dict[str, Any]
    batch_norm: str


def soup(  # noqa: PLR0913 - the options of the verb
    runs: Sequence[str | Path],
    *,
    output: str | Path,
    method: Method = "uniform",
    metric: str = "",
    overrides: Sequence[str] = (),
    different_start: bool = False,
    mean_statistics: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Soup:
    """Average the final weights of finished runs and write the result as a run folder.

    Args:
        runs: Run folders; recipe, data and settings of the result are those of the first.
        output: A new or empty folder.
        method: `uniform` takes all; `greedy` the best on validation, then each that does not make the mean
            worse.
        metric: Of the validation split; empty for `checkpoint.best`, or the task's main metric.
        overrides: Changes of the recipes, such as where the data is now.
        different_start: Accept runs that began with other weights or another head.
        mean_statistics: Average batch norm's statistics, instead of computing them on training data.
        say: Shows a line.

    Raises:
        RecipeError: the runs cannot be averaged, or there is no such metric.
        CheckpointError: a folder holds no finished run.
        OutputError: the output folder holds something, or cannot be written.
    """
    launch.require_one_process("soup")
    members = read_members([Path(run) for run in runs], overrides)
    target = choose_output(Path(output))
    check_alike(members, different_start=different_start)
    with own_state(0), enough_memory(_LESS_MEMORY), new_folder(target) as folder:
        kitchen = Kitchen(members, folder, metric, mean_statistics=mean_statistics)
        return kitchen.cook(method, target, say)


class Kitchen:
    """What the steps of one soup share: the data, and a model of the members' architecture.

    Args:
        members: The runs.
        folder: Where the soup goes.
        metric: As asked for; empty for the usual one.
        mean_statistics: Average batch norm's statistics.
    """

    def __init__(
        self, members: Sequence[Member], folder: Path, metric: str, *, mean_statistics: bool
    ) -> None:
        self.members, self.folder, self.mean_statistics = members, folder, mean_statistics
        first = members[0]
        self.began = time.perf_counter()
        self.opened: Reopened = reopen(first.plan, first.folder, first.labels)
        self.run: Run = self.opened.run
        self.metric = metric or best_metric(self.run) or self.run.task.main_metric
        wanted = self.run.plan.checkpoint.direction
        self._direction = "auto" if metric else wanted
        self.norms = any(isinstance(m, _BatchNorm) for m in self.run.model.modules())

    @property
    def measured(self) -> bool:
        """Whether there is a validation split."""
        return "validation" in self.run.splits

    @property
    def direction(self) -> str:
        """Which way the metric is better."""
        return direction_of(self.metric) if self._direction == "auto" else self._direction

    def cook(self, method: Method, target: Path, say: Callable[[str], None]) -> Soup:
        """Choose the members, write their mean and everything beside it."""
        values = [self._alone(index, say) for index in range(len(self.members))]
        steps: list[dict[str, Any]] = []
        chosen = list(range(len(self.members)))
        if method == "greedy":
            chosen, steps = self._greedily(values, say)
        self._write_model(chosen, self.folder / "model")
        value = self._measure() if self.measured else None
        split, result = self._final()
        made = Soup(
            folder=target,
            method=method,
            metric=self.metric if self.measured else "",
            direction=self.direction if self.measured else "",
            members=[
                {"run": str(m.folder), "value": v, "chosen": i in chosen}
                for i, (m, v) in enumerate(zip(self.members, values, strict=True))
            ],
            steps=steps,
            value=value,
            split=split,
            metrics=result.values if result else {},
            batch_norm=self._norm_note(len(chosen)),
        )
        self._write_rest(made)
        return made

    # --- measuring -------------------------------------------------------------------------------

    def _alone(self, index: int, say: Callable[[str], None]) -> float | None:
        if not self.measured:
            return None
        self._load(self.members[index].model)
        value = self._measure()
        say(f"{self.members[index].folder}  validation {self.metric} {value:.4g}")
        return value

    def _greedily(
        self, values: Sequence[float | None], say: Callable[[str], None]
    ) -> tuple[list[int], list[dict[str, Any]]]:
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            raise RecipeError(
                "the greedy soup chooses on the validation split, and the data has none: set "
                "`data.validation` in the recipes, or use --method uniform"
            )
        steps, chosen = [], []
        for step in greedy(known, self._measure_mean, self.direction):
            name = str(self.members[step.member].folder)
            say(f"{'+' if step.kept else '-'} {name}  validation {self.metric} {step.value:.4g}")
            steps.append({"run": name, "value": step.value, "kept": step.kept})
            chosen += [step.member] if step.kept else []
        return sorted(chosen), steps

    def _measure_mean(self, chosen: Sequence[int]) -> float:
        with tempfile.TemporaryDirectory(prefix=".tmp-", dir=self.folder) as temporary:
            self._write_model(chosen, Path(temporary) / "model", final=False)
            return self._measure()

    def _measure(self) -> float:
        """Return the metric of the current weights on the validation split."""
        return float(self._evaluate("validation", (self.metric,)).values[self.metric])

    def _evaluate(self, split: str, metrics: tuple[str, ...]) -> Evaluated:
        plan = self.run.plan
        size = plan.evaluation.batch_size or 2 * (
            plan.train.micro_batch_size or plan.train.batch_size
        )
        precision = self.opened.precision
        (result,) = evaluate(
            self.run, split, precision, batch_size=size, metrics=metrics, only_plain=True
        )
        return result

    def _final(self) -> tuple[str, Evaluated | None]:
        """Evaluate what a run evaluates at its end."""
        plan = self.run.plan
        for split in reversed(HELD_OUT):
            if split in self.run.splits and (split != "test" or plan.evaluation.test):
                return split, self._evaluate(split, plan.evaluation.metrics)
        return "", None

    # --- weights ---------------------------------------------------------------------------------

    def _load(self, folder: Path) -> None:
        """Put saved weights in the place of the model's, as the backbone reads them."""
        planned = next(a.planned for a in self.run.active if a.planned.kind == "backbone")
        backbone: Any = planned.build()
        backbone.open(lambda _: str(folder))
        self.run.backbone, self.run.layer_groups = backbone, []
        build_model(self.run)
        wrap(self.run)

    def _write_model(self, chosen: Sequence[int], folder: Path, *, final: bool = True) -> None:
        """Write the mean of some members, and have it as the run's model."""
        first = self.members[0].model
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(first, folder, ignore=_no_weights)
        average_files([self.members[index].model for index in chosen], folder)
        self._load(folder)
        if self._norm_note(len(chosen)) == "recomputed":
            recompute_statistics(self.run, self.run.model)
            if final:
                self.run.backbone.save(self.run.model, folder, self.run.task)

    def _norm_note(self, count: int) -> str:
        """Say where batch norm's statistics are from; a single member keeps its own."""
        if not self.norms:
            return "none"
        return "mean" if self.mean_statistics or count == 1 else "recomputed"

    # --- files -----------------------------------------------------------------------------------

    def _write_rest(self, made: Soup) -> None:
        first, folder = self.members[0], self.folder
        plain = {**dataclasses.asdict(made), "folder": str(made.folder)}
        about = {k: v for k, v in plain.items() if k not in ("folder", "split", "metrics")}
        write_json(folder / DESCRIPTION, about)
        write_text(folder / "recipe.toml", first.plan.resolved().to_toml())
        write_json(
            folder / "run.json",
            {
                **{k: v for k, v in first.facts.items() if k != "optimizer"},
                "libraries": library_versions(),
                "python": platform.python_version(),
                "platform": platform.platform(),
                "command": sys.argv,
                "soup": [each["run"] for each in made.members if each["chosen"]],
                "status": "done",
            },
        )
        report: dict[str, Any] = {
            "recipe": first.facts.get("recipe", "recipe.toml"),
            "reason": f"{made.method} soup of {sum(m['chosen'] for m in made.members)} runs",
            "split": made.split,
            "metrics": made.metrics,
            "best": {},
            "seconds": round(time.perf_counter() - self.began, 1),
            "soup": about,
        }
        write_json(folder / "report.json", report)
        card = folder / "model" / "README.md"
        write_text(card, _card(model_card(self.run, report), about))
        for path in card.parent.rglob(PATTERN):  # written for the owner alone
            path.chmod(card.stat().st_mode)


def _no_weights(folder: str, names: list[str]) -> list[str]:
    """Name what of a model's folder belongs to one run: weights, folders with adapters, the card."""
    own = {path.name for path in Path(folder).glob(PATTERN)} | {"README.md"}
    own |= {path.parent.name for path in Path(folder).glob(f"*/{PATTERN}")}
    return [name for name in names if name in own]


def _card(card: str, about: dict[str, Any]) -> str:
    """Say at the top of a model card what the weights are."""
    title, rest = card.split("\n", 1)
    runs = ", ".join(each["run"] for each in about["members"] if each["chosen"])
    return f"{title}\n\nThe mean of the weights of several runs ({about['method']} soup): {runs}.\n{rest}"
