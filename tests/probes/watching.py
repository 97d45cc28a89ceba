"""Data, models and a listener for the tests of probes."""

from __future__ import annotations

from typing import Any

from datasets import Dataset

from sft_engine import hookimpl, order
from sft_engine.testing.runs import TINY
from sft_engine.testing.tiny import TinyTexts

COMPONENTS = {
    ("extension", "test/notes"): "watching:Notes",
    ("data", "test/numbers"): "watching:Numbers",
    ("data", "test/words"): "watching:Words",
    ("data", "test/sounds"): "hearing:Sounds",
    ("backbone", "test/hearing"): "hearing:Hearing",
}
TEXTS = TINY.replace("tiny/texts", "test/words") + "[optimizer]\nlr = 0.03\n"
NUMBERS = (
    TINY.replace("text-classification", "tabular-classification")
    .replace("tiny/texts", "test/numbers")
    .replace("tiny/text", "mlp")
)
IMAGES = (
    TINY.replace("text-classification", "image-classification")
    .replace('"tiny/texts"', '"tiny/pictures"\nsize = 32')
    .replace("tiny/text", "tiny/image")
)
SOUNDS = (
    TINY.replace("text-classification", "audio-classification")
    .replace("tiny/texts", "test/sounds")
    .replace("tiny/text", "test/hearing")
)
RECIPES = {"text": TEXTS, "number": NUMBERS, "image": IMAGES, "sound": SOUNDS}
ODD = ["", "<b>Bold</b> &amp; big", "<script>alert(1)</script>", "Big movie, good story."]

SEEN: dict[str, dict[int, list[Any]]] = {}
"""What the model got of each example in evaluation, by view and id."""


class Notes:
    """Notes every evaluation batch."""

    @hookimpl
    def sft_eval_batch(self, run, view, batch, outputs):
        for index, example in enumerate(batch.ids):
            values = [[n for n in t[index].tolist() if n] for t in _rows(batch.inputs)]
            SEEN.setdefault(view.name, {})[example] = values


def _rows(inputs):
    """Return tensors of lists, so that padding (0) can be left out."""
    return [tensor.reshape(len(tensor), -1) for tensor in inputs.values()]


class Words(TinyTexts):
    """The tiny texts, in words of two letters with some punctuation, and a few odd ones.

    Args:
        examples: How many.
    """

    def __init__(self, examples: int = 96) -> None:
        super().__init__(examples)

    def load(self):
        rows = super().load()["train"].to_list()
        for number, row in enumerate(rows):
            text = row["text"]
            words = [text[i : i + 2] for i in range(0, len(text), 2)]
            row["text"] = ODD[number % 4] if number % 12 == 5 else ", ".join(words) + " big movie."
        return {
            "train": Dataset.from_list(rows[:64]),
            "test": Dataset.from_list([*rows[64:], *_odd_rows()]),
        }


def _odd_rows():
    return [{"text": text, "label": "ab"[i % 2]} for i, text in enumerate(ODD)]


class Numbers:
    """Three columns of numbers and a label.

    Args:
        label: `class`, `number` or `many`: what is in the column `label`.
        examples: How many.
    """

    def __init__(self, label: str = "class", examples: int = 96) -> None:
        self.label, self.examples = label, examples

    def load(self):
        draws = order.generator(0)
        rows = []
        for i in range(self.examples):
            kind = i % 3
            a, b, c = draws.normal(kind, 1, 3).tolist()
            labels = {"class": "xyz"[kind], "number": a + b, "many": "p;q" if kind else "q"}
            rows.append({"a": a, "b": b, "c": c, "label": labels[self.label]})
        return {"train": Dataset.from_list(rows)}
