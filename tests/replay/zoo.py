"""Small models of many families with random weights, probes for them, and passes that do not replay."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from sft_engine.modes import set_training_modes
from sft_engine.replay.check import kept_rows, values_of, verify
from sft_engine.replay.liveness import find_cut
from sft_engine.replay.stubs import installed, nothing
from sft_engine.replay.trace import Probe, pure

VOCABULARY = 50
PADDING = 1


# --- probes ---------------------------------------------------------------------------------------


def texts(model, lengths, *, left=False, positions=False, seed=0, padding=PADDING, read=None):
    """Random token ids, padded on one side, with a mask and perhaps explicit positions."""
    draw = torch.Generator().manual_seed(seed)
    width = max(lengths)
    ids = torch.randint(5, VOCABULARY, (len(lengths), width), generator=draw)
    places = torch.arange(width).expand(len(lengths), width)
    own = torch.tensor(lengths)[:, None]
    mask = places >= width - own if left else places < own
    inputs = {"input_ids": ids.masked_fill(~mask, padding), "attention_mask": mask.long()}
    if positions:
        inputs["position_ids"] = (mask.long().cumsum(1) - 1).clamp(min=0)
    return Probe(inputs, read or (lambda i: [model(**i).logits]), {(n, 1): mask for n in inputs})


def pictures(model, count, size, *, seed=0, name="image"):
    """Random pictures; every tensor that the model returns is read."""
    draw = torch.Generator().manual_seed(seed)
    inputs = {name: torch.randn(count, 3, size, size, generator=draw)}
    return Probe(inputs, lambda i: tensors_of(model(i[name])))


def tensors_of(outputs):
    """All tensors of a model's outputs."""
    if torch.is_tensor(outputs):
        return [outputs]
    values = outputs.values() if isinstance(outputs, dict) else outputs
    return [value for value in values if torch.is_tensor(value)]


# --- passes ---------------------------------------------------------------------------------------


def full_pass(model, probe, seed=3):
    """Outputs and gradients by name of an ordinary forward and backward pass."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    outputs = probe.run()
    sum(output.square().sum() for output in outputs if output.requires_grad).backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return [output.detach() for output in outputs], gradients


def replayed_pass(model, cut, probe, rows=None, seed=3):
    """The same from kept rows, in the model's own forward pass, without the inputs that nobody reads."""
    rows = kept_rows(cut, probe) if rows is None else rows
    values = values_of(cut, rows, probe.inputs, probe.valid)
    unread = {n: nothing(probe.inputs[n].shape, probe.inputs[n]) for n in cut.stand_ins}
    served = Probe({**probe.inputs, **unread}, probe.read)
    with installed(cut.stubs(probe.inputs, values)):
        return full_pass(model, served, seed)


def planned(model, first, second, alone=None):
    """The cut of a model, checked."""
    with pure(model):
        cut, one, other = find_cut(model, first, second)
        verify(model, cut, [(first, one), (second, other)], alone)
    return cut


def same_passes(one, other):
    """Whether outputs, the set of gradients and the gradients are equal bit for bit."""
    (outputs, gradients), (others, other_gradients) = one, other
    return (
        len(outputs) == len(others)
        and all(map(torch.equal, outputs, others))
        and gradients.keys() == other_gradients.keys()
        and all(torch.equal(g, other_gradients[n]) for n, g in gradients.items())
    )


def apart(one, other):
    """Largest difference as a share of the largest value."""
    return float((one - other).abs().max() / other.abs().max())


def freeze(model, *prefixes, but=()):
    """Freeze the parameters with these prefixes, and put the model into its training modes."""
    for name, parameter in model.named_parameters():
        frozen = name.startswith(prefixes) if prefixes else not name.startswith(tuple(but))
        parameter.requires_grad_(not frozen)
    set_training_modes(model)
    return model


