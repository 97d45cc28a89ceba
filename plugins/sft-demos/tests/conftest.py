"""A cache and a package index for each test: folders, archives built here, and no network."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# A backend inside the archive needs nothing from an index, and leaves a trace when pip runs it.
BACKEND = """
import os, pathlib
def get_requires_for_build_wheel(settings=None):
    pathlib.Path(os.environ["TRACE"]).write_text("ran")
    return []
def prepare_metadata_for_build_wheel(folder, settings=None):
    info = pathlib.Path(folder, "tiny-1.0.dist-info")
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: tiny\\nVersion: 1.0\\n")
    return info.name
def build_wheel(folder, settings=None, metadata=None):
    raise NotImplementedError
"""
PYPROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
METADATA = "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n"


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The cache folder of this test, not made yet."""
    monkeypatch.setenv("SFT_ENGINE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "demos"


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Path) -> Iterator[Path]:
    """The only place where pip looks: an empty folder, until a test puts an archive in it."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("TRACE", str(tmp_path / "trace"))
    yield folder
    if cache.exists():
        assert not list(cache.glob(".*.partial-*")), "something half-written was left behind"


def zip_of(path: Path, files: dict[str, str]) -> str:
    """Write a zip archive and return its SHA-256."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def wheel(index: Path) -> str:
    """Put tiny-1.0-py3-none-any.whl on the index and return its SHA-256."""
    info = "tiny-1.0.dist-info"
    files = {
        "tiny/model/config.json": "{}",
        f"{info}/METADATA": METADATA,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    return zip_of(index / "tiny-1.0-py3-none-any.whl", files)


@pytest.fixture
def sdist(index: Path) -> str:
    """Put tiny-1.0.zip, a source archive, on the index and return its SHA-256."""
    files = {"PKG-INFO": METADATA, "pyproject.toml": PYPROJECT, "backend.py": BACKEND}
    return zip_of(index / "tiny-1.0.zip", {f"tiny-1.0/{name}": files[name] for name in files})


def _deb_of(files: dict[str, str], compression: str = "xz") -> bytes:
    """Build a package: an ar archive of three members, the last with the files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as inner:
        for name, content in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            inner.addfile(member, io.BytesIO(content.encode()))
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": b"odd",
        f"data.tar.{compression}": buffer.getvalue(),
    }
    parts = [b"!<arch>\n"]
    for name, content in members.items():
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        parts += [header, content, b"\n" * (len(content) % 2)]
    return b"".join(parts)


@pytest.fixture
def deb_of() -> Callable[..., bytes]:
    """The function that builds a Debian package."""
    return _deb_of
