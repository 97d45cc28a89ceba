"""Unpacks a zip archive (a wheel is one) into the cache: all of it or nothing, never outside."""

from __future__ import annotations

import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath, PureWindowsPath

from sft_demos.cache import exclusive, scratch
from sft_engine import DataError

_UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)
"""What zipfile raises for an archive that is damaged, encrypted or of an unknown compression."""


def unpack(archive: Path) -> Path:
    """Return the folder beside `archive`, named as it without suffix, that holds its files.

    The folder is made if it is missing, and made anew if a file in it is missing or has another
    size (a cleaner of old files came by). Verify the archive before.

    Raises:
        DataError: The archive is damaged, wants to write outside the folder, or there is no room.
    """
    target = archive.with_suffix("")
    try:
        with zipfile.ZipFile(archive) as opened:
            members = opened.infolist()
            _check(archive, members)
            if not _is_complete(target, members):
                with exclusive(target):
                    if not _is_complete(target, members):
                        _extract(opened, target)
    except _UNREADABLE as error:
        raise DataError(
            f"{archive} cannot be unpacked ({error}): delete it, so that it is fetched again."
        ) from error
    return target


def _check(archive: Path, members: list[zipfile.ZipInfo]) -> None:
    """Refuse the archive for one member that is a link or leads outside; zipfile renames it."""
    for member in members:
        name = PurePosixPath(member.filename)
        outside = name.is_absolute() or ".." in name.parts or PureWindowsPath(name).anchor
        if outside or "\\" in member.filename or stat.S_ISLNK(member.external_attr >> 16):
            raise DataError(
                f"{archive} holds the unsafe path '{member.filename}': nothing was unpacked; "
                "delete the archive."
            )


def _is_complete(target: Path, members: list[zipfile.ZipInfo]) -> bool:
    """Compare names and sizes; the contents were checked when they were unpacked."""
    try:
        return all(
            member.is_dir() or (target / member.filename).stat().st_size == member.file_size
            for member in members
        )
    except OSError:
        return False


def _extract(opened: zipfile.ZipFile, target: Path) -> None:
    """Unpack beside the target, then put it in place in one move."""
    with scratch(target) as folder:
        files = folder / "files"
        files.mkdir()
        opened.extractall(files)
        if target.exists():
            shutil.rmtree(target)
        files.replace(target)
