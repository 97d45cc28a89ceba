"""Fetching with apt-get and reading a package: with a program that plays apt, and packages built here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from sft_demos.apt import fetch_deb, files_of
from sft_engine import DataError

DEB = "tiny_1.0_all.deb"
MakeDeb = Callable[..., bytes]


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Path:
    """A folder of packages, and the only program on the path: an apt-get that copies from it."""
    folder, programs = tmp_path / "mirror", tmp_path / "bin"
    folder.mkdir()
    programs.mkdir()
    apt = programs / "apt-get"
    apt.write_text(
        '#!/bin/sh\n[ "$1 $2" = "download tiny=1.0" ] || exit 9\n'
        f'[ -e "{folder}/{DEB}" ] && exec /bin/cp "{folder}/{DEB}" .\n'
        'echo "W: something else"; echo "E: Unable to locate package tiny"; exit 100\n'
    )
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    return folder


def fetch(content: bytes) -> Path:
    return fetch_deb("tiny", "1.0", hashlib.sha256(content).hexdigest(), megabytes=0.1)


def test_package_is_fetched_once(mirror: Path, cache: Path, deb_of: MakeDeb) -> None:
    content = deb_of({"usr/a": "A"})
    (mirror / DEB).write_bytes(content)
    assert fetch(content) == cache / DEB
    (mirror / DEB).unlink()  # a second download would fail
    assert fetch(content).read_bytes() == content


def test_wrong_package_is_deleted(mirror: Path, cache: Path, deb_of: MakeDeb) -> None:
    (mirror / DEB).write_bytes(deb_of({"usr/a": "B"}))
    with pytest.raises(DataError, match=rf"^{DEB} from the apt mirror has SHA-256 .* deleted"):
        fetch(deb_of({"usr/a": "A"}))
    assert not (cache / DEB).exists()


def test_what_apt_says_is_passed_on(mirror: Path, cache: Path) -> None:
    with pytest.raises(DataError) as caught:
        fetch(b"")
    assert str(caught.value) == (
        f"cannot fetch {DEB}: apt says 'Unable to locate package tiny'; run `apt-get update` as root "
        f"and try again, or put the file of a Debian mirror at {cache / DEB} yourself."
    )


def test_machine_without_apt(
    mirror: Path, cache: Path, deb_of: MakeDeb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(mirror))
    with pytest.raises(DataError, match=r"^cannot fetch .*: this machine has no apt-get; .*\.$"):
        fetch(b"")
    content = deb_of({})
    (cache / DEB).write_bytes(content)  # put there by hand
    assert fetch(content) == cache / DEB


@pytest.mark.parametrize("compression", ["xz", "gz"])
def test_files_of_a_package(tmp_path: Path, deb_of: MakeDeb, compression: str) -> None:
    path = tmp_path / DEB
    path.write_bytes(deb_of({"usr/a": "A", "usr/b": "BB"}, compression))
    with files_of(path) as opened:
        found = {m.name: opened.extractfile(m).read() for m in opened}
    assert found == {"./usr/a": b"A", "./usr/b": b"BB"}


@pytest.mark.parametrize("damage", ["empty", "other", "short", "cut"])
def test_damaged_package(tmp_path: Path, deb_of: MakeDeb, damage: str) -> None:
    whole = deb_of({"usr/a": "A"})
    contents = {"empty": b"", "other": b"no package", "short": whole[:8], "cut": whole[:-120]}
    path = tmp_path / DEB
    path.write_bytes(contents[damage])
    with (
        pytest.raises(DataError, match=r"cannot be read \(.*\): delete it"),
        files_of(path) as opened,
    ):
        opened.getmembers()
