"""Tones, and a tiny network that tells how strong and how high they are."""

from __future__ import annotations

import io

import numpy as np
import soundfile
import torch
from datasets import Dataset
from torch import nn

from sft_engine import LayerGroup, order
from sft_engine.audio import AudioExamples, fitted

RATE, SECONDS = 2000, 0.2


class Sounds:
    """High and low tones with some noise, as bytes of WAV files.

    Args:
        examples: How many.
    """

    def __init__(self, examples: int = 64) -> None:
        self.examples = examples

    def load(self):
        labels = ["high" if i % 2 else "low" for i in range(self.examples)]
        sounds = [self._wav(i, label) for i, label in enumerate(labels)]
        return {"train": Dataset.from_dict({"audio": sounds, "label": labels})}

    def _wav(self, index, label):
        pitch = 400 if label == "high" else 100
        times = np.arange(int(RATE * SECONDS)) / RATE
        noise = order.generator(index).normal(0, 0.02, len(times))
        file = io.BytesIO()
        soundfile.write(file, np.sin(2 * np.pi * pitch * times) / 3 + noise, RATE, format="WAV")
        return file.getvalue()


class Hearing:
    """Loudness of the sound and of its differences, then a linear layer.

    Args:
        name: Not read.
    """

    accepts = frozenset({"audio"})

    def __init__(self, name: str = "random") -> None:
        self.name = name

    def open(self, resolve):
        """Do nothing."""

    def _inputs(self, samples):
        full = np.zeros(int(RATE * SECONDS), dtype=np.float32)
        full[: len(samples)] = samples[: len(full)]
        return {"audio": torch.from_numpy(full)}

    def encode(self, rows, task):
        return AudioExamples(rows, task.target, RATE, SECONDS, self._inputs, bucketed=False)

    def encode_rows(self, rows, task):
        kept = [{task.target: row[task.target]} if task.target in row else {} for row in rows]
        sounds = [self._inputs(fitted(row["audio"], RATE, SECONDS)) for row in rows]
        return [sound | target for sound, target in zip(sounds, kept, strict=True)]

    def collate(self, examples):
        return {"audio": torch.stack([example["audio"] for example in examples])}

    def build(self, task):
        return nn.Sequential(Loudness(), nn.Linear(2, task.head.outputs))

    def forward(self, model, inputs):
        return model(inputs["audio"])

    def layer_groups(self, model):
        return [LayerGroup("head", tuple(name for name, _ in model.named_parameters()))]

    def save(self, model, folder, task):
        (folder / "nothing.txt").write_text("")


class Loudness(nn.Module):
    """Two numbers of a sound."""

    def forward(self, samples):
        strong, fast = samples.abs().mean(1), samples.diff(dim=1).abs().mean(1)
        return torch.stack([strong, fast], dim=1)
