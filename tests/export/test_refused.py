"""What cannot be exported is one sentence, and nothing is left behind."""

from __future__ import annotations

import importlib.util
import json
import shutil

import pytest

import sft_engine
from sft_engine import CheckpointError, ExportError, OutputError, RecipeError
from sft_engine.cli import cli
from sft_engine.cli.ending import exit_code_of


def left(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize(
    ("backbone", "form", "words"),
    [
        ("tiny/forgetful", "hf", ("differ", "0.5", "allowed", "nothing was exported")),
        ("tiny/shaped", "onnx", ("differ", "0.25", "nothing was exported")),
        ("tiny/shaped", "torch-export", ("differ", "0.25", "nothing was exported")),
        ("tiny/branches", "onnx", ("cannot be exported", "choose another --format")),
        ("tiny/branches", "torch-export", ("cannot be exported", "choose another --format")),
    ],
)
def test_other_outputs_leave_nothing(backbone, form, words, text_run, tmp_path):
    with pytest.raises(ExportError) as caught:
        sft_engine.export(text_run(backbone), form, output=tmp_path / "new" / "out")
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)
    assert left(tmp_path) == []


def test_what_cannot_be_read_back_leaves_nothing(text_run, tmp_path):
    with pytest.raises(ExportError, match=r"cannot be read back.*another version"):
        sft_engine.export(
            text_run("tiny/forgetful"),
            "hf",
            output=tmp_path / "out",
            overrides=["backbone.nothing=true"],
        )
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"format": "timm"}, ('"timm"', '"tiny/text"', "`onnx`", "`torch-export`")),
        ({"format": "onxx"}, ("did you mean `onnx`",)),
        ({"format": ""}, ("allowed",)),
        ({"format": "onnx", "dtype": "int8"}, ("--dtype", "int8", "`bf16`")),
        ({"format": "onnx", "opset": 9}, ("--opset", "9", "18")),
        ({"format": "torch-export", "opset": 18}, ("--opset", "onnx", "leave it out")),
    ],
)
def test_a_request_that_makes_no_sense(options, words, text_run, tmp_path):
    with pytest.raises(RecipeError) as caught:
        sft_engine.export(text_run("tiny/text"), output=tmp_path / "out", **options)
    assert all(word in str(caught.value) for word in words), caught.value
    assert left(tmp_path) == []


def test_an_opset_of_the_future(text_run, tmp_path):
    with pytest.raises(ExportError, match=r"--opset.*cannot write 99"):
        sft_engine.export(text_run("tiny/text"), "onnx", output=tmp_path / "out", opset=99)
    assert left(tmp_path) == []


def test_a_missing_library_is_named(text_run, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "sft_engine.exporting.formats.find_spec",
        lambda name: None if name.startswith("onnx") else find(name),
    )
    with pytest.raises(RecipeError, match=r"onnx and onnxscript.*sft-engine\[onnx\]"):
        sft_engine.export(text_run("tiny/text"), "onnx", output=tmp_path / "out")


def test_no_run_folder(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(CheckpointError, match="not a run folder"):
            sft_engine.export(folder, "onnx")


def test_a_run_that_has_not_ended(text_run, tmp_path):
    shutil.copytree(text_run("tiny/text"), tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    with pytest.raises(CheckpointError, match="sft-engine resume"):
        sft_engine.export(tmp_path / "run", "onnx")


@pytest.mark.parametrize("content", [None, "", "{}", "[1]"])
def test_a_run_that_lost_its_facts(content, text_run, tmp_path):
    shutil.copytree(text_run("tiny/text"), tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(CheckpointError, match=r"run\.json cannot be read"):
        sft_engine.export(tmp_path / "run", "onnx")


def test_an_output_folder_that_holds_something(text_run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("keep")
    with pytest.raises(OutputError, match=r"is not empty.*--output"):
        sft_engine.export(text_run("tiny/text"), "torch-export", output=tmp_path / "out")
    assert left(tmp_path / "out") == ["mine"]


def test_an_empty_output_folder_is_fine(text_run, tmp_path):
    (tmp_path / "out").mkdir()
    done = sft_engine.export(text_run("tiny/text"), "torch-export", output=tmp_path / "out")
    assert "model.pt2" in left(done.folder)
    with pytest.raises(OutputError, match="is not empty"):
        sft_engine.export(text_run("tiny/text"), "torch-export", output=tmp_path / "out")


@pytest.mark.parametrize("place", ["file", "file/out", "a" * 300])
def test_an_output_that_cannot_be_a_folder(place, text_run, tmp_path):
    (tmp_path / "file").write_text("keep")
    with pytest.raises(OutputError, match="--output"):
        sft_engine.export(text_run("tiny/text"), "torch-export", output=tmp_path / place)
    assert left(tmp_path) == ["file"]


@pytest.mark.parametrize("form", ["onnx", "torch-export", "timm"])
def test_a_disk_that_is_full(form, image_run, tmp_path):
    """Nothing may be larger than 3000 bytes, as if the disk ended there."""
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        with pytest.raises(OutputError, match="cannot be written") as caught:
            sft_engine.export(image_run, form, output=tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "resume" not in str(caught.value)
    assert left(tmp_path) == []


def test_ctrl_c_leaves_nothing(text_run, tmp_path, monkeypatch):
    def stop(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("sft_engine.exporting.compare", stop)
    with pytest.raises(KeyboardInterrupt):
        sft_engine.export(text_run("tiny/text"), "torch-export", output=tmp_path / "out")
    assert left(tmp_path) == []


# --- the command line -----------------------------------------------------------------------------


def test_the_command_says_what_was_compared(text_run, tmp_path, capfd):
    arguments = ["export", str(text_run("tiny/text")), "--format", "onnx"]
    assert exit_code_of(cli, [*arguments, "-o", str(tmp_path / "out"), "--opset", "18"]) == 0
    out, err = capfd.readouterr()
    assert "largest difference" in out
    assert "ids: int64 [batch, sequence]" in out
    assert "the test split" in out
    assert out.splitlines()[-1].startswith("done: ")
    assert err == ""
    assert left(tmp_path) == ["out"]


def test_the_command_as_json(text_run, tmp_path, capfd):
    arguments = ["export", str(text_run("tiny/text")), "--format", "torch-export", "--json"]
    assert exit_code_of(cli, [*arguments, "-o", str(tmp_path / "out")]) == 0
    said = json.loads(capfd.readouterr().out)
    assert said["format"] == "torch-export"
    assert said["difference"] <= said["allowed"]
    assert said["folder"] == str(tmp_path / "out")


@pytest.mark.parametrize(
    ("backbone", "arguments", "code", "words"),
    [
        ("tiny/text", ["--format", "hf"], 2, "allowed: `onnx`, `torch-export`"),
        ("tiny/text", [], 2, "--format"),
        ("tiny/text", ["--format", "onnx", "--opset", "many"], 2, "not a valid integer"),
        ("tiny/text", ["--format", "onnx", "--opset", "99"], 1, "cannot write 99"),
        ("tiny/forgetful", ["--format", "hf"], 1, "differ"),
        ("tiny/branches", ["--format", "onnx"], 1, "cannot be exported"),
    ],
)
def test_the_command_refuses_in_one_sentence(
    backbone, arguments, code, words, text_run, tmp_path, capfd
):
    output = ["-o", str(tmp_path / "out")]
    assert exit_code_of(cli, ["export", str(text_run(backbone)), *arguments, *output]) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert words in err
    assert len(err.strip().splitlines()) == 1
    assert left(tmp_path) == []
