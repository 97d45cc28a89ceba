"""Distillation from models in folders as the hub has them, and from other runs; all of it local."""

from __future__ import annotations

import json
from typing import ClassVar

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from sft_engine import RecipeError, hookimpl
from sft_engine.testing.runs import run_recipe

WORDS = "[PAD] [UNK] [CLS] [SEP] aa ab ba bb cc dd".split()

TEXT = """
[task]
use = "text-classification"
[data]
use = "tiny/texts"
validation = 8
test = 8
[backbone]
use = "transformers"
name = "{student}"
cache = false
[train]
precision = "fp32"
device = "cpu"
batch_size = 16
steps = 1
log_every = 1
clip_norm = 0
[evaluation]
test = false
every_epochs = 0
[checkpoint]
best = "last"
every_epochs = 0
[[extension]]
use = "test/keep"
"""


class Keep:
    """Keeps the student's logits and batches of the latest run."""

    seen: ClassVar[list] = []

    @hookimpl
    def sft_loss_terms(self, run, batch, outputs):
        Keep.seen.append((run, batch, outputs.logits.detach()))
        return []


def write(folder, classes, *, words=WORDS, head=True, seed=0, lower=True):
    """Write a tiny BERT and its tokenizer as `save_pretrained` does."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    ids = {word: i for i, word in enumerate(words)} | {
        letter: i for i, letter in enumerate("abcdefgh", len(words))
    }
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase() if lower else None
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {f"{n}_token": f"[{n.upper()}]" for n in ("pad", "unk", "cls", "sep")}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(ids),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=40,
        id2label=dict(enumerate(classes)),
        label2id={name: i for i, name in enumerate(classes)},
    )
    model = BertForSequenceClassification(config).eval()
    nn.init.normal_(model.classifier.weight)
    (model if head else model.bert).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Return folders of models by name: a student without head, teachers with and without."""
    root = tmp_path_factory.mktemp("hub")
    other = [*WORDS[:4], *reversed(WORDS[4:])]
    return {
        "student": write(root / "student", ["a", "b"], head=False, seed=1),
        "teacher": write(root / "teacher", ["a", "b"]),
        "turned": write(root / "turned", ["B", "A"]),
        "unnamed": write(root / "unnamed", ["LABEL_0", "LABEL_1"]),
        "renamed": write(root / "renamed", ["negative", "positive"]),
        "headless": write(root / "headless", ["a", "b"], head=False),
        "three": write(root / "three", ["a", "b", "c"]),
        "other": write(root / "other", ["a", "b"], words=[*other, "more"]),
    }


@pytest.fixture
def taught(hub, tmp_path):
    """Return a function that takes one step of distillation and returns its terms."""

    def run(teacher, more="", overrides=(), name="run"):
        Keep.seen.clear()
        text = TEXT.format(student=hub["student"])
        text += f'[[regularizer]]\nuse = "distillation"\nteacher = "{teacher}"\ntemperature = 1.0\n'
        known = {("extension", "test/keep"): f"{__name__}:Keep"}
        run_recipe(tmp_path / name, text + more, overrides, known)
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return list(map(json.loads, lines))

    return run


def by_hand(folder, tokenized=None, turned=False):
    """Return half the divergence between the student's answers and those of a folder."""
    (_run, batch, logits), *_ = Keep.seen
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        theirs = model(**(tokenized or batch.inputs)).logits
    theirs = theirs.flip(1) if turned else theirs
    kl = nn.functional.kl_div(
        logits.log_softmax(1), theirs.log_softmax(1), reduction="batchmean", log_target=True
    )
    return 0.5 * kl.item()


def term(records):
    (record,) = (r for r in records if r["kind"] == "train")
    return record["loss/distillation"]


@pytest.mark.parametrize("name", ["teacher", "unnamed", "renamed"])
def test_a_model_with_the_same_tokens(hub, taught, name):
    records = taught(hub[name])
    assert term(records) == pytest.approx(by_hand(hub[name]), rel=1e-5)
    said = [r["message"] for r in records if "order of its outputs" in r.get("message", "")]
    assert bool(said) == (name == "renamed")
    assert all("its classes are negative, positive, and the data has a, b" in m for m in said)


def test_classes_in_another_order_are_turned(hub, taught):
    assert term(taught(hub["turned"])) == pytest.approx(
        by_hand(hub["turned"], turned=True), rel=1e-5
    )


def test_a_model_with_other_tokens_reads_the_texts_itself(hub, taught):
    """Even those that an augmentation has changed for the student."""
    from transformers import AutoTokenizer

    casing = '[[augmentation]]\nuse = "character-noise"\nrate = 0.5\nshare = 1.0\n'
    records = taught(hub["other"], casing)
    (run, batch, _), *_ = Keep.seen
    texts = [run.splits["train"].rows[i]["text"] for i in batch.ids]
    tokenizer = AutoTokenizer.from_pretrained(hub["other"])
    tokenized = tokenizer(texts, padding=True, return_tensors="pt")
    assert term(records) == pytest.approx(by_hand(hub["other"], tokenized), rel=1e-5)


def test_another_run_teaches_with_its_own_backbone(hub, taught, tmp_path):
    """A run that began from another folder than the student does."""
    before = TEXT.format(student=hub["teacher"]) + "[optimizer]\nuse = 'sgd'\nlr = 0.1\n"
    known = {("extension", "test/keep"): f"{__name__}:Keep"}
    run_recipe(tmp_path / "before", before, ["train.steps=3"], known)
    records = taught(tmp_path / "before", name="after")
    expected = by_hand(tmp_path / "before" / "model")
    assert term(records) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("headless", "there `classifier.weight` is not trained for the 2 outputs of this task"),
        ("three", "there `classifier.weight` is not trained for the 2 outputs of this task"),
        ("nowhere", r"\[backbone\] name = .*nowhere"),
    ],
)
def test_a_model_that_cannot_teach_is_refused(hub, taught, tmp_path, name, says):
    folder = hub.get(name, "acme/nowhere")
    with pytest.raises(RecipeError, match=f'`teacher`: found "{folder}": .*{says}'):
        taught(folder)
    assert not (tmp_path / "run").exists()


def test_a_run_on_other_classes_is_refused(hub, taught, tmp_path):
    before = TEXT.format(student=hub["student"])
    known = {("extension", "test/keep"): f"{__name__}:Keep"}
    run_recipe(tmp_path / "before", before, ["train.steps=1"], known)
    path = tmp_path / "before" / "run.json"
    path.write_text(path.read_text().replace('"b"', '"c"'))
    with pytest.raises(
        RecipeError, match="its classes are a, c, and the data has a, b: take a run"
    ):
        taught(tmp_path / "before", name="after")
