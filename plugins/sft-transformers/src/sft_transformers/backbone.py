"""The backbone component: any text encoder or decoder that transformers can load."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Lt

from sft_engine import DataError, RecipeError

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn

    from sft_engine.components import Example, LayerGroup, Resolve, Task
    from sft_transformers.tokens import TokenizedExamples

_ROLES = ("text", "text_pair")
_PROBE = "The quick brown fox jumps over the lazy dog, and then it sleeps."


class Transformers:
    """A text encoder or decoder from the transformers library, ended in a head for the task.

    Args:
        name: Hub id, local folder, or a name that a plugin offers, such as `demo:minilm`.
        revision: Branch, tag or commit of a hub id; empty for its main branch.
        max_length: Longest input in tokens, the rest is cut; 0 for the model's own limit.
        head: `model` takes the one that transformers has for this architecture, `own` puts dropout
            and a linear layer on pooled states, `auto` is `model` where there is one.
        pooling: For `own`: state of the first or last token or mean of all; `auto` takes what the
            checkpoint was trained with, else the last for decoders, the first where there is [CLS].
        head_dropout: For `own`: share of the pooled state that is dropped in training.
        attention: Implementation of attention: `auto`, `sdpa`, `eager`, `flash_attention_2` and so on.
        dtype: Precision of the weights; fp32 is right unless memory is short.
        cache: Keep tokens on disk, so that the next run on the same texts need not make them again.
        trust_remote_code: Run Python code that comes with the model; read it first.
    """

    export_formats = ("hf",)

    def __init__(  # noqa: PLR0913 - options of a recipe
        self,
        *,
        name: str,
        revision: str = "",
        max_length: Annotated[int, Ge(0)] = 256,
        head: Literal["auto", "own", "model"] = "auto",
        pooling: Literal["auto", "first", "mean", "last"] = "auto",
        head_dropout: Annotated[float, Ge(0), Lt(1)] = 0.1,
        attention: str = "auto",
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        cache: bool = True,
        trust_remote_code: bool = False,
    ) -> None:
        self.name = name
        self.revision = revision
        self.max_length = max_length
        self.head = head
        self.pooling = pooling
        self.head_dropout = head_dropout
        self.attention = attention
        self.dtype = dtype
        self.cache = cache
        self.trust_remote_code = trust_remote_code

    # --- Preprocessing ---------------------------------------------------------------------------

    def open(self, resolve: Resolve) -> None:
        """Read configuration and tokenizer.

        Raises RecipeError if the model cannot be found or read, or its weights are pickles.
        """
        from sft_transformers.models import decide_head, takes
        from sft_transformers.sources import Source, settle_padding
        from sft_transformers.tokens import Tokenization

        location = str(resolve(self.name))
        self.source = Source(self.name, location, self.revision, self.trust_remote_code)
        self.source.check()
        self.config = self.source.read_config()
        self.tokenizer = self.source.read_tokenizer()
        settle_padding(self.config, self.tokenizer, self.source)
        self._own_head = decide_head(self.head, self.source, self.config)
        types = takes(self.config, self.tokenizer, own=self._own_head, name="token_type_ids")
        self._padding = {"input_ids": self.config.pad_token_id}
        self._padding |= {"token_type_ids": self.tokenizer.pad_token_type_id} if types else {}
        self.tokenization = Tokenization(
            self.tokenizer,
            limit=self._limit(),
            token_types=types,
            # T5 and BART read the state at the end token: a second one, typed by a user, stops them.
            literal=self.config.is_encoder_decoder,
        )

    def _limit(self) -> int | None:
        from sft_transformers.sources import longest_input

        limits = [n for n in (self.max_length, longest_input(self.config, self.tokenizer)) if n]
        limit = min(limits, default=None)
        added = self.tokenizer.num_special_tokens_to_add(pair=True)
        if limit is not None and limit <= added:
            raise RecipeError(
                f"[backbone] max_length = {self.max_length} leaves no room for text: the tokenizer "
                f"adds up to {added} tokens of its own, allow more, such as 128."
            )
        return limit

    def encode(self, rows: Dataset, task: Task) -> TokenizedExamples:
        """Tokenize a split once and whole, or read its tokens from the cache.

        Raises DataError for a row without text, RecipeError if tokenizer and model do not fit.
        """
        from sft_transformers.tokens import TokenizedExamples

        columns = {role: rows[role][:] for role in _roles(task, rows.column_names)}
        texts, pairs = _texts(columns, "text"), _texts(columns, "text_pair")
        make = self.tokenization.cached if self.cache else self.tokenization.tokenize
        tokens = make(texts or [], pairs)
        self._check_ids(int(tokens.input_ids.max(initial=0)))
        targets = {task.target: rows[task.target][:]} if task.target in rows.column_names else {}
        return TokenizedExamples(tokens, targets)

    def encode_rows(self, rows: list[dict[str, Any]], task: Task) -> list[Example]:
        """Tokenize rows on the fly. Raises DataError for a row without text."""
        if not rows:
            return []
        columns = {role: [row.get(role) for row in rows] for role in _roles(task, list(rows[0]))}
        texts, pairs = _texts(columns, "text"), _texts(columns, "text_pair")
        tokens = self.tokenization.tokenize(texts or [], pairs)
        return [
            tokens[index] | ({task.target: row[task.target]} if task.target in row else {})
            for index, row in enumerate(rows)
        ]

    def word_spans(
        self, rows: list[dict[str, Any]], task: Task
    ) -> list[list[tuple[str, int, int] | None]] | None:
        """Return for each token of each row the word that it is of; None if the tokenizer does not know."""
        columns = {role: [row.get(role) for row in rows] for role in _roles(task, list(rows[0]))}
        texts, pairs = _texts(columns, "text"), _texts(columns, "text_pair")
        found = self.tokenization.word_spans(texts or [], pairs)
        if found is None:
            return None
        return [[span and (_ROLES[span[0]], *span[1:]) for span in each] for each in found]

    @property
    def fillers(self) -> dict[str, int]:
        """Tokens that say nothing, by name."""
        tokens = {"mask": self.tokenizer.mask_token_id, "pad": self.tokenizer.pad_token_id}
        return {name: token for name, token in tokens.items() if token is not None}

    def collate(self, examples: list[Example]) -> dict[str, Tensor]:
        """Pad to the longest example; every tensor is int64 [examples, tokens]."""
        import numpy as np
        import torch

        lengths = np.array([len(example["input_ids"]) for example in examples])
        width, left = lengths.max(), self.tokenizer.padding_side == "left"
        places = np.arange(width)
        mask = places >= width - lengths[:, None] if left else places < lengths[:, None]
        batch = {}
        for name, padding in self._padding.items():
            padded = np.full(mask.shape, padding, np.int64)
            padded[mask] = np.concatenate([example[name] for example in examples])
            batch[name] = torch.from_numpy(padded)
        return batch | {"attention_mask": torch.from_numpy(mask.astype(np.int64))}

    # --- Model -----------------------------------------------------------------------------------

    def build(self, task: Task) -> nn.Module:
        """Load the weights and end them in the task's head.

        A head, or any other tensor, that the checkpoint lacks is drawn from torch's random state.
        Parameters that the logits do not depend on become buffers, see `retire_unused`.
        Raises RecipeError if the checkpoint does not fit, or the model cannot run.
        """
        from sft_transformers.first_use import retire_unused

        model: nn.Module = self._load(task)
        self._check_positions(model)
        try:
            retire_unused(model, self._probe)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            raise self.source.complain(f"cannot run on a short text: {said}") from error
        return model

    def _load(self, task: Task) -> Any:
        import torch

        from sft_transformers.models import choose_pooling, with_its_head, with_own_head

        options: dict[str, Any] = {"dtype": getattr(torch, self.dtype)}
        if self.attention != "auto":
            options["attn_implementation"] = self.attention
        if not self._own_head:
            return with_its_head(self.source, self.config, task.head, options)
        pooling = self.pooling
        if pooling == "auto":
            pooling = choose_pooling(self.source, self.config, self.tokenizer)
        return with_own_head(
            self.source,
            self.config,
            task.head,
            options,
            pooling=pooling,
            dropout=self.head_dropout,
            example=self._example(),
        )

    def _example(self) -> dict[str, Tensor]:
        return self.collate([self.tokenization.tokenize([_PROBE], None)[0]])

    def _probe(self, model: nn.Module) -> Any:
        """Run the model on a short text, wherever it is."""
        device = next(model.parameters()).device
        inputs = {name: value.to(device) for name, value in self._example().items()}
        return self.forward(model, inputs)

    def forward(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
        """Run the model; what it returns has `logits`, shape [examples, outputs]."""
        return model(**inputs)

    def layer_groups(self, model: nn.Module) -> list[LayerGroup]:
        """Return embeddings, one group a block, and head, in the order of a short forward pass."""
        from sft_transformers.first_use import first_use
        from sft_transformers.layer_groups import layer_groups

        return layer_groups(model, first_use(model, self._probe))

    def save(self, model: nn.Module, folder: Path, task: Task) -> None:  # noqa: ARG002 - contract
        """Write weights and tokenizer.

        `AutoModelForSequenceClassification.from_pretrained(folder)` gives the same logits, unless the
        head is our own: then `AutoModel` reads the encoder, and this backbone reads both.
        Raises OSError if there is no room.
        """
        from safetensors import SafetensorError

        from sft_transformers.sources import quiet

        folder.mkdir(parents=True, exist_ok=True)
        try:
            with quiet():
                model.save_pretrained(folder)  # type: ignore[operator]
                self.tokenizer.save_pretrained(folder)
        except SafetensorError as error:  # a full disk, in the words of safetensors
            raise OSError(str(error)) from error

    def load_exported(self, folder: Path, form: str) -> nn.Module | None:  # noqa: ARG002 - contract
        """Read a saved model with transformers alone; None if the head is our own."""
        from transformers import AutoModelForSequenceClassification

        from sft_transformers.sources import quiet

        if self._own_head:
            return None
        with quiet():
            options = {"trust_remote_code": self.trust_remote_code}
            model: nn.Module = AutoModelForSequenceClassification.from_pretrained(folder, **options)
        return model

    def preprocessing(self) -> dict[str, Any]:
        """Say how texts become tokens; the tokenizer's own files say the rest."""
        return {
            "kind": "tokens",
            "reader": "transformers.AutoTokenizer",
            "max_length": self.tokenization.limit,
            "truncation": True,
            "padding_side": self.tokenizer.padding_side,
            "padding": {**self._padding, "attention_mask": 0},
        }

    def _check_positions(self, model: nn.Module) -> None:
        """Refuse a length for which there are too few positions, before a text is that long."""
        from sft_transformers.models import usable_positions

        longest, limit = usable_positions(model), self.tokenization.limit
        if longest is not None and (limit is None or limit > longest):
            raise RecipeError(
                f"[backbone] max_length = {self.max_length} is too long for {self.name}, which has "
                f"{longest} positions: set max_length = {longest} or less."
            )

    def _check_ids(self, largest: int) -> None:
        known = getattr(self.config.get_text_config(), "vocab_size", None)
        if isinstance(known, int) and largest >= known:
            raise self.source.complain(
                f"has a tokenizer that does not belong to it: it made token {largest}, the model knows "
                f"{known}"
            )


