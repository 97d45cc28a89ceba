"""Which of several runs or studies is better, and with what certainty (docs/compare.md).

`runs` reads folders, `answers` their predictions, `evidence` tests two groups, `verdicts` says in words what
follows, `comparison` puts it together. Imports no torch.
"""

from __future__ import annotations

from sft_engine.comparing.comparison import Comparison, compare_runs
from sft_engine.comparing.writing import write_comparison

__all__ = ["Comparison", "compare_runs", "write_comparison"]
