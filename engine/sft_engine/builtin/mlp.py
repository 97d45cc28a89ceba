"""A small network for tables of numbers: linear layers, one after the other."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Lt
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sft_engine.builtin.examples import TensorExamples
from sft_engine.columns import column_of
from sft_engine.components import LayerGroup
from sft_engine.errors import DataError, RecipeError
from sft_engine.sentences import show_value

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

    from sft_engine.components import Example, Resolve, Task

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}
CONFIG, WEIGHTS = "config.json", "model.safetensors"


class Net(nn.Module):
    """Linear layers with an activation and dropout after each, then a linear head.

    Args:
        inputs: Numbers in a row.
        hidden: Widths of the hidden layers; none makes it a linear model.
        outputs: Width of the head.
        activation: Key of `ACTIVATIONS`.
        dropout: Share of hidden units dropped in training.
    """

    def __init__(
        self, inputs: int, hidden: Sequence[int], outputs: int, activation: str, dropout: float
    ) -> None:
        super().__init__()
        widths = [inputs, *hidden]
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(a, b), ACTIVATIONS[activation](), nn.Dropout(dropout))
            for a, b in itertools.pairwise(widths)
        )
        self.head = nn.Linear(widths[-1], outputs)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (n, outputs) of features (n, inputs)."""
        for block in self.blocks:
            features = block(features)
        logits: Tensor = self.head(features)
        return logits


