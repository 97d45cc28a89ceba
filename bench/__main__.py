"""Every comparison at its full size, one after the other: `python -m bench [FOLDER]`.

Takes two hours or so on two cores that have nothing else to do. Prints a table for each and writes
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
    from bench import frozen_variants, overhead_variants, startup, text_variants, vision_variants
    from bench.vision_work import MODELS

    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "bench/results")
    folder.mkdir(parents=True, exist_ok=True)
    cores = str(os.cpu_count())
    comparisons = {
        "startup": [*startup.VARIANTS, "--rounds", "5"],
        "overhead": [*overhead_variants.VARIANTS, "--rounds", "10"],
        "text": [*text_variants.VARIANTS, "--rounds", "5", "--threads", cores],
        "frozen": [
            *frozen_variants.VARIANTS,
            *("--rounds", "5", "--threads", cores, "--reference", "article"),
        ],
    }
    vision = ["vision", *vision_variants.VARIANTS, "--rounds", "5", "--threads", cores]
    runs = {name: ([name, *words], []) for name, words in comparisons.items()}
    runs |= {f"vision-{model}": (vision, ["--", "--model", model]) for model in MODELS}
    for name, (words, arguments) in runs.items():
        print(f"\n## {name}\n", flush=True)
        paired.main([*words, "--json", str(folder / f"{name}.json"), *arguments])


if __name__ == "__main__":
    main()
