"""Adapters of PEFT put into a model, merged into it, and written alone: for any loop.

The model keeps its class and its forward pass; only the layers that are adapted are replaced.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, get_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from sft_engine import LayerGroup, RecipeError, logits_of
from sft_engine.sentences import choices, suggest

NAME = "default"
"""What PEFT calls the one adapter of a model."""

PREFIX = "base_model.model."
"""In front of every name in a file of PEFT."""

OWN = (
    "target_modules",
    "modules_to_save",
    "feedforward_modules",
    "exclude_modules",
    "inference_mode",
    "peft_type",
    "peft_version",
    "task_type",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
)
"""Settings of PEFT that say what other options of the recipe say, or what the engine knows."""

_OF_PEFT = (
    AssertionError,
    AttributeError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What PEFT raises, according to the method, for layers that it cannot change or merge."""

SMALL = 0.05
"""Deviation of the random weights with which an adapter is tried out."""


# --- settings -------------------------------------------------------------------------------------


def known_methods() -> list[str]:
    """Return the names of the methods that PEFT can put into a model."""
    return sorted(kind.value.lower() for kind in PEFT_TYPE_TO_TUNER_MAPPING)


def config_of(
    method: str, options: Mapping[str, Any], where: str = "freezing.options"
) -> PeftConfig:
    """Return PEFT's settings of a method, without the layers that it is for.

    Args:
        method: In small letters, such as `loha`.
        options: As PEFT names them.
        where: The key of the recipe, for messages.

    Raises:
        RecipeError: PEFT has no such method or option, or refuses a value.
    """
    kinds = {kind.value.lower(): kind for kind in PEFT_TYPE_TO_TUNER_MAPPING}
    if method not in kinds:
        hint = suggest(method, kinds) or choices(sorted(kinds))
        raise RecipeError(f'`freezing.method`: PEFT has no method "{method}": {hint}')
    make = PEFT_TYPE_TO_CONFIG_MAPPING[kinds[method]]
    known = [name for name in make.__dataclass_fields__ if name not in OWN]
    for name in options:
        if name in OWN:
            raise RecipeError(
                f"`{where}`: `{name}` is not said here; layers are named by `freezing.targets`, and the "
                "head trains whole"
            )
        if name not in known:
            hint = suggest(name, known) or choices(sorted(known))
            raise RecipeError(f'`{where}`: {method} of PEFT has no option "{name}": {hint}')
    try:
        return make(**options)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"`{where}`: PEFT refuses them: {_said(error)}") from error


