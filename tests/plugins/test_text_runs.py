"""Whole runs with the transformers backbone and files: what a user's first day looks like."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import sft_engine
from sft_engine import RecipeError
from sft_engine.recipe import parse_recipe

RECIPE = """
[task]
use = "text-classification"
[data]
use = "csv"
path = "{data}"
validation = 16
test = 16
[backbone]
use = "transformers"
name = "{model}"
[train]
epochs = 12
batch_size = 8
device = "cpu"
precision = "fp32"
[optimizer]
lr = 5e-3
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_bert, reviews):
    folder = tmp_path_factory.mktemp("finished") / "run"
    made = parse_recipe(RECIPE.format(data=reviews, model=tiny_bert), "reviews.toml")
    return sft_engine.run(made, output=folder)


def weights(outcome):
    return load_file(outcome.folder / "model" / "model.safetensors")


def test_it_learns(finished):
    assert finished.metrics["accuracy"] == 1.0
    assert finished.best["metric"] == "accuracy"


def test_transformers_reads_the_model_and_gives_the_same_logits(finished):
    model = AutoModelForSequenceClassification.from_pretrained(finished.folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(finished.folder / "model")
    texts = ["the film was very good", "bad", "it was not a plot"]
    with torch.no_grad():
        shares = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.softmax(1)
    records = list(sft_engine.predict(finished.folder, texts))
    for record, row in zip(records, shares.tolist(), strict=True):
        assert list(record["probabilities"].values()) == pytest.approx(row, abs=1e-6)
        assert record["prediction"] == model.config.id2label[int(torch.tensor(row).argmax())]


def test_evaluate_gives_the_metrics_of_the_run_again(finished):
    again = sft_engine.evaluate(finished.folder, split="test")
    assert again.pop("confusion_matrix") == finished.metrics["confusion_matrix"]
    assert again == pytest.approx({name: finished.metrics[name] for name in again})
    assert sft_engine.evaluate(finished.folder, split="validation")["accuracy"] > 0.9


def test_evaluate_on_other_data(finished, tmp_path):
    other = tmp_path / "other.csv"
    other.write_text("text,label\nthe good film,pos\nbad plot,neg\nbad film,neg\ngood,neg\n")
    metrics = sft_engine.evaluate(finished.folder, data=other)
    assert metrics["accuracy"] == 0.75
    assert metrics["confusion_matrix"] == [[2, 1], [0, 1]]


def test_the_run_folder_holds_what_the_design_promises(finished):
    folder = finished.folder
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "recipe.toml", "run.json", "metrics.jsonl", "checkpoints", "model", "predictions", "report.json"
    }  # fmt: skip
    provenance = json.loads((folder / "run.json").read_text())
    assert provenance["plugins"]["sft-transformers"]
    assert set(provenance["data"]) == {"train", "validation", "test"}
    assert provenance["label_names"] == ["neg", "pos"]
    lines = (folder / "predictions" / "test.jsonl").read_text().splitlines()
    assert len(lines) == 16
    right = [r["prediction"] == r["label"] for r in map(json.loads, lines)]
    assert sum(right) / 16 == finished.metrics["accuracy"]


def test_the_resolved_recipe_of_a_run_gives_the_same_run(finished, tmp_path):
    again = sft_engine.run(finished.folder / "recipe.toml", output=tmp_path / "again")
    assert again.fingerprint == finished.fingerprint


def test_two_runs_in_one_process_do_not_touch_each_other(finished, recipe, tmp_path):
    torch.manual_seed(1)
    before = torch.rand(3)
    torch.manual_seed(1)
    sft_engine.run(recipe("seed=7"), output=tmp_path / "other")
    again = sft_engine.run(recipe(), output=tmp_path / "again")
    assert again.fingerprint == finished.fingerprint
    assert torch.equal(torch.rand(3), before)


