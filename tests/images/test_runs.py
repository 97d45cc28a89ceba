"""Image runs whole: trained, resumed, evaluated and used, on a tiny network."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shutil
from pathlib import Path

import pictures
import pytest
from datasets import Dataset
from pictures import lossless, noise

from sft_engine import DataError, evaluate, predict, run
from sft_engine.cli import cli
from sft_engine.cli.ending import exit_code_of
from sft_engine.images import ImageError
from sft_engine.preparation import prepare_splits
from sft_engine.recipe import parse_recipe
from sft_engine.testing import install_fake
from sft_engine.testing.tiny_images import TinyPictures

RECIPE = """
[task]
use = "image-classification"
[data]
use = "tiny/pictures"
validation = 8
test = 8
[backbone]
use = "tiny/image"
[optimizer]
use = "adamw"
lr = 0.01
[train]
precision = "fp32"
device = "cpu"
batch_size = 16
epochs = 6
log_every = 1
"""
EMPTY = "the file is empty"


@pytest.fixture(scope="module", autouse=True)
def components(tmp_path_factory):
    site = tmp_path_factory.mktemp("site")
    install_fake(site, "sft-pictures", {}, entry_points={"pictures": "tiny_components"})
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        patch.setenv("SFT_ENGINE_PLUGINS", "pictures")
        patch.setenv("SFT_ENGINE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def save_photos(folder):
    """Write what `tiny/pictures` makes as files in folders of classes."""
    rows = TinyPictures().load()["train"]
    for index, row in enumerate(rows):
        path = folder / row["label"] / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(row["image"])
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return save_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    """A run on `photos`, whose recipe names them."""
    recipe = RECIPE.replace('"tiny/pictures"', f'"image-folder"\npath = "{photos}"')
    folder = tmp_path_factory.mktemp("runs") / "run"
    file = folder.with_suffix(".toml")
    file.write_text(recipe)
    assert exit_code_of(cli, ("run", str(file), "--output", str(folder), "--quiet")) == 0
    return folder


def train(folder, recipe, overrides=()):
    return run(parse_recipe(recipe, "recipe.toml", overrides), output=folder)


def sft(*arguments, stdin=b""):
    """Run the command line; return exit code, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    given = io.TextIOWrapper(io.BytesIO(stdin))
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr("sys.stdin", given)
        code = exit_code_of(cli, tuple(map(str, arguments)))
    return code, out.getvalue(), err.getvalue()


def records_of(*arguments, **options):
    code, out, err = sft("predict", *arguments, **options)
    assert code == 0, err
    return [json.loads(line) for line in out.splitlines()]


