"""Where a model of timm comes from: its registry, the hub, or a local folder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
from timm.models import get_pretrained_cfg, load_model_config_from_hf
from timm.models._hub import load_model_config_from_path

from sft_engine import RecipeError
from sft_engine.sentences import suggest

CONFIG = "config.json"
FINE_TUNED = "fine_tuned"
"""Key in a folder's config.json that says that we wrote it."""

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*(@[\w.-]+)?")


@dataclass(frozen=True)
class Source:
    """A model, found and not loaded yet.

    Args:
        model: What `timm.create_model` is given.
        architecture: Its name in timm's registry.
        cfg: timm's `pretrained_cfg`: input size, mean, std, crop, name of the classifier.
        fine_tuned: Whether it is a folder that `Timm.save` has written.
    """

    model: str
    architecture: str
    cfg: Mapping[str, Any] = field(default_factory=dict)
    fine_tuned: bool = False


def find(name: str, location: str) -> Source:
    """Find a model.

    Args:
        name: As the recipe says it, for messages.
        location: A local folder, `hf-hub:OWNER/NAME` or OWNER/NAME, or a name of timm, with or without
            a tag of weights.

    Raises:
        RecipeError: there is no such model, or its configuration cannot be read.
    """
    path = Path(location.removeprefix("local-dir:")).expanduser()
    if path.is_dir():
        return _folder(name, path)
    if location.startswith(("local-dir:", ".", "/", "~")):
        raise complain(name, "is no folder: check the path, or give the name of a model of timm")
    if location.startswith("hf-hub:") or _HUB_ID.fullmatch(location):
        return _hub(name, f"hf-hub:{location.removeprefix('hf-hub:')}")
    return _registered(name, location)


def complain(name: str, what: str) -> RecipeError:
    """Return the error that says what is wrong with a model."""
    return RecipeError(f'[backbone] name = "{name}" {what.rstrip(".")}.')


def _folder(name: str, path: Path) -> Source:
    config = path / CONFIG
    try:
        fine_tuned = bool(json.loads(config.read_text(encoding="utf-8")).get(FINE_TUNED))
        cfg, architecture, _ = load_model_config_from_path(path)
    except FileNotFoundError as error:
        raise complain(
            name,
            f"has no {CONFIG}: give a folder that timm's save_for_hf has written, such as RUN/model, or "
            'the name of a model of timm and `weights = "FILE"`',
        ) from error
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise complain(
            name,
            f"has a {CONFIG} that timm cannot read ({_line(error)}); write it with save_for_hf",
        ) from error
    if not timm.is_model(architecture):
        raise complain(name, f'holds a "{architecture}", which this version of timm does not know')
    return Source(f"local-dir:{path}", architecture, cfg, fine_tuned)


def _hub(name: str, model: str) -> Source:
    try:
        cfg, architecture, _ = load_model_config_from_hf(model.removeprefix("hf-hub:"))
    except Exception as error:
        raise complain(
            name,
            f"is neither a local folder nor could it be had from the hub ({_line(error)}); check the id "
            "and the connection, or give a local folder",
        ) from error
    return Source(model, architecture, cfg)


def _registered(name: str, location: str) -> Source:
    architecture, _, tag = location.partition(".")
    if not timm.is_model(architecture):
        hint = suggest(architecture, timm.list_models()) or "see timm.list_models()"
        raise complain(name, f"is not a model of timm: {hint}")
    tagged = [each.partition(".")[2] for each in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tagged:
        have = ", ".join(sorted(tagged)) or "none"
        raise complain(name, f'asks for the weights "{tag}", and {architecture} has: {have}')
    cfg = get_pretrained_cfg(location)
    return Source(location, architecture, _plain(cfg))


def _plain(cfg: Any) -> dict[str, Any]:
    return {} if cfg is None else cfg.to_dict()


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].strip().rstrip(".:")[:200]
