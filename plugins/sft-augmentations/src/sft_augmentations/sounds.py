"""Augmentations of recordings: noise at a ratio, time, pitch; consistent per seed, pass and example."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from annotated_types import Ge, Le

from sft_augmentations.rows import RowAugmentation
from sft_engine import RecipeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sft_engine import Split
    from sft_engine.audio import Sound

    Samples = NDArray[np.float32]

AUDIO = "audio"
KEPT = 64
"""Recordings of noise that stay decoded in memory."""


class AudioAugmentation(RowAugmentation):
    """Changes the recording of a row; a subclass says how, in `alter`."""

    def alter(self, sound: Sound, draws: np.random.Generator) -> Samples:
        """Return the changed samples, at the same rate."""
        raise NotImplementedError

    def prepare(self, data: Split) -> None:
        """Raise RecipeError if there are no recordings."""
        require_audio(data)

    def change(self, row: dict[str, Any], draws: np.random.Generator) -> dict[str, Any]:
        """Decode the recording, unless an augmentation before has, and change it."""
        from sft_engine.audio import Sound, decode

        sound = decode(row[AUDIO])
        row[AUDIO] = Sound(self.alter(sound, draws), sound.rate)
        return row


def require_audio(data: Split, who: str = "an augmentation of recordings") -> None:
    """Raise RecipeError if a split has no recordings, which `who` changes."""
    if AUDIO not in data.rows.column_names:
        raise RecipeError(
            f"{who} changes the column 'audio', which the training split has not "
            f"(found: {', '.join(data.rows.column_names)}); remove the augmentation, or take a task and "
            "data with recordings"
        )


def ordered(name: str, values: tuple[float, float], low: float, high: float) -> None:
    """Raise RecipeError if two numbers are not in order or out of bounds."""
    if not low <= values[0] <= values[1] <= high:
        raise RecipeError(
            f"[[augmentation]] {name} = {list(values)}: needed are two numbers from {low:g} to {high:g}, "
            "the smaller one first"
        )


# --- noise ---------------------------------------------------------------------------------------


def at_snr(samples: Samples, noise: Samples, decibels: float) -> Samples:
    """Return samples with noise added, at a signal-to-noise ratio.

    `x + n * sqrt(P_x / (P_n * 10 ** (SNR / 10)))`, P being the mean square. Where either is silent there
    is no such ratio, and nothing is added.

    Args:
        samples: float32 (samples,).
        noise: The same shape.
        decibels: The ratio, in dB.
    """
    signal, power = (float(np.mean(np.square(each, dtype=np.float64))) for each in (samples, noise))
    if signal == 0 or power == 0:
        return samples
    scale = math.sqrt(signal / (power * 10 ** (decibels / 10)))
    return np.asarray(samples + scale * noise, dtype=np.float32)


def stretch_of(recording: Samples, length: int, draws: np.random.Generator) -> Samples:
    """Return a random piece of a recording, repeated from its begin if it is too short."""
    start = int(draws.integers(max(1, len(recording) - length + 1)))
    return np.resize(recording[start:], length)


class BackgroundNoise(AudioAugmentation):
    """Add noise at a signal-to-noise ratio: Gaussian, or recordings of your own.

    Args:
        snr: Least and largest ratio in dB; what is used is drawn evenly in between.
        path: Folder of recordings of noise, also in folders below it; empty for Gaussian noise.
        share: Share of the recordings that are changed.
        until: Off in epochs that begin after this share of the run.
    """

    def __init__(
        self,
        snr: tuple[float, float] = (5.0, 30.0),
        path: str = "",
        share: Annotated[float, Ge(0), Le(1)] = 0.5,
        until: Annotated[float, Ge(0), Le(1)] = 1.0,
    ) -> None:
        super().__init__(share, until)
        self.snr, self.path = snr, path
        self._files: list[Path] = []

    def check(self) -> None:
        """Raise RecipeError if the ratios are not in order."""
        ordered("snr", self.snr, -100, 200)

    def prepare(self, data: Split) -> None:
        """Find the recordings of noise; raise RecipeError if there are none."""
        super().prepare(data)
        if self.path:
            self._files = noise_files(self.path)

    def alter(self, sound: Sound, draws: np.random.Generator) -> Samples:
        """Return the recording with noise."""
        decibels = float(draws.uniform(*self.snr))
        length = len(sound.samples)
        if self._files:
            file = self._files[int(draws.integers(len(self._files)))]
            noise = stretch_of(noise_of(file, sound.rate), length, draws)
        else:
            noise = draws.standard_normal(length, dtype=np.float32)
        return at_snr(sound.samples, noise, decibels)


def noise_files(path: str) -> list[Path]:
    """Return the recordings below a folder, by name. Raises RecipeError if there are none."""
    from sft_engine.builtin.class_folders import FILES

    folder = Path(path).expanduser()
    found = list(FILES[AUDIO].files(folder)) if folder.is_dir() else []
    if not found:
        what = "no recordings" if folder.is_dir() else "nothing of the kind"
        raise RecipeError(
            f'`background-noise`: path = "{path}" should be a folder of recordings, and there is {what}; '
            "correct it, or leave it out for Gaussian noise"
        )
    return found


@functools.lru_cache(maxsize=KEPT)
def noise_of(file: Path, rate: int) -> Samples:
    """Return a recording of noise at a sampling rate. Raises DataError for a broken one."""
    from sft_engine.audio import fitted

    return fitted(file, rate, math.inf)


# --- time and pitch ------------------------------------------------------------------------------


def time_stretched(samples: Samples, rate: int, speed: float) -> Samples:
    """Return samples that last 1 / `speed` of the time, at the same pitch; audiomentations does it.

    Args:
        samples: float32 (samples,).
        rate: Samples a second.
        speed: Above 1 is faster.
    """
    from audiomentations import TimeStretch as Method

    method = Method(leave_length_unchanged=False)
    return _by(method, {"rate": speed}, samples, rate)


def pitch_shifted(samples: Samples, rate: int, semitones: float) -> Samples:
    """Return samples of the same length whose tones are higher; audiomentations does it.

    Args:
        samples: float32 (samples,).
        rate: Samples a second.
        semitones: Twelve are an octave; below 0 is lower.
    """
    from audiomentations import PitchShift as Method

    return _by(Method(), {"num_semitones": semitones}, samples, rate)


def _by(method: Any, parameters: dict[str, float], samples: Samples, rate: int) -> Samples:
    """Apply a transform with given parameters: it would draw them from Python's global generator."""
    method.parameters = {"should_apply": True, **parameters}
    method.freeze_parameters()
    return np.asarray(method(samples, rate), dtype=np.float32)