def _roles(task: Task, columns: list[str]) -> list[str]:
    """Return which columns are tokenized. Raises RecipeError for a task that reads no text."""
    alien = [role for role, needed in task.inputs.items() if needed and role not in _ROLES]
    if alien or "text" not in task.inputs:
        raise RecipeError(
            '[backbone] use = "transformers" reads the roles text and text_pair, but the task needs '
            f"{alien or list(task.inputs)}: choose another backbone or another task."
        )
    if "text" not in columns:
        raise DataError(
            f'[data.columns] has no column for the role "text" among {columns}: name it, such as '
            'columns = { text = "review" }.'
        )
    return [role for role in _ROLES if role in task.inputs and role in columns]


def _texts(columns: Mapping[str, list[Any]], role: str) -> list[str] | None:
    """Return a column as text; a second text may be missing, and is empty then.

    Raises DataError with the first row that is no text.
    """
    if role not in columns:
        return None
    values = columns[role]
    if role == "text_pair":
        values = ["" if value is None else value for value in values]
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise DataError(
                f'[data] row {index}, role "{role}": found {value!r:.60} where a text is needed; give '
                "it one, or drop the row."
            )
    # A lone surrogate, from a terminal or a broken escape, is no text for a tokenizer.
    return [text.encode("utf-8", "replace").decode() for text in values]
