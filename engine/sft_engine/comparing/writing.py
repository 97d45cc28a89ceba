"""A comparison as a file: `sft-engine report` shows the folder of one that is called comparison.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from sft_engine.records import write_asked

if TYPE_CHECKING:
    from sft_engine.comparing.comparison import Comparison


def write_comparison(found: Comparison, path: Path) -> None:
    """Write a comparison as JSON.

    Raises:
        OutputError: it cannot be written.
    """
    content = json.dumps(found.as_json(), indent=2, ensure_ascii=False)
    write_asked(path, (content + "\n").encode())
