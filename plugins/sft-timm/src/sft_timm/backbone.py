"""The backbone component: any image model of timm."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Lt

from sft_engine.images.backbone import ImageBackbone, contiguous_state
from sft_engine.images.pipeline import Pipeline
from sft_engine.images.weights import read_weights

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sft_engine.components import Head, Task
    from sft_timm.sources import Source

_AS_WITH_WEIGHTS = {"fbnetc_100": {"bn_eps": 1e-3}}
"""What timm sets only where it loads weights, and so when it reads what we have saved."""


class Timm(ImageBackbone):
    """An image model of timm, its classifier replaced by one for the task.

    Size, mean, standard deviation, interpolation and crop of the images are those that the weights were
    trained with.

    Args:
        name: Model with or without a tag of weights (`resnet50.a1_in1k`), local folder, hub id
            (`hf-hub:OWNER/NAME`), or a name that a plugin offers, such as `demo:efficientnet-lite0`.
        pretrained: Start from the weights; false starts from random ones.
        weights: Local file of weights to start from instead, *.safetensors or a state dict (*.pth).
        in_chans: Channels of the images: 3 for colour, 1 for grey; 0 for what the weights have.
        img_size: Height and width in pixels; 0 for that of the weights.
        drop_rate: Share of the pooled features that is dropped in training, before the classifier.
        drop_path_rate: Share of residual branches that is skipped in training (stochastic depth).
        channels_last: Put the channels innermost, which convolutions like; `auto` for those models
            that have several.
    """

    export_formats = ("timm",)

    def __init__(  # noqa: PLR0913 - options of a recipe
        self,
        *,
        name: str,
        pretrained: bool = True,
        weights: str = "",
        in_chans: Literal[0, 1, 3] = 0,
        img_size: Annotated[int, Ge(0)] = 0,
        drop_rate: Annotated[float, Ge(0), Lt(1)] = 0.0,
        drop_path_rate: Annotated[float, Ge(0), Lt(1)] = 0.0,
        channels_last: bool | Literal["auto"] = "auto",
    ) -> None:
        self.name = name
        self.pretrained = pretrained
        self.weights = weights
        self.in_chans = in_chans
        self.img_size = img_size
        self.drop_rate = drop_rate
        self.drop_path_rate = drop_path_rate
        self.channels_last = channels_last

    def load_pipeline(self, location: str) -> Pipeline:
        """Return the pipeline of timm's `pretrained_cfg`. Raises RecipeError for an unknown model."""
        from timm.data.config import resolve_data_config

        from sft_timm.sources import find

        self._source: Source = find(self.name, location)
        # What a run has saved is the model, whatever that run had started from.
        self._resumes = self._source.fine_tuned and location != self.name
        resolve: Any = resolve_data_config  # untyped
        cfg = resolve({}, pretrained_cfg=dict(self._source.cfg))
        channels, height, width = cfg["input_size"]
        return Pipeline(
            size=(self.img_size, self.img_size) if self.img_size else (height, width),
            crop_pct=cfg["crop_pct"],
            crop_mode=cfg["crop_mode"],
            interpolation=_interpolation(cfg["interpolation"]),
            mean=tuple(cfg["mean"]),
            std=tuple(cfg["std"]),
            channels=self.in_chans or channels,
        )

    def network(self, head: Head) -> nn.Module:
        """Create the model; weights are read whole and strictly, then the classifier is replaced.

        A classifier with the right number of outputs is kept. Raises RecipeError if the weights cannot
        be had, or an option does not suit the model.
        """
        options = self._options()
        model: Any
        if self._resumes or self.pretrained or self.weights:
            model = self._create(pretrained=True, **self._with_file(options))
            if model.num_classes != head.outputs:
                model.reset_classifier(head.outputs)
        else:
            options |= _AS_WITH_WEIGHTS.get(self._source.architecture, {})
            model = self._create(pretrained=False, num_classes=head.outputs, **options)
        model.pretrained_cfg = _described(model.pretrained_cfg, self.pipeline)
        return model  # type: ignore[no-any-return]

    def _options(self) -> dict[str, Any]:
        cfg = self._source.cfg
        options: dict[str, Any] = {"in_chans": self.pipeline.channels}
        if self.img_size and cfg.get("fixed_input_size"):
            options["img_size"] = self.img_size
        for name in ("drop_rate", "drop_path_rate"):
            # Not every model has both, and none is asked for what the recipe leaves at 0.
            options |= {name: getattr(self, name)} if getattr(self, name) else {}
        return options

    def _with_file(self, options: dict[str, Any]) -> dict[str, Any]:
        """Add the weights of a local file, and the number of classes that they have."""
        if not self.weights or self._resumes:
            return options
        state = read_weights(self.weights, "weights")
        classes = _classes(state, self._source.cfg)
        overlay = {"state_dict": state, "num_classes": classes, "label_offset": 0}
        return {**options, "num_classes": classes, "pretrained_cfg_overlay": overlay}

    def _create(self, **options: Any) -> Any:
        import timm

        try:
            return timm.create_model(self._source.model, **options)
        except TypeError as error:
            if "unexpected keyword argument" not in str(error):
                raise
            option = str(error).rpartition("argument ")[2].strip("'\"")
            raise self.complain(f"is a model that has no option {option}: leave it out") from error
        except (RuntimeError, OSError, ValueError, AssertionError) as error:
            raise self._explain(error) from error

    def _explain(self, error: Exception) -> Exception:
        said = (str(error).strip() or type(error).__name__).splitlines()
        if "No pretrained weights exist" in said[0]:
            return self.complain(
                "has no pretrained weights: set pretrained = false, choose another tag, or give a local "
                'file as `weights = "FILE"`'
            )
        if "Error(s) in loading" in said[0]:
            first = said[1].strip() if len(said) > 1 else said[0]
            return self.complain(
                f"does not fit its weights ({first[:200]}); give weights of this very model"
            )
        if isinstance(error, OSError) or type(error).__module__.startswith("huggingface_hub"):
            return self.complain(
                f"has weights that could not be had ({said[0][:200]}); check the connection, give a "
                "local folder, or set pretrained = false"
            )
        return self.complain(f"cannot be created with these options ({said[0][:200]})")

    # --- Layer groups ----------------------------------------------------------------------------

    def head_parameters(self, model: nn.Module, uses: Mapping[str, int]) -> Collection[str]:
        """Return the parameters of timm's classifier; a distilled model has two."""
        return _classifier(model) or super().head_parameters(model, uses)

    def grouping(self, model: nn.Module) -> Mapping[str, Hashable]:
        """Return timm's own coarse groups, without those that it has put together with the head."""
        from timm.models import group_parameters

        try:
            groups: dict[str, int] = group_parameters(
                model,
                model.group_matcher(coarse=True),  # type: ignore[operator]
                reverse=True,
            )
        except (AttributeError, AssertionError, NotImplementedError):
            return {}  # a few models have none
        unnamed = {groups[name] for name in _classifier(model)}
        return {name: group for name, group in groups.items() if group not in unnamed}

    # --- Result ----------------------------------------------------------------------------------

    def save(self, model: nn.Module, folder: Path, task: Task) -> None:
        """Write `model.safetensors` and `config.json` as timm has them on the hub.

        `timm.create_model("local-dir:FOLDER", pretrained=True)` gives the same logits, and
        `timm.data.resolve_model_data_config` of that model the same preprocessing. Raises OSError if
        there is no room.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file
        from timm.models._hub import save_config_for_hf

        from sft_timm.sources import CONFIG, FINE_TUNED

        folder.mkdir(parents=True, exist_ok=True)
        more = {"label_names": list(task.head.names), FINE_TUNED: True}
        save_config_for_hf(
            model, str(folder / CONFIG), model_config=more, model_args=self._rebuild()
        )
        try:
            save_file(contiguous_state(model), folder / "model.safetensors", {"format": "pt"})
        except SafetensorError as error:  # a full disk, in the words of safetensors
            raise OSError(str(error)) from error

    def load_exported(self, folder: Path, form: str) -> nn.Module:  # noqa: ARG002 - contract
        """Read what `save` wrote by timm alone."""
        import timm

        model: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True)
        return model

    def _rebuild(self) -> dict[str, Any]:
        """Return what `create_model` has to be told besides the architecture."""
        return {k: v for k, v in self._options().items() if k in ("in_chans", "img_size")}


def _classes(state: Mapping[str, Tensor], cfg: Mapping[str, Any]) -> int:
    """Return how many outputs the classifier in a file has; 0 if it has none."""
    classifier = cfg.get("classifier") or "fc"
    first = classifier if isinstance(classifier, str) else classifier[0]
    weight = state.get(f"{first}.weight")
    return 0 if weight is None else weight.shape[0]


def _classifier(model: nn.Module) -> list[str]:
    """Return the parameters of what `reset_classifier` makes; empty if a component has hidden it."""
    if not hasattr(model, "get_classifier"):
        return []
    found = model.get_classifier()  # type: ignore[operator]
    named = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    names = [named] if isinstance(named, str) else named
    modules = [
        *(found if isinstance(found, tuple | list) else [found]),
        # VOLO has an auxiliary classifier that `get_classifier` does not tell.
        *(model.get_submodule(name) for name in names),
    ]
    inside = {id(p) for module in modules for p in module.parameters()}
    return [name for name, parameter in model.named_parameters() if id(parameter) in inside]


def _interpolation(name: str) -> str:
    """Return the interpolation by its name; `random` is for training alone."""
    return "bilinear" if name == "random" else name


def _described(cfg: Mapping[str, Any], pipeline: Pipeline) -> dict[str, Any]:
    """Return timm's `pretrained_cfg` with the pipeline that the model is trained with."""
    kept = {k: v for k, v in cfg.items() if k not in ("state_dict", "label_offset")}
    if tuple(cfg["input_size"][1:]) != pipeline.size:
        kept = {k: v for k, v in kept.items() if not k.startswith("test_") and k != "pool_size"}
    return {
        **kept,
        "input_size": (pipeline.channels, *pipeline.size),
        "crop_pct": pipeline.crop_pct,
        "crop_mode": pipeline.crop_mode,
        "interpolation": pipeline.interpolation,
        "mean": pipeline.mean,
        "std": pipeline.std,
    }
