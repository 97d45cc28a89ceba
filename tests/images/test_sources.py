from __future__ import annotations

import json
import logging

import datasets
import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from pictures import lossless, noise

from sft_engine import DataError, RecipeError
from sft_engine.builtin.data import Csv, Function, HfDataset, JsonLines, Parquet
from sft_engine.builtin.image_data import Arrays, ImageFolder, image_files, read_folder
from sft_engine.builtin.tasks import ImageClassification
from sft_engine.columns import IMAGE_WIDTH, folder_of
from sft_engine.flow import Seeds
from sft_engine.images import decode
from sft_engine.preparation import prepare_splits
from sft_engine.settings import DataSettings

SIZES = (20, 21, 22, 23)


def prepared(source, **settings):
    settings = {"validation": 0, "test": 0} | settings
    task = ImageClassification()
    return prepare_splits(source.load(), DataSettings(**settings), task, Seeds(0, 0, 0, 0)), task


def write(folder, *names, size=20):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(lossless(noise(size)))


# --- image-folder --------------------------------------------------------------------------------


def test_a_folder_of_classes_is_the_training_split(tmp_path):
    write(tmp_path, "dog/2.png", "dog/more/1.JPG", "cat/10.png", "cat/9.png")
    splits = ImageFolder(str(tmp_path)).load()
    assert set(splits) == {"train"}
    rows = splits["train"]
    assert rows["image"][:] == ["cat/10.png", "cat/9.png", "dog/2.png", "dog/more/1.JPG"]
    assert rows["label"][:] == ["cat", "cat", "dog", "dog"]
    assert folder_of(rows) == tmp_path


@pytest.mark.parametrize("name", ["val", "Validation", "dev"])
def test_folders_of_splits(tmp_path, name):
    write(tmp_path, "train/a/1.png", "train/b/1.png", f"{name}/a/2.png", "test/b/3.png")
    write(tmp_path, "extra/c/4.png")
    splits = ImageFolder(str(tmp_path)).load()
    assert set(splits) == {"train", name, "test"}
    assert splits[name]["image"][:] == ["a/2.png"]
    found, task = prepared(ImageFolder({"train": f"{tmp_path}/train", "test": f"{tmp_path}/test"}))
    assert task.head.names == ("a", "b")
    assert found["test"]["label"][:] == [1]


def test_what_is_no_image_by_its_name_is_left_out_with_a_warning(tmp_path, caplog):
    write(tmp_path, "a/1.png", "a/.hidden.png", ".git/2.png", "b/3.webp")
    (tmp_path / "a" / "Thumbs.db").write_text("")
    (tmp_path / "a" / "notes.txt").write_text("")
    (tmp_path / "empty").mkdir()
    with caplog.at_level(logging.WARNING, "sft_engine"):
        rows = ImageFolder(str(tmp_path)).load()["train"]
    assert rows["image"][:] == ["a/1.png", "b/3.webp"]
    assert [m for m in caplog.messages if "2 files left out" in m and ".txt 1" in m]
    assert [m for m in caplog.messages if "empty' holds no image" in m]


def test_links_are_followed_once(tmp_path):
    write(tmp_path, "elsewhere/1.png")
    (tmp_path / "photos" / "a").mkdir(parents=True)
    (tmp_path / "photos" / "a" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "a" / "loop").symlink_to(tmp_path / "photos")
    found = list(image_files(tmp_path / "photos"))
    assert [file.name for file in found] == ["1.png"]


@pytest.mark.parametrize(
    ("make", "path", "words"),
    [
        ((), "photo", r"no folder .*photo.* did you mean `photos`"),
        ((), "nowhere/photos", r"correct data\.path"),
        (("photos/1.png",), "photos/1.png", "is a file"),
        (("photos/1.png",), "photos", r"has 1 images and no folder with images.*photos/CLASS"),
        ((), "photos", "has no image and no folder"),
    ],
)
def test_folders_that_are_none(tmp_path, make, path, words):
    (tmp_path / "photos").mkdir()
    write(tmp_path, *make)
    with pytest.raises(DataError, match=words):
        ImageFolder(str(tmp_path / path)).load()


def test_a_recipe_must_name_a_folder():
    with pytest.raises(RecipeError, match="names no folder"):
        ImageFolder({}).load()


def test_a_folder_without_classes_can_be_predicted(tmp_path):
    write(tmp_path, "2.png", "sub/1.png")
    rows = read_folder(tmp_path, labels=False)
    assert rows["image"][:] == ["2.png", "sub/1.png"]
    assert rows.column_names == ["image"]


# --- arrays --------------------------------------------------------------------------------------


def savez(path, **arrays):
    np.savez_compressed(path, **arrays)
    return str(path)


def pixels_of(rows):
    return [np.asarray(decode(value)) for value in rows["image"][:]]


