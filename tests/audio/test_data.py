"""Recordings in folders and tables, looked at before training."""

from __future__ import annotations

import copy

import datasets
import numpy as np
import pytest
from datasets import Dataset
from tones import RATE, encoded, tone

from sft_engine import DataError, RecipeError
from sft_engine.audio import AudioExamples, Sound, fitted
from sft_engine.audio.checking import checked, look
from sft_engine.builtin.audio_data import AudioFolder
from sft_engine.builtin.data import Csv, JsonLines, Parquet
from sft_engine.builtin.tasks import AudioClassification
from sft_engine.columns import AUDIO_FRAMES, AUDIO_RATE, fingerprint
from sft_engine.flow import Seeds
from sft_engine.preflight import preflight
from sft_engine.preparation import prepare_splits
from sft_engine.settings import DataSettings


def prepared(source, **settings):
    settings = {"validation": 0, "test": 0} | settings
    task = AudioClassification()
    return prepare_splits(source.load(), DataSettings(**settings), task, Seeds(0, 0, 0, 0)), task


@pytest.fixture
def folder(tmp_path):
    """Two classes of two recordings each, of different rates, channels and formats."""
    files = {
        "a/1.wav": encoded(tone(200.0)),
        "a/2.flac": encoded(tone(210.0, 0.2, 16_000), 16_000, "FLAC"),
        "b/1.ogg": encoded(tone(800.0, 0.3, 44_100), 44_100, "OGG"),
        "b/2.WAV": encoded(np.stack([tone(810.0), tone(820.0)], axis=1)),
    }
    for name, data in files.items():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "data"


def test_a_folder_of_classes(folder, caplog):
    (folder / "a" / "notes.txt").write_text("-")
    splits, task = prepared(AudioFolder(str(folder)))
    rows = splits["train"]
    assert task.head.names == ("a", "b")
    assert rows["label"][:] == [0, 0, 1, 1]
    assert rows[AUDIO_RATE][:] == [8000, 16_000, 44_100, 8000]
    assert rows[AUDIO_FRAMES][:] == [2400, 3200, 13_230, 2400]
    assert "1 files left out, their names are not those of recordings (.txt 1)" in caplog.text


def test_folders_of_splits_and_one_folder_a_split(folder, tmp_path):
    both = tmp_path / "both"
    both.mkdir()
    (both / "train").symlink_to(folder)
    (both / "test").symlink_to(folder)
    assert set(AudioFolder(str(both)).load()) == {"train", "test"}
    assert set(AudioFolder({"train": str(folder), "x": str(folder)}).load()) == {"train", "x"}
    with pytest.raises(RecipeError, match=r"data\.path names no folder"):
        AudioFolder({}).load()


def test_what_is_no_folder_of_recordings(folder, tmp_path):
    with pytest.raises(DataError, match="did you mean `data`"):
        AudioFolder(str(tmp_path / "datas")).load()
    with pytest.raises(DataError, match=r"has 2 recordings and no folder .*'a/CLASS/\*\.wav'"):
        AudioFolder(str(folder / "a")).load()
    with pytest.raises(DataError, match="is a file; audio-folder needs a folder of classes"):
        AudioFolder(str(folder / "a" / "1.wav")).load()


def test_tables_hold_paths_or_bytes(folder):
    names = ["a/1.wav", "a/2.flac", "b/1.ogg", "b/2.WAV"]
    (folder / "t.csv").write_text("".join(["file,label\n", *(f"{n},{n[0]}\n" for n in names)]))
    lines = [f'{{"audio": "{name}", "label": "{name[0]}"}}' for name in names]
    (folder / "t.jsonl").write_text("\n".join(lines))
    data = [(folder / name).read_bytes() for name in names]
    labels = [name[0] for name in names]
    Dataset.from_dict({"audio": data, "label": labels}).to_parquet(folder / "t.parquet")
    typed = Dataset.from_dict(
        {"audio": [{"bytes": d, "path": None} for d in data], "label": labels}
    )
    typed.cast_column("audio", datasets.Audio(decode=False)).to_parquet(folder / "typed.parquet")
    found = [
        prepared(Csv(str(folder / "t.csv")), columns={"audio": "file"}),
        prepared(JsonLines(str(folder / "t.jsonl"))),
        prepared(Parquet(str(folder / "t.parquet"))),
        prepared(Parquet(str(folder / "typed.parquet"))),
        prepared(AudioFolder(str(folder))),
    ]
    hashes = {fingerprint(splits["train"]) for splits, _ in found}
    assert len(hashes) == 1  # by content, not by place
    examples = [encoded_of(splits["train"]) for splits, _ in found]
    for each in examples[1:]:
        for one, other in zip(examples[0], each, strict=True):
            assert np.array_equal(one["x"], other["x"])


