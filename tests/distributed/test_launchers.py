"""The commands of docs/multi-process.md, run as they stand there."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import launchers
import pytest

SHORT = ["train.steps=4", "backbone.dtype=float64"]
MODULE = ["-m", "sft_engine"]
SCRIPT = shutil.which("sft-engine", path=str(Path(sys.executable).parent))
SEVERAL = ["--multi_gpu", "--num_processes", "2"]

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def alone(ranks):
    return ranks("runs", world=1, cases={"run": {"overrides": SHORT}})


def first_line(ended):
    return next(line for line in ended.out.splitlines() if line.startswith("sft-engine "))


def check(ended, folder, alone, processes):
    """What every launch must have left."""
    assert ended.code == 0, ended.text
    word = "1 process," if processes == 1 else f"{processes} processes"
    assert f"on {word}" in first_line(ended), ended.text
    run = json.loads((folder / "run" / "run.json").read_text())
    assert (run["processes"], run["status"]) == (processes, "done")
    records = [json.loads(x) for x in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    theirs = (alone.folder / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [r["loss"] for r in map(json.loads, theirs) if r["kind"] == "train"]
    assert [r["loss"] for r in records if r["kind"] == "train"] == pytest.approx(losses, rel=1e-11)
    # One table, one list of paths: only rank 0 has said anything.
    assert ended.out.count("all steps done") == 1
    return [r["message"] for r in records if r["kind"] == "notice"]


def test_torchrun(tmp_path, alone):
    recipe = launchers.recipe(tmp_path)
    ended = launchers.torchrun(tmp_path, "run", recipe, SHORT, "--output", tmp_path / "run")
    assert check(ended, tmp_path, alone, 2) == []


def test_accelerate_with_cpu_starts_one_process_and_the_run_says_so(tmp_path, alone):
    recipe = launchers.recipe(tmp_path)
    options = ["--cpu", "--num_processes", "2", *MODULE]
    ended = launchers.accelerate(
        tmp_path, options, "run", recipe, SHORT, "--output", tmp_path / "run"
    )
    (notice,) = check(ended, tmp_path, alone, 1)
    assert "accelerate was asked for several processes and started one" in notice
    assert notice in ended.text


MULTI_CPU = """compute_environment: LOCAL_MACHINE
distributed_type: MULTI_CPU
use_cpu: true
num_machines: 1
num_processes: 2
machine_rank: 0
main_training_function: main
mixed_precision: 'no'
"""


@slow
def test_a_configuration_file_with_multi_cpu_starts_one_process_too(tmp_path, alone):
    recipe = launchers.recipe(tmp_path)
    (tmp_path / "accelerate.yaml").write_text(MULTI_CPU)
    options = ["--config_file", tmp_path / "accelerate.yaml", *MODULE]
    ended = launchers.accelerate(
        tmp_path, options, "run", recipe, SHORT, "--output", tmp_path / "run"
    )
    (notice,) = check(ended, tmp_path, alone, 1)
    assert "accelerate was asked for several processes and started one" in notice


@slow
@pytest.mark.parametrize(
    ("options", "processes"),
    [
        ([*SEVERAL, *MODULE], 2),
        ([*SEVERAL, SCRIPT], 2),
        (MODULE, 1),
        ([SCRIPT], 1),
    ],
    ids=["two, module", "two, script", "one, module", "one, script"],
)
def test_accelerate(tmp_path, alone, options, processes):
    recipe = launchers.recipe(tmp_path)
    ended = launchers.accelerate(
        tmp_path, options, "run", recipe, SHORT, "--output", tmp_path / "run"
    )
    assert check(ended, tmp_path, alone, processes) == []


FSDP = """compute_environment: LOCAL_MACHINE
distributed_type: FSDP
fsdp_config:
  fsdp_version: 2
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_transformer_layer_cls_to_wrap: Sequential
  fsdp_reshard_after_forward: true
  fsdp_offload_params: false
  fsdp_state_dict_type: FULL_STATE_DICT
  fsdp_cpu_ram_efficient_loading: false
  fsdp_activation_checkpointing: false
num_machines: 1
num_processes: 2
machine_rank: 0
main_training_function: main
mixed_precision: 'no'
"""


@slow
@pytest.mark.parametrize("efficient", ["false", "true"])
def test_a_configuration_file_with_fsdp(tmp_path, alone, efficient):
    recipe = launchers.recipe(tmp_path)
    text = FSDP.replace("loading: false", f"loading: {efficient}")
    (tmp_path / "fsdp.yaml").write_text(text)
    options = ["--config_file", tmp_path / "fsdp.yaml", *MODULE]
    ended = launchers.accelerate(
        tmp_path, options, "run", recipe, SHORT, "--output", tmp_path / "run"
    )
    assert check(ended, tmp_path, alone, 2) == []
    assert "FSDP" in first_line(ended)


@slow
def test_a_run_of_two_processes_is_evaluated_by_two(tmp_path, alone):
    recipe = launchers.recipe(tmp_path)
    launchers.torchrun(tmp_path, "run", recipe, SHORT, "--output", tmp_path / "run")
    ended = launchers.torchrun(tmp_path, "evaluate", tmp_path / "run", (), "--json")
    assert ended.code == 0, ended.text
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    values = json.loads(ended.out)["metrics"]
    scalars = {k: v for k, v in report["metrics"].items() if isinstance(v, float)}
    assert len(scalars) > 3
    assert {k: values[k] for k in scalars} == pytest.approx(scalars, abs=1e-6)


@slow
@pytest.mark.parametrize("rank", [0, 1])
def test_the_message_of_the_rank_that_failed_reaches_the_user(tmp_path, rank):
    recipe = launchers.recipe(tmp_path, f'"test/fails"\nrank = {rank}\nkind = "DataError"')
    ended = launchers.torchrun(tmp_path, "run", recipe, SHORT, "--output", tmp_path / "run")
    assert ended.code == 1
    prefix = "[rank 1] error:" if rank else "error:"
    assert f"{prefix} boom on one rank" in ended.text
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (run["status"], run["exit_code"], run["message"]) == ("failed", 3, "boom on one rank")
