"""Unpacking: all of it or nothing, and never outside the folder."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import pytest

from sft_demos.unpack import unpack
from sft_engine import DataError


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "cache" / "tiny-1.0.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("tiny/", "")
        opened.writestr("tiny/weights", "w" * 1000)
        opened.writestr("tiny/config.json", "{}")
    return path


def test_folder_is_named_after_the_archive_and_made_once(archive: Path) -> None:
    folder = unpack(archive)
    assert folder == archive.parent / "tiny-1.0"
    assert (folder / "tiny" / "config.json").read_text() == "{}"
    first = folder.stat().st_ino
    assert unpack(archive).stat().st_ino == first


@pytest.mark.parametrize("harm", ["missing", "shorter"])
def test_incomplete_folder_is_made_anew(archive: Path, harm: str) -> None:
    weights = unpack(archive) / "tiny" / "weights"
    if harm == "missing":
        weights.unlink()
    else:
        weights.write_text("w" * 999)
    unpack(archive)
    assert weights.read_text() == "w" * 1000


@pytest.mark.parametrize(
    "name",
    ["../evil", "tiny/../../evil", "/evil", "C:/evil", "C:evil", "..\\evil", "//host/share/evil"],
)
def test_path_that_leads_outside_is_refused(archive: Path, name: str) -> None:
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr(name, "gotcha")
    with pytest.raises(DataError, match="unsafe path"):
        unpack(archive)
    assert [path.name for path in archive.parent.iterdir()] == [archive.name]
    assert not list(archive.parent.parent.glob("**/*evil*"))


def test_symbolic_link_is_refused(archive: Path) -> None:
    link = zipfile.ZipInfo("tiny/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match="unsafe path 'tiny/link'"):
        unpack(archive)


@pytest.mark.parametrize("harm", ["not a zip", "cut short", "flipped byte"])
def test_damaged_archive_leaves_nothing(archive: Path, harm: str) -> None:
    content = archive.read_bytes()
    damaged = {
        "not a zip": b"<html>503</html>",
        "cut short": content[:500],
        "flipped byte": content.replace(b"www", b"wvw", 1),
    }
    archive.write_bytes(damaged[harm])
    with pytest.raises(DataError, match=r"tiny-1\.0\.whl cannot be unpacked .*: delete it"):
        unpack(archive)
    assert not archive.with_suffix("").exists()
    assert not list(archive.parent.glob(".*.partial-*"))


def test_no_room_is_a_sentence(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "extractall", full)
    with pytest.raises(DataError, match=r"cannot write .*No space left on device"):
        unpack(archive)
    assert not list(archive.parent.glob(".*.partial-*"))
