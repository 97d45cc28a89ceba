"""The files of a run beside checkpoints and records: recipe and facts first, results and model last."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from sft_engine.checkpoint import as_os_error
from sft_engine.columns import row_numbers
from sft_engine.errors import OutputError
from sft_engine.records import cannot_write, provenance, remove, write_json, write_text
from sft_engine.reporting import write_page
from sft_engine.reporting.built_in import add_built_in
from sft_engine.reporting.verdict import verdict
from sft_engine.sentences import reason_of

if TYPE_CHECKING:
    from sft_engine.assemble import Assembled
    from sft_engine.diagnosis.watch import Watch
    from sft_engine.evaluation import Evaluated
    from sft_engine.flow import Run
    from sft_engine.training import Outcome


class RunFiles:
    """The files of one run, written by its rank 0.

    Args:
        built: The run, and what was found while it was built.
    """

    def __init__(self, built: Assembled) -> None:
        self._built = built
        self._found: set[Path] | None = None

    def remember(self) -> None:
        """Note what is in the folder before the run writes to it."""
        folder = self._built.run.folder
        self._found = {folder, *folder.iterdir()} if folder.exists() else set()

    def keep(self) -> None:
        """Leave what was written: the run has begun."""
        self._found = None

    def take_back(self) -> None:
        """Delete what a run has written that failed before it had begun."""
        run = self._built.run
        if self._found is None or not run.is_main:
            return
        folder = run.folder
        remove(set(folder.iterdir()) - self._found if folder.exists() else ())
        if folder not in self._found:
            remove([folder])

    def write_first(self) -> None:
        """Create the folder, and write the resolved recipe and what is needed to repeat the run.

        Raises:
            OutputError: the folder cannot be written.
        """
        built = self._built
        run = built.run
        try:
            run.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot create the run folder {run.folder}: {reason_of(error)}, or choose another one "
                "with --output"
            ) from error
        write_text(run.folder / "recipe.toml", run.plan.resolved().to_toml())
        write_json(
            run.folder / "run.json",
            {
                "recipe": self._recipe_name(),
                **provenance(run, built.precision.name, built.fingerprints),
                "label_names": list(run.task.head.names),
                "status": "running",
            },
        )

    def write_last(
        self, outcome: Outcome, final: list[Evaluated], weights: Any, watch: Watch
    ) -> None:
        """Write report.json, predictions, the page and the model.

        Args:
            outcome: What the run has reached.
            final: The final evaluation, a view each; the plain one first.
            weights: The model, whole.
            watch: Adds the diagnosis.

        Raises:
            OutputError: a file cannot be written.
        """
        run = self._built.run
        report = self._report(outcome, final, watch)
        write_json(run.folder / "report.json", report)
        if run.plan.evaluation.predictions:
            for result in final:
                write_predictions(run, outcome.split, result, run.folder)
        if run.plan.evaluation.page:
            write_page(run.folder)
        save_model(run, weights, report)

    def _report(self, outcome: Outcome, final: list[Evaluated], watch: Watch) -> dict[str, Any]:
        run, findings = self._built.run, self._built.findings
        report: dict[str, Any] = {
            "recipe": self._recipe_name(),
            "reason": outcome.reason,
            "steps": run.clock.step,
            "split": outcome.split,
            "metrics": outcome.metrics,
            "best": outcome.best,
            "fingerprint": outcome.fingerprint,
            "seconds": round(outcome.seconds, 1),
            "preflight": [{"level": f.level, "message": f.message} for f in findings],
        }
        add_built_in(run, report, final[0] if final else None)
        watch.report(report)
        if run.hooks.sft_report is not None:
            run.hooks.sft_report(run=run, report=report)
        report["verdict"] = verdict(report)
        return report

    def _recipe_name(self) -> str:
        """Return the name of the file that the run was started with, on resume too."""
        run = self._built.run
        path = run.folder / "run.json"
        if path.exists():
            return str(json.loads(path.read_text(encoding="utf-8"))["recipe"])
        own = run.plan.recipe.path
        return own.name if own else "recipe.toml"


def write_predictions(run: Run, split: str, result: Evaluated, folder: Path) -> None:
    """Write a view's predictions, one line an example in the order of the split.

    The plain view's are in `predictions/SPLIT.jsonl`, those of others in `predictions/SPLIT/VIEW.jsonl`.
    """
    numbers = row_numbers(run.splits[split].rows)[result.view.examples(run.splits[split])].tolist()
    records = zip(numbers, run.task.records(result.predictions), strict=True)
    lines = (json.dumps({"row": number, **record}) + "\n" for number, record in records)
    name = f"{split}/{result.view.name.replace('/', '-')}" if result.view.name else split
    write_text(folder / "predictions" / f"{name}.jsonl", lines)


def save_model(run: Run, weights: Any, report: dict[str, Any]) -> None:
    """Write `model/` whole or not at all, with a model card."""
    final, temporary = run.folder / "model", run.folder / ".tmp-model"
    remove([temporary])
    try:
        temporary.mkdir()
        run.backbone.save(as_its_library_reads(run, weights, temporary), temporary, run.task)
        write_text(temporary / "README.md", model_card(run, report))
        for path in temporary.rglob("*.safetensors"):  # written for the owner alone
            path.chmod((temporary / "README.md").stat().st_mode)
        remove([final])
        temporary.rename(final)
    except (OSError, SafetensorError, OutputError) as error:
        remove([temporary])
        if isinstance(error, OutputError):
            raise
        system = as_os_error(error) if isinstance(error, SafetensorError) else error
        raise cannot_write(final, system) from error


def as_its_library_reads(run: Run, weights: Any, folder: Path) -> Any:
    """Return the model to save: a copy that components have changed, where any wants to."""
    if run.hooks.sft_save_model is None:
        return weights
    model = copy.deepcopy(weights)
    run.hooks.sft_save_model(run=run, model=model, folder=folder)
    return model


def model_card(run: Run, report: dict[str, Any]) -> str:
    """Return a model card in Markdown: what was trained on what, and what it reached."""
    numbers = [
        f"| {name} | {value if isinstance(value, int) else format(value, '.4f')} |"
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
