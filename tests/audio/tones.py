"""Tones as files, and tiny audio models with random weights: no network."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import soundfile
import torch
import transformers

RATE = 8000
"""Samples a second that the tiny models take."""

PITCHES = {"high": 880.0, "low": 220.0}

WAVE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": (8, 8, 8),
    "conv_stride": (5, 4, 4),
    "conv_kernel": (10, 8, 4),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "classifier_proj_size": 8,
    "layerdrop": 0.1,
    "mask_time_length": 2,
}
WHISPER = {
    "d_model": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_mel_bins": 20,
    "max_source_positions": 50,
    "classifier_proj_size": 8,
    "vocab_size": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
AST = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_length": 100,
    "num_mel_bins": 16,
}
STILL = {
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "final_dropout": 0.0,
}
"""No dropout."""

EXTRACTOR = {"sampling_rate": RATE, "return_attention_mask": True}


def tone(pitch: float, seconds: float = 0.3, rate: int = RATE, phase: float = 0.0) -> np.ndarray:
    """Return a sine of amplitude one half, float32."""
    times = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * pitch * times + phase)).astype(np.float32)


def encoded(samples: np.ndarray, rate: int = RATE, form: str = "WAV", **options) -> bytes:
    """Return the bytes of a file; samples are (samples,) or (samples, channels)."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=form, **options)
    return file.getvalue()


def write_tones(folder: Path, each: int = 16) -> Path:
    """Write tones of two classes, no two alike, from 0.2 to 0.5 s."""
    for label, pitch in PITCHES.items():
        (folder / label).mkdir(parents=True)
        for index in range(each):
            samples = tone(pitch * (1 + 0.01 * (index % 5)), 0.2 + 0.3 * index / each, phase=index)
            (folder / label / f"{index:02}.wav").write_bytes(encoded(samples))
    return folder


def quietly(make, **options):
    """Make a feature extractor, which warns of its filters at so low a rate."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(**options)


def checkpoint(folder: Path, kind: str = "wav2vec2", seed: int = 0, **changes) -> Path:
    """Write an encoder with random weights and its feature extractor."""
    torch.manual_seed(seed)
    if kind == "whisper":
        model = transformers.WhisperModel(transformers.WhisperConfig(**WHISPER | changes))
        extractor = quietly(
            transformers.WhisperFeatureExtractor,
            feature_size=20,
            sampling_rate=RATE,
            hop_length=80,
            chunk_length=1,
            n_fft=200,
        )
    elif kind == "ast":
        model = transformers.ASTModel(transformers.ASTConfig(**AST | changes))
        extractor = quietly(
            transformers.ASTFeatureExtractor, sampling_rate=RATE, num_mel_bins=16, max_length=100
        )
    else:
        classes = {
            "wav2vec2": (transformers.Wav2Vec2Config, transformers.Wav2Vec2Model),
            "hubert": (transformers.HubertConfig, transformers.HubertModel),
            "wavlm": (transformers.WavLMConfig, transformers.WavLMModel),
        }
        config, model_class = classes[kind]
        model = model_class(config(**WAVE | changes))
        extractor = transformers.Wav2Vec2FeatureExtractor(**EXTRACTOR)
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder


RECIPE = """
[task]
use = "audio-classification"
[data]
use = "audio-folder"
path = "{data}"
validation = 8
test = 8
[backbone]
use = "transformers-audio"
name = "{model}"
[optimizer]
use = "adamw"
lr = 0.01
[train]
precision = "fp32"
device = "cpu"
batch_size = 8
epochs = 12
log_every = 1
"""
