"""What a plugin author's tests can use: fake installed distributions, so that loading is real.

Public: names in here change with a note in the changelog.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

__all__ = ["install_fake"]


def install_fake(
    folder: Path,
    distribution: str,
    modules: Mapping[str, str],
    *,
    version: str = "1.0",
    entry_points: Mapping[str, str],
) -> None:
    """Write an installed distribution into a folder; it is found once the folder is on `sys.path`.

    Args:
        folder: Stands for `site-packages`; made if absent.
        distribution: Its name, such as `sft-acme`.
        modules: Source text by module name, such as `{"sft_acme": "..."}`.
        version: Of the distribution.
        entry_points: Name to module in the group `sft_engine`, such as `{"acme": "sft_acme"}`.
    """
    info = folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n", encoding="utf-8"
    )
    points = "".join(f"{name} = {module}\n" for name, module in entry_points.items())
    (info / "entry_points.txt").write_text(f"[sft_engine]\n{points}", encoding="utf-8")
    for name, source in modules.items():
        path = folder.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
