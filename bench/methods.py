"""All methods of the shelf on real data, five seeds each: `python -m bench.methods FOLDER [options]`.

Two tasks with 500 labels: movie reviews with MiniLM, digits (MNIST-5k) with EfficientNet-Lite0. The
methods have their defaults, nothing is tuned for any of them, and all see the same 500 examples, order and
head for the same seed. A line is written to FOLDER/results.jsonl after each run; what stands there is
not run again, so a killed comparison goes on, and two processes may share a folder (`--part 0/2`).
`--table` prints what is there.

One thread a process. Seconds are processor time of the whole run, so that a busy machine counts little.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from bench import watch
from bench.measurement import quiet_start
from bench.methods_shelf import BOTH, IMAGES, METHODS, TEXT
from sft_engine import Interrupted, SftError, hookimpl
from sft_engine.catalog import plan
from sft_engine.plugins import load_plugins
from sft_engine.recipe import parse_recipe
from sft_engine.training import train

ROOT = Path(__file__).resolve().parent.parent
RECIPES = {TEXT: "bert_sentiment", IMAGES: "mnist_efficientnet"}
COMMON = (
    "data.subset=500",
    "data.validation=200",
    "data.test=1000",
    "train.batch_size=32",
    "train.threads=1",
    "checkpoint.best=last",
    "checkpoint.every_epochs=0",
    "evaluation.every_epochs=0",
    "evaluation.train_sample=0",
    "evaluation.page=false",
)
OWN = {
    TEXT: ("train.epochs=3", "optimizer.lr=2e-4"),
    IMAGES: ("train.epochs=4", "optimizer.lr=2e-3", "backbone.img_size=32"),
}


def plugins() -> Any:
    """Return the installed plugins and the one that watches."""
    found = load_plugins()
    plugin = ModuleType("bench_watch")

    @hookimpl
    def sft_register(catalog: Any) -> None:
        catalog.add("extension", "bench/watch", "bench.watch:Watch", "Keeps the start.")

    plugin.sft_register = sft_register  # type: ignore[attr-defined]
    found.add(plugin, "bench-watch", "bench", "0")
    return found


def recipe_text(task: str, method: str) -> str:
    """Return the recipe of a task with a method."""
    text = (ROOT / "recipes" / f"{RECIPES[task]}.toml").read_text(encoding="utf-8")
    return f'{text}\n[[extension]]\nuse = "bench/watch"\n{METHODS[method].tables}'


def drift(start: Mapping[str, Tensor], end: Mapping[str, Tensor], head: Iterable[str]) -> float:
    """Return the distance from the start over the length of the start, the head left out."""
    names = [name for name in start if name in end and name not in set(head)]
    moved = sum((end[n].double() - start[n].double()).square().sum().item() for n in names)
    return math.sqrt(moved / sum(start[n].double().square().sum().item() for n in names))


def measure(task: str, method: str, seed: int, folder: Path, installed: Any) -> dict[str, Any]:
    """Train once and return the figures; a refusal is a figure too."""
    sets = [*COMMON, *OWN[task], *METHODS[method].sets, f"seed={seed}"]
    record: dict[str, Any] = {"task": task, "method": method, "seed": seed}
    began = time.process_time()
    try:
        recipe = parse_recipe(recipe_text(task, method), f"{RECIPES[task]}.toml", sets)
        outcome = train(plan(recipe, installed), folder)
    except Interrupted as error:
        raise SystemExit(str(error)) from error
    except SftError as error:
        return {**record, "error": str(error)}
    seconds = time.process_time() - began
    end = load_file(folder / "model" / "model.safetensors")
    return {
        **record,
        "accuracy": outcome.metrics["accuracy"],
        "nll": outcome.metrics["nll"],
        "drift": drift(watch.START, end, watch.HEAD),
        "seconds": seconds,
    }


def results_of(path: Path) -> list[dict[str, Any]]:
    """Return the lines that are there."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def wanted(options: argparse.Namespace) -> Iterator[tuple[str, str, int]]:
    """Yield what is to be run: all methods with the first seed, then with the next."""
    share, of = (int(number) for number in options.part.split("/"))
    mine = list(METHODS)[share::of]
    for seed in range(options.seeds):
        for method in mine:
            if options.only and method not in options.only:
                continue
            for task in options.tasks:
                if task in METHODS[method].tasks:
                    yield task, method, seed


