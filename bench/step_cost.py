"""What a step costs with each component of the shelf, relative to a step without.

usage: python -m bench.step_cost [NAME ...] [--rounds 7] [--steps 4] [--json FILE]

Texts: a BERT of 2 layers of width 128, batches of 16 times 32 tokens. Images: ResNet-18, batches of 16
times 32 by 32 pixels. Tables: two hidden layers of 512, batches of 64 rows of 16 numbers. Weights are random, AdamW,
fp32, one thread, nothing replayed. A run with the component and one without take turns of some steps in the
same process; the ratio is of the processor time of two turns that stand side by side, its median over rounds is
what to quote. Work before the first step does not count; of a freezing schedule the first steps do.
"""

from __future__ import annotations

import argparse
import gc
import json
import string
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from bench import machine, paired
from bench.measurement import Result, quiet_start, readable
from bench.methods_shelf import METHODS
from sft_engine import SftError, hookimpl
from sft_engine.assemble import assemble
from sft_engine.catalog import plan
from sft_engine.interruption import Signals
from sft_engine.plugins import load_plugins
from sft_engine.recipe import parse_recipe
from sft_engine.training import Session, Silent

REFERENCE = "none"
ROWS, TOKENS, COLUMNS = 512, 32, 16
WIDTH, LAYERS, VOCABULARY = 128, 2, 2000
WARM_UP = 2

BASE = """
[task]
use = "{task}"
[data]
use = "bench/{kind}"
validation = 16
test = 16
[backbone]
{backbone}
[train]
steps = 1000000
batch_size = {batch}
precision = "fp32"
device = "cpu"
log_every = 1000000
replay = false
[evaluation]
every_epochs = 0
test = false
[checkpoint]
every_epochs = 0
best = "last"
[optimizer]
use = "adamw"
lr = 1e-5
weight_decay = 0.0
[[extension]]
use = "bench/turns"
"""

KINDS = {
    "text": ("text-classification", 'use = "transformers"\nname = "{folder}"\ncache = false', 16),
    "image": (
        "image-classification",
        'use = "timm"\nname = "resnet18"\npretrained = false\nimg_size = 32',
        16,
    ),
    "table": ("tabular-classification", 'use = "mlp"\nhidden = [512, 512]', 64),
}
"""Task, backbone and batch size by kind of data."""

SETTINGS = {
    "dropout": "p = 0.2",
    "paraphrases": 'path = "{folder}/paraphrases.jsonl"',
    "swa": "start = 0.0\nevery_steps = 1",
    "lawa": "every_steps = 1",
    "peft": 'method = "loha"',
    "kornia": 'transforms = [{ name = "RandomHorizontalFlip" }, { name = "ColorJiggle" }]',
}
"""What a component needs, or what makes it work in every step."""

PLUGINS = ("sft-freezing", "sft-regularizers", "sft-augmentations")


# --- the works ------------------------------------------------------------------------------------


class Texts:
    """Random words; the label is drawn too."""

    def load(self) -> dict[str, Dataset]:
        """Return one split."""
        draws = np.random.default_rng(0)
        words = draws.choice(vocabulary(), size=(ROWS, TOKENS - 2))
        return {"train": _labelled("text", [" ".join(row) for row in words])}


class Pictures:
    """Noise of 32 by 32 pixels."""

    def load(self) -> dict[str, Dataset]:
        """Return one split."""
        from sft_engine.testing.tiny_images import TinyPictures

        return TinyPictures(examples=ROWS, size=32).load()


class Numbers:
    """Rows of random numbers."""

    def load(self) -> dict[str, Dataset]:
        """Return one split."""
        table = np.random.default_rng(0).normal(size=(ROWS, COLUMNS))
        columns = {f"x{i}": table[:, i].tolist() for i in range(COLUMNS)}
        return {
            "train": Dataset.from_dict({**columns, "label": ["ab"[i % 2] for i in range(ROWS)]})
        }


