"""Translation there and back, by two sequence-to-sequence models of transformers.

Sennrich et al. 2016, "Improving Neural Machine Translation Models with Monolingual Data"; as an augmentation with
sampled words Edunov et al. 2018, "Understanding Back-Translation at Scale", and Xie et al. 2020, "Unsupervised
Data Augmentation", which translates sentence by sentence, as is done here.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sft_engine import RecipeError, order

Translate = Callable[[Sequence[str], int], list[str]]
"""Translates sentences; equal seeds give equal translations of equal sentences."""

INSTALL = "pip install 'sft-augmentations[back-translation]'"
_LONGER = 16
"""Tokens that a translation may have beyond twice the tokens of its sentence."""
_END = re.compile(r"(?<=[.!?…。！？])\s+|\n+")  # noqa: RUF001 - full stops of other scripts


def sentences(text: str) -> list[str]:
    """Split a text behind full stops, question and exclamation marks, and at line ends; none are empty."""
    return [part for part in (each.strip() for each in _END.split(text)) if part]


def there_and_back(
    texts: Sequence[str], forward: Translate, backward: Translate, samples: int, seed: int
) -> list[list[str]]:
    """Return for each text what other wordings came back, each once, at most `samples`.

    Sentences are translated one by one and joined with spaces. What came back is the same for equal texts,
    in equal order, and an equal seed.

    Args:
        texts: In the language of `forward`'s input.
        forward: Into the other language.
        backward: Back.
        samples: How often.
        seed: Of the draws.
    """
    parts = [sentences(text) for text in texts]
    flat = [sentence for part in parts for sentence in part]
    key = order.mix(seed, *(order.name_key(text) for text in texts))
    found: list[list[str]] = [[] for _ in texts]
    for sample in range(samples):
        there = forward(flat, order.mix(sample, 0, start=key))
        back = iter(backward(there, order.mix(sample, 1, start=key)))
        for text, part, others in zip(texts, parts, found, strict=True):
            other = " ".join(filter(None, (next(back).strip() for _ in part)))
            if other and other not in others and other != " ".join(text.split()):
                others.append(other)
    return found


@dataclass(frozen=True)
class Translator:
    """A sequence-to-sequence model with its tokenizer, ready to translate.

    Args:
        model: Of transformers, in evaluation mode, on its device.
        tokenizer: Of the model.
        prefix: Put before each sentence, such as `translate English to German: ` or `>>de<< `.
        temperature: Of sampling; 0 lets the model search as it is set up to, as a rule with beams.
        batch_size: Sentences of a forward pass.
    """

    model: Any
    tokenizer: Any
    prefix: str = ""
    temperature: float = 0.9
    batch_size: int = 16

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], seed: int) -> list[str]:
        """Translate sentences, longest ones first; the draws depend on the seed and the sentences alone."""
        torch.manual_seed(seed & (2**63 - 1))
        rising = sorted(range(len(texts)), key=lambda i: (-len(texts[i]), i))
        found = [""] * len(texts)
        for start in range(0, len(rising), self.batch_size):
            chosen = rising[start : start + self.batch_size]
            batch = self._batch([texts[i] for i in chosen])
            for index, text in zip(chosen, batch, strict=True):
                found[index] = text
        return found

    def _batch(self, texts: list[str]) -> list[str]:
        inputs = self.tokenizer(
            [self.prefix + text for text in texts],
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=self.limit,
            return_token_type_ids=False,
        ).to(self.model.device)
        length = min(2 * inputs["input_ids"].shape[1] + _LONGER, self.limit)
        tokens = self.model.generate(**inputs, generation_config=self._settings(length))
        decoded: list[str] = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return decoded

    @property
    def limit(self) -> int:
        """Tokens that the model can take."""
        names = ("max_position_embeddings", "n_positions")
        known = [getattr(self.model.config, name, None) for name in names]
        return int(min([self.tokenizer.model_max_length, 512, *filter(None, known)]))

    def _settings(self, length: int) -> Any:
        settings = copy.deepcopy(self.model.generation_config)
        settings.max_length, settings.max_new_tokens = None, length
        if self.temperature > 0:
            settings.update(
                do_sample=True, temperature=self.temperature, top_k=0, top_p=1.0, num_beams=1
            )
        return settings


def load_translator(
    name: str,
    option: str,
    device: str = "auto",
    prefix: str = "",
    temperature: float = 0.9,
    batch_size: int = 16,
) -> Translator:
    """Load a model from a hub id or a local folder; its weights must be safetensors.

    Args:
        name: Hub id or folder.
        option: Which option named it, for messages.
        device: `auto` for a GPU if there is one, or what torch calls a device.
        prefix: As of `Translator`.
        temperature: As of `Translator`.
        batch_size: As of `Translator`.

    Raises:
        RecipeError: there is no such model, it is of another kind, or a library is missing.
    """
    try:
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
    except ImportError as error:
        raise RecipeError(
            f"back-translate needs transformers, which this Python lacks: {INSTALL}"
        ) from error
    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(name)
            model = AutoModelForSeq2SeqLM.from_pretrained(name, use_safetensors=True)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        what = "a folder" if Path(name).is_dir() else "no folder here, so taken for a hub id"
        raise RecipeError(
            f"{option} {name} ({what}) cannot be loaded: {reason}; name a sequence-to-sequence model of "
            f"transformers with safetensors weights (tokenizers of translation models often need more: {INSTALL})"
        ) from error
    model = model.eval().to(_device(device))
    return Translator(model, tokenizer, prefix, temperature, batch_size)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise RecipeError(
            f"--device {name} cannot be used ({reason}); use auto, cpu or cuda"
        ) from error
    return device


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back transformers' bars and remarks while it loads a model."""
    from transformers.utils import logging as transformers_logging

    log: Any = transformers_logging  # its functions have no types
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
