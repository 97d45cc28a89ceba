"""What enters the last layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sft_engine.features import last_input


def test_it_is_the_input_of_the_layer_called_last() -> None:
    first, last = nn.Linear(3, 4), nn.Linear(4, 2)
    model = nn.ModuleDict({"last": last, "first": first})  # the order of the calls counts
    inputs = torch.ones(5, 3)
    with last_input(model) as seen:
        hidden = first(inputs).relu()
        last(hidden)
    assert len(seen) == 1
    assert seen[0] is hidden
    last(inputs @ torch.ones(3, 4))
    assert seen[0] is hidden  # nothing listens any more


def test_a_model_whose_layers_were_not_called_is_an_error() -> None:
    model = nn.Linear(3, 4)
    with pytest.raises(LookupError, match="no layer with weights was called"), last_input(model):
        pass
    with pytest.raises(ZeroDivisionError), last_input(model):
        raise ZeroDivisionError
    assert not model._forward_pre_hooks