def encoded_of(rows, **options):
    examples = AudioExamples(rows, "label", RATE, 30.0, lambda samples: {"x": samples}, **options)
    return examples.__getitems__(range(len(rows)))


def test_a_column_of_something_else_is_refused(tmp_path):
    Dataset.from_dict({"audio": [[0.1, 0.2]] * 4, "label": list("abab")}).to_parquet(
        tmp_path / "t.parquet"
    )
    with pytest.raises(DataError, match="allowed are paths, or the bytes of audio files"):
        prepared(Parquet(str(tmp_path / "t.parquet")))
    (tmp_path / "t.csv").write_text("wav,label\nx.wav,a\n")
    with pytest.raises(DataError, match=r'columns = \{audio = "wav"\}'):
        prepared(Csv(str(tmp_path / "t.csv")))


def test_broken_recordings_are_named_or_left_out(folder, caplog):
    (folder / "a" / "3.wav").write_bytes(b"")
    (folder / "b" / "3.wav").write_bytes(encoded(tone(1.0))[:100])
    said = (
        r"2 of 6 recordings .*3\.wav' \(row 2\): the file is empty; .*3\.wav' \(row 5\): truncated"
    )
    with pytest.raises(DataError, match=said):
        prepared(AudioFolder(str(folder)))
    splits, _ = prepared(AudioFolder(str(folder)), on_error="skip")
    assert len(splits["train"]) == 4
    assert "3.wav' (row 5): truncated" in caplog.text


def test_when_none_can_be_used(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.wav").write_bytes(b"")
    with pytest.raises(DataError, match="none of 2 recordings can be used"):
        prepared(AudioFolder(str(tmp_path)), on_error="skip")


def test_the_look_at_the_data_warns(folder):
    (folder / "a" / "4.wav").write_bytes(encoded(np.zeros(2000)))
    (folder / "a" / "5.wav").write_bytes(encoded(tone(220.0, 0.05)))
    (folder / "b" / "4.wav").write_bytes((folder / "b" / "1.ogg").read_bytes())
    splits, task = prepared(AudioFolder(str(folder)))
    said = " ".join(finding.message for finding in preflight(splits, task))
    assert "1 of 7 (14.3%) recordings of the split 'train' are silent (rows 2, counted" in said
    assert "1 of 7 (14.3%) recordings of the split 'train' are shorter than 0.1 s (rows 3," in said
    assert "training rows repeat the input of another one" in said


# --- examples ------------------------------------------------------------------------------------


@pytest.fixture
def rows():
    sounds = [tone(300.0, 0.1 + 0.03 * i, rate) for i, rate in enumerate((8000, 11_025, 44_100))]
    data = [encoded(s, r) for s, r in zip(sounds, (8000, 11_025, 44_100), strict=True)]
    return checked(Dataset.from_dict({"audio": data, "label": [0, 1, 0]}), "train", skip=False)


def test_lengths_are_those_of_the_samples(rows):
    for seconds in (30.0, 0.12, 0.0333):
        examples = AudioExamples(rows, "label", RATE, seconds, lambda samples: {"x": samples})
        found = [len(each["x"]) for each in examples.__getitems__([0, 1, 2])]
        assert examples.lengths.tolist() == found
        assert examples.truncated.tolist() == [s > seconds for s in (0.1, 0.13, 0.16)]


def test_kept_samples_are_those_that_are_not_kept(rows):
    kept, fresh = (
        AudioExamples(rows, "label", RATE, 30.0, lambda s: {"x": s}, cache_bytes=size)
        for size in (1 << 20, 0)
    )
    expected = [fitted(row["audio"], RATE, 30.0) for row in rows]
    for _ in range(2):
        for examples in (kept, fresh):
            found = examples.__getitems__([2, 0, 1])
            assert [each["label"] for each in found] == [0, 0, 1]
            for each, index in zip(found, [2, 0, 1], strict=True):
                assert np.array_equal(each["x"], expected[index])
    other = copy.deepcopy(kept)  # as a process that is no fork gets it
    assert np.array_equal(other.__getitems__([1])[0]["x"], expected[1])


def test_what_is_known_of_a_recording():
    facts = look(encoded(tone(440.0)))
    assert (facts.frames, facts.rate, facts.problem) == (2400, RATE, "")
    assert facts.peak == pytest.approx(0.5, abs=0.01)
    assert look(None).problem.startswith("found nothing")
    assert Sound(tone(440.0), RATE).seconds == pytest.approx(0.3)


def test_the_task_says_what_is_missing(monkeypatch):
    monkeypatch.setattr("sft_engine.builtin.tasks.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"soundfile and scipy.*sft-engine\[audio\]"):
        AudioClassification().check()
