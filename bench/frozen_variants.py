"""One function per way to train a new head on the frozen trunk of frozen.py.

Each takes the work, times the training call with `work.timer`, and returns the trained model.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from bench.frozen_work import HEAD, TRAINS, FrozenWork, trunk_of

Variant = Callable[[FrozenWork], nn.Module]


def optimizer_of(work: FrozenWork, model: nn.Module) -> SGD:
    """SGD over what trains."""
    trains = [p for p in model.parameters() if p.requires_grad]
    return SGD(trains, work.learning_rate, momentum=work.momentum)


def loader_of(work: FrozenWork, dataset: Any = None) -> DataLoader[Any]:
    """The usual shuffled loader."""
    return DataLoader(dataset or work.dataset(), batch_size=work.batch_size, shuffle=True)


def article(work: FrozenWork) -> nn.Module:
    """The loop of the articles: gradients off, the whole model in training mode, every epoch."""
    model = work.build_model()
    optimizer, loader = optimizer_of(work, model), loader_of(work)
    with work.timer:
        for _ in range(work.epochs):
            model.train()
            for inputs, labels in loader:
                optimizer.zero_grad()
                cross_entropy(model(inputs), labels).backward()
                optimizer.step()
    return model


def trunk_without_gradients(work: FrozenWork) -> nn.Module:
    """The trunk in evaluation mode under `no_grad`, every epoch."""
    model = work.build_model()
    trunk, head = trunk_of(model), getattr(model, HEAD)
    optimizer, loader = optimizer_of(work, model), loader_of(work)
    trunk.eval()
    with work.timer:
        for _ in range(work.epochs):
            for inputs, labels in loader:
                with torch.no_grad():
                    features = trunk(inputs)
                _step(optimizer, head, features, labels)
    return model


def trunk_once(work: FrozenWork) -> nn.Module:
    """What an expert writes by hand: the features of all examples first, then the head alone."""
    model = work.build_model()
    trunk, head = trunk_of(model), getattr(model, HEAD)
    optimizer = optimizer_of(work, model)
    trunk.eval()
    with work.timer:
        with torch.no_grad():
            features = torch.cat([trunk(part) for part in work.inputs.split(work.batch_size)])
        loader = loader_of(work, TensorDataset(features, work.labels))
        for _ in range(work.epochs):
            for inputs, labels in loader:
                _step(optimizer, head, inputs, labels)
    return model


def _step(optimizer: SGD, head: nn.Module, features: Tensor, labels: Tensor) -> None:
    optimizer.zero_grad()
    cross_entropy(head(features), labels).backward()
    optimizer.step()


def hf_trainer(work: FrozenWork) -> nn.Module:
    """transformers.Trainer on the model whose trunk is frozen."""
    from transformers import Trainer, TrainingArguments

    class WithLoss(nn.Module):
        """Returns the loss itself, as Trainer expects of a model."""

        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.net(inputs)
            return {"loss": cross_entropy(logits, labels), "logits": logits}

    class Examples(torch.utils.data.Dataset[dict[str, Tensor]]):
        """The training examples as dictionaries."""

        def __len__(self) -> int:
            return work.count

        def __getitem__(self, index: int) -> dict[str, Tensor]:
            return {"inputs": work.inputs[index], "labels": work.labels[index]}

    model = work.build_model()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=work.epochs,
            per_device_train_batch_size=work.batch_size,
            lr_scheduler_type="constant",
            learning_rate=work.learning_rate,
            max_grad_norm=0.0,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        optimizer = optimizer_of(work, model)
        trainer = Trainer(
            WithLoss(model), arguments, train_dataset=Examples(), optimizers=(optimizer, None)
        )
        with work.timer:
            trainer.train()
    return model


def lightning(work: FrozenWork) -> nn.Module:
    """lightning.Trainer on the model whose trunk is frozen."""
    from lightning import LightningModule, Trainer

    class Classifier(LightningModule):
        """The model with its training step."""

        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            return cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return optimizer_of(work, self)

    model = work.build_model()
    trainer = Trainer(
        max_epochs=work.epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = loader_of(work)
    with work.timer:
        trainer.fit(Classifier(model), loader)
    return model


RECIPE = """
seed = {seed}
[task]
use = "bench/vectors"
[data]
use = "bench/rows"
validation = 0
test = 0
[backbone]
use = "bench/vision"
[freezing]
use = "frozen"
keep = KEEP
[train]
epochs = EPOCHS
batch_size = {batch_size}
precision = "fp32"
clip_norm = 0
device = "cpu"
replay = REPLAY
[optimizer]
use = "sgd"
lr = {lr}
momentum = 0.9
weight_decay = 0.0
[schedule]
use = "constant"
[checkpoint]
every_epochs = 0
"""


def ours(work: FrozenWork, replay: str = '"auto"') -> nn.Module:
    """Our engine through a recipe; it finds out by itself that the trunk need not run again."""
    from bench.ours import train

    recipe = RECIPE.replace("EPOCHS", str(work.epochs)).replace("REPLAY", replay)
    recipe = recipe.replace("KEEP", json.dumps(TRAINS[work.trains]))
    # All trains when the model is built: what is frozen is the recipe's business.
    build = work.build_model
    work.build_model = lambda: build(frozen=False)  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as cache:
        # What an earlier run has measured would be remembered.
        os.environ["SFT_ENGINE_CACHE"] = cache
        model: nn.Module = train(work, recipe)
    return model


def ours_without(work: FrozenWork) -> nn.Module:
    """The same with replay switched off."""
    return ours(work, replay="false")


def ours_always(work: FrozenWork) -> nn.Module:
    """The same with replay whether it pays or not."""
    return ours(work, replay="true")


VARIANTS: dict[str, Variant] = {
    "ours": ours,
    "ours-no-replay": ours_without,
    "ours-always": ours_always,
    "article": article,
    "no-grad": trunk_without_gradients,
    "once": trunk_once,
    "hf": hf_trainer,
    "lightning": lightning,
}
