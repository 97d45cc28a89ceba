"""Layer groups of many architectures, by one piece of code that knows none of them."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from sft_transformers.first_use import first_use, retire_unused
from sft_transformers.layer_groups import layer_groups

ENCODER = "embeddings:5 block.0:16 block.1:16 head:4"
TABLE = {
    "albert": "embeddings:7 block.0:16 head:4",  # one block, used twice
    "bart": "embeddings:4 encoder.block.0:16 encoder.block.1:16 "
    "decoder.block.0:29 decoder.block.1:26 head:4",
    "bert": ENCODER,
    "big_bird": ENCODER,
    "bloom": "embeddings:3 block.0:12 block.1:12 head:3",
    "canine": "embeddings:6 block.0:16 block.1:20 block.2:16 head:4",  # characters, then words
    "deberta-v2": "embeddings:6 block.0:20 block.1:24 head:4",
    "distilbert": "embeddings:4 block.0:16 block.1:16 head:4",
    "electra": "embeddings:7 block.0:16 block.1:16 head:4",
    "funnel": "embeddings:3 block.0:20 block.1:20 block.2:20 head:4",
    "gemma": "embeddings:1 block.0:9 block.1:9 head:2",
    "gpt2": "embeddings:2 block.0:12 block.1:12 head:3",
    "gpt_neox": "embeddings:1 block.0:12 block.1:12 head:3",
    "llama": "embeddings:1 block.0:9 block.1:9 head:2",
    "mbart": "embeddings:4 encoder.block.0:16 encoder.block.1:16 "
    "decoder.block.0:31 decoder.block.1:26 head:6",
    "mistral": "embeddings:1 block.0:9 block.1:9 head:2",
    "mixtral": "embeddings:1 block.0:9 block.1:9 head:2",
    "modernbert": "embeddings:2 block.0:5 block.1:6 head:5",
    "mpnet": ENCODER,
    "opt": "embeddings:3 block.0:16 block.1:16 head:4",
    "qwen2": "embeddings:1 block.0:12 block.1:12 head:2",
    "roberta": ENCODER,
    "roformer": "embeddings:4 block.0:16 block.1:16 head:4",
    "t5": "embeddings:1 encoder.block.0:9 encoder.block.1:8 "
    "decoder.block.0:15 decoder.block.1:13 head:5",
    "xlnet": "embeddings:1 block.0:17 block.1:17 head:4",
}
UNUSED = {"big_bird": 2, "canine": 20, "roformer": 1, "xlnet": 1}


def run(model):
    ids = torch.tensor([[2, *range(5, 22), 3]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.model_type == "xlnet":
        inputs["token_type_ids"] = torch.zeros_like(ids)
    return model(**inputs)


@pytest.fixture
def classifier(config_of):
    def make(architecture, **changes):
        torch.manual_seed(0)
        config = config_of(architecture, num_labels=3, **changes)
        return transformers.AutoModelForSequenceClassification.from_config(config)

    return make


def members(model):
    groups = layer_groups(model, first_use(model, run))
    return {group.name: list(group.parameters) for group in groups}


@pytest.mark.parametrize("architecture", TABLE)
def test_groups_of_architecture(architecture, classifier):
    model = classifier(architecture)
    everything = {name for name, _ in model.named_parameters()}
    retired = retire_unused(model, run)
    groups = members(model)

    assert " ".join(f"{name}:{len(names)}" for name, names in groups.items()) == TABLE[architecture]
    assert len(retired) == UNUSED.get(architecture, 0)
    grouped = [name for names in groups.values() for name in names]
    assert sorted(grouped) == sorted(name for name, _ in model.named_parameters())
    assert sorted(grouped + retired) == sorted(everything)


def leaf_outputs(model):
    """Run the model; return the last output of every module that owns parameters."""
    outputs, hooks = {}, []

    def keep(name):
        def hook(_module, _inputs, output):
            outputs[name] = (output if isinstance(output, torch.Tensor) else output[0]).clone()

        return hook

    for name, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            hooks.append(module.register_forward_hook(keep(name)))
    with torch.no_grad():
        run(model)
    for hook in hooks:
        hook.remove()
    return outputs


@pytest.mark.parametrize("architecture", TABLE)
def test_changing_a_group_changes_nothing_computed_by_earlier_groups(architecture, classifier):
    """What freezing and replay rest on, shown without the autograd graph that the groups come from."""
    model = classifier(architecture).eval()
    retire_unused(model, run)
    groups = list(members(model).values())
    index_of = {id(model.get_parameter(n)): i for i, names in enumerate(groups) for n in names}
    group_of = {
        name: index_of[id(parameter)]
        for name, module in model.named_modules()
        for parameter in module.parameters(recurse=False)
    }
    before = leaf_outputs(model)
    for index in reversed(range(len(groups))):
        with torch.no_grad():
            for name in groups[index]:
                model.get_parameter(name).add_(torch.randn_like(model.get_parameter(name)))
        after = leaf_outputs(model)
        changed = {
            group_of[n] for n in before if n in group_of and not torch.equal(before[n], after[n])
        }
        assert changed
        assert min(changed) == index
        before = after


def test_members_follow_the_forward_pass_not_the_registration(classifier):
    opt = members(classifier("opt"))
    assert opt["embeddings"] == [
        "model.decoder.embed_tokens.weight",
        "model.decoder.embed_positions.weight",
        "model.decoder.project_in.weight",
    ]
    assert "model.decoder.project_out.weight" in opt["head"]  # registered before the blocks
    assert "model.decoder.final_layer_norm.weight" in opt["head"]
    bart = members(classifier("bart"))
    assert "model.encoder.layernorm_embedding.weight" in bart["embeddings"]  # registered after them
    assert "model.decoder.embed_positions.weight" in bart["decoder.block.0"]
    deberta = members(classifier("deberta-v2"))
    assert "deberta.encoder.rel_embeddings.weight" in deberta["embeddings"]  # used without a call
    assert "deberta.encoder.conv.conv.weight" in deberta["block.1"]  # used after block 0
    t5 = members(classifier("t5"))
    assert t5["embeddings"] == ["transformer.shared.weight"]  # tied: encoder and decoder use it too
    assert "transformer.encoder.final_layer_norm.weight" in t5["decoder.block.0"]


def test_parallel_lists_of_parts_stay_in_order(classifier):
    """XLM keeps attentions and feed-forward layers in two lists: each becomes a block, in turn."""
    model = classifier("xlm", use_lang_emb=False)
    groups = members(model)
    assert list(groups) == ["embeddings", "block.0", "block.1", "block.2", "block.3", "head"]
    assert "transformer.attentions.0.q_lin.weight" in groups["block.0"]
    assert "transformer.ffns.0.lin1.weight" in groups["block.1"]
    assert "transformer.attentions.1.q_lin.weight" in groups["block.2"]


def test_more_than_nine_blocks_are_numbered_in_order(classifier):
    names = list(members(classifier("bert", num_hidden_layers=11)))
    assert names == ["embeddings", *(f"block.{i}" for i in range(11)), "head"]


def test_a_frozen_model_has_the_same_groups(classifier):
    model = classifier("bert")
    before = members(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert members(model) == before
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_model_without_blocks_is_all_head():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    forward = lambda m: m(torch.ones(1, 2))  # noqa: E731
    groups = layer_groups(model, first_use(model, forward))
    assert [(g.name, len(g.parameters)) for g in groups] == [("head", 4)]


def test_looking_changes_nothing(classifier):
    model = classifier("xlnet")
    model.train()
    model.transformer.layer[0].eval()
    model.logits_proj.weight.requires_grad_(False)
    torch.manual_seed(3)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random, modes = torch.get_rng_state(), [m.training for m in model.modules()]
    flags = {name: p.requires_grad for name, p in model.named_parameters()}

    first_use(model, run)
    retired = retire_unused(model, run)

    assert retired == ["transformer.mask_emb"]
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None and p.requires_grad == flags[n] for n, p in model.named_parameters())
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_modes_and_flags_come_back_after_an_error(classifier):
    model = classifier("bert")
    model.train()
    model.classifier.weight.requires_grad_(False)

    def fail(_):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        first_use(model, fail)
    assert all(module.training for module in model.modules())
    assert not model.classifier.weight.requires_grad


class Expert(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 4), nn.Linear(4, 4)


class Routed(nn.Module):
    """Block i uses expert i only, as a router may on a short text."""

    def __init__(self):
        super().__init__()
        blocks = [nn.ModuleList([Expert(), Expert()]) for _ in range(2)]
        self.blocks = nn.ModuleList(nn.ModuleDict({"experts": experts}) for experts in blocks)
        self.never = nn.Linear(4, 4)
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        for index, block in enumerate(self.blocks):
            expert = block["experts"][index]
            x = expert.down(expert.up(x))
        return self.head(x)


def test_an_expert_that_was_not_chosen_stays():
    model = Routed()
    forward = lambda m: m(torch.ones(1, 4))  # noqa: E731
    assert retire_unused(model, forward) == ["never.weight", "never.bias"]
    groups = layer_groups(model, first_use(model, forward))
    assert [(g.name, len(g.parameters)) for g in groups] == [
        ("block.0", 8),
        ("block.1", 8),
        ("head", 2),
    ]


class Opaque(torch.autograd.Function):
    """Computes with a layer that autograd does not see, as the reversible blocks of Reformer do."""

    @staticmethod
    def forward(ctx, x, layer):
        ctx.layer = layer
        ctx.save_for_backward(x)
        with torch.no_grad():
            return layer(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            torch.autograd.backward(ctx.layer(x), grad)
        return x.grad, None


class Reversible(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(Expert() for _ in range(2))
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = Opaque.apply(x, nn.Sequential(block.up, block.down))
        return self.head(x)


def test_parameters_behind_an_opaque_function_stay_and_are_grouped():
    model = Reversible()
    forward = lambda m: m(torch.ones(1, 4))  # noqa: E731
    assert retire_unused(model, forward) == []
    groups = layer_groups(model, first_use(model, forward))
    assert [(g.name, len(g.parameters)) for g in groups] == [
        ("embeddings", 2),
        ("block.0", 4),
        ("block.1", 4),
        ("head", 2),
    ]
