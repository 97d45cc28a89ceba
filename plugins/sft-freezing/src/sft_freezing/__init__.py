"""Which layers train when, and how fast."""

from __future__ import annotations

from typing import Any

from sft_engine import hookimpl
from sft_freezing.checks import problems

SCHEDULES = {
    "frozen": (
        "frozen:Frozen",
        "Everything but the head, the first layer groups, or what matches a pattern, stays as it is.",
    ),
    "gradual-unfreezing": (
        "schedules:GradualUnfreezing",
        "The head first, then one layer group more after each epoch (ULMFiT).",
    ),
    "lp-ft": ("lp_ft:LPFT", "The head until it has converged, then all from there."),
    "chain-thaw": (
        "schedules:ChainThaw",
        "The head, then each other layer group alone from the input on, then all.",
    ),
    "surgical": ("schedules:Surgical", "A few chosen layer groups, and the head."),
    "progressive-freezing": (
        "schedules:ProgressiveFreezing",
        "Layer groups freeze from the input on as the run goes on (FreezeOut).",
    ),
}
"""Target and summary of each freezing schedule."""

ADAPTERS = {
    "lora": ("adapters:LoRA", "Low-rank changes of frozen weights, and the head (LoRA, DoRA)."),
    "adalora": (
        "adalora:AdaLoRA",
        "Low-rank changes whose ranks go to the layers that need them (AdaLoRA).",
    ),
    "ia3": ("adapters:IA3", "Factors on activations of a frozen model, and the head."),
    "peft": (
        "adapters:Peft",
        "Another method of PEFT by its name: LoHa, LoKr, OFT, VeRA and so on.",
    ),
}
"""Target and summary of each freezing component that adds weights, which needs the library peft."""

RATES = {
    "layer-decay": ("rates:LayerDecay", "Learning rates fall from the head down."),
    "discriminative": (
        "rates:Discriminative",
        "Learning rates spread over the layer groups, as fast.ai's slices.",
    ),
    "auto-rgn": (
        "relative:AutoRGN",
        "Learning rates by the size of gradients beside the weights (surgical fine-tuning).",
    ),
    "bn-freeze": ("batch_norm:BNFreeze", "Batch norm keeps its statistics while the rest trains."),
}
"""Target and summary of each extension; they go with every freezing component, and with each other."""


@hookimpl
def sft_register(catalog: Any) -> None:
    """Offer the components; nothing heavy is imported before a run needs it."""
    for kind, components in (("freezing", SCHEDULES | ADAPTERS), ("extension", RATES)):
        for name, (target, summary) in components.items():
            catalog.add(kind, name, f"sft_freezing.{target}", summary)


@hookimpl
def sft_check_recipe(recipe: Any) -> Any:
    """Name phases that the recipe does not have, and what does not go together."""
    return list(problems(recipe))
