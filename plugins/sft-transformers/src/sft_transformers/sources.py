"""Configuration, tokenizer and weights from a hub id or a local folder; a sentence where that fails."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoFeatureExtractor, AutoTokenizer
from transformers.utils import logging as transformers_logging

from sft_engine import RecipeError

if TYPE_CHECKING:
    import torch

_HEADS = ("classifier.", "projector.")

_FEW = 4
"""Tokens besides the special ones in a vocabulary that transformers makes up; no real one is as small."""

_PICKLED = (
    "a pickle, which could run any code when it is read: load it with transformers where you trust it, "
    "and save_pretrained writes safetensors"
)

_log = logging.getLogger("sft_transformers")


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back transformers' loading report and loading bar; `load` says what matters of them.

    Downloads keep their bars. Whoever asked for more (TRANSFORMERS_VERBOSITY=info) gets all of it.
    """
    verbosity = transformers_logging.get_verbosity()
    if verbosity < logging.WARNING:
        yield
        return
    set_hook = getattr(transformers_logging, "set_tqdm_hook", None)  # not in transformers 5.0
    before = set_hook(_silent_bar) if set_hook else None
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if set_hook:
            set_hook(before)


def _silent_bar(factory: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return factory(*args, **kwargs | {"disable": True})


def reason(error: BaseException) -> str:
    """Return the first line of an error's message, without its full stop."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].strip().rstrip(".:")[:200]


@dataclass(frozen=True)
class Source:
    """Where a model comes from.

    Args:
        name: As the recipe says it, for messages.
        location: A local folder or a hub id.
        revision: Branch, tag or commit on the hub; empty for its main branch.
        trust_remote_code: Run code that comes with the model.
    """

    name: str
    location: str
    revision: str = ""
    trust_remote_code: bool = False

    @property
    def folder(self) -> Path | None:
        """The local folder, or None for a hub id."""
        path = Path(self.location).expanduser()
        return path if path.is_dir() else None

    @property
    def options(self) -> dict[str, Any]:
        """What every `from_pretrained` is given besides its place."""
        options = {"trust_remote_code": self.trust_remote_code, "revision": self.revision}
        return {key: value for key, value in options.items() if value != ""}

    @property
    def place(self) -> str:
        """What every `from_pretrained` is given as its place."""
        return str(self.folder or self.location)

    def complain(self, what: str) -> RecipeError:
        """Return the error that says what is wrong with this source."""
        place = "" if self.location == self.name else f" ({self.location})"
        return RecipeError(f'[backbone] name = "{self.name}"{place} {what}.')

    def check(self) -> None:
        """Look at a local folder before anything is read.

        Raises RecipeError if it is not there, holds no model, or its weights are pickles.
        """
        if self.folder is None:
            if self.location.startswith((".", "/", "~")) or "\\" in self.location:
                raise self.complain(
                    "is no folder: check the path, or give the id of a model on the hub"
                )
            return
        files = {path.name for path in self.folder.iterdir()}
        if "config.json" not in files:
            raise self.complain(
                "has no config.json: give a folder that save_pretrained has written, such as RUN/model"
            )
        if not any(name.endswith(".safetensors") for name in files):
            pickled = sorted(n for n in files if n.endswith((".bin", ".pt", ".pth", ".ckpt")))
            raise self.complain(
                f"has its weights in {pickled[0]}, {_PICKLED}"
                if pickled
                else "holds no weights (*.safetensors): copy the whole folder, or give another one"
            )

    def read_config(self) -> Any:
        """Read the model's configuration. Raises RecipeError."""
        try:
            return AutoConfig.from_pretrained(self.place, **self.options)
        except Exception as error:
            raise self._explain(error, "config.json") from error

    def read_tokenizer(self) -> Any:
        """Read the tokenizer. Raises RecipeError, also if there is none: transformers makes one up."""
        none = self.complain(
            "has no tokenizer: add the tokenizer.json that belongs to the model "
            "(tokenizer.save_pretrained writes it into the folder)"
        )
        try:
            with quiet():
                tokenizer = AutoTokenizer.from_pretrained(self.place, **self.options)
        except Exception as error:
            if "instantiate the backend tokenizer" in str(error):
                raise none from error
            raise self._explain(error, "tokenizer") from error
        # Without files, transformers returns a tokenizer that turns every word into [UNK].
        named = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        if tokenizer.vocab_size <= len(named) + _FEW:
            raise none
        return tokenizer

    def read_feature_extractor(self) -> Any:
        """Read what makes a model's inputs of samples. Raises RecipeError if there is none."""
        try:
            # That of AST warns of its own filters, whatever one does.
            with quiet(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                extractor = AutoFeatureExtractor.from_pretrained(  # type: ignore[no-untyped-call]
                    self.place, **self.options
                )
        except Exception as error:
            if self.folder and not (self.folder / "preprocessor_config.json").exists():
                raise self.complain(
                    "has no preprocessor_config.json: add the one that belongs to the model "
                    "(feature_extractor.save_pretrained writes it into the folder)"
                ) from error
            raise self._explain(error, "preprocessor_config.json") from error
        return extractor

    def _explain(self, error: Exception, part: str) -> RecipeError:
        said = reason(error)
        if "trust_remote_code" in str(error):
            return self.complain(
                "needs code that comes with the model: read that code, then set "
                "trust_remote_code = true, or choose another model"
            )
        if self.folder is None and "cannot be loaded with `safetensors`" in str(error):
            return self.complain(f"has no *.safetensors file, so that its weights are {_PICKLED}")
        if self.folder is not None:
            return self.complain(f"has a {part} that transformers cannot read: {said}")
        return self.complain(
            f"is neither a local folder nor could it be had from the hub: {said}; check the id and the "
            "connection, or give a local folder"
        )

    def load(self, auto_class: Any, config: Any, **options: Any) -> Any:
        """Load the weights, from safetensors only, in the precision asked for.

        Tensors that the checkpoint lacks are drawn from torch's random state, in the order of the
        modules. Raises RecipeError if the checkpoint is of another model.

        Args:
            auto_class: Such as AutoModel.
            config: The configuration, adapted to the task.
            options: Passed to `from_pretrained`.
        """
        try:
            with quiet():
                model, found = auto_class.from_pretrained(
                    self.place,
                    config=config,
                    use_safetensors=True,
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                    **options,
                    **self.options,
                )
        except Exception as error:
            raise self._explain(error, "checkpoint (*.safetensors)") from error
        self._report(model, found)
        return model

    def _report(self, model: Any, found: dict[str, Any]) -> None:
        base = _base_names(model)
        missing = set(found["missing_keys"])
        odd = sorted(name for name, *_ in found["mismatched_keys"] if name in base)
        if odd:
            raise self.complain(
                f"has weights whose shape does not fit its config.json ({odd[0]}): use the two files "
                "that belong together"
            )
        if base and len(missing & base) > len(base) / 2:
            raise self.complain(
                f"holds {len(base - missing)} of the {len(base)} tensors of a {type(model).__name__}: "
                "the checkpoint is of another kind of model, use the config.json that belongs to it"
            )
        inside = sorted(
            name for name in missing & base if any(p.isdigit() for p in name.split("."))
        )
        if inside:
            _log.warning("%s lacks %s: they start random", self.name, ", ".join(inside))
        for name, was, is_ in sorted(found["mismatched_keys"]):
            _log.warning(
                "the head starts new: %s has shape %s in %s, the task needs %s",
                name, tuple(was), self.name, tuple(is_),
            )  # fmt: skip
        _log.debug("new: %s", ", ".join(sorted(missing)) or "nothing")
        _log.debug("not used: %s", ", ".join(sorted(found["unexpected_keys"])) or "nothing")


def _base_names(model: torch.nn.Module) -> set[str]:
    """Return the names of the tensors that do not belong to the head."""
    names = set(model.state_dict())
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    inside = {name for name in names if name.startswith(prefix)}
    # That of Whisper's classifier has no prefix.
    return inside or {name for name in names if not name.startswith(_HEADS)}


def settle_padding(config: Any, tokenizer: Any, source: Source) -> None:
    """Make configuration and tokenizer agree on the token and on the side of padding.

    Decoders often have no padding token; the end of text serves then, and is masked. A head that
    takes the last token looks for the last one that is not padding, so the two must agree.

    Padding goes to the right, where it changes nothing even with absolute positions; only a model
    that summarizes by position -1 (XLNet) is padded on the left.
    """
    text = config.get_text_config()
    pad = text.pad_token_id
    if pad is None or pad < 0:
        candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
        pad = next((token for token in candidates if token is not None), None)
    if pad is None:
        raise source.complain(
            "has no token to pad with: set pad_token in its tokenizer_config.json to a token it knows"
        )
    config.pad_token_id = text.pad_token_id = pad
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    last = tokenizer.padding_side == "left" and getattr(config, "summary_type", "") == "last"
    tokenizer.padding_side = "left" if last else "right"


def longest_input(config: Any, tokenizer: Any) -> int | None:
    """Return how many tokens the model can take; None if nothing limits it.

    RoBERTa's table of positions has a few rows more than there are positions; its tokenizer knows,
    and where it does not, rounding down to a multiple of 8 leaves them out.
    """
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    known = [tokenizer.model_max_length] if tokenizer.model_max_length < 2**31 else []
    known += [positions - positions % 8] if isinstance(positions, int) and positions >= 8 else []  # noqa: PLR2004
    return min(known, default=None)