def test_gradient_checkpointing_changes_no_bit(recipe, finished, tmp_path):
    saving = sft_engine.run(recipe("train.gradient_checkpointing=true"), output=tmp_path / "run")
    one, other = weights(saving), weights(finished)
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_bf16_learns_too(recipe, tmp_path):
    outcome = sft_engine.run(recipe("train.precision=bf16"), output=tmp_path / "run")
    assert outcome.metrics["accuracy"] > 0.8  # compiled kernels round otherwise
    assert all(w.dtype == torch.float32 for w in weights(outcome).values())  # master weights


@pytest.mark.slow
def test_compile(recipe, finished, tmp_path):
    outcome = sft_engine.run(recipe("train.compile=true"), output=tmp_path / "run")
    one, other = weights(outcome), weights(finished)
    assert set(one) == set(other)
    assert outcome.metrics["accuracy"] > 0.8  # compiled kernels round otherwise


def test_multi_label(recipe, tmp_path):
    overrides = ["task.labels=multi", "task.separator=;", "data.columns={label='tags'}"]
    overrides += ["checkpoint.best=last"]
    outcome = sft_engine.run(recipe(*overrides, "train.epochs=20"), output=tmp_path / "run")
    assert outcome.metrics["f1/short"] > 0.8
    (record,) = sft_engine.predict(outcome.folder, ["good"])
    assert set(record["probabilities"]) == {"long", "nice", "short"}


def test_regression(recipe, tmp_path):
    overrides = ["task.use=text-regression", "data.columns={label='score'}"]
    outcome = sft_engine.run(recipe(*overrides, "train.epochs=20"), output=tmp_path / "run")
    assert outcome.metrics["pearson"] > 0.8
    assert outcome.best["metric"] == "mse"
    (record,) = sft_engine.predict(outcome.folder, ["good film"])
    assert isinstance(record["prediction"], float)


def test_early_stopping_ends_the_run(tiny_bert, reviews, tmp_path):
    text = RECIPE.format(data=reviews, model=tiny_bert)
    text += '[[extension]]\nuse = "early-stopping"\npatience = 2\n'
    made = parse_recipe(text, "r.toml", ["train.epochs=30", "optimizer.lr=1e-9"])
    outcome = sft_engine.run(made, output=tmp_path / "run")
    assert outcome.reason.startswith("early-stopping")
    epochs = [
        r["epoch"]
        for r in map(json.loads, (outcome.folder / "metrics.jsonl").read_text().splitlines())
        if r["kind"] == "evaluation" and r["split"] == "validation"
    ]
    assert epochs == [1.0, 2.0, 3.0]  # the first is the best, then two without improvement


def test_tensorboard_gets_the_records(tiny_bert, reviews, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    text = RECIPE.format(data=reviews, model=tiny_bert) + '[[tracker]]\nuse = "tensorboard"\n'
    made = parse_recipe(text, "r.toml", ["train.epochs=1", "train.log_every=2"])
    outcome = sft_engine.run(made, output=tmp_path / "run")
    events = next(p for p in outcome.folder.rglob("events.out.tfevents.*"))
    reader = EventAccumulator(str(events.parent))
    reader.Reload()
    tag = next(t for t in reader.Tags()["scalars"] if t.endswith("loss/task"))
    assert [e.step for e in reader.Scalars(tag)] == [2, 4, 6, 8]


def test_verify_resume(recipe):
    proof = sft_engine.verify_resume(recipe("backbone.head_dropout=0.3"), steps=6, interrupt_at=3)
    assert proof.equal
    assert proof.uninterrupted == proof.resumed


def test_resume_of_a_finished_run_says_so(finished):
    with pytest.raises(sft_engine.CheckpointError, match="has ended already"):
        sft_engine.resume(finished.folder)


def test_a_used_output_folder_is_refused(recipe, finished):
    with pytest.raises(sft_engine.OutputError, match="is not empty"):
        sft_engine.run(recipe(), output=finished.folder)


def test_a_model_that_is_not_there(recipe, tmp_path):
    with pytest.raises(RecipeError, match="no-such-model"):
        sft_engine.run(recipe(f"backbone.name={tmp_path}/no-such-model"), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()
