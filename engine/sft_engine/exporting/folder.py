"""The folder of an exported model: whole or not there, with all that one needs to use it."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from sft_engine.checkpoint import as_os_error
from sft_engine.errors import OutputError
from sft_engine.records import library_versions, remove, write_json, write_text
from sft_engine.sentences import reason_of

if TYPE_CHECKING:
    from sft_engine.flow import Run

DESCRIPTION = "export.json"
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")

_USE = {
    "onnx": """import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
(logits,) = session.run(["logits"], {{{numpy}}})
""",
    "torch-export": """import torch

model = torch.export.load("model.pt2").module()
logits = model({tensors})
""",
}


def choose_output(folder: Path) -> Path:
    """Return the folder to write to.

    Raises:
        OutputError: it holds something, or cannot be written.
    """
    try:
        if folder.is_dir() and any(folder.iterdir()):
            raise OutputError(
                f"{folder} is not empty: delete it, or choose another folder with --output"
            )
        parent = next(p for p in [folder, *folder.absolute().parents] if p.exists())
        if not parent.is_dir():
            what = "it" if parent == folder else parent
            raise OutputError(
                f"{folder} cannot be the output folder: {what} is a file; choose another with --output"
            )
        if not os.access(parent, os.W_OK | os.X_OK):
            raise OutputError(
                f"{folder} cannot be written: no permission in {parent}; choose another with --output"
            )
    except OSError as error:
        raise _cannot_write(folder, error) from error
    return folder


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to fill, which takes its name when all went well, and is gone if anything fails.

    Raises:
        OutputError: it cannot be written.
    """
    temporary = folder.absolute().with_name(f".tmp-{folder.name}-{os.getpid()}")
    missing = [p for p in temporary.parents if not p.exists()]
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.rename(folder)
    except (OSError, SafetensorError) as error:
        system = as_os_error(error) if isinstance(error, SafetensorError) else error
        raise _cannot_write(folder, system) from error
    except OutputError as error:  # of a small file: its advice is for runs
        if isinstance(error.__cause__, OSError):
            raise _cannot_write(folder, error.__cause__) from error
        raise
    finally:
        remove([temporary])
        for parent in missing:  # innermost first; those that now hold the result stay
            with contextlib.suppress(OSError):
                parent.rmdir()


def _cannot_write(folder: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{folder} cannot be written: {reason_of(error)}, or choose another folder with --output"
    )


def finish(
    folder: Path, run: Run, model: Path, facts: Mapping[str, Any], *, graph: bool
) -> tuple[str, ...]:
    """Add preprocessing, label names and card to an exported model; return the files there are.

    Args:
        folder: With the exported model in it.
        run: The run.
        model: The run's own `model/`, with tokenizer or image settings and the card.
        facts: What `export.json` begins with.
        graph: The format holds nothing but the computation, so that all else must be copied.
    """
    if graph:
        shutil.copytree(model, folder, ignore=_weights_in, dirs_exist_ok=True)
    backbone: Any = run.backbone
    described = backbone.preprocessing() if hasattr(backbone, "preprocessing") else {}
    head = run.task.head
    write_json(
        folder / DESCRIPTION,
        {
            **facts,
            "task": head.kind,
            "labels": list(head.names),
            "preprocessing": described,
            "libraries": library_versions(),
        },
    )
    card = model / "README.md"
    text = card.read_text(encoding="utf-8") if card.exists() else ""
    write_text(folder / "README.md", text + _use(facts))
    _readable(folder)
    return tuple(sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()))


def _weights_in(folder: str, names: list[str]) -> set[str]:
    """Return what is not copied: weights, and subfolders made of them, such as an adapter alone."""
    found = {name for pattern in _WEIGHTS for name in fnmatch.filter(names, pattern)}
    return found | {n for n in names if any((Path(folder) / n).glob(_WEIGHTS[0]))}


def _use(facts: Mapping[str, Any]) -> str:
    """Return the part of the card that shows how the model is loaded."""
    snippet = _USE.get(facts["format"])
    if snippet is None:
        return ""
    numpy = ", ".join(f'"{name}": {name}' for name in facts["inputs"])
    tensors = ", ".join(f"{name}={name}" for name in facts["inputs"])
    code = snippet.format(numpy=numpy, tensors=tensors)
    return f"\n## Use\n\n`{DESCRIPTION}` says what the inputs are.\n\n```python\n{code}```\n"


def _readable(folder: Path) -> None:
    """Let others read the weights as they read the card: safetensors writes for the owner alone."""
    mode = (folder / DESCRIPTION).stat().st_mode
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)