def run_all(options: argparse.Namespace) -> None:
    """Run what has no line yet."""
    quiet_start(1)
    installed, path = plugins(), options.folder / "results.jsonl"
    options.folder.mkdir(parents=True, exist_ok=True)
    done = {(r["task"], r["method"], r["seed"]) for r in results_of(path)}
    scratch = options.folder / f"run-{options.part.replace('/', '-')}"
    for task, method, seed in wanted(options):
        if (task, method, seed) in done:
            continue
        shutil.rmtree(scratch, ignore_errors=True)
        record = measure(task, method, seed, scratch, installed)
        with path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(record) + "\n")
        shown = record.get("error") or f"{record['accuracy']:.3f} {record['seconds']:.1f} s"
        print(f"{task} {method} {seed}: {shown}", file=sys.stderr, flush=True)
    shutil.rmtree(scratch, ignore_errors=True)


def spread(values: Sequence[float]) -> str:
    """Return mean and standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return f"{statistics.fmean(values):.3f} ± {deviation:.3f}"


def paired(values: Mapping[int, float], plain: Mapping[int, float]) -> str:
    """Return the mean difference to plain fine-tuning over common seeds, and its standard error."""
    differences = [values[seed] - plain[seed] for seed in values if seed in plain]
    if len(differences) < 2:
        return ""
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return f"{statistics.fmean(differences):+.3f} ± {error:.3f}"


def markdown(results: Sequence[Mapping[str, Any]], task: str) -> str:
    """Return the table of a task, a line a method in the order of the shelf."""
    titles = [
        "method",
        "seeds",
        "accuracy",
        "to plain (s.e.)",
        "NLL",
        "drift",
        "seconds",
        "options",
    ]
    lines = [titles, ["---", "---:", "---:", "---:", "---:", "---:", "---:", "---"]]
    good = [r for r in results if r["task"] == task and "error" not in r]
    plain = {r["seed"]: r["accuracy"] for r in good if r["method"] == "plain"}
    for method, what in METHODS.items():
        own = {r["seed"]: r for r in good if r["method"] == method}
        if not own:
            continue
        accuracies = {seed: r["accuracy"] for seed, r in own.items()}
        mean = {
            key: statistics.fmean(r[key] for r in own.values())
            for key in ("nll", "drift", "seconds")
        }
        lines.append(
            [
                f"`{method}`",
                str(len(own)),
                spread(list(accuracies.values())),
                paired(accuracies, plain) if method != "plain" else "",
                f"{mean['nll']:.3f}",
                f"{mean['drift']:.3g}",
                f"{mean['seconds']:.1f}",
                f"`{what.options}`" if what.options else "",
            ]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(words: Sequence[str]) -> None:
    """Read the command line and run, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="where results.jsonl stands or shall stand")
    parser.add_argument("--tasks", nargs="+", choices=BOTH, default=list(BOTH))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=list(METHODS), help="these methods alone")
    parser.add_argument("--part", default="0/1", help="share of the runs, such as 0/2 and 1/2")
    parser.add_argument("--table", action="store_true", help="print what is there and end")
    options = parser.parse_args(words)
    if not options.table:
        run_all(options)
    results = results_of(options.folder / "results.jsonl")
    for task in options.tasks:
        print(f"\n### {task}\n\n{markdown(results, task)}")
        for r in results:
            if r["task"] == task and "error" in r:
                print(f"\n{r['method']}, seed {r['seed']}: {r['error']}")


if __name__ == "__main__":
    main(sys.argv[1:])
