"""Adapters as functions: what they compute, where they go, and what cannot have one."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from sft_engine import LayerGroup, RecipeError
from sft_freezing import injection
from sft_freezing.targets import called, choose, layers_of


class Net(nn.Module):
    """A convolution, two linear layers, and what no adapter can be put around."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.first = nn.Linear(4, 6)
        self.second = nn.Linear(6, 6, bias=False)
        self.tied = nn.Linear(6, 6, bias=False)
        self.other = nn.Linear(6, 6, bias=False)
        self.other.weight = self.tied.weight
        self.head = nn.Linear(6, 2)

    def forward(self, image):
        hidden = self.depthwise(self.conv(image)).flatten(2).transpose(1, 2)
        hidden = self.attention(hidden, hidden, hidden)[0].mean(1)
        hidden = torch.tanh(self.second(torch.tanh(self.first(hidden))))
        return self.head(self.other(self.tied(hidden)))


GROUPS = {"stem": ("conv", "depthwise"), "block": ("attention", "first", "second", "tied")}


def new_net():
    torch.manual_seed(0)
    net = Net().double()
    names = [name for name, _ in net.named_parameters()]
    groups = [
        LayerGroup(group, tuple(n for n in names if n.split(".")[0] in parts))
        for group, parts in {**GROUPS, "head": ("head",)}.items()
    ]
    return net, groups


IMAGES = torch.rand(2, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
TARGETS = ["conv", "first", "second"]


def forward(model):
    return model(IMAGES)


def lora(net, targets=TARGETS, **options):
    injection.inject(net, injection.config_of("lora", {"r": 2, **options}), targets, seed=1)
    return net


def random_adapters(net, part="lora_"):
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if part in name:
                parameter.copy_(torch.randn_like(parameter))
    return net


# --- LoRA ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rslora", "scale"), [(False, 3.0), (True, 6 / 2**0.5)])
def test_merged_weights_are_the_formula(rslora, scale):
    """W + alpha / r B A; of a convolution, A has its kernel and B one point."""
    net, _ = new_net()
    start = copy.deepcopy(net)
    random_adapters(lora(net, lora_alpha=6.0, use_rslora=rslora))
    before = forward(net.eval())
    parts = {
        name: {
            k: getattr(net.get_submodule(name), f"lora_{k}").default.weight.clone() for k in "AB"
        }
        for name in TARGETS
    }
    injection.merge(net)
    for name in ("first", "second"):
        expected = start.get_submodule(name).weight + scale * parts[name]["B"] @ parts[name]["A"]
        assert (net.get_submodule(name).weight - expected).abs().max() < 1e-12
    kernel = torch.einsum("or,rihw->oihw", parts["conv"]["B"][:, :, 0, 0], parts["conv"]["A"])
    assert (net.conv.weight - start.conv.weight - scale * kernel).abs().max() < 1e-12
    assert (forward(net) - before).abs().max() < 1e-12
    assert [n for n, _ in net.named_parameters()] == [n for n, _ in start.named_parameters()]
    assert {type(m) for m in net.modules()} == {type(m) for m in start.modules()}


def test_gradients_are_those_of_the_product():
    """dL/dA = s B^T G and dL/dB = s G A^T, with G the gradient of the merged weight."""
    net, _ = new_net()
    random_adapters(lora(net, ["second"], lora_alpha=6.0))
    forward(net).square().sum().backward()
    a, b = (getattr(net.second, f"lora_{k}").default.weight for k in "AB")
    merged = copy.deepcopy(net)
    injection.merge(merged)
    merged.second.weight.requires_grad_()
    forward(merged).square().sum().backward()
    whole = merged.second.weight.grad
    assert (a.grad - 3 * b.T @ whole).abs().max() < 1e-11
    assert (b.grad - 3 * whole @ a.T).abs().max() < 1e-11
    assert net.second.base_layer.weight.grad is None


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"init_lora_weights": "gaussian"}])
def test_it_begins_as_nothing(options):
    net, _ = new_net()
    before = forward(net)
    assert torch.equal(forward(lora(net, **options)), before)


def test_as_many_weights_train_as_peft_says():
    ours, _ = new_net()
    theirs, _ = new_net()
    lora(ours)
    own = get_peft_model(theirs, LoraConfig(r=2, target_modules=TARGETS))
    count = sum(p.numel() for p in ours.parameters() if p.requires_grad)
    assert count == own.get_nb_trainable_parameters()[0]
    assert count == 2 * (3 * 9 + 4) + 2 * (4 + 6) + 2 * (6 + 6)


def test_adapters_come_from_the_seed_alone():
    state = []
    for before in (1, 2):
        net, _ = new_net()
        torch.manual_seed(before)
        expected = torch.rand(1)
        torch.manual_seed(before)
        state.append(lora(net).first.lora_A.default.weight)
        assert torch.equal(torch.rand(1), expected)
    assert torch.equal(*state)


def test_an_initialisation_that_changes_the_weights_is_refused():
    net, _ = new_net()
    with pytest.raises(RecipeError, match="this initialisation changes the weights of the model"):
        lora(net.float(), ["second"], init_lora_weights="olora")


# --- layers ----------------------------------------------------------------------------------------


def found_layers(net, groups):
    return layers_of(net, groups, called(net, forward), ["head"])


