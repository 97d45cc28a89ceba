"""Our engine's side: the same works, trained through a recipe."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from torch import nn

from bench.overhead_work import OverheadWork
from bench.text_work import TextWork
from bench.vision_work import VisionWork
from sft_engine import LayerGroup, hookimpl
from sft_engine.assemble import assemble
from sft_engine.builtin.examples import TensorExamples
from sft_engine.builtin.tasks import Classification
from sft_engine.catalog import plan
from sft_engine.interruption import Signals
from sft_engine.plugins import load_plugins
from sft_engine.recipe import parse_recipe
from sft_engine.training import Session, Silent
from sft_transformers.backbone import Transformers
from sft_transformers.tokens import TokenizedExamples, Tokens

WORK: dict[str, Any] = {}
"""The work of this process: a component's constructor takes nothing but options."""

OVERHEAD = """
seed = {seed}
[task]
use = "bench/vectors"
[data]
use = "bench/rows"
validation = 0
test = 0
[backbone]
use = "bench/mlp"
[train]
epochs = 1
batch_size = {batch_size}
precision = "fp32"
decay_all = true
device = "cpu"
[optimizer]
use = "adamw"
lr = {lr}
weight_decay = 0.0
[schedule]
use = "linear"
warmup = 0
[checkpoint]
every_epochs = 0
"""

VISION = OVERHEAD.replace("bench/mlp", "bench/vision").replace("decay_all = true\n", "")
TEXT = OVERHEAD.replace("bench/vectors", "text-classification").replace("bench/mlp", "bench/bert")
DEFAULTS = TEXT.replace('precision = "fp32"\ndecay_all = true\n', "")
"""What a recipe gets that says nothing: buckets, bf16 where the processor has it, fused steps."""


class VectorClassification(Classification):
    """Classification of vectors."""

    inputs: ClassVar[Mapping[str, bool]] = {"text": True}

    def __init__(self) -> None:
        super().__init__("single", "none", 0.0, "")


class Rows:
    """The rows of the work: a number for the input, and the label."""

    def load(self) -> dict[str, Dataset]:
        """Return one split."""
        work = WORK["now"]
        if isinstance(work, TextWork):
            labels = [x["labels"] for x in work.train]
        else:
            labels = work.labels.tolist()
        texts = [str(i) for i in range(len(labels))]
        return {"train": Dataset.from_dict({"text": texts, "label": labels})}


class Mlp:
    """The work's tiny model; its examples are tensors."""

    def open(self, resolve: Any) -> None:
        """Load nothing."""

    def encode(self, rows: Dataset, task: Any) -> TensorExamples:
        """Return the work's own tensors."""
        return TensorExamples({"inputs": WORK["now"].inputs, "label": torch.tensor(rows["label"])})

    def collate(self, examples: list[Any]) -> dict[str, torch.Tensor]:
        """Stack."""
        return {"inputs": torch.stack([x["inputs"] for x in examples])}

    def build(self, task: Any) -> nn.Module:
        """Return the work's model with its first weights."""
        model: nn.Module = WORK["now"].build_model()
        return model

    def forward(self, model: nn.Module, inputs: Any) -> Any:
        """Run the model."""
        return model(inputs["inputs"])

    def layer_groups(self, model: nn.Module) -> list[LayerGroup]:
        """Return one group."""
        return [LayerGroup("all", tuple(name for name, _ in model.named_parameters()))]


class Bert(Transformers):
    """The backbone of sft-transformers around the work's model and token lists."""

    def __init__(self) -> None:
        super().__init__(name="none")

    def open(self, resolve: Any) -> None:
        """Make a tokenizer do for padding alone."""
        self.tokenizer = Padding()
        self._padding = {"input_ids": Padding.pad_token_id}

    def encode(self, rows: Dataset, task: Any) -> TokenizedExamples:
        """Return the work's token lists as sft-transformers holds them."""
        work = WORK["now"]
        ids = np.concatenate([x["input_ids"].numpy() for x in work.train]).astype(np.int32)
        offsets = np.concatenate([[0], np.cumsum(work.lengths)])
        tokens = Tokens(ids, None, offsets, np.zeros(work.count, dtype=bool), 0)
        return TokenizedExamples(tokens, {"label": rows["label"][:]})

    def build(self, task: Any) -> nn.Module:
        """Return the work's model with its first weights."""
        model: nn.Module = WORK["now"].build_model()
        return model

    def layer_groups(self, model: nn.Module) -> list[LayerGroup]:
        """Return one group."""
        return [LayerGroup("all", tuple(name for name, _ in model.named_parameters()))]