def _said(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")[:300]


# --- in and out -----------------------------------------------------------------------------------


def inject(model: nn.Module, config: PeftConfig, targets: Sequence[str], seed: int) -> None:
    """Put adapters into a model, in place: from then on they alone require gradients.

    Args:
        model: Its other parameters stay what they are, under other names: `base_layer`.
        config: The result of `config_of`.
        targets: Paths of the layers.
        seed: Of the adapter's random weights; torch's own random state is left alone.

    Raises:
        RecipeError: PEFT cannot adapt one of the layers, or would change the weights themselves.
    """
    settings: Any = config
    settings.target_modules = list(targets)
    before = _prints(model)
    tuner = PEFT_TYPE_TO_TUNER_MAPPING[settings.peft_type]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*fan_in_fan_out")  # of Conv1D: PEFT sees to it
        torch.default_generator.manual_seed(seed & (2**63 - 1))
        try:
            tuner(model, config, NAME)
        except _OF_PEFT as error:
            raise RecipeError(
                f"`freezing.targets`: PEFT cannot adapt these layers: {_said(error)}"
            ) from error
    settings.target_modules = sorted(settings.target_modules)
    after = _prints(model)
    if any(after.get(key) != value for key, value in before.items()):
        raise RecipeError(
            "`freezing`: this initialisation changes the weights of the model themselves, so that the "
            "adapter would be nothing without them; choose another one"
        )


def _prints(model: nn.Module) -> dict[int, tuple[float, float]]:
    """Return what tells whether a parameter was changed: its sum and its norm."""
    with torch.no_grad():
        return {
            id(p): (float(p.sum()), float(p.norm()))
            for p in model.parameters()
            if p.is_floating_point()
        }


def merge(model: nn.Module) -> None:
    """Merge adapters into the weights, in place: the layers are what they were before `inject`.

    For LoRA, W + alpha / rank * B A (Hu et al. 2021, section 4.1).
    """
    adapted = [(path, m) for path, m in model.named_modules() if isinstance(m, BaseTunerLayer)]
    for path, layer in adapted:
        layer.merge(safe_merge=True)
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, layer.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config


def regrouped(
    groups: Sequence[LayerGroup], names: Mapping[int, str], model: nn.Module
) -> list[LayerGroup]:
    """Return the layer groups of a model with adapters, each in the group of the layer it is around.

    Args:
        groups: Those of the model before.
        names: What its parameters were called before, by their id.
        model: The model now.
    """
    group_of = {name: index for index, group in enumerate(groups) for name in group.parameters}
    layers = {path: m for path, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
    members: list[list[str]] = [[] for _ in groups]
    for name, parameter in model.named_parameters():
        old = names.get(id(parameter))
        if old is None:
            own = next(path for path in _parents(name) if path in layers)
            known = (names.get(id(p)) for p in layers[own].get_base_layer().parameters())
            old = next(each for each in known if each is not None)
        members[group_of[old]].append(name)
    return [LayerGroup(g.name, tuple(m)) for g, m in zip(groups, members, strict=True)]


def _parents(name: str) -> Iterable[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


# --- is it right ----------------------------------------------------------------------------------


def check_merging(
    model: nn.Module,
    adapters: Iterable[str],
    head: Iterable[str],
    forward: Callable[[nn.Module], Any],
) -> None:
    """Make sure that a model with adapters and the merged one give the same outputs, on a copy.

    Some layers use their weight in a way that PEFT does not know of. The adapters, the head and all vectors are
    disturbed for this: most adapters begin as zeros, and so do some heads and the gains of some branches.

    Args:
        model: With adapters.
        adapters: Names of their parameters.
        head: Names of parameters above them.
        forward: Runs a model on a small example.

    Raises:
        RecipeError: the outputs differ, or the adapters do nothing.
    """
    twin = copy.deepcopy(model).eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        own = set(adapters)
        vectors = {n for n, p in twin.named_parameters() if p.numel() == max(p.shape, default=1)}
        _disturb(twin, {*head, *vectors} - own)
        start = _outputs(twin, forward)
        _disturb(twin, own)
        apart = _outputs(twin, forward)
        try:
            merge(twin)
        except _OF_PEFT as error:
            raise RecipeError(f"`freezing`: this cannot be merged: {_said(error)}") from error
        merged = _outputs(twin, forward)
    effect, error_ = (float((each - apart).abs().max()) for each in (start, merged))
    rounding = 64 * torch.finfo(apart.dtype).eps * float(apart.abs().max())
    if effect <= rounding:
        raise RecipeError(
            "`freezing.targets`: an adapter there does not change what the model answers; name other layers"
        )
    if error_ > max(SMALL * effect, rounding):
        raise RecipeError(
            "`freezing.targets`: merged into the weights, an adapter there gives other answers than "
            "beside them: one of the layers uses its weight in a way of its own; name other layers"
        )


def _disturb(model: nn.Module, names: Container[str]) -> None:
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if name in names:
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.add_(SMALL * noise)


def _outputs(model: nn.Module, forward: Callable[[nn.Module], Any]) -> Tensor:
    return logits_of(forward(model)).detach().clone()


# --- the adapter alone ----------------------------------------------------------------------------


def modules_of(parameters: Iterable[str]) -> list[str]:
    """Return the paths of the modules that own parameters, without those inside another one.

    Args:
        parameters: Full names; those of the model itself, outside of any module, are left out.
    """
    owners = {name.rpartition(".")[0] for name in parameters} - {""}
    return sorted(p for p in owners if not any(p.startswith(f"{o}.") for o in owners))


def check_names(model: nn.Module, whole: Sequence[str]) -> None:
    """Make sure that PEFT would find the modules that train themselves, and no others, by their names.

    Args:
        model: With adapters.
        whole: The result of `modules_of`.

    Raises:
        RecipeError: something that belongs to an adapter has a name that ends as one of them.
    """
    adapted = [path for path, m in model.named_modules() if isinstance(m, BaseTunerLayer)]
    inside = [
        f"{path}.{name}"
        for path in adapted
        for name, _ in model.get_submodule(path).named_modules()
        if name
    ]
    for path in [*adapted, *inside]:
        alike = [name for name in whole if path.endswith(name)]
        if alike:
            raise RecipeError(
                f"`freezing`: PEFT would take `{path}` for `{alike[0]}`, which trains whole, because it "
                "goes by the end of a name; name other layers in `targets`, or take another method"
            )


def write_adapter(model: nn.Module, folder: Path, whole: Sequence[str], base: str) -> None:
    """Write adapters as PEFT does, so that `PeftModel.from_pretrained(model before, folder)` reads them.

    Args:
        model: With adapters.
        folder: For adapter_config.json and adapter_model.safetensors; made if absent.
        whole: Paths of modules that have trained themselves, such as the head; they are written whole.
        base: Name of the pretrained model.
    """
    from safetensors.torch import save_file

    configs: Any = model.peft_config
    config = copy.copy(configs[NAME])
    config.base_model_name_or_path = base
    config.inference_mode = True
    config.modules_to_save = list(whole) or None
    own = type(model)
    config.auto_mapping = {"base_model_class": own.__name__, "parent_library": own.__module__}
    state = get_peft_model_state_dict(
        model, _with_projections(model), adapter_name=NAME, save_embedding_layers=False
    )
    for path in whole:
        state |= {
            f"{path}.{name}": value
            for name, value in model.get_submodule(path).state_dict().items()
        }
    folder.mkdir(parents=True)
    config.save_pretrained(str(folder))
    named = {_in_file(name): value.detach().to("cpu", copy=True) for name, value in state.items()}
    usual = {name: value.contiguous() for name, value in named.items()}
    save_file(usual, folder / "adapter_model.safetensors", {"format": "pt"})


def _with_projections(model: nn.Module) -> dict[str, Tensor]:
    """Return the state of a model, and what all layers of VeRA share where PEFT looks for it."""
    layers = [m for m in model.modules() if hasattr(m, "vera_A")]
    shared = {
        f"base_model.vera_{part}.{NAME}": getattr(layer, f"vera_{part}")[NAME]
        for layer in layers[:1]
        for part in "AB"
    }
    return {**model.state_dict(), **shared}


def _in_file(name: str) -> str:
    return name if name.startswith("base_model.") else f"{PREFIX}{name}"
