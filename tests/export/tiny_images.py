"""A tiny image backbone with batch norm and dropout, and what can be wrong with an exported model."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sft_engine import hookimpl
from sft_engine.images import Pipeline
from sft_engine.images.backbone import ImageBackbone, contiguous_state
from sft_engine.testing.tiny import TinyText

SIZE = 16


class TinyNet(nn.Module):
    """Two convolutions with batch norm, dropout, linear head."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(8, outputs)

    def forward(self, image):
        return self.head(self.dropout(self.block(self.stem(image)).mean((2, 3))))


class TinyImage(ImageBackbone):
    """A network of a few hundred parameters.

    Args:
        name: Folder of saved weights; `random` for random ones.
        channels_last: Memory format.
    """

    export_formats = ("timm",)

    def __init__(self, name: str = "random", channels_last: bool = True) -> None:
        self.name, self.channels_last = name, channels_last

    def load_pipeline(self, location: str) -> Pipeline:
        self.location = Path(location)
        return Pipeline(size=(SIZE, SIZE), crop_pct=1.0)

    def network(self, head) -> nn.Module:
        net = TinyNet(head.outputs)
        if (self.location / "model.safetensors").exists():
            net.load_state_dict(load_file(self.location / "model.safetensors"))
        return net

    def save(self, model, folder, task) -> None:
        save_file(contiguous_state(model), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"num_classes": task.head.outputs}))


class Forgetful(TinyText):
    """Saves weights that are not the run's, but only when it is exported.

    Args:
        name: Folder of saved weights; `random` for random ones.
        shift: Added to the bias of the head that `load_exported` returns.
        nothing: Raise instead.
    """

    export_formats = ("hf",)

    def __init__(self, name: str = "random", shift: float = 0.5, nothing: bool = False) -> None:
        super().__init__(name)
        self.shift, self.nothing = shift, nothing

    def load_exported(self, folder, form):
        if self.nothing:
            raise ValueError("the layout is of another version")
        fresh = TinyText(str(folder))
        fresh.open(lambda name: name)
        model = fresh.build(self.task)
        with torch.no_grad():
            model.head.bias += self.shift
        return model

    def build(self, task):
        self.task = task
        return super().build(task)


class Branches(TinyText):
    """Decides in Python by the values of its inputs, which no trace can hold.

    Args:
        name: Folder of saved weights; `random` for random ones.
    """

    def __init__(self, name: str = "random") -> None:
        super().__init__(name)

    def forward(self, model, inputs):
        ids = inputs["ids"]
        return model(ids.flip(1)) if int(ids[0, 0]) > 2**40 else model(ids)


class Shaped(TinyText):
    """Behaves in another way when it is traced.

    Args:
        name: Folder of saved weights; `random` for random ones.
    """

    def __init__(self, name: str = "random") -> None:
        super().__init__(name)

    def forward(self, model, inputs):
        logits = super().forward(model, inputs)
        return logits + 0.25 if torch.compiler.is_exporting() else logits


@hookimpl
def sft_register(catalog):
    catalog.add("backbone", "tiny/image", "tiny_images:TinyImage", "A tiny network.")
    catalog.add("backbone", "tiny/forgetful", "tiny_images:Forgetful", "Exports other weights.")
    catalog.add("backbone", "tiny/branches", "tiny_images:Branches", "Cannot be traced.")
    catalog.add("backbone", "tiny/shaped", "tiny_images:Shaped", "Is another one when traced.")
    catalog.add("data", "tiny/texts", "sft_engine.testing.tiny:TinyTexts", "Random words.")
    catalog.add("backbone", "tiny/text", "sft_engine.testing.tiny:TinyText", "A tiny network.")
