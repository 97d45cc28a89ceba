"""Text to tokens: a whole split at once, held as flat arrays, cached on disk by content."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from platformdirs import user_cache_dir
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sft_transformers.words import word_spans

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sft_engine.components import Example
    from sft_transformers.words import Span

_FORMAT = "tokens-1"
_PORTION = 2_000
_log = logging.getLogger("sft_transformers")


@dataclass(frozen=True)
class Tokens:
    """Tokens of many texts, one after the other.

    Args:
        input_ids: Token ids of all texts, int32, shape [total].
        token_type_ids: Segment of each token, uint8, shape [total]; None where the model has none.
        offsets: Where each text begins, and the end, int64, shape [texts + 1].
        truncated: Whether a text was cut, bool, shape [texts].
        unknown: How many tokens the vocabulary does not know.
    """

    input_ids: NDArray[np.int32]
    token_type_ids: NDArray[np.uint8] | None
    offsets: NDArray[np.int64]
    truncated: NDArray[np.bool_]
    unknown: int

    def __len__(self) -> int:
        return len(self.truncated)

    def __getitem__(self, index: int) -> Example:
        """Return the model inputs of one text, as views."""
        inside = slice(self.offsets[index], self.offsets[index + 1])
        if self.token_type_ids is None:
            return {"input_ids": self.input_ids[inside]}
        return {
            "input_ids": self.input_ids[inside],
            "token_type_ids": self.token_type_ids[inside],
        }


class TokenizedExamples:
    """An encoded split: tokens and the prepared target column.

    Attributes:
        lengths: Tokens of each example, shape [examples].
        truncated: Whether an example was cut, shape [examples].
        unknown_share: Share of tokens that the vocabulary does not know.
    """

    def __init__(self, tokens: Tokens, targets: dict[str, Sequence[Any]]) -> None:
        self.tokens = tokens
        self.targets = targets
        self.lengths: NDArray[np.int64] = np.diff(tokens.offsets)
        self.truncated = tokens.truncated
        self.unknown_share = tokens.unknown / max(1, len(tokens.input_ids))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitems__(self, ids: Sequence[int]) -> list[Example]:
        """Return examples; their arrays are views and must not be written to."""
        tokens, targets = self.tokens, self.targets.items()
        return [tokens[i] | {name: column[i] for name, column in targets} for i in ids]


@contextmanager
def _in_parallel() -> Iterator[None]:
    """Let the tokenizer use all cores now, and one afterwards, unless the user decided.

    A loader's worker is a fork: there the tokenizer's thread pool hangs if it was asked for, and if
    nothing was said, tokenizers before 0.23 print a warning in every worker.
    """
    name = "TOKENIZERS_PARALLELISM"
    if name in os.environ:
        yield
        return
    os.environ[name] = "true"
    try:
        yield
    finally:
        os.environ[name] = "false"


class Tokenization:
    """How texts become tokens.

    Args:
        tokenizer: Of the transformers library, fast or not.
        limit: Longest input in tokens; None for no limit.
        token_types: Whether the model takes `token_type_ids`.
        literal: Read names of special tokens inside a text, such as `</s>`, as characters.
    """

    def __init__(
        self, tokenizer: Any, *, limit: int | None, token_types: bool, literal: bool = False
    ) -> None:
        self.tokenizer = tokenizer
        self.limit = limit
        self.token_types = token_types
        self.literal = literal
        special = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.cls_token_id)
        # The tokenizer of a decoder makes no token at all of an empty text.
        stand_ins = (*special, tokenizer.pad_token_id)
        self._stand_in = next((token for token in stand_ins if token is not None), 0)
        # GPT-2 names its end of text as the unknown token too, though bytes leave nothing unknown.
        unknown = tokenizer.unk_token_id
        self._unknown = -1 if unknown is None or unknown in special else int(unknown)

    @cached_property
    def _vocabulary(self) -> str:
        return _vocabulary_hash(self.tokenizer)

    def tokenize(self, texts: list[str], pairs: list[str] | None) -> Tokens:
        """Tokenize texts or pairs of texts."""
        with _in_parallel():
            parts = [
                self._portion(texts[i : i + _PORTION], pairs and pairs[i : i + _PORTION])
                for i in range(0, len(texts), _PORTION)
            ]
        ids = [np.asarray(row, np.int32) for rows, _, _ in parts for row in rows]
        types = [np.asarray(row, np.uint8) for _, rows, _ in parts for row in rows]
        flat = np.concatenate([np.empty(0, np.int32), *ids])
        return Tokens(
            input_ids=flat,
            token_type_ids=np.concatenate([np.empty(0, np.uint8), *types])
            if self.token_types
            else None,
            offsets=np.cumsum([0, *map(len, ids)], dtype=np.int64),
            truncated=np.asarray([cut for _, _, cuts in parts for cut in cuts], np.bool_),
            unknown=int(np.count_nonzero(flat == self._unknown)),
        )

    def word_spans(
        self, texts: list[str], pairs: list[str] | None
    ) -> list[list[Span | None]] | None:
        """Return the word of each token of texts or pairs, see `words`; None if the tokenizer is no fast one."""
        encoded = self._call(texts, pairs, truncation=self.limit is not None)
        if encoded.encodings is None:
            return None
        return [
            word_spans(encoding, inputs) or [None]
            for encoding, inputs in zip(
                encoded.encodings, zip(texts, *([pairs] if pairs else []), strict=True), strict=True
            )
        ]

    def _portion(
        self, texts: list[str], pairs: list[str] | None
    ) -> tuple[list[list[int]], list[list[int]], list[bool]]:
        encoded = self._call(texts, pairs, truncation=self.limit is not None)
        if encoded.encodings is not None:
            cuts = [bool(encoding.overflowing) for encoding in encoded.encodings]
        elif self.limit is None:
            cuts = [False] * len(texts)
        else:  # a tokenizer in Python does not tell
            whole = self._call(texts, pairs, truncation=False)
            cuts = [len(row) > self.limit for row in whole["input_ids"]]
        ids = [row or [self._stand_in] for row in encoded["input_ids"]]
        types = encoded["token_type_ids"] if self.token_types else [[] for _ in ids]
        return ids, [row or [0] for row in types], cuts

    def _call(self, texts: list[str], pairs: list[str] | None, *, truncation: bool) -> Any:
        return self.tokenizer(
            texts,
            pairs,
            truncation=truncation,
            max_length=self.limit if truncation else None,
            return_attention_mask=False,
            return_token_type_ids=self.token_types,
            verbose=False,
            **({"split_special_tokens": True} if self.literal else {}),
        )

    def fingerprint(self, texts: list[str], pairs: list[str] | None) -> str:
        """Return a name for the result of `tokenize`: equal only if the result is."""
        digest = xxhash.xxh3_128()
        versions = (version("tokenizers"), version("transformers"))
        setting = (_FORMAT, *versions, self._vocabulary, self.limit, self.token_types, self.literal)
        digest.update(repr(setting).encode())
        for column in (texts, pairs or []):
            digest.update(f"\0{len(column)}\0".encode())
            for text in column:
                data = text.encode("utf-8", "surrogatepass")
                digest.update(len(data).to_bytes(8, "little"))
                digest.update(data)
        return digest.hexdigest()

    def cached(self, texts: list[str], pairs: list[str] | None) -> Tokens:
        """Tokenize, or read what an earlier run made of the same texts."""
        path = cache_folder() / f"{self.fingerprint(texts, pairs)}.safetensors"
        tokens = _read(path, len(texts))
        if tokens is None:
            tokens = self.tokenize(texts, pairs)
            _write(path, tokens)
        return tokens


def _vocabulary_hash(tokenizer: Any) -> str:
    """Hash all that decides what the tokenizer makes of a text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        # Left over from the last call; a saved and reopened tokenizer has them too.
        backend.no_truncation()
        backend.no_padding()
        content = backend.to_str()
    else:
        content = repr((sorted(tokenizer.get_vocab().items()), tokenizer.init_kwargs))
    setting = (type(tokenizer).__name__, tokenizer.truncation_side, content)
    return xxhash.xxh3_128_hexdigest(repr(setting).encode("utf-8", "surrogatepass"))


