"""Optimizers against their formulas and against torch and timm themselves."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
import timm.optim
import torch

from sft_engine.builtin import optimizers
from sft_engine.builtin.optimizer_classes import (
    build_optimizer,
    choose_implementation,
    timm_class,
    torch_class,
)
from sft_engine.errors import RecipeError
from sft_engine.options import signature_of
from sft_engine.state import pack, unpack

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = ("AdamW", "Adam", "Sgd", "RmsProp", "Adafactor", "Lion", "Lamb")
TORCH_NAMES = [
    "ASGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SGD",
]
NEED_CUDA = ("bnb", "fused")  # bitsandbytes and apex
TIMM_NAMES = [
    name
    for name in timm.optim.list_optimizers()
    if not name.startswith((*NEED_CUDA, "kron")) and name != "adahessian"
]


def a_net() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Tanh(), torch.nn.Linear(8, 2)
    )


def groups_of(net: torch.nn.Module, lr: float = 1e-2) -> list[dict[str, Any]]:
    """Return two groups, as the engine makes them: with and without weight decay."""
    large = [p for p in net.parameters() if p.ndim > 1]
    small = [p for p in net.parameters() if p.ndim == 1]
    return [
        {"params": large, "lr": lr, "weight_decay": 0.1},
        {"params": small, "lr": lr, "weight_decay": 0.0},
    ]


def train(
    net: torch.nn.Module, optimizer: torch.optim.Optimizer, rates: list[float]
) -> list[torch.Tensor]:
    """Take a step at each learning rate, set as the loop sets it; return the weights."""
    torch.manual_seed(1)
    inputs, labels = torch.randn(16, 4), torch.randint(0, 2, (16,))
    for rate in rates:
        for group in optimizer.param_groups:
            group["lr"] = rate
        torch.nn.functional.cross_entropy(net(inputs), labels).backward()
        optimizer.step()
        for parameter in net.parameters():
            parameter.grad = None
    return [p.detach() for p in net.parameters()]


RATES = [0.01, 0.02, 0.005, 0.0]

DIRECT: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "AdamW": lambda g: torch.optim.AdamW(g, betas=(0.9, 0.999), eps=1e-8, fused=True),
    "Adam": lambda g: torch.optim.Adam(g, betas=(0.9, 0.999), eps=1e-8, fused=True),
    "Sgd": lambda g: torch.optim.SGD(g, momentum=0.9, fused=True),
    "RmsProp": lambda g: torch.optim.RMSprop(g, alpha=0.99, foreach=True),
    "Adafactor": lambda g: torch.optim.Adafactor(g, foreach=True),
    "Lion": lambda g: timm.optim.Lion(g, betas=(0.9, 0.99), foreach=True),
    "Lamb": lambda g: timm.optim.Lamb(g, max_grad_norm=None, foreach=True),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_component_is_the_class_it_names(name: str) -> None:
    ours, theirs = a_net(), a_net()
    built = getattr(optimizers, name)().build(groups_of(ours))
    direct = DIRECT[name](groups_of(theirs))
    assert type(built) is type(direct)
    for own, other in zip(train(ours, built, RATES), train(theirs, direct, RATES), strict=True):
        assert torch.equal(own, other)


# --- One step by hand -----------------------------------------------------------------------------

WEIGHT, GRAD = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.3, -0.1, 0.0])


def one_step(component: Any, steps: int = 1) -> torch.Tensor:
    weight = torch.nn.Parameter(WEIGHT.double())
    optimizer = component.build([{"params": [weight]}])
    for _ in range(steps):
        weight.grad = GRAD.double()
        optimizer.step()
    return weight.detach()


def test_adamw_by_hand() -> None:
    """Bias correction makes the first step g / (|g| + eps); decay is lr * weight_decay * w."""
    result = one_step(optimizers.AdamW(lr=0.1, weight_decay=0.5))
    expected = WEIGHT * (1 - 0.1 * 0.5) - 0.1 * GRAD / (GRAD.abs() + 1e-8)
    torch.testing.assert_close(result, expected.double(), rtol=1e-6, atol=0)


def test_adam_adds_its_weight_decay_to_the_gradient() -> None:
    result = one_step(optimizers.Adam(lr=0.1, weight_decay=0.5))
    grad = GRAD + 0.5 * WEIGHT
    torch.testing.assert_close(result, (WEIGHT - 0.1 * grad.sign()).double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("nesterov", "moved"), [(False, 1 + 1.9), (True, 1.9 + 2.71)])
def test_sgd_with_momentum_by_hand(nesterov: bool, moved: float) -> None:
    result = one_step(optimizers.Sgd(lr=0.1, momentum=0.9, nesterov=nesterov), steps=2)
    torch.testing.assert_close(result, (WEIGHT - 0.1 * moved * GRAD).double(), rtol=1e-6, atol=1e-9)


def test_lion_by_hand() -> None:
    result = one_step(optimizers.Lion(lr=0.1, weight_decay=0.5))
    expected = WEIGHT * (1 - 0.1 * 0.5) - 0.1 * GRAD.sign()
    torch.testing.assert_close(result, expected.double(), rtol=1e-6, atol=0)


def test_lamb_by_hand_and_without_clipping_of_its_own() -> None:
    """The Adam step is scaled to the norm of the weight: its own norm does not matter."""
    result = one_step(optimizers.Lamb(lr=0.1, weight_decay=0.5))
    update = GRAD / (GRAD.abs() + 1e-6) + 0.5 * WEIGHT
    expected = WEIGHT - 0.1 * update * WEIGHT.norm() / update.norm()
    torch.testing.assert_close(result, expected.double(), rtol=1e-6, atol=0)
    assert optimizers.Lamb().build([{"params": [WEIGHT]}]).defaults["max_grad_norm"] is None


def test_groups_keep_their_own_learning_rate_and_decay() -> None:
    groups = groups_of(a_net(), lr=0.5)
    optimizer = optimizers.AdamW(lr=0.1, weight_decay=0.3).build(
        [*groups[:1], {"params": [WEIGHT]}]
    )
    assert [g["lr"] for g in optimizer.param_groups] == [0.5, 0.1]
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.3]
    assert set(groups[0]) == {"params", "lr", "weight_decay"}  # what was given is not written to


# --- Implementations ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("AdamW", {"fused": True}),
        ("Adam", {"fused": True}),
        ("SGD", {"fused": True}),
        ("Adagrad", {"fused": True}),
        ("RMSprop", {"foreach": True}),
        ("Adafactor", {"foreach": True}),
    ],
)
def test_auto_is_fused_where_the_processor_has_it_else_foreach(name: str, chosen: Any) -> None:
    assert choose_implementation(torch_class(name), groups_of(a_net()), "auto") == chosen


def test_auto_is_not_fused_where_weights_could_not_thaw() -> None:
    """Fused SGD has momentum of all parameters, or of none."""
    for momentum, chosen in ((0.0, "fused"), (0.9, "foreach")):
        thaws, trains = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
        optimizer = optimizers.Sgd(lr=0.5, momentum=momentum, weight_decay=0.0).build(
            [{"params": [thaws, trains]}]
        )
        assert optimizer.param_groups[0][chosen] is True
        for each in (trains, thaws):
            each.grad = torch.ones(2)
            optimizer.step()
        assert thaws.tolist() == [0.5, 0.5]


def test_auto_is_neither_where_the_class_has_neither() -> None:
    assert choose_implementation(timm_class("adamp"), groups_of(a_net()), "auto") == {}
    assert choose_implementation(timm_class("adamp"), groups_of(a_net()), "for-loop") == {}


def test_auto_is_not_fused_for_weights_that_fused_cannot_take() -> None:
    weights = torch.nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    optimizer = optimizers.AdamW(weight_decay=0.0).build([{"params": [weights]}])
    assert optimizer.param_groups[0]["foreach"] is True
    weights.grad = torch.ones_like(weights)
    optimizer.step()
    assert (weights.detach().abs() > 0).all()


@pytest.mark.parametrize("implementation", ["fused", "foreach", "for-loop"])
def test_implementations_agree_up_to_rounding(implementation: Any) -> None:
    reference, net = a_net(), a_net()
    direct = torch.optim.AdamW(groups_of(reference), foreach=False, fused=False)
    built = optimizers.AdamW(implementation=implementation).build(groups_of(net))
    flags = {name: built.param_groups[0][name] for name in ("fused", "foreach")}
    assert [name for name, on in flags.items() if on] == [
        name for name in ("fused", "foreach") if name == implementation
    ]
    pairs = zip(train(net, built, RATES), train(reference, direct, RATES), strict=True)
    for own, other in pairs:
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-7)


def test_an_implementation_that_is_not_there_is_refused() -> None:
    with pytest.raises(RecipeError) as caught:
        optimizers.RmsProp(implementation="fused").build(groups_of(a_net()))
    assert str(caught.value) == (
        '`optimizer.implementation`: found "fused", with which RMSprop cannot step on cpu, or not if weights thaw; '
        "allowed: auto, foreach, for-loop"
    )


# --- Any optimizer by name ------------------------------------------------------------------------


def trains_and_leaves_frozen_weights_alone(component: Any) -> None:
    net = a_net()
    optimizer = component.build(groups_of(net))
    frozen = list(net[0].parameters())  # type: ignore[index]
    for parameter in frozen:
        parameter.requires_grad = False
    before = [p.detach().clone() for p in net.parameters()]
    after = train(net, optimizer, RATES)
    moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert moved == [False, False, True, True, True, True]
    assert all(torch.isfinite(weights).all() for weights in after)


def resumes_bit_for_bit(component: Any) -> None:
    """Save as a checkpoint does, without pickle, and go on with another optimizer and model."""
    whole, first, second = a_net(), a_net(), a_net()
    expected = train(whole, component.build(groups_of(whole)), RATES + RATES)
    interrupted = component.build(groups_of(first))
    train(first, interrupted, RATES)
    tensors: dict[str, torch.Tensor] = {}
    saved = json.loads(json.dumps(pack(interrupted.state_dict(), "", tensors)))
    second.load_state_dict(first.state_dict())
    resumed = component.build(groups_of(second))
    resumed.load_state_dict(unpack(saved, {k: v.clone() for k, v in tensors.items()}))
    for own, other in zip(train(second, resumed, RATES), expected, strict=True):
        assert torch.equal(own, other)


BY_NAME = [
    *[optimizers.Torch(name=n, lr=1e-2, weight_decay=0.1 * (n != "Rprop")) for n in TORCH_NAMES],
    *[optimizers.Timm(name=name, lr=1e-2, weight_decay=0.1) for name in TIMM_NAMES],
]


@pytest.mark.parametrize("component", BY_NAME, ids=lambda c: f"{type(c).__name__}-{c.name}")
def test_every_optimizer_leaves_frozen_weights_alone_and_resumes(component: Any) -> None:
    trains_and_leaves_frozen_weights_alone(component)
    resumes_bit_for_bit(component)


def test_torch_is_complete() -> None:
    known = {n for n, c in vars(torch.optim).items() if isinstance(c, type) and n != "Optimizer"}
    assert known == {*TORCH_NAMES, "LBFGS", "SparseAdam", "Muon"}


def test_further_options_reach_the_class() -> None:
    component = optimizers.Torch(name="RAdam", options={"betas": [0.8, 0.9], "eps": 1e-6})
    group = component.build(groups_of(a_net())).param_groups[0]
    assert (group["betas"], group["eps"]) == ((0.8, 0.9), 1e-6)


def test_timm_gets_the_defaults_of_its_own_factory() -> None:
    net = a_net()
    for name in ("sgd", "momentum", "nadamw", "cadamw", "lambw", "rmsproptfw", "nmuon"):
        theirs = timm.optim.create_optimizer_v2(list(net.parameters()), name, lr=0.1)
        ours = optimizers.Timm(name=name, lr=0.1).build([{"params": list(net.parameters())}])
        flags = ("fused", "foreach")
        assert {k: v for k, v in ours.defaults.items() if k not in flags} == {
            k: v for k, v in theirs.defaults.items() if k not in flags
        }


WRONG = [
    (
        optimizers.Torch(name="radam"),
        '`optimizer.name`: found "radam", which torch.optim does not have; did you mean `RAdam`?',
    ),
    (
        optimizers.Timm(name="lyon"),
        '`optimizer.name`: found "lyon", which timm does not have; did you mean `lion`?',
    ),
    (
        optimizers.Torch(name="NAdam", options={"momentum_deca": 0.1}),
        (
            "`optimizer.options.momentum_deca`: NAdam does not have this option; "
            "did you mean `momentum_decay`?"
        ),
    ),
    (
        optimizers.Torch(name="NAdam", options={"lr": 0.1}),
        "`optimizer.options.lr`: not set here; write it as `optimizer.lr`",
    ),
    (
        optimizers.Timm(name="adan", options={"foreach": True}),
        '`optimizer.options.foreach`: not set here; write `optimizer.implementation = "foreach"`',
    ),
    (
        optimizers.Torch(name="LBFGS"),
        (
            '`optimizer.name`: found "LBFGS", which cannot be used: '
            "it evaluates the loss several times a step"
        ),
    ),
    (
        optimizers.Timm(name="adahessian"),
        '`optimizer.name`: found "adahessian", which cannot be used: it needs second derivatives',
    ),
    (
        optimizers.Timm(name="kron"),
        (
            '`optimizer.name`: found "kron", which cannot be used: '
            "it draws random numbers that no checkpoint would hold"
        ),
    ),
    (
        optimizers.Torch(name="Rprop", weight_decay=0.1),
        "`optimizer.weight_decay`: found 0.1, and Rprop has no weight decay; leave the key out",
    ),
]


@pytest.mark.parametrize(("component", "sentence"), WRONG)
def test_a_wrong_name_or_option_is_a_sentence_before_anything_is_built(
    component: Any, sentence: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        component.check()
    assert str(caught.value) == sentence


def test_an_unknown_name_like_nothing_lists_what_there_is() -> None:
    with pytest.raises(RecipeError, match=r"allowed: `ASGD`, `Adadelta`, .*`SGD`$"):
        optimizers.Torch(name="quux").check()


def test_a_value_that_the_class_refuses_is_a_sentence() -> None:
    component = optimizers.Torch(name="RAdam", options={"betas": [2.0, 0.9]})
    with pytest.raises(RecipeError, match=r"`optimizer`: RAdam refuses its options: Invalid beta"):
        component.build(groups_of(a_net()))
    with pytest.raises(ValueError, match=r"`nesterov` looks ahead along the momentum"):
        optimizers.Sgd(nesterov=True, momentum=0.0)


@pytest.mark.parametrize(
    "component", [optimizers.Lion(), optimizers.Lamb(), optimizers.Timm(name="lion")]
)
def test_without_timm_the_sentence_says_what_to_install(
    component: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    for attempt in (component.check, lambda: component.build(groups_of(a_net()))):
        with pytest.raises(RecipeError, match=r"not installed: pip install 'sft-engine\[timm\]'$"):
            attempt()


def test_any_class_of_a_plugin_can_be_built_the_same_way() -> None:
    class Plain(torch.optim.Optimizer):
        def __init__(self, params: Any, lr: float = 1.0) -> None:
            super().__init__(params, {"lr": lr})

        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.data.sub_(group["lr"] * parameter.grad)

    weight = torch.nn.Parameter(WEIGHT.clone())
    optimizer = build_optimizer(Plain, [{"params": [weight]}], lr=0.5)
    weight.grad = GRAD.clone()
    optimizer.step()
    assert torch.equal(weight.detach(), WEIGHT - 0.5 * GRAD)


@pytest.mark.parametrize("name", [*NAMES, "Torch", "Timm"])
def test_every_option_is_explained_and_only_names_are_required(name: str) -> None:
    signature = signature_of(f"sft_engine.builtin.optimizers:{name}")
    assert {"lr", "weight_decay", "implementation"} <= set(signature.names)
    assert [o.name for o in signature.options if not o.help] == []
    assert [o.name for o in signature.options if o.required] in ([], ["name"])
