"""Tiny models and data on which every component can be tried, in float64 so that sums are exact."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sft_engine import LayerGroup, order
from sft_engine.builtin.mlp import Mlp
from sft_engine.testing.tiny import ALPHABET, TinyNet, TinyText, TinyTexts
from sft_engine.testing.tiny_images import TinyConvNet, TinyImage

COMPONENTS = {
    ("data", "methods/words"): "parts:Words",
    ("data", "methods/numbers"): "parts:Numbers",
    ("data", "methods/sounds"): "parts:Sounds",
    ("backbone", "methods/sound"): "parts:Sound",
    ("backbone", "methods/text"): "parts:Text",
    ("backbone", "methods/image"): "parts:Picture",
    ("backbone", "methods/table"): "parts:Table",
}

DType = Literal["float32", "float64"]

RATE, SAMPLES, FRAME = 4000, 960, 32
"""Samples a second, of a recording, of a frame."""


class Words(TinyTexts):
    """The tiny texts, in words of two letters.

    Args:
        examples: How many.
    """

    def __init__(self, examples: int = 64) -> None:
        super().__init__(examples)

    def load(self) -> dict[str, Dataset]:
        rows = super().load()["train"].to_list()
        for row in rows:
            text = row["text"]
            row["text"] = " ".join(text[i : i + 2] for i in range(0, len(text), 2))
        return {"train": Dataset.from_list(rows)}


class Numbers:
    """Three columns of numbers and a class, of which one is rare.

    Args:
        examples: How many.
    """

    def __init__(self, examples: int = 64) -> None:
        self.examples = examples

    def load(self) -> dict[str, Dataset]:
        draws = order.generator(0)
        rows = []
        for i in range(self.examples):
            kind = 1 if i % 8 == 0 else i % 2 * 2
            a, b, c = draws.normal(kind, 1, 3).tolist()
            rows.append({"a": a, "b": b, "c": c, "label": "xyz"[kind]})
        return {"train": Dataset.from_list(rows)}


class Sounds:
    """Tones in noise: the label says whether they are high or low.

    Args:
        examples: How many.
    """

    def __init__(self, examples: int = 64) -> None:
        self.examples = examples

    def load(self) -> dict[str, Dataset]:
        import soundfile

        rows = []
        for i in range(self.examples):
            draws, file = order.generator(0, i), io.BytesIO()
            tone = np.sin(2 * np.pi * (300 if i % 2 else 900) * np.arange(SAMPLES) / RATE)
            soundfile.write(file, 0.3 * tone + 0.1 * draws.normal(size=SAMPLES), RATE, format="WAV")
            rows.append({"audio": file.getvalue(), "label": "low" if i % 2 else "high"})
        return {"train": Dataset.from_list(rows)}


class Block(nn.Module):
    """A hidden layer beside its input, with a place for stochastic depth."""

    def __init__(self, width: int, dropout: float, *, norm: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.drop_path = nn.Identity()

    def forward(self, hidden: Tensor) -> Tensor:
        step: Tensor = self.drop_path(self.dropout(self.norm(self.linear(hidden)).tanh()))
        return hidden + step


class Net(TinyNet):
    """The tiny network with an attention mask, and batch norm if asked for."""

    def __init__(
        self, width: int, depth: int, outputs: int, dropout: float, *, norm: bool = False
    ) -> None:
        super().__init__(width, depth, outputs, dropout)
        self.blocks = nn.ModuleList(Block(width, dropout, norm=norm) for _ in range(depth))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        seen = mask.unsqueeze(-1).to(self.head.weight.dtype)
        hidden = (self.embeddings(ids) * seen).sum(1) / seen.sum(1).clamp(min=1)
        for block in self.blocks:
            hidden = block(hidden)
        logits: Tensor = self.head(self.norm(hidden))
        return logits


class Text(TinyText):
    """The tiny text backbone, with tokens as a tokenizer makes them.

    Args:
        name: Folder of saved weights; `random` for random ones.
        dropout: Share of hidden units dropped in training.
        dtype: Of weights and arithmetic.
        norm: Whether blocks have batch norm.
    """

    tokenizer = SimpleNamespace(
        pad_token_id=0,
        mask_token_id=ALPHABET - 1,
        unk_token_id=None,
        cls_token_id=None,
        sep_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
        all_special_ids=[0, ALPHABET - 1],
    )

    def __init__(
        self,
        name: str = "random",
        dropout: float = 0.0,
        dtype: DType = "float32",
        norm: bool = False,
    ) -> None:
        super().__init__(name, dropout=dropout, dtype=dtype)
        self.norm = norm

    def collate(self, examples: list[Any]) -> dict[str, Tensor]:
        ids = super().collate(examples)["ids"]
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}

    def network(self, outputs: int) -> nn.Module:
        return Net(self.width, self.depth, outputs, self.dropout, norm=self.norm)

    def build(self, task: Any) -> nn.Module:
        net = self.network(task.head.outputs).to(getattr(torch, self.dtype))
        return loaded(net, self.folder)

    def forward(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
        return model(inputs["input_ids"], inputs["attention_mask"])


class Picture(TinyImage):
    """The tiny image backbone, without batch norm unless it is asked for.

    Args:
        name: Folder of saved weights; `random` for random ones.
        dropout: Share of the last features dropped in training.
        dtype: Of weights and arithmetic.
        norm: Whether there is batch norm.
    """

    def __init__(
        self,
        name: str = "random",
        dropout: float = 0.0,
        dtype: DType = "float32",
        norm: bool = False,
    ) -> None:
        super().__init__(name, dropout=dropout)
        self.dtype, self.norm = dtype, norm

    def build(self, task: Any) -> nn.Module:
        net = TinyConvNet(self.channels, self.width, task.head.outputs, self.dropout)
        for block in (net.stem, net.block):
            if not self.norm:
                block[1] = nn.Identity()
        return loaded(net.to(getattr(torch, self.dtype)), self.folder)

    def forward(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
        return model(inputs["image"].to(getattr(torch, self.dtype)))


class Table(Mlp):
    """The network for tables.

    Args:
        name: Folder of a saved model; empty for random weights.
        dropout: Share of hidden units dropped in training.
        dtype: Of weights and arithmetic.
        norm: Whether there is batch norm behind the first layer.
    """

    def __init__(
        self,
        name: str = "",
        dropout: float = 0.0,
        dtype: DType = "float32",
        norm: bool = False,
    ) -> None:
        super().__init__(name, hidden=[8, 8], dropout=dropout)
        self.dtype, self.norm = dtype, norm

    def build(self, task: Any) -> nn.Module:
        assert self.mean is not None
        net = self._net(len(self.mean), task.head.outputs)
        return loaded(net.to(getattr(torch, self.dtype)), self.folder)

    def _net(self, inputs: int, outputs: int) -> nn.Module:
        from sft_engine.builtin.mlp import Net as MlpNet

        net = MlpNet(inputs=inputs, outputs=outputs, **self.shape)
        if self.norm:
            net.blocks[0].insert(1, nn.BatchNorm1d(8))
        return net

    def forward(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
        return model(inputs["features"].to(getattr(torch, self.dtype)))


class Encoded:
    """Examples that were made one by one."""

    def __init__(self, examples: list[Any]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitems__(self, ids: Sequence[int]) -> list[Any]:
        return [self.examples[i] for i in ids]


class SoundNet(nn.Module):
    """A layer on each frame of a spectrogram, their mean, a head."""

    def __init__(self, outputs: int, dropout: float, *, norm: bool) -> None:
        super().__init__()
        self.block = nn.Linear(FRAME // 2, 8)
        self.norm = nn.BatchNorm1d(8) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(8, outputs)

    def forward(self, spectrogram: Tensor) -> Tensor:
        logits: Tensor = self.head(self.dropout(self.norm(self.block(spectrogram).tanh().mean(1))))
        return logits


class Sound:
    """A backbone for recordings of a quarter of a second.

    Args:
        name: Folder of saved weights; `random` for random ones.
        dropout: Share of hidden units dropped in training.
        dtype: Of weights and arithmetic.
        norm: Whether there is batch norm in front of the head.
    """

    accepts = frozenset({"audio"})

    def __init__(
        self,
        name: str = "random",
        dropout: float = 0.0,
        dtype: DType = "float32",
        norm: bool = False,
    ) -> None:
        self.name, self.dropout, self.dtype, self.norm = name, dropout, dtype, norm
        self.folder: Path | None = None

    def open(self, resolve: Any) -> None:
        folder = Path(resolve(self.name))
        self.folder = folder if (folder / "model.safetensors").exists() else None

    def encode(self, rows: Dataset, task: Any) -> Encoded:
        return Encoded(self.encode_rows(rows.to_list(), task))

    def encode_rows(self, rows: list[dict[str, Any]], task: Any) -> list[Any]:
        from sft_engine.audio import decode

        examples = []
        for row in rows:
            heard = np.zeros(SAMPLES, np.float32)
            samples = decode(row["audio"]).samples[:SAMPLES]
            heard[: len(samples)] = samples
            frames = np.abs(np.fft.rfft(heard.reshape(-1, FRAME)))[:, 1:].astype(np.float32)
            kept = {task.target: row[task.target]} if task.target in row else {}
            examples.append({"spectrogram": torch.from_numpy(frames), **kept})
        return examples

    def collate(self, examples: list[Any]) -> dict[str, Tensor]:
        return {"spectrogram": torch.stack([each["spectrogram"] for each in examples])}

    def build(self, task: Any) -> nn.Module:
        net = SoundNet(task.head.outputs, self.dropout, norm=self.norm)
        return loaded(net.to(getattr(torch, self.dtype)), self.folder)

    def forward(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
        return model(inputs["spectrogram"].to(getattr(torch, self.dtype)))

    def layer_groups(self, model: nn.Module) -> list[LayerGroup]:
        names = [name for name, _ in model.named_parameters()]
        return [
            LayerGroup(group, tuple(name for name in names if name.startswith(starts)))
            for group, starts in (("block", ("block.", "norm.")), ("head", ("head.",)))
        ]

    def save(self, model: nn.Module, folder: Path, task: Any) -> None:
        save_file(dict(model.state_dict()), folder / "model.safetensors")


def loaded(net: nn.Module, folder: Any) -> nn.Module:
    """Return a network with the weights of a folder, if there is one."""
    if folder is not None:
        net.load_state_dict(load_file(folder / "model.safetensors"))
    return net
