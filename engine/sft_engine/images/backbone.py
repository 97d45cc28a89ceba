"""What all image backbones share: everything but finding, building and saving a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from sft_engine.errors import RecipeError
from sft_engine.first_use import first_use
from sft_engine.images.examples import ROLE, ImageExamples, encode_images, stack_images
from sft_engine.images.heads import last_layer
from sft_engine.images.layer_groups import layer_groups

if TYPE_CHECKING:
    from datasets import Dataset

    from sft_engine.components import Example, Head, LayerGroup, Resolve, Task
    from sft_engine.images.pipeline import Pipeline

FEW_CONVOLUTIONS = 4
"""A transformer has one or two, for its patches; measured, it gains nothing by another format."""


class ImageBackbone(ABC):
    """A backbone that takes one image, as float32 (n, c, h, w), and returns logits (n, outputs).

    A subclass writes `load_pipeline`, `network` and `save`; its constructor sets `name` and
    `channels_last`. It may say more of its models in `head_parameters` and `grouping`.

    Attributes:
        accepts: Roles of inputs that the model can take.
        pipeline: How an image becomes the model's input; known after `open`.
    """

    accepts = frozenset({ROLE})
    name: str
    channels_last: bool | Literal["auto"]
    pipeline: Pipeline
    _format_is_last = False

    # --- What a subclass writes ------------------------------------------------------------------

    @abstractmethod
    def load_pipeline(self, location: str) -> Pipeline:
        """Return the pipeline of the weights; read nothing heavy.

        Args:
            location: A local folder, or `name` as the recipe says it. Keep it for `network`.
        """

    @abstractmethod
    def network(self, head: Head) -> nn.Module:
        """Return the pretrained model with `head.outputs` outputs; the engine has set the seed."""

    @abstractmethod
    def save(self, model: nn.Module, folder: Path, task: Task) -> None:
        """Write weights and preprocessing so that the library of the backbone reads them."""

    def head_parameters(self, model: nn.Module, uses: Mapping[str, int]) -> Collection[str]:
        """Return the names of the head's parameters, as a rule those of the last layer.

        Args:
            model: As `network` returned it, or as a component changed it.
            uses: When a forward pass first uses each parameter.
        """
        path = self.last_layer(model, uses)
        return [f"{path}.{name}" for name, _ in model.get_submodule(path).named_parameters()]

    def grouping(self, model: nn.Module) -> Mapping[str, Hashable]:  # noqa: ARG002 - for subclasses
        """Return what parameters belong together, where the library knows; see `layer_groups`."""
        return {}

    # --- Preprocessing ---------------------------------------------------------------------------

    def open(self, resolve: Resolve) -> None:
        """Read the settings of the weights. Raises RecipeError if they cannot be had."""
        self._encoded: list[ImageExamples] = []
        try:
            self.pipeline = self.load_pipeline(str(resolve(self.name)))
        except ValueError as error:  # of Pipeline
            raise self.complain(f"has settings that no image can be given ({error})") from error

    def encode(self, rows: Dataset, task: Task) -> ImageExamples:
        """Return the images of a split, which are decoded when they are asked for."""
        examples = ImageExamples(
            rows, self.pipeline, task.target, ROLE, channels_last=self._format_is_last
        )
        self._encoded.append(examples)  # `build` comes later, and decides on the memory format
        return examples

    def encode_rows(self, rows: list[dict[str, Any]], task: Task) -> list[Example]:
        """Encode images on the fly: augmented, corrupted, or given to `predict`."""
        return encode_images(rows, self.pipeline, task.target, ROLE)

    def collate(self, examples: list[Example]) -> dict[str, Tensor]:
        """Stack images, float32 (n, c, h, w)."""
        return stack_images(examples, ROLE, channels_last=self._format_is_last)

    def preprocessing(self) -> dict[str, Any]:
        """Say how an image becomes the model's input, as JSON values beside an exported model."""
        return {"kind": "image", "layout": "NCHW", "scale": 1 / 255, **asdict(self.pipeline)}

    # --- Model -----------------------------------------------------------------------------------

    def build(self, task: Task) -> nn.Module:
        """Load the model and put it in the memory format that the recipe asks for."""
        model = self.network(task.head)
        self._format_is_last = (
            gains_by_channels_last(model) if self.channels_last == "auto" else self.channels_last
        )
        for examples in self._encoded:
            examples.channels_last = self._format_is_last
        if self._format_is_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model

    def forward(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
        """Run the model on images (n, c, h, w); its logits have shape (n, outputs)."""
        return model(inputs[ROLE])

    def layer_groups(self, model: nn.Module) -> list[LayerGroup]:
        """Return stem, stages and head in the order of a forward pass.

        Raises RecipeError if the model cannot run on an image of the pipeline's size.
        """
        uses = self.uses(model)
        return layer_groups(
            model, uses, self.head_parameters(model, uses), grouping=self.grouping(model)
        )

    def uses(self, model: nn.Module) -> dict[str, int]:
        """Return the position in a forward pass at which each parameter is first used.

        Raises RecipeError if the model cannot run on an image of the pipeline's size.
        """
        try:
            return first_use(model, self._probe)
        except (RuntimeError, ValueError, AssertionError, TypeError, IndexError) as error:
            height, width = self.pipeline.size
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise self.complain(
                f"cannot run on an image of {height} x {width} pixels ({said}); "
                "set img_size to a size that it takes"
            ) from error

    def last_layer(self, model: nn.Module, uses: Mapping[str, int] | None = None) -> str:
        """Return the path of the layer that makes the logits. Raises RecipeError if there is none.

        Args:
            model: Any classifier, whatever it calls its head.
            uses: When a forward pass first uses each parameter, if that is known already.
        """
        try:
            return last_layer(model, self.uses(model) if uses is None else uses)
        except LookupError as error:
            raise self.complain(f"{error}: choose a model that is a classifier") from error

    def _probe(self, model: nn.Module) -> Any:
        """Run the model on a black image, wherever it is."""
        one = next(model.parameters())
        shape = (1, self.pipeline.channels, *self.pipeline.size)
        return self.forward(model, {ROLE: torch.zeros(shape, device=one.device, dtype=one.dtype)})

    # --- For subclasses --------------------------------------------------------------------------

    def complain(self, what: str) -> RecipeError:
        """Return the error that says what is wrong with the model that the recipe names."""
        return RecipeError(f'[backbone] name = "{self.name}" {what.rstrip(".")}.')


def gains_by_channels_last(model: nn.Module) -> bool:
    """Whether a model is one of convolutions, which run faster with the channels innermost.

    Measured on a CPU, forward and backward: 1.0 to 1.4 times as fast for convolutional networks.
    """
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    return convolutions > FEW_CONVOLUTIONS


def contiguous_state(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of a model's weights on the host, in the format and unshared, as safetensors asks."""
    usual = torch.contiguous_format
    return {
        name: value.detach().to("cpu", copy=True, memory_format=usual)
        for name, value in model.state_dict().items()
    }
