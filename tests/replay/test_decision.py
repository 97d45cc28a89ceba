"""Acceptance 14: the rule, with its figures in the line; and what is remembered."""

from __future__ import annotations

import pytest

from sft_engine.replay import decision
from sft_engine.replay.decision import Amounts, Decision, Figures, decide, place_for, remembered

HEAD_ONLY = Figures(frozen=80e-3, rest=0.2e-3, fetch=0.01e-3, keep=0.05e-3)
STEM_ONLY = Figures(frozen=4e-3, rest=60e-3, fetch=0.5e-3, keep=0.5e-3)
POOLED = Amounts(examples=1000, epochs=10, bytes=8192, place="memory")


def test_a_head_alone_is_worth_it():
    found = decide(HEAD_ONLY, POOLED)
    assert found.on
    assert found.line == (
        "replay is on, in memory: saves about 720 s (80 ms of 80.2 ms a training example is the frozen "
        "part, fetching takes 0.01 ms (381.9x faster steps), 10 epochs left, 8.19 kB an example, 8.19 "
        "MB in all)"
    )


@pytest.mark.parametrize(
    ("figures", "amounts", "reason"),
    [
        (STEM_ONLY, POOLED, "a step would hardly be faster (4 ms of 64 ms"),
        (HEAD_ONLY, Amounts(1000, 10, 8192, "nowhere"), "neither memory nor disk has room"),
        (HEAD_ONLY, Amounts(1000, 1, 8192, "memory"), "it would save 0.0 s"),
        (HEAD_ONLY, Amounts(4, 3, 8192, "memory"), "it would save 0.6 s, less than 1.0 s"),
        (
            Figures(0.5e-3, 0.1e-3, 0.3e-3, 0.1e-3),
            Amounts(10**6, 10, 8e5, "file"),
            "reading the file takes too long",
        ),
    ],
)
def test_what_does_not_pay_is_off_with_its_figures(figures, amounts, reason):
    found = decide(figures, amounts)
    assert not found.on
    assert found.line.startswith(f"replay is off: {reason}")
    assert "epochs left" in found.line


def test_memory_first_then_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(decision, "free_memory", lambda: 1000)
    folder = tmp_path / "run" / "not there yet"
    assert place_for(250, folder, 0.25) == "memory"
    assert place_for(251, folder, 0.25) == "file"
    assert place_for(1e30, folder, 0.25) == "nowhere"


def test_a_decision_is_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("SFT_ENGINE_CACHE", str(tmp_path / "cache"))
    assert remembered("key") is None
    decision.remember("key", Decision(on=True, line="because"))
    assert remembered("key") == Decision(on=True, line="because")
    monkeypatch.setenv("SFT_ENGINE_CACHE", str(tmp_path / "cache" / "replay" / "key.json"))
    decision.remember("key", Decision(on=True, line="because"))
    assert remembered("key") is None
