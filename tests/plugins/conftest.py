"""A tiny BERT with random weights in a folder, as the hub would have it, and a csv file."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from sft_engine.recipe import parse_recipe

WORDS = "[PAD] [UNK] [CLS] [SEP] good bad film plot the a was very not and it".split()


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-bert")
    ids = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    special = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
    }
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def reviews(tmp_path_factory) -> Path:
    """96 rows whose label is whether "good" or "bad" occurs; a score and a list of labels too."""
    path = tmp_path_factory.mktemp("data") / "reviews.csv"
    draw = torch.Generator().manual_seed(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "score", "tags"])
        for i in range(96):
            good = i % 2 == 0
            length = int(torch.randint(1, 9, (1,), generator=draw))
            picks = torch.randint(6, len(WORDS), (length,), generator=draw).tolist()
            words = [WORDS[w] for w in picks]
            words.insert(length // 2, "good" if good else "bad")
            tags = ";".join(["nice"] * good + ["long"] * (length > 4)) or "short"
            writer.writerow([" ".join(words), "pos" if good else "neg", length / 4, tags])
    return path


@pytest.fixture
def recipe(request, tiny_bert, reviews):
    """Read the recipe `RECIPE` of a test's module, with overrides."""
    text = request.module.RECIPE.format(data=reviews, model=tiny_bert)

    def make(*overrides):
        return parse_recipe(text, "reviews.toml", overrides)

    return make
