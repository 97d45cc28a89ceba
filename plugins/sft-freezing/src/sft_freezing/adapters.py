"""Small weights beside frozen ones: LoRA, IA3 and the other methods of the library PEFT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt

from sft_engine import Capabilities, RecipeError, hookimpl
from sft_freezing.methods import MISSING, PIP, normal

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from sft_engine import LayerGroup, Run

ADAPTER = "adapter"
"""Subfolder of `model/` that holds the adapter alone, and the name its seed is made of."""

FEW = 4
"""Examples on which an adapter is tried out."""


class Adapted:
    """What all methods share: adapters and the head train, all else is frozen.

    Args:
        targets: Which layers get an adapter.
        phases: Names of the phases in which the adapters train; in others the head alone.
    """

    capabilities = Capabilities(replayable=True)
    method = ""
    """PEFT's name of the method, in small letters."""
    idle = False
    """Whether the options say that the adapters shall do nothing."""

    def __init__(self, targets: str | Sequence[str], phases: Sequence[str]) -> None:
        self.targets = (targets,) if isinstance(targets, str) else tuple(targets)
        self.phases = tuple(phases)
        self._adapters: list[nn.Parameter] = []
        self._whole: list[str] = []

    def settings(self) -> dict[str, Any]:
        """Return the options by PEFT's own names."""
        raise NotImplementedError

    def choose(
        self,
        model: nn.Module,  # noqa: ARG002 - for subclasses
        groups: Sequence[LayerGroup],
        layers: Sequence[Any],
    ) -> tuple[list[str], dict[str, Any]]:
        """Return the paths of the layers to adapt, and settings that depend on them."""
        from sft_freezing.targets import choose

        return choose(self.method, self.targets, layers, groups), {}

    def check(self) -> None:
        """Find out before any data is read whether PEFT takes the options.

        Raises:
            RecipeError: it does not, or it is not installed.
        """
        try:
            from sft_freezing.injection import config_of
        except ModuleNotFoundError as error:
            if error.name != "peft":
                raise
            raise RecipeError(f"`freezing`: {self.method} {MISSING}: `{PIP}`") from error
        config_of(self.method, self.settings(), self._where())

    def _where(self) -> str:
        return "freezing"

    @hookimpl
    def sft_build_model(self, run: Run) -> None:
        """Put the adapters in, under a seed of their own, and freeze all but them and the head.

        Nothing is done to the merged model of a finished run.
        """
        if run.reopened:
            return
        from sft_engine import order
        from sft_freezing import injection

        model, forward = run.model, example_pass(run)
        groups = run.layer_groups or run.backbone.layer_groups(model)
        names = {id(p): name for name, p in model.named_parameters()}
        training = {name for name, p in model.named_parameters() if p.requires_grad}
        head = [name for name in groups[-1].parameters if name in training]
        targets, more = self._targets(run, groups, injection.modules_of(head), forward)
        config = injection.config_of(self.method, self.settings(), self._where())
        for name, value in more.items():
            setattr(config, name, value)
        seed = order.mix(run.seeds.init, order.name_key(ADAPTER))
        injection.inject(model, config, targets, seed)
        new = [name for name, p in model.named_parameters() if id(p) not in names]
        if not self.idle:
            injection.check_merging(model, new, head, forward)
        self._adapters = []
        for parameter in model.parameters():
            old = names.get(id(parameter), "")
            if old in head:
                parameter.requires_grad_()
            elif old and old not in training:  # biases that something else has frozen before
                parameter.requires_grad_(False)  # noqa: FBT003
            elif parameter.requires_grad:
                self._adapters.append(parameter)
        self._whole = injection.modules_of([*head, *trained_norms(model)])
        injection.check_names(model, self._whole)
        run.layer_groups = injection.regrouped(groups, names, model)

    def _targets(
        self, run: Run, groups: Sequence[LayerGroup], head: Sequence[str], forward: Any
    ) -> tuple[list[str], dict[str, Any]]:
        from sft_freezing.targets import called, layers_of

        layers = layers_of(run.model, groups, called(run.model, forward), head)
        return self.choose(run.model, groups, layers)

    @hookimpl
    def sft_phase_start(self, run: Run) -> None:
        """Let the adapters train in the phases that are named."""
        at_work = not self.phases or run.phase.name in self.phases
        for parameter in self._adapters:
            parameter.requires_grad_(at_work)

    @hookimpl
    def sft_save_model(self, run: Run, model: nn.Module, folder: Path) -> None:
        """Write the adapter alone beside the model, and merge it into the model."""
        from sft_freezing.injection import merge, write_adapter

        base = str(getattr(run.backbone, "name", ""))
        write_adapter(model, folder / ADAPTER, self._whole, base)
        merge(model)


def example_pass(run: Run) -> Any:
    """Return what runs a model on a few training examples, on the device that the model is on."""
    from sft_engine.feed import fetch

    split = run.splits["train"]
    few = list(range(min(len(split), FEW)))
    inputs = fetch(split, run.task, run.backbone, few, (0,), []).inputs

    def forward(model: nn.Module) -> Any:
        device = next(model.parameters()).device
        return run.backbone.forward(model, {name: v.to(device) for name, v in inputs.items()})

    return forward


def trained_norms(model: nn.Module) -> list[str]:
    """Return the parameters of batch norm that trains: its statistics move, and belong to the adapter."""
    from sft_freezing.batch_norm import batch_norms

    moving = {id(m) for m in batch_norms(model) if any(p.requires_grad for p in m.parameters())}
    return [
        f"{path}.{name}"
        for path, module in model.named_modules()
        if id(module) in moving
        for name, _ in module.named_parameters()
    ]


