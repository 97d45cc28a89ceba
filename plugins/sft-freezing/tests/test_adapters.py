"""Adapters in runs: what trains, what the run folder holds, and that it goes on exactly."""

from __future__ import annotations

import json
import sys
from importlib import util

import pytest
import torch
from freezing_parts import COMPONENTS, End
from peft import PeftModel
from safetensors.torch import load_file

from sft_engine import Interrupted, RecipeError
from sft_engine.assemble import assemble, reopen
from sft_engine.evaluation import evaluate
from sft_engine.exporting import export_run
from sft_engine.testing.runs import TINY, plan_recipe, run_recipe
from sft_engine.timetable import timetable
from sft_freezing.adapters import LoRA, example_pass
from sft_freezing.injection import merge

SHORT = [
    "train.epochs=4",  # of three steps
    "optimizer.use=adamw",
    "optimizer.lr=0.02",
    "optimizer.weight_decay=0.1",
    "train.decay_all=true",
    "checkpoint.best=last",
    "checkpoint.every_epochs=0",
    "evaluation.every_epochs=0",
    "train.replay=false",
]
DOUBLE = ["backbone.dtype=float64"]
IMAGES = (
    TINY.replace("text-classification", "image-classification")
    .replace("tiny/texts", "tiny/pictures")
    .replace("tiny/text", "tiny/image")
)
METHODS = {
    "lora": 'use = "lora"\nrank = 2',
    "dora": 'use = "lora"\nrank = 2\ndora = true\nrslora = true',
    "biases": 'use = "lora"\nrank = 2\nbias = "all"\ndropout = 0.2',
    "adalora": 'use = "adalora"\nrank = 4\ntarget = 2\nevery = 2',
    "ia3": 'use = "ia3"\nfeedforward = "blocks.1.0"',
    "loha": 'use = "peft"\nmethod = "loha"\noptions = { r = 2, alpha = 4 }',
    "lokr": 'use = "peft"\nmethod = "LoKr"\noptions = { r = 2, alpha = 4 }',
    "oft": 'use = "peft"\nmethod = "oft"\noptions = { oft_block_size = 4, r = 0 }',
    "hra": 'use = "peft"\nmethod = "hra"\noptions = { r = 2 }',
    "vera": 'use = "peft"\nmethod = "vera"\noptions = { r = 4 }',
    "ln-tuning": 'use = "peft"\nmethod = "ln-tuning"\ntargets = "blocks.*"',
}
NOT_BIT_EQUAL = ("hra",)
"""Begins as a product of reflections that is the identity but for rounding."""

TEXTS = [
    name for name in METHODS if name != "ln-tuning"
]  # the tiny network has a norm in its head alone
PICTURES = ["lora", "dora", "biases", "ia3", "loha", "lokr", "hra"]


def text_of(name, base=TINY):
    table = METHODS[name]
    if base is IMAGES:
        table = table.replace("blocks.1.0", "block.0")
    return f"{base}[freezing]\n{table}\n"


def trained(folder, text, overrides=(), **options):
    return run_recipe(folder, text, [*SHORT, *overrides], COMPONENTS, **options)


def built(folder, text, overrides=()):
    return assemble(plan_recipe(text, [*SHORT, *overrides], COMPONENTS), folder).run


def weights(outcome):
    return load_file(outcome.folder / "model/model.safetensors")


def difference(one, other):
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    return max((ours[name] - theirs[name]).abs().max().item() for name in theirs)


