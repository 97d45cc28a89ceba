"""A component that keeps what a comparison of weights needs: the start, and which are the head's."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sft_engine import hookimpl

START: dict[str, Tensor] = {}
HEAD: set[str] = set()
"""Of the latest run: a component's constructor takes nothing but options."""


class Watch:
    """Keeps the pretrained weights, and the names of the head's."""

    @hookimpl(tryfirst=True)
    def sft_build_model(self, run: Any) -> None:
        """Copy the weights before any component changes them."""
        START.clear()
        START.update({n: p.detach().clone() for n, p in run.model.named_parameters()})

    @hookimpl
    def sft_setup(self, run: Any) -> None:
        """Note which parameters are the head's, which have no pretrained weights."""
        HEAD.clear()
        HEAD.update(run.layer_groups[-1].parameters)
