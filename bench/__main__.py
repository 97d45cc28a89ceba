"""Every comparison at its full size, one after the other: `python -m bench [FOLDER]`.

Takes an hour or so on two cores that have nothing else to do. Prints three tables and writes
what was measured to FOLDER, `bench/results` by default.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from bench import paired

PEERS = ("accelerate", "fastai", "lightning", "pytorch_accelerated", "timm", "transformers")


def main() -> None:
    """Run the comparisons that docs/benchmarks.md quotes."""
    if missing := [name for name in PEERS if find_spec(name) is None]:
        raise SystemExit(
            f"not installed: {', '.join(missing)}; run: pip install -e '.[bench-peers]'"
        )
    from bench import overhead_variants, startup, text_variants

    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "bench/results")
    folder.mkdir(parents=True, exist_ok=True)
    cores = str(os.cpu_count())
    comparisons = {
        "startup": [*startup.VARIANTS, "--rounds", "5"],
        "overhead": [*overhead_variants.VARIANTS, "--rounds", "10"],
        "text": [*text_variants.VARIANTS, "--rounds", "5", "--threads", cores],
    }
    for benchmark, words in comparisons.items():
        print(f"\n## {benchmark}\n", flush=True)
        paired.main([benchmark, *words, "--json", str(folder / f"{benchmark}.json")])


if __name__ == "__main__":
    main()
