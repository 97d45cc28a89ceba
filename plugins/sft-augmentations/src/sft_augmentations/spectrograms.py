"""SpecAugment: masks over time and frequency, on spectrograms or by the model's own options."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Le

from sft_augmentations.batches import BatchAugmentation
from sft_augmentations.sounds import require_audio
from sft_engine import RecipeError, hookimpl, order

if TYPE_CHECKING:
    from torch import Tensor

    from sft_engine import Batch, Run, Split

    Spans = list[tuple[int, int]]

_WAVEFORM, _SPECTROGRAM = 2, 3
_KEY = order.name_key("spec-augment")


def spans(
    draws: np.random.Generator, length: int, count: int, width: int, share: float = 1.0
) -> Spans:
    """Return begin and end of masks along an axis (Park et al. 2019, "SpecAugment", section 2).

    The width t of each is drawn evenly from 0 to `width`, at most `share * length`; its begin from 0 to
    `length - t`.

    Args:
        draws: The only source of randomness.
        length: Of the axis.
        count: How many masks; they may overlap.
        width: Largest width: T for time, F for frequency.
        share: The paper's p.
    """
    most = min(width, int(share * length))
    found: Spans = []
    for _ in range(count):
        size = int(draws.integers(most + 1))
        start = int(draws.integers(length - size + 1))
        found.append((start, start + size))
    return found


def heard(spectrograms: Tensor) -> list[int]:
    """Return how many frames of each spectrogram come before its padding.

    Padding is two or more frames at the end that are all alike; of one that is alike throughout, nothing is
    heard.

    Args:
        spectrograms: (n, frames, bins).
    """
    alike = (spectrograms == spectrograms[:, -1:]).all(dim=2)
    trailing = alike.flip(1).long().cumprod(dim=1).sum(dim=1)
    frames = spectrograms.shape[1]
    return [frames - int(count) if count > 1 else frames for count in trailing.tolist()]


def with_masks(spectrogram: Tensor, frames: int, times: Spans, frequencies: Spans) -> Tensor:
    """Return a spectrogram whose masked values are the mean of what is heard.

    Args:
        spectrogram: (frames, bins).
        frames: How many of them are no padding; padding is left as it is.
        times: Masked frames.
        frequencies: Masked bins.
    """
    masked = spectrogram.clone()
    if frames == 0:
        return masked
    mean = spectrogram[:frames].mean()
    for start, end in times:
        masked[start:end] = mean
    for start, end in frequencies:
        masked[:frames, start:end] = mean
    return masked


@contextmanager
def model_masks(config: Any, time: float, feature: float, seed: int) -> Iterator[None]:
    """Let a waveform model of transformers mask its own features in training, by numbers from a seed.

    It draws from numpy's global generator, which afterwards is where it was.
    """
    before = (config.apply_spec_augment, config.mask_time_prob, config.mask_feature_prob)
    state = np.random.get_state()  # noqa: NPY002 - what the model draws from
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002
    config.apply_spec_augment, config.mask_time_prob, config.mask_feature_prob = True, time, feature
    try:
        yield
    finally:
        config.apply_spec_augment, config.mask_time_prob, config.mask_feature_prob = before
        np.random.set_state(state)  # noqa: NPY002


class SpecAugment(BatchAugmentation):
    """Mask stretches of time and bands of frequency (Park et al. 2019, "SpecAugment"; no time warp).

    Models that take spectrograms (Whisper, AST) get masks on them, the same for an example in any batch.
    Models that take the waveform (wav2vec 2.0, HuBERT) mask the features of their own convolutions, by
    `model_time` and `model_feature`; those draws depend on the examples of the micro-batch together.

    Args:
        time_masks: How many stretches of time.
        time_width: Their largest width, in frames: of Whisper and AST, 10 ms each.
        time_share: Their largest width as a share of the recording.
        frequency_masks: How many bands of frequency.
        frequency_width: Their largest width, in bins.
        model_time: Waveform models: share of the frames that are masked, were masks not to overlap.
        model_feature: Waveform models: the same of the features.
        until: Off from this share of the run on.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - options of a recipe
        self,
        time_masks: Annotated[int, Ge(0)] = 2,
        time_width: Annotated[int, Ge(0)] = 100,
        time_share: Annotated[float, Ge(0), Le(1)] = 0.2,
        frequency_masks: Annotated[int, Ge(0)] = 2,
        frequency_width: Annotated[int, Ge(0)] = 27,
        model_time: Annotated[float, Ge(0), Le(1)] = 0.05,
        model_feature: Annotated[float, Ge(0), Le(1)] = 0.0,
        until: Annotated[float, Ge(0), Le(1)] = 1.0,
    ) -> None:
        super().__init__(until)
        self.time_masks, self.time_width, self.time_share = time_masks, time_width, time_share
        self.frequency_masks, self.frequency_width = frequency_masks, frequency_width
        self.model_time, self.model_feature = model_time, model_feature

    @property
    def effective(self) -> bool:
        """Whether the options can mask anything."""
        times = self.time_masks * self.time_width * self.time_share
        bands = self.frequency_masks * self.frequency_width
        return super().effective and times + bands + self.model_time + self.model_feature > 0

    @hookimpl
    def sft_build_data(self, split: str, data: Split) -> None:
        """Raise RecipeError if there are no recordings."""
        if split == "train" and self.effective:
            require_audio(data, "`spec-augment`")

    @hookimpl
    def sft_setup(self, run: Run) -> None:
        """Make sure that a waveform model can mask as it is told to; raise RecipeError if not."""
        config = getattr(run.model, "config", None)
        if not self.effective or not hasattr(config, "mask_time_prob"):
            return
        known = {name.rpartition(".")[2] for name in run.model.state_dict()}
        if _takes_waveforms(config) and self.model_time and "masked_spec_embed" not in known:
            raise RecipeError(
                "`spec-augment`: this checkpoint has no vector for masked frames (mask_time_prob = 0 in its "
                "config.json); set model_time = 0"
            )

    def change(self, run: Run, batch: Batch, *, again: bool) -> None:
        """Mask the spectrograms of a batch, each by the seed, the epoch and its id."""
        name = next((n for n, value in batch.inputs.items() if value.ndim == _SPECTROGRAM), "")
        if again or not name:
            return
        value = batch.inputs[name]
        turned = _bins_first(value, getattr(run.model, "config", None))
        spectrograms = value.transpose(1, 2) if turned else value
        masked = self.masked(spectrograms, [self._draws(run, batch, row) for row in batch.ids])
        batch.inputs[name] = masked.transpose(1, 2).contiguous() if turned else masked

    def masked(self, spectrograms: Tensor, draws: list[np.random.Generator]) -> Tensor:
        """Return spectrograms (n, frames, bins) with the masks that each one's generator draws."""
        bins = spectrograms.shape[2]
        found = []
        for one, frames, own in zip(spectrograms, heard(spectrograms), draws, strict=True):
            times = spans(own, frames, self.time_masks, self.time_width, self.time_share)
            bands = spans(own, bins, self.frequency_masks, self.frequency_width)
            found.append(with_masks(one, frames, times, bands))
        return torch.stack(found)

    def _draws(self, run: Run, batch: Batch, row: int) -> np.random.Generator:
        key = (run.seeds.noise, run.clock.epoch, row, _KEY, order.name_key(batch.split))
        return order.generator(*key)

    @hookimpl(wrapper=True)
    def sft_micro_step(self, run: Run, batch: Batch) -> Iterator[None]:
        """Let a waveform model mask its own features, where the batch is long enough for a mask."""
        config = getattr(run.model, "config", None)
        if run.clock.progress >= self.until or not self._model_masks(run.model, config, batch):
            return (yield)
        seed = order.mix(run.seeds.noise, run.clock.epoch, *batch.ids, start=_KEY)
        with model_masks(config, self.model_time, self.model_feature, seed):
            return (yield)

    def _model_masks(self, model: Any, config: Any, batch: Batch) -> bool:
        if not (self.model_time or self.model_feature) or not hasattr(config, "mask_time_prob"):
            return False
        value = next(iter(batch.inputs.values()))
        if value.ndim != _WAVEFORM or not value.is_floating_point():
            return False
        lengths = getattr(model, "_get_feat_extract_output_lengths", None)
        frames = int(lengths(value.shape[1])) if lengths else value.shape[1]
        return frames >= int(config.mask_time_length)


def _takes_waveforms(config: Any) -> bool:
    return hasattr(config, "conv_kernel")


def _bins_first(value: Tensor, config: Any) -> bool:
    """Whether spectrograms are (n, bins, frames), as those of Whisper are."""
    bins = getattr(config, "num_mel_bins", None)
    return bool(value.shape[1] == bins and value.shape[2] != bins)