class LoRA(Adapted):
    """Learn a low-rank change of weight matrices that stay as they are.

    Hu et al. 2021: W + alpha / rank * B A, of which only A and B train, and B begins as zeros. The head
    trains whole. Give it about ten times the learning rate of full fine-tuning.

    Args:
        rank: Width of A and B; it costs rank * (inputs + outputs) weights a layer.
        alpha: Strength: the change counts alpha / rank times.
        dropout: Share of the inputs of A that is dropped in training.
        targets: Layers that get an adapter: `auto` for every linear layer and convolution below the head; or
            shell patterns of layers (`query`, `encoder.layer.*.attention.*`) or layer groups (`block.1*`), one
            or a list.
        bias: Biases that train too: `none`, those of the adapted layers (`lora_only`), or `all`.
        rslora: Divide by the root of the rank instead, so that high ranks learn as fast (Kalajdzievski 2023).
        dora: Learn length and direction of weights apart, by a length for each output (Liu et al. 2024).
        init: Of A: `kaiming` is uniform, as in the authors' code, `gaussian` is normal with deviation 1 / rank.
        phases: Names of the phases in which the adapters train, in others the head alone; empty for all.
    """

    method = "lora"

    def __init__(  # noqa: PLR0913, PLR0917 - options of a recipe
        self,
        rank: Annotated[int, Gt(0)] = 8,
        alpha: Annotated[float, Ge(0)] = 16.0,
        dropout: Annotated[float, Ge(0), Lt(1)] = 0.0,
        targets: str | tuple[str, ...] = "auto",
        bias: Literal["none", "all", "lora_only"] = "none",
        rslora: bool = False,  # noqa: FBT001, FBT002  an option of a recipe
        dora: bool = False,  # noqa: FBT001, FBT002
        init: Literal["kaiming", "gaussian"] = "kaiming",
        phases: tuple[str, ...] = (),
    ) -> None:
        super().__init__(targets, phases)
        self.rank, self.alpha, self.dropout, self.bias = rank, alpha, dropout, bias
        self.rslora, self.dora, self.init = rslora, dora, init
        self.idle = not alpha

    def settings(self) -> dict[str, Any]:
        """Return the options by PEFT's own names."""
        return {
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "bias": self.bias,
            "use_rslora": self.rslora,
            "use_dora": self.dora,
            "init_lora_weights": True if self.init == "kaiming" else self.init,
        }


class IA3(Adapted):
    """Learn a factor for each activation of some layers.

    Liu et al. 2022 (T-Few), section 3.3: keys, values and the inner activations of the feed-forward part
    are multiplied by vectors that begin as ones. The head trains whole.

    Args:
        targets: Layers that get factors: `auto` for those that PEFT knows for the model's type, else every
            linear layer and convolution below the head; or shell patterns of layers or layer groups.
        feedforward: Shell patterns of those whose inputs are multiplied instead of their outputs; `auto` for
            those that PEFT knows, else none.
        phases: Names of the phases in which the factors train, in others the head alone; empty for all.
    """

    method = "ia3"

    def __init__(
        self,
        targets: str | tuple[str, ...] = "auto",
        feedforward: str | tuple[str, ...] = "auto",
        phases: tuple[str, ...] = (),
    ) -> None:
        super().__init__(targets, phases)
        self.feedforward = (feedforward,) if isinstance(feedforward, str) else tuple(feedforward)

    def settings(self) -> dict[str, Any]:
        """Return the options by PEFT's own names."""
        return {}

    def choose(
        self, model: nn.Module, groups: Sequence[LayerGroup], layers: Sequence[Any]
    ) -> tuple[list[str], dict[str, Any]]:
        """Return the layers, and which of them are multiplied at their inputs."""
        from peft.utils import constants

        from sft_freezing.targets import AUTO, choose, of_known_models

        targets, inputs = self.targets, self.feedforward
        if targets == (AUTO,):
            table = constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
            targets = of_known_models(table, model) or targets
        if inputs == (AUTO,):
            table = constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING
            inputs = of_known_models(table, model)
        found = choose(self.method, targets, layers, groups)
        at_inputs: set[str] = set()
        if inputs:
            at_inputs = set(choose(self.method, inputs, layers, groups, "freezing.feedforward"))
        return found, {"feedforward_modules": sorted(at_inputs & set(found))}


class Peft(Adapted):
    """Train by another method of PEFT that puts weights into a model: LoHa, LoKr, OFT, VeRA and so on.

    Args:
        method: PEFT's name of it, such as `loha`, `lokr`, `oft`, `boft`, `vera`, `ln_tuning`.
        options: Its settings by PEFT's own names, such as `{ r = 8, alpha = 16 }`.
        targets: Layers that are changed: `auto` for all below the head of the kinds that the method takes;
            or shell patterns of layers or layer groups, one or a list.
        phases: Names of the phases in which it trains, in others the head alone; empty for all.
    """

    def __init__(
        self,
        method: str,
        options: Mapping[str, Any] | None = None,
        targets: str | tuple[str, ...] = "auto",
        phases: tuple[str, ...] = (),
    ) -> None:
        super().__init__(targets, phases)
        self.method = normal(method)
        self.options = dict(options or {})

    def settings(self) -> dict[str, Any]:
        """Return the options as they are."""
        return self.options

    def _where(self) -> str:
        return "freezing.options"
