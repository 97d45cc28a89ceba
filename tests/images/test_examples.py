from __future__ import annotations

import copy
import os
import threading

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, List, Value
from pictures import lossless, noise
from torch.utils.data import DataLoader

from sft_engine.images import ImageExamples, Pipeline, decode, encode_images, stack_images
from sft_engine.images import examples as examples_module

PIPELINE = Pipeline((12, 16), mean=(0.4,), std=(0.3,))
IMAGES = [lossless(noise(size)) for size in (20, 30, 40, 50, 60)]
LABELS = [0, 1, 1, 0, 2]


@pytest.fixture
def rows():
    return Dataset.from_dict({"image": IMAGES, "label": LABELS})


def expected(ids):
    return torch.stack([PIPELINE(decode(IMAGES[i])) for i in ids])


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
@pytest.mark.parametrize("ids", [[0], [3, 1, 4], [2, 2, 0, 2], list(range(5))])
def test_taking_and_collating_give_the_pipelines_images_and_the_targets(rows, ids, cache_bytes):
    examples = ImageExamples(rows, PIPELINE, "label", cache_bytes=cache_bytes)
    for _ in range(2):
        taken = examples.take(ids)
        assert set(taken) == {"image", "label"}
        assert torch.equal(taken["image"], expected(ids))
        assert taken["label"].tolist() == [LABELS[i] for i in ids]
        assert taken["label"].dtype == torch.int64
        single = examples.__getitems__(ids)
        assert torch.equal(stack_images(single)["image"], taken["image"])
        assert [example["label"] for example in single] == taken["label"].tolist()
    assert len(examples) == 5


def test_on_the_fly_gives_the_same(rows):
    examples = encode_images([dict(row) for row in rows], PIPELINE, "label", "pixels")
    assert torch.equal(stack_images(examples, "pixels")["pixels"], expected(range(5)))
    assert [example["label"] for example in examples] == LABELS
    assert list(encode_images([{"image": IMAGES[0]}], PIPELINE, "label")[0]) == ["image"]


def test_rows_of_an_augmentation_hold_tensors(rows):
    pixels = torch.randint(0, 256, (3, 12, 16), dtype=torch.uint8)
    (example,) = encode_images([{"image": pixels, "label": 1}], PIPELINE, "label")
    assert torch.equal(example["image"], PIPELINE(pixels))


def test_nothing_is_decoded_twice_while_memory_allows(rows, monkeypatch):
    decoded = []
    monkeypatch.setattr(
        examples_module, "decode", lambda value: decoded.append(value) or decode(value)
    )
    size = 5 * 3 * 12 * 16
    kept = ImageExamples(rows, PIPELINE, "label", cache_bytes=size)
    for ids in ([0, 1], [1, 2, 2], [0, 1, 2]):
        kept.take(ids)
    assert len(decoded) == 3
    decoded.clear()
    too_many = ImageExamples(rows, PIPELINE, "label", cache_bytes=size - 1)
    for _ in range(2):
        too_many.take([0, 1])
    assert len(decoded) == 4


def test_what_was_taken_may_be_written_to(rows):
    examples = ImageExamples(rows, PIPELINE, "label")
    examples.take([0])["image"].zero_()
    examples.__getitems__([0])[0]["image"].zero_()
    taken = examples.take([0])
    taken["label"].zero_()
    assert torch.equal(examples.take([0])["image"], expected([0]))
    assert examples.take([1])["label"].tolist() == [1]


def test_channels_last_changes_the_format_and_not_the_values(rows):
    examples = ImageExamples(rows, PIPELINE, "label", channels_last=True)
    image = examples.take([0, 1])["image"]
    assert image.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(image, expected([0, 1]))
    stacked = stack_images(examples.__getitems__([0, 1]), channels_last=True)["image"]
    assert stacked.is_contiguous(memory_format=torch.channels_last)


def test_many_labels_and_no_labels(rows):
    flags = [[0.0, 1.0]] * 5
    features = Features({"image": Value("binary"), "label": List(Value("float32"))})
    many = Dataset.from_dict({"image": IMAGES, "label": flags}, features=features)
    taken = ImageExamples(many, PIPELINE, "label").take([1, 2])
    assert taken["label"].tolist() == [[0.0, 1.0], [0.0, 1.0]]
    assert taken["label"].dtype == torch.float32
    none = ImageExamples(rows.remove_columns("label"), PIPELINE, "label")
    assert set(none.take([0])) == {"image"}
    assert set(none.__getitems__([0])[0]) == {"image"}


def test_selections_and_image_columns_of_datasets(rows):
    import datasets

    picked = rows.cast_column("image", datasets.Image()).select([4, 2, 0])
    taken = ImageExamples(picked, PIPELINE, "label").take([0, 2])
    assert torch.equal(taken["image"], expected([4, 0]))
    assert taken["label"].tolist() == [2, 0]


class _Taken:
    def __init__(self, examples):
        self.examples = examples

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        return self.examples.take([index])["image"][0], os.getpid(), threading.active_count()


def test_forked_workers_share_what_they_decoded(rows, monkeypatch):
    examples = ImageExamples(rows, PIPELINE, "label")
    examples.take([0, 1])  # starts the threads of this process, which a fork does not have
    loader = DataLoader(
        _Taken(examples), batch_size=None, num_workers=2, multiprocessing_context="fork"
    )
    images, processes, _ = zip(*loader, strict=True)
    assert torch.equal(torch.stack(images), expected(range(5)))
    assert os.getpid() not in processes
    monkeypatch.setattr(examples_module, "decode", None)  # nothing is left to decode here
    assert torch.equal(examples.take(range(5))["image"], expected(range(5)))


def test_another_process_that_is_no_fork_gets_its_own(rows):
    examples = ImageExamples(rows, PIPELINE, "label")
    examples.take([0])
    own = copy.deepcopy(examples)
    assert torch.equal(own.take([0, 3])["image"], expected([0, 3]))


def test_threads_keep_the_order(monkeypatch):
    monkeypatch.setattr(examples_module, "threads", lambda: 4)
    items = list(range(50))
    assert examples_module.in_threads(lambda i: i * i, items) == [i * i for i in items]
    with pytest.raises(ZeroDivisionError):
        examples_module.in_threads(lambda i: 1 // i, [1, 0])


def test_targets_are_arrays(rows):
    assert examples_module.target_array(rows, "label").dtype == np.int64
    floats = Dataset.from_dict({"label": [0.5, 1.5]})
    assert examples_module.target_array(floats, "label").dtype == np.float32
