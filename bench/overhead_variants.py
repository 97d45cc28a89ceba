"""One function per way to run the tiny training loop of overhead.py.

Each takes the work, times the training call with `work.timer`, and returns the trained model.
Each leaves its library at the settings a user gets, but for the four that make the work the
same: AdamW without weight decay, a linear schedule, the gradient norm clipped, no progress bar.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from bench.overhead_work import OverheadWork
from bench.same_work import MAX_GRAD_NORM, WEIGHT_DECAY

Variant = Callable[[OverheadWork], nn.Module]


def loader_of(work: OverheadWork) -> DataLoader[Any]:
    """The usual shuffled loader."""
    return DataLoader(work.dataset(), batch_size=work.batch_size, shuffle=True)


def optimizer_of(work: OverheadWork, model: nn.Module, fused: bool | None = None) -> AdamW:
    """AdamW as torch builds it, or its fused form."""
    return AdamW(model.parameters(), work.learning_rate, weight_decay=WEIGHT_DECAY, fused=fused)


def linear_decay(optimizer: torch.optim.Optimizer, steps: int) -> LambdaLR:
    """Learning rate from full at step 0 to 0 at step `steps`."""
    return LambdaLR(optimizer, lambda step: 1 - step / steps)


def by_hand(work: OverheadWork, fused: bool | None = None) -> nn.Module:
    """The loop everybody writes; the reference of the ratios."""
    model = work.build_model()
    optimizer = optimizer_of(work, model, fused)
    schedule = linear_decay(optimizer, work.steps)
    loader = loader_of(work)
    with work.timer:
        for inputs, labels in loader:
            loss = cross_entropy(model(inputs), labels)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return model


def accelerate_loop(work: OverheadWork) -> nn.Module:
    """The loop of Accelerate's documentation: everything prepared, `accumulate` around a step."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    trained = work.build_model()
    plain = optimizer_of(work, trained)
    model, optimizer, loader, schedule = accelerator.prepare(
        trained, plain, loader_of(work), linear_decay(plain, work.steps)
    )
    with work.timer:
        for inputs, labels in loader:
            with accelerator.accumulate(model):
                loss = cross_entropy(model(inputs), labels)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
    return trained


def hf_trainer(work: OverheadWork) -> nn.Module:
    """transformers.Trainer at its defaults, which are linear decay and clipping at 1."""
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
            return len(work.inputs)

        def __getitem__(self, index: int) -> dict[str, Tensor]:
            return {"inputs": work.inputs[index], "labels": work.labels[index]}

    model = work.build_model()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=1,
            per_device_train_batch_size=work.batch_size,
            learning_rate=work.learning_rate,
            weight_decay=WEIGHT_DECAY,
            max_grad_norm=MAX_GRAD_NORM,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = Trainer(WithLoss(model), arguments, train_dataset=Examples())
        with work.timer:
            trainer.train()
    return model


def lightning(work: OverheadWork) -> nn.Module:
    """lightning.Trainer with an automatic optimizer, the loss logged each step."""
    from lightning import LightningModule, Trainer

    class Classifier(LightningModule):
        """The model with its training step."""

        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            loss = cross_entropy(self.net(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = optimizer_of(work, self)
            schedule = {"scheduler": linear_decay(optimizer, work.steps), "interval": "step"}
            return [optimizer], [schedule]

    model = work.build_model()
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        gradient_clip_val=MAX_GRAD_NORM,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = loader_of(work)
    with work.timer:
        trainer.fit(Classifier(model), loader)
    return model


def fastai(work: OverheadWork) -> nn.Module:
    """fastai.Learner with torch's AdamW; it insists on a validation set, so it gets 16 rows."""
    from fastai.basics import DataLoaders, Learner
    from fastai.callback.schedule import ParamScheduler, SchedLin
    from fastai.callback.training import GradientClip
    from fastai.optimizer import OptimWrapper

    model = work.build_model()
    validation = torch.utils.data.TensorDataset(work.inputs[:16], work.labels[:16])
    learner = Learner(
        DataLoaders(loader_of(work), DataLoader(validation, batch_size=16)),
        model,
        loss_func=cross_entropy,
        opt_func=partial(OptimWrapper, opt=AdamW, weight_decay=WEIGHT_DECAY),
        cbs=[
            GradientClip(MAX_GRAD_NORM),
            ParamScheduler({"lr": SchedLin(work.learning_rate, 0.0)}),
        ],
    )
    with learner.no_bar(), learner.no_logging(), work.timer:
        learner.fit(1, work.learning_rate)
    return model


def pytorch_accelerated(work: OverheadWork) -> nn.Module:
    """pytorch_accelerated.Trainer without callbacks.

    Its own clipping is by value and its loader starts one worker process per core; both are
    overridden, because here they would make it another work, and a slower one.
    """
    from pytorch_accelerated import Trainer

    class ClipByNorm(Trainer):  # type: ignore[misc]
        """Clips the norm of the gradients, like the others."""

        def _clip_gradients(self) -> None:
            self._accelerator.clip_grad_norm_(
                self.model.parameters(), self.run_config.gradient_clip_value
            )

    model = work.build_model()
    trainer = ClipByNorm(
        model,
        loss_func=cross_entropy,
        optimizer=optimizer_of(work, model),
        callbacks=(),
    )
    with work.timer:
        trainer.train(
            work.dataset(),
            num_epochs=1,
            per_device_batch_size=work.batch_size,
            gradient_clip_value=MAX_GRAD_NORM,
            create_scheduler_fn=partial(linear_decay, steps=work.steps),
            train_dataloader_kwargs={"num_workers": 0},
        )
    return model


def ours(work: OverheadWork, hooks: bool = False) -> nn.Module:
    """Our engine through a recipe; with `hooks`, a component listens to every hook of a step."""
    from bench.ours import overhead

    return overhead(work, hooks=hooks)


VARIANTS: dict[str, Variant] = {
    "ours": ours,
    "ours-hooks": partial(ours, hooks=True),
    "raw": by_hand,
    "raw-fused": partial(by_hand, fused=True),
    "accelerate": accelerate_loop,
    "hf": hf_trainer,
    "lightning": lightning,
    "fastai": fastai,
    "pta": pytorch_accelerated,
}
