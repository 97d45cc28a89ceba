"""Every hook of the engine: the manual of a plugin author.

A hook's docstring says *when* it fires, *on which ranks*, *what may change* and *what a return means*.
An implementation may take fewer arguments than are listed. First in the recipe runs first; hooks
whose name ends in `_end`, and `sft_teardown`, run in the opposite order. Implement a hook as a method
of a component, marked with `hookimpl`; `sft_register`, `sft_check_recipe`, `sft_cli` and
`sft_study_report` are functions of a plugin's module, because no component exists when they are called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    import click
    from torch import Tensor, nn

    from sft_engine.catalog import Catalog
    from sft_engine.flow import Batch, LossTerm, ParameterGroup, Run, Split, Verdict, View
    from sft_engine.recipe import Problem, Recipe

PROJECT = "sft_engine"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

# --- Before a run: functions of the plugin's module, no torch -----------------------------------


@hookspec
def sft_register(catalog: Catalog) -> None:
    """Add components to the catalog with `catalog.add(kind, name, target, summary)`.

    When: the plugin is loaded, in every command. Ranks: all. May change: the catalog.
    Must not import torch: a target is a string, "package.module:Class".
    """


@hookspec
def sft_check_recipe(recipe: Recipe) -> Iterable[Problem]:  # type: ignore[empty-body]
    """Report problems that lie between components, such as two that exclude each other.

    When: `check` and every run, after names and options were checked, before torch is imported; only
    plugins that supply a component of the recipe are asked. `recipe` has every default written out.
    Ranks: all. May change: nothing.
    Returns: problems (key, message, hint); any problem stops the run.
    """


@hookspec
def sft_cli(group: click.Group) -> None:
    """Add verbs to the command line with `group.add_command`.

    When: a verb is asked for that the engine does not have, and by `sft-engine plugins`, which lists
    them. Ranks: all. May change: the click group. Import nothing heavy outside the command's own
    function. The engine's own verbs cannot be replaced.
    """


# --- After a study: a function of the plugin's module --------------------------------------------


@hookspec
def sft_study_report(folder: Path, study: Mapping[str, Any], report: dict[str, Any]) -> None:
    """Add a section to the report of a study, as `sft_report` does to that of a run.

    When: the runs of a study have ended, and again if its command is repeated; the engine's own sections are
    there already. Only plugins that supply a component of the study's recipe are asked. `study` is what
    study.json says; of its `cells`, those with the state `complete` have a run folder, `folder/runs/NAME`.
    Ranks: 0 only. May change: `report` (JSON values).
    """


# --- Building ------------------------------------------------------------------------------------


@hookspec
def sft_build_data(run: Run, split: str, data: Split) -> None:
    """Change a split before anything is drawn from it.

    When: once for each split, after encoding, before the model is built; each `[[stream]]` is a split
    under its own name, and like `train` is trained on. Ranks: all, equally.
    May change: `data`: sampler weights, transforms of examples.
    """


@hookspec
def sft_build_model(run: Run) -> None:
    """Change the model: another head, surgery, adapters, a snapshot of the start by name.

    When: once, after the weights are loaded, before layer groups are read; also where a finished run is
    opened again to be evaluated, used or exported. `run.reopened` is true then, and the weights are what
    `sft_save_model` left: put nothing back that it took off. Ranks: all, equally.
    May change: `run.model`; `run.layer_groups`, if the backbone would not know those of the new model: it
    is asked only if they are still empty.
    """


@hookspec
def sft_param_groups(run: Run, groups: list[ParameterGroup]) -> None:
    """Set learning-rate scale, weight decay and tags of the optimizer's parameter groups.

    When: once, before the optimizer is built. All parameters are there, frozen ones too. Ranks: all.
    May change: the groups in place; a group may be split, but every parameter stays in exactly one.
    """


@hookspec
def sft_setup(run: Run) -> None:
    """Attach to the finished run.

    When: once, after the model is wrapped and a checkpoint, if any, was restored: `run.clock` holds
    the true position. Ranks: all. May change: the component itself.
    """


# --- Training ------------------------------------------------------------------------------------


@hookspec
def sft_train_start(run: Run) -> None:
    """Training begins, or goes on after a resume.

    When: before the first window of this process. Ranks: all. May change: `requires_grad`, control.
    """


@hookspec
def sft_train_end(run: Run) -> None:
    """Training has ended normally, also by `run.control.stop`; not after an exception.

    When: after the last step, before the final evaluation. Ranks: all, in reverse order.
    May change: weights (averages).
    """


@hookspec
def sft_phase_start(run: Run) -> None:
    """A phase of the recipe begins (a recipe without phases has one).

    When: before its first epoch, and again on resume if it has been begun; `run.phase` has its name,
    length, streams and learning rate, `run.clock` its place in the run. Ranks: all.
    May change: `requires_grad`, as a pure function of the position; control.
    """


@hookspec
def sft_phase_end(run: Run) -> None:
    """A phase has ended.

    When: after its last step, and the evaluation and checkpoint that are due then; also when
    `run.control.stop` ends the run within it. Ranks: all, in reverse order.
    May change: `requires_grad`, control.
    """


@hookspec
def sft_epoch_start(run: Run) -> None:
    """An epoch begins.

    When: before its first window, and again on resume inside it. Ranks: all.
    May change: `requires_grad`, as a pure function of the position; control.
    """


@hookspec
def sft_epoch_end(run: Run) -> None:
    """An epoch has ended.

    When: after its last step, before the evaluation and the checkpoint that are due then.
    Ranks: all, in reverse order. May change: control.
    """


@hookspec
def sft_step_start(run: Run) -> None:
    """A window begins.

    When: once for each window, before its first micro-batch is moved to the device. Ranks: all.
    May change: `requires_grad`, and `factors` of `run.parameter_groups`, each component under a name of its
    own, by which the learning rate of this step is multiplied; as a pure function of the position.
    """


@hookspec
def sft_batch(run: Run, batch: Batch) -> None:
    """Change a training micro-batch: mixup, noise.

    When: each micro-batch, on the device, before the forward pass; not in evaluation. `batch.split`
    tells which stream its examples are of.
    Ranks: all, each with its own batch. May change: `batch.inputs` and `batch.targets`.
    """


@hookspec
def sft_micro_step(run: Run, batch: Batch) -> Iterator[None]:  # type: ignore[empty-body]
    """Wrap forward + loss + backward of one micro-batch (`hookimpl(wrapper=True)`, one `yield`).

    When: each micro-batch. Ranks: all. May change: embeddings, weights or gradients around the inner
    step; `run.forward_backward(batch)` runs the inner step once more and adds to the gradients.
    The `yield` raises what the inner step raises, and gives nothing. Returns: nothing.
    """


@hookspec
def sft_loss_terms(run: Run, batch: Batch, outputs: Any) -> Iterable[LossTerm]:  # type: ignore[empty-body]
    """Add named terms to the loss.

    When: each micro-batch, after the task's own loss, inside autocast. Ranks: all.
    May change: nothing. Returns: terms, each with its sum and what it is counted per: `item` or
    `token` (divided by their number in the stream's part of the window over all ranks, times the
    stream's weight) or `step` (counted once a window, whatever its streams).
    """


@hookspec
def sft_gradients(run: Run) -> None:
    """Edit the gradients of a complete window: masks, surgery, decoupled pulls, a second pass.

    When: after the last backward pass of the window, synchronized and unscaled, before clipping.
    Ranks: all, equally. May change: `.grad`, and the learning rates of this step in
    `run.optimizer.param_groups`; `run.replay_window()` computes the gradients again.
    """


@hookspec
def sft_step_verdict(run: Run, grad_norm: Tensor) -> Verdict | None:
    """Judge the step before it is taken.

    When: after clipping; `grad_norm` (scalar, on the device) is the norm before clipping.
    Ranks: all; the strictest verdict of all components and ranks holds.
    Returns: None or a verdict: step < skip < roll back < stop, with the reason.
    """


@hookspec
def sft_step_end(run: Run) -> None:
    """A step was taken (not after a skipped one).

    When: after `optimizer.step()`, before the gradients are dropped. Ranks: all, in reverse order.
    May change: weights (moving averages, projections).
    """


# --- Evaluation ----------------------------------------------------------------------------------


@hookspec
def sft_eval_views(run: Run, split: str) -> Iterable[View]:  # type: ignore[empty-body]
    """Offer more views of a split: averaged weights, corrupted data, an attack.

    When: at the start of each evaluation. Ranks: all, equally. May change: nothing.
    Returns: views, evaluated after the plain one; their metrics are logged as `VIEW/METRIC`.
    """


@hookspec
def sft_eval_batch(run: Run, view: View, batch: Batch, outputs: Any) -> None:
    """See an evaluation batch.

    When: after its forward pass, without gradients. Ranks: all, each with its own share.
    May change: the component itself (accumulate).
    """


@hookspec
def sft_metrics(
    run: Run, view: View, values: dict[str, float], predictions: Mapping[str, Tensor]
) -> None:
    """See and extend the metrics of a view.

    When: after each view, values being equal on all ranks; `run.evaluating` is the split. `predictions` is
    what the task keeps of each example (`Task.predictions`), of all ranks, in host memory, in the order
    of `view.examples(split)`. Ranks: all.
    May change: `values` (add), `run.control` (stop).
    """


# --- Records and the end -------------------------------------------------------------------------


@hookspec
def sft_log(run: Run, record: dict[str, Any]) -> None:
    """Pass a record on to a tracker.

    When: after it was written to metrics.jsonl. Ranks: 0 only. May change: nothing.
    """


@hookspec
def sft_report(run: Run, report: dict[str, Any]) -> None:
    """Add a section to report.json, which `report.html` shows: see `sft_engine.sections`.

    When: once, after the final evaluation; the engine's own sections and figures are there already.
    Ranks: 0 only. May change: `report` (JSON values).
    """


@hookspec
def sft_save_model(run: Run, model: nn.Module, folder: Path) -> None:
    """Make of a trained model what its library reads: merge adapters, take off what was put in.

    When: once, after the report, before the backbone writes `model/`. Ranks: 0 only.
    May change: `model`, a copy of `run.model` with whole parameters, in place; it must give the same
    outputs afterwards, and be what `Backbone.build` makes. `run.model` and the checkpoints keep what trains.
    May write: into a subfolder of `folder`, which becomes `model/` when all is written.
    """


@hookspec
def sft_teardown(run: Run, error: BaseException | None) -> None:
    """Release what the component holds.

    When: always, also after an exception or a signal. Ranks: all, in reverse order.
    May change: the component itself. An exception in here is reported and does not hide `error`.
    """
