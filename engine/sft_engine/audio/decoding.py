"""From a file or bytes to one channel of samples, or a sentence on why not."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_engine.file_columns import FileError, path_of, read

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIGNATURES = {
    b"RIFF": "WAV",
    b"RF64": "WAV",
    b"fLaC": "FLAC",
    b"OggS": "Ogg",
    b"FORM": "AIFF",
    b"ID3": "MP3",
}
"""How files of the usual formats begin: tells a damaged recording from something else."""

_BROKEN = (RuntimeError, ValueError, TypeError, OSError, EOFError, MemoryError)
"""What soundfile raises for files that are damaged; its own error is a RuntimeError."""
_RIFF_HEADER = 8
_STREAMED = 0x7FFFFF00
"""From here on, the length in the header of a WAV says that it was not known."""
_PADDING = 8
"""Bytes that the length in the header of a whole WAV may be off by."""


class AudioError(FileError):
    """A recording that cannot be used.

    Args:
        reason: Why, without the place.
        where: Path or row.
    """

    noun = "a recording"
    plural = "recordings"


@dataclass(frozen=True)
class Sound:
    """A recording in memory.

    Args:
        samples: One channel, float32, shape (samples,), as a rule from -1 to 1.
        rate: Samples a second.
    """

    samples: NDArray[np.float32]
    rate: int

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.samples) / self.rate


def decode(value: Any, where: str = "", *, seconds: float = math.inf) -> Sound:
    """Return the mean of all channels, at the recording's own sampling rate.

    Args:
        value: A path; bytes of a file; a dict with `bytes` and `path`, as `datasets.Audio(decode=False)`
            gives; or a `Sound`.
        where: What messages call it; by default its path.
        seconds: Read no more than these, from the begin.

    Raises:
        AudioError: no such file; empty, truncated, damaged, not a recording, without samples, or with
            some that are no finite number.
    """
    where = where or path_of(value)
    if isinstance(value, Sound):
        return Sound(
            value.samples[: frames_of(len(value.samples), value.rate, seconds)], value.rate
        )
    return _decoded(read(value, AudioError, where), where, seconds)


def frames_of(frames: int, rate: int, seconds: float) -> int:
    """Return how many of a recording's samples are in its first seconds."""
    return frames if seconds * rate >= frames else math.ceil(seconds * rate)


def _decoded(data: bytes, where: str, seconds: float) -> Sound:
    import soundfile

    if not data:
        raise AudioError("the file is empty", where)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate, frames = int(file.samplerate), frames_of(file.frames, file.samplerate, seconds)
            channels = file.read(frames, dtype="float32", always_2d=True)
    except _BROKEN as error:
        raise AudioError(_why_not(data, error), where) from error
    if _is_cut_off(data) or len(channels) < frames:
        raise AudioError(f"truncated: the file ends after {len(data)} bytes", where)
    if not len(channels):
        raise AudioError("it has no samples", where)
    samples = np.ascontiguousarray(channels.mean(axis=1, dtype=np.float32))
    if not np.isfinite(samples).all():
        raise AudioError("it has samples that are no finite numbers", where)
    return Sound(samples, rate)


def _is_cut_off(data: bytes) -> bool:
    """Whether a WAV is shorter than its header says: soundfile reads what there is, and says nothing."""
    declared = int.from_bytes(data[4:_RIFF_HEADER], "little")
    if not data.startswith(b"RIFF") or declared >= _STREAMED:
        return False
    return declared + _RIFF_HEADER > len(data) + _PADDING


def _why_not(data: bytes, error: Exception) -> str:
    """Tell a damaged recording from a file that is none."""
    form = next((name for start, name in SIGNATURES.items() if data.startswith(start)), "")
    if form:
        return f"a damaged or truncated {form} file ({len(data)} bytes)"
    said = str(getattr(error, "error_string", error)).strip().rstrip(".") or type(error).__name__
    return f"not a recording that soundfile can read ({said}; it begins with {data[:12]!r})"


# --- sampling rates ------------------------------------------------------------------------------


def resampled(sound: Sound, rate: int) -> Sound:
    """Return the recording at another sampling rate, band-limited; at its own, as it is.

    Args:
        sound: n samples.
        rate: Samples a second; the result has ceil(n * rate / sound.rate) of them.
    """
    if sound.rate == rate:
        return sound
    from scipy.signal import resample_poly

    common = math.gcd(rate, sound.rate)
    samples = resample_poly(sound.samples, rate // common, sound.rate // common)
    return Sound(np.asarray(samples, dtype=np.float32), rate)


def fitted(value: Any, rate: int, seconds: float) -> NDArray[np.float32]:
    """Return the first seconds of a recording at a sampling rate, float32 (samples,).

    Args:
        value: Anything that `decode` takes.
        rate: Samples a second.
        seconds: What is longer is cut.

    Raises:
        AudioError: it cannot be used.
    """
    return resampled(decode(value, seconds=seconds), rate).samples
