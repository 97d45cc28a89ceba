"""`python -m sft_engine`, so that `accelerate launch -m sft_engine run RECIPE` works."""

from __future__ import annotations

from sft_engine.cli import main

if __name__ == "__main__":
    main()