@pytest.mark.parametrize("shape", [(8, 9), (8, 9, 1), (8, 9, 3), (8, 9, 4)])
def test_arrays_keep_every_pixel(tmp_path, shape):
    draws = np.random.default_rng(0)
    images = draws.integers(0, 256, (5, *shape), dtype=np.uint8)
    if shape[-1] == 4:
        images[..., 3] = 255
    path = savez(tmp_path / "a.npz", X=images, y=np.arange(5) % 2)
    (rows,) = Arrays(path).load().values()
    shown = images[..., 0] if shape[-1] == 1 else images[..., :3] if shape[-1] == 4 else images
    assert all(np.array_equal(a, b) for a, b in zip(pixels_of(rows), shown, strict=True))
    assert rows["label"][:] == [0, 1, 0, 1, 0]


@pytest.mark.parametrize(
    ("images", "white", "expected"),
    [
        (np.full((2, 4, 4), 0.5), 0, 128),
        (np.full((2, 4, 4), 8.0), 16, 128),
        (np.full((2, 4, 4), 16), 16, 255),
        (np.full((2, 4, 4), 200, np.int64), 0, 200),
        (np.full((2, 4, 4), 65535, np.uint16), 65535, 255),
        (np.ones((2, 4, 4), dtype=bool), 0, 255),
    ],
)
def test_other_numbers_are_scaled(tmp_path, images, white, expected):
    path = savez(tmp_path / "a.npz", X=images, y=[0, 1])
    rows = Arrays(path, white=white).load()["train"]
    assert {int(value) for image in pixels_of(rows) for value in np.unique(image)} == {expected}


def test_splits_in_one_file_and_in_several(tmp_path):
    images = np.zeros((3, 4, 4), np.uint8)
    one = savez(
        tmp_path / "a.npz", x_train=images, y_train=[0, 1, 2], x_test=images[:1], y_test=[1]
    )
    splits = Arrays(one).load()
    assert {name: rows["label"][:] for name, rows in splits.items()} == {
        "train": [0, 1, 2],
        "test": [1],
    }
    two = savez(tmp_path / "b.npz", pictures=images, digits=["a", "b", "c"])
    both = Arrays({"train": two, "test": two}, images="pictures", labels="digits").load()
    assert both["test"]["label"][:] == ["a", "b", "c"]
    assert set(Arrays({"test": one}).load()) == {"test"}
    unlabelled = savez(tmp_path / "c.npz", X=images)
    assert Arrays(unlabelled).load()["train"].column_names == ["image"]


def test_flat_rows_have_a_shape(tmp_path):
    images = np.arange(24, dtype=np.uint8).reshape(2, 12)
    path = savez(tmp_path / "a.npz", X=images, y=[0, 1])
    rows = Arrays(path, shape=[3, 4]).load()["train"]
    assert np.array_equal(pixels_of(rows)[1], images[1].reshape(3, 4))


@pytest.mark.parametrize(
    ("arrays", "options", "words"),
    [
        ({"a": np.zeros(3)}, {}, r"no array 'X' \(found: a\)"),
        ({"X": np.zeros((2, 4, 4)), "y": [1]}, {}, "2 images and 1 labels"),
        ({"X": np.zeros((150, 4)), "y": [1] * 150}, {}, r"shape \(150, 4\).*no image"),
        ({"X": np.zeros((2, 4, 4, 7)), "y": [1] * 2}, {}, r"shape \(2, 4, 4, 7\)"),
        ({"X": np.full((2, 4, 4), 16.0), "y": [0, 1]}, {}, r"white is 1; .*white = 16"),
        ({"X": np.full((2, 4, 4), -1), "y": [0, 1]}, {}, "from -1"),
        ({"X": np.full((2, 4, 4), "a"), "y": [0, 1]}, {}, "not numbers"),
        ({"X": np.zeros((2, 12)), "y": [0, 1]}, {"shape": [5, 5]}, r"shape \(2, 12\)"),
    ],
)
def test_arrays_that_are_no_images(tmp_path, arrays, options, words):
    with pytest.raises(DataError, match=words):
        Arrays(savez(tmp_path / "a.npz", **arrays), **options).load()


def test_files_that_are_none(tmp_path):
    (tmp_path / "text.npz").write_text("no zip")
    whole = tmp_path / "whole.npz"
    savez(whole, X=np.zeros((9, 4, 4)), y=np.zeros(9))
    (tmp_path / "half.npz").write_bytes(whole.read_bytes()[:200])
    np.save(tmp_path / "one.npy", np.zeros(3))
    np.savez(tmp_path / "objects.npz", X=np.array([{}, {}]), y=[0, 1])
    for name, words in {
        "text.npz": "damaged",
        "half.npz": "damaged",
        "one.npy": "one array",
        "objects.npz": "no .npz file of plain arrays",
        "none.npz": "no file",
    }.items():
        with pytest.raises(DataError, match=words):
            Arrays(str(tmp_path / name)).load()
    with pytest.raises(RecipeError, match="names no file"):
        Arrays({}).load()


# --- columns of the other sources ----------------------------------------------------------------


@pytest.fixture
def table(tmp_path):
    """Pictures of four sizes beside the files that name them."""
    for size in SIZES:
        write(tmp_path / "data", f"pics/{size}.png", size=size)
    return tmp_path / "data"


LABELS = ["a", "b", "a", "b"]


