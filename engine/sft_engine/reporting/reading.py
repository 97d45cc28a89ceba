"""What a report is made of, read from the folder of a run, a study or a comparison."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sft_engine.errors import CheckpointError
from sft_engine.reporting.built_in import add_of_files, read_records
from sft_engine.reporting.page import Source

REPORT = "report.json"
OTHERS = {"study.json": "Study", "comparison.json": "Comparison"}
"""What marks the folder of something else than a run."""


def read_source(folder: Path) -> Source:
    """Return what the page of a folder shows; of a run that has not ended, what there is.

    Raises:
        CheckpointError: the folder holds none of these, or a file in it cannot be read.
    """
    other = next((name for name in OTHERS if (folder / name).exists()), "")
    report = read_json(folder / REPORT)
    facts = read_json(folder / "run.json")
    if not (other or report or facts):
        raise CheckpointError(
            f"{folder} has neither {REPORT} nor run.json: it is not the folder of a run, a study or a "
            "comparison; name the folder that `sft-engine run` printed"
        )
    if other:
        found = {**read_json(folder / other), **report}
        facts = found.get("facts") or {}
        return Source(_title(found, folder), found, facts, _recipe(folder), OTHERS[other])
    if not report:
        report = _unfinished(facts)
    if "gap" not in report:  # not ended, or written before there were sections
        add_of_files(report, read_records(folder / "metrics.jsonl"), facts.get("label_names", ()))
    return Source(_title(report, folder), report, facts, _recipe(folder))


def _unfinished(facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "recipe": facts.get("recipe", ""),
        "status": facts.get("status", "running"),
        "message": facts.get("message", ""),
        "metrics": {},
        "steps": 0,
    }


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object, empty if there is no such file.

    Raises:
        CheckpointError: it is no JSON object.
    """
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}: {error}); put it back, or start the recipe "
            "again with `sft-engine run`"
        ) from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds {type(found).__name__}, not an object; put it back")
    return found


def _recipe(folder: Path) -> str:
    path = folder / "recipe.toml"
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _title(report: dict[str, Any], folder: Path) -> str:
    """Return the title that is given, the name of the recipe, or that of the folder."""
    for key in ("title", "recipe"):
        name = report.get(key)
        if isinstance(name, str) and name and "\n" not in name:
            return _stem(name)
    return folder.name


def _stem(name: str) -> str:
    return name.removesuffix(".toml").removesuffix(".json")
