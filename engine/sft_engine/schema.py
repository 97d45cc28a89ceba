"""The JSON Schema of whole recipes, for all installed components: editors complete and check with it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sft_engine.components import KINDS
from sft_engine.drafts import LIST_KINDS, PHASE, RECIPE_KINDS, STREAM
from sft_engine.options import model_of
from sft_engine.signatures import Signature, signature_of

if TYPE_CHECKING:
    from sft_engine.entries import Entry
    from sft_engine.plugins import Plugins

DRAFT = "https://json-schema.org/draft/2020-12/schema"
REQUIRED = ("task", "data", "backbone")

_SETTINGS = {
    "train": "TrainSettings",
    "evaluation": "EvaluationSettings",
    "checkpoint": "CheckpointSettings",
}


def schema(plugins: Plugins) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a recipe that these plugins can run.

    Raises:
        Exception: a component's signature cannot be read and importing it fails.
    """
    shared: dict[str, Any] = {}
    kinds = {kind: _kind(kind, plugins, shared) for kind in RECIPE_KINDS}
    settings = {key: _settings(name, shared) for key, name in _SETTINGS.items()}
    lists = {STREAM: _streams(plugins, shared), PHASE: _phases(shared)}
    seeds = _settings("SeedSettings", shared)
    seed = seeds["properties"].pop("seed")
    extends = {"type": "string", "description": "Another recipe, relative to this one, to inherit."}
    return {
        "$schema": DRAFT,
        "title": "Recipe of sft-engine",
        "type": "object",
        "properties": {
            "extends": extends,
            "seed": seed,
            "seeds": seeds,
            **kinds,
            **settings,
            **lists,
        },
        "additionalProperties": False,
        # A recipe that extends another may leave to it what a whole recipe must say.
        "if": {"required": ["extends"]},
        "else": {"required": list(REQUIRED), "properties": _whole()},
        "$defs": shared,
    }


def _whole() -> dict[str, Any]:
    singles = [kind for kind in RECIPE_KINDS if kind not in LIST_KINDS]
    return {kind: {"required": ["use"]} for kind in singles}


def _kind(kind: str, plugins: Plugins, shared: dict[str, Any]) -> dict[str, Any]:
    components = [_component(entry, shared) for entry in plugins.catalog.entries(kind)]
    if kind in LIST_KINDS:
        items = {"oneOf": components, "required": ["use"]} if components else False
        return {"type": "array", "items": items, "description": KINDS[kind]}
    inherited = {"type": "object", "not": {"required": ["use"]}}
    return {"type": "object", "oneOf": [*components, inherited], "description": KINDS[kind]}


def _streams(plugins: Plugins, shared: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of `[[stream]]`: data components with the engine's keys of a stream."""
    own = _settings("StreamSettings", shared)
    items = [_stream(entry, own, shared) for entry in plugins.catalog.entries("data")]
    made = {"oneOf": items, "required": ["use", *own["required"]]} if items else False
    return {"type": "array", "items": made, "description": own["description"]}


def _stream(entry: Entry, own: dict[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
    made = _component(entry, shared, settings="StreamSettings")
    # An option that has the name of one of these keys is written below `data`.
    made["required"] = [key for key in made["required"] if key not in own["properties"]]
    return made


def _phases(shared: dict[str, Any]) -> dict[str, Any]:
    items = _settings("PhaseSettings", shared)
    return {"type": "array", "items": items, "description": items["description"]}


def _component(
    entry: Entry, shared: dict[str, Any], settings: str = "DataSettings"
) -> dict[str, Any]:
    prefix = f"{entry.kind}.{entry.name.replace('/', '.')}"
    made = _object(signature_of(entry.target), prefix, shared)
    if entry.kind == "data":
        made["properties"] |= _settings(settings, shared)["properties"]
    use = {"const": entry.name, "description": entry.summary}
    made["properties"] = {"use": use, **made["properties"]}
    made["required"] = ["use", *made.get("required", [])]
    return made | {"title": f"{entry.name} ({entry.owner})", "description": entry.summary}


def _settings(name: str, shared: dict[str, Any]) -> dict[str, Any]:
    return _object(signature_of(f"sft_engine.settings:{name}"), name, shared)


def _object(signature: Signature, prefix: str, shared: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a table; what it refers to goes into `shared`, names prefixed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a default that JSON cannot hold is left out
        made = model_of(signature).model_json_schema(ref_template=f"#/$defs/{prefix}.{{model}}")
    shared |= {f"{prefix}.{name}": each for name, each in made.get("$defs", {}).items()}
    table: dict[str, Any] = {
        "type": "object",
        "description": signature.summary,
        "properties": {k: _untitled(v) for k, v in made.get("properties", {}).items()},
        "additionalProperties": signature.open,
    }
    if "required" in made:
        table["required"] = made["required"]
    return table


def _untitled(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: each for key, each in value.items() if key != "title"}
