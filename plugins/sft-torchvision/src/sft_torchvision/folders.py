"""The folder that a run leaves: model.safetensors and a config.json with all that rebuilds the model."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sft_engine import RecipeError
from sft_engine.images import Pipeline
from sft_engine.images.backbone import contiguous_state

if TYPE_CHECKING:
    from torch import Tensor, nn

CONFIG = "config.json"
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Saved:
    """What config.json says.

    Args:
        library: `torchvision` or `torch-hub`.
        architecture: Name of the function that builds the model.
        arguments: What that function is given.
        num_classes: Outputs of the head.
        label_names: Names of the outputs.
        pipeline: From a picture to the model's input.
    """

    library: str
    architecture: str
    arguments: dict[str, Any]
    num_classes: int
    label_names: list[str]
    pipeline: dict[str, Any] = field(default_factory=dict)

    def preprocessing(self) -> Pipeline:
        """Return the pipeline. Raises TypeError or ValueError if it is none."""
        options: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in self.pipeline.items()
        }
        return Pipeline(**options)


def write(folder: Path, model: nn.Module, saved: Saved) -> None:
    """Write both files. Raises OSError if there is no room."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(saved), indent=2, ensure_ascii=False)
    (folder / CONFIG).write_text(f"{text}\n", encoding="utf-8")
    try:
        save_file(contiguous_state(model), folder / WEIGHTS, {"format": "pt"})
    except SafetensorError as error:  # a full disk, in the words of safetensors
        raise OSError(str(error)) from error


def read(folder: Path, library: str, name: str) -> Saved:
    """Read config.json.

    Args:
        folder: As `write` left it.
        library: That must have written it.
        name: As the recipe says it, for messages.

    Raises:
        RecipeError: there is none, or it is of another library.
    """
    advice = "give the name of a model, or the folder RUN/model of a run with the same backbone"
    try:
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        saved = Saved(**{key: content[key] for key in Saved.__dataclass_fields__})
        saved.preprocessing()
    except FileNotFoundError as error:
        raise RecipeError(f'[backbone] name = "{name}" has no {CONFIG}: {advice}.') from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError(
            f'[backbone] name = "{name}" has a {CONFIG} that {library} has not written: {advice}.'
        ) from error
    if saved.library != library:
        raise RecipeError(
            f'[backbone] name = "{name}" is a model of {saved.library}: set use = "{saved.library}", '
            "or give another name."
        )
    return saved


def read_state(folder: Path, name: str) -> dict[str, Tensor]:
    """Read the weights. Raises RecipeError if there are none, or they are damaged."""
    try:
        return load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise RecipeError(
            f'[backbone] name = "{name}" has no {WEIGHTS} that can be read ({error}): copy the whole '
            "folder again."
        ) from error


def with_versions(state: Mapping[str, Tensor], model: nn.Module) -> OrderedDict[str, Tensor]:
    """Return weights with the versions of a model's modules, which safetensors does not keep.

    MNASNet refuses a state dict without one.
    """
    whole = OrderedDict(state)
    own: Any = model.state_dict()
    whole._metadata = own._metadata  # type: ignore[attr-defined]  # noqa: SLF001 - torch has no other way
    return whole


def fits(error: RuntimeError) -> str:
    """Return the line of `load_state_dict`'s complaint that says what is wrong."""
    lines = str(error).splitlines()
    return (lines[1] if len(lines) > 1 else lines[0]).strip()[:200]


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those values that JSON can hold."""
    kept = {}
    for key, value in values.items():
        try:
            json.dumps(value)
        except TypeError:
            continue
        kept[key] = value
    return kept
