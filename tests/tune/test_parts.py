"""The space, the locks and the journal by themselves."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sft_engine.tuning.locks import FileLock, JournalLock
from sft_engine.tuning.space import read_space, split_values


def test_domains_and_plain_overrides():
    space, fixed = read_space(
        [
            "optimizer.lr=log(1e-6, 1e-3)",
            "train.epochs = int(1, 4)",
            "a.b=uniform(0, 1, 0.25)",
            "train.batch_size=log_int(8, 256)",
            "schedule.use=one_of(linear, cosine)",
            "train.steps=3",
            "freezing.pattern=encoder(.*)",
        ]
    )
    assert list(space) == [
        "optimizer.lr",
        "train.epochs",
        "a.b",
        "train.batch_size",
        "schedule.use",
    ]
    assert fixed == ["train.steps=3", "freezing.pattern=encoder(.*)"]
    lr, epochs, share, size, use = (domain.distribution() for domain in space.values())
    assert (lr.low, lr.high, lr.log, lr.step) == (1e-6, 1e-3, True, None)
    assert (epochs.low, epochs.high, epochs.log, epochs.step) == (1, 4, False, 1)
    assert (share.low, share.high, share.step) == (0.0, 1.0, 0.25)
    assert (size.low, size.high, size.log) == (8, 256, True)
    assert use.choices == ("linear", "cosine")


def test_values_are_written_so_that_they_are_read_back_equal():
    space, _ = read_space(["a=log(1e-6, 1e-3)", "b=int(1, 4)", "c=one_of([0.9, 0.99], [0.8, 0.9])"])
    assert float(space["a"].write(1.2345678901234567e-05)) == 1.2345678901234567e-05
    assert space["b"].write(3) == "3"
    assert space["c"].samples == ("[0.9, 0.99]", "[0.8, 0.9]")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a, b", ["a", "b"]),
        ("[1, 2], {x = 1, y = 2}", ["[1, 2]", "{x = 1, y = 2}"]),
        ("'a, b', \"c]\"", ["'a, b'", '"c]"']),
        ("", []),
    ],
)
def test_commas_in_brackets_and_quotes_do_not_split(text, parts):
    assert split_values(text) == parts


def test_a_lock_is_gone_with_its_process(tmp_path):
    path = tmp_path / "lock"
    code = (
        "import sys, pathlib\n"
        "from sft_engine.tuning.locks import FileLock\n"
        "FileLock(pathlib.Path(sys.argv[1])).acquire()\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "held\n"
    assert not FileLock(path).acquire(wait=False)
    holder.kill()
    holder.communicate()
    with FileLock(path):
        assert not FileLock(path).acquire(wait=False)
    assert FileLock(path).acquire(wait=False)


@pytest.mark.parametrize("length", [1, 900, 100_000])
@pytest.mark.parametrize("whole", [0, 1, 3])
def test_a_torn_line_is_taken_away(tmp_path, whole, length):
    journal = tmp_path / "journal.log"
    lines = b'{"op": 1}\n' * whole
    journal.write_bytes(lines + b"x" * length)
    lock = JournalLock(tmp_path / "lock", journal)
    lock.acquire()
    lock.release()
    assert journal.read_bytes() == lines
