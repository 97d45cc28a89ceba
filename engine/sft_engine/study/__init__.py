"""Stability studies: many runs of one recipe, with other training examples and other seeds (docs/stability.md).

`design` says which runs there are, `folder` keeps them, `processes` and `ray_cluster` carry them out by way of
`worker` and `cell`; `evidence`, `results` and `reported` say what they show. Statistics are those of
`sft_engine.significance`. Imports no torch.
"""

from __future__ import annotations

from sft_engine.study.stability import Study, StudySettings, stability

__all__ = ["Study", "StudySettings", "stability"]
