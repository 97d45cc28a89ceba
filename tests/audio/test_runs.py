"""Audio runs whole: trained, resumed, evaluated, used and exported, on tiny encoders."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tones import PITCHES, RATE, RECIPE, encoded, tone
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

from sft_engine import DataError, Interrupted, RecipeError, evaluate, export, plan, predict, run
from sft_engine.audio import AudioError
from sft_engine.cli import cli
from sft_engine.cli.ending import exit_code_of
from sft_engine.plugins import load_plugins
from sft_engine.recipe import parse_recipe
from sft_engine.training import train

SGD = ["optimizer.use=sgd", "optimizer.lr=0.05", "train.steps=6", "checkpoint.best=last"]


def losses(outcome):
    lines = (outcome.folder / "metrics.jsonl").read_text().splitlines()
    return [record["loss"] for record in map(json.loads, lines) if record["kind"] == "train"]


def weights(outcome):
    return load_file(outcome.folder / "model" / "model.safetensors")


def planned(recipe):
    return plan(recipe, load_plugins())


def sft(*arguments):
    """Run the command line; return exit code, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = exit_code_of(cli, tuple(map(str, arguments)))
    return code, out.getvalue(), err.getvalue()


# --- training ------------------------------------------------------------------------------------


def test_it_learns_to_tell_two_tones_apart(trained):
    assert trained.metrics["accuracy"] == 1.0
    assert trained.best["metric"] == "accuracy"
    assert losses(trained)[-1] < 0.2


@pytest.mark.parametrize("kind", ["whisper", "ast", "hubert"])
def test_so_do_other_encoders(recipe_of, tmp_path, kind):
    assert run(recipe_of(kind), output=tmp_path / "run").metrics["accuracy"] == 1.0


@pytest.mark.parametrize("kind", ["wav2vec2", "whisper"])
def test_a_resumed_run_is_bit_equal(recipe_of, tmp_path, kind):
    """Cut within an epoch; dropout draws."""
    made = planned(recipe_of(kind, "train.steps=5"))
    whole = train(made, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(made, tmp_path / "cut", stop_after=3)
    np.random.seed(7)  # a fresh process has another state
    resumed = train(made, tmp_path / "cut", resume=True)
    assert resumed.fingerprint == whole.fingerprint
    assert losses(resumed) == losses(whole)


def test_accumulation_changes_nothing(recipe_of, tmp_path):
    """One micro-batch of 8, padded to one width, and three of 3, 3 and 2: the mask hides padding."""
    whole = run(recipe_of("still", *SGD), output=tmp_path / "whole")
    parts = run(recipe_of("still", *SGD, "train.micro_batch_size=3"), output=tmp_path / "parts")
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-5)
    for name, tensor in weights(whole).items():
        assert torch.allclose(tensor, weights(parts)[name], atol=1e-6), name


def test_background_processes_fetch_the_same(recipe_of, tmp_path):
    short = ["train.steps=4"]
    one = run(recipe_of("wav2vec2", *short), output=tmp_path / "one")
    two = run(recipe_of("wav2vec2", *short, "train.workers=1"), output=tmp_path / "two")
    assert losses(one) == losses(two)


def test_the_feature_encoder_can_stay_as_it_is(recipe_of, models, tmp_path):
    tables = '[freezing]\nuse = "frozen"\nfirst = 1\n'
    outcome = run(recipe_of("wav2vec2", "train.steps=3", tables=tables), output=tmp_path / "run")
    before, after = load_file(models["wav2vec2"] / "model.safetensors"), weights(outcome)
    moved = {n for n, value in before.items() if not torch.equal(value, after[f"wav2vec2.{n}"])}
    assert not [name for name in moved if name.startswith("feature_extractor")]
    assert [name for name in moved if name.startswith("encoder.layers.0")]


def test_several_labels_and_a_table(models, tmp_path):
    lines = []
    for index in range(24):
        labels = [label for label in PITCHES if index % 3 == 2 or index % 3 == label.count("w")]
        samples = sum(tone(PITCHES[label], phase=index) / 2 for label in labels)
        (tmp_path / f"{index}.flac").write_bytes(encoded(samples, form="FLAC"))
        lines.append(json.dumps({"file": f"{index}.flac", "label": labels}))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    text = RECIPE.format(data=tmp_path / "rows.jsonl", model=models["wav2vec2"])
    text = text.replace('"audio-folder"', '"jsonl"\ncolumns = {audio = "file"}')
    text = text.replace('"audio-classification"', '"audio-classification"\nlabels = "multi"')
    outcome = run(parse_recipe(text, "r.toml", ["train.epochs=20"]), output=tmp_path / "run")
    assert outcome.metrics["f1"] > 0.9


# --- using it ------------------------------------------------------------------------------------


