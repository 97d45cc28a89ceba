"""A tiny text model and tiny data: every path of the engine in milliseconds, no network, no files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sft_engine import order
from sft_engine.components import Example, LayerGroup, Resolve, Task

ALPHABET = 64


class TinyTexts:
    """Random words; the label says whether the letter a occurs more often than the letter b.

    Args:
        examples: How many.
        longest: Most letters of a text; the shortest has three.
        seed: Of the draws.
    """

    def __init__(
        self,
        examples: Annotated[int, Gt(0)] = 64,
        longest: Annotated[int, Ge(3)] = 19,
        seed: int = 0,
    ) -> None:
        self.examples, self.longest, self.seed = examples, longest, seed

    def load(self) -> dict[str, Dataset]:
        """Return one split, `train`, with the columns `text` and `label`."""
        texts = [self._text(i) for i in range(self.examples)]
        labels = ["a" if text.count("a") > text.count("b") else "b" for text in texts]
        return {"train": Dataset.from_dict({"text": texts, "label": labels})}

    def _text(self, index: int) -> str:
        draws = order.generator(self.seed, index)
        length = int(draws.integers(3, self.longest + 1))
        return "".join(draws.choice(list("aabbcdefgh"), size=length))


class TinyExamples:
    """Encoded texts."""

    def __init__(self, ids: list[list[int]], columns: dict[str, list[Any]]) -> None:
        self.ids, self.columns = ids, columns
        self.lengths = np.array([len(each) for each in ids])

    def __len__(self) -> int:
        return len(self.ids)

    def __getitems__(self, ids: Sequence[int]) -> list[Example]:
        return [
            {"ids": self.ids[i], **{name: c[i] for name, c in self.columns.items()}} for i in ids
        ]


class TinyNet(nn.Module):
    """Mean of letter embeddings, hidden layers with dropout, linear head."""

    def __init__(self, width: int, depth: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(ALPHABET, width, padding_idx=0)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Dropout(dropout))
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits (n, outputs) of letter ids (n, length); 0 is padding."""
        mask = (ids > 0).unsqueeze(-1).to(self.head.weight.dtype)
        hidden = (self.embeddings(ids) * mask).sum(1) / mask.sum(1).clamp(min=1)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        logits: Tensor = self.head(self.norm(hidden))
        return logits


class TinyText:
    """A backbone of a few hundred parameters, to test with.

    Args:
        name: Folder of saved weights; `random` for random ones.
        width: Size of embeddings and hidden layers.
        depth: Hidden layers.
        dropout: Share of hidden units dropped in training.
        dtype: Of weights and arithmetic.
    """

    def __init__(
        self,
        name: str = "random",
        width: Annotated[int, Gt(0)] = 8,
        depth: Annotated[int, Ge(0)] = 2,
        dropout: Annotated[float, Ge(0)] = 0.0,
        dtype: Literal["float32", "float64"] = "float32",
    ) -> None:
        self.name, self.width, self.depth = name, width, depth
        self.dropout, self.dtype = dropout, dtype
        self.folder: Path | None = None

    def open(self, resolve: Resolve) -> None:
        """Look where the weights are."""
        folder = Path(resolve(self.name))
        self.folder = folder if (folder / "model.safetensors").exists() else None

    def encode(self, rows: Dataset, task: Task) -> TinyExamples:
        """Turn letters into numbers."""
        columns = {task.target: rows[task.target]} if task.target in rows.column_names else {}
        return TinyExamples([_letters(text) for text in rows["text"]], columns)

    def encode_rows(self, rows: list[dict[str, Any]], task: Task) -> list[Example]:
        """Turn letters of some rows into numbers."""
        kept = [{task.target: row[task.target]} if task.target in row else {} for row in rows]
        return [{"ids": _letters(row["text"]), **k} for row, k in zip(rows, kept, strict=True)]

    def collate(self, examples: list[Example]) -> dict[str, Tensor]:
        """Pad with 0 to the longest."""
        rows = [torch.tensor(example["ids"]) for example in examples]
        return {"ids": nn.utils.rnn.pad_sequence(rows, batch_first=True)}

    def build(self, task: Task) -> nn.Module:
        """Build the network, from the folder if there is one."""
        net = TinyNet(self.width, self.depth, task.head.outputs, self.dropout)
        net.to(getattr(torch, self.dtype))
        if self.folder is not None:
            net.load_state_dict(load_file(self.folder / "model.safetensors"))
        return net

    def forward(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
        """Run the network."""
        return model(inputs["ids"])

    def layer_groups(self, model: nn.Module) -> list[LayerGroup]:
        """Return embeddings, blocks, head."""
        names = [name for name, _ in model.named_parameters()]
        prefixes = {"embeddings": ("embeddings",), "head": ("norm", "head")}
        blocks = {f"block.{i}": (f"blocks.{i}.",) for i in range(self.depth)}
        groups = {"embeddings": prefixes["embeddings"], **blocks, "head": prefixes["head"]}
        return [
            LayerGroup(group, tuple(name for name in names if name.startswith(starts)))
            for group, starts in groups.items()
        ]

    def save(self, model: nn.Module, folder: Path, task: Task) -> None:
        """Write model.safetensors and config.json."""
        save_file(dict(model.state_dict()), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"outputs": task.head.outputs}))


def _letters(text: str) -> list[int]:
    return [1 + ord(letter) % (ALPHABET - 1) for letter in text] or [1]
