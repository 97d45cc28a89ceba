"""From files of every awkward kind to samples, or a sentence on why not."""

from __future__ import annotations

import numpy as np
import pytest
from tones import RATE, encoded, tone

from sft_engine.audio import AudioError, Sound, decode, fitted, resampled

TONE = tone(440.0)


@pytest.mark.parametrize(
    ("form", "options", "tolerance"),
    [
        ("WAV", {}, 1e-4),
        ("WAV", {"subtype": "FLOAT"}, 0),
        ("WAV", {"subtype": "PCM_U8"}, 1e-2),
        ("FLAC", {}, 1e-4),
        ("AIFF", {}, 1e-4),
        ("OGG", {}, 0.1),
    ],
)
def test_samples_are_those_that_were_written(form, options, tolerance):
    sound = decode(encoded(TONE, form=form, **options))
    assert (sound.rate, sound.samples.shape, sound.samples.dtype) == (RATE, TONE.shape, np.float32)
    assert np.abs(sound.samples - TONE).max() <= tolerance


def test_channels_are_averaged(tmp_path):
    other = tone(100.0)
    path = tmp_path / "stereo.wav"
    path.write_bytes(encoded(np.stack([TONE, other], axis=1), subtype="FLOAT"))
    for value in (str(path), path, {"path": str(path), "bytes": None}, path.read_bytes()):
        assert np.allclose(decode(value).samples, (TONE + other) / 2, atol=1e-7)


def test_only_the_first_seconds_are_read():
    assert len(decode(encoded(TONE), seconds=0.1).samples) == RATE // 10
    assert len(decode(Sound(TONE, RATE), seconds=0.1).samples) == RATE // 10
    assert len(decode(encoded(TONE), seconds=99.0).samples) == len(TONE)


@pytest.mark.parametrize("rate", [RATE * 2, RATE // 2, 11025, 44100, 7919])
def test_resampling_keeps_a_tone(rate):
    """The closed form: the same sine, sampled at the other rate; its ends ring."""
    found = resampled(Sound(tone(440.0, 1.0), RATE), rate)
    expected = tone(440.0, 1.0, rate)
    assert len(found.samples) == len(expected)
    inner = slice(rate // 10, -rate // 10)
    assert np.abs(found.samples[inner] - expected[inner]).max() < 0.01


def test_what_the_lower_rate_cannot_hold_is_gone():
    sound = resampled(Sound(tone(3000.0, 1.0), RATE), RATE // 2)
    assert np.abs(sound.samples[400:-400]).max() < 0.01


def test_at_its_own_rate_a_recording_is_left_as_it_is():
    assert np.array_equal(fitted(Sound(TONE, RATE), RATE, 30.0), TONE)


WHOLE = encoded(tone(440.0, 2.0))
BROKEN = {
    "the file is empty": b"",
    "a damaged or truncated WAV file": WHOLE[:20],
    "truncated: the file ends after": WHOLE[: len(WHOLE) // 2],
    "not a recording that soundfile can read": b"to be recorded, some day\n",
    "it has no samples": encoded(TONE[:0]),
    "no finite numbers": encoded(np.full(9, np.nan), subtype="DOUBLE"),
    "a damaged or truncated FLAC file": encoded(TONE, form="FLAC")[:30],
    "a damaged or truncated Ogg file": encoded(TONE, form="OGG")[:30],
}


@pytest.mark.parametrize("says", BROKEN)
def test_what_cannot_be_used_is_said(says):
    with pytest.raises(AudioError, match=says):
        decode(BROKEN[says])


def test_a_flac_file_that_ends_early_is_said():
    data = encoded(np.random.default_rng(0).normal(0, 0.1, 40_000), form="FLAC")
    with pytest.raises(AudioError, match="truncated"):
        decode(data[: len(data) // 2])


def test_no_file_and_no_path(tmp_path):
    with pytest.raises(AudioError, match=r"nowhere\.wav: there is no such file"):
        decode(tmp_path / "nowhere.wav")
    with pytest.raises(AudioError, match="it cannot be read"):
        decode(tmp_path)
    with pytest.raises(AudioError, match="row 3: found nothing where a path"):
        decode(None, "row 3")
    with pytest.raises(AudioError, match="found int where a path"):
        decode(7)


def test_a_stream_whose_length_was_not_known_is_whole():
    data = bytearray(encoded(TONE))
    data[4:8] = b"\xff\xff\xff\xff"
    assert len(decode(bytes(data)).samples) == len(TONE)
