"""Finished runs of tiny models: texts without any library, a BERT, and images."""

from __future__ import annotations

import csv
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

import sft_engine
from sft_engine.recipe import parse_recipe
from sft_engine.testing import install_fake

WORDS = "[PAD] [UNK] [CLS] [SEP] good bad film plot the a was very not and it".split()
TRAIN = """
[train]
steps = 3
batch_size = 8
device = "cpu"
precision = "bf16"
"""
TEXT = """
[task]
use = "text-classification"
[data]
use = "tiny/texts"
validation = 8
test = 8
[backbone]
use = "{backbone}"
"""
BERT = """
[task]
use = "text-classification"
[data]
use = "csv"
path = "{folder}/reviews.csv"
[backbone]
use = "transformers"
name = "{folder}/bert"
cache = false
"""
IMAGES = """
[task]
use = "image-classification"
[data]
use = "image-folder"
path = "{folder}"
[backbone]
{backbone}
"""


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """The components of `tiny_images.py`, installed as a distribution of somebody else."""
    folder = tmp_path_factory.mktemp("site")
    install_fake(folder, "sft-tiny-images", {}, entry_points={"tiny_images": "tiny_images"})
    return folder


@contextmanager
def found(site: Path) -> Iterator[None]:
    """Let Python find them, and no test of another folder."""
    before = sys.path[:]
    sys.path[:0] = [str(site), str(Path(__file__).parent)]
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before


@pytest.fixture(autouse=True)
def components(site) -> Iterator[None]:
    with found(site):
        yield


@pytest.fixture(scope="session")
def train(site) -> Callable[[str, Path], Path]:
    """Return what trains by a recipe and gives the run's folder."""

    def run(recipe: str, folder: Path) -> Path:
        with found(site):
            return sft_engine.run(parse_recipe(recipe + TRAIN, "tiny.toml"), output=folder).folder

    return run


@pytest.fixture(scope="session")
def text_run(train, tmp_path_factory) -> Callable[[str], Path]:
    """Return the folder of a run with one of the tiny text backbones."""
    done: dict[str, Path] = {}

    def run(backbone: str) -> Path:
        if backbone not in done:
            folder = tmp_path_factory.mktemp("texts") / "run"
            done[backbone] = train(TEXT.format(backbone=backbone), folder)
        return done[backbone]

    return run


@pytest.fixture(scope="session")
def bert_run(train, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    write_bert(folder / "bert")
    with (folder / "reviews.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for i in range(60):
            rest = " ".join(WORDS[6 + (i * k) % 9] for k in range(i % 7))
            writer.writerow([f"{'good' if i % 2 else 'bad'} {rest}", "pos" if i % 2 else "neg"])
    return train(BERT.format(folder=folder), folder / "run")


def write_bert(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    ids = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(
        vocab_size=len(WORDS), intermediate_size=32, max_position_embeddings=32, **sizes
    )
    BertModel(config).save_pretrained(folder)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """48 images of two classes, in a folder of each."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    draws = np.random.default_rng(0)
    for name, colour in (("dark", 0), ("light", 128)):
        (folder / name).mkdir()
        for i in range(24):
            pixels = colour + draws.integers(0, 128, (20, 24, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def image_run_with(train, pictures, tmp_path_factory) -> Callable[[str], Path]:
    """Return the folder of a run on the pictures with a backbone, given as lines of a recipe."""

    def run(backbone: str) -> Path:
        recipe = IMAGES.format(folder=pictures, backbone=backbone)
        return train(recipe, tmp_path_factory.mktemp("images") / "run")

    return run


@pytest.fixture(scope="session")
def image_run(image_run_with) -> Path:
    return image_run_with('use = "tiny/image"')
