"""Recipes that augmentations are tried on, with components of their own."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset

from sft_engine import hookimpl, order
from sft_engine.testing.runs import TINY
from sft_engine.testing.tiny import TinyTexts

COMPONENTS = {
    ("extension", "test/notes"): "observers:Notes",
    ("extension", "test/again"): "observers:Again",
    ("data", "test/numbers"): "observers:Numbers",
    ("data", "test/words"): "observers:Words",
}
PICTURES = (
    TINY.replace("text-classification", "image-classification")
    .replace("tiny/texts", "tiny/pictures")
    .replace("tiny/text", "tiny/image")
)
NUMBERS = (
    TINY.replace("text-classification", "tabular-classification")
    .replace("tiny/texts", "test/numbers")
    .replace("tiny/text", "mlp")
)
RECIPES = {"text": TINY.replace("tiny/texts", "test/words"), "picture": PICTURES, "number": NUMBERS}


SEEN: dict[tuple[int, int], list[Any]] = {}
"""Inputs and targets of each example, by epoch and id, as the model got them in the current run."""


class Notes:
    """Notes every training batch; stands below the augmentations in a recipe."""

    @hookimpl
    def sft_batch(self, run, batch):
        for index, row_id in enumerate(batch.ids):
            tensors = [*batch.inputs.values(), *batch.targets.values()]
            SEEN[run.clock.epoch, row_id] = [tensor[index].tolist() for tensor in tensors]


class Again:
    """Computes every window's gradient a second time, as SAM would."""

    @hookimpl
    def sft_gradients(self, run):
        before = [p.grad.clone() for p in run.model.parameters()]
        run.replay_window()
        for old, parameter in zip(before, run.model.parameters(), strict=True):
            assert torch.equal(old, parameter.grad)


class Words(TinyTexts):
    """The tiny texts, in words of two letters.

    Args:
        examples: How many.
    """

    def __init__(self, examples: int = 64) -> None:
        super().__init__(examples)

    def load(self):
        rows = super().load()["train"].to_list()
        for row in rows:
            text = row["text"]
            row["text"] = " ".join(text[i : i + 2] for i in range(0, len(text), 2))
        return {"train": Dataset.from_list(rows)}


class Numbers:
    """Three columns of numbers and a label, of which one is rare.

    Args:
        label: `class`, `number` or `many`: what is in the column `label`.
        examples: How many.
    """

    def __init__(self, label: str = "class", examples: int = 64) -> None:
        self.label, self.examples = label, examples

    def load(self):
        draws = order.generator(0)
        rows = []
        for i in range(self.examples):
            kind = 1 if i % 8 == 0 else i % 2 * 2
            a, b, c = draws.normal(kind, 1, 3).tolist()
            labels = {"class": "xyz"[kind], "number": a + b, "many": "p;q" if kind else "q"}
            rows.append({"a": a, "b": b, "c": c, "label": labels[self.label]})
        return {"train": Dataset.from_list(rows)}
