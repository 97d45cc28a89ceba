"""Changes of recordings: ratios, rates and clipping as measured."""

from __future__ import annotations

import numpy as np
import pytest

from sft_engine import order
from sft_engine.audio import Sound
from sft_probes.recordings import BackgroundNoise, faster, louder, noisy_at

RATE = 8000


def tone(pitch=440.0, seconds=0.5):
    return np.sin(2 * np.pi * pitch * np.arange(int(RATE * seconds)) / RATE).astype(np.float32) / 2


@pytest.mark.parametrize("decibels", [20, 10, 5, 0])
def test_the_ratio_is_that_asked_for(decibels) -> None:
    samples = tone()
    noise = order.generator(1).standard_normal(len(samples), dtype=np.float32)
    added = noisy_at(samples, decibels, noise) - samples
    found = 10 * np.log10(np.square(samples).mean() / np.square(added).mean())
    assert found == pytest.approx(decibels, abs=1e-3)


def test_silence_has_no_ratio() -> None:
    assert not noisy_at(np.zeros(8, np.float32), 10, np.ones(8, np.float32)).any()


def pitch_of(samples):
    return np.abs(np.fft.rfft(samples * np.hanning(len(samples)))).argmax() * RATE / len(samples)


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_twice_as_fast_is_half_as_long_and_higher(factor) -> None:
    found = faster(Sound(tone(), RATE), factor)
    assert len(found) == pytest.approx(len(tone()) / factor, abs=1)
    assert pitch_of(found) == pytest.approx(440 * factor, abs=5)
    assert (faster(Sound(tone(), RATE), 1.0) == tone()).all()


def test_gain_is_a_factor_up_to_full_scale() -> None:
    np.testing.assert_allclose(louder(tone(), 0.1), 0.1 * tone(), atol=1e-7)
    assert np.abs(louder(tone(), 10)).max() == 1


def test_a_ratio_of_0_decibels_is_no_severity_of_0() -> None:
    probe = BackgroundNoise()
    probe.name = "background-noise"
    names = [view.name for view in probe.views(None)]
    assert names == [f"background-noise@{each}dB" for each in (20, 10, 5, 0)]
    row = probe.disturb({"audio": Sound(tone(), RATE)}, "0dB", order.generator(0))
    assert np.square(row["audio"].samples).mean() == pytest.approx(
        2 * np.square(tone()).mean(), rel=0.05
    )
