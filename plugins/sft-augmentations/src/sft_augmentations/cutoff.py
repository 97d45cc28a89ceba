"""Token cut-off: Shen et al. 2020, "A Simple but Tough-to-Beat Data Augmentation Approach for NLU"."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor

from sft_augmentations.batches import BatchAugmentation
from sft_engine import Batch, RecipeError

if TYPE_CHECKING:
    from sft_engine import Run

Mode = Literal["token", "span"]


def cut_tokens(open_to_cut: Tensor, rate: float) -> Tensor:
    """Draw which tokens are cut (n, length): each that may be, with probability `rate`.

    An example that would lose all its tokens keeps them. Draws from torch's generator of the CPU.

    Args:
        open_to_cut: Flags (n, length) of the tokens that may be cut.
        rate: Probability.
    """
    cut = (torch.rand(open_to_cut.shape) < rate) & open_to_cut
    return cut & ~_all_of(cut, open_to_cut)


def cut_span(open_to_cut: Tensor, rate: float) -> Tensor:
    """Draw which tokens are cut (n, length): a span of `rate` of those that may be, rounded.

    Its begin is uniform over all places where it fits. Draws from torch's generator of the CPU.

    Args:
        open_to_cut: Flags (n, length) of the tokens that may be cut.
        rate: Share of them.
    """
    count = open_to_cut.sum(dim=1)
    length = (rate * count).round().long()
    begin = (torch.rand(len(count)) * (count - length + 1)).long()
    number = open_to_cut.cumsum(dim=1) - 1
    inside = (number >= begin.unsqueeze(1)) & (number < (begin + length).unsqueeze(1))
    cut = inside & open_to_cut
    return cut & ~_all_of(cut, open_to_cut)


def _all_of(cut: Tensor, open_to_cut: Tensor) -> Tensor:
    return (cut == open_to_cut).all(dim=1, keepdim=True)


class Cutoff(BatchAugmentation):
    """Hide tokens of a text from the model.

    Attention does not see a hidden token, and the mask token (padding, if there is none) stands in its
    place, so that the others keep their positions. Special tokens are never hidden, and never all others
    of a text. The paper sets embeddings to zero instead.

    Args:
        rate: Share of the tokens that are hidden, of a text that is changed at all.
        share: Share of the texts that are changed.
        mode: Tokens one by one (`token`), or next to each other (`span`).
        until: Off after this share of the run.
    """

    def __init__(
        self,
        rate: Annotated[float, Ge(0), Le(1)] = 0.1,
        share: Annotated[float, Ge(0), Le(1)] = 0.5,
        mode: Mode = "token",
        until: Annotated[float, Ge(0), Le(1)] = 1.0,
    ) -> None:
        super().__init__(until)
        self.rate, self.share, self.mode = rate, share, mode

    @property
    def effective(self) -> bool:
        """Whether anything is hidden."""
        return super().effective and self.rate > 0 and self.share > 0

    def change(self, run: Run, batch: Batch, *, again: bool) -> None:
        """Hide tokens."""
        tokenizer = _tokenizer(run, batch)
        ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
        special = torch.tensor(sorted(_special_ids(tokenizer)))
        open_to_cut = mask.bool().cpu() & ~torch.isin(ids.cpu(), special)
        cut = (cut_tokens if self.mode == "token" else cut_span)(open_to_cut, self.rate)
        cut = (cut & (torch.rand(len(ids), 1) < self.share)).to(ids.device)
        if not again:
            # Not padding, where there is a choice: RoBERTa counts positions by what is none.
            stand_in = tokenizer.mask_token_id
            stand_in = tokenizer.pad_token_id if stand_in is None else stand_in
            batch.inputs["input_ids"] = ids.masked_fill(cut, stand_in)
            batch.inputs["attention_mask"] = mask.masked_fill(cut, 0)


def _special_ids(tokenizer: Any) -> set[int]:
    """Return the ids of tokens that are no part of the text; an unknown word is one."""
    names = ("cls", "sep", "bos", "eos", "pad")
    frame = {getattr(tokenizer, f"{name}_token_id") for name in names}
    unknown = {tokenizer.unk_token_id} - frame
    return (set(tokenizer.all_special_ids) | frame) - unknown - {None}


def _tokenizer(run: Run, batch: Batch) -> Any:
    tokenizer = getattr(run.backbone, "tokenizer", None)
    missing = {"input_ids", "attention_mask"} - set(batch.inputs)
    if tokenizer is None or missing or tokenizer.pad_token_id is None:
        raise RecipeError(
            "`cutoff` hides tokens by `input_ids` and `attention_mask`, and the backbone "
            f"{type(run.backbone).__name__} gives its model {', '.join(batch.inputs)}; remove it, or use "
            "`word-dropout`, which changes the text itself"
        )
    return tokenizer
