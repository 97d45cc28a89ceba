"""Probes: how a model does where its inputs are disturbed, attacked or odd.

How to add one
--------------

A probe is a component of the kind `probe`: a class in a module of this package (or of yours), and a line in
`PROBES` below. It looks at one split, by default `test`, so that only the evaluation at the end of a run pays
for it. Everything that probes have in common is in `severity`:

* **Rows changed at several severities** (noise, corruption, rotation): a subclass of `RowProbe` with
  `disturb(row, severity, draws)`, which returns the changed raw row. Draw from `draws` alone: it depends on
  the probe's seed and the example, so that every model, batch size and process sees the same. Severity 0
  must return the row as it is.
* **Attacks, or anything else that works on encoded batches**: a subclass of `Probe` with `views(run)`, made by
  `self.view(severity, perturb=...)`. `View.perturb(run, batch)` may use gradients.
* **Measures without views** (calibration, selective prediction): a subclass of `Probe` whose `views` returns
  nothing; override `collect(run, view, values, predictions)`, which is called with the clean predictions
  first (`view` is `None` then, and only the chosen examples are in there), and `blocks(run)`. One that needs
  several splits names them in `splits`, in the order in which the verb `probe` shall evaluate them.
  `Measure` of `measures` does this for tasks with classes or labels: `found` holds logits and targets.

The frame chooses the examples (`examples`, `seed`: the same for every model), names views `NAME@SEVERITY`,
adds `drop` and `changed` to the metrics of each view, and writes the section of the report: the curve with the
clean value at 0, the table, and the examples that were most affected. `prepare(run)` is called once, before
training: refuse there what cannot work. `shown(row)` says how an example looks in the report: columns of
text, and `image` for a small picture. `probabilities(run, rows)` of `asking` asks the model about rows of your own.

Hooks that a finished run does not call (`sft_setup` and all of training) are not called by the verb `probe`
either.
"""

from __future__ import annotations

from typing import Any

from sft_engine import hookimpl

PROBES = {
    # texts
    "typos": ("texts:Typos", "Keyboard typos in a share of the letters."),
    "character-noise": ("texts:CharacterNoise", "Random errors in a share of the characters."),
    "word-noise": ("texts:WordNoise", "Words lost, doubled, swapped or replaced."),
    "word-dropout": ("texts:WordDropout", "A share of the words is missing."),
    "casing": ("texts:Casing", "Small letters, capitals, every word capitalised."),
    "punctuation": ("texts:Punctuation", "Punctuation marks lost and put in."),
    "whitespace": ("texts:Whitespace", "Words joined and split, spaces doubled."),
    "homoglyphs": ("texts:Homoglyphs", "Letters that look alike, from other alphabets."),
    "synonyms": ("texts:SynonymSwap", "A share of the words replaced by synonyms."),
    "truncation": ("texts:Truncation", "A share of the words is cut off."),
    "checklist": (
        "checklist:Checklist",
        "Behavioural tests from a file: minimum functionality, invariance, direction.",
    ),
    "word-substitution": (
        "word_substitution:WordSubstitution",
        "Greedy attack: the words that matter most, replaced until the prediction flips.",
    ),
    "embedding-fgsm": ("embedding_attacks:EmbeddingFgsm", "One step up the loss, in embeddings."),
    "embedding-pgd": ("embedding_attacks:EmbeddingPgd", "Steps up the loss, in embeddings."),
    # images
    "corruptions": (
        "corruptions:Corruptions",
        "The 15 (and 4) corruptions of ImageNet-C at 5 severities, with mCE.",
    ),
    "rotation": ("pictures:Rotation", "Images turned about their middle."),
    "translation": ("pictures:Translation", "Images moved sideways, up or down."),
    "occlusion": ("pictures:Occlusion", "A grey rectangle hides a share of the image."),
    "resolution": ("pictures:Resolution", "Images made small and large again."),
    "jpeg": ("pictures:Jpeg", "Images compressed as JPEG."),
    "fgsm": ("adversarial:Fgsm", "One step along the sign of the gradient, in pixels."),
    "pgd": ("adversarial:Pgd", "Projected gradient descent in pixels, with sanity checks."),
    "autoattack": ("auto_attack:AutoAttack", "AutoAttack: an ensemble without parameters to tune."),
    # recordings
    "background-noise": ("recordings:BackgroundNoise", "Gaussian noise at signal-to-noise ratios."),
    "speed": ("recordings:Speed", "Recordings played faster and slower."),
    "gain": ("recordings:Gain", "Recordings louder, with clipping, and quieter."),
    # tables
    "feature-noise": ("tables:FeatureNoise", "Gaussian noise in units of each feature's spread."),
    "missing": ("tables:Missing", "A share of the values is missing."),
    "shift": ("tables:Shift", "Every value moved along its distribution."),
    # any task with classes
    "calibration": (
        "calibration:CalibrationProbe",
        "Whether probabilities come true; temperature scaling.",
    ),
    "selective": ("selective:Selective", "Risk by coverage: no answer where the model is unsure."),
    "ood": ("ood:OutOfDistribution", "Whether scores tell inputs of another kind."),
    "label-noise": ("label_noise:LabelNoise", "Labels to look at first, by confident learning."),
    "sensitivity": ("sensitivity:Sensitivity", "How far a little noise moves predictions."),
    "groups": ("groups:Groups", "Accuracy by a column of the data, and the worst group."),
    # texts, images and tables
    "attributions": (
        "attributions:Attributions",
        "Words, cells or columns that answers are owed to; whether runs of a study agree on them.",
    ),
}
"""Name, where it is in this package, and one line for lists."""

EXPLANATIONS = {
    "integrated-gradients": (
        "explanations:IntegratedGradients",
        "The gradient along the way from an input that says nothing.",
    ),
    "input-x-gradient": ("explanations:InputXGradient", "Input times gradient: one pass."),
    "occlusion": ("explanations:Occlusion", "What is lost when one part is taken away."),
}
"""The same for the kind `explanation`."""

DEFAULTS: dict[str, tuple[str, ...]] = {
    "text": ("typos", "casing", "punctuation", "synonyms"),
    "image": ("rotation", "occlusion", "resolution", "jpeg"),
    "audio": ("background-noise", "speed", "gain"),
    "features": ("feature-noise", "missing", "shift"),
}
"""What the verb `probe` runs when nothing is named, by the input of the task."""

OF_CLASSES = ("calibration", "selective")
"""What it runs besides where the task has classes or labels: these need no pass of their own."""


@hookimpl
def sft_register(catalog: Any) -> None:
    """Offer the components; nothing heavy is imported before a run needs it."""
    for name, (place, summary) in PROBES.items():
        catalog.add("probe", name, f"sft_probes.{place}", summary)
    for name, (place, summary) in EXPLANATIONS.items():
        catalog.add("explanation", name, f"sft_probes.{place}", summary)


@hookimpl
def sft_study_report(folder: Any, study: Any, report: Any) -> None:
    """Say whether the runs of a study owe their answers to the same parts of the inputs."""
    from sft_probes.attribution_stability import add_study_sections

    add_study_sections(folder, study, report)


@hookimpl
def sft_cli(group: Any) -> None:
    """Add the verb `probe`."""
    from sft_probes.probe_command import command

    group.add_command(command, "probe")
