"""Audio encoders: layer groups, padding, what they take and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset

from sft_engine import Head, RecipeError
from sft_engine.audio import Sound
from sft_transformers.audio import SHORTEST, TransformersAudio

RATE = 8000
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
    "classifier_proj_size": 8,
}
LAYER_NORM = {**WAVE, "feat_extract_norm": "layer", "do_stable_layer_norm": True}
SEW = {**WAVE, "squeeze_factor": 2}
DATA2VEC = {**WAVE, "num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 3}
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
BERT = {**WAVE, "feature_projection_input_dim": 160, "num_adapter_layers": 1}

ARCHITECTURES = {
    "wav2vec2": ("Wav2Vec2Config", LAYER_NORM),
    "wav2vec2, group norm": ("Wav2Vec2Config", WAVE),
    "hubert": ("HubertConfig", LAYER_NORM),
    "wavlm": ("WavLMConfig", WAVE),
    "unispeech": ("UniSpeechConfig", WAVE),
    "data2vec-audio": ("Data2VecAudioConfig", DATA2VEC),
    "sew": ("SEWConfig", SEW),
    "wav2vec2-conformer": ("Wav2Vec2ConformerConfig", WAVE),
    "wav2vec2-bert": ("Wav2Vec2BertConfig", BERT),
    "whisper": ("WhisperConfig", WHISPER),
    "ast": ("ASTConfig", AST),
}
TABLE = {
    "wav2vec2": "feature_encoder:9 embeddings:7 block.0:16 block.1:16 head:6",
    "wav2vec2, group norm": "feature_encoder:5 embeddings:9 block.0:16 block.1:16 head:4",
    "hubert": "feature_encoder:9 embeddings:7 block.0:16 block.1:16 head:6",
    "wavlm": "feature_encoder:5 embeddings:9 block.0:20 block.1:19 head:4",
    "unispeech": "feature_encoder:5 embeddings:9 block.0:16 block.1:16 head:4",
    "data2vec-audio": "feature_encoder:9 embeddings:11 block.0:16 block.1:16 head:4",
    "sew": "feature_encoder:5 embeddings:9 block.0:16 block.1:16 head:6",
    "wav2vec2-conformer": "feature_encoder:5 embeddings:4 block.0:34 block.1:34 head:6",
    "wav2vec2-bert": "embeddings:4 block.0:32 block.1:32 head:4",
    "whisper": "embeddings:4 block.0:15 block.1:15 head:6",
    "ast": "embeddings:5 block.0:16 block.1:16 head:6",
}


Task = SimpleNamespace(
    inputs={"audio": True},
    target="label",
    head=Head("classification", 3, ("a", "b", "c")),
)


def extractor_of(architecture):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # at so low a rate some filters are empty
        if architecture == "whisper":
            return transformers.WhisperFeatureExtractor(
                feature_size=20, sampling_rate=RATE, hop_length=80, chunk_length=1, n_fft=200
            )
        if architecture == "ast":
            return transformers.ASTFeatureExtractor(
                sampling_rate=RATE, num_mel_bins=16, max_length=100
            )
        if architecture == "wav2vec2-bert":
            return transformers.SeamlessM4TFeatureExtractor(sampling_rate=RATE)
    return transformers.Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=True)


@pytest.fixture
def checkpoint(tmp_path):
    def write(architecture, **changes):
        name, options = ARCHITECTURES[architecture]
        torch.manual_seed(0)
        config = getattr(transformers, name)(**options | changes)
        folder = tmp_path / architecture.replace(", ", "-")
        transformers.AutoModel.from_config(config).save_pretrained(folder)
        extractor_of(architecture).save_pretrained(folder)
        return folder

    return write


@pytest.fixture
def opened(checkpoint):
    def open_one(architecture="wav2vec2", changes=(), **options):
        backbone = TransformersAudio(name=str(checkpoint(architecture, **dict(changes))), **options)
        backbone.open(lambda name: name)
        return backbone

    return open_one


def rows(*lengths):
    draws = np.random.default_rng(0)
    sounds = [draws.normal(0, 0.1, length).astype(np.float32) for length in lengths]
    return [{"audio": Sound(sound, RATE), "label": 0} for sound in sounds]


# --- layer groups --------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # WavLM, in torch
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_groups_of_architecture(architecture, opened):
    backbone = opened(architecture)
    model = backbone.build(Task)
    groups = {group.name: list(group.parameters) for group in backbone.layer_groups(model)}
    assert " ".join(f"{name}:{len(names)}" for name, names in groups.items()) == TABLE[architecture]
    grouped = [name for names in groups.values() for name in names]
    assert sorted(grouped) == sorted(name for name, _ in model.named_parameters())


def test_the_feature_encoder_is_what_transformers_freezes(opened):
    model = opened().build(Task)
    model.freeze_feature_encoder()
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert opened().layer_groups(model)[0].parameters == tuple(frozen)


def test_what_never_trains_is_a_buffer(opened):
    """Whisper's table of positions; the vector that stands for masked frames of wav2vec 2.0."""
    whisper, wave = (opened(name).build(Task) for name in ("whisper", "wav2vec2"))
    assert "encoder.embed_positions.weight" in dict(whisper.named_buffers())
    assert "wav2vec2.masked_spec_embed" in dict(wave.named_buffers())
    for model in (whisper, wave):
        assert all(p.requires_grad for p in model.parameters())


