"""What the launcher's variables mean: refused, followed or said, never ignored in silence."""

from __future__ import annotations

import pytest

from sft_engine import RecipeError, launch
from sft_engine.settings import TrainSettings

AUTO = TrainSettings()


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "asks for DeepSpeed, which is not supported"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "asks for Megatron-LM, which is not supported"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "tensor or context parallelism"),
        ({"ACCELERATE_USE_FSDP": "true"}, "asks for FSDP 1, which is not supported: set"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "accelerate to-fsdp2"),
        (
            {
                "ACCELERATE_USE_FSDP": "true",
                "FSDP_VERSION": "2",
                "FSDP_ACTIVATION_CHECKPOINTING": "true",
            },
            "write `train.gradient_checkpointing = true` in the recipe",
        ),
    ],
)
def test_what_the_loop_cannot_do_is_refused(environ, said):
    with pytest.raises(RecipeError, match="the launcher's configuration") as caught:
        launch.refuse_unsupported(environ)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"ACCELERATE_USE_DEEPSPEED": "false"},
        {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
    ],
)
def test_the_rest_is_not(environ):
    launch.refuse_unsupported(environ)


@pytest.mark.parametrize(
    ("own", "asked", "precision"),
    [
        ("auto", "no", "auto"),
        ("auto", "bf16", "bf16"),
        ("fp32", "bf16", "fp32"),
        ("bf16", "no", "bf16"),
    ],
)
def test_precision_is_the_launchers_where_the_recipe_has_none(own, asked, precision):
    settings = TrainSettings(precision=own)
    environ = {"ACCELERATE_MIXED_PRECISION": asked}
    assert launch.precision(settings, environ) == precision
    notices = launch.notices(settings, 2, environ)
    assert bool(notices) is (asked not in ("no", precision))


def test_fp8_is_refused():
    with pytest.raises(RecipeError, match="sets `mixed_precision: fp8`, allowed: no, bf16"):
        launch.precision(AUTO, {"ACCELERATE_MIXED_PRECISION": "fp8"})


@pytest.mark.parametrize(
    ("environ", "world", "said"),
    [
        (
            {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"},
            1,
            "accelerate was asked for several processes and started one",
        ),
        ({"SLURM_STEP_NUM_TASKS": "4"}, 1, "srun started 4 tasks, and this one runs alone"),
        ({"ACCELERATE_USE_FSDP": "true"}, 1, "nothing to shard"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, 1, "train.micro_batch_size decides"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, 2, "train.compile decides"),
    ],
)
def test_what_is_done_otherwise_is_said(environ, world, said):
    (notice,) = launch.notices(AUTO, world, environ)
    assert said in notice


@pytest.mark.parametrize(
    ("environ", "world"),
    [
        ({}, 1),
        ({"MASTER_ADDR": "127.0.0.1"}, 1),  # set by the user, for something else
        ({"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO"}, 1),
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1", "LOCAL_RANK": "0"}, 1),
        ({"SLURM_STEP_NUM_TASKS": "4", "WORLD_SIZE": "4"}, 4),
    ],
)
def test_nothing_is_said_where_all_is_well(environ, world):
    assert launch.notices(AUTO, world, environ) == []


@pytest.mark.parametrize("verb", ["groups", "predict", "verify-resume"])
def test_some_verbs_work_in_one_process(verb):
    launch.require_one_process(verb, {})
    with pytest.raises(
        RecipeError, match=f"`sft-engine {verb}` works in one process, the launcher"
    ):
        launch.require_one_process(verb, {"WORLD_SIZE": "2"})


def test_rank_and_processes_are_read_as_accelerate_reads_them():
    assert (launch.rank({}), launch.processes({})) == (0, 1)
    assert launch.rank({"OMPI_COMM_WORLD_RANK": "3"}) == 3
    assert launch.processes({"PMI_SIZE": "8"}) == 8
    assert launch.rank({"RANK": "2", "PMI_RANK": "5"}) == 2
