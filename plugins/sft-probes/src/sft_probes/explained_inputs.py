"""A row of a task as the subject of an explanation: words of texts, cells of images, columns of tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from sft_engine import Batch, RecipeError, logits_of
from sft_engine.texts.embeddings import changed, input_embeddings, kept
from sft_probes.attribution import NO_PART, Subject, cells

if TYPE_CHECKING:
    from sft_engine import Run

Baseline = Literal["auto", "mask", "pad", "zero"]
Span = tuple[str, int, int]

TEXT, IMAGE, TABLE = "text", "image", "features"
ROLES = (TEXT, IMAGE, TABLE)
TOKENS = ("mask", "pad")
"""Baselines that only texts have, the first that a tokenizer has is the usual one."""
_EMBEDDED = 3


@dataclass(frozen=True)
class Explainable:
    """A row whose answer can be explained.

    Args:
        subject: What methods see of it.
        parts: Their names.
        spans: Where words are in their texts; empty where that is not known.
        shape: Rows and columns of the cells of a picture.
    """

    subject: Subject
    parts: tuple[str, ...]
    spans: tuple[Span, ...] = ()
    shape: tuple[int, int] | None = None


def role_of(run: Run, name: str) -> str:
    """Return which input of the task is explained.

    Raises:
        RecipeError: none can be.
    """
    for role in ROLES:
        if role in run.task.inputs:
            return role
    inputs = ", ".join(run.task.inputs)
    raise RecipeError(
        f"`{name}` explains answers to texts, images and tables, and the inputs of this task are {inputs}: "
        "leave the explanation out"
    )


def check_baseline(run: Run, role: str, baseline: Baseline, name: str) -> None:
    """Raise RecipeError if this run has no such baseline."""
    if role == TEXT:
        input_embeddings(run.model, f"`{name}`")
    if baseline not in TOKENS:
        return
    has = getattr(run.backbone, "fillers", {}) if role == TEXT else {}
    if baseline not in has:
        there = ", ".join(f'"{each}"' for each in ("auto", *has, "zero"))
        raise RecipeError(
            f'`explanation.baseline`: found "{baseline}", a token that this model does not have; '
            f"allowed: {there}"
        )


def explainable(
    run: Run, row: dict[str, Any], output: int, *, baseline: Baseline, edge: int
) -> Explainable:
    """Return a row as the subject of an explanation, in the precision of the weights.

    Args:
        run: Its model is in evaluation mode.
        row: Inputs by role.
        output: Which of the head's.
        baseline: What says nothing.
        edge: Rows and columns of the cells of a picture.
    """
    role = role_of(run, "explanation")
    inputs = run.backbone.collate(run.backbone.encode_rows([dict(row)], run.task))
    batch = Batch(inputs=inputs, targets={}, ids=[0])
    batch.to(run.device)
    if role == TEXT:
        return _text(run, row, batch, output, baseline)
    given = batch.inputs.get(role)
    if given is None:
        raise RecipeError(
            f'the backbone gives its model no tensor "{role}", but {", ".join(batch.inputs)}: answers of '
            "this model cannot be explained"
        )
    return _image(run, given, output, edge) if role == IMAGE else _table(run, given, output)


def _answer(run: Run, inputs: dict[str, Tensor], output: int) -> Tensor:
    """Return one output (n,) in float32."""
    with torch.autocast(run.device.type, enabled=False):
        return logits_of(run.backbone.forward(run.model, inputs))[:, output].float()


# --- Images and tables ----------------------------------------------------------------------------


def _image(run: Run, given: Tensor, output: int, edge: int) -> Explainable:
    height, width = given.shape[-2:]
    member, shape = cells(height, width, edge)
    names = [
        f"row {row + 1}, column {column + 1}"
        for row in range(shape[0])
        for column in range(shape[1])
    ]
    return Explainable(_direct(run, IMAGE, given, member, output), tuple(names), shape=shape)


def _table(run: Run, given: Tensor, output: int) -> Explainable:
    columns = run.plan.data.columns.get(TABLE)
    count = given.shape[1]
    known = isinstance(columns, (list, tuple)) and len(columns) == count
    names = map(str, columns or ()) if known else (f"{TABLE} {place + 1}" for place in range(count))
    return Explainable(_direct(run, TABLE, given, torch.arange(count), output), tuple(names))


def _direct(run: Run, role: str, given: Tensor, member: Tensor, output: int) -> Subject:
    """Return a subject whose tensor is an input of the model itself."""
    return Subject(
        given=given,
        baseline=torch.zeros_like(given),
        member=member.to(given.device),
        channel=1 if role == IMAGE else None,
        count=int(member.max()) + 1,
        answer=lambda inputs: _answer(run, {role: inputs}, output),
    )


# --- Texts ----------------------------------------------------------------------------------------


def _text(
    run: Run, row: dict[str, Any], batch: Batch, output: int, baseline: Baseline
) -> Explainable:
    module = input_embeddings(run.model, "an explanation")
    ids, embedded = _embedded(run, module, batch)
    real = kept(run, batch, module, embedded)[0, :, 0].bool()
    parts, spans, member = _words(run, row, real.cpu())
    member = member.to(embedded.device)
    subject = Subject(
        given=embedded,
        baseline=_nothing(run, module, ids, embedded, member, baseline),
        member=member,
        channel=2,
        count=len(parts),
        answer=_through(run, module, batch, output),
    )
    return Explainable(subject, parts, spans)


def _embedded(run: Run, module: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return token ids (1, length) and their embeddings (1, length, width) of a forward pass."""
    seen: list[tuple[Tensor, Tensor]] = []

    def see(_module: nn.Module, inputs: Any, embedded: Tensor) -> None:
        seen.append((inputs[0], embedded))

    handle = module.register_forward_hook(see)
    try:
        with torch.no_grad():
            run.backbone.forward(run.model, batch.inputs)
    finally:
        handle.remove()
    ids, embedded = seen[0]  # an encoder comes before its decoder
    if embedded.ndim != _EMBEDDED or ids.shape != embedded.shape[:2]:
        raise RecipeError(
            f"{type(run.model).__name__} does not embed its input token by token: its answers cannot be "
            "explained by words"
        )
    return ids, embedded.detach()


