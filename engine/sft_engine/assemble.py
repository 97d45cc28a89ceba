"""Plan → Run: the only module that constructs things. Each step is one short function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from sft_engine import order, ranks
from sft_engine.devices import Precision, choose_precision, make_accelerator, set_threads, wrap
from sft_engine.dispatch import RunHooks
from sft_engine.errors import DataError, RecipeError
from sft_engine.feed import Feed
from sft_engine.flow import TARGET, Active, Clock, ParameterGroup, Run, Seeds, Split, split_of
from sft_engine.preflight import Finding, preflight
from sft_engine.preparation import (
    fingerprint,
    prepare_given,
    prepare_splits,
    prepare_stream,
    settle,
)
from sft_engine.records import library_versions
from sft_engine.streams import Streams, plan_phases
from sft_engine.tables import table_roles

if TYPE_CHECKING:
    from accelerate import Accelerator
    from datasets import Dataset

    from sft_engine.catalog import Plan
    from sft_engine.components import Backbone, OptimizerFactory, Schedule, Task
    from sft_engine.dispatch import Monitor
    from sft_engine.settings import SeedSettings


@dataclass
class Assembled:
    """A Run with what only its driver needs.

    Args:
        run: The run, wrapped and ready.
        feed: This rank's training batches of every stream.
        precision: Autocast and gradient scaler.
        base_lr: Learning rate of each parameter group before the schedule.
        findings: What the preflight saw.
        fingerprints: Content hash of each split.
    """

    run: Run
    feed: Streams
    precision: Precision
    base_lr: list[float]
    findings: list[Finding]
    fingerprints: dict[str, str] = field(default_factory=dict)


@dataclass
class Reopened:
    """A finished run, for evaluation and prediction: no feed, no optimizer."""

    run: Run
    precision: Precision


MATRIX = 2
"""Dimensions from which on a parameter gets weight decay."""

Check = Callable[[], None]
"""Called between steps; raises Interrupted if a signal came."""


def assemble(
    plan: Plan, folder: Path, check: Check = lambda: None, monitor: Monitor | None = None
) -> Assembled:
    """Build everything that a training run needs.

    Args:
        plan: The checked recipe.
        folder: The run folder.
        check: Called between the steps.
        monitor: Called around each hook of each component.

    Raises:
        RecipeError: components do not fit together, or the ranks do not agree.
        DataError: the data does not fit the recipe.
    """
    set_threads(plan.train)
    accelerator = make_accelerator(plan.train)
    check_ranks_agree(plan, accelerator, choose_precision(plan.train, accelerator).name)
    seeds = derive_seeds(plan.seeds)
    active = build_components(plan)
    backbone = _one(active, "backbone")
    ranks.one_rank_first(accelerator, lambda: backbone.open(plan.resolve))
    _check_all(accelerator, check)
    folder = ranks.from_main(accelerator, folder)
    run = _new_run(plan, folder, accelerator, seeds, active, monitor)
    run.splits, fingerprints = ranks.one_rank_first(accelerator, lambda: build_data(run))
    check_data_agrees(fingerprints, accelerator)
    _check_all(accelerator, check)
    findings = judge_data(run)
    if run.hooks.sft_build_data is not None:
        for name, split in run.splits.items():
            run.hooks.sft_build_data(run=run, split=name, data=split)
    build_model(run)
    precision = choose_precision(plan.train, accelerator, run.model)
    _check_all(accelerator, check)
    base_lr = build_optimizer(run, _one(active, "optimizer"))
    feed = build_streams(run)
    run.phases, run.clock = feed.phases, make_clock(feed)
    wrap(run)
    return Assembled(run, feed, precision, base_lr, findings, fingerprints)


def reopen(
    plan: Plan, folder: Path, label_names: tuple[str, ...], rows: dict[str, Dataset] | None = None
) -> Reopened:
    """Build what evaluation and prediction with the final weights of a run need.

    Args:
        plan: The recipe of the run folder.
        folder: The run folder; weights and preprocessing are read from its `model/`.
        label_names: What training called the outputs.
        rows: Raw rows by split instead of the recipe's data; empty for prediction alone.
    """
    set_threads(plan.train)
    accelerator = make_accelerator(plan.train)
    seeds = derive_seeds(plan.seeds)
    active = build_components(plan)
    backbone, task = _one(active, "backbone"), _one(active, "task")
    backbone.open(lambda _: str(folder / "model"))
    run = _new_run(plan, folder, accelerator, seeds, active)
    run.reopened = True
    data = replace(plan.data, label_names=label_names)
    if rows is None:
        prepared = prepare_splits(_one(active, "data").load(), data, task, seeds)
        run.splits, _ = encode_splits(prepared, task, backbone)
    elif rows:
        run.splits, _ = encode_splits(prepare_given(rows, data, task), task, backbone)
    else:
        task.prepare({}, label_names)
    build_model(run)
    wrap(run)
    return Reopened(run, choose_precision(plan.train, accelerator, run.model))


def build_components(plan: Plan) -> list[Active]:
    """Construct the components in the order of the plan.

    A component may have a method `check()`, which raises RecipeError for options that no annotation can
    judge, such as the name of a class; it is called before any data is read.
    """
    active = [Active(p, p.build()) for p in plan.components]
    for each in active:
        if hasattr(each.component, "check"):
            each.component.check()
    return active


def derive_seeds(settings: SeedSettings) -> Seeds:
    """Derive the seeds that the recipe does not give from the one that it does."""

    def seed(name: str) -> int:
        own: int | None = getattr(settings, name)
        return own if own is not None else order.mix(settings.seed, order.name_key(name)) >> 1

    return Seeds(*(seed(name) for name in ("init", "order", "subset", "noise")))


def check_ranks_agree(plan: Plan, accelerator: Accelerator, precision: str) -> None:
    """Compare recipe, plugins, libraries and precision of all ranks.

    Raises:
        RecipeError: two ranks do not run the same; on every rank.
    """
    if accelerator.num_processes == 1:
        return
    own = [*plan.recipe.to_toml().splitlines(), f"precision {precision}"]
    own += [f"{name} {version}" for name, version in library_versions().items()]
    own += [
        f"{p.key} = {p.entry.name} of {p.entry.distribution} {p.entry.version}"
        for p in plan.components
    ]
    everyone = ranks.everyones(accelerator, own)
    for rank, other in enumerate(everyone):
        if other == everyone[0]:
            continue
        here = "; ".join(sorted(set(everyone[0]) - set(other))) or "nothing more"
        there = "; ".join(sorted(set(other) - set(everyone[0]))) or "nothing more"
        raise RecipeError(
            f"rank 0 and rank {rank} do not run the same: rank 0 has {here}, rank {rank} has {there}; "
            "install the same versions and use the same recipe on every machine"
        )


def check_data_agrees(fingerprints: dict[str, str], accelerator: Accelerator) -> None:
    """Compare the data of all ranks.

    Raises:
        DataError: two ranks read different rows; on every rank.
    """
    everyone = ranks.everyones(accelerator, fingerprints)
    for rank, other in enumerate(everyone):
        differing = [name for name in other if other[name] != everyone[0].get(name)]
        if differing:
            raise DataError(
                f"rank 0 and rank {rank} read different rows of the {differing[0]} split: put the same "
                "files on every machine"
            )


def _check_all(accelerator: Accelerator, check: Check) -> None:
    with ranks.together(accelerator):
        check()


def build_data(run: Run) -> tuple[dict[str, Split], dict[str, str]]:
    """Load, prepare and encode the recipe's data.

    Returns:
        The splits by name, and a content hash of each.
    """
    source = _one(run.active, "data")
    raw = source.load()
    data = settle(raw, run.plan.data, run.task, run.backbone, _name_in(run.plan))
    run.plan = replace(run.plan, data=data)
    rows = prepare_splits(raw, data, run.task, run.seeds, load_streams(run))
    return encode_splits(rows, run.task, run.backbone)


def read_rows(plan: Plan, split: str) -> tuple[Dataset, tuple[str, ...]]:
    """Load and prepare the recipe's data; return the rows of a split, and the roles of its inputs."""
    active = build_components(plan)
    task, raw = _one(active, "task"), _one(active, "data").load()
    data = settle(raw, plan.data, task, _one(active, "backbone"), _name_in(plan))
    rows = prepare_splits(raw, data, task, derive_seeds(plan.seeds))
    return rows[split], tuple(task.inputs)