def answers(run, model):
    with torch.no_grad():
        return example_pass(run)(model.eval())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return a function: the uninterrupted run of a method, trained once for all tests."""
    outcomes = {}

    def of(name):
        if name not in outcomes:
            folder = tmp_path_factory.mktemp("whole") / "run"
            outcomes[name] = trained(folder, text_of(name), DOUBLE)
        return outcomes[name]

    return of


# --- what trains ------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [TINY, IMAGES], ids=["text", "image"])
@pytest.mark.parametrize("name", PICTURES)
def test_the_first_answers_are_those_of_the_model_alone(tmp_path, name, base):
    plain, run = built(tmp_path / "a", base), built(tmp_path / "b", text_of(name, base))
    assert type(run.model) is type(plain.model)
    difference = answers(run, run.model) - answers(plain, plain.model)
    assert difference.abs().max() <= (1e-6 if name in NOT_BIT_EQUAL else 0)


def test_layer_groups_and_the_timetable_are_true(tmp_path):
    """Of two layers of 8 x 8, A and B have 2 x 8 weights each; the head has a norm and 2 x 8 + 2."""
    built_run = assemble(plan_recipe(text_of("lora"), SHORT, COMPONENTS), tmp_path / "run")
    plain = built(tmp_path / "plain", TINY)
    found = timetable(built_run)
    assert [g.name for g in found.groups] == [g.name for g in plain.layer_groups]
    assert [g.parameters for g in found.groups] == [64 * 8, 72 + 32, 72 + 32, 16 + 18]
    (stage,) = found.stages
    assert stage.groups == ("block.0", "block.1", "head")
    assert stage.parameters == 32 + 32 + 34


def test_adapters_train_in_the_phases_that_are_named(tmp_path):
    phases = "".join(
        f'[[phase]]\nname = "{n}"\nsteps = {s}\n' for n, s in (("head", 4), ("all", 5))
    )
    text = text_of("lora") + 'phases = ["all"]\n' + phases
    plan = plan_recipe(text, SHORT, COMPONENTS)
    stages = timetable(assemble(plan, tmp_path / "run")).stages
    assert [(s.step, s.groups) for s in stages] == [
        (0, ("head",)),
        (4, ("block.0", "block.1", "head")),
    ]
    one = trained(tmp_path / "one", text)
    with pytest.raises(Interrupted):
        trained(tmp_path / "two", text, stop_after=6)
    assert trained(tmp_path / "two", text, resume=True).fingerprint == one.fingerprint


def test_layer_wise_rates_reach_the_adapters(tmp_path):
    text = text_of("lora") + '[[extension]]\nuse = "layer-decay"\ndecay = 0.5\n'
    run = built(tmp_path / "run", text)
    rates = {
        name: group["lr"] / 0.02
        for group, own in zip(run.optimizer.param_groups, run.parameter_groups, strict=True)
        for name in own.names
        if "lora_A" in name
    }
    assert rates == {f"blocks.{i}.0.lora_A.default.weight": 0.5 ** (2 - i) for i in range(2)}


def test_what_something_else_has_frozen_is_not_thawed(tmp_path):
    frozen = (
        '[[extension]]\nuse = "test/frozenbelow"\n[[extension]]\nuse = "bn-freeze"\naffine = true\n'
    )
    text = text_of("biases").replace('"tiny/text"', '"test/normed"')
    run = built(tmp_path / "run", text.replace("[freezing]", frozen + "[freezing]"))
    training = {name for name, p in run.model.named_parameters() if p.requires_grad}
    assert "blocks.0.0.base_layer.bias" in training
    assert not {name for name in training if name.startswith(("embeddings", "blocks.0.1"))}


def test_adapters_depend_on_the_seed_of_initialisation_alone(tmp_path):
    def drawn(name, *seeds):
        state = built(tmp_path / name, text_of("lora"), seeds).model.state_dict()
        return state["blocks.0.0.lora_A.default.weight"]

    assert torch.equal(drawn("a", "seeds.order=1"), drawn("b", "seeds.order=2", "seeds.noise=3"))
    assert not torch.equal(drawn("c"), drawn("d", "seeds.init=7"))


# --- exactness --------------------------------------------------------------------------------------


def test_no_strength_is_a_head_that_trains_alone(tmp_path):
    nothing = TINY + '[freezing]\nuse = "lora"\nalpha = 0\n'
    head = TINY + '[freezing]\nuse = "frozen"\n'
    assert difference(trained(tmp_path / "a", nothing), trained(tmp_path / "b", head)) == 0


@pytest.mark.parametrize("name", TEXTS)
def test_it_does_something(tmp_path_factory, whole, name):
    head = trained(
        tmp_path_factory.mktemp("head") / "run", TINY + '[freezing]\nuse = "frozen"\n', DOUBLE
    )
    assert difference(whole(name), head) > 1e-4


@pytest.mark.parametrize("name", [name for name in TEXTS if name != "biases"])
def test_accumulation_changes_nothing(tmp_path, whole, name):
    parts = trained(tmp_path / "parts", text_of(name), [*DOUBLE, "train.micro_batch_size=4"])
    assert difference(parts, whole(name)) < 1e-11


@pytest.mark.parametrize("name", TEXTS)
def test_a_resumed_run_ends_bit_equal(tmp_path, whole, name):
    """With dropout in `biases`; interrupted in mid-epoch, from another random state."""
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        trained(folder, text_of(name), DOUBLE, stop_after=7)
    torch.manual_seed(1)
    resumed = trained(folder, text_of(name), DOUBLE, resume=True)
    assert resumed.fingerprint == whole(name).fingerprint
    assert difference(resumed, whole(name)) == 0


def test_replay_runs_what_is_below_the_first_adapter_once(tmp_path):
    text = text_of("lora") + 'targets = "block.1"\n'
    plain = trained(tmp_path / "plain", text, DOUBLE)
    replayed = trained(tmp_path / "replayed", text, [*DOUBLE, "train.replay=true"])
    assert difference(replayed, plain) < 1e-11
    assert "replay is on" in (replayed.folder / "metrics.jsonl").read_text()


def test_bf16_runs(tmp_path):
    outcome = trained(tmp_path / "run", text_of("lora"), ["train.precision=bf16"])
    assert all(weight.isfinite().all() for weight in weights(outcome).values())


TOGETHER = """
[[regularizer]]
use = "l2-sp"
alpha = 0.1
weight_decay = "keep"
[[regularizer]]
use = "sam"
rho = 0.1
[[regularizer]]
use = "mixout"
p = 0.5
[[regularizer]]
use = "l1"
strength = 0.001
[[regularizer]]
use = "ema"
[[extension]]
use = "auto-rgn"
"""


def test_regularizers_go_with_adapters(tmp_path):
    text = text_of("dora") + TOGETHER
    one = trained(tmp_path / "one", text)
    with pytest.raises(Interrupted):
        trained(tmp_path / "two", text, stop_after=7)
    assert trained(tmp_path / "two", text, resume=True).fingerprint == one.fingerprint
    assert difference(one, trained(tmp_path / "three", text_of("dora"))) > 1e-4


# --- the run folder ----------------------------------------------------------------------------------


def ended(folder, text):
    """Train, and return the outcome with the run as it has ended."""
    outcome = trained(folder, text + '[[extension]]\nuse = "test/end"\n')
    return outcome, End.run


CASES = [("text", name) for name in TEXTS] + [("image", name) for name in PICTURES]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_model_and_adapter_give_the_answers_of_training(tmp_path, kind, name):
    """The merged model without PEFT; the adapter with PEFT on the model that training began with."""
    base = TINY if kind == "text" else IMAGES
    outcome, run = ended(tmp_path / "run", text_of(name, base))
    end = answers(run, run.model)
    plain = built(tmp_path / "plain", base)
    start = answers(plain, plain.model)
    tolerance = 1e-4 * end.abs().max() + 1e-6
    assert (end - start).abs().max() > 100 * tolerance
    adapted = PeftModel.from_pretrained(plain.model, outcome.folder / "model/adapter")
    assert (answers(plain, adapted) - end).abs().max() < tolerance
    merged = built(tmp_path / "merged", base).model
    merged.load_state_dict(weights(outcome))
    assert (answers(run, merged) - end).abs().max() < tolerance


def test_batch_norm_that_trains_is_in_the_adapter(tmp_path):
    """Its statistics have moved, because its shifts train."""
    text = text_of("biases").replace('"tiny/text"', '"test/normed"')
    outcome, run = ended(tmp_path / "run", text)
    plain = built(tmp_path / "plain", TINY.replace('"tiny/text"', '"test/normed"'))
    start = plain.model.blocks[0][1].running_mean.clone()
    adapted = PeftModel.from_pretrained(plain.model, outcome.folder / "model/adapter")
    end = answers(run, run.model)
    assert not torch.equal(run.model.blocks[0][1].running_mean, start)
    assert (answers(plain, adapted) - end).abs().max() < 1e-5 * end.abs().max()


def test_saving_does_not_merge_what_trains(tmp_path):
    outcome, run = ended(tmp_path / "run", text_of("lora"))
    assert "blocks.0.0.lora_A.default.weight" in run.model.state_dict()
    start = torch.equal(
        run.model.blocks[0][0].base_layer.weight, weights(outcome)["blocks.0.0.weight"]
    )
    assert not start
    merge(run.model)
    assert torch.equal(run.model.blocks[0][0].weight, weights(outcome)["blocks.0.0.weight"])


def test_weights_under_an_adapter_do_not_move(tmp_path):
    _, run = ended(tmp_path / "run", text_of("lora"))
    plain = dict(built(tmp_path / "plain", TINY).model.named_parameters())
    for name, parameter in run.model.named_parameters():
        old = plain.get(name.replace(".base_layer", ""))
        if old is not None and not name.startswith(("head", "norm")):
            assert torch.equal(parameter, old), name


@pytest.mark.parametrize("name", ["lora", "oft", "vera"])
def test_a_finished_run_is_opened_without_adapters(tmp_path, name):
    outcome = trained(tmp_path / "run", text_of(name))
    opened = reopen(plan_recipe(text_of(name), SHORT), outcome.folder, ("a", "b"))
    assert not [n for n, _ in opened.run.model.named_parameters() if "base_layer" in n]
    (result,) = evaluate(opened.run, "test", opened.precision, batch_size=8)
    assert result.scalars["nll"] == pytest.approx(outcome.metrics["nll"], rel=1e-4)
    assert result.scalars["accuracy"] == outcome.metrics["accuracy"]


def test_the_best_weights_are_merged(tmp_path):
    """Those of a step before the last, from its checkpoint."""
    overrides = ["checkpoint.best=nll", "evaluation.every_steps=1", "optimizer.lr=0.3"]
    outcome = trained(tmp_path / "run", text_of("lora"), overrides)
    best = outcome.best["step"]
    assert best < 12
    state = load_file(outcome.folder / f"checkpoints/step-{best:08d}/model.safetensors")
    a, b = (state[f"blocks.0.0.lora_{k}.default.weight"] for k in "AB")
    expected = state["blocks.0.0.base_layer.weight"] + 8 * b @ a
    assert (weights(outcome)["blocks.0.0.weight"] - expected).abs().max() < 1e-6
    alone = load_file(outcome.folder / "model/adapter/adapter_model.safetensors")
    assert torch.equal(alone["base_model.model.blocks.0.0.lora_A.weight"], a)
    assert torch.equal(alone["base_model.model.head.weight"], state["head.weight"])


def test_an_exported_model_is_the_merged_one(tmp_path):
    """A graph's folder has preprocessing beside it, and no adapter without its weights."""
    outcome = trained(tmp_path / "run", text_of("lora", IMAGES))
    plan = plan_recipe(text_of("lora", IMAGES), SHORT)
    done = export_run(plan, outcome.folder, ("left", "right"), form="torch-export")
    assert done.difference <= done.allowed
    assert not [file for file in done.files if "adapter" in file]


