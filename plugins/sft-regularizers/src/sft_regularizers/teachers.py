"""Models that do not train: the start of this run, what an earlier run has left, or any other model."""

from __future__ import annotations

import copy
import json
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sft_engine import RecipeError, logits_of
from sft_regularizers.selection import beside

if TYPE_CHECKING:
    from sft_engine import Batch, Run

START = "start"

OWN = {"revision": "", "weights": "DEFAULT", "pretrained": True}
"""Options of a backbone that say where its own weights are, and what they are for another name."""

FEW = 8
"""Training rows by which the preprocessing of two backbones is compared."""


class Teacher:
    """A model that does not train, and how it reads a batch.

    A backbone that prepares examples as the run's own does gets the run's own inputs, augmented ones
    too. Any other reads the raw rows of the batch itself.
    """

    def __init__(self) -> None:
        self.model: nn.Module | None = None
        self._reader: Any = None
        self._order: Tensor | None = None
        self._loaded: dict[str, Tensor] = {}

    def attach(self, run: Run, source: str) -> None:
        """Build the teacher; the start of this run is taken from the checkpoint, if there is one.

        Args:
            run: The run that it teaches.
            source: `start`, the folder of a finished run, or a name of the backbone's own kind.

        Raises:
            RecipeError: there is no such model, or it was not trained for this run's classes.
        """
        model = copy.deepcopy(run.model) if source == START else self._build(run, source)
        self.model = model.to(run.device).requires_grad_(False).eval()  # noqa: FBT003
        if self._loaded:
            self.model.load_state_dict(beside(self._loaded, self.model.state_dict()))

    def _build(self, run: Run, source: str) -> nn.Module:
        folder = Path(source).expanduser()
        try:
            if (folder / "model").is_dir() and (folder / "recipe.toml").is_file():
                backbone, names = _of_run(run, folder)
                self._order = _order_of(run, names, exact=True)
            else:
                backbone, names = _of_name(run, source)
                self._order = _order_of(run, names, exact=False)
            model = _trained(run, backbone)
            self._reader = None if _prepares_alike(run, backbone) else backbone
            if self._reader is not None:
                _refuse_mixing(run)
        except RecipeError as error:
            raise RecipeError(f'`teacher`: found "{source}": {error}') from error
        return model

    def answer(self, run: Run, batch: Batch) -> Tensor:
        """Return the teacher's logits, in the order of the run's classes."""
        backbone: Any = run.backbone if self._reader is None else self._reader
        inputs = batch.inputs if self._reader is None else self._read(run, batch)
        with torch.no_grad():
            logits = logits_of(backbone.forward(self.model, inputs))
        return logits if self._order is None else logits[:, self._order.to(logits.device)]

    def _read(self, run: Run, batch: Batch) -> dict[str, Tensor]:
        inputs = _prepared(run, self._reader, batch.split, batch.ids)
        return {name: tensor.to(run.device) for name, tensor in inputs.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the weights of the teacher."""
        return {"teacher": {} if self.model is None else self.model.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        if self.model is None:  # else nothing has changed them
            self._loaded = dict(state["teacher"])


# --- Where a teacher comes from -------------------------------------------------------------------


def _of_run(run: Run, folder: Path) -> tuple[Any, Sequence[str]]:
    """Return the backbone of a finished run, opened on its final weights, and the names of its classes."""
    table = tomllib.loads((folder / "recipe.toml").read_text(encoding="utf-8"))["backbone"]
    entry = run.plan.catalog.get("backbone", table.pop("use"))
    if entry is None:
        raise RecipeError("its recipe names a backbone that is not installed")
    backbone: Any = replace(_planned(run), entry=entry, options=table).build()
    backbone.open(lambda _: str(folder / "model"))
    written = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return backbone, tuple(written["label_names"])


def _of_name(run: Run, name: str) -> tuple[Any, Sequence[str]]:
    """Return a backbone of the run's kind with another name, opened, and the names of its classes."""
    planned = _planned(run)
    if "name" not in planned.options:
        raise RecipeError(
            f'the backbone "{planned.name}" has no models by name; allowed: "start", or the folder of a '
            "finished run"
        )
    own = {key: value for key, value in _defaults(planned).items() if key in planned.options}
    backbone: Any = replace(planned, options={**planned.options, **own, "name": name}).build()
    location = run.plan.resolve(name)
    backbone.open(lambda _: location)
    return backbone, _names_of(backbone)


def _planned(run: Run) -> Any:
    return next(a.planned for a in run.active if a.planned.kind == "backbone")


def _defaults(planned: Any) -> dict[str, Any]:
    # `weights` is a file for timm, none by default, and a set of weights for torchvision.
    return OWN if planned.name == "torchvision" else OWN | {"weights": ""}


def _names_of(backbone: Any) -> Sequence[str]:
    """Return what a model's own configuration calls its classes; none for made-up names."""
    named = getattr(getattr(backbone, "config", None), "id2label", None) or {}
    names = tuple(str(name) for name in named.values())
    return () if any(name.startswith("LABEL_") for name in names) else names


def _trained(run: Run, backbone: Any) -> nn.Module:
    """Build the model, and make sure that nothing in it begins at random.

    Raises:
        RecipeError: a part of it, such as the head, is not among the weights.
    """
    model, other = (_built(run, backbone, seed) for seed in (1, 2))
    twin = other.state_dict()
    new = [n for n, each in model.state_dict().items() if not torch.equal(each, twin[n])]
    if new:
        raise RecipeError(
            f"there `{new[-1]}` is not trained for the {run.task.head.outputs} outputs of this task; "
            f'allowed: "{START}", the folder of a finished run, or a model with a head for: '
            f"{', '.join(run.task.head.names)}"
        )
    return model


def _built(run: Run, backbone: Any, seed: int) -> nn.Module:
    # What the weights lack is drawn from torch's generator: under another seed it would be another.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = backbone.build(run.task)
    return model


def _order_of(run: Run, names: Sequence[str], *, exact: bool) -> Tensor | None:
    """Return where each of the run's classes is among the teacher's; None if the order is the same.

    Args:
        run: The run.
        names: Of the teacher's classes; none if it does not say.
        exact: Whether other names are refused; else they are taken in their order, and that is said.

    Raises:
        RecipeError: the names are others.
    """
    head = run.task.head
    theirs, ours = ([name.casefold() for name in each] for each in (names, head.names))
    if head.kind == "regression" or not theirs or theirs == ours:
        return None
    if sorted(theirs) == sorted(ours):
        return torch.tensor([theirs.index(name) for name in ours])
    said = f"its classes are {', '.join(names)}, and the data has {', '.join(head.names)}"
    if exact:
        raise RecipeError(f"{said}: take a run on the same classes")
    if len(theirs) == len(ours):
        message = f"the teacher is taken in the order of its outputs: {said}"
        run.record({"kind": "notice", "step": run.clock.step, "message": message})
    return None


# --- What a teacher reads -------------------------------------------------------------------------


def _prepares_alike(run: Run, backbone: Any) -> bool:
    """Whether a backbone makes the same inputs of a few training rows as the run's own."""
    few = range(min(FEW, len(run.splits["train"])))
    own = _prepared(run, run.backbone, "train", few)
    theirs = _prepared(run, backbone, "train", few)
    return own.keys() == theirs.keys() and all(torch.equal(own[n], theirs[n]) for n in own)


def _prepared(run: Run, backbone: Any, split: str, ids: Sequence[int]) -> dict[str, Tensor]:
    rows = [dict(row) for row in run.splits[split].rows.__getitems__(list(ids))]
    inputs: dict[str, Tensor] = backbone.collate(backbone.encode_rows(rows, run.task))
    return inputs


def _refuse_mixing(run: Run) -> None:
    for each in run.active:
        capabilities = getattr(each.component, "capabilities", None)
        if getattr(capabilities, "changes_labels", False):
            raise RecipeError(
                f"it prepares examples in a way of its own, and so would not see what "
                f"{each.planned.name} mixes: leave {each.planned.name} out, or take a teacher with the "
                "preprocessing of `[backbone]`"
            )
