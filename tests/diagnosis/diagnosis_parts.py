"""Tiny tasks, and what makes a run ill: data sources and components that the tests name in recipes."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from datasets import Dataset

from sft_engine import Action, Verdict, hookimpl

WORDS = "aabbccddefgh"


class Letters:
    """Random letters; the label is which of some letters is the most frequent.

    Args:
        train: Rows.
        held_out: Rows of validation and of test.
        classes: How many letters are compared.
        flip: Share of labels, of all splits, that are those of another class.
        largest: Share of the rows of the first class; 0 for what comes.
        repeat: Share of the held-out rows that are training rows.
        edit: The repeated ones get another beginning.
        reveal: The label stands in the text.
        constant: All texts are the same.
        shift: Letters are compared from this one on; another task on the same texts.
        longest: Most letters.
        seed: Of the draws.
    """

    def __init__(  # noqa: PLR0917
        self,
        train: Annotated[int, Gt(0)] = 256,
        held_out: Annotated[int, Gt(0)] = 128,
        classes: Annotated[int, Ge(2), Le(4)] = 2,
        flip: float = 0.0,
        largest: float = 0.0,
        repeat: float = 0.0,
        edit: bool = False,
        reveal: bool = False,
        constant: bool = False,
        shift: int = 0,
        longest: int = 24,
        seed: int = 0,
    ) -> None:
        self.__dict__.update({k: v for k, v in locals().items() if k != "self"})

    def load(self) -> dict[str, Dataset]:
        """Return three splits, and `anchor`: the same texts with the labels of the unshifted task."""
        draws = np.random.default_rng(self.seed)
        train = self._rows(draws, self.train)
        splits = {"train": train, "validation": self._held_out(draws, train)}
        splits["test"] = self._held_out(draws, train)
        shift, self.shift = self.shift, 0
        splits["anchor"] = self._rows(draws, self.held_out)
        self.shift = shift
        return {
            name: Dataset.from_dict({"text": [t for t, _ in rows], "label": [y for _, y in rows]})
            for name, rows in splits.items()
        }

    def _held_out(self, draws, train):
        rows = self._rows(draws, self.held_out)
        for place in range(round(self.repeat * self.held_out)):
            text, label = train[draws.integers(len(train))]
            rows[place] = ("now " + text[3:] if self.edit else text, label)
        return rows

    def _rows(self, draws, number):
        rows = []
        while len(rows) < number:
            text, label = self._text(draws)
            first = label == "a"
            if self.largest and first != (len(rows) < self.largest * number):
                continue
            if draws.random() < self.flip:
                label = "abcd"[("abcd".index(label) + 1) % self.classes]
            if self.reveal:
                text = f"{text} label={label}"
            rows.append(("a constant" if self.constant else text, label))
        order = draws.permutation(number)
        return [rows[i] for i in order]

    def _text(self, draws):
        text = "".join(draws.choice(list(WORDS), size=draws.integers(8, self.longest + 1)))
        counts = [text.count("abcdef"[i + self.shift]) for i in range(self.classes)]
        return text, "abcd"[int(np.argmax(counts))]


class Numbers:
    """Columns of numbers; the label is a class of some clouds, or a sum with a little noise.

    Args:
        rows: How many.
        classes: Clouds; 0 for a sum.
        seed: Of the draws.
    """

    def __init__(self, rows: int = 400, classes: int = 3, seed: int = 0) -> None:
        self.rows, self.classes, self.seed = rows, classes, seed

    def load(self) -> dict[str, Dataset]:
        """Return one split with the columns `x0` to `x3` and `label`."""
        draws = np.random.default_rng(self.seed)
        table = draws.normal(size=(self.rows, 4))
        if self.classes:
            label = draws.integers(self.classes, size=self.rows)
            table[:, :2] += 2.5 * np.stack([np.cos(2 * label), np.sin(2 * label)], axis=1)
            column = [f"c{each}" for each in label]
        else:
            column = table @ np.array([1.0, -0.5, 0.25, 0.0]) + 0.2 * draws.normal(size=self.rows)
        columns = {f"x{i}": table[:, i] for i in range(4)}
        return {"train": Dataset.from_dict({**columns, "label": column})}


# --- what makes a run ill --------------------------------------------------------------------------


class FrozenHead:
    """The head does not train."""

    @hookimpl
    def sft_train_start(self, run):
        run.model.head.requires_grad_(False)
        run.model.norm.requires_grad_(False)


class NoGradient:
    """No gradient reaches the head."""

    @hookimpl
    def sft_gradients(self, run):
        for name in run.layer_groups[-1].parameters:
            run.model.get_parameter(name).grad.zero_()


class Kick:
    """One step throws the weights away.

    Args:
        step: Which.
        size: Of the noise that is added.
    """

    def __init__(self, step: int = 60, size: float = 3.0) -> None:
        self.step, self.size = step, size

    @hookimpl
    def sft_step_end(self, run):
        if run.clock.step == self.step:
            for parameter in run.model.parameters():
                parameter.data += self.size * torch.randn_like(parameter)


class Zeros:
    """All weights begin at zero."""

    @hookimpl
    def sft_build_model(self, run):
        for parameter in run.model.parameters():
            parameter.data.zero_()


class Growth:
    """All weights grow in every step.

    Args:
        factor: By this.
    """

    def __init__(self, factor: float = 1.06) -> None:
        self.factor = factor

    @hookimpl
    def sft_step_end(self, run):
        for parameter in run.model.parameters():
            parameter.data *= self.factor


class Lopsided:
    """The head leans to one class, whatever it learns."""

    @hookimpl
    def sft_step_end(self, run):
        run.model.head.bias.data[0] = 5.0
        run.model.head.weight.data.clamp_(-0.05, 0.05)


class Skips:
    """Every few steps are not taken.

    Args:
        every: How many.
    """

    def __init__(self, every: int = 4) -> None:
        self.every = every

    @hookimpl
    def sft_step_verdict(self, run):
        if run.clock.step % self.every == self.every - 1:
            return Verdict(Action.SKIP, "a test skips it")
        return None


class Poison:
    """One gradient is NaN.

    Args:
        step: Which.
    """

    def __init__(self, step: int = 20) -> None:
        self.step = step

    @hookimpl
    def sft_gradients(self, run):
        if run.clock.step == self.step:
            run.model.head.bias.grad.fill_(torch.nan)


class Swings:
    """Every second epoch the weights of the head are those of a far too confident model."""

    @hookimpl
    def sft_epoch_end(self, run):
        factor = 8.0 if run.clock.epoch % 2 == 0 else 1 / 8.0
        run.model.head.weight.data *= factor
