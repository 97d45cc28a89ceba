"""Photo stamps: out of a package built here; then the real one."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from sft_demos import stamps
from sft_demos.stamps import PhotoStamps
from sft_engine import DataError

FILES = (
    "./usr/share/tuxpaint/stamps/animals/birds/owl.png",
    "./usr/share/tuxpaint/stamps/animals/birds/owl.txt",
    "./usr/share/tuxpaint/stamps/animals/fish/eel.png",
    "./usr/share/tuxpaint/stamps/food/fruit/fig.png",
    "./usr/share/tuxpaint/stamps/symbols/dot.png",
    "./usr/share/other.png",
)


@pytest.fixture
def package(
    tmp_path: Path,
    cache: Path,
    deb_of: Callable[..., bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A package with two classes, as all that the real one should have."""
    path = tmp_path / "stamps.deb"
    path.write_bytes(deb_of({name.removeprefix("./"): name for name in FILES}))
    monkeypatch.setattr(stamps, "fetch_deb", lambda *_, **__: path)
    monkeypatch.setattr(stamps, "PHOTOS", {"animals": 2, "food": 1})
    return path


def test_rows_are_the_photos_of_the_classes(package: Path, cache: Path) -> None:
    rows = PhotoStamps().load()["train"]
    assert rows["image"][:] == [
        {"bytes": FILES[0].encode(), "path": "animals/birds/owl.png"},
        {"bytes": FILES[2].encode(), "path": "animals/fish/eel.png"},
        {"bytes": FILES[3].encode(), "path": "food/fruit/fig.png"},
    ]
    assert rows["label"][:] == ["animals", "animals", "food"]
    assert rows["kind"][:] == ["birds", "fish", "fruit"]
    assert len(list(cache.glob("tuxpaint-stamps/**/*.png"))) == 3


def test_package_is_not_needed_again_unless_a_file_is_gone(package: Path, cache: Path) -> None:
    first = PhotoStamps().load()["train"].to_dict()
    content = package.read_bytes()
    package.unlink()
    assert PhotoStamps().load()["train"].to_dict() == first
    package.write_bytes(content)
    (cache / "tuxpaint-stamps/food/fruit/fig.png").unlink()
    assert PhotoStamps().load()["train"].to_dict() == first


def test_package_with_other_pictures_leaves_nothing(
    package: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stamps, "PHOTOS", {"animals": 3, "food": 1})
    with pytest.raises(DataError, match="holds other pictures"):
        PhotoStamps().load()
    assert not list(cache.glob("*tuxpaint-stamps/*"))


@pytest.mark.parametrize(
    ("classes", "found"),
    [(["cats", "food"], "found 'cats'"), (["food", "food"], "found one class")],
)
def test_classes_are_checked(classes: list[str], found: str) -> None:
    with pytest.raises(ValueError, match=f"data.classes: {found}, allowed are two or more of anim"):
        PhotoStamps(classes=classes)


@pytest.mark.demo
def test_the_real_photos() -> None:
    from PIL import Image

    rows = PhotoStamps().load()["train"]
    assert Counter(rows["label"][:]) == stamps.PHOTOS
    assert len(rows) == 466
    sizes = []
    for each in rows["image"]:
        with Image.open(io.BytesIO(each["bytes"])) as image:
            assert image.format == "PNG"
            sizes.append(min(image.size))
    assert min(sizes) == 7  # shared notes: the smallest is 20 x 7
    assert len(PhotoStamps(classes=["animals", "food"]).load()["train"]) == 213


def test_tar_paths_that_lead_elsewhere_are_no_photos() -> None:
    root = "./usr/share/tuxpaint/stamps"
    assert stamps._photo(f"{root}/animals/../../evil.png") is None
    assert stamps._photo("/usr/share/tuxpaint/stamps/animals/a.png") is None
    assert stamps._photo(f"{root}/animals/birds/owl.png") is not None
    link = tarfile.TarInfo(f"{root}/animals/birds/owl.png")
    link.type = tarfile.SYMTYPE
    assert not link.isfile()  # links are left out by this
