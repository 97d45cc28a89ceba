"""Augmentations of texts, images, recordings, tables and batches, and what helps with rare classes."""

from __future__ import annotations

from typing import Any

from sft_augmentations.recipes import problems
from sft_engine import hookimpl

AUGMENTATIONS = {
    "keyboard-typos": ("texts:KeyboardTypos", "Typing errors: a key beside, two letters swapped."),
    "character-noise": ("texts:CharacterNoise", "Random characters swapped, dropped, put in."),
    "eda": ("texts:Eda", "Synonyms, and words put in, swapped or deleted."),
    "word-dropout": ("texts:WordDropout", "Words deleted, or replaced by a token."),
    "casing": ("texts:Casing", "All letters small, all capital, or every word capitalised."),
    "paraphrases": (
        "paraphrases:Paraphrases",
        "Other wordings of a text, from a file; back-translation.",
    ),
    "cutoff": ("cutoff:Cutoff", "Hides tokens, one by one or a span, in the batch."),
    "rand-augment": ("images:RandAugment", "A few random operations of one strength on an image."),
    "trivial-augment": ("images:TrivialAugment", "One random operation of random strength."),
    "augmix": ("images:AugMix", "A mixture of chains of operations; optional consistency term."),
    "random-erasing": ("erasing:RandomErasing", "Covers a random rectangle of an image."),
    "colour": ("images:Colour", "Brightness, contrast, saturation and hue of an image."),
    "mixup": ("mixing:Mixup", "Weighted averages of two examples and of their targets."),
    "cutmix": ("mixing:Cutmix", "A rectangle of another image, and as much of its target."),
    "kornia": ("on_device:Kornia", "Transforms of kornia on batches of images, on the device."),
    "background-noise": ("sounds:BackgroundNoise", "Noise in a recording, at a ratio to it."),
    "time-stretch": ("sounds:TimeStretch", "Recordings faster or slower, at the same pitch."),
    "pitch-shift": ("sounds:PitchShift", "Recordings higher or lower, at the same speed."),
    "spec-augment": ("spectrograms:SpecAugment", "Masks over time and frequency of a recording."),
    "feature-noise": ("tables:FeatureNoise", "Gaussian noise in units of each feature's spread."),
    "swap-noise": ("tables:SwapNoise", "Features replaced by those of other training rows."),
}
"""Name, where it is in this package, and one line for lists."""

EXTENSIONS = {
    "balanced-sampler": (
        "sampling:BalancedSampler",
        "Draws rare classes more often; power = 0.5 is the square-root sampler.",
    ),
    "class-weights": (
        "class_weights:ClassWeights",
        "Counts rare classes more in the loss: by inverse frequency or effective number.",
    ),
    "focal": ("rare:Focal", "Loss that counts examples the less the better they are known."),
    "logit-adjustment": ("rare:LogitAdjustment", "Corrects the logits for the class frequencies."),
}


@hookimpl
def sft_register(catalog: Any) -> None:
    """Offer the components; nothing heavy is imported before a run needs it."""
    for kind, components in (("augmentation", AUGMENTATIONS), ("extension", EXTENSIONS)):
        for name, (place, summary) in components.items():
            catalog.add(kind, name, f"sft_augmentations.{place}", summary)


@hookimpl
def sft_check_recipe(recipe: Any) -> Any:
    """Find components of this package that exclude each other."""
    return list(problems(recipe))


@hookimpl
def sft_cli(group: Any) -> None:
    """Add `back-translate`, which makes a file for `paraphrases`."""
    from sft_augmentations.back_translate_command import command

    group.add_command(command, "back-translate")