def test_the_settings_of_the_adapter_say_what_it_is_for(whole):
    settings = json.loads((whole("lora").folder / "model/adapter/adapter_config.json").read_text())
    assert settings["peft_type"] == "LORA"
    assert settings["r"] == 2
    assert settings["target_modules"] == ["blocks.0.0", "blocks.1.0"]
    assert settings["modules_to_save"] == ["head", "norm"]
    assert settings["base_model_name_or_path"] == "random"


# --- what check refuses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (
            'use = "peft"\nmethod = "prefix-tuning"',
            r"^recipe.toml:18: `freezing.method`: prefix_tuning puts learned tokens in front of .*; take",
        ),
        ('use = "peft"\nmethod = "vblora"', r"vblora keeps weights outside of the layers"),
        ('use = "peft"\nmethod = "ia3"', r'ia3 has a component of its own; write `use = "ia3"`'),
        ('use = "lora"\nphases = ["x"]', r'`freezing.phases\[0\]`: the recipe has no phase "x"'),
        (
            'use = "lora"\n[[regularizer]]\nuse = "re-init"',
            r"`regularizer\[0\]`: re-init beside lora: re-init draws layers anew, which lora would leave",
        ),
        (
            'use = "ia3"\n[[regularizer]]\nuse = "noisy-tune"',
            r"`regularizer\[0\]`: noisy-tune beside ia3: .* the adapter alone would be nothing without",
        ),
        (
            'use = "peft"\nmethod = "loha"\n[[regularizer]]\nuse = "fgm"',
            r"`regularizer\[0\]`: fgm beside loha: .* embedding weights, which loha freezes; take freelb",
        ),
    ],
)
def test_check_refuses_with_the_reason(table, sentence):
    with pytest.raises(RecipeError, match=sentence):
        plan_recipe(f"{TINY}[freezing]\n{table}\n")


