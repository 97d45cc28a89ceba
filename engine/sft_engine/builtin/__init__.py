"""The components that come with the engine, registered through the same hook as anybody's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sft_engine.hookspecs import hookimpl

if TYPE_CHECKING:
    from sft_engine.catalog import Catalog
    from sft_engine.metrics import Kind
    from sft_engine.recipe import Problem, Recipe

COMPONENTS: dict[str, dict[str, tuple[str, str]]] = {
    "task": {
        "text-classification": (
            "tasks:TextClassification",
            "One of many classes, or any of many labels, for a text or a pair of texts.",
        ),
        "text-regression": (
            "tasks:TextRegression",
            "One or several numbers for a text or a pair of texts.",
        ),
        "image-classification": (
            "tasks:ImageClassification",
            "One of many classes, or any of many labels, for an image.",
        ),
        "audio-classification": (
            "tasks:AudioClassification",
            "One of many classes, or any of many labels, for a recording.",
        ),
        "tabular-classification": (
            "tabular:TabularClassification",
            "One of many classes, or any of many labels, for a row of numbers.",
        ),
        "tabular-regression": (
            "tabular:TabularRegression",
            "One or several numbers for a row of numbers.",
        ),
    },
    "backbone": {
        "mlp": ("mlp:Mlp", "A small network on standardised columns of numbers."),
    },
    "data": {
        "csv": ("data:Csv", "Files of text fields between commas, tabs or other characters."),
        "jsonl": ("data:JsonLines", "Files with one JSON object a line."),
        "parquet": ("data:Parquet", "Parquet files."),
        "hf-dataset": ("data:HfDataset", "A Hugging Face data set: hub id or local folder."),
        "function": ("data:Function", "What a Python function of yours returns."),
        "image-folder": ("image_data:ImageFolder", "A folder of images for each class."),
        "audio-folder": ("audio_data:AudioFolder", "A folder of recordings for each class."),
        "arrays": ("image_data:Arrays", "Images and labels as arrays in numpy files (.npz)."),
    },
    "optimizer": {
        "adamw": ("optimizers:AdamW", "Adam with decoupled weight decay; the usual choice."),
        "adam": ("optimizers:Adam", "Adaptive moments; weight decay acts through the gradient."),
        "sgd": ("optimizers:Sgd", "Stochastic gradient descent with momentum."),
        "rmsprop": ("optimizers:RmsProp", "Steps divided by the running size of the gradient."),
        "adafactor": ("optimizers:Adafactor", "Adaptive steps with factored state: little memory."),
        "lion": ("optimizers:Lion", "Steps by the sign of the momentum; needs timm."),
        "lamb": ("optimizers:Lamb", "Adam with a trust ratio for each layer; needs timm."),
        "torch": ("optimizers:Torch", "Any optimizer of torch.optim by its class name."),
        "timm": ("optimizers:Timm", "Any optimizer of timm by its name."),
    },
    "schedule": {
        "constant": ("schedules:Constant", "The same learning rate throughout, after warm-up."),
        "linear": ("schedules:Linear", "Warm-up, then a straight line down."),
        "cosine": ("schedules:Cosine", "Warm-up, then half a cosine down."),
        "cosine-restarts": (
            "schedules:CosineRestarts",
            "Half a cosine down, several times, each longer than the one before.",
        ),
        "slanted-triangle": (
            "schedules:SlantedTriangle",
            "A short line up and a long line down (ULMFiT).",
        ),
        "polynomial": ("schedules:Polynomial", "Warm-up, then a power of what is left of the run."),
        "one-cycle": ("schedules:OneCycle", "Up to the peak and far down; momentum the other way."),
        "wsd": ("schedules:WarmupStableDecay", "Warm-up, a long plateau, a short decay."),
        "inverse-sqrt": ("schedules:InverseSqrt", "Warm-up, then one over the root of the step."),
        "step": ("schedules:Step", "Lower by a factor at given points."),
        "plateau": ("schedules:Plateau", "Lower when a validation metric stops improving."),
    },
    "extension": {
        "early-stopping": (
            "stopping:EarlyStopping",
            "Ends training when a validation metric has stopped improving.",
        ),
    },
    "tracker": {
        "tensorboard": ("trackers:TensorBoard", "Event files for TensorBoard."),
        "wandb": ("trackers:WandB", "Weights & Biases."),
        "mlflow": ("trackers:MlFlow", "MLflow."),
    },
}
"""Kind, name, where it is in this package, and one line for lists."""


CLASSIFICATION = (
    "text-classification",
    "image-classification",
    "audio-classification",
    "tabular-classification",
)
REGRESSION = ("text-regression", "tabular-regression")
"""Tasks of ours that share metrics."""


@hookimpl
def sft_register(catalog: Catalog) -> None:
    """Add every component of the table."""
    for kind, components in COMPONENTS.items():
        for name, (place, summary) in components.items():
            catalog.add(kind, name, f"sft_engine.builtin.{place}", summary)
    anchor = "Looks at what the model could do before again and again: forgetting."
    catalog.add("extension", "anchor", "sft_engine.diagnosis.anchor:Anchor", anchor)


@hookimpl
def sft_check_recipe(recipe: Recipe) -> Iterable[Problem]:
    """Find metrics that the engine's own tasks do not have."""
    from sft_engine.metrics import problems
    from sft_engine.recipe import Problem

    names = recipe.evaluation.get("metrics", ())
    kind = _task_kind(recipe)
    if kind is None or not isinstance(names, (list, tuple)):
        return []
    wrong = problems([name for name in names if isinstance(name, str)], kind)
    return [
        Problem("evaluation.metrics", f'there is no metric "{name}"', hint)
        for name, hint in wrong.items()
    ]


def _task_kind(recipe: Recipe) -> Kind | None:
    """Return what the recipe's task ends in, if it is one of ours."""
    for component in recipe.components:
        if component.kind == "task" and component.use in REGRESSION:
            return "regression"
        if component.kind == "task" and component.use in CLASSIFICATION:
            multi = component.options.get("labels") == "multi"
            return "multi-label" if multi else "classification"
    return None