# --- models ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A model, how to freeze it, and what feeds it.

    Args:
        build: Makes the model.
        cuts: Prefixes of what is frozen; one case each; `{"but": ...}` freezes all but.
        size: Width of pictures; 0 for texts.
        name: Of the picture input.
    """

    build: object
    cuts: tuple
    size: int = 0
    name: str = "image"
    padding: int = PADDING
    ends: bool = False


def _text(**more):
    return {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "vocab_size": VOCABULARY,
        "num_labels": 3,
        **more,
    }


def bert(attention="sdpa"):
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(BertConfig(**_text(attn_implementation=attention)))


def distilbert():
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    config = DistilBertConfig(dim=32, n_layers=3, n_heads=4, hidden_dim=64, vocab_size=VOCABULARY)
    return DistilBertForSequenceClassification(config)


def roberta():
    from transformers import RobertaConfig, RobertaForSequenceClassification

    return RobertaForSequenceClassification(RobertaConfig(**_text(pad_token_id=PADDING)))


def llama(**more):
    from transformers import LlamaConfig, LlamaForSequenceClassification

    return LlamaForSequenceClassification(LlamaConfig(**_text(pad_token_id=PADDING), **more))


def gpt2():
    from transformers import GPT2Config, GPT2ForSequenceClassification

    sizes = {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": VOCABULARY}
    ends = {"pad_token_id": PADDING, "bos_token_id": 2, "eos_token_id": 2}
    return GPT2ForSequenceClassification(GPT2Config(**sizes, **ends))


def t5():
    from transformers import T5Config, T5ForSequenceClassification

    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    ends = {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}
    return T5ForSequenceClassification(T5Config(vocab_size=VOCABULARY, **sizes, **ends))


def hf_vit():
    from transformers import ViTConfig, ViTForImageClassification

    sizes = _text(image_size=32, patch_size=8)
    del sizes["vocab_size"]
    return ViTForImageClassification(ViTConfig(**sizes))


def of_timm(name, **options):
    import timm

    return timm.create_model(name, num_classes=4, **options)


def of_torchvision(name, **options):
    from torchvision import models

    return getattr(models, name)(num_classes=4, **options)


def tv_vit():
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, 8, 3, 4, 32, 64, dropout=0.1, num_classes=4)


def lraspp():
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    return lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4)


class UNet(nn.Module):
    """Three levels with skips that leap over the frozen part, and writing in place."""

    def __init__(self):
        super().__init__()
        self.down1, self.down2, self.down3 = _block(3, 8), _block(8, 16), _block(16, 16)
        self.up2, self.up1 = _block(32, 8), _block(16, 8)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        first = self.down1(x)
        second = self.down2(functional.max_pool2d(first, 2))
        third = self.down3(functional.max_pool2d(second, 2))
        wide = functional.interpolate(third, scale_factor=2)
        up = self.up2(torch.cat([wide, second], 1))
        return self.out(self.up1(torch.cat([functional.interpolate(up, scale_factor=2), first], 1)))


def _block(inputs, outputs):
    layers = nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)
    return nn.Sequential(*layers, nn.ReLU(inplace=True))


def _layers(stem, count, path):
    return [stem, *[f"{path}{i}." for i in range(count)]]


def _head(*names):
    return {"but": names}


CASES = {
    "bert": Case(
        bert,
        (
            ("bert.embeddings",),
            tuple(_layers("bert.embeddings", 2, "bert.encoder.layer.")),
            ("bert.",),
        ),
    ),
    "bert-eager": Case(
        lambda: bert("eager"),
        (tuple(_layers("bert.embeddings", 1, "bert.encoder.layer.")), ("bert.",)),
    ),
    "distilbert": Case(
        distilbert,
        (
            tuple(_layers("distilbert.embeddings", 2, "distilbert.transformer.layer.")),
            ("distilbert.",),
        ),
    ),
    "roberta": Case(
        roberta,
        (tuple(_layers("roberta.embeddings", 2, "roberta.encoder.layer.")), ("roberta.",)),
    ),
    "llama": Case(llama, (tuple(_layers("model.embed", 2, "model.layers.")), ("model.",))),
    "llama-no-cache": Case(
        lambda: llama(use_cache=False), (tuple(_layers("model.embed", 1, "model.layers.")),)
    ),
    "gpt2": Case(gpt2, (("transformer.w", "transformer.h.0."), ("transformer.",))),
    "t5": Case(
        t5,
        (
            ("transformer.shared", "transformer.encoder"),
            ("transformer.shared", "transformer.encoder.block.0"),
            ("transformer.",),
        ),
        padding=0,
        ends=True,
    ),
    "hf-vit": Case(
        hf_vit, (("vit.embeddings", "vit.layers.0."), ("vit.",)), 32, name="pixel_values"
    ),
    "timm-resnet18": Case(
        lambda: of_timm("resnet18"),
        (("conv1", "bn1", "layer1"), ("conv1", "bn1", "layer1", "layer2", "layer3"), _head("fc")),
        32,
    ),
    "timm-vit": Case(
        lambda: of_timm("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=3, drop_rate=0.1),
        (_head("blocks.1", "blocks.2", "norm", "head"), _head("norm", "head"), _head("head")),
        32,
    ),
    "timm-efficientnet": Case(
        lambda: of_timm("efficientnet_lite0", drop_rate=0.2, drop_path_rate=0.1),
        (("conv_stem", "bn1", "blocks.0", "blocks.1"), _head("classifier")),
        32,
    ),
    "timm-convnext": Case(
        lambda: of_timm("convnext_atto", depths=(1, 1, 2, 1)),
        (("stem", "stages.0", "stages.1"), _head("head")),
        32,
    ),
    "timm-swin": Case(
        lambda: of_timm(
            "swin_tiny_patch4_window7_224",
            img_size=56,
            embed_dim=24,
            depths=(2, 2),
            num_heads=(2, 4),
        ),
        (("patch_embed", "layers.0"), _head("head")),
        56,
    ),
    "timm-densenet": Case(
        lambda: of_timm("densenet121", block_config=(2, 2, 2, 2)),
        (("features.conv0", "features.norm0", "features.denseblock1"), _head("classifier")),
        32,
    ),
    "tv-resnet50": Case(
        lambda: of_torchvision("resnet50"), (("conv1", "bn1", "layer1"), _head("fc")), 64
    ),
    "tv-vit": Case(
        tv_vit,
        (
            ("class_token", "conv_proj", "encoder.pos", "encoder.layers.encoder_layer_0"),
            ("encoder", "conv_proj", "class_token"),
        ),
        32,
    ),
    "tv-efficientnet": Case(
        lambda: of_torchvision("efficientnet_b0"),
        (("features.0", "features.1", "features.2"), _head("classifier")),
        32,
    ),
    "tv-lraspp": Case(
        lraspp,
        (tuple(f"backbone.{i}." for i in range(4)), ("backbone.",)),
        64,
    ),
    "tv-inception": Case(
        lambda: of_torchvision("inception_v3", init_weights=False), (_head("fc"),), 299
    ),
    "unet": Case(UNet, (("down1",), ("down",)), 16),
}
FAST = ("bert", "distilbert", "llama", "t5", "hf-vit", "timm-resnet18", "timm-vit", "unet")


def build(case, cut):
    """A model of the zoo, frozen."""
    torch.manual_seed(0)
    model = case.build()
    return freeze(model, **cut) if isinstance(cut, dict) else freeze(model, *cut)


def probe_of(case, model, lengths, seed=0):
    """A probe for a model of the zoo with as many examples as there are lengths."""
    if case.size:
        return _picture_probe(case, model, len(lengths), seed)
    probe = texts(model, lengths, seed=seed, padding=case.padding)
    if case.ends:  # the model reads the state at the end token
        for row, length in enumerate(lengths):
            probe.inputs["input_ids"][row, length - 1] = 2
    return probe


def _picture_probe(case, model, count, seed):
    if case.name == "image":
        return pictures(model, count, case.size, seed=seed)
    probe = pictures(model, count, case.size, seed=seed, name=case.name)
    return Probe(probe.inputs, lambda i: [model(**i).logits])
