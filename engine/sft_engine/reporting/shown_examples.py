"""Examples of the final evaluation worth a look: sure and wrong, unsure, far off."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sft_engine import sections

if TYPE_CHECKING:
    from datasets import Dataset

MOST = 8
"""Examples of a list."""
LONGEST_TEXT = 400
SIDE = 96
"""Pixels of the longer side of a picture."""
_NUMBERS = 8

Records = Sequence[Mapping[str, Any]]
Rows = Callable[[int], Mapping[str, Any]]
"""Returns an example's inputs as `examples` shows them; `image` is a picture."""


def lists(records: Records, inputs: Rows) -> Iterator[sections.Block]:
    """Return lists of examples, whichever the task has.

    Args:
        records: What `Task.records` returns, in the order of the split.
        inputs: What is shown of an example with this index.
    """
    if any("probabilities" not in record or "label" not in record for record in records):
        found = _far_off(records)
        if found:
            yield _block("Furthest off", found, inputs)
        return
    if any(isinstance(record["label"], list) for record in records):
        yield from _many_labels(records, inputs)
        return
    wrong = sorted(_errors(records), key=lambda each: (-each[1]["probability"], each[0]))
    if wrong:
        title = "Most confident errors: mistakes of the model, or of the labels"
        yield _block(title, wrong[:MOST], inputs)
    unsure = sorted(_margins(records), key=lambda each: (each[1]["lead"], each[0]))
    yield _block("Least certain: two classes nearly equal", unsure[:MOST], inputs)


Found = tuple[int, dict[str, Any]]


def _block(title: str, found: Sequence[Found], inputs: Rows) -> sections.Block:
    rows = [{**inputs(index), **said} for index, said in found]
    columns = list(dict.fromkeys(name for row in rows for name in row if name != "image"))
    return sections.examples(title, columns, rows)


def _errors(records: Records) -> Iterator[Found]:
    for index, record in enumerate(records):
        chosen, label = record["prediction"], record["label"]
        if chosen is not None and label is not None and chosen != label:
            shares = record["probabilities"]
            yield (
                index,
                {
                    "true": label,
                    "predicted": chosen,
                    "probability": shares[chosen],
                    "given to the true class": shares[label],
                },
            )


def _margins(records: Records) -> Iterator[Found]:
    for index, record in enumerate(records):
        shares = sorted(record["probabilities"].items(), key=lambda each: -each[1])
        if record["prediction"] is None or record["label"] is None or not shares[1:]:
            continue
        (first, one), (second, two) = shares[:2]
        said = {"true": record["label"], "predicted": first, "nearly": second, "lead": one - two}
        yield index, said


def _many_labels(records: Records, inputs: Rows) -> Iterator[sections.Block]:
    """Show the examples with the greatest mean cross-entropy over labels."""
    found: list[Found] = []
    for index, record in enumerate(records):
        if record["prediction"] is None:
            continue
        true, shares = set(record["label"]), record["probabilities"]
        parts = [share if name in true else 1 - share for name, share in shares.items()]
        loss = -sum(math.log(max(part, 1e-12)) for part in parts) / len(parts)
        named = {"true": record["label"], "predicted": record["prediction"]}
        said = {key: ", ".join(labels) or "none" for key, labels in named.items()}
        if set(record["prediction"]) != true:
            found.append((index, {**said, "loss": loss}))
    found.sort(key=lambda each: (-each[1]["loss"], each[0]))
    if found:
        title = "Most confident errors: mistakes of the model, or of the labels"
        yield _block(title, found[:MOST], inputs)


def _far_off(records: Records) -> list[Found]:
    """Return the examples of a regression whose error is greatest, for one number or several."""
    found: list[Found] = []
    for index, record in enumerate(records):
        predicted, true = record.get("prediction"), record.get("label")
        pairs = _pairs(predicted, true)
        errors = [abs(one - two) for one, two in pairs]
        if errors and all(map(math.isfinite, errors)):
            said = {"true": _listed(true), "predicted": _listed(predicted), "error": max(errors)}
            found.append((index, said))
    found.sort(key=lambda each: (-each[1]["error"], each[0]))
    return found[:MOST]


def _pairs(predicted: Any, true: Any) -> list[tuple[float, float]]:
    if isinstance(predicted, dict) and isinstance(true, dict):
        return [(predicted[name], true[name]) for name in true]
    both = isinstance(predicted, (int, float)) and isinstance(true, (int, float))
    return [(predicted, true)] if both else []


def _listed(value: Any) -> str | float:
    if isinstance(value, dict):
        return ", ".join(f"{name} {each:.4g}" for name, each in value.items())
    return float(value)


# --- What is shown of an example ------------------------------------------------------------------


def rows_of(data: Dataset, roles: Sequence[str], every: int = 1) -> Rows:
    """Return how the inputs of a split's rows are shown, by role; of each `every`th row alone."""
    kept = data.select_columns([n for n in (*roles, "row") if n in data.column_names])

    def shown(index: int) -> Mapping[str, Any]:
        found = {role: value for role, value in kept[index * every].items() if value is not None}
        number = found.pop("row", index * every)
        cells = {name: value for name, value in map(_shown, found, found.values()) if value}
        return {**cells, "row": int(number)}

    return shown


def _shown(role: str, value: Any) -> tuple[str, Any]:
    if role == "image":
        return "image", thumbnail(value)
    if isinstance(value, str):
        return role, value if len(value) <= LONGEST_TEXT else value[: LONGEST_TEXT - 1] + "…"
    if isinstance(value, (list, tuple)) and all(isinstance(v, (int, float)) for v in value):
        rest = " …" if len(value) > _NUMBERS else ""
        return role, ", ".join(f"{v:.4g}" for v in value[:_NUMBERS]) + rest
    if isinstance(value, dict) and isinstance(value.get("path"), str):
        return role, value["path"]
    return role, ""


def thumbnail(value: Any) -> str:
    """Return a small picture as a `data:` URI; empty if the image cannot be read."""
    from sft_engine.images.decoding import ImageError, decode

    try:
        picture = decode(value)
    except ImageError:
        return ""
    scale = SIDE / max(picture.size)
    if scale < 1:
        picture = picture.resize([max(1, round(side * scale)) for side in picture.size])
    file = io.BytesIO()
    small = max(picture.size) <= SIDE // 3
    if small:  # a few pixels are sharp, and smaller, without loss
        picture.save(file, format="PNG", optimize=True)
    else:
        picture.save(file, format="JPEG", quality=75, optimize=True)
    form = "png" if small else "jpeg"
    return f"data:image/{form};base64,{base64.b64encode(file.getvalue()).decode()}"