class Mlp:
    """A small network on standardised columns of numbers (multi-layer perceptron).

    Every column is shifted and scaled to mean 0 and deviation 1 by the figures of the training data,
    which are saved with the model.

    Args:
        name: Folder of a saved model of this kind to start from; empty for random weights.
        hidden: Widths of the hidden layers; an empty list makes it a linear model.
        activation: Function after each hidden layer.
        dropout: Share of hidden units dropped in training.
        standardize: Shift and scale the columns; without, they are taken as they are.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"features"})

    def __init__(
        self,
        name: str = "",
        hidden: list[Annotated[int, Gt(0)]] | None = None,
        activation: Literal["relu", "gelu", "silu", "tanh"] = "relu",
        dropout: Annotated[float, Ge(0), Lt(1)] = 0.0,
        standardize: bool = True,  # noqa: FBT001, FBT002 - an option of a recipe
    ) -> None:
        self.name = name
        self.shape: dict[str, Any] = {
            "hidden": [64, 64] if hidden is None else list(hidden),
            "activation": activation,
            "dropout": dropout,
        }
        self.standardize = standardize
        self.folder: Path | None = None
        self.mean: NDArray[np.float64] | None = None
        self.deviation: NDArray[np.float64] | None = None

    # --- Preprocessing ---------------------------------------------------------------------------

    def open(self, resolve: Resolve) -> None:
        """Read shape and preprocessing of a saved model; nothing for a new one.

        Raises:
            RecipeError: there is no such model.
        """
        location = resolve(self.name)
        if not location:
            return
        self.folder = Path(location)
        try:
            saved = json.loads((self.folder / CONFIG).read_text(encoding="utf-8"))
            self.shape = saved["shape"]
            self.mean = np.array(saved["mean"], dtype=np.float64)
            self.deviation = np.array(saved["deviation"], dtype=np.float64)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RecipeError(
                f"[backbone] name = {show_value(self.name)}: '{location}' holds no model that this "
                "backbone has saved; name the folder `model` of a run, or leave it out."
            ) from error

    def encode(self, rows: Dataset, task: Task) -> TensorExamples:
        """Turn a split into tensors; the first split, which is that of training, sets the scale.

        Raises DataError if the rows have another number of features than the model.
        """
        array = column_of(rows, "features")
        table = np.asarray(array.flatten(), dtype=np.float64).reshape(len(rows), -1)
        if self.mean is None or self.deviation is None:
            self.mean, self.deviation = scale_of(table, standardize=self.standardize)
        columns = {"features": self._scaled(table)}
        if task.target in rows.column_names:
            columns[task.target] = torch.tensor(rows[task.target][:])
        return TensorExamples(columns)

    def encode_rows(self, rows: list[dict[str, Any]], task: Task) -> list[Example]:
        """Scale some rows. Raises DataError for a row without the right number of features."""
        kept = [{task.target: row[task.target]} if task.target in row else {} for row in rows]
        tables = [np.array([self._features(row.get("features"))]) for row in rows]
        return [{"features": self._scaled(t)[0], **k} for t, k in zip(tables, kept, strict=True)]

    def _features(self, value: Any) -> list[float]:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise DataError(
                f"a row has {show_value(value)} where a table has numbers; give one number a column, "
                'such as {"length": 5.1, "width": 3.5}.'
            )
        return [float(number) for number in value]

    def _scaled(self, table: NDArray[np.float64]) -> Tensor:
        assert self.mean is not None
        assert self.deviation is not None
        if table.shape[1] != len(self.mean):
            raise DataError(
                f"a row has {table.shape[1]} features, the model takes {len(self.mean)}; give it the "
                "columns that it was trained on (data.columns.features)."
            )
        scaled = (table - self.mean) / self.deviation  # in float64: large numbers differ by little
        return torch.from_numpy(scaled.astype(np.float32))

    def collate(self, examples: list[Example]) -> dict[str, Tensor]:
        """Stack the features: float32 (n, columns)."""
        return {"features": torch.stack([example["features"] for example in examples])}

    # --- Model -----------------------------------------------------------------------------------

    def build(self, task: Task) -> nn.Module:
        """Build the network; of a saved one, a head of another width is drawn anew.

        Raises:
            RecipeError: the weights cannot be read.
        """
        assert self.mean is not None, "encode the training split before the model is built"
        net = Net(inputs=len(self.mean), outputs=task.head.outputs, **self.shape)
        if self.folder is not None:
            self._load(net, self.folder / WEIGHTS)
        return net

    def _load(self, net: Net, file: Path) -> None:
        try:
            state = load_file(file)
            if state["head.weight"].shape != net.head.weight.shape:
                state |= {f"head.{name}": value for name, value in net.head.state_dict().items()}
            net.load_state_dict(state)
        except Exception as error:
            raise RecipeError(
                f"[backbone] name = {show_value(self.name)}: cannot read '{file}' "
                f"({str(error).splitlines()[0]}); name the folder `model` of a run."
            ) from error

    def forward(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
        """Run the network: logits (n, outputs)."""
        return model(inputs["features"])

    def layer_groups(self, model: nn.Module) -> list[LayerGroup]:
        """Return one group a hidden layer, and the head."""
        names = [name for name, _ in model.named_parameters()]
        starts = {f"block.{i}": f"blocks.{i}." for i in range(len(self.shape["hidden"]))}
        return [
            LayerGroup(group, tuple(name for name in names if name.startswith(start)))
            for group, start in {**starts, "head": "head."}.items()
        ]

    def save(self, model: nn.Module, folder: Path, task: Task) -> None:
        """Write weights (model.safetensors), shape and preprocessing (config.json)."""
        assert self.mean is not None
        assert self.deviation is not None
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: value.contiguous().cpu() for name, value in model.state_dict().items()}
        save_file(state, folder / WEIGHTS)
        config = {
            "shape": self.shape,
            "outputs": list(task.head.names),
            "mean": self.mean.tolist(),
            "deviation": self.deviation.tolist(),
        }
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def scale_of(
    table: NDArray[np.float64], *, standardize: bool = True
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and deviation of each column (n, columns); a constant column has deviation 1."""
    if not standardize:
        return np.zeros(table.shape[1]), np.ones(table.shape[1])
    constant = table.min(axis=0) == table.max(axis=0)  # its deviation may be a rounding error
    return table.mean(axis=0), np.where(constant, 1.0, table.std(axis=0))
