"""One function per way to train the BERT of text.py for one epoch.

Each takes the work, times the training call with `work.timer`, and returns the trained model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import BertForSequenceClassification, Trainer, TrainingArguments

from bench.same_work import MAX_GRAD_NORM, WEIGHT_DECAY
from bench.text_work import TextWork, pad

Variant = Callable[[TextWork], BertForSequenceClassification]

# Sentences of this many batches are sorted together: 1,600, so all of them by default.
# transformers' group_by_length sorts at most a quarter of the epoch at a time and pads more.
BATCHES_PER_BUCKET_SORT = 50


def random_batches(work: TextWork) -> list[list[int]]:
    """Indices of each batch of the epoch, in random order."""
    order = torch.randperm(work.count).tolist()
    return [order[i : i + work.batch_size] for i in range(0, work.count, work.batch_size)]


def bucketed_batches(work: TextWork) -> list[list[int]]:
    """Indices of each batch: sentences of like length together, batches in random order."""
    order = torch.randperm(work.count).tolist()
    span = BATCHES_PER_BUCKET_SORT * work.batch_size
    batches = []
    for start in range(0, work.count, span):
        by_length = sorted(order[start : start + span], key=work.lengths.__getitem__)
        batches += [
            by_length[i : i + work.batch_size] for i in range(0, len(by_length), work.batch_size)
        ]
    return [batches[i] for i in torch.randperm(len(batches)).tolist()]


def by_hand(
    work: TextWork, bucket: bool = False, bf16: bool = False
) -> BertForSequenceClassification:
    """A hand-written loop; with `bf16` it also uses the fused optimizer."""
    model = work.build_model()
    optimizer = torch.optim.AdamW(
        model.parameters(), work.learning_rate, weight_decay=WEIGHT_DECAY, fused=bf16 or None
    )
    schedule = LambdaLR(optimizer, lambda step: 1 - step / work.steps)
    model.train()
    with work.timer:
        for indices in bucketed_batches(work) if bucket else random_batches(work):
            batch = pad([work.train[i] for i in indices])
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = model(**batch).loss
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return model


def hf_trainer(
    work: TextWork, bucket: bool = False, bf16: bool = False
) -> BertForSequenceClassification:
    """transformers.Trainer at its defaults (fused AdamW among them), or with its fast settings."""
    model = work.build_model()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=1,
            per_device_train_batch_size=work.batch_size,
            learning_rate=work.learning_rate,
            weight_decay=WEIGHT_DECAY,
            max_grad_norm=MAX_GRAD_NORM,
            train_sampling_strategy="group_by_length" if bucket else "random",
            bf16=bf16,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = Trainer(model, arguments, train_dataset=work.train, data_collator=pad)
        with work.timer:
            trainer.train()
    return model


def ours(work: TextWork) -> BertForSequenceClassification:
    """Our engine through a recipe that leaves everything at its defaults."""
    from bench.ours import text

    model: BertForSequenceClassification = text(work)
    return model


VARIANTS: dict[str, Variant] = {
    "ours": ours,
    "raw": by_hand,
    "raw-bucket": partial(by_hand, bucket=True),
    "raw-bf16": partial(by_hand, bf16=True),
    "raw-bucket-bf16": partial(by_hand, bucket=True, bf16=True),
    "hf": hf_trainer,
    "hf-group": partial(hf_trainer, bucket=True),
    "hf-group-bf16": partial(hf_trainer, bucket=True, bf16=True),
}
