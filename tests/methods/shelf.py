"""Print what the suite proves, and what excludes what: `python tests/methods/shelf.py [--cost]`.

Counts come from pytest's own collection, sentences from `check`; `--cost` adds the cost of a step with each
component, as measured by `python -m bench.step_cost`.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import cases

from sft_engine import SftError

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

CLAIMS = {
    "test_it_does_something": "changes the run",
    "test_zero_strength_is_absence_bit_for_bit": "zero strength is absence, bit for bit",
    "test_accumulation_changes_nothing": "a window of 16 is one of 4 times 4",
    "test_what_is_of_a_micro_batch_trains_in_parts": "is of a micro-batch, and trains in parts",
    "test_two_processes_are_one": "two processes are one, or agree",
    "test_bf16_runs_with_each": "bf16 learns what float32 learns",
    "test_a_resumed_run_ends_bit_equal": "interrupted and resumed: bit-equal, state included",
    "test_a_killed_run_goes_on_bit_equal": "killed and resumed: bit-equal",
    "test_it_trains_on_other_data_that_it_takes": "trains on other data that it takes, and resumes",
    "test_other_data_is_refused_in_a_sentence": "refuses data that it does not take",
    "test_what_does_not_go_together_is_refused": "pairs that `check` refuses",
}


def counts() -> Counter[str]:
    """Return how many tests each function of the suite makes."""
    files = [str(HERE / name) for name in ("test_every_method.py", "test_processes.py")]
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:xdist", *files]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return Counter(re.findall(r"::(test_\w+)", listed.stdout))


def trained_pairs() -> int:
    """Return how many pairs train together, two steps each."""
    return sum(bool(cases.home_of(pair)) and not cases.excludes(*pair) for pair in cases.pairs())


def refusals() -> dict[str, list[str]]:
    """Return what `check` says to every pair that it refuses, and which pairs, by sentence."""
    found: dict[str, list[str]] = {}
    for first, second in cases.pairs():
        both_result = {first, second} <= set(cases.RESULTS)
        if cases.excludes(first, second) or both_result:
            said = cases.refusal(first, second, final=True).partition(": ")[2]
            found.setdefault(said, []).append(f"{first} + {second}")
    return found


def elsewhere() -> dict[str, list[str]]:
    """Return what components say to data that they do not take, and which, by sentence."""
    found: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, case in cases.CASES.items():
            for kind in [kind for kind in cases.ALL if kind not in case.homes]:
                path = Path(folder, f"{name} {kind}")
                try:
                    cases.trained(path, cases.recipe(name, home=kind), cases.needs([name]))
                except SftError as error:
                    found.setdefault(str(error), []).append(f"{name} on {kind}")
    return found


def print_refused(title: str, found: dict[str, list[str]]) -> None:
    """Print combinations under what is said to them."""
    print(f"\n## {title}\n")
    for sentence, names in found.items():
        print(f"- {', '.join(names)}:\n  {sentence}")


def main() -> None:
    """Print the counts, the refusals and, if asked for, the costs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cost", action="store_true", help="measure steps too; takes minutes")
    options = parser.parse_args()
    tests = counts()
    components = len(set(cases.shelf()))
    print(f"## Counts\n\n{components} components in {len(cases.CASES)} cases\n")
    print("| claim | tests |\n|---|---:|")
    for test, claim in CLAIMS.items():
        print(f"| {claim} | {tests[test]} |")
    print(f"| pairs that train together, two steps each | {trained_pairs()} |")
    print(f"| all tests of the suite | {sum(tests.values())} |")
    with cases.shared_costs():
        print_refused("Refused by `check`", refusals())
        print_refused("Refused for the data", elsewhere())
    if options.cost:
        print("\n## Cost of a step\n", flush=True)
        subprocess.run([sys.executable, "-m", "bench.step_cost"], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
