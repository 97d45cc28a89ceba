"""From a checkpoint to a model that ends in the task's head."""

from __future__ import annotations

import copy
import inspect
import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    AutoModel,
    AutoModelForSequenceClassification,
)
from transformers.utils.hub import cached_file

from sft_transformers.heads import EncoderWithHead, Pooling, saved_head, states

if TYPE_CHECKING:
    from torch import Tensor

    from sft_engine import Head
    from sft_transformers.sources import Source

_PROBLEM_TYPES = {
    "classification": "single_label_classification",
    "multi-label": "multi_label_classification",
    "regression": "regression",
}
_log = logging.getLogger("sft_transformers")


def decide_head(choice: Literal["auto", "own", "model"], source: Source, config: Any) -> bool:
    """Return whether the head is our own.

    `auto` takes the one that transformers has for the architecture, because then
    AutoModelForSequenceClassification reads the result; a folder that holds a head of ours keeps it.
    Raises RecipeError for `model` where there is none.
    """
    has_one = type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING or (
        "AutoModelForSequenceClassification" in (getattr(config, "auto_map", None) or {})
    )
    if choice == "model" and not has_one:
        raise source.complain(
            f'is of the type "{config.model_type}", for which transformers has no classifier: set '
            'head = "own"'
        )
    return choice == "own" or not has_one or (choice == "auto" and bool(saved_head(source.folder)))


def takes(config: Any, tokenizer: Any, *, own: bool, name: str) -> bool:
    """Return whether the tokenizer makes an input that the model takes, such as token_type_ids."""
    mapping = MODEL_MAPPING if own else MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    found = mapping.get(type(config), None)
    model_class = found[0] if isinstance(found, tuple) else found
    if name not in tokenizer.model_input_names:
        return False
    return model_class is None or name in inspect.signature(model_class.forward).parameters


def adapt(config: Any, head: Head) -> Any:
    """Return a copy of a model's configuration for the task's head."""
    adapted = copy.deepcopy(config)
    adapted.id2label = dict(enumerate(head.names))
    adapted.label2id = {name: index for index, name in enumerate(head.names)}
    adapted.num_labels = head.outputs
    adapted.problem_type = _PROBLEM_TYPES[head.kind]
    for part in (adapted, adapted.get_text_config()):
        if hasattr(part, "use_cache"):
            part.use_cache = (
                False  # keys of past tokens serve generation; here they only cost memory
            )
    return adapted


def with_its_head(source: Source, config: Any, head: Head, options: Mapping[str, Any]) -> Any:
    """Load the architecture's own sequence classifier; a head of the right size is kept."""
    was = list(config.id2label.values()) if config.num_labels == head.outputs else []
    if was and was != list(head.names) and not was[0].startswith("LABEL_"):
        _log.info("outputs of %s were named %s, now %s", source.name, was, list(head.names))
    return source.load(AutoModelForSequenceClassification, adapt(config, head), **options)


def with_own_head(
    source: Source,
    config: Any,
    head: Head,
    options: Mapping[str, Any],
    *,
    pooling: Pooling,
    dropout: float,
    example: Mapping[str, Tensor],
) -> EncoderWithHead:
    """Load the encoder and put a linear head on it; a saved head of the right size is read.

    `example` is a short input, from which the width of the states is learned.
    """
    encoder = source.load(AutoModel, adapt(config, head), **options)
    with torch.no_grad():
        width = states(encoder, example).shape[-1]
    model = EncoderWithHead(encoder, width, head.outputs, pooling, dropout)
    saved = saved_head(source.folder)
    if saved and saved["outputs"] == head.outputs and source.folder:
        model.load_head(source.folder)
    elif saved:
        _log.warning(
            "the head starts new: that in %s has %d outputs, the task needs %d",
            source.name, saved["outputs"], head.outputs,
        )  # fmt: skip
    return model


def choose_pooling(source: Source, config: Any, tokenizer: Any) -> Pooling:
    """Return how the checkpoint's states are best pooled.

    What it was trained with, if it says so (our own head, sentence-transformers); else the last token
    for decoders, the first where the tokenizer puts [CLS], the mean for all others.
    """
    saved: Pooling | None = saved_head(source.folder).get("pooling") or _sentence_pooling(source)
    if saved:
        return saved
    decoder = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and not (
        type(config) in MODEL_FOR_MASKED_LM_MAPPING or config.is_encoder_decoder
    )
    if decoder:
        return "last"
    return "mean" if tokenizer.cls_token_id is None or config.is_encoder_decoder else "first"


def _sentence_pooling(source: Source) -> Pooling | None:
    """Return the pooling that sentence-transformers wrote beside the model, if it did."""
    path = cached_file(
        source.place,
        "1_Pooling/config.json",
        revision=source.revision or None,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if path is None:
        return None
    with open(path, encoding="utf-8") as file:  # noqa: PTH123 - a str from transformers
        modes = json.load(file)
    choices: dict[str, Pooling] = {
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_cls_token": "first",
        "pooling_mode_lasttoken": "last",
    }
    return next((pooling for mode, pooling in choices.items() if modes.get(mode)), None)


def usable_positions(model: nn.Module) -> int | None:
    """Return how many tokens a table of positions allows that counts from a padding index (RoBERTa).

    None if the model has no such table: configuration and tokenizer tell the limit of all others.
    """
    tables = (
        module.num_embeddings - module.padding_idx - 1
        for name, module in model.named_modules()
        if name.endswith("position_embeddings")
        and isinstance(module, nn.Embedding)
        and module.padding_idx is not None
    )
    return min(tables, default=None)
