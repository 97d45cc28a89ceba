"""What all augmentations of single rows have in common: how often, until when, on which split."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sft_engine import RecipeError, hookimpl

if TYPE_CHECKING:
    import numpy as np

    from sft_engine import Clock, Run, Split


class RowAugmentation:
    """Changes rows of the training split, one by one.

    The generator of a row depends on the seed, the pass over the data and the example: a row is changed
    in the same way in whatever batch, process or order it comes. A subclass says how, in `change`.

    Without strength nothing is registered: the run is that of a recipe without the component.
    """

    def __init__(self, share: float, until: float) -> None:
        self.share, self.until = share, until
        self.active = True

    @property
    def effective(self) -> bool:
        """Whether the options can change any row."""
        return self.share > 0 and self.until > 0

    def prepare(self, data: Split) -> None:
        """Look at the training split before anything is drawn from it; may raise RecipeError."""

    def change(self, row: dict[str, Any], draws: np.random.Generator) -> dict[str, Any]:
        """Return the changed row; the row given may be changed in place."""
        raise NotImplementedError

    def transform(self, row: dict[str, Any], draws: np.random.Generator) -> dict[str, Any]:
        """Change a share of the rows, while the component is at work."""
        if not self.active or draws.random() >= self.share:
            return row
        return self.change(row, draws)

    @hookimpl
    def sft_build_data(self, run: Run, split: str, data: Split) -> None:
        """Join the transforms of the training split."""
        if split != "train" or not self.effective:
            return
        try:
            self.prepare(data)
        except RecipeError as error:
            own = next(each.planned for each in run.active if each.component is self)
            raise RecipeError(f"`{own.key}`, {own.name}: {error}") from error
        data.transforms.append(self.transform)

    @hookimpl
    def sft_epoch_start(self, run: Run) -> None:
        """Switch off in an epoch that begins at `until` or later.

        Not in the middle of one: background processes fetch windows ahead of the clock, and a row would
        depend on how far ahead.
        """
        self.active = begun(run.clock) < self.until


def begun(clock: Clock) -> float:
    """Return the share of the run that was done when the current epoch began."""
    return (clock.step - clock.window) / clock.total_steps