def assert_same(found, expected):
    """Records are equal, up to what the size of a batch does to the last digits."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one == other | {"probabilities": pytest.approx(other["probabilities"], rel=1e-5)}


# --- training ------------------------------------------------------------------------------------


def test_it_learns_and_sources_do_not_matter(trained, photos, tmp_path):
    report = json.loads((trained / "report.json").read_text())
    assert report["metrics"]["accuracy"] == 1
    data = [(photos / name).read_bytes() for name in sorted(files_of(photos))]
    labels = [Path(name).parent.name for name in sorted(files_of(photos))]
    Dataset.from_dict({"image": data, "label": labels}).to_parquet(tmp_path / "t.parquet")
    lines = [f"{n},{label}\n" for n, label in zip(sorted(files_of(photos)), labels, strict=True)]
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos" / "t.csv").write_text("".join(["image,label\n", *lines]))
    expected = losses(trained)
    for use, path in (("parquet", "t.parquet"), ("csv", "photos/t.csv")):
        recipe = RECIPE.replace('"tiny/pictures"', f'"{use}"\npath = "{tmp_path / path}"')
        train(tmp_path / use, recipe)
        assert losses(tmp_path / use) == expected


def files_of(folder):
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*.png")]


def losses(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if record["kind"] == "train"]


@pytest.mark.parametrize("overrides", [["train.workers=2"], ["train.micro_batch_size=16"]])
def test_workers_fetch_the_same(tmp_path, overrides):
    short = ["train.steps=4"]
    train(tmp_path / "one", RECIPE, short)
    train(tmp_path / "two", RECIPE, [*short, *overrides])
    assert losses(tmp_path / "one") == losses(tmp_path / "two")


def test_grey_images_many_labels_and_a_test_split(tmp_path):
    for split in ("train", "test"):
        pictures.write_photos(tmp_path / "photos" / split, *pictures.WHOLE)
    recipe = RECIPE.replace('"tiny/pictures"', f'"image-folder"\npath = "{tmp_path}/photos"')
    recipe = recipe.replace("validation = 8\ntest = 8", "validation = 0")
    recipe = recipe.replace('use = "tiny/image"', 'use = "tiny/image"\nchannels = 1')
    overrides = ['task.labels="multi"', "train.steps=2"]
    outcome = train(tmp_path / "run", recipe, overrides)
    assert outcome.split == "test"
    assert (tmp_path / "run" / "predictions" / "test.jsonl").read_text().count("\n") == len(
        pictures.WHOLE
    ) + 2 * pictures.GOOD


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_goes_bad_during_training_is_named(workers, tmp_path, monkeypatch):
    folder = save_photos(tmp_path / "photos")
    recipe = RECIPE.replace('"tiny/pictures"', f'"image-folder"\npath = "{folder}"')
    recipe = recipe.replace("validation = 8\ntest = 8", "validation = 0\ntest = 0")

    def spoiled(*arguments):
        splits = prepare_splits(*arguments)
        for path in folder.rglob("*.png"):
            path.write_bytes(b"gone")
        return splits

    monkeypatch.setattr("sft_engine.assemble.prepare_splits", spoiled)
    with pytest.raises(DataError, match=r"^/.*\.png: not an image[^\n]*$"):
        train(tmp_path / "run", recipe, [f"train.workers={workers}"])


# --- evaluate ------------------------------------------------------------------------------------


def test_evaluate_a_split_a_folder_and_a_table(trained, photos, tmp_path):
    assert evaluate(trained, split="test")["accuracy"] == 1
    whole = evaluate(trained, data=photos)
    assert whole["accuracy"] == 1
    rows = [{"image": str(photos / n), "label": Path(n).parent.name} for n in files_of(photos)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    again = evaluate(trained, data=tmp_path / "t.jsonl")
    assert again["nll"] == pytest.approx(whole["nll"], rel=1e-6)
    code, out, err = sft("evaluate", trained, "--data", photos, "--json")
    assert code == 0, err
    assert json.loads(out)["metrics"]["nll"] == pytest.approx(whole["nll"], rel=1e-6)


def test_evaluate_names_broken_pictures_or_skips_them(trained, tmp_path):
    folder = save_photos(tmp_path / "photos")
    whole = evaluate(trained, data=folder)
    (folder / "left" / "bad.png").write_bytes(pictures.corrupt_png())
    code, _, err = sft("evaluate", trained, "--data", folder)
    assert code == 3
    assert f"1 of 65 images cannot be used: '{folder}/left/bad.png'" in err
    skipped = evaluate(trained, data=folder, overrides=["data.on_error=skip"])
    assert skipped == whole


# --- predict -------------------------------------------------------------------------------------


def test_predict_files_and_folders(trained, photos):
    names = sorted(str(photos / name) for name in files_of(photos))
    found = records_of(trained, photos)
    assert [record["image"] for record in found] == names
    assert [record["prediction"] for record in found] == [Path(n).parent.name for n in names]
    assert set(found[0]) == {"image", "prediction", "probabilities"}
    for arguments, count in (
        ((*names[:3], "--batch-size", 2), 3),
        (("--file", names[0]), 1),
        (("--file", photos / "left"), 32),
    ):
        assert_same(records_of(trained, *arguments), found[:count])
    assert_same(records_of(trained, stdin="\n".join(names[:2]).encode()), found[:2])


def test_predict_rows_of_files(trained, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = sorted(files_of(photos))[:3]
    expected = records_of(trained, *(photos / name for name in names))
    lines = "".join(json.dumps({"id": i, "image": n}) + "\n" for i, n in enumerate(names))
    (photos / "rows.jsonl").write_text(lines)
    (photos / "rows.txt").write_text("\n".join(names))
    data = [(photos / name).read_bytes() for name in names]
    Dataset.from_dict({"image": data}).to_parquet(tmp_path / "rows.parquet")
    try:
        of_rows = records_of(trained, "-f", photos / "rows.jsonl")
        of_lines = records_of(trained, "-f", photos / "rows.txt")
    finally:
        for name in ("rows.jsonl", "rows.txt"):
            (photos / name).unlink()
    assert of_rows == [{"id": i, **record} for i, record in enumerate(expected)]
    assert of_lines == expected
    of_bytes = records_of(trained, "-f", "rows.parquet")
    assert [r["probabilities"] for r in of_bytes] == [r["probabilities"] for r in expected]
    assert of_bytes[0]["image"] == f"{len(data[0])} bytes"


def test_predict_stops_at_a_broken_picture_and_names_it(trained, photos, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(pictures.half(pictures.jpeg(noise())))
    code, out, err = sft("predict", trained, photos / "left/01.png", tmp_path / "bad.jpg")
    assert (code, out) == (3, "")
    assert f"{tmp_path}/bad.jpg: truncated" in err
    with pytest.raises(ImageError, match="row 1: the file is empty"):
        list(predict(trained, [{"image": lossless(noise())}, {"image": b""}]))


def test_predict_can_go_on_after_a_broken_picture(trained, photos, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"")
    files = [photos / "left/01.png", bad, photos / "right/00.png", bad, bad]
    skip = ("--set", "data.on_error=skip")
    for size in (1, 2, 64):
        found = records_of(trained, *files, *skip, "--batch-size", size)
        assert [r["prediction"] for r in found] == ["left", None, "right", None, None]
        assert [r["error"] for r in found] == [None, EMPTY, None, EMPTY, EMPTY]
    code, out, _ = sft("predict", trained, *files, *skip, "--format", "csv")
    assert code == 0
    assert [row["error"] for row in csv.DictReader(io.StringIO(out))][:3] == ["", EMPTY, ""]


def test_predict_takes_pictures_and_arrays_in_python(trained):
    image = noise()
    of_picture, of_bytes = predict(trained, [{"image": image}, {"image": lossless(image)}])
    assert of_picture == of_bytes
