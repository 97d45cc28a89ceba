"""Explanations of real models with random weights: a BERT by words, a timm network by cells."""

from __future__ import annotations

import pytest
import torch

import sft_engine
from sft_engine.recipe import parse_recipe
from sft_engine.testing import runs
from sft_engine.testing.runs import run_recipe, tiny_plugins

TEXTS = """
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
steps = 40
device = "cpu"
precision = "fp32"
[optimizer]
lr = 1e-2
[evaluation]
page = false
"""
PICTURES = """
[task]
use = "image-classification"
[data]
use = "tiny/pictures"
validation = 8
test = 8
[backbone]
use = "timm"
name = "test_vit"
pretrained = false
img_size = 32
[train]
steps = 1
device = "cpu"
precision = "fp32"
"""
ROW = "good film, very good"


@pytest.fixture(scope="module")
def bert(tmp_path_factory, tiny_bert, reviews):
    """A run that has learnt a little."""
    folder = tmp_path_factory.mktemp("bert") / "run"
    text = TEXTS.format(data=reviews, model=tiny_bert)
    return sft_engine.run(parse_recipe(text, "r.toml"), output=folder).folder


def explained(folder, rows, method, **options):
    overrides = [f"explanation.{name}={value!r}" for name, value in options.items()]
    found = sft_engine.predict(folder, rows, explain=method, overrides=overrides)
    return [record["explanation"] for record in found]


@pytest.mark.parametrize("baseline", ["auto", "zero"])
def test_of_bert_integrated_gradients_are_complete_and_by_word(bert, baseline) -> None:
    (found,) = explained(bert, [ROW], "integrated-gradients", baseline=baseline, steps=100)
    assert found["parts"] == ["good", "film", ",", "very", "good"]
    assert found["spans"] == [
        ["text", 0, 4],
        ["text", 5, 9],
        ["text", 9, 10],
        ["text", 11, 15],
        ["text", 16, 20],
    ]
    difference = found["value"] - found["baseline"]
    assert abs(difference) > 0.1
    assert abs(found["gap"]) < 0.02 * abs(difference)


def test_padding_and_the_batch_play_no_part(bert) -> None:
    alone = explained(bert, [ROW], "integrated-gradients")[0]
    longer = explained(bert, ["the plot and the film " * 3, ROW, "bad"], "integrated-gradients")
    assert longer[1]["parts"] == alone["parts"]
    assert longer[1]["scores"] == pytest.approx(alone["scores"], abs=1e-5)


def test_occlusion_of_a_word_is_the_token_for_nothing_in_its_place(bert) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bert / "model")
    model = AutoModelForSequenceClassification.from_pretrained(bert / "model").eval()
    (found,) = explained(bert, [ROW], "occlusion")
    tokens = tokenizer([ROW], return_tensors="pt")
    with torch.no_grad():
        whole = model(**tokens).logits[0]
        output = model.config.label2id[found["output"]]
        assert found["value"] == pytest.approx(float(whole[output]), abs=1e-5)
        for place, score in enumerate(found["scores"], 1):  # after [CLS]
            ids = tokens["input_ids"].clone()
            ids[0, place] = tokenizer.pad_token_id
            without = model(**{**tokens, "input_ids": ids}).logits[0]
            assert score == pytest.approx(float(whole[output] - without[output]), abs=1e-5)


def test_two_texts_are_explained_together(tmp_path, tiny_bert, reviews) -> None:
    text = TEXTS.format(data=reviews, model=tiny_bert)
    columns = ["data.columns.text_pair='tags'", "train.steps=1"]
    run = sft_engine.run(parse_recipe(text, "r.toml", columns), output=tmp_path / "run").folder
    row = {"text": "good film", "text_pair": "very bad"}
    (found,) = explained(run, [row], "integrated-gradients")
    assert found["parts"] == ["good", "film", "very", "bad"]
    assert [span[0] for span in found["spans"]] == ["text"] * 2 + ["text_pair"] * 2


def test_of_a_timm_network_integrated_gradients_are_complete(tmp_path, monkeypatch) -> None:
    run = run_recipe(tmp_path / "run", PICTURES).folder
    load = runs.load_plugins

    def with_tiny():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runs, "load_plugins", load)
            return tiny_plugins()

    monkeypatch.setattr("sft_engine.plugins.load_plugins", with_tiny)
    picture = torch.randint(0, 255, (32, 32, 3), generator=torch.Generator().manual_seed(0))
    row = {"image": picture.tolist()}
    (found,) = explained(run, [row], "integrated-gradients", steps=100, cells=4)
    assert found["shape"] == [4, 4]
    assert found["parts"][5] == "row 2, column 2"
    difference = found["value"] - found["baseline"]
    assert abs(difference) > 1e-3
    assert abs(found["gap"]) < 0.02 * abs(difference)
