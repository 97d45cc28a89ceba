"""Every method of the shelf as lines of TOML, at its defaults unless a line says otherwise."""

from __future__ import annotations

from dataclasses import dataclass

TEXT, IMAGES = "text", "images"
BOTH = (TEXT, IMAGES)


@dataclass(frozen=True)
class Method:
    """A method as the recipe names it.

    Args:
        tables: TOML that is added to the recipe of the task.
        sets: What else it takes, as for `--set`.
        tasks: Where it applies.
    """

    tables: str = ""
    sets: tuple[str, ...] = ()
    tasks: tuple[str, ...] = BOTH

    @property
    def options(self) -> str:
        """What differs from the defaults, for the table."""
        lines = [line for line in self.tables.splitlines() if line and not line.startswith("[[")]
        lines = [x for x in lines if not x.startswith(("use =", "["))]
        return ", ".join(line.replace(" = ", "=") for line in (*lines, *self.sets))


def table(kind: str, use: str, *lines: str) -> str:
    """Return the TOML of a component."""
    single = kind == "freezing"
    return "\n".join([f"[{kind}]" if single else f"[[{kind}]]", f'use = "{use}"', *lines]) + "\n"


def freezing(use: str, *lines: str, sets: tuple[str, ...] = ()) -> Method:
    """Return a freezing schedule or a rate."""
    return Method(table("freezing", use, *lines), sets)


def rates(use: str, *lines: str, tasks: tuple[str, ...] = BOTH) -> Method:
    """Return an extension."""
    return Method(table("extension", use, *lines), tasks=tasks)


def regularizer(use: str, *lines: str, tasks: tuple[str, ...] = BOTH) -> Method:
    """Return a regularizer."""
    return Method(table("regularizer", use, *lines), tasks=tasks)


def augmentation(use: str, *lines: str, tasks: tuple[str, ...]) -> Method:
    """Return an augmentation."""
    return Method(table("augmentation", use, *lines), tasks=tasks)


NO_DECAY = 'weight_decay = "off"'
HEAD_RATE = ("optimizer.lr=1e-2",)
"""What trains beside a frozen backbone wants a larger learning rate."""
ADAPTER_RATE = ("optimizer.lr=2e-3",)

_T, _I = (TEXT,), (IMAGES,)

METHODS: dict[str, Method] = {
    "plain": Method(),
    # which weights train, and how fast
    "frozen": freezing("frozen", sets=HEAD_RATE),
    "gradual-unfreezing": freezing("gradual-unfreezing", "until = 0.5"),
    "lp-ft": freezing("lp-ft"),
    "chain-thaw": freezing("chain-thaw"),
    "surgical": freezing("surgical"),
    "surgical last": freezing("surgical", 'train = "last"'),
    "progressive-freezing": freezing("progressive-freezing"),
    "layer-decay": rates("layer-decay"),
    "layer-decay 0.75": rates("layer-decay", "decay = 0.75"),
    "discriminative": rates("discriminative"),
    "auto-rgn": rates("auto-rgn"),
    "lora": freezing("lora", sets=ADAPTER_RATE),
    "ia3": freezing("ia3", sets=HEAD_RATE),
    "adalora": Method(table("freezing", "adalora"), ADAPTER_RATE, (TEXT,)),
    "bn-freeze": rates("bn-freeze", tasks=_I),
    # penalties
    "l1": regularizer("l1"),
    "l2": regularizer("l2"),
    "elastic-net": regularizer("elastic-net"),
    "orthogonal": regularizer("orthogonal"),
    "l2-sp": regularizer("l2-sp", NO_DECAY),
    "l2-sp 1.0": regularizer("l2-sp", "alpha = 1.0", NO_DECAY),
    "l2-sp decoupled": regularizer("l2-sp", "alpha = 1.0", 'form = "decoupled"', NO_DECAY),
    "l2-sp-fisher": regularizer("l2-sp-fisher", NO_DECAY),
    "ewc": regularizer("ewc"),
    "delta": regularizer("delta"),
    "bss": regularizer("bss"),
    "lwf": regularizer("lwf"),
    # noise and consistency
    "dropout": regularizer("dropout", "p = 0.3"),
    "drop-path": regularizer("drop-path", tasks=_I),
    "mixout": regularizer("mixout", tasks=_T),
    "r-drop": regularizer("r-drop"),
    "r3f": regularizer("r3f", tasks=_T),
    "r4f": regularizer("r4f", tasks=_T),
    "smart": regularizer("smart", tasks=_T),
    "freelb": regularizer("freelb", tasks=_T),
    "fgm": regularizer("fgm", tasks=_T),
    "neftune": regularizer("neftune", tasks=_T),
    "noisy-tune": regularizer("noisy-tune"),
    "re-init": regularizer("re-init"),
    "child-tuning": regularizer("child-tuning"),
    "child-tuning F": regularizer("child-tuning", 'mode = "F"'),
    # targets
    "label-smoothing": regularizer("label-smoothing"),
    "confidence-penalty": regularizer("confidence-penalty"),
    "distillation": regularizer("distillation"),
    # the step
    "gradient-noise": regularizer("gradient-noise"),
    "spike-guard": regularizer("spike-guard"),
    "sam": regularizer("sam"),
    "asam": regularizer("asam"),
    # averages
    "ema": regularizer("ema"),
    "swa": regularizer("swa"),
    "lawa": regularizer("lawa", "every_steps = 10"),
    "wise-ft": regularizer("wise-ft"),
    # augmentations
    "casing": augmentation("casing", tasks=_T),
    "character-noise": augmentation("character-noise", tasks=_T),
    "keyboard-typos": augmentation("keyboard-typos", tasks=_T),
    "word-dropout": augmentation("word-dropout", tasks=_T),
    "eda": augmentation("eda", tasks=_T),
    "cutoff": augmentation("cutoff", tasks=_T),
    "image-transforms": augmentation("image-transforms", "flip = 0.0", tasks=_I),
    "colour": augmentation("colour", tasks=_I),
    "rand-augment": augmentation("rand-augment", tasks=_I),
    "trivial-augment": augmentation("trivial-augment", tasks=_I),
    "augmix": augmentation("augmix", tasks=_I),
    "random-erasing": augmentation("random-erasing", tasks=_I),
    "mixup": augmentation("mixup", tasks=_I),
    "cutmix": augmentation("cutmix", tasks=_I),
    # classes of unequal size: here they are equal, so these have nothing to mend
    "focal": rates("focal"),
    "logit-adjustment": rates("logit-adjustment"),
    "balanced-sampler": rates("balanced-sampler"),
}
