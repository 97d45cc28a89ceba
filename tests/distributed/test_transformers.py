"""A BERT on two processes, plain and sharded: the weights of one, in files that transformers reads."""

from __future__ import annotations

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "BertLayer",
}
SGD = ["optimizer.use=sgd", "optimizer.lr=0.05", "checkpoint.best=last", "train.steps=10"]


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    write_bert(folder)
    common = [*SGD, "backbone.use=transformers", f"backbone.name={folder}", "backbone.cache=false"]
    common += ["train.micro_batch_size={micro}"]
    own = ["backbone.head=own", "backbone.pooling=mean", "backbone.head_dropout=0.0"]
    return {
        "its head": {"overrides": common, "micro": 8},
        # The pooler, which the logits do not need, must not hold up the other process.
        "own head": {"overrides": [*common, *own]},
        "checkpointed": {"overrides": [*common, "train.gradient_checkpointing=true"], "micro": 8},
    }


def write_bert(folder):
    """Write a tiny BERT without dropout, and a tokenizer of letters."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{f"{name}_token": token for name, token in special.items()}
    ).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    transformers.set_seed(0)
    transformers.BertModel(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def one(ranks, cases):
    return ranks("runs", world=1, cases=cases)


@pytest.fixture(scope="module", params=["plain", "sharded"])
def two(request, ranks, cases):
    if request.param == "plain":
        return ranks("runs", cases=cases)
    group = ranks("sharded", environ=FSDP, cases=cases)
    assert group["kind"] == ["DTensor"] * 2
    return group


@pytest.mark.parametrize("name", ["its head", "own head", "checkpointed"])
def test_weights_are_those_of_one_process(one, two, name):
    files = sorted(p.name for p in (one.folder / name / "model").glob("*.safetensors"))
    assert files == sorted(p.name for p in (two.folder / name / "model").glob("*.safetensors"))
    for file in files:
        ours, theirs = (load_file(g.folder / name / "model" / file) for g in (two, one))
        assert ours.keys() == theirs.keys()
        assert max((ours[key] - theirs[key]).abs().max().item() for key in ours) < 1e-6


def test_transformers_reads_the_model(one, two):
    folders = [g.folder / "its head" / "model" for g in (one, two)]
    ours, theirs = map(transformers.AutoModelForSequenceClassification.from_pretrained, folders)
    tokens = transformers.AutoTokenizer.from_pretrained(folders[1])(["abba"], return_tensors="pt")
    logits = [model(**tokens).logits for model in (ours, theirs)]
    torch.testing.assert_close(*logits, atol=1e-5, rtol=0)