def test_what_gets_an_adapter_by_itself():
    net, groups = new_net()
    layers = found_layers(net, groups)
    assert choose("lora", ["auto"], layers, groups) == ["conv", "first", "second"]
    assert choose("vera", ["auto"], layers, groups) == ["first", "second"]
    assert {layer.path for layer in layers if layer.obstacle} == {
        "depthwise",
        "attention.out_proj",
        "tied",
        "other",
    }


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["first"], ["first"]),
        (["*on*"], ["conv", "second"]),
        (["stem"], ["conv"]),
        (["block"], ["first", "second"]),
        (["second", "conv"], ["second", "conv"]),
    ],
)
def test_patterns_name_layers_or_groups(patterns, expected):
    net, groups = new_net()
    assert choose("lora", patterns, found_layers(net, groups), groups) == expected


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            "thrid",
            r'"thrid" matches neither a layer below the head, such as `conv`, nor a layer group',
        ),
        ("head", r'"head" matches neither .*; the head trains whole'),
        (
            "out_proj",
            r"`attention.out_proj`, which is never called: its weight is read by a module",
        ),
        ("depthwise", r"`depthwise`, which is a grouped convolution"),
        ("tied", r"`tied`, which shares its weight with another layer"),
    ],
)
def test_layers_that_cannot_be_are_named(pattern, message):
    net, groups = new_net()
    with pytest.raises(RecipeError, match=message):
        choose("lora", [pattern], found_layers(net, groups), groups)


def test_a_model_without_such_layers_says_so():
    net, groups = new_net()
    layers = [layer for layer in found_layers(net, groups) if layer.kind != "Linear"]
    with pytest.raises(RecipeError, match="vera takes Linear and Conv1D layers, and the model has"):
        choose("vera", ["auto"], layers, groups)


def test_a_layer_that_ends_as_the_head_does_gets_none():
    """PEFT would train it whole, because it goes by the end of a name."""
    net, groups = new_net()
    net.overhead = net.first
    del net.first
    renamed = [
        LayerGroup(g.name, tuple(n.replace("first", "overhead") for n in g.parameters))
        for g in groups
    ]
    net.forward = lambda image: net.head(net.second(net.overhead(torch.ones(2, 4).double())))
    layers = layers_of(net, renamed, called(net, forward), ["head"])
    assert choose("lora", ["auto"], layers, renamed) == ["second"]
    with pytest.raises(RecipeError, match="would be taken for the head `head`"):
        choose("lora", ["overhead"], layers, renamed)


def test_adapters_belong_to_the_group_of_their_layer():
    net, groups = new_net()
    names = {id(p): name for name, p in net.named_parameters()}
    now = injection.regrouped(groups, names, lora(net, bias="all"))
    assert [group.name for group in now] == ["stem", "block", "head"]
    assert sorted(n for g in now for n in g.parameters) == sorted(dict(net.named_parameters()))
    stem, block, head = ({n for n in g.parameters if "lora" in n} for g in now)
    assert stem == {f"conv.lora_{k}.default.weight" for k in "AB"}
    assert block == {f"{n}.lora_{k}.default.weight" for n in ("first", "second") for k in "AB"}
    assert head == set()


# --- merging that would be wrong --------------------------------------------------------------------


class Normalised(nn.Linear):
    """Divides its weight by its norm, which whoever adds something to the weight does not know."""

    def forward(self, inputs):
        return nn.functional.linear(inputs, self.weight / self.weight.norm(), self.bias)


def check(net):
    new = [name for name, _ in net.named_parameters() if "lora_" in name]
    injection.check_merging(net, new, ["head.weight"], forward)


def test_a_layer_that_uses_its_weight_in_its_own_way_is_refused():
    net, _ = new_net()
    net.second = Normalised(6, 6, bias=False).double()
    with pytest.raises(RecipeError, match="merged into the weights, an adapter there gives other"):
        check(lora(net))


def test_an_adapter_that_does_nothing_is_refused():
    net, _ = new_net()
    with pytest.raises(
        RecipeError, match="an adapter there does not change what the model answers"
    ):
        check(lora(net, ["attention.out_proj"]))


def test_trying_out_leaves_the_model_as_it_was():
    net, _ = new_net()
    nn.init.zeros_(net.head.weight)  # as torchvision has it: nothing would be seen through it
    lora(net)
    before = copy.deepcopy(net.state_dict())
    state = torch.get_rng_state()
    check(net)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


# --- the file ---------------------------------------------------------------------------------------


def test_peft_reads_what_is_written(tmp_path):
    net, _ = new_net()
    start = copy.deepcopy(net)
    random_adapters(lora(net))
    with torch.no_grad():
        net.head.weight.mul_(2)
    injection.write_adapter(net, tmp_path / "adapter", ["head"], "base")
    read = PeftModel.from_pretrained(start, tmp_path / "adapter").eval()
    assert (forward(read) - forward(net.eval())).abs().max() < 1e-12


def test_names_that_peft_would_mix_up_are_refused():
    net, _ = new_net()
    injection.inject(net, injection.config_of("delora", {"r": 2}), ["first"], seed=1)
    with pytest.raises(RecipeError, match=r"would take `first.delora_w_norm` for `norm`"):
        injection.check_names(net, ["norm"])
    injection.check_names(net, ["head"])


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("lohha", {}, r'`freezing.method`: PEFT has no method "lohha": did you mean `loha`'),
        ("loha", {"rank": 2}, r'`freezing.options`: loha of PEFT has no option "rank"'),
        ("loha", {"target_modules": ["x"]}, r"`target_modules` is not said here; layers are named"),
        ("adalora", {"total_step": -1}, r"`freezing.options`: PEFT refuses them: AdaLoRA does not"),
    ],
)
def test_settings_that_peft_does_not_take(method, options, message):
    with pytest.raises(RecipeError, match=message):
        injection.config_of(method, options)


def test_modules_of_parameters():
    names = ["head.fc.weight", "head.fc.bias", "head.norm.weight", "pos_embed", "head.bias"]
    assert injection.modules_of(names[:4]) == ["head.fc", "head.norm"]
    assert injection.modules_of(names) == ["head"]
