"""Exported models give the run's outputs, wherever they are loaded."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import sft_engine

TEXTS = ["good film", "the plot was very bad and not good", "it"]


def probabilities(run, rows):
    records = sft_engine.predict(run, rows)
    return np.array([list(record["probabilities"].values()) for record in records])


def softmax(logits):
    return torch.as_tensor(logits).softmax(-1).numpy()


def tokens(folder, texts, **options):
    return AutoTokenizer.from_pretrained(folder)(texts, padding=True, **options)


@pytest.fixture
def fp32(bert_run, tmp_path):
    """The run, whose predictions are made in float32 as exported models make them."""
    copy = tmp_path / "run"
    shutil.copytree(bert_run, copy)
    recipe = (copy / "recipe.toml").read_text().replace('precision = "bf16"', 'precision = "fp32"')
    (copy / "recipe.toml").write_text(recipe)
    return copy


def test_hf_is_read_by_transformers_alone(fp32):
    done = sft_engine.export(fp32, "hf")
    assert done.folder == fp32 / "export" / "hf"
    assert done.difference == 0
    assert done.notes == ()
    model = AutoModelForSequenceClassification.from_pretrained(done.folder)
    with torch.no_grad():
        logits = model(**tokens(done.folder, TEXTS, return_tensors="pt")).logits
    np.testing.assert_allclose(softmax(logits), probabilities(fp32, TEXTS), atol=1e-6)
    assert model.config.id2label == {0: "neg", 1: "pos"}
    assert "accuracy" in (done.folder / "README.md").read_text()


def test_onnx_texts_of_any_number_and_length(fp32, tmp_path):
    done = sft_engine.export(fp32, "onnx", output=tmp_path / "onnx")
    session = onnxruntime.InferenceSession(done.folder / "model.onnx")
    for texts in (TEXTS, TEXTS[:1], TEXTS * 3):
        fed = tokens(done.folder, texts)
        inputs = {name: np.asarray(fed[name], dtype=np.int64) for name in done.inputs}
        (logits,) = session.run(["logits"], inputs)
        np.testing.assert_allclose(softmax(logits), probabilities(fp32, texts), atol=1e-5)


def test_torch_export_texts_of_any_number_and_length(fp32):
    done = sft_engine.export(fp32, "torch-export")
    model = torch.export.load(done.folder / "model.pt2").module()
    for texts in (TEXTS, TEXTS[:1], TEXTS * 3):
        fed = tokens(done.folder, texts, return_tensors="pt")
        logits = model(**{name: fed[name] for name in done.inputs})
        np.testing.assert_allclose(softmax(logits), probabilities(fp32, texts), atol=1e-6)


def test_what_is_said_is_what_was_done(bert_run, tmp_path):
    done = sft_engine.export(bert_run, "onnx", output=tmp_path / "new" / "onnx")
    sizes, lengths = zip(*done.compared, strict=True)
    assert len(set(sizes)) >= 2
    assert len(set(lengths)) >= 2
    assert done.examples == "the test split"
    assert done.difference <= done.allowed
    said = json.loads((done.folder / "export.json").read_text())
    assert said["labels"] == ["neg", "pos"]
    assert said["inputs"]["input_ids"] == {"dtype": "int64", "dimensions": ["batch", "sequence"]}
    assert said["preprocessing"]["max_length"] == 32
    assert said["difference"] == done.difference
    graph = onnx.load(done.folder / "model.onnx").graph
    names = [
        [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in graph.input
    ]
    assert names == [["batch", "sequence"]] * len(names)
    assert {"README.md", "export.json", "model.onnx", "tokenizer.json"} <= set(done.files)
    assert set(done.files) == {p.name for p in done.folder.iterdir()}
    assert [p.name for p in done.folder.parent.iterdir()] == ["onnx"]


@pytest.mark.parametrize("form", ["onnx", "torch-export"])
def test_neither_examples_nor_paths_of_this_machine_are_in_the_files(form, bert_run, tmp_path):
    import zipfile

    done = sft_engine.export(bert_run, form, output=tmp_path / form)
    if form == "onnx":
        content = (done.folder / "model.onnx").read_bytes()
    else:
        with zipfile.ZipFile(done.folder / "model.pt2") as archive:
            parts = {info.filename: archive.read(info) for info in archive.infolist()}
        assert all(not data for name, data in parts.items() if "sample_inputs" in name)
        content = b"".join(parts.values())
    assert b"site-packages" not in content
    assert str(bert_run.parent).encode() not in content


@pytest.mark.parametrize("form", ["timm", "onnx", "torch-export"])
def test_images(form, image_run, tmp_path):
    done = sft_engine.export(image_run, form, output=tmp_path / form)
    assert done.inputs["image"]["dimensions"] == ["batch", 3, 16, 16]
    assert [shape[0] for shape in done.compared] == [1, 3]
    assert done.difference < 1e-5
    said = json.loads((done.folder / "export.json").read_text())
    assert said["labels"] == ["dark", "light"]
    assert said["preprocessing"]["size"] == [16, 16]
    assert len(said["preprocessing"]["mean"]) == 3


def test_batch_norm_and_dropout_are_those_of_evaluation(image_run, tmp_path):
    done = sft_engine.export(image_run, "onnx", output=tmp_path / "onnx")
    session = onnxruntime.InferenceSession(done.folder / "model.onnx")
    image = np.random.default_rng(0).normal(size=(1, 3, 16, 16)).astype(np.float32)
    (alone,) = session.run(None, {"image": image})
    (again,) = session.run(None, {"image": np.concatenate([image, 5 * image])})
    np.testing.assert_allclose(again[:1], alone, atol=1e-6)


def test_a_backbone_without_a_library_is_read_back_by_itself(image_run, tmp_path):
    done = sft_engine.export(image_run, "timm", output=tmp_path / "timm")
    assert "by the backbone" in done.notes[0]
    assert {"model.safetensors", "config.json", "README.md"} <= set(done.files)


@pytest.mark.parametrize("form", ["onnx", "torch-export"])
def test_a_backbone_of_somebody_else(form, text_run, tmp_path):
    done = sft_engine.export(text_run("tiny/text"), form, output=tmp_path / form)
    assert done.inputs == {"ids": {"dtype": "int64", "dimensions": ["batch", "sequence"]}}
    assert len({shape[1] for shape in done.compared}) >= 2


@pytest.mark.parametrize(("dtype", "bytes_each"), [("fp32", 4), ("bf16", 2), ("fp16", 2)])
def test_training_in_bf16_leaves_no_trace_unless_asked_for(dtype, bytes_each, bert_run, tmp_path):
    done = sft_engine.export(bert_run, "hf", output=tmp_path / "hf", dtype=dtype)
    model = AutoModelForSequenceClassification.from_pretrained(done.folder)
    assert {p.element_size() for p in model.parameters()} == {bytes_each}
    assert (done.difference == 0) == (dtype == "fp32")


def test_onnx_in_half_precision_takes_and_gives_the_same_types(image_run, tmp_path):
    done = sft_engine.export(image_run, "onnx", output=tmp_path / "onnx", dtype="fp16")
    session = onnxruntime.InferenceSession(done.folder / "model.onnx")
    assert session.get_inputs()[0].type == "tensor(float)"
    assert session.get_outputs()[0].type == "tensor(float)"
    assert 0 < done.difference < done.allowed


def test_opset(bert_run, tmp_path):
    done = sft_engine.export(bert_run, "onnx", output=tmp_path / "onnx", opset=18)
    assert onnx.load(done.folder / "model.onnx").opset_import[0].version == 18


def test_where_the_data_is_gone_inputs_are_made_up(fp32, image_run, tmp_path):
    form = "torch-export"
    text = sft_engine.export(fp32, form, output=tmp_path / "t", overrides=["data.path=gone.csv"])
    assert text.examples == "synthetic inputs"
    assert "gone.csv" in text.notes[0]
    assert len({shape[1] for shape in text.compared}) == 2
    image = sft_engine.export(
        image_run, form, output=tmp_path / "i", overrides=["data.path=nowhere"]
    )
    assert image.examples == "synthetic inputs"
    assert image.inputs["image"]["dimensions"] == ["batch", 3, 16, 16]


def test_the_run_and_the_callers_generators_are_left_alone(text_run, tmp_path):
    folder = text_run("tiny/text")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    sft_engine.export(folder, "torch-export", output=tmp_path / "out")
    assert torch.equal(torch.rand(1), expected)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