def test_nothing_is_dropped_or_masked_that_the_recipe_does_not_name(opened):
    model = opened(changes={"layerdrop": 0.5, "mask_time_prob": 0.9}).build(Task)
    assert (model.config.layerdrop, model.config.apply_spec_augment) == (0.0, False)


# --- inputs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["wav2vec2", "wav2vec2-bert", "whisper", "ast"])
def test_a_batch_is_what_the_feature_extractor_makes_of_it(opened, architecture):
    """The whole batch at once, padded by transformers; lengths that its frames divide."""
    backbone, given = opened(architecture), rows(1600, 4000)
    padding = {} if backbone.fixed else {"padding": True}
    expected = backbone.extractor(
        [row["audio"].samples for row in given],
        sampling_rate=RATE,
        return_tensors="pt",
        **padding,
    )
    found = backbone.collate(backbone.encode_rows(given, Task))
    assert set(found) == set(expected) - ({"attention_mask"} if backbone.fixed else set())
    for name, tensor in found.items():
        assert torch.allclose(tensor.float(), expected[name].float(), atol=1e-5), name


def test_padding_changes_no_logits(opened):
    backbone = opened()
    model = backbone.build(Task).eval()
    short, long = rows(1600, 4000)
    with torch.no_grad():
        alone, both = (
            backbone.forward(model, backbone.collate(backbone.encode_rows(each, Task))).logits[0]
            for each in ([short], [short, long])
        )
    assert torch.allclose(alone, both, atol=1e-6)


def test_a_split_is_encoded_as_its_rows_are(opened, tmp_path):
    import soundfile

    backbone = opened(max_seconds=0.4)
    given = [
        *rows(1000, 4000),
        {"audio": Sound(rows(8820)[0]["audio"].samples, 44_100), "label": 1},
    ]
    paths = []
    for index, row in enumerate(given):
        paths.append(str(tmp_path / f"{index}.wav"))
        soundfile.write(paths[-1], row["audio"].samples, row["audio"].rate, subtype="FLOAT")
    split = Dataset.from_dict({"audio": paths, "label": [0, 0, 1]})
    examples = backbone.encode(split, Task)
    assert examples.lengths.tolist() == [1000, 3200, 1600]
    assert examples.truncated.tolist() == [False, True, False]
    for one, other in zip(
        examples.__getitems__([0, 1, 2]), backbone.encode_rows(given, Task), strict=True
    ):
        assert np.array_equal(one["input_values"], other["input_values"])
        assert one["label"] == other["label"]


def test_short_ones_are_continued_by_silence(opened):
    """So that there are frames to take the mean of; the mask counts the silence as heard."""
    backbone = opened()
    batch = backbone.collate(backbone.encode_rows(rows(1, 100), Task))
    assert batch["attention_mask"].sum(1).tolist() == [round(SHORTEST * RATE)] * 2
    assert backbone.forward(backbone.build(Task).eval(), batch).logits.isfinite().all()


@pytest.mark.parametrize(
    ("architecture", "seconds"), [("wav2vec2", 30.0), ("whisper", 1.0), ("ast", 1.015)]
)
def test_a_window_of_its_own_is_never_exceeded(opened, architecture, seconds):
    backbone = opened(architecture)
    assert backbone.seconds == pytest.approx(seconds)
    assert backbone.fixed == (architecture != "wav2vec2")


@pytest.mark.parametrize(
    ("own", "option", "there"),
    [(True, "auto", True), (False, "auto", False), (False, "on", True), (True, "off", False)],
)
def test_the_mask_is_the_checkpoints_or_the_recipes(checkpoint, own, option, there):
    folder = checkpoint("wav2vec2")
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"return_attention_mask": own}))
    backbone = TransformersAudio(name=str(folder), padding_mask=option)
    backbone.open(lambda name: name)
    batch = backbone.collate(backbone.encode_rows(rows(1600, 2000), Task))
    assert ("attention_mask" in batch) is there


# --- what is refused -----------------------------------------------------------------------------


def test_a_text_model_is_refused(tmp_path):
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match='type "bert", for which transformers has no audio class'):
        TransformersAudio(name=str(tmp_path)).open(lambda name: name)


def test_no_feature_extractor_is_refused(checkpoint):
    folder = checkpoint("wav2vec2")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(RecipeError, match=r"has no preprocessor_config\.json: add the one"):
        TransformersAudio(name=str(folder)).open(lambda name: name)


def test_a_damaged_feature_extractor_is_refused(checkpoint):
    folder = checkpoint("wav2vec2")
    file = folder / "preprocessor_config.json"
    file.write_text(file.read_text()[:40])
    with pytest.raises(
        RecipeError, match=r"has a preprocessor_config\.json that transformers cannot"
    ):
        TransformersAudio(name=str(folder)).open(lambda name: name)


def test_too_small_a_model_for_its_feature_extractor_is_refused(opened):
    backbone = opened("whisper", changes={"max_source_positions": 20})
    with pytest.raises(RecipeError, match="cannot run on a short recording"):
        backbone.build(Task)


def test_missing_libraries_are_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"soundfile and scipy.*sft-engine\[audio\]"):
        TransformersAudio(name="x").check()


def test_reading_options_imports_nothing_heavy():
    code = (
        "import sys, sft_transformers.audio as a, sft_transformers.tasks;"
        "a.TransformersAudio(name='x');"
        "heavy = ('torch', 'transformers', 'datasets', 'numpy', 'soundfile');"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