def cache_folder() -> Path:
    """Return where tokens go: `tokens` in $SFT_ENGINE_CACHE, else in the user's cache folder."""
    root = os.environ.get("SFT_ENGINE_CACHE") or user_cache_dir("sft-engine", appauthor=False)
    return Path(root).expanduser().absolute() / "tokens"


def _checksum(arrays: dict[str, NDArray[Any]]) -> str:
    digest = xxhash.xxh3_128()
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


def _read(path: Path, texts: int) -> Tokens | None:
    """Read tokens from the cache; None if they are not there, or the file is damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError) as error:
        _log.debug("cached tokens in %s cannot be read (%s): made again", path, error)
        return None
    if metadata.get("checksum") != _checksum(arrays) or len(arrays["truncated"]) != texts:
        _log.debug("cached tokens in %s are damaged: made again", path)
        return None
    return Tokens(
        input_ids=arrays["input_ids"],
        token_type_ids=arrays.get("token_type_ids"),
        offsets=arrays["offsets"],
        truncated=arrays["truncated"],
        unknown=int(metadata["unknown"]),
    )


def _write(path: Path, tokens: Tokens) -> None:
    """Write tokens to the cache, whole or not at all; without a cache the run goes on."""
    arrays: dict[str, NDArray[Any]] = {
        "input_ids": tokens.input_ids,
        "offsets": tokens.offsets,
        "truncated": tokens.truncated,
    }
    if tokens.token_type_ids is not None:
        arrays["token_type_ids"] = tokens.token_type_ids
    metadata = {"checksum": _checksum(arrays), "unknown": str(tokens.unknown)}
    scratch = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own for each process: ranks write the same tokens at the same time.
        handle, scratch = tempfile.mkstemp(prefix=f".{path.stem}-", dir=path.parent)
        os.close(handle)
        save_file(arrays, scratch, metadata)
        Path(scratch).replace(path)
    except (OSError, SafetensorError) as error:
        _log.warning("tokens are not cached in %s: %s", path.parent, error)
        if scratch is not None:
            with suppress(OSError):
                Path(scratch).unlink()
