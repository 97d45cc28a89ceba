"""What a measurement was made on and with."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

DISTRIBUTIONS = (
    "sft-engine",
    "torch",
    "transformers",
    "accelerate",
    "lightning",
    "fastai",
    "pytorch-accelerated",
    "timm",
)
# Instruction sets that decide whether bf16 is fast on a processor.
BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")


def describe() -> dict[str, object]:
    """Date, processor, cores, memory, load and versions, ready for JSON."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_field("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "bf16 instructions": [f for f in BF16_FLAGS if f in cpu_field("flags").split()],
        "memory_gib": round(memory_bytes() / 2**30, 1),
        "load_average": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": versions(),
    }


def busy() -> str | None:
    """A warning if the machine had much to do in the last minute, else None."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load < 0.3 * cores:
        return None
    return f"load average {load:.1f} on {cores} cores: busy in the last minute, times may be off"


def cpu_field(name: str) -> str:
    """The first value of a field of Linux's /proc/cpuinfo, or nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    values = (line.partition(":")[2].strip() for line in lines if line.startswith(name))
    return next(values, "")


def memory_bytes() -> int:
    """Physical memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def versions() -> dict[str, str]:
    """Version of each distribution that is installed."""
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
