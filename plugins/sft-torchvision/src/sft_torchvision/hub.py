"""The backbone component: a model from the hubconf.py of a folder or a repository."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge

from sft_engine.images import Pipeline
from sft_engine.images.backbone import ImageBackbone
from sft_engine.images.heads import outputs_of, replace_head
from sft_engine.images.pipeline import IMAGENET_MEAN, IMAGENET_STD
from sft_engine.images.weights import read_weights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from sft_engine.components import Head, Task

_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*(:[\w./-]+)?")
_USUAL_CROP = 0.875


class TorchHub(ImageBackbone):
    """An image model that torch.hub loads, its last layer replaced by one for the task.

    The hub says nothing of preprocessing: the defaults are those of ImageNet.

    Args:
        repo: Local folder with a hubconf.py, or OWNER/NAME[:REF] on GitHub.
        name: The function in hubconf.py that returns the model.
        trust_remote_code: Run the Python code of the folder or repository; read it first.
        arguments: What the function is given, such as `{ pretrained = true }`.
        weights: Local file of weights to start from, *.safetensors or a state dict (*.pth).
        img_size: Height and width in pixels.
        crop_pct: Share of the resized image that the crop in the middle keeps, by edge.
        interpolation: Of the resize: `bilinear`, `bicubic`, `lanczos` and so on.
        mean: Of each channel, of values 0..1.
        std: The same.
        channels_last: Put the channels innermost, which convolutions like; `auto` for those models
            that have several.
    """

    def __init__(  # noqa: PLR0913 - options of a recipe
        self,
        *,
        repo: str,
        name: str,
        trust_remote_code: bool = False,
        arguments: dict[str, Any] | None = None,
        weights: str = "",
        img_size: Annotated[int, Ge(1)] = 224,
        crop_pct: float = _USUAL_CROP,
        interpolation: str = "bilinear",
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        channels_last: bool | Literal["auto"] = "auto",
    ) -> None:
        self.repo = repo
        self.name = name
        self.trust_remote_code = trust_remote_code
        self.arguments = dict(arguments or {})
        self.weights = weights
        self.img_size = img_size
        self.crop_pct = crop_pct
        self.interpolation = interpolation
        self.mean = mean
        self.std = std
        self.channels_last = channels_last

    def check(self) -> None:
        """Look at the place before anything of it runs. Raises RecipeError."""
        folder = self._folder()
        if folder is None and not _REPOSITORY.fullmatch(self.repo):
            raise self._complain(
                "is neither a folder nor a repository: give a path or OWNER/NAME[:REF]"
            )
        if folder is not None and not (folder / "hubconf.py").is_file():
            raise self._complain("has no hubconf.py, where torch.hub looks for models")
        if not self.trust_remote_code:
            place = "repository" if folder is None else "folder"
            raise self._complain(
                f"is Python code, which loading a model runs: read that {place}, then set "
                "trust_remote_code = true"
            )

    def _folder(self) -> Path | None:
        path = Path(self.repo).expanduser()
        return path if path.is_dir() else None

    def _complain(self, what: str) -> Exception:
        from sft_engine import RecipeError

        return RecipeError(f'[backbone] repo = "{self.repo}" {what}.')

    def load_pipeline(self, location: str) -> Pipeline:
        """Return the pipeline that the options say, or a run's own. Raises RecipeError."""
        from sft_torchvision.folders import read

        self.check()
        saved = Path(location).expanduser()
        # Only what a run has left: a folder that is named like the model is not meant.
        self._saved = saved if location != self.name and saved.is_dir() else None
        if self._saved is not None:
            return read(self._saved, "torch-hub", self.name).preprocessing()
        return Pipeline(
            size=(self.img_size, self.img_size),
            crop_pct=self.crop_pct,
            interpolation=self.interpolation,
            mean=tuple(self.mean),
            std=tuple(self.std),
        )

    def network(self, head: Head) -> nn.Module:
        """Load the model, then replace its last layer; one with the right outputs is kept.

        Raises RecipeError if the model cannot be had, is none, or its weights do not fit.
        """
        model = self._create()
        path = self.last_layer(model)
        if self._saved is not None:
            from sft_torchvision.folders import read_state

            replace_head(model, path, head.outputs)
            self._load(model, read_state(self._saved, self.name))
            return model
        if self.weights:
            state = read_weights(self.weights, "weights")
            weight = state.get(f"{path}.weight")
            if weight is not None and weight.shape[0] != outputs_of(model, path):
                replace_head(model, path, weight.shape[0])
            self._load(model, state)
        if outputs_of(model, path) != head.outputs:
            replace_head(model, path, head.outputs)
        return model

    def _load(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        from sft_torchvision.folders import fits

        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise self.complain(
                f"does not fit its weights ({fits(error)}); give weights of this very model"
            ) from error

    def _create(self) -> nn.Module:
        import torch

        folder = self._folder()
        load: Any = torch.hub.load  # untyped
        try:
            model: Any = load(
                str(folder or self.repo),
                self.name,
                source="github" if folder is None else "local",
                trust_repo=True,  # `check` has asked
                verbose=False,
                **self.arguments,
            )
        except Exception as error:
            said = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise self.complain(
                f"could not be loaded from {self.repo} ({type(error).__name__}: {said}); check the name, "
                "the arguments and, for a repository, the connection"
            ) from error
        if not isinstance(model, torch.nn.Module):
            raise self.complain(
                f"returned {type(model).__name__}, not a model: choose another function of {self.repo}"
            )
        return model

    def save(self, model: nn.Module, folder: Path, task: Task) -> None:
        """Write `model.safetensors` and `config.json`; the code stays where it is.

        Raises OSError if there is no room.
        """
        from dataclasses import asdict

        from sft_torchvision.folders import Saved, plain, write

        saved = Saved(
            library="torch-hub",
            architecture=self.name,
            arguments=plain(self.arguments),
            num_classes=task.head.outputs,
            label_names=list(task.head.names),
            pipeline=asdict(self.pipeline),
        )
        write(folder, model, saved)
