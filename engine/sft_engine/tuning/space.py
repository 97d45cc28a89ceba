"""What to search: `--set optimizer.lr='log(1e-6, 1e-3)'` names a key and the values to try."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sft_engine.errors import RecipeError
from sft_engine.sentences import choices, suggest

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_CALL = re.compile(r"([a-z_]+)\((.*)\)", re.DOTALL)
_OPENING, _CLOSING = "([{", ")]}"


@dataclass(frozen=True)
class Domain:
    """The values that a key may take.

    Args:
        text: As the user wrote it.
        low: Smallest number.
        high: Largest number.
        step: Between numbers; 0 for any.
        log: Whether factors count instead of differences.
        whole: Whether only whole numbers are meant.
        values: Texts to choose from instead of a number, each as `--set` takes it.
    """

    text: str
    low: float = 0.0
    high: float = 0.0
    step: float = 0.0
    log: bool = False
    whole: bool = False
    values: tuple[str, ...] = ()

    @property
    def samples(self) -> tuple[str, ...]:
        """The ends of a range, or all values: what is checked before the first trial."""
        return self.values or (self.write(self.low), self.write(self.high))

    def write(self, value: Any) -> str:
        """Return a value as `--set` takes it."""
        if self.values:
            return str(value)
        return str(int(value)) if self.whole else repr(float(value))

    def distribution(self) -> BaseDistribution:
        """Return the domain as Optuna has it."""
        from optuna import distributions

        if self.values:
            return distributions.CategoricalDistribution(self.values)
        if self.whole:
            step = int(self.step) or 1
            return distributions.IntDistribution(int(self.low), int(self.high), self.log, step)
        return distributions.FloatDistribution(self.low, self.high, self.log, self.step or None)


def read_space(overrides: Sequence[str]) -> tuple[dict[str, Domain], list[str]]:
    """Separate the keys to search from plain overrides.

    Returns:
        Domains by key, and the overrides that hold for every trial.

    Raises:
        RecipeError: a domain is not written as it should be, or there is none.
    """
    space: dict[str, Domain] = {}
    fixed: list[str] = []
    for override in overrides:
        key, _, value = override.partition("=")
        domain = _domain(override, value.strip())
        if domain is None:
            fixed.append(override)
        elif key.strip() in space:
            raise RecipeError(f"--set {override}: `{key.strip()}` is searched twice; keep one")
        else:
            space[key.strip()] = domain
    if not space:
        raise RecipeError(
            f"there is nothing to search: give a key values, such as `--set optimizer.lr='log(1e-6, 1e-3)'`; "
            f"{choices(_DOMAINS)}"
        )
    return space, fixed


def _domain(override: str, value: str) -> Domain | None:
    match = _CALL.fullmatch(value)
    if match is None:
        return None
    name, inside = match.groups()
    if name not in _DOMAINS:
        if hint := suggest(name, _DOMAINS):  # else it is some text, such as a pattern
            raise RecipeError(f"--set {override}: there is no `{name}(...)`; {hint}")
        return None
    try:
        return _DOMAINS[name](value, split_values(inside))
    except ValueError as error:
        raise RecipeError(f"--set {override}: {error}; {_USAGE[name]}") from None


def split_values(text: str) -> list[str]:
    """Split at the commas that are in no bracket and no quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        depth += (letter in _OPENING) - (letter in _CLOSING) if not quote else 0
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def _range(text: str, parts: list[str], *, log: bool, whole: bool) -> Domain:
    most = 2 if log else 3
    if not 2 <= len(parts) <= most:  # noqa: PLR2004
        raise ValueError(f"found {len(parts)} values")
    low, high, *step = (_number(part, whole=whole) for part in parts)
    if not low < high:
        raise ValueError(f"{parts[0]} is not below {parts[1]}")
    if log and low <= 0:
        raise ValueError(f"{parts[0]} is not above 0, and has no logarithm")
    if step and not 0 < step[0] <= high - low:
        raise ValueError(f"{parts[2]} is no step from {parts[0]} to {parts[1]}")
    return Domain(text, low, high, step[0] if step else 0.0, log, whole)


def _number(text: str, *, whole: bool) -> float:
    try:
        number = tomllib.loads(f"n = {text}")["n"]
    except tomllib.TOMLDecodeError:
        number = None
    allowed = (int,) if whole else (int, float)
    if type(number) not in allowed or number - number != 0:
        raise ValueError(f"{text} is no {'whole ' if whole else ''}number")
    return float(number)


def _one_of(text: str, parts: list[str]) -> Domain:
    if len(set(parts)) < len(parts) or len(parts) < 2:  # noqa: PLR2004
        raise ValueError(f"found {', '.join(parts) or 'nothing'}")
    return Domain(text, values=tuple(parts))


_DOMAINS: dict[str, Callable[[str, list[str]], Domain]] = {
    "log": lambda text, parts: _range(text, parts, log=True, whole=False),
    "uniform": lambda text, parts: _range(text, parts, log=False, whole=False),
    "int": lambda text, parts: _range(text, parts, log=False, whole=True),
    "log_int": lambda text, parts: _range(text, parts, log=True, whole=True),
    "one_of": _one_of,
}
_USAGE = {
    "log": "write `log(LOW, HIGH)`, both above 0",
    "uniform": "write `uniform(LOW, HIGH)` or `uniform(LOW, HIGH, STEP)`",
    "int": "write `int(LOW, HIGH)` or `int(LOW, HIGH, STEP)`",
    "log_int": "write `log_int(LOW, HIGH)`, both above 0",
    "one_of": "write `one_of(A, B, ...)` with two or more different values",
}
