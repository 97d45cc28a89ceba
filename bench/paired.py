"""Run variants of a benchmark in turn, A B C A B C ..., and print their ratios.

usage: python -m bench.paired {overhead,text,vision,frozen,startup} VARIANT VARIANT ... [options] [-- ARGUMENTS]

A shared machine is faster in one minute than in the next. Runs of one round stand side by side,
so their ratio is steadier than their times: it is what to quote.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench import machine
from bench.measurement import Result, readable

ROOT = Path(__file__).resolve().parent.parent
Rounds = list[dict[str, Result]]


def run_once(
    benchmark: str, variant: str, threads: int, seed: int, arguments: Sequence[str]
) -> Result:
    """Run one variant in a process of its own and return what it measured.

    Raises `SystemExit` with the end of its error output if it fails.
    """
    limits = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "result.json")
        options = ["--threads", str(threads), "--seed", str(seed), "--result", str(path)]
        ended = subprocess.run(
            [sys.executable, "-m", f"bench.{benchmark}", variant, *arguments, *options],
            cwd=ROOT,
            env={**os.environ, **limits},
            capture_output=True,
            text=True,
            check=False,
        )
        if ended.returncode != 0:
            raise SystemExit(f"{benchmark} {variant} failed: {ended.stderr.strip()[-2000:]}")
        return Result(**json.loads(path.read_text(encoding="utf-8")))


def ratios(rounds: Rounds, variant: str, reference: str) -> list[float]:
    """Time of `variant` over that of `reference`, round by round."""
    return [results[variant].seconds / results[reference].seconds for results in rounds]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, extremes and quartiles; one value is its own quartiles."""
    values = sorted(values)
    quartiles = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    )
    return {
        "median": statistics.median(values),
        "min": values[0],
        "max": values[-1],
        "lower quartile": quartiles[0],
        "upper quartile": quartiles[2],
    }


def summary(rounds: Rounds, reference: str) -> dict[str, dict[str, dict[str, float]]]:
    """For each variant the spread of its seconds, of its paired ratio and of its details."""
    summaries = {}
    for variant, result in rounds[0].items():
        details = {
            name: spread([results[variant].details[name] for results in rounds])
            for name in result.details
        }
        summaries[variant] = {
            "seconds": spread([results[variant].seconds for results in rounds]),
            "ratio": spread(ratios(rounds, variant, reference)),
            **details,
        }
    return summaries


def markdown(rounds: Rounds, reference: str) -> str:
    """The table: a line per variant, in the order they ran."""
    summaries = summary(rounds, reference)
    details = list(next(iter(rounds[0].values())).details)
    titles = ["variant", "median", "min", f"ratio to {reference}", "middle half", *details]
    lines = [titles, ["---"] + ["---:"] * (len(titles) - 1)]
    for variant, figures in summaries.items():
        seconds, ratio = figures["seconds"], figures["ratio"]
        lines.append(
            [
                variant,
                readable(seconds["median"]),
                readable(seconds["min"]),
                f"{ratio['median']:.2f}",
                f"{ratio['lower quartile']:.2f} to {ratio['upper quartile']:.2f}",
                *(f"{figures[name]['median']:.4g}" for name in details),
            ]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(
    path: Path, options: argparse.Namespace, described: dict[str, object], rounds: Rounds
) -> None:
    """Write everything that was measured as JSON, replacing the file in one go."""
    record = {
        "benchmark": options.benchmark,
        "arguments": options.arguments,
        "threads": options.threads,
        "reference": options.reference,
        "machine": described,
        "summary": summary(rounds, options.reference),
        "rounds": [
            {
                name: {"seconds": result.seconds, **result.details}
                for name, result in results.items()
            }
            for results in rounds
        ],
    }
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def options_of(words: list[str]) -> argparse.Namespace:
    """Read the command line; what follows `--` goes to the benchmark itself."""
    cut = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("benchmark", choices=["overhead", "text", "vision", "frozen", "startup"])
    parser.add_argument("variants", nargs="+", metavar="VARIANT", help="in the order they take")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--warm-up", type=int, default=1, help="rounds run first, not counted")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--reference", help="what ratios are to; default: the first variant")
    parser.add_argument("--json", type=Path, help="file to write, renewed after each round")
    options = parser.parse_args(words[:cut])
    options.arguments = words[cut + 1 :]
    options.reference = options.reference or options.variants[0]
    if options.reference not in options.variants:
        parser.error(f"--reference {options.reference} is not among the variants")
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, not {options.rounds}")
    return options


def main(words: list[str]) -> None:
    """Run all rounds and print the table; `words` are those of the command line."""
    options = options_of(words)
    if warning := machine.busy():
        print(warning, file=sys.stderr)
    described = machine.describe()
    rounds: Rounds = []
    for number in range(-options.warm_up, options.rounds):
        results = {}
        for variant in options.variants:
            # Each round has its own seed, so that accuracies show their spread as well.
            seed = max(number, 0)
            results[variant] = run_once(
                options.benchmark, variant, options.threads, seed, options.arguments
            )
            label = f"round {number + 1}/{options.rounds}" if number >= 0 else "warm-up"
            print(f"{label} {variant} {readable(results[variant].seconds)}", file=sys.stderr)
        if number >= 0:
            rounds.append(results)
            if options.json is not None:
                write(options.json, options, described, rounds)
    print(f"{described['cpu']}, {options.threads} of {described['cores']} cores, ", end="")
    print(f"torch {machine.versions().get('torch', 'missing')}, {options.rounds} rounds\n")
    print(markdown(rounds, options.reference))


if __name__ == "__main__":
    main(sys.argv[1:])