def _words(
    run: Run, row: dict[str, Any], real: Tensor
) -> tuple[tuple[str, ...], tuple[Span, ...], Tensor]:
    """Return words, where they are, and the word of each token (length,); tokens if nobody knows words."""
    ask = getattr(run.backbone, "word_spans", None)
    found = ask([dict(row)], run.task) if ask is not None else None
    if found is None or len(found[0]) != len(real):
        member = torch.where(real, real.long().cumsum(0) - 1, NO_PART)
        return tuple(f"token {place + 1}" for place in range(int(real.sum()))), (), member
    spans: list[Span] = list(dict.fromkeys(span for span in found[0] if span is not None))
    places = {span: place for place, span in enumerate(spans)}
    member = torch.tensor([NO_PART if span is None else places[span] for span in found[0]])
    return tuple(row[role][begin:end] for role, begin, end in spans), tuple(spans), member


def _nothing(
    run: Run, module: nn.Module, ids: Tensor, embedded: Tensor, member: Tensor, baseline: Baseline
) -> Tensor:
    """Return embeddings in which each token of a word is one that says nothing; all others stay."""
    fillers = getattr(run.backbone, "fillers", {})
    usual = next((name for name in TOKENS if name in fillers), "zero")
    name = usual if baseline == "auto" else baseline
    if name == "zero":
        empty = torch.zeros_like(embedded)
    else:
        with torch.no_grad():
            empty = module(torch.full_like(ids, fillers[name])).detach()
    return torch.where((member == NO_PART)[None, :, None], embedded, empty)


def _through(run: Run, module: nn.Module, batch: Batch, output: int) -> Callable[[Tensor], Tensor]:
    """Return the output as a function of embeddings (m, length, width); all else is as in the batch of one."""

    def answer(embedded: Tensor) -> Tensor:
        todo = [embedded]
        many = {
            name: each.repeat(len(embedded), *[1] * (each.ndim - 1))
            for name, each in batch.inputs.items()
        }
        # A decoder may use the same module once more, for an input that is not explained.
        with changed(module, lambda own: todo.pop().to(own.dtype) if todo else own):
            return _answer(run, many, output)

    return answer