def _labelled(role: str, values: list[Any]) -> Dataset:
    return Dataset.from_dict({role: values, "label": ["ab"[i % 2] for i in range(len(values))]})


def vocabulary() -> list[str]:
    """Return words of three letters."""
    letters = string.ascii_lowercase
    return [a + b + c for a in letters for b in letters for c in "aeiou"][:VOCABULARY]


def write_bert(folder: Path) -> None:
    """Write a small BERT with random weights, its tokenizer and other wordings of the texts."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, *vocabulary(), *string.ascii_lowercase]
    pieces += [f"##{letter}" for letter in string.ascii_lowercase]
    ids = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    named = {f"{name.strip('[]').lower()}_token": name for name in special}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
    fast.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(ids),
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=4 * WIDTH,
        max_position_embeddings=128,
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    texts = Texts().load()["train"]["text"]
    lines = [json.dumps({"text": t, "alternatives": [" ".join(t.split()[::-1])]}) for t in texts]
    (folder / "paraphrases.jsonl").write_text("\n".join(lines), encoding="utf-8")


# --- runs that take turns -------------------------------------------------------------------------


class Enough(Exception):
    """The run has taken its last turn."""


class Runner:
    """A run in a thread of its own, which takes some steps and waits for its next turn."""

    current: threading.local = threading.local()

    def __init__(self, text: str, plugins: Any) -> None:
        """Begin the run, up to its first step.

        Raises:
            SftError: the recipe is refused.
        """
        self._text, self._plugins = text, plugins
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._left, self._ends = 0, False
        self._start = self._seconds = 0.0
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._wait()

    def take(self, steps: int) -> float:
        """Take some steps; return the seconds of processor time of each."""
        self._left = steps
        self._go.release()
        self._wait()
        return self._seconds / steps

    def end(self) -> None:
        """End the run."""
        self._ends = True
        self._go.release()
        self._thread.join()
        gc.collect()  # a run and its components refer to each other, and hold gigabytes in the end

    def _wait(self) -> None:
        self._done.acquire()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        Runner.current.run = self
        torch.set_num_threads(1)
        try:
            self._train()
        except Enough:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread
            self._error = error
        self._done.release()

    def _train(self) -> None:
        planned = plan(parse_recipe(self._text, "bench.toml"), self._plugins)
        with tempfile.TemporaryDirectory() as folder:
            session = Session(assemble(planned, Path(folder, "run")), Silent(), Signals())
            session.begin(resume=False)
            try:
                session.loop().train()
            finally:
                session.recorder.close()

    def turn(self) -> None:
        """Begin a step, when it is this run's turn."""
        if self._left == 0:
            self._seconds = time.process_time() - self._start
            self._done.release()
            self._go.acquire()
            if self._ends:
                raise Enough
            self._start = time.process_time()
        self._left -= 1


class Turns:
    """Waits, at the begin of a step, for the turn of its run."""

    @hookimpl(tryfirst=True)
    def sft_step_start(self) -> None:
        """Wait."""
        Runner.current.run.turn()


def known_plugins() -> Any:
    """Return the installed plugins and the works."""
    plugin = ModuleType("bench_plugin")

    @hookimpl
    def sft_register(catalog: Any) -> None:
        for kind, name in (("text", "Texts"), ("image", "Pictures"), ("table", "Numbers")):
            catalog.add("data", f"bench/{kind}", f"bench.step_cost:{name}", "Rows of the work.")
        catalog.add("extension", "bench/turns", "bench.step_cost:Turns", "Takes turns.")

    plugin.sft_register = sft_register  # type: ignore[attr-defined]
    plugins = load_plugins()
    plugins.add(plugin, "bench", "bench", "0")
    return plugins


def tables_of(plugins: Any) -> dict[str, str]:
    """Return the TOML of every component of the shelf, at its defaults, by name."""
    tables = {}
    for entry in plugins.catalog.entries():
        if entry.distribution not in PLUGINS:
            continue
        head = f"[{entry.kind}]" if entry.kind == "freezing" else f"[[{entry.kind}]]"
        tables[entry.name] = f'{head}\nuse = "{entry.name}"\n{SETTINGS.get(entry.name, "")}\n'
    more = {name: method.tables for name, method in METHODS.items() if method.tables}
    return tables | {n: t for n, t in more.items() if n not in tables}


