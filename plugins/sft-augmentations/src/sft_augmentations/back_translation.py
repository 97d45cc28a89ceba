"""Other wordings for a recipe's training texts, kept in the file that `paraphrases` reads."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_augmentations.paraphrases import read_entries
from sft_augmentations.texts import COLUMNS
from sft_augmentations.translation import Translate, load_translator, there_and_back
from sft_engine import OutputError, RecipeError, launch, verbs
from sft_engine.assemble import derive_seeds
from sft_engine.devices import enough_memory, own_state
from sft_engine.preparation import prepare_splits, settle
from sft_engine.sentences import reason_of

if TYPE_CHECKING:
    from sft_engine.catalog import Plan

GROUP = 16
"""Texts that are translated and written together: what a kill loses at most."""
_BEGIN = b'{"text": '


@dataclass(frozen=True)
class Filled:
    """What the file of wordings holds now.

    Args:
        file: The file.
        texts: Different training texts of the recipe.
        known: Of these, how many were in the file before.
        unchanged: Of the new ones, how many came back as they were, and have no other wording.
        wordings: New wordings that were written.
    """

    file: Path
    texts: int
    known: int
    unchanged: int
    wordings: int


def back_translate(  # noqa: PLR0913 - the options of the verb
    recipe: verbs.RecipeLike,
    *,
    forward: str,
    backward: str,
    output: str | Path,
    samples: int = 1,
    temperature: float = 0.9,
    prefixes: tuple[str, str] = ("", ""),
    batch_size: int = 16,
    device: str = "auto",
    seed: int = 0,
    overrides: Sequence[str] = (),
    say: Callable[[str], None] = lambda _: None,
) -> Filled:
    """Translate the training texts of a recipe there and back, and add what comes back to a file.

    A text that the file has already is left as it is, so that the same call goes on where an earlier one was
    stopped; the result is the same. Only training texts are translated, none that are held out.

    Args:
        recipe: A file, or a recipe that was loaded; its `paraphrases` need not be there yet.
        forward: Hub id or local folder of a model into another language.
        backward: Of one back.
        output: The file, made if absent: `{"text": "...", "alternatives": ["..."]}` a line.
        samples: How many other wordings of each text are tried.
        temperature: Of sampling; 0 for the models' own search, which gives one wording.
        prefixes: Put before each sentence on its way there, and back.
        batch_size: Sentences of a forward pass.
        device: `auto`, or what torch calls a device.
        seed: Of the draws.
        overrides: `KEY=VALUE` texts as for `--set`.
        say: Shows a line.

    Raises:
        RecipeError: the recipe has no texts, or a model cannot be loaded.
        DataError: the data does not fit the recipe, or the file is of another form.
        OutputError: the file cannot be written.
    """
    launch.require_one_process("back-translate")
    if temperature == 0 and samples > 1:
        raise RecipeError(
            f"--samples {samples} with --temperature 0: the search gives one wording; leave one of them out"
        )
    texts = training_texts(verbs.check(recipe, overrides=overrides))
    file = Path(output)
    done = known_texts(file)
    known = sum(text in done for text in texts)
    written = unchanged = 0
    with own_state(seed), enough_memory("set a smaller --batch-size"):
        models: list[Translate] = [
            load_translator(name, option, device, prefix, temperature, batch_size)
            for name, option, prefix in zip(
                (forward, backward), ("--forward", "--backward"), prefixes, strict=True
            )
            if known < len(texts)
        ]
        for group, wordings in _groups(texts, done, models, samples, seed):
            append(file, group, wordings)
            written += sum(map(len, wordings))
            unchanged += sum(not each for each in wordings)
            done.update(group)
            say(f"{sum(text in done for text in texts)} of {len(texts)} texts")
    return Filled(file, len(texts), known, unchanged, written)


def _groups(
    texts: Sequence[str], done: set[str], models: Sequence[Translate], samples: int, seed: int
) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Yield texts that are missing with their other wordings.

    What is drawn depends on the group, so a group of which a part is there is translated as a whole.
    """
    for start in range(0, len(texts), GROUP):
        group = texts[start : start + GROUP]
        missing = [text not in done for text in group]
        if any(missing):
            found = there_and_back(group, models[0], models[1], samples, seed)
            yield list(compress(group, missing)), list(compress(found, missing))


def training_texts(planned: Plan) -> list[str]:
    """Return the different training texts of a recipe, without white space around them.

    Raises:
        RecipeError: the training split has no texts.
        DataError: the data does not fit the recipe.
    """
    # Not all components: `paraphrases` would look for the file that is about to be made.
    parts: dict[str, Any] = {
        kind: planned.all(kind)[0].build() for kind in ("task", "data", "backbone")
    }
    raw = parts["data"].load()
    names = {kind: planned.all(kind)[0].name for kind in parts}
    data = settle(raw, planned.data, parts["task"], parts["backbone"], names.__getitem__)
    splits = prepare_splits(raw, data, parts["task"], derive_seeds(planned.seeds))
    rows = splits["train"]
    columns = [name for name in COLUMNS if name in rows.column_names]
    if not columns:
        raise RecipeError(
            f"[data] has no texts to translate: the training split has {', '.join(rows.column_names)}, "
            f"needed: {' or '.join(COLUMNS)}"
        )
    texts = (text.strip() for name in columns for text in rows[name] if text is not None)
    return [text for text in dict.fromkeys(texts) if text]


def known_texts(file: Path) -> set[str]:
    """Return the texts that a file of wordings holds; repair an end that was cut off by a kill.

    Raises:
        DataError: it holds something else.
        OutputError: it cannot be written.
    """
    if not file.exists():
        return set()
    try:
        content = file.read_bytes()
        end = content.rfind(b"\n") + 1
        rest = content[end:]
        if rest and _is_torn(rest):
            os.truncate(file, end)
        elif rest:
            _write(file, b"\n")
    except OSError as error:
        raise _cannot_write(file, error) from error
    return {text for text, _ in read_entries(str(file))}


def _is_torn(line: bytes) -> bool:
    """Say whether a last line without an end is the begin of one of ours."""
    try:
        json.loads(line)
    except ValueError:
        return line.startswith(_BEGIN) or _BEGIN.startswith(line)
    return False


def append(file: Path, texts: Sequence[str], wordings: Sequence[Sequence[str]]) -> None:
    """Append a line for each text, all at once.

    Raises:
        OutputError: the file cannot be written; it is as before.
    """
    entries = [
        {"text": text, "alternatives": list(others)}
        for text, others in zip(texts, wordings, strict=True)
    ]
    lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
    size = file.stat().st_size if file.exists() else 0
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _write(file, lines.encode())
    except OSError as error:
        with contextlib.suppress(OSError):
            os.truncate(file, size)
        raise _cannot_write(file, error) from error


def _write(file: Path, content: bytes) -> None:
    with file.open("ab", buffering=0) as stream:
        while content:
            content = content[stream.write(content) :]


def _cannot_write(file: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{file} cannot be written: {reason_of(error)}; the same command goes on, or choose another "
        "file with --output"
    )
