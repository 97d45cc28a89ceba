"""How far predictions for versions of one example are apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def jensen_shannon_sum(logits: Sequence[Tensor]) -> Tensor:
    """Return the Jensen-Shannon divergence of several predictions, summed over examples, in nats.

    It is the mean of KL(p_i || m), m being the mean of the p_i; 0 where all agree, at most log(k) an
    example (Hendrycks et al. 2020, "AugMix", equation 2).

    Args:
        logits: k tensors (n, classes).
    """
    logs = torch.stack([each.float().log_softmax(dim=1) for each in logits])
    mean = logs.logsumexp(dim=0) - torch.tensor(float(len(logits))).log()
    divergence = torch.nn.functional.kl_div(
        mean.expand_as(logs), logs, reduction="sum", log_target=True
    )
    return divergence / len(logits)
