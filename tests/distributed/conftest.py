"""Groups of real processes, started from one that has imported everything (`forker.py`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # for `launchers`, which tests import
PATIENCE = 240
"""Seconds after which a group counts as hung; on an idle machine each takes a few."""


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in Path(item.path).parents:
            item.add_marker(pytest.mark.distributed)


@dataclass(frozen=True)
class Ranks:
    """What a group of processes left.

    Args:
        folder: Where it worked.
        codes: Exit codes by rank; None for one that did not end by itself.
        results: What the scenario returned, by rank; None if the process was killed.
    """

    folder: Path
    codes: list[int | None]
    results: list[dict | None]

    def errors(self, rank: int) -> str:
        """Return the standard error of a rank."""
        return (self.folder / f"rank{rank}.err").read_text()

    def __getitem__(self, name: str) -> list:
        """Return what every rank has under a name."""
        return [result[name] for result in self.results]


class Forker:
    """Runs scenarios on groups of processes."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.number = 0
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "forker.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def __call__(self, scenario, world=2, folder=None, environ=None, codes=None, **options):
        """Run a scenario; without expected `codes` every rank has to end well.

        Every rank that ends by itself must have been in a group of the size that was asked for.
        """
        self.number += 1
        folder = folder or self.scratch / f"{self.number:02d}-{scenario}-{world}"
        folder.mkdir(exist_ok=True)
        job = {
            "scenario": scenario,
            "world": world,
            "folder": str(folder),
            "environ": environ or {},
            "options": options,
            "patience": PATIENCE,
        }
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        ended = json.loads(self.process.stdout.readline())
        paths = [folder / f"rank{rank}.json" for rank in range(world)]
        results = [json.loads(p.read_text()) if p.exists() else None for p in paths]
        for path in paths:
            path.unlink(missing_ok=True)
        ranks = Ranks(folder, ended, results)
        messages = "\n".join(ranks.errors(rank) for rank in range(world))
        assert ended == (codes or [0] * world), messages[-4000:]
        assert {result["world"] for result in results if result} <= {world}
        return ranks


@pytest.fixture(scope="session")
def ranks(tmp_path_factory):
    """Return a function that runs a scenario on a group of processes."""
    forker = Forker(tmp_path_factory.mktemp("ranks"))
    yield forker
    forker.process.kill()
    forker.process.communicate()


@pytest.fixture(scope="module")
def one(request, ranks):
    """The runs `CASES` of a test's module, each in one process."""
    return ranks("runs", world=1, cases=request.module.CASES)


@pytest.fixture(scope="module")
def two(request, ranks):
    """The same runs, each on two processes."""
    return ranks("runs", cases=request.module.CASES)