def _name_in(plan: Plan) -> Callable[[str], str]:
    """Return what gives the name of a kind's component in the recipe."""
    return lambda kind: next(planned.name for planned in plan.all(kind))


def _tables_of(run: Run) -> dict[str, str | list[str]]:
    """Return the columns of the target data's tables: those of a stream have the same names."""
    return {role: c for role, c in run.plan.data.columns.items() if role in table_roles(run.task)}


def load_streams(run: Run) -> dict[str, Dataset]:
    """Load the training rows of every stream beside the target data, by its name."""
    sources = [active.component for active in run.active if active.planned.kind == "stream"]
    return {
        settings.name: prepare_stream(
            source.load(),
            replace(settings, columns=_tables_of(run) | settings.columns),
            run.task,
            order.mix(run.seeds.subset, order.name_key(settings.name)),
        )
        for source, settings in zip(sources, run.plan.streams, strict=True)
    }


def encode_splits(
    rows: dict[str, Dataset], task: Task, backbone: Backbone
) -> tuple[dict[str, Split], dict[str, str]]:
    """Encode prepared splits.

    Returns:
        The splits by name, and a content hash of each.
    """
    splits = {
        name: Split(name=name, rows=part, examples=backbone.encode(part, task))
        for name, part in rows.items()
    }
    return splits, {name: fingerprint(part) for name, part in rows.items()}


