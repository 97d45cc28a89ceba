"""Probes of recordings: noise at a signal-to-noise ratio, speed, gain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from annotated_types import Ge, Gt, MinLen

from sft_probes.severity import RowProbe

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sft_engine.audio import Sound

    Samples = NDArray[np.float32]

AUDIO = "audio"
Factors = Annotated[tuple[Annotated[float, Gt(0)], ...], MinLen(1)]


def noisy_at(samples: Samples, decibels: float, noise: Samples) -> Samples:
    """Return `x + n * sqrt(P_x / (P_n * 10 ** (SNR / 10)))`, P being the mean square; silence stays.

    Args:
        samples: (samples,).
        decibels: Signal-to-noise ratio in dB.
        noise: The same shape.
    """
    signal, power = (float(np.mean(np.square(each, dtype=np.float64))) for each in (samples, noise))
    if not signal or not power:
        return samples
    scale = math.sqrt(signal / (power * 10 ** (decibels / 10)))
    return np.asarray(samples + scale * noise, dtype=np.float32)


def faster(sound: Sound, factor: float) -> Samples:
    """Return a recording played this many times as fast, higher by as much; band-limited."""
    from sft_engine.audio import Sound as Recording
    from sft_engine.audio import resampled

    rate = max(1, round(sound.rate * factor))
    return resampled(Recording(sound.samples, rate), sound.rate).samples


def louder(samples: Samples, factor: float) -> Samples:
    """Return samples times a factor, clipped to -1..1 as a converter does."""
    return np.asarray(np.clip(samples * factor, -1, 1), dtype=np.float32)


class RecordingProbe(RowProbe):
    """Changes the recording of a row; a subclass says how, in `alter`.

    Severities are names, such as `10dB`: as numbers, 0 would mean that nothing changes.
    """

    inputs: ClassVar[frozenset[str]] = frozenset({AUDIO})
    unit: ClassVar[str] = "x"

    def __init__(self, values: Sequence[float], split: str, examples: int, seed: int) -> None:
        super().__init__([f"{value:g}{self.unit}" for value in values], split, examples, seed)

    def alter(self, sound: Sound, value: float, draws: np.random.Generator) -> Samples:
        """Return the changed samples, at the same rate."""
        raise NotImplementedError

    def disturb(
        self, row: dict[str, Any], severity: Any, draws: np.random.Generator
    ) -> dict[str, Any]:
        """Change the recording of the row."""
        from sft_engine.audio import Sound, decode

        if severity:
            sound = decode(row[AUDIO])
            value = float(severity.removesuffix(self.unit))
            row[AUDIO] = Sound(self.alter(sound, value, draws), sound.rate)
        return row

    def shown(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return how long it is: a report has no sound."""
        from sft_engine.audio import decode

        return {"seconds": round(decode(row[AUDIO]).seconds, 3)}


class BackgroundNoise(RecordingProbe):
    """Add Gaussian noise to recordings at signal-to-noise ratios.

    Args:
        severities: Ratios in dB; at 0 noise is as strong as the signal.
        split: Which split is looked at.
        examples: How many of its examples, drawn at random, the same for every model; 0 for all.
        seed: Of that draw and of the noise.
    """

    title = "Background noise"
    axis = "signal-to-noise ratio"
    unit = "dB"

    def __init__(
        self,
        severities: Annotated[tuple[Annotated[float, Ge(0)], ...], MinLen(1)] = (
            20.0,
            10.0,
            5.0,
            0.0,
        ),
        split: str = "test",
        examples: Annotated[int, Ge(0)] = 300,
        seed: Annotated[int, Ge(0)] = 0,
    ) -> None:
        super().__init__(severities, split, examples, seed)

    def alter(self, sound: Sound, value: float, draws: np.random.Generator) -> Samples:
        """Add noise."""
        noise = draws.standard_normal(len(sound.samples), dtype=np.float32)
        return noisy_at(sound.samples, value, noise)


class Speed(RecordingProbe):
    """Play recordings faster or slower, and so higher or lower.

    Args:
        severities: Factors; 1 changes nothing.
        split: Which split is looked at.
        examples: How many of its examples, drawn at random, the same for every model; 0 for all.
        seed: Of that draw.
    """

    title = "Speed"
    axis = "speed"

    def __init__(
        self,
        severities: Factors = (0.8, 0.9, 1.1, 1.25),
        split: str = "test",
        examples: Annotated[int, Ge(0)] = 300,
        seed: Annotated[int, Ge(0)] = 0,
    ) -> None:
        super().__init__(severities, split, examples, seed)

    def alter(self, sound: Sound, value: float, draws: np.random.Generator) -> Samples:  # noqa: ARG002 - contract
        """Change the speed."""
        return faster(sound, value)


class Gain(RecordingProbe):
    """Make recordings louder or quieter; what goes beyond full scale is clipped.

    Args:
        severities: Factors on the samples; 1 changes nothing.
        split: Which split is looked at.
        examples: How many of its examples, drawn at random, the same for every model; 0 for all.
        seed: Of that draw.
    """

    title = "Gain"
    axis = "gain"

    def __init__(
        self,
        severities: Factors = (0.1, 0.3, 3.0, 10.0),
        split: str = "test",
        examples: Annotated[int, Ge(0)] = 300,
        seed: Annotated[int, Ge(0)] = 0,
    ) -> None:
        super().__init__(severities, split, examples, seed)

    def alter(self, sound: Sound, value: float, draws: np.random.Generator) -> Samples:  # noqa: ARG002 - contract
        """Change the level."""
        return louder(sound.samples, value)