def test_what_is_switched_off_is_not_refused():
    off = '[[regularizer]]\nuse = "re-init"\nlayers = 0\n'
    assert plan_recipe(text_of("lora") + off).components


def test_without_peft_check_says_how_to_get_it(monkeypatch):
    found = util.find_spec
    monkeypatch.setattr(
        "sft_freezing.methods.find_spec", lambda name: None if name == "peft" else found(name)
    )
    with pytest.raises(RecipeError) as raised:
        plan_recipe(text_of("lora"))
    assert str(raised.value) == (
        "recipe.toml:17: `freezing.use`: lora needs the library peft, which is not installed; "
        "`pip install 'sft-freezing[peft]'`."
    )


def test_without_peft_a_component_says_so_too(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.delitem(sys.modules, "sft_freezing.injection")
    with pytest.raises(
        RecipeError, match=r"lora needs the library peft, .*: `pip install 'sft-fre"
    ):
        LoRA().check()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ('targets = "quer"', r'`freezing.targets`: "quer" matches neither a layer below the head'),
        ('targets = "head"', r"the head trains whole"),
    ],
)
def test_targets_that_are_not_there_stop_the_run_before_it_begins(tmp_path, options, sentence):
    with pytest.raises(RecipeError, match=sentence):
        trained(tmp_path / "run", text_of("lora") + options + "\n")
    assert not (tmp_path / "run").exists()


def test_a_method_that_cannot_be_merged_is_refused(tmp_path):
    text = TINY + '[freezing]\nuse = "peft"\nmethod = "lily"\n'
    with pytest.raises(RecipeError, match=r"`freezing`: this cannot be merged: .* for Lily"):
        trained(tmp_path / "run", text)
