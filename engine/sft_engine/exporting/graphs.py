"""The model as one traced computation: from named inputs to logits, for any size of batch.

Both formats begin with `torch.export`; ONNX is translated from that. Examples do not end up in the
files, nor do paths of this machine.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import torch
from torch import nn

from sft_engine.components import logits_of
from sft_engine.errors import ExportError, SftError
from sft_engine.exporting.libraries import like_weights

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram

    from sft_engine.exporting.comparison import Answer
    from sft_engine.exporting.samples import Samples
    from sft_engine.flow import Run

OUTPUT = "logits"
FILES = {"onnx": "model.onnx", "torch-export": "model.pt2"}

_LARGEST_FILE = 1_900_000_000
"""Bytes of weights from which on ONNX needs a file beside the model's: protobuf ends at 2 GB."""

_LOUD = ("onnxscript", "onnx_ir", "torch.onnx", "torch.export", "torch.fx")
"""Loggers that tell their own developers about translations; what fails is raised as well."""

_QUIET_SESSION = 4
"""Severity of onnxruntime's log: fatal alone, because errors are raised as well."""


class NamedModel(nn.Module):
    """A model as one function of named inputs, which returns logits in float32.

    Args:
        model: What the backbone built.
        forward: How the backbone runs it.
        names: Of the inputs; what the exported model's arguments are called.
    """

    def __init__(
        self, model: nn.Module, forward: Callable[..., Any], names: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.model = model
        parameters = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in names]
        signature = inspect.Signature(parameters)

        def run(*values: Tensor, **named: Tensor) -> Tensor:
            inputs = signature.bind(*values, **named).arguments
            return logits_of(forward(self.model, like_weights(self.model, inputs))).float()

        # torch.export asks the signature for names.
        run.__signature__ = signature  # type: ignore[attr-defined]
        self.forward = run


def write_graph(
    run: Run, samples: Samples, form: str, folder: Path, opset: int | None = None
) -> Answer:
    """Trace a run's model, write it, and return what the file answers.

    Args:
        run: The run; its model is on the CPU and in evaluation mode.
        samples: Batches that tell which dimensions vary; the last one is traced.
        form: `onnx` or `torch-export`.
        folder: Where to write.
        opset: Version of ONNX's operators; None for torch's own choice.

    Raises:
        ExportError: torch cannot trace the model, translate it, or run what it wrote.
    """
    path = folder / FILES[form]
    with _explained(form), quiet_exporters():
        program = trace(run, samples)
        if form == "onnx":
            _save_onnx(program, samples, path, opset)
            return _onnx_answer(path, samples.names, form)
        _save_program(program, path)
        return _program_answer(path, form)


def trace(run: Run, samples: Samples) -> ExportedProgram:
    """Trace a run's model with the largest batch; what varies between batches stays open."""
    any_size = torch.export.Dim.DYNAMIC
    open_sizes = {
        name: {index: any_size for index, size in enumerate(sizes) if isinstance(size, str)}
        for name, sizes in samples.dimensions().items()
    }
    named = NamedModel(run.model, run.backbone.forward, samples.names).eval()
    # What torch cannot trace, it prints as a graph of hundreds of lines before it raises.
    with contextlib.redirect_stderr(io.StringIO()):
        return torch.export.export(
            named, (), kwargs=dict(samples.batches[-1]), dynamic_shapes=open_sizes, strict=False
        )


@contextlib.contextmanager
def quiet_exporters() -> Iterator[None]:
    """Keep what the exporters tell their own developers from the user."""
    levels = {name: logging.getLogger(name).level for name in _LOUD}
    with warnings.catch_warnings():
        # Two inputs have the same dimension: it needs one name only.
        warnings.filterwarnings("ignore", r"# The axis name: ", UserWarning)
        for name in _LOUD:
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def _explained(form: str) -> Iterator[None]:
    """Turn whatever an exporter raises into a sentence: they raise anything."""
    try:
        yield
    except (SftError, OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ExportError(
            f"{form}: the model cannot be exported for any size of batch and length: {_said(error)}; "
            "nothing was exported, choose another --format"
        ) from error


def _said(error: BaseException) -> str:
    """Return the first line of the innermost cause: exporters wrap it in advice for bug reports."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


# --- torch.export ---------------------------------------------------------------------------------


def _save_program(program: ExportedProgram, path: Path) -> None:
    program.example_inputs = None  # somebody's texts are nobody else's
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            node.meta.pop("stack_trace", None)
    with path.open("wb") as file:
        sink = _Sink(file)
        torch.export.save(program, cast("IO[bytes]", sink))
    if sink.error is not None:
        raise sink.error


class _Sink(io.RawIOBase):
    """Takes what torch writes, and keeps an error for later: raised inside of torch it ends the process.

    Args:
        file: Where it goes.
    """

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self.error: OSError | None = None
        self._file = file

    def writable(self) -> bool:
        """Say yes."""
        return True

    def seekable(self) -> bool:
        """Say yes: torch asks, though it writes from the beginning to the end."""
        return True

    def seek(self, offset: int, whence: int = 0) -> int:  # noqa: ARG002 (all is written by then)
        """Do nothing: torch puts the reader of a buffer back to the beginning."""
        return offset

    def write(self, data: Any) -> int:
        """Write, unless that has failed before."""
        try:
            if self.error is None:
                self._file.write(data)
                self._file.flush()
        except OSError as error:
            self.error = error
        return memoryview(data).nbytes


def _program_answer(path: Path, form: str) -> Answer:
    module = torch.export.load(path).module()

    def answer(batch: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad(), _explained(form):
            logits: Tensor = module(**batch)
        return logits

    return answer


# --- ONNX -----------------------------------------------------------------------------------------


def _save_onnx(program: ExportedProgram, samples: Samples, path: Path, opset: int | None) -> None:
    names = {
        name: {index: size for index, size in enumerate(sizes) if isinstance(size, str)}
        for name, sizes in samples.dimensions().items()
    }
    translated = torch.onnx.export(
        program,
        (),
        kwargs=dict(samples.batches[-1]),
        input_names=list(samples.names),
        output_names=[OUTPUT],
        dynamic_shapes=names,
        opset_version=opset,
        dynamo=True,
        verbose=False,
    )
    assert translated is not None
    written = translated.model.opset_imports[""]
    if opset is not None and written != opset:
        raise ExportError(
            f"--opset: this version of torch cannot write {opset} for this model; leave it out for the one "
            "that torch recommends"
        )
    for node in translated.model.graph.all_nodes():
        node.metadata_props.clear()  # where in this machine's sources the node comes from
    weights = sum(tensor.nbytes for tensor in program.state_dict.values())
    translated.save(path, external_data=weights > _LARGEST_FILE)


def _onnx_answer(path: Path, names: tuple[str, ...], form: str) -> Answer:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _QUIET_SESSION
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    kept = {each.name for each in session.get_inputs()}

    def answer(batch: Mapping[str, Tensor]) -> Tensor:
        fed = {name: batch[name].numpy() for name in names if name in kept}
        with _explained(form):
            return torch.from_numpy(session.run([OUTPUT], fed)[0])

    return answer