class ChannelsLast(TensorExamples):
    """Examples whose pictures are stacked with the channels innermost, as image backbones do it."""

    def take(self, ids: Any) -> dict[str, torch.Tensor]:
        """Return the stacked columns."""
        taken = super().take(ids)
        taken["inputs"] = taken["inputs"].contiguous(memory_format=torch.channels_last)
        return taken


class Vision(Mlp):
    """The work's network of convolutions.

    Args:
        channels_last: Memory format; image backbones choose it for such networks.
    """

    def __init__(self, channels_last: bool = True) -> None:
        self.channels_last = channels_last

    def encode(self, rows: Dataset, task: Any) -> TensorExamples:
        """Return the work's own pictures."""
        columns = {"inputs": WORK["now"].inputs, "label": torch.tensor(rows["label"])}
        return (ChannelsLast if self.channels_last else TensorExamples)(columns)

    def build(self, task: Any) -> nn.Module:
        """Return the work's network in the memory format."""
        model = super().build(task)
        if self.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model


class Padding:
    """As much of a tokenizer as padding takes."""

    padding_side = "right"
    pad_token_id = 0


class EveryHook:
    """Implements every hook of the loop and does nothing, so that only the calls cost."""

    @hookimpl
    def sft_step_start(self, run: Any) -> None:
        """Do nothing."""

    @hookimpl
    def sft_batch(self, run: Any, batch: Any) -> None:
        """Do nothing."""

    @hookimpl(wrapper=True)
    def sft_micro_step(self, run: Any, batch: Any) -> Iterator[None]:
        """Do nothing around the inner step."""
        return (yield)

    @hookimpl
    def sft_loss_terms(self, run: Any, batch: Any, outputs: Any) -> list[Any]:
        """Add no term."""
        return []

    @hookimpl
    def sft_gradients(self, run: Any) -> None:
        """Do nothing."""

    @hookimpl
    def sft_step_verdict(self, run: Any, grad_norm: Any) -> None:
        """Judge nothing."""

    @hookimpl
    def sft_step_end(self, run: Any) -> None:
        """Do nothing."""


def train(work: Any, recipe: str) -> Any:
    """Train by a recipe; the timer runs around the loop, as around the peers' training call."""
    WORK["now"] = work
    plugin = ModuleType("bench_plugin")

    @hookimpl
    def sft_register(catalog: Any) -> None:
        catalog.add("task", "bench/vectors", "bench.ours:VectorClassification", "Vectors.")
        catalog.add("data", "bench/rows", "bench.ours:Rows", "Rows of the work.")
        catalog.add("backbone", "bench/mlp", "bench.ours:Mlp", "Model of the work.")
        catalog.add("backbone", "bench/vision", "bench.ours:Vision", "Network of the work.")
        catalog.add("backbone", "bench/bert", "bench.ours:Bert", "Model of the work.")
        catalog.add("extension", "bench/hooks", "bench.ours:EveryHook", "Listens to everything.")

    plugin.sft_register = sft_register  # type: ignore[attr-defined]
    plugins = load_plugins()
    plugins.add(plugin, "bench", "bench", "0")
    text = recipe.format(seed=work.seed, batch_size=work.batch_size, lr=work.learning_rate)
    planned = plan(parse_recipe(text, "bench.toml"), plugins)
    with tempfile.TemporaryDirectory() as folder, Signals() as signals:
        session = Session(assemble(planned, Path(folder, "run")), Silent(), signals)
        session.begin(resume=False)
        loop = session.loop()
        with work.timer:
            loop.train()
        session.recorder.close()
        return session.run.model


def overhead(work: OverheadWork, *, hooks: bool = False) -> nn.Module:
    """The engine's loop; with `hooks`, a component listens to every hook of a step."""
    model: nn.Module = train(
        work, OVERHEAD + ('[[extension]]\nuse = "bench/hooks"\n' if hooks else "")
    )
    return model


def vision(work: VisionWork, *, precision: str = "auto", channels_last: bool = True) -> nn.Module:
    """The engine on pictures; both settings are what a recipe that says nothing gets."""
    recipe = VISION.replace('precision = "fp32"', f'precision = "{precision}"')
    backbone = f'use = "bench/vision"\nchannels_last = {str(channels_last).lower()}'
    model: nn.Module = train(work, recipe.replace('use = "bench/vision"', backbone))
    return model


def text(work: TextWork) -> Any:
    """The engine at the settings of a recipe that says nothing of them."""
    return train(work, DEFAULTS)
