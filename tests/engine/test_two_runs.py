"""A run in a notebook leaves the process as it found it, and knows nothing of the run before it."""

from __future__ import annotations

import csv
import gc
import locale
import logging
import os
import random
import signal
import sys
import threading
import warnings
import weakref

import numpy as np
import pytest
import torch
from victims import COMPONENTS

from sft_engine import DataError, DivergedError, Interrupted
from sft_engine.loop import Loop
from sft_engine.testing.runs import TINY, plan_recipe, run_recipe
from sft_engine.training import train

NOISY = ["backbone.dropout=0.3", "optimizer.use=adamw", "train.micro_batch_size=6"]
LOUD = ["train.threads=2", "train.deterministic=true", *NOISY]


def process_state():
    """Return what belongs to the process and not to a run."""
    return {
        "python": random.getstate(),
        "numpy": str(np.random.get_state()),
        "torch": torch.get_rng_state().tolist(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "matmul": torch.get_float32_matmul_precision(),
        "environment": {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")},
        "handlers": [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)],
        "mask": signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "folder": os.getcwd(),  # noqa: PTH109
        "path": list(sys.path),
        "warnings": list(warnings.filters),
        "logging": [logging.root.level, *logging.root.handlers],
        "csv": csv.field_size_limit(),
        "locale": locale.setlocale(locale.LC_ALL),
        "threads of Python": threading.active_count(),
        "hook": sys.excepthook,
    }


def seed_all(seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@pytest.fixture
def unchanged():
    """Compare the process before and after the test; the first run may import, so there was one."""
    seed_all(1)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    handler = signal.signal(signal.SIGTERM, lambda *_: None)
    before = process_state()
    yield
    after = process_state()
    signal.signal(signal.SIGTERM, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    for key, value in before.items():
        assert (key, after[key]) == (key, value)


@pytest.fixture(scope="module", autouse=True)
def imported(tmp_path_factory):
    run_recipe(tmp_path_factory.mktemp("first") / "run")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_leaves_the_process_as_it_was(tmp_path, unchanged, workers):
    run_recipe(tmp_path / "run", TINY, [*LOUD, f"train.workers={workers}"])


def test_so_does_reading_long_fields(tmp_path, unchanged):
    from sft_engine.builtin.data import read_file

    (tmp_path / "long.csv").write_text(f"text,label\n{'x' * 200_000},a\n")
    assert len(read_file(tmp_path / "long.csv")["text"][0]) == 200_000


def test_so_do_runs_that_fail(tmp_path, unchanged):
    poison = TINY + '[[extension]]\nuse = "test/poison"\nat = 2\n'
    with pytest.raises(DivergedError):
        run_recipe(tmp_path / "poison", poison, LOUD, COMPONENTS)
    with pytest.raises(Interrupted):
        run_recipe(tmp_path / "run", TINY, LOUD, stop_after=2)
    with pytest.raises(DataError):
        run_recipe(tmp_path / "empty", TINY, ["data.test=1000"])
    train(plan_recipe(TINY, LOUD), tmp_path / "run", resume=True)


def test_so_do_evaluation_and_prediction(tmp_path, unchanged, monkeypatch):
    import sft_engine
    from sft_engine import verbs

    run_recipe(tmp_path / "run", TINY, LOUD)
    plan = plan_recipe(TINY, LOUD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verbs, "check", lambda *_, **__: plan)
        metrics = sft_engine.evaluate(tmp_path / "run")
        rows = list(sft_engine.predict(tmp_path / "run", ["abba", "bbb"]))
    assert metrics["accuracy"] <= 1
    assert len(rows) == 2


def test_a_run_does_not_depend_on_the_one_before(tmp_path):
    alone = run_recipe(tmp_path / "alone", TINY, NOISY)
    run_recipe(
        tmp_path / "other",
        TINY,
        [*LOUD, "seed=7", "backbone.dtype=float64", "train.precision=bf16"],
    )
    seed_all(5)
    again = run_recipe(tmp_path / "again", TINY, NOISY)
    assert again.fingerprint == alone.fingerprint
    assert again.metrics == alone.metrics


def test_a_run_is_let_go(tmp_path):
    """A study of a hundred runs in one process must not keep a hundred models."""
    kept = []

    def watched(self):
        kept.append(weakref.ref(self.run.model))
        return trained(self)

    trained = Loop.train
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "train", watched)
        run_recipe(tmp_path / "run", TINY, ["train.steps=1"])
    gc.collect()
    assert kept[0]() is None


def test_a_run_in_another_thread_leaves_signals_alone(tmp_path):
    """Only the main thread may have handlers; there, Ctrl-C stays what it was."""
    outcomes = []
    handler = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=lambda: outcomes.append(run_recipe(tmp_path / "run")))
    thread.start()
    thread.join()
    assert outcomes[0].reason == "all steps done"
    assert signal.getsignal(signal.SIGINT) is handler
