"""The backbone component: any classifier of torchvision."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge

from sft_engine.images import Pipeline
from sft_engine.images.backbone import ImageBackbone
from sft_engine.images.heads import outputs_of, replace_head
from sft_engine.images.weights import read_weights
from sft_engine.sentences import choices, suggest

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torchvision.models import WeightsEnum

    from sft_engine.components import Head, Task

_FILES = (".safetensors", ".pth", ".pt", ".bin")
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
"""Names in the files of DenseNet that torchvision still hands out."""


class Torchvision(ImageBackbone):
    """A classifier of torchvision, its last layer replaced by one for the task.

    Size, mean, standard deviation, interpolation and crop of the images are those of the weights.

    Args:
        name: Such as `resnet50`; or the folder `model` of an earlier run.
        weights: `DEFAULT`, the name of weights that torchvision has for the model, such as
            `IMAGENET1K_V2`, a local file (*.safetensors, or a state dict as *.pth), or `none` for random.
        img_size: Height and width in pixels; 0 for that of the weights.
        arguments: More that the function of this name takes, such as `{ dropout = 0.4 }`.
        channels_last: Put the channels innermost, which convolutions like; `auto` for those models
            that have several.
    """

    export_formats = ("torchvision",)

    def __init__(
        self,
        *,
        name: str,
        weights: str = "DEFAULT",
        img_size: Annotated[int, Ge(0)] = 0,
        arguments: dict[str, Any] | None = None,
        channels_last: bool | Literal["auto"] = "auto",
    ) -> None:
        self.name = name
        self.weights = weights
        self.img_size = img_size
        self.arguments = dict(arguments or {})
        self.channels_last = channels_last

    def load_pipeline(self, location: str) -> Pipeline:
        """Return the pipeline of the weights. Raises RecipeError for an unknown model or weights."""
        from sft_torchvision.folders import read

        folder = Path(location).expanduser()
        self._folder: Path | None
        if folder.is_dir():
            self._folder, self._saved = folder, read(folder, "torchvision", self.name)
            self._check_name(self._saved.architecture)
            return self._sized(self._saved.preprocessing())
        self._folder = None
        self._check_name(location)
        self._member = self._find_weights()
        member = self._member or _weights_of(self.name).DEFAULT
        preset = member.transforms()
        return self._sized(
            Pipeline(
                size=(preset.crop_size[0], preset.crop_size[0]),
                resize=preset.resize_size[0],
                interpolation=preset.interpolation.value,
                mean=tuple(preset.mean),
                std=tuple(preset.std),
            )
        )

    def _sized(self, pipeline: Pipeline) -> Pipeline:
        from dataclasses import replace

        if not self.img_size:
            return pipeline
        size = (self.img_size, self.img_size)
        # The crop keeps the share of the image that it has with the weights' own size.
        resize = pipeline.resize and round(self.img_size * pipeline.resize / pipeline.size[0])
        return replace(pipeline, size=size, resize=resize)

    def _check_name(self, name: str) -> None:
        from torchvision import models

        known = models.list_models(module=models)
        if name not in known:
            hint = suggest(name, known) or "see torchvision.models.list_models(torchvision.models)"
            raise self.complain(f"is neither a folder nor a classifier of torchvision: {hint}")

    def _find_weights(self) -> WeightsEnum | None:
        """Return the weights that torchvision has under that name; None for a file or none."""
        wanted = self.weights.rpartition("_Weights.")[2]
        members = _weights_of(self.name).__members__
        if wanted in members:
            return members[wanted]  # type: ignore[no-any-return]
        if wanted == "none" or self.weights.endswith(_FILES):
            return None
        raise self.complain(
            f'has no weights "{self.weights}"; {choices(["DEFAULT", *members, "none"])}, or a local file '
            f"({', '.join(_FILES)})"
        )

    # --- Model -----------------------------------------------------------------------------------

    def network(self, head: Head) -> nn.Module:
        """Create the model; weights are read strictly, then the last layer is replaced.

        A last layer with the right number of outputs is kept. Auxiliary classifiers are dropped. Raises
        RecipeError if the weights cannot be had, or do not fit.
        """
        if self._folder is None and self._member is None and self.weights == "none":
            return self._create(None, num_classes=head.outputs, **self._size_argument())
        model = self._pretrained()
        path = self.last_layer(model)
        if outputs_of(model, path) != head.outputs:
            replace_head(model, path, head.outputs)
        return model

    def _pretrained(self) -> nn.Module:
        if self._folder is not None:
            from sft_torchvision.folders import read_state

            state = read_state(self._folder, self.name)
            options = {**self._saved.arguments, **self.arguments}
            model = self._create(None, num_classes=self._saved.num_classes, **options)
        elif self._member is not None:
            return self._resized(self._download(self._member))
        else:
            state = _current(read_weights(self.weights, "weights"))
            model = self._create(None, **_auxiliary(self.name, state))
            path = self.last_layer(model)
            weight = state.get(f"{path}.weight")
            if weight is not None and weight.shape[0] != outputs_of(model, path):
                replace_head(model, path, weight.shape[0])
        self._load(model, state)
        return self._resized(model)

    def _load(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        from sft_torchvision.folders import fits, with_versions

        ours = set(model.state_dict())
        kept = {
            k: v for k, v in state.items() if k in ours or not k.startswith(("AuxLogits", "aux"))
        }
        try:
            model.load_state_dict(with_versions(kept, model))
        except RuntimeError as error:
            raise self.complain(
                f"does not fit its weights ({fits(error)}); give weights of this very model"
            ) from error

    def _download(self, member: WeightsEnum) -> nn.Module:
        """Create the model with weights of torchvision, fetched once into torch's own cache."""
        try:
            # Torchvision reads its files as pickles: this proves first that there is nothing but
            # tensors inside, and fetches them where they are not in the cache.
            member.get_state_dict(progress=False, check_hash=True, weights_only=True)
        except Exception as error:
            said = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise self.complain(
                f"has weights ({member.name}) that could not be had ({said}); check the connection, "
                'give a local file, or set weights = "none"'
            ) from error
        return self._create(member)

    def _create(self, member: WeightsEnum | None, **options: Any) -> nn.Module:
        from torchvision import models

        name = self._saved.architecture if self._folder is not None else self.name
        if name in ("googlenet", "inception_v3") and member is None:
            options = {"init_weights": True, "aux_logits": False, **options}
        options |= self.arguments
        try:
            model = models.get_model(name, weights=member, **options)
        except (TypeError, ValueError) as error:
            said = str(error).splitlines()[0][:200]
            raise self.complain(f"cannot be created with these arguments ({said})") from error
        return _without_auxiliary(model)

    def _size_argument(self) -> dict[str, Any]:
        """Return what tells a vision transformer its size; all others take any."""
        from torchvision.models import VisionTransformer, get_model_builder

        made = get_model_builder(self.name).__annotations__.get("return")
        vit = made in (VisionTransformer, VisionTransformer.__name__)
        return {"image_size": self.pipeline.size[0]} if vit else {}

    def _resized(self, model: nn.Module) -> nn.Module:
        """Interpolate the positions of a vision transformer to the size of the images."""
        from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

        size = self.pipeline.size[0]
        if not isinstance(model, VisionTransformer) or model.image_size == size:
            return model
        if size % model.patch_size:
            raise self.complain(
                f"cuts images into patches of {model.patch_size} pixels, and img_size = {size} is no "
                "multiple of it"
            )
        state = interpolate_embeddings(size, model.patch_size, model.state_dict())  # type: ignore[arg-type]
        options: dict[str, Any] = {"num_classes": model.num_classes, "image_size": size}
        larger = self._create(None, **options)
        larger.load_state_dict(state)
        return larger

    # --- Result ----------------------------------------------------------------------------------

    def save(self, model: nn.Module, folder: Path, task: Task) -> None:
        """Write `model.safetensors` and `config.json`.

        `torchvision.models.get_model(config["architecture"], num_classes=config["num_classes"],
        **config["arguments"])` takes these weights. Raises OSError if there is no room.
        """
        from dataclasses import asdict

        from sft_torchvision.folders import Saved, plain, write

        found = {
            k: getattr(model, k) for k in ("transform_input", "image_size") if hasattr(model, k)
        }
        saved = Saved(
            library="torchvision",
            architecture=self._saved.architecture if self._folder is not None else self.name,
            arguments={**plain(self.arguments), **found, **_plain_auxiliary(model)},
            num_classes=task.head.outputs,
            label_names=list(task.head.names),
            pipeline=asdict(self.pipeline),
        )
        write(folder, model, saved)

    def load_exported(self, folder: Path, form: str) -> nn.Module:  # noqa: ARG002 - contract
        """Read what `save` wrote by torchvision alone."""
        import json

        from torchvision.models import get_model

        from sft_torchvision.folders import read_state, with_versions

        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        classes, arguments = config["num_classes"], config["arguments"]
        model: nn.Module = get_model(config["architecture"], num_classes=classes, **arguments)
        model.load_state_dict(with_versions(read_state(folder, self.name), model))
        return model


def _weights_of(name: str) -> Any:
    from torchvision import models

    return models.get_model_weights(name)


def _current(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {_OLD_DENSENET.sub(r"\1\2.", name): value for name, value in state.items()}


def _auxiliary(name: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what a file of Inception or GoogLeNet asks for: such weights take inputs of -1..1."""
    return {"transform_input": True} if name in ("googlenet", "inception_v3") and state else {}


def _without_auxiliary(model: nn.Module) -> nn.Module:
    """Drop the classifiers that serve the first training of Inception and GoogLeNet alone."""
    if getattr(model, "aux_logits", False):
        model.aux_logits = False  # type: ignore[assignment]
        for name in ("AuxLogits", "aux1", "aux2"):
            if hasattr(model, name):
                setattr(model, name, None)
    return model


def _plain_auxiliary(model: nn.Module) -> dict[str, Any]:
    if not hasattr(model, "aux_logits"):
        return {}
    return {"aux_logits": False, "init_weights": False}  # weights are read in any case
