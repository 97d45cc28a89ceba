"""The backbone component for recordings: any audio encoder that transformers can load."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Gt

from sft_engine import RecipeError

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from sft_engine.audio import AudioExamples
    from sft_engine.components import Example, LayerGroup, Resolve, Task

SHORTEST = 0.1
"""Seconds; what is shorter is continued by silence. Every known model makes several frames of them."""

_MASK = "attention_mask"


class TransformersAudio:
    """An audio encoder from the transformers library, ended in its own classifier.

    Args:
        name: Hub id, local folder, or a name that a plugin offers.
        revision: Branch, tag or commit of a hub id; empty for its main branch.
        max_seconds: Longest input, the rest is cut; models with a window of their own never take more.
        padding_mask: Whether the model is told what is padding: `auto` does as the checkpoint was
            trained, `on` and `off` insist.
        attention: Implementation of attention: `auto`, `sdpa`, `eager`, `flash_attention_2` and so on.
        trust_remote_code: Run Python code that comes with the model; read it first.
    """

    export_formats = ("hf",)
    accepts = frozenset({"audio"})

    def __init__(
        self,
        *,
        name: str,
        revision: str = "",
        max_seconds: Annotated[float, Gt(0)] = 30.0,
        padding_mask: Literal["auto", "on", "off"] = "auto",
        attention: str = "auto",
        trust_remote_code: bool = False,
    ) -> None:
        self.name = name
        self.revision = revision
        self.max_seconds = max_seconds
        self.padding_mask = padding_mask
        self.attention = attention
        self.trust_remote_code = trust_remote_code

    # --- Preprocessing ---------------------------------------------------------------------------

    def open(self, resolve: Resolve) -> None:
        """Read configuration and feature extractor.

        Raises RecipeError if the model cannot be found or read, is no audio classifier, or its weights
        are pickles.
        """
        from sft_transformers.sources import Source

        location = str(resolve(self.name))
        self.source = Source(self.name, location, self.revision, self.trust_remote_code)
        self.source.check()
        self.config = self.source.read_config()
        self._check_kind()
        self.extractor = self.source.read_feature_extractor()
        self.rate = int(self.extractor.sampling_rate)
        self._input = self.extractor.model_input_names[0]
        one, two = (len(self._encoded(self._tone(n))[self._input]) for n in (1, 2))
        self.fixed = one == two
        self.seconds = min(self.max_seconds, self._window())
        self._masked = self._wants_mask()

    def _check_kind(self) -> None:
        from transformers import MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING

        known = type(self.config) in MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING
        if not known and "AutoModelForAudioClassification" not in (
            getattr(self.config, "auto_map", None) or {}
        ):
            raise self.source.complain(
                f'is of the type "{self.config.model_type}", for which transformers has no audio '
                "classifier: choose a wav2vec 2.0, HuBERT, WavLM, AST or Whisper, or for texts set "
                'use = "transformers"'
            )

    def _window(self) -> float:
        """Return the seconds that a model takes whose window is fixed: Whisper 30, AST 10.24."""
        if not self.fixed:
            return float("inf")
        if hasattr(self.extractor, "n_samples"):
            return float(self.extractor.n_samples) / self.rate
        frames = getattr(self.extractor, "max_length", None)  # of AST: 25 ms each, 10 ms apart
        return 0.025 + 0.01 * (frames - 1) if isinstance(frames, int) else float("inf")

    def _wants_mask(self) -> bool:
        if self.fixed:
            return False
        own = bool(getattr(self.extractor, "return_attention_mask", False))
        return own if self.padding_mask == "auto" else self.padding_mask == "on"

    def encode(self, rows: Dataset, task: Task) -> AudioExamples:
        """Return the recordings of a split, which are decoded when they are asked for."""
        from sft_engine.audio import AudioExamples

        return AudioExamples(
            rows, task.target, self.rate, self.seconds, self._encoded, bucketed=not self.fixed
        )

    def encode_rows(self, rows: list[dict[str, Any]], task: Task) -> list[Example]:
        """Encode recordings on the fly. Raises DataError for a broken one."""
        from sft_engine.audio import fitted

        return [
            self._encoded(fitted(row["audio"], self.rate, self.seconds))
            | ({task.target: row[task.target]} if task.target in row else {})
            for row in rows
        ]

    def _encoded(self, samples: NDArray[np.float32]) -> Example:
        """Return the model's inputs for one recording: samples, or frames of a spectrogram."""
        import numpy as np

        missing = max(0, round(SHORTEST * self.rate) - len(samples))
        whole = np.pad(samples, (0, missing))
        made = self.extractor(whole, sampling_rate=self.rate, return_tensors="np")
        names = (self._input, _MASK) if _MASK in made else (self._input,)
        return {name: np.asarray(made[name][0]) for name in names}

    def _tone(self, lengths: int = 1) -> NDArray[np.float32]:
        """Return a tone of that many times the least length."""
        import numpy as np

        times = np.arange(round(lengths * SHORTEST * self.rate)) / self.rate
        return np.sin(2 * np.pi * 440 * times).astype(np.float32)

    def collate(self, examples: list[Example]) -> dict[str, Tensor]:
        """Pad to the longest example: float32 [examples, samples or frames, ...], and its mask."""
        import numpy as np
        import torch

        arrays = [example[self._input] for example in examples]
        width = max(map(len, arrays))
        padded = np.full(
            (len(arrays), width, *arrays[0].shape[1:]), self.extractor.padding_value, np.float32
        )
        mask = np.zeros((len(arrays), width), np.int64)
        for index, (example, array) in enumerate(zip(examples, arrays, strict=True)):
            padded[index, : len(array)] = array
            mask[index, : len(array)] = example.get(_MASK, 1)
        batch = {self._input: torch.from_numpy(padded)}
        return batch | ({_MASK: torch.from_numpy(mask)} if self._masked else {})

    # --- Model -----------------------------------------------------------------------------------

    def build(self, task: Task) -> nn.Module:
        """Load the weights and end them in the task's head.

        A head that the checkpoint lacks is drawn from torch's random state. Parameters that the logits
        do not depend on, or that the model itself keeps as they are, become buffers.
        Raises RecipeError if the checkpoint does not fit, or the model cannot run.
        """
        from transformers import AutoModelForAudioClassification

        from sft_transformers.first_use import as_buffers, retire_unused
        from sft_transformers.models import adapt

        options = {} if self.attention == "auto" else {"attn_implementation": self.attention}
        config = settled(adapt(self.config, task.head))
        model: nn.Module = self.source.load(AutoModelForAudioClassification, config, **options)
        as_buffers(model, fixed_parameters(config))
        try:
            retire_unused(model, self._probe)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            raise self.source.complain(f"cannot run on a short recording: {said}") from error
        return model

    def _probe(self, model: nn.Module) -> Any:
        """Run the model on a short tone, wherever it is."""
        device = next(model.parameters()).device
        inputs = self.collate([self._encoded(self._tone(2))])
        return self.forward(model, {name: value.to(device) for name, value in inputs.items()})

    def forward(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
        """Run the model; what it returns has `logits`, shape [examples, outputs]."""
        return model(**inputs)

    def layer_groups(self, model: nn.Module) -> list[LayerGroup]:
        """Return feature encoder, embeddings, one group a block, and head, in forward order."""
        from sft_transformers.first_use import first_use
        from sft_transformers.layer_groups import layer_groups

        return layer_groups(model, first_use(model, self._probe))

    def save(self, model: nn.Module, folder: Path, task: Task) -> None:  # noqa: ARG002 - contract
        """Write weights and feature extractor: `AutoModelForAudioClassification` reads both.

        Raises OSError if there is no room.
        """
        from safetensors import SafetensorError

        from sft_transformers.sources import quiet

        folder.mkdir(parents=True, exist_ok=True)
        try:
            with quiet():
                model.save_pretrained(folder)  # type: ignore[operator]
                self.extractor.save_pretrained(folder)
        except SafetensorError as error:  # a full disk, in the words of safetensors
            raise OSError(str(error)) from error

    def load_exported(self, folder: Path, form: str) -> nn.Module:  # noqa: ARG002 - contract
        """Read a saved model with transformers alone."""
        from transformers import AutoModelForAudioClassification

        from sft_transformers.sources import quiet

        with quiet():
            options = {"trust_remote_code": self.trust_remote_code}
            model: nn.Module = AutoModelForAudioClassification.from_pretrained(folder, **options)
        return model

    def preprocessing(self) -> dict[str, Any]:
        """Say how recordings become inputs; the feature extractor's own file says the rest."""
        return {
            "kind": "audio",
            "reader": "transformers.AutoFeatureExtractor",
            "sampling_rate": self.rate,
            "channels": "mean",
            "max_seconds": self.seconds,
            "shortest_seconds": SHORTEST,
            "padding_mask": self._masked,
        }

    def check(self) -> None:
        """Raise RecipeError where the libraries that read recordings are not installed."""
        from importlib.util import find_spec

        missing = [name for name in ("soundfile", "scipy") if find_spec(name) is None]
        if missing:
            raise RecipeError(
                f'[backbone] use = "transformers-audio" needs {" and ".join(missing)}, which this Python '
                "lacks: pip install 'sft-engine[audio]'."
            )


def fixed_parameters(config: Any) -> list[str]:
    """Return what a model never trains, such as Whisper's table of positions; loading forgets it."""
    import torch
    from transformers import AutoModelForAudioClassification

    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        blank: nn.Module = AutoModelForAudioClassification.from_config(config)  # type: ignore[no-untyped-call]
    return [name for name, parameter in blank.named_parameters() if not parameter.requires_grad]


def settled(config: Any) -> Any:
    """Return a configuration in which nothing is dropped or masked that the recipe does not name.

    LayerDrop leaves blocks without a gradient, which stops DDP; masks are what `spec-augment` is for.
    """
    for name, value in (
        ("layerdrop", 0.0),
        ("encoder_layerdrop", 0.0),
        ("apply_spec_augment", False),
    ):
        if hasattr(config, name):
            setattr(config, name, value)
    return config
