"""Other shares of dropout and stochastic depth than those that the model comes with."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Lt
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from sft_engine import RecipeError, hookimpl

if TYPE_CHECKING:
    from sft_engine import Run

Share = Annotated[float, Ge(0), Lt(1)]
Where = Literal["hidden", "attention", "head"]

KINDS: tuple[Where, ...] = ("hidden", "attention", "head")

NUMBER = re.compile(r"(?!.*(path|layer|depth|connect))(.*drop.*|p_drop.*)")
"""Attributes that hold a share of dropout as a number: `attention_dropout`, `drop_rate`, `dropout_p`."""

PATH = re.compile(r"drop_path\d*|stochastic_depth\d*")
"""Attributes that hold stochastic depth, or nothing where there is none: timm, torchvision, transformers."""

BEFORE_BLOCKS = re.compile(r"pos|emb|patch|token")


@dataclass(eq=False)
class Slot:
    """A share that can be set: an attribute of a module.

    Args:
        path: Of the module and, if that is no dropout itself, the attribute.
        owner: The module.
        attribute: Its attribute.
        where: What it drops.
    """

    path: str
    owner: nn.Module
    attribute: str
    where: Where = "hidden"

    @property
    def share(self) -> float:
        """What it is now."""
        return float(getattr(self.owner, self.attribute) or 0.0)

    @share.setter
    def share(self, value: float) -> None:
        setattr(self.owner, self.attribute, value)


# --- Dropout --------------------------------------------------------------------------------------


def dropout_slots(model: nn.Module, head: Iterable[str]) -> Iterator[Slot]:
    """Yield every share of dropout in a model: of its modules, and numbers that functions are given.

    Args:
        model: The model.
        head: Names of the parameters of the head.
    """
    head = set(head)
    for path, module in model.named_modules():
        parent_path, _, name = path.rpartition(".")
        parent = model.get_submodule(parent_path)
        if isinstance(module, _DropoutNd):
            yield Slot(path, module, "p", _where(name, parent_path, parent, head))
            continue
        if PATH.fullmatch(name):
            continue
        for attribute, value in vars(module).items():
            if NUMBER.fullmatch(attribute) and _is_share(value):
                full = f"{path}.{attribute}".lstrip(".")
                yield Slot(full, module, attribute, _where(attribute, path, module, head))


def _is_share(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1


def _where(name: str, path: str, parent: nn.Module, head: set[str]) -> Where:
    """Say what a dropout drops, by its name and the module that it is in."""
    if "att" in name or (name == "dropout" and "Attention" in type(parent).__name__):
        return "attention"
    own = {f"{path}.{each}".lstrip(".") for each, _ in parent.named_parameters()}
    if (own and own <= head) or (not path and not BEFORE_BLOCKS.search(name)):
        return "head"
    return "hidden"


class Dropout:
    """Set the shares of dropout that the model comes with to others.

    Works on modules of dropout, and on the numbers that models of transformers, timm and torch hand to a
    function (`attention_dropout`, `drop_rate`). What the recipe does not give stays as it is. The log
    says what was changed; the configuration that is saved with the model is not.

    Args:
        p: Of all dropout, or of all that `only` matches.
        hidden: Of hidden states and embeddings; goes before `p`.
        attention: Of attention weights; goes before `p`.
        head: Of what goes into the head; goes before `p`.
        only: Shell patterns of what to set, by its path in the model, such as `*.layer.11.*`; empty for all.
    """

    def __init__(
        self,
        p: Share | None = None,
        hidden: Share | None = None,
        attention: Share | None = None,
        head: Share | None = None,
        only: tuple[str, ...] = (),
    ) -> None:
        self.p, self.only = p, tuple(only)
        self.shares: dict[Where, float | None] = {
            "hidden": hidden,
            "attention": attention,
            "head": head,
        }
        self._said: list[str] = []

    def check(self) -> None:
        """Refuse to be there for nothing.

        Raises:
            RecipeError: no share is given.
        """
        if self.p is None and all(share is None for share in self.shares.values()):
            raise RecipeError(
                "dropout changes nothing without a share: set `p`, `hidden`, `attention` or `head`"
            )

    @hookimpl
    def sft_build_model(self, run: Run) -> None:
        """Set the shares.

        Raises:
            RecipeError: the model has no dropout of a kind that is asked for, or a pattern matches none.
        """
        head = run.backbone.layer_groups(run.model)[-1].parameters
        slots = list(dropout_slots(run.model, head))
        chosen = _chosen(slots, self.only, run.model)
        for where, share in self.shares.items():
            if share is not None and not any(slot.where == where for slot in chosen):
                raise RecipeError(_nothing(f"`{where}` of dropout", f"{where} dropout", slots, run))
        if not chosen:
            raise RecipeError(_nothing("dropout", "dropout", slots, run))
        wanted = {slot: self._wanted(slot) for slot in chosen}
        self._said = [_changed("dropout", wanted)]
        _set(wanted)

    def _wanted(self, slot: Slot) -> float:
        own = self.shares[slot.where]
        share = self.p if own is None else own
        return slot.share if share is None else share

    @hookimpl
    def sft_train_start(self, run: Run) -> None:
        """Say what was changed."""
        _say(run, self._said)


def _chosen(slots: Sequence[Slot], only: Sequence[str], model: nn.Module) -> list[Slot]:
    for pattern in only:
        if not any(fnmatchcase(slot.path, pattern) for slot in slots):
            known = f"such as `{slots[0].path}`" if slots else "of which there is none"
            raise RecipeError(
                f'`only` of dropout: "{pattern}" matches no dropout of {type(model).__name__}, {known}'
            )
    return [s for s in slots if not only or any(fnmatchcase(s.path, each) for each in only)]


def _nothing(key: str, what: str, slots: Sequence[Slot], run: Run) -> str:
    kinds = [where for where in KINDS if any(slot.where == where for slot in slots)]
    has = f"; it has dropout of: {', '.join(kinds)}" if kinds else ""
    return f"{key}: {type(run.model).__name__} has no {what} to set{has}: leave the option out"


# --- Stochastic depth -----------------------------------------------------------------------------


class DropPath(nn.Module):
    """Leave out the residual branch of random examples, and scale what stays (Huang et al. 2016).

    Args:
        p: Probability of leaving out.
    """

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        self.p = p

    def forward(self, branch: Tensor) -> Tensor:
        """Return the branch (n, ...), zero for some examples in training."""
        if not self.training or self.p == 0:
            return branch
        shape = (len(branch), *[1] * (branch.ndim - 1))
        return branch * branch.new_empty(shape).bernoulli_(1 - self.p).div_(1 - self.p)

    def extra_repr(self) -> str:
        """Show the probability."""
        return f"p={self.p}"


def depth_slots(model: nn.Module) -> dict[str, list[Slot]]:
    """Return the places of stochastic depth by block, in the order of registration.

    Places that are empty, as where the model was built without it, get a `DropPath` that does nothing.
    """
    blocks: dict[str, list[Slot]] = {}
    for path, block in list(model.named_modules()):
        held = {**vars(block), **block._modules}  # noqa: SLF001 - named_children() leaves out None
        for name, value in sorted(held.items()):
            slot = _depth_slot(block, name, value) if PATH.fullmatch(name) else None
            if slot is not None:
                full = f"{path}.{name}".lstrip(".")
                blocks.setdefault(path, []).append(Slot(full, slot, _attribute(slot)))
    return blocks


def _depth_slot(block: nn.Module, name: str, value: Any) -> nn.Module | None:
    if isinstance(value, nn.Module) and not isinstance(value, nn.Identity):
        return value if _attribute(value) else None
    if value is None or isinstance(value, nn.Identity):
        made = DropPath()
        setattr(block, name, made)
        return made
    return None


def _attribute(module: nn.Module) -> str:
    """Return under which name a module of stochastic depth keeps its probability."""
    return next((name for name in ("p", "drop_prob") if hasattr(module, name)), "")


def depth_shares(present: Sequence[float], p: float, spread: str) -> list[float]:
    """Return the probability of each block.

    Args:
        present: What they are now, first block first.
        p: The largest; that of the last block if they rise.
        spread: `own` keeps their proportions, and rises if there are none; `linear` rises from 0;
            `constant` is the same for all.
    """
    largest = max(present)
    if spread == "constant":
        return [p] * len(present)
    if spread == "own" and largest:
        return list(present) if p == largest else [p * (each / largest) for each in present]
    last = max(len(present) - 1, 1)
    return [p * index / last for index in range(len(present))]


class DropPathOverride:
    """Set the stochastic depth of the model: how often a residual branch is left out in training.

    Works where a model has a place for it, at 0 too: most of timm, torchvision's EfficientNet, ConvNeXt
    and Swin, the image models of transformers. The log says what was changed.

    Args:
        p: Probability of the last block, or the largest of all.
        spread: `own` keeps the proportions that the model has, and rises if it has none; `linear` rises
            from 0 at the first block to `p` at the last; `constant` is `p` for all.
    """

    def __init__(
        self, p: Share = 0.1, spread: Literal["own", "linear", "constant"] = "own"
    ) -> None:
        self.p, self.spread = p, spread
        self._said: list[str] = []

    @hookimpl
    def sft_build_model(self, run: Run) -> None:
        """Set the probabilities.

        Raises:
            RecipeError: the model has no place for it.
        """
        blocks = depth_slots(run.model)
        if not blocks:
            raise RecipeError(
                f"drop-path: {type(run.model).__name__} has no stochastic depth: leave drop-path out, or "
                "take a model that has, such as ConvNeXt, EfficientNet or a vision transformer of timm"
            )
        present = [max(slot.share for slot in slots) for slots in blocks.values()]
        shares = depth_shares(present, self.p, self.spread)
        wanted = {
            slot: share
            for slots, share in zip(blocks.values(), shares, strict=True)
            for slot in slots
        }
        self._said = [_changed("stochastic depth", wanted)]
        _set(wanted)

    @hookimpl
    def sft_train_start(self, run: Run) -> None:
        """Say what was changed."""
        _say(run, self._said)


# --- What they share ------------------------------------------------------------------------------


def _set(wanted: Mapping[Slot, float]) -> None:
    for slot, share in wanted.items():
        slot.share = share


def _changed(what: str, wanted: Mapping[Slot, float]) -> str:
    """Say in one sentence what will be changed."""
    changes: dict[tuple[str, float, float], list[str]] = {}
    for slot, share in wanted.items():
        if slot.share != share:
            changes.setdefault((slot.where, slot.share, share), []).append(slot.path)
    if not changes:
        return f"{what} is as it was: the model has what the recipe asks for"
    parts = [
        f"{before:g} to {after:g} in {len(paths)} {'place' if len(paths) == 1 else 'places'}, "
        f"such as {paths[0]}"
        for (_, before, after), paths in changes.items()
    ]
    return f"{what} was changed from " + "; from ".join(parts)


def _say(run: Run, sentences: Iterable[str]) -> None:
    if run.clock.step == 0:
        for message in sentences:
            run.record({"kind": "notice", "step": 0, "message": message})
