"""Acceptance 2, 9 and 10: through the store, in other batches; what a file must be to count."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from zoo import (
    VOCABULARY,
    bert,
    freeze,
    full_pass,
    gpt2,
    llama,
    of_torchvision,
    pictures,
    planned,
    replayed_pass,
    roberta,
    same_passes,
)

from sft_engine.replay.check import kept_rows
from sft_engine.replay.store import Layout, Store, layout_of
from sft_engine.replay.trace import Probe, Refused
from sft_engine.state import digest

LENGTHS = [4 + (7 * i) % 29 for i in range(32)]


def batch_of(model, ids, *, left, positions):
    """Examples, each the same in every batch, padded to the longest."""
    width = max(LENGTHS[i] for i in ids)
    tokens = torch.ones(len(ids), width, dtype=torch.long)
    mask = torch.zeros(len(ids), width, dtype=torch.bool)
    for row, i in enumerate(ids):
        draw = torch.Generator().manual_seed(i)
        place = slice(width - LENGTHS[i], None) if left else slice(LENGTHS[i])
        tokens[row, place] = torch.randint(5, VOCABULARY, (LENGTHS[i],), generator=draw)
        mask[row, place] = True
    inputs = {"input_ids": tokens, "attention_mask": mask.long()}
    if positions:
        inputs["position_ids"] = (mask.long().cumsum(1) - 1).clamp(min=0)
    return Probe(inputs, lambda i: [model(**i).logits], {(n, 1): mask for n in inputs})


MODELS = {
    "bert": (bert, ("bert.embeddings", "bert.encoder.layer.0."), {}),
    "bert-eager": (lambda: bert("eager"), ("bert.embeddings", "bert.encoder.layer.0."), {}),
    "roberta": (roberta, ("roberta.embeddings", "roberta.encoder.layer.0."), {}),
    "llama": (llama, ("model.embed", "model.layers.0.", "model.layers.1."), {}),
    "llama-left": (llama, ("model.embed", "model.layers.0."), {"left": True}),
    "gpt2-left": (
        gpt2,
        ("transformer.w", "transformer.h.0."),
        {"left": True, "positions": True},
    ),
}


def filled(model, cut, kept, **sides):
    """A store filled in batches of similar length."""
    order = np.argsort(LENGTHS, kind="stable").tolist()
    store = None
    for start in range(0, len(order), 8):
        ids = order[start : start + 8]
        probe = batch_of(model, ids, **sides)
        rows = kept_rows(cut, probe)
        if store is None:
            layouts = [
                layout_of(
                    leaf.row_shape(probe.inputs),
                    leaf.like.dtype,
                    tokens=leaf.place is not None,
                    kept=kept,
                )
                for leaf in cut.kept
            ]
            store = Store(layouts, len(order))
        lengths = [probe.valid[leaf.place].sum(1) for leaf in cut.kept]
        store.put(ids, rows, lengths)
    assert store.is_complete
    return store


def norm(gradients):
    return torch.cat([g.flatten() for g in gradients]).norm()


@pytest.mark.parametrize(("kept", "limit"), [("exact", 1e-5), ("fp16", 1e-3), ("bf16", 1e-2)])
@pytest.mark.parametrize("name", MODELS)
def test_through_the_store_in_other_batches(name, kept, limit):
    make, cuts, sides = MODELS[name]
    sides = {"left": False, "positions": False, **sides}
    torch.manual_seed(0)
    model = freeze(make(), *cuts)
    cut = planned(model, batch_of(model, [0, 1], **sides), batch_of(model, [0, 1, 2], **sides))
    store = filled(model, cut, kept, **sides)
    assert store.bytes == sum(LENGTHS) * 32 * (4 if kept == "exact" else 2)
    shuffled = torch.randperm(32, generator=torch.Generator().manual_seed(1)).tolist()
    for start in range(0, 32, 8):
        ids = shuffled[start : start + 8]
        probe = batch_of(model, ids, **sides)
        (logits,), gradients = full_pass(model, probe)
        rows = store.get(ids, torch.device("cpu"))
        (other,), others = replayed_pass(model, cut, probe, rows)
        assert (other - logits).abs().max() / logits.abs().max() <= limit
        difference = norm([others[n] - g for n, g in gradients.items()])
        assert difference / norm(gradients.values()) <= limit


def test_what_is_handed_out_is_a_copy():
    store = Store([Layout((3,), torch.float32, torch.float32, tokens=False)], 4)
    store.put([0, 1, 2, 3], [torch.arange(12.0).view(4, 3)], [None])
    (rows,) = store.get([2, 0], torch.device("cpu"))
    assert rows.tolist() == [[6, 7, 8], [0, 1, 2]]
    rows.zero_()
    assert store.get([2], torch.device("cpu"))[0].tolist() == [[6, 7, 8]]


def test_writing_in_place_does_not_change_the_store():
    """The dropout of this head works in place."""
    torch.manual_seed(0)
    model = freeze(of_torchvision("efficientnet_b0"), but=("classifier",))
    assert model.classifier[0].inplace
    cut = planned(model, pictures(model, 2, 32), pictures(model, 3, 32))
    (leaf,), own = cut.kept, pictures(model, 4, 32)
    layout = layout_of(leaf.row_shape(own.inputs), leaf.like.dtype, tokens=False, kept="exact")
    store = Store([layout], 4)
    store.put(range(4), kept_rows(cut, own), [None])
    before = digest(store.columns[0].data)
    for seed in (1, 2):
        rows = store.get(range(4), torch.device("cpu"))
        assert same_passes(full_pass(model, own, seed), replayed_pass(model, cut, own, rows, seed))
    assert digest(store.columns[0].data) == before


def test_too_large_for_fp16_is_refused():
    store = Store([layout_of((2,), torch.float32, tokens=False, kept="fp16")], 4)
    with pytest.raises(Refused, match="too large for fp16"):
        store.put([0], [torch.tensor([[1.0, 7e4]])], [None])


def test_rows_of_uneven_number_grow():
    layout = Layout((2,), torch.float32, torch.float32, tokens=True)
    store = Store([layout], 3)
    draw = [torch.randn(n, 2) for n in (50, 1, 120)]
    for i in (2, 0, 1):
        store.put([i], [draw[i]], [torch.tensor([len(draw[i])])])
    (rows,) = store.get([1, 2, 0], torch.device("cpu"))
    assert torch.equal(rows, torch.cat([draw[1], draw[2], draw[0]]))


def test_an_example_is_always_computed_among_the_same_others():
    store = Store([Layout((1,), torch.float32, torch.float32, tokens=False)], 6)
    store.remember([[4, 1], [5]])
    assert store.to_compute([1, 2, 0]) == [[4, 1], [2, 0]]
    store.put([4, 1], [torch.zeros(2, 1)], [None])
    assert store.to_compute([1, 2, 2]) == [[2]]
    store.put([2], [torch.zeros(1, 1)], [None])
    assert store.groups == [[4, 1], [5], [2]]


# --- 10: files ------------------------------------------------------------------------------------

TOKENS = Layout((2,), torch.float32, torch.float16, tokens=True)


def write(folder, *, commit=True, fingerprint="a"):
    store = Store([TOKENS], 4, folder, fingerprint)
    rows = torch.arange(12.0).view(6, 2)
    store.put([3, 1], [rows], [torch.tensor([2, 4])])
    if commit:
        store.commit()
    return rows


def test_a_committed_file_is_taken_over(tmp_path):
    rows = write(tmp_path / "store")
    again = Store([TOKENS], 4, tmp_path / "store", "a")
    assert again.present.tolist() == [False, True, False, True]
    assert torch.equal(again.get([1], torch.device("cpu"))[0], rows[2:])
    assert again.groups == [[3, 1]]
    again.put([0], [rows[:3]], [torch.tensor([3])])
    assert torch.equal(again.get([3, 0], torch.device("cpu"))[0], rows[[0, 1, 0, 1, 2]])


def truncate(folder):
    path = folder / "column-0.bin"
    path.write_bytes(path.read_bytes()[:8])


def spoil(folder):
    (folder / "store.json").write_text("{")


def uncommit(folder):
    (folder / "store.json").unlink()


def other_size(folder):
    marker = json.loads((folder / "store.json").read_text())
    (folder / "store.json").write_text(json.dumps({**marker, "examples": 5}))


@pytest.mark.parametrize("harm", [truncate, spoil, uncommit, other_size])
def test_a_file_that_is_not_whole_counts_for_nothing(tmp_path, harm):
    write(tmp_path / "store")
    harm(tmp_path / "store")
    assert not Store([TOKENS], 4, tmp_path / "store", "a").present.any()


def test_a_file_of_something_else_counts_for_nothing(tmp_path):
    write(tmp_path / "store")
    assert not Store([TOKENS], 4, tmp_path / "store", "b").present.any()
    write(tmp_path / "store")
    bf16 = Layout((2,), torch.float32, torch.bfloat16, tokens=True)
    assert not Store([bf16], 4, tmp_path / "store", "a").present.any()


def test_discarded_files_are_gone(tmp_path):
    store = Store([TOKENS], 4, tmp_path / "store", "a")
    store.discard()
    assert not (tmp_path / "store").exists()
