"""Adapters of sft-freezing in models of transformers, timm and torchvision: as each library reads them."""

from __future__ import annotations

import json

import pytest
import timm
import torch
import torchvision
from peft import AutoPeftModel, PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2Model,
)

import sft_engine
from sft_engine import RecipeError
from sft_engine.recipe import parse_recipe
from sft_engine.testing.runs import TINY, run_recipe

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
steps = 8
batch_size = 8
device = "cpu"
precision = "fp32"
[optimizer]
lr = 2e-2
[evaluation]
every_epochs = 0
[checkpoint]
best = "last"
[freezing]
use = "lora"
rank = 2
"""
LINES = ["good film", "the plot was very bad", "not it"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory, tiny_bert, reviews):
    """Return a function: a finished run of a model of transformers, trained once for all tests."""
    folders = {"bert": tiny_bert, "gpt2": _tiny_gpt2(tmp_path_factory, tiny_bert)}
    outcomes = {}

    def of(name, *overrides):
        key = (name, *overrides)
        if key not in outcomes:
            text = TEXTS.format(data=reviews, model=folders[name])
            folder = tmp_path_factory.mktemp("texts") / "run"
            outcomes[key] = (
                sft_engine.run(parse_recipe(text, "r.toml", overrides), output=folder),
                folders[name],
            )
        return outcomes[key]

    return of


def _tiny_gpt2(factory, bert):
    """GPT-2 has `Conv1D` layers, which hold their weights the other way round."""
    folder = factory.mktemp("tiny-gpt2")
    torch.manual_seed(0)
    sizes = {"vocab_size": 17, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
    GPT2Model(GPT2Config(**sizes, pad_token_id=0, eos_token_id=3)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(bert).save_pretrained(folder)
    return folder


def logits(model, folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        rows = [tokenizer(line, return_tensors="pt") for line in LINES]
        return torch.cat([model.eval()(**row).logits for row in rows])


def answers(outcome):
    return torch.tensor(
        [
            list(record["probabilities"].values())
            for record in sft_engine.predict(outcome.folder, LINES)
        ]
    )


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_transformers_reads_the_merged_model(texts, name):
    outcome, start = texts(name)
    merged = AutoModelForSequenceClassification.from_pretrained(outcome.folder / "model")
    assert not hasattr(merged, "peft_config")
    expected = logits(merged, outcome.folder / "model").softmax(-1)
    assert (answers(outcome) - expected).abs().max() < 1e-5
    plain = AutoModel.from_pretrained(start).state_dict()
    part = "layer.0.attention.self.query.weight" if name == "bert" else "h.0.attn.c_attn.weight"
    inner = merged.base_model.state_dict()
    assert not torch.equal(
        inner[next(k for k in inner if k.endswith(part))],
        plain[next(k for k in plain if k.endswith(part))],
    )


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks for it
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_peft_reads_the_adapter(texts, name):
    """On the pretrained model with any new head: the trained one is in the adapter."""
    outcome, start = texts(name)
    model = outcome.folder / "model"
    base = AutoModelForSequenceClassification.from_pretrained(start, num_labels=2)
    adapted = PeftModel.from_pretrained(base, model / "adapter")
    merged = AutoModelForSequenceClassification.from_pretrained(model)
    assert (logits(adapted, model) - logits(merged, model)).abs().max() < 1e-5
    settings = json.loads((model / "adapter/adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(start)
    assert settings["auto_mapping"]["base_model_class"].endswith("ForSequenceClassification")
    found = AutoPeftModel.from_pretrained(model / "adapter")
    assert (logits(found, model) - logits(merged, model)).abs().max() < 1e-5


def test_a_head_of_our_own_is_in_the_adapter(texts):
    outcome, _ = texts("bert", "backbone.head=own")
    state = load_file(outcome.folder / "model/adapter/adapter_model.safetensors")
    assert {"base_model.model.head.weight", "base_model.model.head.bias"} < set(state)
    merged = load_file(outcome.folder / "model/model.safetensors")
    assert not [name for name in merged if "lora" in name or "base_layer" in name]


def test_ia3_takes_the_layers_that_peft_knows(texts):
    outcome, _ = texts("bert", "freezing={use='ia3'}")
    settings = json.loads((outcome.folder / "model/adapter/adapter_config.json").read_text())
    ends = {path.partition("layer.0.")[2] for path in settings["target_modules"]} - {""}
    assert ends == {
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "output.dense",
    }
    assert len(settings["feedforward_modules"]) == 4


def test_gradient_checkpointing_goes_with_adapters(texts):
    plain, _ = texts("bert")
    again, _ = texts("bert", "train.gradient_checkpointing=true")
    ours, theirs = (load_file(o.folder / "model/model.safetensors") for o in (again, plain))
    assert max((ours[name] - theirs[name]).abs().max().item() for name in theirs) < 1e-5


# --- images -----------------------------------------------------------------------------------------

PICTURES = TINY.replace("text-classification", "image-classification").replace(
    "tiny/texts", "tiny/pictures"
)
QUICK = [
    "train.steps=3",
    "optimizer.lr=0.02",
    "checkpoint.best=last",
    "evaluation.every_epochs=0",
    "evaluation.test=false",
]
IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def pictures(folder, use, name, table='use = "lora"\nrank = 2'):
    off = {"timm": "pretrained = false", "torchvision": 'weights = "none"'}[use]
    text = PICTURES.replace('"tiny/text"', f'"{use}"\nname = "{name}"\n{off}\nimg_size = 32')
    return run_recipe(folder / "run", f"{text}[freezing]\n{table}\n", QUICK)


def assert_same_answers(merged, adapted):
    with torch.no_grad():
        ours, theirs = merged.eval()(IMAGES), adapted.eval()(IMAGES)
    assert (ours - theirs).abs().max() < 1e-4 * ours.abs().max() + 1e-6


def start_of(folder, use, name):
    """Return the model that training began with: another run of no steps would draw the same."""
    from sft_engine.assemble import assemble
    from sft_engine.testing.runs import plan_recipe

    off = {"timm": "pretrained = false", "torchvision": 'weights = "none"'}[use]
    text = PICTURES.replace('"tiny/text"', f'"{use}"\nname = "{name}"\n{off}\nimg_size = 32')
    return assemble(plan_recipe(text, QUICK), folder).run.model


@pytest.mark.parametrize("name", ["resnet10t", "test_vit"])
def test_timm_reads_the_merged_model(tmp_path, name):
    outcome = pictures(tmp_path, "timm", name)
    merged = timm.create_model(f"local-dir:{outcome.folder / 'model'}", pretrained=True)
    start = start_of(tmp_path / "start", "timm", name)
    adapted = PeftModel.from_pretrained(start, outcome.folder / "model/adapter")
    assert_same_answers(merged, adapted)


def test_torchvision_reads_the_merged_model(tmp_path):
    outcome = pictures(tmp_path, "torchvision", "resnet18")
    merged = torchvision.models.get_model("resnet18", num_classes=2)
    state = load_file(outcome.folder / "model/model.safetensors")
    merged.load_state_dict(state | {k: v for k, v in merged.state_dict().items() if k not in state})
    start = start_of(tmp_path / "start", "torchvision", "resnet18")
    adapted = PeftModel.from_pretrained(start, outcome.folder / "model/adapter")
    assert_same_answers(merged, adapted)


def test_attention_of_torch_gets_none_and_says_why(tmp_path):
    """Its weights are read without a call of its layers: adapters there would never run."""
    with pytest.raises(RecipeError, match=r"out_proj`, which is never called"):
        pictures(tmp_path, "torchvision", "vit_b_32", 'use = "lora"\ntargets = "out_proj"')


def test_a_layer_that_changes_its_weight_cannot_be_merged(tmp_path):
    """Timm's `ScaledStdConv2d` normalises what it finds."""
    table = 'use = "lora"\nrank = 2\ntargets = "stages.0.0.conv2"'
    with pytest.raises(RecipeError, match=r"one of the layers uses its weight in a way of its own"):
        pictures(tmp_path, "timm", "nf_resnet26", table)
