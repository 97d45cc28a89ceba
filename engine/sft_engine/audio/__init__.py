"""Recordings, for authors of audio backbones and augmentations: decoding, resampling, examples.

Needs soundfile and scipy, the extra `audio`. The engine itself imports this package only when a recipe
has audio.
"""

from __future__ import annotations

from sft_engine.audio.decoding import AudioError, Sound, decode, fitted, resampled
from sft_engine.audio.examples import AudioExamples

__all__ = ["AudioError", "AudioExamples", "Sound", "decode", "fitted", "resampled"]
