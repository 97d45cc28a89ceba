"""What holds weights, features and answers back, and what averages them."""

from __future__ import annotations

from typing import Any

from sft_engine import hookimpl
from sft_regularizers.conflicts import conflicts

COMPONENTS = {
    "l1": ("penalties:L1", "Pull weights to zero by a constant amount: true zeros."),
    "l2": ("penalties:L2", "Pull weights to zero in proportion, as a term of the loss."),
    "elastic-net": ("penalties:ElasticNet", "l1 and l2 together."),
    "orthogonal": ("penalties:Orthogonal", "Keep weight matrices orthogonal."),
    "l2-sp": ("towards_start:L2SP", "Pull weights to the pretrained ones, the head to zero."),
    "l2-sp-fisher": ("towards_start:L2SPFisher", "L2-SP weighted by Fisher information."),
    "ewc": ("towards_start:EWC", "Hold weights that the start's answers depend on."),
    "delta": ("delta:Delta", "Keep feature maps near those of the start."),
    "bss": ("bss:BSS", "Shrink the smallest singular values of the features."),
    "lwf": ("targets:LwF", "The old head on new features answers as it did."),
    "dropout": ("dropouts:Dropout", "Other shares of dropout than the model comes with."),
    "drop-path": (
        "dropouts:DropPathOverride",
        "Another stochastic depth than the model comes with.",
    ),
    "mixout": ("mixout:Mixout", "Random input neurons as they were before training."),
    "r-drop": ("consistency:RDrop", "Two dropout passes shall agree."),
    "r3f": ("consistency:R3F", "Answers with and without embedding noise shall agree."),
    "r4f": ("consistency:R4F", "R3F with a head of spectral norm one."),
    "smart": ("smart:Smart", "Answers shall not change in a small ball of embeddings."),
    "freelb": ("adversarial:FreeLB", "Train on an ascent in embedding space."),
    "fgm": ("adversarial:FGM", "Train on the loss after a step uphill of the embeddings too."),
    "neftune": ("neftune:NefTune", "Noise on the embeddings of every training pass."),
    "noisy-tune": ("before_training:NoisyTune", "A little noise on the weights before training."),
    "re-init": ("before_training:ReInit", "New top layers before training."),
    "child-tuning": ("gradient_edits:ChildTuning", "Only a part of the weights has a gradient."),
    "gradient-noise": ("gradient_edits:GradientNoise", "Annealed noise on the gradient."),
    "label-smoothing": ("targets:LabelSmoothing", "Targets that are less sure."),
    "confidence-penalty": ("targets:ConfidencePenalty", "Reward answers that are less sure."),
    "distillation": ("targets:Distillation", "Learn a teacher's probabilities too."),
    "sam": ("sharpness:Sam", "The gradient at the worst point near the weights."),
    "asam": ("sharpness:Asam", "SAM in units of each weight."),
    "spike-guard": ("spikes:SpikeGuard", "Leave out steps whose gradient is a spike."),
    "ema": ("averages:EMA", "Exponential moving average of the weights."),
    "swa": ("averages:SWA", "Mean of the weights over the end of the run."),
    "lawa": ("averages:LAWA", "Mean of the latest few weights."),
    "wise-ft": ("wise:WiseFT", "Between start and end, chosen on validation."),
}
"""Target and summary by name."""


@hookimpl
def sft_register(catalog: Any) -> None:
    """Offer the components; nothing heavy is imported before a run needs it."""
    for name, (target, summary) in COMPONENTS.items():
        catalog.add("regularizer", name, f"sft_regularizers.{target}", summary)


@hookimpl
def sft_check_recipe(recipe: Any) -> Any:
    """Name components that exclude each other, or what they need elsewhere in the recipe."""
    return list(conflicts(recipe.tables))


@hookimpl
def sft_cli(group: Any) -> None:
    """Add `soup`, the mean of several runs' weights."""
    from sft_regularizers.soup_command import command

    group.add_command(command, "soup")
