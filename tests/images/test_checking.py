from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pictures
import pytest
from datasets import Dataset, Features, Image, Value
from pictures import lossless, noise

from sft_engine import DataError
from sft_engine.builtin.image_data import ImageFolder
from sft_engine.builtin.tasks import ImageClassification, TextClassification
from sft_engine.columns import IMAGE_DIGEST, IMAGE_HEIGHT, IMAGE_WIDTH, with_folder
from sft_engine.file_columns import NAMED
from sft_engine.flow import Seeds
from sft_engine.images import checking
from sft_engine.images.checking import cache_file, checked, located
from sft_engine.preflight import preflight
from sft_engine.preparation import fingerprint, prepare_given, prepare_splits
from sft_engine.settings import DataSettings

SEEDS = Seeds(0, 0, 0, 0)


def rows_of(*values, **more):
    return Dataset.from_dict({"image": list(values), **more})


def looks(monkeypatch):
    """Record what is decoded."""
    seen = []
    look = checking.look
    monkeypatch.setattr(checking, "look", lambda value: seen.append(value) or look(value))
    return seen


@pytest.fixture
def photos(tmp_path):
    return pictures.write_photos(tmp_path / "photos")


def prepared(folder, task=None, **settings):
    settings = {"validation": 0, "test": 0} | settings
    raw = ImageFolder(str(folder)).load()
    return prepare_splits(raw, DataSettings(**settings), task or ImageClassification(), SEEDS)


def test_facts_become_columns():
    data = [lossless(noise(20)), lossless(noise(30)), lossless(noise(20)), pictures.rotated_jpeg()]
    found = checked(rows_of(*data), "train", skip=False)
    assert found[IMAGE_WIDTH][:] == [20, 30, 20, pictures.WIDTH]
    assert found[IMAGE_HEIGHT][:] == [20, 30, 20, pictures.HEIGHT]
    digests = found[IMAGE_DIGEST][:]
    assert digests[0] == digests[2]
    assert len(set(digests)) == 3
    assert checked(found, "train", skip=False) is found


def test_arrays_have_facts_too():
    array = np.arange(24, dtype=np.uint8).reshape(4, 6).tolist()
    found = checked(rows_of(array, array[::-1]), "train", skip=False)
    assert (found[IMAGE_WIDTH][0], found[IMAGE_HEIGHT][0]) == (6, 4)
    assert len(set(found[IMAGE_DIGEST][:])) == 2


def test_stop_names_every_broken_image_with_path_and_reason(photos):
    for picture in pictures.BROKEN:
        (photos / "a" / picture.file).write_bytes(picture.make())
    with pytest.raises(DataError) as raised:
        prepared(photos)
    said = str(raised.value)
    assert f"{len(pictures.BROKEN)} of {len(pictures.BROKEN) + 2 * pictures.GOOD} images" in said
    for picture in pictures.BROKEN:
        assert f"'{photos / 'a' / picture.file}' (row " in said
        assert picture.problem in said
    assert 'on_error = "skip"' in said


def test_a_sentence_names_so_many_and_counts_the_rest():
    rows = rows_of(*[b"x"] * (NAMED + 5))
    with pytest.raises(DataError, match=r"row 19: .*; and 5 more\.") as raised:
        checked(rows, "train", skip=False)
    assert "row 20" not in str(raised.value)


def test_skip_warns_of_each_and_leaves_the_rest_as_if_they_had_never_been(photos, caplog):
    expected = prepared(photos)["train"]
    for picture in pictures.BROKEN:
        (photos / "b" / picture.file).write_bytes(picture.make())
    with caplog.at_level(logging.WARNING, "sft_engine"):
        found = prepared(photos, on_error="skip")["train"]
    assert found["image"][:] == expected["image"][:]
    assert found["label"][:] == expected["label"][:]
    for picture in pictures.BROKEN:
        (said,) = [m for m in caplog.messages if f"/{picture.file}'" in m]
        assert picture.problem in said
        assert said.endswith("left out")


def test_skipping_comes_before_drawing(photos):
    (photos / "a" / "broken.png").write_bytes(b"")
    splits = prepared(photos, on_error="skip", test=2, validation=2)
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [4, 2, 2]


def test_nothing_but_broken_images(tmp_path):
    with pytest.raises(DataError, match="none of 2 images can be used"):
        checked(rows_of(b"", b"x"), "train", skip=True)


def test_stop_looks_at_the_images_that_are_used_alone(photos, monkeypatch):
    seen = looks(monkeypatch)
    prepared(photos, subset=4)
    assert len(seen) == 4
    assert len(prepared(photos, validation=2, test=2)["train"]) == 4
    assert len(seen) == 8  # those of the first time are known


def test_what_is_known_of_a_file_is_kept_until_it_changes(photos, monkeypatch):
    (photos / "a" / "broken.png").write_bytes(b"no")
    seen = looks(monkeypatch)
    with pytest.raises(DataError, match="not an image"):
        prepared(photos)
    assert len(seen) == 2 * pictures.GOOD + 1
    with pytest.raises(DataError, match="not an image"):
        prepared(photos)
    assert len(seen) == 2 * pictures.GOOD + 1
    (photos / "a" / "broken.png").write_bytes(lossless(noise()))
    assert len(prepared(photos)["train"]) == 2 * pictures.GOOD + 1
    assert len(seen) == 2 * pictures.GOOD + 2
    assert cache_file().parent.parent == Path(os.environ["SFT_ENGINE_CACHE"])