def test_predictions_are_those_of_transformers_alone(trained, recordings):
    """AutoModel and AutoFeatureExtractor on the model folder, one padded batch, float32."""
    folder = trained.folder / "model"
    model = AutoModelForAudioClassification.from_pretrained(folder).eval()
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    files = sorted(recordings.rglob("*.wav"))[::5]
    sounds = [tone_of(path) for path in files]
    batch = extractor(sounds, sampling_rate=RATE, padding=True, return_tensors="pt")
    with torch.no_grad():
        shares = model(**batch).logits.softmax(1)
    records = list(predict(trained.folder, [str(path) for path in files], batch_size=3))
    for path, record, row in zip(files, records, shares.tolist(), strict=True):
        assert record["prediction"] == path.parent.name
        assert list(record["probabilities"].values()) == pytest.approx(row, abs=1e-5)


def tone_of(path):
    import soundfile

    return soundfile.read(path, dtype="float32")[0]


def test_evaluate_and_predict_on_other_recordings(trained, recordings, tmp_path):
    assert evaluate(trained.folder, data=recordings)["accuracy"] == 1.0
    data = encoded(tone(900.0, 0.4, 44_100), 44_100, "OGG")
    (record,) = predict(trained.folder, [{"audio": data}])
    assert record["prediction"] == "high"
    (tmp_path / "t.csv").write_text(f"audio\n{recordings / 'low' / '00.wav'}\n")
    code, out, err = sft("predict", trained.folder, "--file", tmp_path / "t.csv")
    assert code == 0, err
    assert json.loads(out)["prediction"] == "low"


def test_predict_reads_folders_and_says_what_is_broken(trained, recordings, tmp_path):
    code, out, err = sft("predict", trained.folder, recordings / "high")
    records = [json.loads(line) for line in out.splitlines()]
    assert (code, len(records)) == (0, 16), err
    assert {record["prediction"] for record in records} == {"high"}
    assert records[0]["audio"] == str(recordings / "high" / "00.wav")
    (tmp_path / "a.wav").write_bytes(b"")
    with pytest.raises(AudioError, match=r"a\.wav: the file is empty"):
        list(predict(trained.folder, [str(tmp_path / "a.wav")]))
    rows = [str(tmp_path / "a.wav"), str(recordings / "low" / "01.wav")]
    found = list(predict(trained.folder, rows, overrides=['data.on_error="skip"']))
    assert found[0] == {"prediction": None, "error": "the file is empty"}
    assert (found[1]["prediction"], found[1]["error"]) == ("low", None)


def test_the_exported_model_is_the_model(trained, recipe_of, tmp_path):
    exported = export(trained.folder, "hf", output=tmp_path / "hf")
    assert exported.difference < exported.allowed
    assert not exported.notes
    said = json.loads((tmp_path / "hf" / "export.json").read_text())
    assert said["preprocessing"]["sampling_rate"] == RATE
    again = recipe_of("wav2vec2", f"backbone.name={tmp_path / 'hf'}", "train.steps=1")
    moved = weights(run(again, output=tmp_path / "again"))["classifier.weight"]
    kept = weights(trained)["classifier.weight"]
    assert (moved - kept).abs().max() < 0.011  # one step of AdamW: the head was kept


def test_whisper_is_exported_and_takes_another_head(recipe_of, tmp_path):
    outcome = run(recipe_of("whisper", "train.steps=2"), output=tmp_path / "run")
    exported = export(outcome.folder, "hf", output=tmp_path / "hf")
    assert exported.difference < exported.allowed
    names = 'data.label_names=["high","low","other"]'
    other = recipe_of("whisper", f"backbone.name={tmp_path / 'hf'}", "train.steps=1", names)
    assert weights(run(other, output=tmp_path / "other"))["classifier.weight"].shape[0] == 3


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["task.use=text-classification"], '"transformers-audio" takes recordings, .* texts; .*'),
        (["task.use=image-classification"], 'set use = "timm" or "torchvision"'),
        (["backbone.max_seconds=0"], "max_seconds.*greater than 0"),
        (["backbone.max_length=5"], "max_length"),
    ],
)
def test_check_refuses(recipe_of, overrides, says):
    with pytest.raises(RecipeError, match=says):
        planned(recipe_of("wav2vec2", *overrides))


def test_a_text_backbone_is_refused(recipe_of):
    text = recipe_of().to_toml().replace("transformers-audio", "transformers")
    says = (
        r'`backbone.use`: "transformers" takes texts, and the task "audio-class.* gives recordings'
    )
    with pytest.raises(RecipeError, match=says):
        planned(parse_recipe(text, "r.toml"))


def test_check_is_content_and_loads_nothing_heavy(recipe_of, tmp_path):
    (tmp_path / "r.toml").write_text(recipe_of().to_toml())
    code, _, err = sft("check", tmp_path / "r.toml")
    assert code == 0, err


def test_another_backbone_is_refused_before_data_are_encoded(recipe_of, tmp_path):
    text = recipe_of().to_toml()
    text = text[: text.index("[backbone]")] + '[backbone]\nuse = "mlp"\n[train]\nsteps = 1\n'
    with pytest.raises(DataError, match='"mlp" takes a table of numbers, the data has recordings'):
        run(parse_recipe(text, "r.toml"), output=tmp_path / "run")
