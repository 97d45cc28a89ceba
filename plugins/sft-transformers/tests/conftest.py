"""Tiny models of many architectures with random weights, and tiny tokenizers: no network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from sft_engine import Head
from sft_transformers.backbone import Transformers

_WORDS = """[PAD] [UNK] [CLS] [SEP] [MASK] the a film is was very not good bad great awful actor plot and
but or it they quick brown fox jump ##s over lazy dog then sleep , . ! ##ing ##ed \u00e9"""
WORDS = {word: index for index, word in enumerate(_WORDS.split())}
LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}
ENCODER = {**LAYERS, "intermediate_size": 32, "max_position_embeddings": 64}
DECODER = {**ENCODER, "num_key_value_heads": 1}
BOTH = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 64,
    "eos_token_id": 3,
}
T5 = {"d_model": 16, "num_layers": 2, "num_heads": 2, "d_ff": 32, "d_kv": 8, "eos_token_id": 3}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 1}
GPT2 = {
    "bos_token_id": 3,
    "eos_token_id": 3,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 64,
}
DEBERTA = {
    **ENCODER,
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "norm_rel_ebd": "layer_norm",
    "conv_kernel_size": 3,
    "position_buckets": 8,
    "type_vocab_size": 0,
}
DISTIL = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 64}
CANINE = {
    **ENCODER,
    "num_hash_buckets": 128,
    "num_hash_functions": 2,
    "max_position_embeddings": 128,
}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "albert": ("AlbertConfig", {**ENCODER, "embedding_size": 8}),
    "bart": ("BartConfig", BOTH),
    "bert": ("BertConfig", ENCODER),
    "big_bird": ("BigBirdConfig", {**ENCODER, "attention_type": "original_full"}),
    "bloom": ("BloomConfig", {"hidden_size": 16, "n_layer": 2, "n_head": 2}),
    "canine": ("CanineConfig", {**CANINE, "local_transformer_stride": 8}),
    "deberta-v2": ("DebertaV2Config", DEBERTA),
    "distilbert": ("DistilBertConfig", DISTIL),
    "electra": ("ElectraConfig", {**ENCODER, "embedding_size": 8}),
    "funnel": ("FunnelConfig", {"block_sizes": [1, 2], "d_model": 16, "n_head": 2, "d_head": 8}),
    "gemma": ("GemmaConfig", {**DECODER, "head_dim": 8}),
    "gpt2": ("GPT2Config", GPT2),
    "gpt_neox": ("GPTNeoXConfig", ENCODER),
    "llama": ("LlamaConfig", DECODER),
    "mbart": ("MBartConfig", BOTH),
    "mistral": ("MistralConfig", DECODER),
    "mixtral": ("MixtralConfig", {**DECODER, **EXPERTS}),
    "modernbert": ("ModernBertConfig", ENCODER),
    "mpnet": ("MPNetConfig", {**ENCODER, "max_position_embeddings": 66}),
    "opt": ("OPTConfig", {**LAYERS, "ffn_dim": 32, "word_embed_proj_dim": 8}),
    "pegasus": ("PegasusConfig", BOTH),
    "qwen2": ("Qwen2Config", DECODER),
    "roberta": ("RobertaConfig", {**ENCODER, "max_position_embeddings": 66}),
    "roformer": ("RoFormerConfig", {**ENCODER, "embedding_size": 16}),
    "t5": ("T5Config", {**T5, "decoder_start_token_id": 0}),
    "xlm": ("XLMConfig", {"emb_dim": 16, "n_layers": 2, "n_heads": 2, "n_words": 64}),
    "xlnet": ("XLNetConfig", {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32}),
}


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    """No network, and a token cache that starts empty."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("SFT_ENGINE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def config_of() -> Callable[[str], Any]:
    """Return the tiny configuration of an architecture."""

    def make(architecture: str, **changes: Any) -> Any:
        name, options = ARCHITECTURES[architecture]
        options = {"vocab_size": 64, "pad_token_id": 0, **options, **changes}
        if architecture == "canine":
            del options["vocab_size"]
        config = getattr(transformers, name)(**options)
        config.architectures = []  # AutoModel asks a Funnel for them
        return config

    return make


def word_tokenizer(*, left: bool = False, special: str = "[CLS] $A [SEP]", **options: Any) -> Any:
    """Return a WordPiece tokenizer that knows a few words; `special` is its template."""
    backend = Tokenizer(models.WordPiece(WORDS, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if special:
        backend.post_processor = processors.TemplateProcessing(
            single=special,
            pair=f"{special} $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        padding_side="left" if left else "right",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **names | options,
    )


def byte_tokenizer(*, left: bool = False) -> Any:
    """Return a tokenizer like that of GPT-2: bytes, one special token, no padding, no [CLS]."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate([*letters, "<|endoftext|>"])}
    backend = Tokenizer(models.BPE(vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    end = "<|endoftext|>"
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        padding_side="left" if left else "right",
        bos_token=end,
        eos_token=end,
        unk_token=end,
    )


def tokenizer_for(architecture: str) -> Any:
    """Return a tokenizer of the kind that belongs to an architecture."""
    if architecture == "xlnet":
        return word_tokenizer(left=True, special="$A [SEP] [CLS]:2")
    if architecture in ("bart", "mbart", "pegasus", "t5"):
        return word_tokenizer(special="$A [SEP]", eos_token="[SEP]")
    return word_tokenizer()


@pytest.fixture
def checkpoint(tmp_path, config_of) -> Callable[..., Path]:
    """Write an encoder with random weights and its tokenizer, and return the folder."""

    def write(architecture: str, tokenizer: Any = None, *, seed: int = 1, **changes: Any) -> Path:
        folder = tmp_path / f"{architecture}-{seed}"
        torch.manual_seed(seed)
        transformers.AutoModel.from_config(config_of(architecture, **changes)).save_pretrained(
            folder
        )
        (tokenizer or tokenizer_for(architecture)).save_pretrained(folder)
        return folder

    return write


def task_of(
    kind: str = "classification", names: tuple[str, ...] = ("neg", "pos", "none")
) -> SimpleNamespace:
    """Return what a backbone asks of a task."""
    return SimpleNamespace(
        inputs={"text": True, "text_pair": False},
        target="label",
        head=Head(kind, len(names), names),
    )


@pytest.fixture
def make_task() -> Callable[..., SimpleNamespace]:
    return task_of


@pytest.fixture
def make_tokenizer() -> SimpleNamespace:
    return SimpleNamespace(words=word_tokenizer, bytes=byte_tokenizer, of=tokenizer_for)


@pytest.fixture
def architectures() -> dict[str, tuple[str, dict[str, Any]]]:
    return ARCHITECTURES


@pytest.fixture
def opened() -> Callable[..., Transformers]:
    """Return a backbone that has opened a folder."""

    def open_folder(folder: Path, **options: Any) -> Transformers:
        backbone = Transformers(name=str(folder), **options)
        backbone.open(lambda name: name)
        return backbone

    return open_folder
