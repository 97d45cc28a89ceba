"""How long each way takes to train a new head on a frozen ResNet-50 for ten epochs.

usage: python -m bench.frozen VARIANT [--count 128] [--size 128] [--epochs 10] [--trains head] [--check]

The time is that of the whole training call: whatever a variant builds in it is included.
"""

from __future__ import annotations

from bench.frozen_variants import VARIANTS, trunk_without_gradients
from bench.frozen_work import HEAD, TRAINS, FrozenWork, final_loss
from bench.measurement import Result, common_arguments, quiet_start, require_threads
from bench.same_work import update_distance, weights_of

CHECK_COUNT, CHECK_SIZE, CHECK_EPOCHS = 8, 64, 3
TOLERANCE = 1e-3
TRAINING_MODE = ("article", "hf", "lightning")
"""Variants that leave batch norm of the trunk in training mode, and so train on other features."""
HEAD_ALONE = ("no-grad", "once")


def measure(name: str, work: FrozenWork, threads: int) -> Result:
    """Time one variant; its figure is the whole training call."""
    model = VARIANTS[name](work)
    require_threads(threads)
    return Result(
        benchmark="frozen",
        variant=name,
        seconds=work.timer.seconds,
        details={"final training loss": final_loss(model, work)},
    )


def check(name: str, seed: int) -> None:
    """Stop unless the variant trains the head that the plain loop trains.

    A batch holds all examples, so that the order, which is each library's own, does not matter.
    """
    if name in TRAINING_MODE:
        raise SystemExit(f"{name} leaves the trunk in training mode: its features are others")

    def work() -> FrozenWork:
        sizes = {"count": CHECK_COUNT, "batch_size": CHECK_COUNT, "epochs": CHECK_EPOCHS}
        return FrozenWork(size=CHECK_SIZE, seed=seed, **sizes)

    first, found, expected = (
        weights_of(getattr(model, HEAD))
        for model in (
            work().build_model(),
            VARIANTS[name](work()),
            trunk_without_gradients(work()),
        )
    )
    distance = update_distance(first, found, expected)
    if not distance <= TOLERANCE:
        raise SystemExit(
            f"{name} ended {distance:.1e} away from the plain loop: it does other work"
        )
    print(f"same work as the plain loop: distance {distance:.1e}")


def main() -> None:
    """Read the command line and measure, or check, one variant."""
    parser = common_arguments("Ten epochs of a new head on a frozen ResNet-50.")
    parser.add_argument("variant", choices=list(VARIANTS))
    parser.add_argument("--count", type=int, default=128)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--trains", choices=list(TRAINS), default="head", help="of the network")
    parser.add_argument("--check", action="store_true", help="prove the same work, time nothing")
    options = parser.parse_args()
    quiet_start(options.threads)
    if options.check:
        check(options.variant, options.seed)
        return
    if options.trains != "head" and options.variant in HEAD_ALONE:
        raise SystemExit(f"{options.variant} trains the head alone")
    work = FrozenWork(
        options.count, options.size, options.epochs, options.seed, trains=options.trains
    )
    measure(options.variant, work, options.threads).report(options.result)


if __name__ == "__main__":
    main()