def judge_data(run: Run) -> list[Finding]:
    """Look at the data before training.

    Raises:
        DataError: nothing could be learnt from it.
    """
    findings = preflight(
        {name: split.rows for name, split in run.splits.items()},
        run.task,
        {name: split.examples for name, split in run.splits.items()},
        [stream.name for stream in run.plan.streams],
    )
    for finding in findings:
        if finding.level == "stop":
            raise DataError(finding.message)
    return findings


def build_model(run: Run) -> None:
    """Build the model under the `init` seed and read its layer groups."""
    torch.manual_seed(run.seeds.init & (2**63 - 1))
    run.model = run.wrapped = run.backbone.build(run.task)
    if run.hooks.sft_build_model is not None:
        run.hooks.sft_build_model(run=run)
    if run.plan.train.gradient_checkpointing:
        _checkpoint_gradients(run)
    # A component that changed the model may have said what its layer groups are now.
    run.layer_groups = run.layer_groups or run.backbone.layer_groups(run.model)
    check_layer_groups(run)
    run.model.to(run.device)


def _checkpoint_gradients(run: Run) -> None:
    names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")  # new, old
    enable = next((getattr(run.model, n) for n in names if hasattr(run.model, n)), None)
    if enable is None:
        raise RecipeError(
            f"`train.gradient_checkpointing`: {type(run.model).__name__} does not offer it; leave the "
            "key out and set a smaller `train.micro_batch_size`"
        )
    enable()


def check_layer_groups(run: Run) -> None:
    """Make sure that every parameter is in exactly one layer group.

    Raises:
        RecipeError: the backbone, or a component that changed the model, left one out.
    """
    grouped = [name for group in run.layer_groups for name in group.parameters]
    names = {name for name, _ in run.model.named_parameters()}
    if sorted(grouped) == sorted(names):
        return
    missing, foreign = sorted(names - set(grouped)), sorted(set(grouped) - names)
    twice = sorted({name for name in grouped if grouped.count(name) > 1})
    raise RecipeError(
        f"layer groups of {type(run.model).__name__}: not in any: {missing[:3]}, not in the model: "
        f"{foreign[:3]}, in more than one: {twice[:3]}; `Backbone.layer_groups` must name each "
        "parameter once"
    )


def build_optimizer(run: Run, factory: OptimizerFactory) -> list[float]:
    """Build the optimizer over all parameters, frozen ones too.

    Returns:
        The learning rate of each parameter group before the schedule.
    """
    groups = parameter_groups(run)
    if run.hooks.sft_param_groups is not None:
        run.hooks.sft_param_groups(run=run, groups=groups)
    run.parameter_groups = merged(groups)
    parameters = dict(run.model.named_parameters())
    torch_groups = [
        {
            "params": [parameters[name] for name in group.names],
            "lr": factory.lr * group.lr_scale,
            "weight_decay": (
                factory.weight_decay if group.weight_decay is None else group.weight_decay
            ),
        }
        for group in run.parameter_groups
    ]
    rates = [cast("float", group["lr"]) for group in torch_groups]
    run.optimizer = factory.build(torch_groups)
    return rates


