"""The work of text.py: the same BERT, token lists and optimizer settings for every variant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypedDict

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from bench.measurement import Timer, Watcher, watched


class Example(TypedDict):
    """One tokenised sentence: ids of shape (length,), and its class."""

    input_ids: Tensor
    labels: int


Batch = dict[str, Tensor]

# Ids 5..FAMILY_END-1 are the family whose presence is the label; the rest of the vocabulary is
# noise. Ids below 5 are left to special tokens, as in a real vocabulary.
FAMILY_START, FAMILY_END, VOCABULARY_END = 5, 9, 30_000
FAMILY_SHARE = 0.25
LONGEST = 128


def sentence_lengths(count: int) -> list[int]:
    """Realistic lengths in tokens: log-normal, median 20, at most 128; always the same ones."""
    draw = torch.Generator().manual_seed(0)
    normal = torch.randn(count, generator=draw)
    lengths: list[int] = (3.0 + 0.6 * normal).exp().clamp(4, LONGEST).long().tolist()
    return lengths


def sentences(count: int, seed: int) -> list[Example]:
    """Token lists with a learnable label: does any token of the family occur?

    Half of the sentences have about a quarter of their tokens (one at least) drawn from the
    family of four, the others have none. Lengths do not depend on the seed, so neither does the
    amount of computation.
    """
    draw = torch.Generator().manual_seed(seed)
    examples: list[Example] = []
    for i, length in enumerate(sentence_lengths(count)):
        ids = torch.randint(FAMILY_END, VOCABULARY_END, (length,), generator=draw)
        label = i % 2
        if label == 1:
            family = torch.randint(FAMILY_START, FAMILY_END, (length,), generator=draw)
            chosen = torch.rand(length, generator=draw) < FAMILY_SHARE
            chosen[torch.randint(length, (1,), generator=draw)] = True
            ids = torch.where(chosen, family, ids)
        examples.append({"input_ids": ids, "labels": label})
    return examples


def label(ids: Tensor) -> Tensor:
    """Class of each row of token ids (n, width) -> (n,): does any token of the family occur?"""
    return ((ids >= FAMILY_START) & (ids < FAMILY_END)).any(dim=1).long()


def pad(examples: list[Example]) -> Batch:
    """A batch padded to its longest sentence: ids and mask (n, longest), labels (n,)."""
    ids = nn.utils.rnn.pad_sequence([x["input_ids"] for x in examples], batch_first=True)
    lengths = torch.tensor([len(x["input_ids"]) for x in examples])
    mask = (torch.arange(ids.shape[1])[None, :] < lengths[:, None]).long()
    labels = torch.tensor([x["labels"] for x in examples])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@dataclass
class TextWork:
    """Train a BERT of 6 layers, 384 wide, random weights, for one epoch on token lists.

    AdamW, learning rate falling linearly to 0, gradient norm clipped at 1. The
    learning rate is that of training from scratch; it does not change the computation.
    """

    count: int = 768
    test_count: int = 512
    seed: int = 0
    timer: Timer = field(default_factory=Timer)
    watchers: list[Watcher] = field(default_factory=list)
    batch_size: int = 32
    learning_rate: float = 2e-4
    dropout: float = 0.1

    def __post_init__(self) -> None:
        self.train = sentences(self.count, seed=2 * self.seed)
        self.test = sentences(self.test_count, seed=2 * self.seed + 1)
        self.lengths = [len(x["input_ids"]) for x in self.train]
        torch.manual_seed(self.seed)

    @property
    def steps(self) -> int:
        """Optimizer steps of the epoch."""
        return -(-self.count // self.batch_size)

    def build_model(self) -> BertForSequenceClassification:
        """The model with its first weights, watched by the timer and the watchers."""
        torch.manual_seed(self.seed)
        config = BertConfig(
            num_hidden_layers=6,
            hidden_size=384,
            intermediate_size=1536,
            num_attention_heads=12,
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
        )
        model = BertForSequenceClassification(config)
        return watched(model, [self.timer.watch, *self.watchers])


@torch.no_grad()
def loss_and_accuracy(
    model: BertForSequenceClassification, examples: list[Example]
) -> tuple[float, float]:
    """Mean cross-entropy and share of right answers, in fp32 and evaluation mode."""
    model.eval()
    loss, right = 0.0, 0
    for batch in by_length(examples, batch_size=64):
        outputs = model(**batch)
        loss += outputs.loss.item() * len(batch["labels"])
        right += int((outputs.logits.argmax(1) == batch["labels"]).sum())
    return loss / len(examples), right / len(examples)


def by_length(examples: list[Example], batch_size: int) -> Iterator[Batch]:
    """All examples once, shortest first, so that little is padded."""
    ordered = sorted(examples, key=lambda x: len(x["input_ids"]))
    for start in range(0, len(ordered), batch_size):
        yield pad(ordered[start : start + batch_size])
