"""Augmentations of recordings and spectrograms, against closed forms."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from sft_augmentations.sounds import (
    BackgroundNoise,
    PitchShift,
    TimeStretch,
    at_snr,
    noise_files,
    pitch_shifted,
    stretch_of,
    time_stretched,
)
from sft_augmentations.spectrograms import SpecAugment, heard, model_masks, spans, with_masks
from sft_engine import RecipeError, order
from sft_engine.audio import Sound

RATE = 8000


def tone(pitch=440.0, seconds=1.0):
    times = np.arange(round(seconds * RATE)) / RATE
    return (0.3 * np.sin(2 * np.pi * pitch * times)).astype(np.float32)


def decibels(signal, noise):
    power = [np.mean(np.square(each.astype(np.float64))) for each in (signal, noise)]
    return 10 * np.log10(power[0] / power[1])


def pitch_of(samples):
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return spectrum.argmax() * RATE / len(samples)


# --- noise ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [-5.0, 0.0, 10.0, 20.0])
def test_the_noise_is_at_the_ratio(ratio):
    """Measured in dB, whatever the levels of both were."""
    noise = np.random.default_rng(0).normal(0, 7.0, RATE).astype(np.float32)
    noisy = at_snr(tone(), noise, ratio)
    assert noisy.dtype == np.float32
    assert decibels(tone(), noisy - tone()) == pytest.approx(ratio, abs=1e-3)
    assert np.corrcoef(noisy - tone(), noise)[0, 1] == pytest.approx(1, abs=1e-4)


def test_where_there_is_no_ratio_nothing_is_added():
    silence = np.zeros(RATE, dtype=np.float32)
    assert np.array_equal(at_snr(silence, tone(), 0.0), silence)
    assert np.array_equal(at_snr(tone(), silence, 0.0), tone())


def test_the_component_draws_between_its_ratios():
    component = BackgroundNoise(snr=(3.0, 6.0))
    found = []
    for seed in range(30):
        noisy = component.alter(Sound(tone(), RATE), order.generator(seed))
        found.append(decibels(tone(), noisy - tone()))
    assert 2.99 < min(found) < 3.5
    assert 5.5 < max(found) < 6.01


def test_a_piece_of_a_recording_is_as_long_as_it_must_be():
    recording = np.arange(10, dtype=np.float32)
    for seed in range(20):
        piece = stretch_of(recording, 4, order.generator(seed))
        assert np.array_equal(piece, recording[int(piece[0]) :][:4])
    assert stretch_of(recording, 25, order.generator(0)).tolist() == [
        *range(10),
        *range(10),
        *range(5),
    ]


def test_noise_of_a_folder_is_resampled_and_at_the_ratio(tmp_path):
    (tmp_path / "deep").mkdir()
    draws = np.random.default_rng(0)
    soundfile.write(tmp_path / "deep" / "rain.wav", draws.normal(0, 0.1, 4000), 16_000)
    component = BackgroundNoise(snr=(5.0, 5.0), path=str(tmp_path))
    component.prepare(SimpleNamespace(rows=SimpleNamespace(column_names=["audio"])))
    first = component.alter(Sound(tone(), RATE), order.generator(1))
    assert decibels(tone(), first - tone()) == pytest.approx(5, abs=1e-3)
    assert np.allclose((first - tone())[:2000], (first - tone())[2000:4000], atol=1e-6)  # repeated
    assert np.array_equal(first, component.alter(Sound(tone(), RATE), order.generator(1)))


@pytest.mark.parametrize("path", ["", "nowhere"])
def test_a_folder_without_recordings_is_refused(tmp_path, path):
    with pytest.raises(RecipeError, match="should be a folder of recordings, and there is no"):
        noise_files(str(tmp_path / path))


# --- time and pitch ------------------------------------------------------------------------------


@pytest.mark.parametrize("speed", [0.5, 0.8, 1.25, 2.0])
def test_another_speed_is_another_length_at_the_same_pitch(speed):
    found = time_stretched(tone(), RATE, speed)
    assert len(found) == pytest.approx(RATE / speed, abs=1)
    assert pitch_of(found) == pytest.approx(440, rel=0.01)


@pytest.mark.parametrize("semitones", [-12.0, -3.0, 4.0, 12.0])
def test_another_pitch_is_the_same_length(semitones):
    found = pitch_shifted(tone(), RATE, semitones)
    assert len(found) == RATE
    assert pitch_of(found) == pytest.approx(440 * 2 ** (semitones / 12), rel=0.01)


@pytest.mark.parametrize("component", [TimeStretch(), PitchShift(), BackgroundNoise()])
def test_only_the_generator_is_drawn_from(component):
    sound = Sound(tone(), RATE)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    first = component.alter(sound, order.generator(1))
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert after == states
    random.random()
    assert np.array_equal(component.alter(sound, order.generator(1)), first)
    assert not np.array_equal(component.alter(sound, order.generator(2))[:4000], first[:4000])
    assert np.array_equal(sound.samples, tone())  # what is given is left as it is


@pytest.mark.parametrize("length", [1, 5, 200])
def test_next_to_nothing_is_changed_without_harm(length):
    for component in (TimeStretch(), PitchShift(), BackgroundNoise()):
        found = component.alter(Sound(tone()[:length], RATE), order.generator(0))
        assert np.isfinite(found).all()
        assert found.ndim == 1


def test_without_strength_nothing_is_registered():
    idle = [TimeStretch(speed=(1.0, 1.0)), PitchShift(semitones=0), BackgroundNoise(share=0)]
    idle += [TimeStretch(until=0), PitchShift(share=0), BackgroundNoise(until=0)]
    assert not any(each.effective for each in idle)
    assert all(each.effective for each in (TimeStretch(), PitchShift(), BackgroundNoise()))


@pytest.mark.parametrize(
    ("component", "says"),
    [
        (BackgroundNoise(snr=(9.0, 3.0)), r"snr = \[9.0, 3.0\].*the smaller one first"),
        (TimeStretch(speed=(0.0, 1.0)), r"speed = \[0.0, 1.0\]: needed are two numbers from 0.1"),
    ],
)
def test_numbers_out_of_order_are_refused(component, says):
    with pytest.raises(RecipeError, match=says):
        component.check()


# --- SpecAugment ---------------------------------------------------------------------------------


def test_spans_have_the_widths_and_begins_of_the_paper():
    found = [spans(order.generator(seed), 20, 2, 5) for seed in range(2000)]
    assert {len(each) for each in found} == {2}
    flat = [span for each in found for span in each]
    assert all(0 <= start <= end <= 20 for start, end in flat)
    widths = np.bincount([end - start for start, end in flat])
    assert len(widths) == 6
    assert widths / len(flat) == pytest.approx(np.full(6, 1 / 6), abs=0.02)
    begins = np.bincount([start for start, end in flat if end - start == 5])
    assert len(begins) == 16


def test_spans_take_no_more_than_their_share():
    for seed in range(200):
        ((start, end),) = spans(order.generator(seed), 20, 1, 100, share=0.25)
        assert end - start <= 5
    assert spans(order.generator(0), 20, 0, 5) == []
    assert spans(order.generator(0), 0, 1, 5) == [(0, 0)]


def test_masks_are_the_mean_of_what_is_heard():
    spectrogram = torch.arange(24.0).view(6, 4)
    masked = with_masks(spectrogram, 4, [(1, 3)], [(0, 1)])
    mean = spectrogram[:4].mean()
    expected = spectrogram.clone()
    expected[1:3] = mean
    expected[:4, 0] = mean
    assert torch.equal(masked, expected)
    assert torch.equal(with_masks(spectrogram, 0, [(0, 2)], [(0, 2)]), spectrogram)


def test_padding_is_not_heard():
    spectrograms = torch.rand(4, 6, 3)
    spectrograms[1, 4:] = 0.5
    spectrograms[2, 5:] = 0.5  # one frame tells nothing
    spectrograms[3] = 0.5
    assert heard(spectrograms) == [6, 4, 6, 0]


def test_an_example_is_masked_alike_in_any_batch():
    component = SpecAugment(time_width=3, frequency_width=2)
    spectrograms = torch.rand(4, 10, 6)
    whole = component.masked(spectrograms, [order.generator(i) for i in range(4)])
    parts = [component.masked(spectrograms[i : i + 1], [order.generator(i)]) for i in range(4)]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(whole, spectrograms)


def test_without_widths_nothing_is_masked():
    idle = SpecAugment(time_width=0, frequency_masks=0, model_time=0)
    assert not idle.effective
    spectrograms = torch.rand(2, 10, 6)
    assert torch.equal(
        idle.masked(spectrograms, [order.generator(i) for i in range(2)]), spectrograms
    )


def test_a_models_own_masks_are_put_back():
    config = SimpleNamespace(apply_spec_augment=False, mask_time_prob=0.5, mask_feature_prob=0.1)
    state = np.random.get_state()[1].tolist()
    draws = []
    for seed in (1, 1, 2):
        with model_masks(config, 0.2, 0.3, seed):
            assert vars(config) == {
                "apply_spec_augment": True,
                "mask_time_prob": 0.2,
                "mask_feature_prob": 0.3,
            }
            draws.append(np.random.rand())
    assert draws[0] == draws[1] != draws[2]
    assert (config.apply_spec_augment, config.mask_time_prob) == (False, 0.5)
    assert np.random.get_state()[1].tolist() == state
