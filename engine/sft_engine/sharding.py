"""Model and optimizer state by parameter name, whole on every layout: plain, DDP or FSDP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sft_engine.errors import CheckpointError

if TYPE_CHECKING:
    from torch import nn

    from sft_engine.flow import Run


def is_sharded(run: Run) -> bool:
    """Say whether parameters are spread over ranks."""
    return str(run.accelerator.distributed_type).endswith("FSDP")


def state_of(run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return model and optimizer state keyed by parameter name (collective under FSDP)."""
    if is_sharded(run):
        return _gathered(run)
    state = run.optimizer.state_dict()
    names = _names(run)
    return run.model.state_dict(), {
        "state": {names[index]: value for index, value in state["state"].items()},
        "groups": [{k: v for k, v in g.items() if k != "params"} for g in state["param_groups"]],
    }


def load_state(run: Run, model: dict[str, Any], optimizer: dict[str, Any]) -> None:
    """Load what `state_of` returned.

    Raises:
        CheckpointError: the parameters are not those of the recipe's model.
    """
    if is_sharded(run):
        _scatter(run, model, optimizer)
        return
    load_model(run, model)
    index = {name: i for i, name in enumerate(_names(run))}
    current = run.optimizer.state_dict()["param_groups"]
    groups = [
        {**saved, "params": own["params"]}
        for saved, own in zip(optimizer["groups"], current, strict=True)
    ]
    state = {index[name]: value for name, value in optimizer["state"].items()}
    run.optimizer.load_state_dict({"state": state, "param_groups": groups})


def load_model(run: Run, model: dict[str, Any]) -> None:
    """Load model weights alone.

    Raises:
        CheckpointError: the parameters are not those of the recipe's model.
    """
    if is_sharded(run):
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

        set_model_state_dict(run.wrapped, model, options=StateDictOptions(full_state_dict=True))
        return
    try:
        run.model.load_state_dict(model, strict=True)
    except RuntimeError as error:
        reason = str(error).replace("\n", " ")
        raise CheckpointError(
            f"the weights of the checkpoint do not fit the model: {reason}"
        ) from error


def whole_model(run: Run) -> nn.Module:
    """Return the model with whole parameters on every rank, for saving (collective under FSDP)."""
    if not is_sharded(run):
        return run.model
    state, _ = _gathered(run)
    whole = run.backbone.build(run.task)
    if run.is_main:
        whole.load_state_dict(state)
    return whole


def _names(run: Run) -> list[str]:
    return [name for group in run.parameter_groups for name in group.names]


def _gathered(run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    model, optimizer = get_state_dict(run.wrapped, run.optimizer, options=options)
    return dict(model), dict(optimizer)


def _scatter(run: Run, model: dict[str, Any], optimizer: dict[str, Any]) -> None:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=False)
    set_state_dict(
        run.wrapped,
        run.optimizer,
        model_state_dict=model,
        optim_state_dict=optimizer,
        options=options,
    )
