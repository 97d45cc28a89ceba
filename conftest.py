"""What holds for every test of the repository: one thread, no network, no cache of the user."""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
import tempfile
from typing import Any

import pytest

# Read when torch, datasets and tokenizers are imported; a conftest is the last place before that.
_datasets = tempfile.mkdtemp(prefix="sft-engine-datasets-")
os.environ |= {
    "HF_DATASETS_CACHE": _datasets,
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def pytest_unconfigure() -> None:
    shutil.rmtree(_datasets, ignore_errors=True)


@pytest.fixture(autouse=True)
def stay_local(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Keep a test off the network and out of the user's cache, unless it is marked `demo`."""
    if request.node.get_closest_marker("demo"):
        return
    monkeypatch.setenv("SFT_ENGINE_CACHE", str(tmp_path_factory.mktemp("cache")))
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_loopback(address[0]):
            pytest.fail(f"this test wants to connect to {address}; mark it `demo` or keep it local")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
