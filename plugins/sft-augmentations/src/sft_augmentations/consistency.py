"""How far predictions for versions of one example are apart."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sft_engine.builtin.losses import at_least_float32


def jensen_shannon_sum(logits: Sequence[Tensor]) -> Tensor:
    """Return the Jensen-Shannon divergence of several predictions, summed over examples, in nats.

    It is the mean of KL(p_i || m), m being the mean of the p_i; 0 where all agree, at most log(k) an
    example (Hendrycks et al. 2020, "AugMix", equation 2).

    Args:
        logits: k tensors (n, classes).
    """
    logs = torch.stack([at_least_float32(each).log_softmax(dim=1) for each in logits])
    mean = logs.logsumexp(dim=0) - math.log(len(logits))
    divergence = torch.nn.functional.kl_div(
        mean.expand_as(logs), logs, reduction="sum", log_target=True
    )
    return divergence / len(logits)
