"""A comparison as a file: `sft-engine report` shows the folder of one that is called comparison.json."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sft_engine.errors import OutputError
from sft_engine.sentences import reason_of

if TYPE_CHECKING:
    from sft_engine.comparing.comparison import Comparison


def write_comparison(found: Comparison, path: Path) -> None:
    """Write a comparison as JSON, whole or not at all; its folder is made if only that is missing.

    Raises:
        OutputError: it cannot be written.
    """
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        path.parent.mkdir(exist_ok=True)
        content = json.dumps(found.as_json(), indent=2, ensure_ascii=False)
        temporary.write_text(content + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {reason_of(error)}, or choose another --output"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
