"""The real weights: fetched once into the user's cache, loaded as a stranger would."""

from __future__ import annotations

import pytest

from sft_demos.weights import minilm

pytestmark = pytest.mark.demo


def test_folder_holds_what_from_pretrained_reads() -> None:
    names = {path.name for path in minilm().iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names


def test_minilm_is_the_encoder_it_says_it_is() -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = minilm()
    model, loading = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["mismatched_keys"]
    assert sum(parameter.numel() for parameter in model.parameters()) == 22_713_216

    sentences = ["A man is eating food.", "Someone eats a meal.", "The stock market crashed."]
    tokens = AutoTokenizer.from_pretrained(folder)(sentences, padding=True, return_tensors="pt")
    with torch.inference_mode():
        states = model.eval()(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1)
    pooled = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    same, other = (pooled[0] @ pooled[1:].T).tolist()
    assert same == pytest.approx(0.761, abs=1e-3)
    assert other == pytest.approx(-0.001, abs=1e-3)
