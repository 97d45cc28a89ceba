"""Fetching with pip: from a folder that plays the package index, so that no network is needed."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest
from platformdirs import user_cache_dir

from sft_demos.cache import cache_folder
from sft_demos.fetch import fetch
from sft_engine import DataError

WHEEL = "tiny-1.0-py3-none-any.whl"
SDIST = "tiny-1.0.zip"


def test_wheel_is_fetched_once(
    index: Path, cache: Path, wheel: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = fetch("tiny", "1.0", wheel, WHEEL, megabytes=0.04)
    assert path == cache / WHEEL
    assert path.read_bytes() == (index / WHEEL).read_bytes()
    out, err = capfd.readouterr()
    assert out == ""
    assert err == f"sft-demos: downloading {WHEEL} (0.0 MB) to {cache}\n"

    (index / WHEEL).unlink()  # a second download would fail
    assert fetch("tiny", "1.0", wheel, WHEEL) == path
    assert capfd.readouterr() == ("", "")


def test_source_archive_is_fetched_and_not_the_wheel(
    index: Path, cache: Path, wheel: str, sdist: str
) -> None:
    assert fetch("tiny", "1.0", sdist, SDIST, source=True) == cache / SDIST


def test_wrong_source_archive_is_deleted_and_none_of_its_code_runs(
    cache: Path, sdist: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=rf"{SDIST} .* has SHA-256 {sdist}, .* deleted unopened"):
        fetch("tiny", "1.0", "0" * 64, SDIST, source=True)
    assert not (cache / SDIST).exists()
    assert not (tmp_path / "trace").exists()

    fetch("tiny", "1.0", sdist, SDIST, source=True)
    assert (tmp_path / "trace").exists()  # so the absence above means something


def test_damaged_copy_in_the_cache_is_replaced(cache: Path, wheel: str) -> None:
    cache.mkdir(parents=True)
    (cache / WHEEL).write_bytes(b"half a download")
    path = fetch("tiny", "1.0", wheel, WHEEL)
    assert path.stat().st_size > 100


def test_archive_put_there_by_hand_needs_no_download_and_no_write(
    index: Path, cache: Path, wheel: str
) -> None:
    cache.mkdir(parents=True)
    (index / WHEEL).rename(cache / WHEEL)
    assert fetch("tiny", "1.0", wheel, WHEEL) == cache / WHEEL
    assert [path.name for path in cache.iterdir()] == [WHEEL]


def test_missing_package_names_pips_reason_and_the_way_out(index: Path, cache: Path) -> None:
    with pytest.raises(DataError) as caught:
        fetch("tiny", "1.0", "0" * 64, WHEEL)
    assert str(caught.value) == (
        f"cannot fetch {WHEEL}: pip says 'No matching distribution found for tiny==1.0'; check the "
        "network and the package index that pip uses (`pip config list`), or put the file at "
        f"{cache / WHEEL} yourself."
    )


def test_unreachable_index_is_one_sentence(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nothing listens there
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(DataError, match=r"^cannot fetch .* check the network .* yourself\.$"):
        fetch("tiny", "1.0", "0" * 64, WHEEL)


def test_python_without_pip(
    index: Path, wheel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    python = str(tmp_path / "bare" / "bin" / "python")
    monkeypatch.setattr(sys, "executable", python)
    with pytest.raises(DataError, match=rf"no pip \({python}\); run `python -m ensurepip`"):
        fetch("tiny", "1.0", wheel, WHEEL)


def test_a_folder_called_pip_where_the_user_stands_is_not_run(
    wheel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pip.py").write_text("raise SystemExit('hijacked')")
    monkeypatch.chdir(tmp_path)
    assert fetch("tiny", "1.0", wheel, WHEEL).is_file()


def test_unwritable_cache(index: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(DataError, match=r"cannot write .*set SFT_ENGINE_CACHE to a folder"):
        fetch("tiny", "1.0", "0" * 64, WHEEL)


def test_remains_of_a_killed_process_are_removed(cache: Path, wheel: str) -> None:
    remains = cache / f".{WHEEL}.partial-killed"
    remains.mkdir(parents=True)
    (remains / "half").write_text("a download")
    fetch("tiny", "1.0", wheel, WHEEL)
    assert not remains.exists()


def test_two_processes_at_once_download_once(cache: Path, wheel: str) -> None:
    code = (
        "from sft_demos.fetch import fetch; from sft_demos.unpack import unpack;"
        f"print(unpack(fetch('tiny', '1.0', '{wheel}', '{WHEEL}')))"
    )
    pipe = subprocess.PIPE
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate() for process in running]
    folder = cache / WHEEL.removesuffix(".whl")
    assert [out for out, _ in outputs] == [f"{folder}\n"] * 2
    assert sorted(err.count("downloading") for _, err in outputs) == [0, 1]
    assert (folder / "tiny" / "model" / "config.json").read_text() == "{}"


def test_cache_is_the_users_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFT_ENGINE_CACHE", "~/elsewhere")
    assert cache_folder() == Path.home() / "elsewhere" / "demos"
    monkeypatch.setenv("SFT_ENGINE_CACHE", "")
    assert cache_folder() == Path(user_cache_dir("sft-engine", appauthor=False)) / "demos"
