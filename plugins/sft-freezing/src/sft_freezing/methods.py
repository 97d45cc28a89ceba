"""Which methods of PEFT are not offered, and what adapters do not go with: known without importing PEFT."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from sft_engine import Problem

if TYPE_CHECKING:
    from sft_engine import Recipe

ADAPTED = ("lora", "adalora", "ia3", "peft")
"""Components of kind `freezing` that need PEFT."""

MISSING = "needs the library peft, which is not installed"
PIP = "pip install 'sft-freezing[peft]'"

_PROMPT = (
    "puts learned tokens in front of the input of a generation model, and what is trained here ends in the "
    "head of a task"
)
_OUTSIDE = (
    "keeps weights outside of the layers that it changes, so that they would be in no checkpoint"
)
_LORA, _VERA = 'take `use = "lora"` or `"ia3"`', 'take `method = "vera"`, or `use = "lora"`'

REFUSED = {
    "adaption_prompt": (_PROMPT, _LORA),
    "cartridge": (_PROMPT, _LORA),
    "cpt": (_PROMPT, _LORA),
    "multitask_prompt_tuning": (_PROMPT, _LORA),
    "p_tuning": (_PROMPT, _LORA),
    "prefix_tuning": (_PROMPT, _LORA),
    "prompt_tuning": (_PROMPT, _LORA),
    "frod": (_OUTSIDE, _VERA),
    "pvera": (_OUTSIDE, _VERA),
    "tinylora": (_OUTSIDE, _VERA),
    "unilora": (_OUTSIDE, _VERA),
    "vblora": (_OUTSIDE, _VERA),
    "adalora": ("has a component of its own", 'write `use = "adalora"`'),
    "ia3": ("has a component of its own", 'write `use = "ia3"`'),
    "poly": ("chooses its parts by the task of each example, and a recipe has one task", _LORA),
    "shadow": ("adds a second model beside the first", _LORA),
    "trainable_tokens": (
        "trains rows of the embeddings that were added to the vocabulary, and none is added here",
        'train all of them with `use = "frozen"` and `keep = ["head", "embeddings"]`',
    ),
    "xlora": ("mixes adapters that were trained before", _LORA),
}
"""Methods of PEFT by name: why they are not offered, and what to do instead."""

IDLE_IF_ZERO = {"re-init": "layers", "noisy-tune": "strength", "fgm": "epsilon"}
"""Regularizers that do not go with adapters, and the option that switches each off."""

_WHY = {
    "re-init": (
        "draws layers anew, which {} would leave as they are drawn",
        "leave it out, or set `layers = 0`",
    ),
    "noisy-tune": (
        "changes the weights that {} keeps, and the adapter alone would be nothing without that noise",
        "leave it out, or set `strength = 0`",
    ),
    "fgm": (
        "goes uphill along the gradient of the embedding weights, which {} freezes",
        "take freelb, which needs none",
    ),
}


def normal(method: str) -> str:
    """Return the name of a method as PEFT writes it: `LN-tuning` is `ln_tuning`."""
    return method.lower().replace("-", "_")


def adapter_problems(recipe: Recipe) -> Iterator[Problem]:
    """Yield what is wrong with adapters before anything is imported: the library, the method, company."""
    table = recipe.tables.get("freezing", {})
    use = str(table.get("use"))
    if use not in ADAPTED:
        return
    if find_spec("peft") is None:
        yield Problem("freezing.use", f"{use} {MISSING}", f"`{PIP}`")
    method = normal(str(table.get("method", ""))) if use == "peft" else use
    if use == "peft" and method in REFUSED:
        why, instead = REFUSED[method]
        yield Problem("freezing.method", f"{method} {why}", instead)
    yield from _company(method, recipe.tables.get("regularizer", ()))


def _company(method: str, regularizers: Any) -> Iterator[Problem]:
    tables: list[Mapping[str, Any]] = list(regularizers)
    for index, other in enumerate(tables):
        use = str(other.get("use"))
        if use in _WHY and other.get(IDLE_IF_ZERO[use]) != 0:
            why, instead = _WHY[use]
            message = f"{use} beside {method}: {use} {why.format(method)}"
            yield Problem(f"regularizer[{index}]", message, instead)