def test_a_file_that_is_missing_is_looked_for_again(tmp_path):
    rows = rows_of(str(tmp_path / "a.png"))
    with pytest.raises(DataError, match="no such file"):
        checked(rows, "train", skip=False)
    (tmp_path / "a.png").write_bytes(lossless(noise()))
    assert len(checked(rows, "train", skip=False)) == 1


@pytest.mark.parametrize("damage", ["a folder", "no database", "a file in the way"])
def test_without_a_cache_the_run_goes_on(damage, tmp_path, monkeypatch):
    if damage == "a folder":
        cache_file().mkdir(parents=True)
    elif damage == "no database":
        cache_file().parent.mkdir(parents=True)
        cache_file().write_bytes(b"nothing of the kind" * 100)
    else:
        (tmp_path / "cache").write_text("")
        monkeypatch.setenv("SFT_ENGINE_CACHE", str(tmp_path / "cache"))
    found = checked(rows_of(lossless(noise(20))), "train", skip=False)
    assert found[IMAGE_WIDTH][:] == [20]


def test_a_database_of_another_shape_is_left_alone(monkeypatch):
    import sqlite3

    cache_file().parent.mkdir(parents=True)
    connection = sqlite3.connect(cache_file())
    connection.execute("CREATE TABLE facts (key TEXT)")
    connection.close()
    assert len(checked(rows_of(lossless(noise(20))), "train", skip=False)) == 1


# --- columns -------------------------------------------------------------------------------------


def test_relative_paths_start_in_the_folder_of_their_file(tmp_path):
    rows = located(rows_of("a/b.png", None, "/c.png", row=[0, 1, 2]), "train", tmp_path)
    assert rows["image"][:] == [f"{tmp_path}/a/b.png", None, "/c.png"]
    features = Features({"image": Image(decode=False)})
    values = [{"bytes": None, "path": "a.png"}, {"bytes": b"x", "path": "b.png"}]
    rows = Dataset.from_dict({"image": values}, features=features).add_column("row", [0, 1])
    found = located(rows, "train", tmp_path)["image"][:]
    assert found == [{"bytes": None, "path": f"{tmp_path}/a.png"}, values[1]]


def test_columns_of_datasets_are_not_decoded_by_datasets():
    rows = Dataset.from_dict({"image": [noise(8)]}, features=Features({"image": Image()}))
    found = located(rows, "train", Path())
    assert isinstance(found["image"][0]["bytes"], bytes)


@pytest.mark.parametrize(
    "rows", [rows_of(1, 2), Dataset.from_dict({"image": [{"file": "a.png"}]}), rows_of(1.5)]
)
def test_a_column_of_something_else_is_refused(rows):
    with pytest.raises(DataError, match=r"split 'test': the column 'image' holds .* data.columns"):
        located(rows, "test", Path())


def test_the_hash_of_a_split_is_that_of_its_images_and_not_of_their_place(tmp_path):
    found = []
    for name in ("one", "two"):
        folder = pictures.write_photos(tmp_path / name)
        found.append(fingerprint(prepared(folder)["train"]))
    assert found[0] == found[1]
    (tmp_path / "two" / "a" / "good0.png").write_bytes(lossless(noise()))
    assert fingerprint(prepared(tmp_path / "two")["train"]) != found[0]


def test_other_data_is_checked_too(photos):
    rows = with_folder(rows_of("a/good1.png", "a/gone.png", label=["a", "b"]), photos)
    settings = DataSettings(label_names=("a", "b"))
    with pytest.raises(DataError, match=r"gone\.png' \(row 1\): there is no such file"):
        prepare_given({"test": rows}, settings, ImageClassification())
    skipping = DataSettings(label_names=("a", "b"), on_error="skip")
    assert len(prepare_given({"test": rows}, skipping, ImageClassification())["test"]) == 1


def test_a_task_about_texts_leaves_a_column_of_that_name_alone():
    rows = Dataset.from_dict(
        {"image": [1, 2], "text": ["a", "b"], "label": ["x", "y"]},
        features=Features(
            {"image": Value("int64"), "text": Value("string"), "label": Value("string")}
        ),
    )
    settings = DataSettings(validation=0, test=0)
    found = prepare_splits({"train": rows}, settings, TextClassification(), SEEDS)
    assert found["train"]["image"][:] == [1, 2]


# --- preflight -----------------------------------------------------------------------------------


def test_preflight_finds_duplicates_by_content_and_tiny_images(tmp_path):
    for split, sizes in (("train", (40, 41, 42)), ("test", (43, 8))):
        for label in ("a", "b"):
            (tmp_path / split / label).mkdir(parents=True)
            for size in sizes:
                image = noise(size) if label == "a" else noise(size).rotate(180)
                (tmp_path / split / label / f"{size}.png").write_bytes(lossless(image))
    (tmp_path / "train" / "b" / "copy.png").write_bytes(lossless(noise(40)))
    (tmp_path / "test" / "a" / "seen.png").write_bytes(lossless(noise(41)))
    task = ImageClassification()
    found = [finding.message for finding in preflight(prepared(tmp_path, task), task)]
    assert any("1 of 7 (14.3%) training rows repeat" in m and "1 of them with" in m for m in found)
    assert any("1 of 5 (20.0%) rows of the split 'test' have an input that is" in m for m in found)
    assert any("2 of 5 (40.0%) images of the split 'test' are less than 16" in m for m in found)
    assert not any("split 'train' are less" in m for m in found)
