"""Fetches a Debian package with apt-get, and reads files out of it; nothing is installed.

apt is used because it knows the machine's mirrors and proxy. What it fetched is trusted only for its
SHA-256. The package is read by Python itself, so that a file put into the cache by hand is enough
where there is no apt: on another Linux, on a Mac.
"""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from sft_demos.fetch import obtain
from sft_engine import DataError

MIRROR = ("the apt mirror", "check the mirrors that apt uses (/etc/apt/sources.list)")
"""Where apt fetches from, and what to look at if something else came from there."""
_MAGIC = b"!<arch>\n"
_HEADER = 60
_NAME, _SIZE = slice(0, 16), slice(48, 58)


def fetch_deb(
    package: str, version: str, sha256: str, *, architecture: str = "all", megabytes: float
) -> Path:
    """Return the verified package in the cache, downloading it first if it is not there.

    Args:
        package: Its name in Debian.
        version: Exact version.
        sha256: Of the file, 64 hexadecimal digits.
        architecture: As in the name of the file.
        megabytes: Size to announce on stderr before the download.

    Raises:
        DataError: There is no apt, it cannot fetch the package, or another file came.
    """
    filename = f"{package}_{version}_{architecture}.deb"

    def download(folder: Path, target: Path) -> None:
        _apt_download(f"{package}={version}", folder, target)

    return obtain(filename, sha256, download, MIRROR, megabytes)


def _apt_download(pinned: str, folder: Path, target: Path) -> None:
    apt = shutil.which("apt-get")
    if apt is None:
        raise DataError(
            f"cannot fetch {target.name}: this machine has no apt-get; download that file from a "
            f"Debian mirror (pool/main/t/tuxpaint-stamps) and put it at {target}, or use other data."
        )
    done = subprocess.run(
        [apt, "download", pinned],
        cwd=folder,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode != 0:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()] or ["nothing"]
        errors = [line[2:].strip() for line in lines if line.startswith("E:")]
        reason = (errors or lines)[-1].rstrip(".")
        raise DataError(
            f"cannot fetch {target.name}: apt says '{reason}'; run `apt-get update` as root and try "
            f"again, or put the file of a Debian mirror at {target} yourself."
        )


@contextmanager
def files_of(deb: Path) -> Iterator[tarfile.TarFile]:
    """Open the files that a package would install, to be read one after the other.

    A package is an `ar` archive (deb(5)) whose member `data.tar.*` holds them.

    Raises:
        DataError: The file is no package, or is damaged.
    """
    try:
        with deb.open("rb") as file:
            _seek_data(file)
            with tarfile.open(fileobj=file, mode="r|*") as opened:
                yield opened
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise DataError(
            f"{deb} cannot be read ({error}): delete it, so that it is fetched again."
        ) from error


def _seek_data(file: IO[bytes]) -> None:
    """Go to where the member `data.tar.*` begins. Raises ValueError if there is none."""
    if file.read(len(_MAGIC)) != _MAGIC:
        raise ValueError("it is no Debian package")
    while len(header := file.read(_HEADER)) == _HEADER:
        if header[_NAME].startswith(b"data.tar"):
            return
        size = int(header[_SIZE])
        file.seek(size + size % 2, 1)  # members begin at even places
    raise ValueError("it has no data.tar")
