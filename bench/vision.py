"""How long each way takes to train every weight of a convolutional network on pictures of 96 pixels.

usage: python -m bench.vision VARIANT [--model resnet18|lite0] [--steps 24] [--check]

Beside the time it reports what was learned, and the peak memory of the process.
"""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench.measurement import Result, common_arguments, quiet_start, require_threads
from bench.same_work import (
    Recorder,
    Weights,
    replay,
    require_each_once,
    require_same_weights,
    update_distance,
    weights_of,
)
from bench.vision_variants import VARIANTS, Variant
from bench.vision_work import MODELS, VisionWork, accuracy, label

CHECK_STEPS, CHECK_BATCH, CHECK_SIZE = 3, 8, 64
TOLERANCE = 1e-2


def measure(name: str, work: VisionWork, threads: int) -> Result:
    """Time one variant; its figure is the whole training call."""
    before = peak_memory()
    model = VARIANTS[name](work)
    peak = peak_memory()
    require_threads(threads)
    if len(work.timer.step_starts) != work.steps:
        raise SystemExit(f"{name} took {len(work.timer.step_starts)} steps, not {work.steps}")
    return Result(
        benchmark="vision",
        variant=name,
        seconds=work.timer.seconds,
        details={
            "test accuracy": accuracy(model, work),
            "peak memory MiB": peak,
            "of it since the start MiB": peak - before,
        },
    )


def peak_memory() -> float:
    """Most memory that this process has had so far, in MiB: torch, libraries and data included."""
    with contextlib.suppress(OSError):
        # `getrusage` would tell the peak of the process that started this one, if that is higher.
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**10
    unit = 1 if sys.platform == "darwin" else 2**10  # macOS counts bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def check(variant: Variant, model: str, seed: int) -> None:
    """Stop unless the variant does the same work as the plain loop, in fp32 or in bf16."""

    def small(watchers: list[object]) -> VisionWork:
        return VisionWork(
            model, CHECK_STEPS, seed, watchers=watchers, batch_size=CHECK_BATCH, size=CHECK_SIZE
        )

    recorder = Recorder()
    work = small([recorder.watch])
    trained = weights_of(variant(work))
    for batch in recorder.batches:
        batch.setdefault("inputs", next(iter(batch.values())))
    seen = torch.cat([batch["inputs"].contiguous().flatten(1) for batch in recorder.batches])
    require_each_once(seen, work.inputs.flatten(1))

    def reference(bf16: bool, last: bool) -> Weights:
        def loss_of(net: nn.Module, batch: dict[str, Tensor]) -> Tensor:
            form = torch.channels_last if last else torch.contiguous_format
            images = batch["inputs"].contiguous(memory_format=form)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                return cross_entropy(net(images), label(batch["inputs"]))

        untrained = small([]).build_model()
        if last:
            untrained.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return replay(untrained, recorder.batches, loss_of, work.learning_rate)

    distances = {
        f"{precision}{', channels last' if last else ''}": update_distance(
            recorder.first_weights, trained, reference(precision == "bf16", last)
        )
        for precision in ("fp32", "bf16")
        for last in (False, True)
    }
    require_same_weights(distances, TOLERANCE)


def main() -> None:
    """Read the command line and measure, or check, one variant."""
    parser = common_arguments("One epoch of a convolutional network on pictures in memory.")
    parser.add_argument("variant", choices=list(VARIANTS))
    parser.add_argument("--model", choices=list(MODELS), default="resnet18")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--check", action="store_true", help="prove the same work, time nothing")
    options = parser.parse_args()
    quiet_start(options.threads)
    if options.check:
        check(VARIANTS[options.variant], options.model, options.seed)
        return
    work = VisionWork(options.model, options.steps, options.seed)
    measure(options.variant, work, options.threads).report(options.result)


if __name__ == "__main__":
    main()
