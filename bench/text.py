"""How long each way takes for one epoch of a small BERT on sentences of uneven length.

usage: python -m bench.text VARIANT [--sentences 768] [--check]

Beside the time it reports what was learned, so that speed bought with accuracy shows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad as pad_tensor
from torch.nn.utils.rnn import pad_sequence

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
from bench.text_variants import VARIANTS, Variant
from bench.text_work import LONGEST, TextWork, label, loss_and_accuracy

CHECK_SENTENCES = 96
TOLERANCE = 1e-2


def measure(name: str, sentences: int, threads: int, seed: int) -> Result:
    """Time one variant; its figure is the whole training call."""
    work = TextWork(sentences, seed=seed)
    model = VARIANTS[name](work)
    require_threads(threads)
    if len(work.timer.step_starts) != work.steps:
        raise SystemExit(f"{name} took {len(work.timer.step_starts)} steps, not {work.steps}")
    train_loss, _ = loss_and_accuracy(model, work.train)
    test_loss, test_accuracy = loss_and_accuracy(model, work.test)
    return Result(
        benchmark="text",
        variant=name,
        seconds=work.timer.seconds,
        details={
            "final training loss": train_loss,
            "test loss": test_loss,
            "test accuracy": test_accuracy,
        },
    )


def check(variant: Variant, seed: int) -> None:
    """Stop unless the variant does the same work as the plain loop, in fp32 or in bf16.

    Without dropout: its masks depend on the order of random draws, which is each library's own.
    """
    recorder = Recorder()
    work = TextWork(CHECK_SENTENCES, seed=seed, dropout=0.0, watchers=[recorder.watch])
    trained = weights_of(variant(work))
    sentences = [x["input_ids"] for x in work.train]
    seen = [to_longest(batch["input_ids"]) for batch in recorder.batches]
    require_each_once(torch.cat(seen), to_longest(pad_sequence(sentences, batch_first=True)))

    def reference(bf16: bool) -> Weights:
        def loss_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                # A library may keep the labels to itself and compute the loss from the logits.
                labels = label(batch["input_ids"])
                return model(**{**batch, "labels": labels}).loss  # type: ignore[no-any-return]

        untrained = TextWork(CHECK_SENTENCES, seed=seed, dropout=0.0).build_model()
        return replay(untrained, recorder.batches, loss_of, work.learning_rate)

    distances = {
        name: update_distance(recorder.first_weights, trained, reference(bf16))
        for name, bf16 in (("fp32", False), ("bf16", True))
    }
    require_same_weights(distances, TOLERANCE)


def to_longest(ids: Tensor) -> Tensor:
    """Token ids (n, width) padded with zeros to (n, LONGEST)."""
    return pad_tensor(ids, (0, LONGEST - ids.shape[1]))


def main() -> None:
    """Read the command line and measure, or check, one variant."""
    parser = common_arguments("One epoch of a small BERT on sentences of uneven length.")
    parser.add_argument("variant", choices=list(VARIANTS))
    parser.add_argument("--sentences", type=int, default=768)
    parser.add_argument("--check", action="store_true", help="prove the same work, time nothing")
    options = parser.parse_args()
    quiet_start(options.threads)
    if options.check:
        check(VARIANTS[options.variant], options.seed)
        return
    result = measure(options.variant, options.sentences, options.threads, options.seed)
    result.report(options.result)


if __name__ == "__main__":
    main()
