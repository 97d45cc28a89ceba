"""What a step of each training loop costs when the model costs next to nothing.

usage: python -m bench.overhead VARIANT [STEPS] [--check]
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench.measurement import Result, common_arguments, quiet_start, require_threads
from bench.overhead_variants import VARIANTS, Variant
from bench.overhead_work import OverheadWork
from bench.same_work import (
    Recorder,
    replay,
    require_each_once,
    require_same_weights,
    update_distance,
    weights_of,
)

CHECK_STEPS = 60
TOLERANCE = 1e-3
WARM_UP_SHARE = 0.1


def measure(name: str, steps: int, threads: int, seed: int) -> Result:
    """Time one variant; its figure is the mean step once the first tenth of them is over."""
    work = OverheadWork(steps, seed)
    VARIANTS[name](work)
    require_threads(threads)
    if len(work.timer.step_starts) != steps:
        raise SystemExit(f"{name} took {len(work.timer.step_starts)} steps, not {steps}")
    return Result(
        benchmark="overhead",
        variant=name,
        seconds=work.timer.seconds_per_step(skip=int(steps * WARM_UP_SHARE)),
        details={"whole call / steps (ms)": 1e3 * work.timer.seconds / steps},
    )


def check(variant: Variant, seed: int) -> None:
    """Stop unless the variant does the same work as the plain loop."""
    recorder = Recorder()
    work = OverheadWork(CHECK_STEPS, seed, watchers=[recorder.watch])
    trained = weights_of(variant(work))
    require_each_once(torch.cat([batch["inputs"] for batch in recorder.batches]), work.inputs)

    def loss_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return cross_entropy(model(batch["inputs"]), work.label(batch["inputs"]))

    untrained = OverheadWork(CHECK_STEPS, seed).build_model()
    reference = replay(untrained, recorder.batches, loss_of, work.learning_rate)
    distance = update_distance(recorder.first_weights, trained, reference)
    require_same_weights({"fp32": distance}, TOLERANCE)


def main() -> None:
    """Read the command line and measure, or check, one variant."""
    parser = common_arguments("The cost of a step of each training loop on a tiny model.")
    parser.add_argument("variant", choices=list(VARIANTS))
    parser.add_argument("steps", type=int, nargs="?", default=2000)
    parser.add_argument("--check", action="store_true", help="prove the same work, time nothing")
    options = parser.parse_args()
    quiet_start(options.threads)
    if options.check:
        check(VARIANTS[options.variant], options.seed)
        return
    result = measure(options.variant, options.steps, options.threads, options.seed)
    result.report(options.result)


if __name__ == "__main__":
    main()