def paths():
    return [f"pics/{size}.png" for size in SIZES]


def write_csv(folder):
    lines = [f"{path},{label}\n" for path, label in zip(paths(), LABELS, strict=True)]
    (folder / "t.csv").write_text("".join(["file,label\n", *lines]))
    return Csv(str(folder / "t.csv"))


def write_jsonl(folder):
    rows = [{"file": path, "label": label} for path, label in zip(paths(), LABELS, strict=True)]
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return JsonLines(str(folder / "t.jsonl"))


def write_parquet_of_paths(folder):
    Dataset.from_dict({"file": paths(), "label": LABELS}).to_parquet(folder / "t.parquet")
    return Parquet(str(folder / "t.parquet"))


def write_parquet_of_bytes(folder):
    data = [(folder / path).read_bytes() for path in paths()]
    Dataset.from_dict({"file": data, "label": LABELS}).to_parquet(folder / "t.parquet")
    return Parquet(str(folder / "t.parquet"))


def images_of(folder):
    features = datasets.Features(
        {"file": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    files = [str(folder / path) for path in paths()]
    return Dataset.from_dict({"file": files, "label": [0, 1, 0, 1]}, features=features)


def write_parquet_of_datasets(folder):
    images_of(folder).to_parquet(folder / "t.parquet")
    return Parquet(str(folder / "t.parquet"))


def write_to_disk(folder):
    DatasetDict(train=images_of(folder)).save_to_disk(folder / "saved")
    return HfDataset(str(folder / "saved"))


def write_hf_folder_of_csv(folder):
    write_csv(folder)
    return HfDataset(str(folder))


def list_of_pictures(folder, monkeypatch):
    (folder / "made_pictures.py").write_text(
        "from PIL import Image\n"
        "def rows():\n"
        f"    return [{{'file': Image.new('RGB', (s, s), (s, 0, 0)), 'label': 'ab'[s % 2]}}\n"
        f"            for s in {SIZES}]\n"
    )
    monkeypatch.chdir(folder)
    return Function("made_pictures:rows")


@pytest.mark.parametrize(
    "make",
    [
        write_csv,
        write_jsonl,
        write_parquet_of_paths,
        write_parquet_of_bytes,
        write_parquet_of_datasets,
        write_to_disk,
        write_hf_folder_of_csv,
    ],
)
def test_a_column_of_paths_or_bytes_in_any_source(table, make, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # paths start in the folder of their file
    splits, task = prepared(make(table), columns={"image": "file"})
    rows = splits["train"]
    assert task.head.names == ("a", "b")
    assert rows["label"][:] == [0, 1, 0, 1]
    assert rows[IMAGE_WIDTH][:] == list(SIZES)
    assert [decode(value).width for value in rows["image"][:]] == list(SIZES)


def test_pictures_from_a_function(table, monkeypatch):
    splits, _ = prepared(list_of_pictures(table, monkeypatch), columns={"image": "file"})
    assert splits["train"][IMAGE_WIDTH][:] == list(SIZES)


def test_a_hugging_face_folder_of_images(tmp_path):
    for split in ("train", "test"):
        for label in ("a", "b"):
            pictures_of = tmp_path / "photos" / split / label
            write(pictures_of, "1.png", "2.png", size=24 if split == "train" else 25)
    splits, task = prepared(HfDataset(str(tmp_path / "photos")))
    assert task.head.names == ("a", "b")
    assert splits["test"][IMAGE_WIDTH][:] == [25] * 4


def test_a_missing_column_is_guessed(table):
    with pytest.raises(DataError, match=r'columns = \{image = "file"\}'):
        prepared(write_csv(table))


def test_pictures_of_a_column_that_are_missing_are_rows_without_input(table, caplog):
    (table / "t.jsonl").write_text(
        '{"image": "pics/20.png", "label": "a"}\n{"image": null, "label": "b"}\n'
        '{"image": "pics/21.png", "label": "b"}\n'
    )
    source = JsonLines(str(table / "t.jsonl"))
    with pytest.raises(DataError, match="1 of 3 rows have no 'image'"):
        prepared(source)
    splits, _ = prepared(source, on_error="skip")
    assert len(splits["train"]) == 2


def test_many_labels_an_image(table):
    rows = [{"image": path, "label": "x;y" if i % 2 else "y"} for i, path in enumerate(paths())]
    (table / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = ImageClassification(labels="multi", separator=";")
    settings = DataSettings(validation=0, test=0)
    raw = JsonLines(str(table / "t.jsonl")).load()
    splits = prepare_splits(raw, settings, task, Seeds(0, 0, 0, 0))
    assert task.head.kind == "multi-label"
    assert splits["train"]["label"][:] == [[0.0, 1.0], [1.0, 1.0]] * 2


def test_missing_libraries_are_named(monkeypatch):
    from sft_engine.builtin import tasks

    monkeypatch.setattr(tasks, "find_spec", lambda name: None if name == "torchvision" else name)
    with pytest.raises(RecipeError, match=r"needs torchvision.*sft-engine\[images\]"):
        ImageClassification().check()
    monkeypatch.undo()
    ImageClassification().check()