def parameter_groups(run: Run) -> list[ParameterGroup]:
    """Return a group for each layer group, split in parameters with and without weight decay.

    Biases and norm weights, which have fewer than two dimensions, get none, unless the recipe says
    `train.decay_all`.
    """
    parameters = dict(run.model.named_parameters())
    groups = []
    for index, layer_group in enumerate(run.layer_groups):
        small = [n for n in layer_group.parameters if parameters[n].ndim < MATRIX]
        if run.plan.train.decay_all:
            small = []
        large = [n for n in layer_group.parameters if n not in set(small)]
        if large:
            groups.append(ParameterGroup(large, index))
        if small:
            groups.append(ParameterGroup(small, index, weight_decay=0.0, tags={"no-decay"}))
    return groups


def merged(groups: list[ParameterGroup]) -> list[ParameterGroup]:
    """Join groups that differ in nothing: the optimizer runs once for each group."""
    joined: dict[Any, ParameterGroup] = {}
    for group in groups:
        key = (group.lr_scale, group.weight_decay, frozenset(group.tags))
        if key in joined:
            joined[key].names.extend(group.names)
        else:
            joined[key] = ParameterGroup(
                list(group.names), group.layer_group, *key[:2], set(key[2])
            )
    return list(joined.values())


def build_streams(run: Run) -> Streams:
    """Build this rank's feeds, and the phases that they feed."""
    sizes = {TARGET: 0, **{stream.name: stream.batch_size for stream in run.plan.streams}}
    feeds = {name: build_feed(run, name, size) for name, size in sizes.items()}
    windows = {name: feed.windows_per_epoch for name, feed in feeds.items()}
    return Streams(feeds, plan_phases(run.plan, windows))


def build_feed(run: Run, stream: str = TARGET, batch_size: int = 0) -> Feed:
    """Build this rank's feed of a stream; a micro-batch is as large as batch size and ranks allow.

    Args:
        run: The run; its splits are there.
        stream: Its name; order and noise of all but the target data depend on it.
        batch_size: Examples of a window; 0 means `train.batch_size`.
    """
    train, seeds = run.plan.train, run.seeds
    world = run.accelerator.num_processes
    size = batch_size or train.batch_size
    key = () if stream == TARGET else (order.name_key(stream),)
    return Feed(
        split=run.splits[split_of(stream)],
        task=run.task,
        backbone=run.backbone,
        batch_size=size,
        micro_batch_size=train.micro_batch_size or -(-size // world),
        order_seed=order.mix(seeds.order, *key) if key else seeds.order,
        noise_seed=order.mix(seeds.noise, *key) if key else seeds.noise,
        buckets=train.length_buckets,
        rank=run.accelerator.process_index,
        world=world,
        workers=train.workers,
    )


def make_clock(feed: Streams) -> Clock:
    """Return the clock of a run that has not begun."""
    phases = feed.phases
    total = sum(phase.steps for phase in phases)
    clock = Clock(total_steps=total, steps_per_epoch=phases[0].steps_per_epoch)
    clock.follow(phases[0])
    return clock


def _new_run(
    plan: Plan,
    folder: Path,
    accelerator: Accelerator,
    seeds: Seeds,
    active: list[Active],
    monitor: Monitor | None = None,
) -> Run:
    """Return a Run whose model, optimizer and clock the following steps fill in."""
    nothing = torch.nn.Module()
    hooks = RunHooks(active, lambda run, batch: run.forward_backward(batch), monitor)
    return Run(
        plan=plan,
        folder=folder,
        seeds=seeds,
        accelerator=accelerator,
        task=_one(active, "task"),
        backbone=_one(active, "backbone"),
        splits={},
        active=active,
        hooks=hooks,
        model=nothing,
        wrapped=nothing,
        layer_groups=[],
        parameter_groups=[],
        optimizer=cast("torch.optim.Optimizer", None),
        schedule=cast("Schedule", _one(active, "schedule")),
        clock=Clock(total_steps=1, steps_per_epoch=1),
        record=lambda _: None,
    )


def _one(active: list[Active], kind: str) -> Any:
    return next(a.component for a in active if a.planned.kind == kind)