# --- measuring ------------------------------------------------------------------------------------


@dataclass
class Bench:
    """One kind of data: the run without any component, beside which the others run.

    Args:
        kind: Key of `KINDS`.
        folder: Where the BERT is.
        plugins: What is installed.
        rounds: Turns of each.
        steps: Of a turn.
    """

    kind: str
    folder: Path
    plugins: Any
    rounds: int
    steps: int

    def __post_init__(self) -> None:
        task, backbone, batch = KINDS[self.kind]
        text = BASE.format(task=task, kind=self.kind, backbone=backbone, batch=batch)
        self._text = text.replace("{folder}", str(self.folder))
        self._plain = Runner(self._text, self.plugins)
        self._plain.take(WARM_UP)

    def measure(self, name: str, table: str) -> paired.Rounds:
        """Measure one component beside none.

        Raises:
            SftError: it does not take this kind of data.
        """
        with_it = Runner(self._text + table.replace("{folder}", str(self.folder)), self.plugins)
        try:
            with_it.take(WARM_UP)
            return list(self._rounds({REFERENCE: self._plain, name: with_it}))
        finally:
            with_it.end()

    def _rounds(self, runners: dict[str, Runner]) -> Iterator[dict[str, Result]]:
        for number in range(self.rounds):
            turns = list(runners.items())[:: 1 if number % 2 else -1]  # neither is always first
            yield {n: Result("step_cost", n, runner.take(self.steps)) for n, runner in turns}

    def end(self) -> None:
        """End the run without components."""
        self._plain.end()


def line(kind: str, name: str, figures: dict[str, dict[str, float]]) -> str:
    """Return the line of a table."""
    seconds, ratio = figures["seconds"]["median"], figures["ratio"]
    middle = f"{ratio['lower quartile']:.2f} to {ratio['upper quartile']:.2f}"
    return f"| {name} | {kind} | {readable(seconds)} | {ratio['median']:.2f} | {middle} |"


def measure_all(
    names: Iterable[str], rounds: int, steps: int, kinds: Iterable[str] = KINDS
) -> dict[str, dict[str, Any]]:
    """Measure components on every kind of data that they take; print a line for each.

    Returns:
        What `paired.summary` says, by kind of data and component.
    """
    plugins = known_plugins()
    tables = tables_of(plugins)
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_bert(Path(folder))
        for kind in kinds:
            bench = Bench(kind, Path(folder), plugins, rounds, steps)
            found[kind] = {}
            for name in names or tables:
                try:
                    measured = bench.measure(name, tables[name])
                except SftError as error:
                    print(f"{name}, {kind}: {error}", file=sys.stderr)
                    continue
                found[kind][name] = paired.summary(measured, REFERENCE)[name]
                print(line(kind, name, found[kind][name]), flush=True)
            bench.end()
    return found


def main() -> None:
    """Read the command line, measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="components; default: all")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="of a turn")
    parser.add_argument("--kind", choices=list(KINDS), nargs="*", default=list(KINDS))
    parser.add_argument("--json", type=Path, help="file to write what was measured to")
    options = parser.parse_args()
    quiet_start(threads=1)
    if unknown := set(options.names) - set(tables_of(known_plugins())):
        parser.error(f"no such component: {', '.join(sorted(unknown))}")
    if warning := machine.busy():
        print(warning, file=sys.stderr)
    print(f"| component | data | step | ratio to {REFERENCE} | middle half |")
    print("|---|---|---:|---:|---:|")
    found = measure_all(options.names, options.rounds, options.steps, options.kind)
    if options.json is not None:
        record = {"machine": machine.describe(), "rounds": options.rounds, "steps": found}
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    # The catalog imports `Turns` from the module: the one of this script would be another.
    import_module("bench.step_cost").main()