class TimeStretch(AudioAugmentation):
    """Play recordings faster or slower without a change of pitch, by audiomentations.

    Args:
        speed: Least and largest speed; 1 leaves a recording as it is. What is used is drawn evenly.
        share: Share of the recordings that are changed.
        until: Off in epochs that begin after this share of the run.
    """

    def __init__(
        self,
        speed: tuple[float, float] = (0.8, 1.25),
        share: Annotated[float, Ge(0), Le(1)] = 0.5,
        until: Annotated[float, Ge(0), Le(1)] = 1.0,
    ) -> None:
        super().__init__(share, until)
        self.speed = speed

    @property
    def effective(self) -> bool:
        """Whether any speed but 1 can be drawn."""
        return super().effective and self.speed != (1, 1)

    def check(self) -> None:
        """Raise RecipeError if the speeds are not in order."""
        ordered("speed", self.speed, 0.1, 10)

    def alter(self, sound: Sound, draws: np.random.Generator) -> Samples:
        """Return the recording at another speed."""
        return time_stretched(sound.samples, sound.rate, float(draws.uniform(*self.speed)))


class PitchShift(AudioAugmentation):
    """Make recordings higher or lower without a change of length, by audiomentations.

    Args:
        semitones: Furthest shift, up or down; twelve are an octave. What is used is drawn evenly.
        share: Share of the recordings that are changed.
        until: Off in epochs that begin after this share of the run.
    """

    def __init__(
        self,
        semitones: Annotated[float, Ge(0), Le(24)] = 4.0,
        share: Annotated[float, Ge(0), Le(1)] = 0.5,
        until: Annotated[float, Ge(0), Le(1)] = 1.0,
    ) -> None:
        super().__init__(share, until)
        self.semitones = semitones

    @property
    def effective(self) -> bool:
        """Whether any shift can be drawn."""
        return super().effective and self.semitones > 0

    def alter(self, sound: Sound, draws: np.random.Generator) -> Samples:
        """Return the recording at another pitch."""
        shift = float(draws.uniform(-self.semitones, self.semitones))
        return pitch_shifted(sound.samples, sound.rate, shift)
