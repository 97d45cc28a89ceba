"""Options of components: what a constructor takes, and whether a recipe's options fit.

`Signature` is read from source (see `signatures`), so that checking a recipe imports no torch.
"""

from __future__ import annotations

import json
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types as at

from sft_engine.recipe import Problem
from sft_engine.sentences import choices, show_value, suggest
from sft_engine.signatures import Option, Signature, signature_of

__all__ = ["Option", "Signature", "allowed", "check_options", "model_of", "signature_of"]


def check_options(
    signature: Signature,
    options: Mapping[str, Any],
    *,
    key: str,
    owner: str,
    others: Sequence[str] = (),
) -> tuple[dict[str, Any], list[Problem]]:
    """Validate options against a signature, strictly: "32" is no number, though 1 is a float.

    Args:
        signature: What the component takes.
        options: As the recipe gives them.
        key: Of the component's table, before the dot of each problem's key; may be empty.
        owner: How messages call the component.
        others: Keys of the engine that may stand in the same table; they are suggested too.

    Returns:
        All options by name, defaults included, and every problem found.
    """
    model = model_of(signature)
    text = json.dumps(dict(options), default=_plain)
    problems, valid = _validate(model, text)
    if valid is None:
        says = _Sentences(signature, options, key, owner, tuple(others))
        # A union reports one problem for each of its members: one is enough.
        return {}, list(dict.fromkeys(map(says.problem, problems)))
    known = {option.name: getattr(valid, f"f{i}") for i, option in enumerate(signature.options)}
    return known | (valid.model_extra or {}), []


def model_of(signature: Signature) -> Any:
    """Return a pydantic model with the options of a signature as fields."""
    from pydantic import ConfigDict, Field, create_model

    # Fields are f0, f1, … with the true name as alias: `copy` and `json` are methods of a model.
    config = ConfigDict(
        extra="allow" if signature.open else "forbid", strict=True, arbitrary_types_allowed=False
    )
    fields: dict[str, Any] = {}
    for index, option in enumerate(signature.options):
        default = ... if option.required else option.default
        field = Field(default, alias=option.name, description=option.help or None)
        fields[f"f{index}"] = (_supported(option.annotation), field)
    name = signature.target.rpartition(":")[2] or "Options"
    return create_model(name, __config__=config, **fields)


def allowed(annotation: Any) -> str:
    """Say in words which values an annotation allows: "a number greater than 0"."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *constraints = get_args(annotation)
        bounds = _bounds(constraints)
        return f"{allowed(inner)} {'of ' if bounds.startswith('at ') else ''}{bounds}".strip()
    if origin is Literal:
        return _either([show_value(value) for value in get_args(annotation)])
    if origin in (Union, types.UnionType):
        return _either([allowed(a) for a in get_args(annotation) if a is not types.NoneType])
    if origin is not None:
        return _container(origin, get_args(annotation))
    return _PLAIN.get(annotation, "any value" if annotation is Any else _name(annotation))


_PLAIN: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "a string",
    bool: "true or false",
    list: "a list",
    tuple: "a list",
    dict: "a table",
}


def _name(annotation: Any) -> str:
    name = getattr(annotation, "__name__", str(annotation))
    return "a path" if name.endswith("Path") else f"a value of type {name}"


_BOUNDS = {
    at.Gt: ("gt", "greater than {}"),
    at.Ge: ("ge", "at least {}"),
    at.Lt: ("lt", "less than {}"),
    at.Le: ("le", "at most {}"),
    at.MultipleOf: ("multiple_of", "a multiple of {}"),
    at.MinLen: ("min_length", "at least {} long"),
    at.MaxLen: ("max_length", "at most {} long"),
}


def _bounds(constraints: Iterable[Any]) -> str:
    return " and ".join(filter(None, map(_bound, constraints)))


def _bound(constraint: Any) -> str:
    if isinstance(constraint, at.GroupedMetadata):
        return _bounds(constraint)
    attribute, words = _BOUNDS.get(type(constraint), ("", ""))
    return words.format(getattr(constraint, attribute)) if attribute else ""


def _container(origin: Any, arguments: tuple[Any, ...]) -> str:
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        if len(set(arguments)) == 1:
            return f"a list of {len(arguments)} {_many(arguments[0])}"
        return "a list of " + ", ".join(map(allowed, arguments))
    kind = "table" if issubclass(origin, Mapping) else "list"
    item = arguments[-1] if kind == "table" else (arguments or (Any,))[0]
    return f"a {kind} of {_many(item)}"


_PLURALS: dict[Any, str] = {int: "whole numbers", float: "numbers", str: "strings"}


def _many(annotation: Any) -> str:
    """Say "numbers", or "numbers, each greater than 0"."""
    inner, *constraints = get_args(annotation) if _is_annotated(annotation) else (annotation,)
    plural = _PLURALS.get(inner)
    if plural is None:
        return "any values" if annotation is Any else f"items, each {allowed(annotation)}"
    bounds = _bounds(constraints)
    return f"{plural}, each {bounds}" if bounds else plural


def _is_annotated(annotation: Any) -> bool:
    return get_origin(annotation) is Annotated


def _either(choices: list[str]) -> str:
    unique = list(dict.fromkeys(choices))
    return " or ".join(filter(None, [", ".join(unique[:-1]), unique[-1]]))


def _supported(annotation: Any) -> Any:
    """Return the annotation, or Any if pydantic cannot check it (a tensor, a module)."""
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticUserError

    try:
        TypeAdapter(annotation)
    except (PydanticUserError, NameError, TypeError):
        return Any
    return annotation


def _validate(model: Any, text: str) -> tuple[list[Any], Any]:
    from pydantic import ValidationError

    try:
        return [], model.model_validate_json(text, strict=True)
    except ValidationError as error:
        return error.errors(include_url=False), None


@dataclass(frozen=True)
class _Sentences:
    """Turns what pydantic found into problems of a recipe."""

    signature: Signature
    options: Mapping[str, Any]
    key: str
    owner: str
    others: tuple[str, ...]

    def problem(self, error: Mapping[str, Any]) -> Problem:
        name = str(error["loc"][0])
        key = f"{self.key}.{name}" if self.key else name
        if error["type"] == "extra_forbidden":
            return Problem(key, f"{self.owner} has no such option", self._known(name))
        option = next(o for o in self.signature.options if o.name == name)
        needed = allowed(option.annotation)
        if name not in self.options:
            hint = f"its help says: {option.help}" if option.help else ""
            return Problem(key, f"missing, needed: {needed}", hint)
        message = f"found {show_value(self.options[name])}, allowed: {needed}"
        if error["type"] in ("value_error", "assertion_error"):
            message += f" ({error['msg']})"
        return Problem(key, message)

    def _known(self, name: str) -> str:
        near = suggest(name, (*self.signature.names, *self.others))
        listed = choices(self.signature.names) or "it has none"
        if self.others:
            listed += f", and the engine's {choices(self.others).removeprefix('allowed: ')}"
        return f"{near} {listed[0].upper()}{listed[1:]}" if near else listed


def _plain(value: Any) -> str:
    """Dates and times of TOML, as JSON writes them."""
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
