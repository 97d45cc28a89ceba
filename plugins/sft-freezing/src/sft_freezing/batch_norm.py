"""Batch norm as it was trained: statistics that stay, in a model of which the rest trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Le

from sft_engine import Capabilities, RecipeError, hookimpl

if TYPE_CHECKING:
    from torch import nn

    from sft_engine import Run


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """Return the batch norm modules of a model, those of several processes included."""
    from torch.nn.modules.batchnorm import _BatchNorm

    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


class BNFreeze:
    """Keep the statistics of batch norm, and normalise by them, while the rest trains.

    For batches too small, or too different, to give statistics of their own. What is frozen by
    `[freezing]` keeps them anyway.

    Args:
        affine: Freeze the scale and shift of batch norm too.
        after: Share of the run after which the statistics stay; before, they move as usual.
    """

    capabilities = Capabilities(replayable=True)

    def __init__(
        self,
        affine: bool = False,  # noqa: FBT001, FBT002  an option of a recipe
        after: Annotated[float, Ge(0), Le(1)] = 0.0,
    ) -> None:
        self.affine, self.after = affine, after
        self._norms: list[nn.Module] = []

    def check(self) -> None:
        """Refuse what cannot be: a frozen module is in evaluation mode from the start.

        Raises:
            RecipeError: `affine` together with `after`.
        """
        if self.affine and self.after:
            raise RecipeError(
                f"bn-freeze: `affine = true` freezes batch norm for the whole run, and `after` is "
                f"{self.after:g}; leave one of them out"
            )

    @hookimpl
    def sft_build_model(self, run: Run) -> None:
        """Find the modules; freeze their weights, if they shall be.

        Raises:
            RecipeError: there are none.
        """
        self._norms = batch_norms(run.model)
        if not self._norms:
            raise RecipeError(
                f"bn-freeze: {type(run.model).__name__} has no batch norm; leave bn-freeze out"
            )
        if self.affine:
            for module in self._norms:
                module.requires_grad_(requires_grad=False)

    @hookimpl
    def sft_batch(self, run: Run) -> None:
        """Put them into evaluation mode: the engine has just put what trains into training mode."""
        if run.clock.step >= self.after * run.clock.total_steps:
            for module in self._norms:
                if module.training:
                    module.eval()
