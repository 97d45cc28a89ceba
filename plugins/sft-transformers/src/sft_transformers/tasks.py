"""Which of the engine's tasks the backbones here cannot do; imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sft_engine import Problem

TAKES = {"transformers": "text-", "transformers-audio": "audio-"}
"""By backbone, how the names of the engine's tasks begin that it can do."""

_WORDS = {"text-": "texts", "audio-": "recordings", "image-": "images", "tabular-": "tables"}
_ADVICE = {
    "text-": '"transformers"',
    "audio-": '"transformers-audio"',
    "image-": '"timm" or "torchvision"',
    "tabular-": '"mlp"',
}


def problems(recipe: Any) -> Iterator[Problem]:
    """Yield a problem where task and backbone are about different things; tasks of others are not judged."""
    uses = {each.kind: each.use for each in recipe.components}
    backbone, task = uses.get("backbone", ""), uses.get("task", "")
    about = next((start for start in _WORDS if task.startswith(start)), "")
    if backbone in TAKES and about and about != TAKES[backbone]:
        yield Problem(
            "backbone.use",
            f'"{backbone}" takes {_WORDS[TAKES[backbone]]}, and the task "{task}" gives {_WORDS[about]}',
            f"for that task set use = {_ADVICE[about]}",
        )
