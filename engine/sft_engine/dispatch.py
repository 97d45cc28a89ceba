"""The hooks of the components that one run uses, and nothing that is merely installed."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from functools import wraps
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from sft_engine.errors import RecipeError
from sft_engine.flow import Active
from sft_engine.hook_rules import (
    REVERSED_HOOKS,
    RUN_HOOKS,
    hooks_of,
    is_wrapper,
    new_manager,
    register,
)

if TYPE_CHECKING:
    import pluggy

    from sft_engine.flow import Batch, Run

Caller = Callable[..., list[Any]]
Monitor = Callable[[str, str, Mapping[str, Any]], Callable[[Any, float], None]]
"""Called before each implementation with component key, hook and arguments by name; what it returns is
called afterwards with the answer and the seconds taken."""


class RunHooks:
    """The hooks of a run's active components.

    Each hook of `hookspecs` is an attribute: None if no component implements it, so that the loop makes no
    call at all; else it takes the hook's arguments by keyword and returns the list of answers that are not
    None. First in the recipe runs first and wraps the others; hooks in `REVERSED_HOOKS` the other
    way round. `tryfirst` and `trylast` of pluggy hold inside that order.

    `sft_teardown` calls every component even if one raises, and returns the exceptions.

    Args:
        components: `Active` components in the order of the recipe (or bare objects, in tests).
        core: The inner step that `sft_micro_step` wraps; called only if some component wraps it.
        monitor: Called around each implementation, for `plugins trace`.

    Raises:
        RecipeError: a component misspells a hook or takes an argument that the hook has not.
    """

    sft_build_data: Caller | None
    sft_build_model: Caller | None
    sft_param_groups: Caller | None
    sft_setup: Caller | None
    sft_train_start: Caller | None
    sft_train_end: Caller | None
    sft_phase_start: Caller | None
    sft_phase_end: Caller | None
    sft_epoch_start: Caller | None
    sft_epoch_end: Caller | None
    sft_step_start: Caller | None
    sft_batch: Caller | None
    sft_micro_step: Caller | None
    sft_loss_terms: Caller | None
    sft_gradients: Caller | None
    sft_step_verdict: Caller | None
    sft_step_end: Caller | None
    sft_eval_views: Caller | None
    sft_eval_batch: Caller | None
    sft_metrics: Caller | None
    sft_log: Caller | None
    sft_report: Caller | None
    sft_save_model: Caller | None
    sft_teardown: Caller | None

    def __init__(
        self,
        components: Sequence[object],
        core: Callable[[Run, Batch], None] | None = None,
        monitor: Monitor | None = None,
    ) -> None:
        implementations = [_implementations(each, monitor) for each in components]
        # pluggy runs the last registered first, so recipe order means registering from the end.
        forward = _register_all(reversed(implementations))
        backward = _register_all(implementations)
        for name in RUN_HOOKS:
            caller = getattr((backward if name in REVERSED_HOOKS else forward).hook, name)
            setattr(self, name, _short_way(caller))
        if core is not None and self.sft_micro_step is not None:
            self.sft_micro_step = _around_core(forward.hook.sft_micro_step, core)


def _short_way(hook: pluggy.HookCaller) -> Caller | None:
    """Return what calls a hook: nothing for nobody, pluggy for wrappers, else a loop of our own.

    pluggy sorts out arguments in every call, for five microseconds, which seven hooks a step would make
    a tenth of a small step. Who listens, in which order and to what, is known before the first call.
    """
    found = hook.get_hookimpls()
    if not found:
        return None
    if any(each.wrapper or each.hookwrapper for each in found):
        return hook
    if len(found) == 1:
        return _only(found[0].function, found[0].argnames)
    calls = [(each.function, _picker(each.argnames)) for each in reversed(found)]

    def call(**arguments: Any) -> list[Any]:
        answers = [function(*pick(arguments)) for function, pick in calls]
        return [answer for answer in answers if answer is not None]

    return call


def _only(function: Callable[..., Any], names: Sequence[str]) -> Caller:
    pick = _picker(names)

    def call(**arguments: Any) -> list[Any]:
        answer = function(*pick(arguments))
        return [] if answer is None else [answer]

    return call


def _picker(names: Sequence[str]) -> Callable[[Mapping[str, Any]], Sequence[Any]]:
    """Return what picks the arguments with these names; several of them faster than a loop does."""
    if len(names) > 1:
        return itemgetter(*names)
    return lambda arguments: [arguments[name] for name in names]


def _around_core(hook: pluggy.HookCaller, core: Callable[[Run, Batch], None]) -> Caller:
    """Return what runs the loop's inner step inside of all wrappers, the first outermost."""
    inner = core
    for each in hook.get_hookimpls():
        inner = _wrapped(each.function, each.argnames, inner)

    def call(run: Run, batch: Batch) -> list[Any]:
        inner(run, batch)
        return []

    return call


def _wrapped(
    function: Callable[..., Any],
    names: Sequence[str],
    inner: Callable[[Run, Batch], None],
) -> Callable[[Run, Batch], None]:
    """Return a call of `inner` between the two halves of a wrapper.

    As `contextlib.contextmanager` would run it, at half its price.
    """
    pick = _picker(names)

    def call(run: Run, batch: Batch) -> None:
        halves = function(*pick({"run": run, "batch": batch}))
        if next(halves, _NO_YIELD) is _NO_YIELD:
            raise RuntimeError(f"`{function.__qualname__}` does not yield")
        try:
            inner(run, batch)
        except BaseException as error:
            try:
                halves.throw(error)
            except StopIteration:
                return
            raise
        for _ in halves:
            raise RuntimeError(f"`{function.__qualname__}` yields more than once")

    return call


_NO_YIELD = object()


class _Implementations:
    """What pluggy sees of a component: its hooks, and equal to nothing but itself.

    pluggy compares plugins with `==`, by which two dataclass components with equal options would be one,
    and reads every attribute, by which properties would be computed.
    """

    def __init__(self, hooks: Mapping[str, Callable[..., Any]]) -> None:
        self.__dict__.update(hooks)


def _register_all(labelled: Iterable[tuple[str, object]]) -> pluggy.PluginManager:
    manager = new_manager()
    for position, (label, plugin) in enumerate(labelled):
        register(manager, plugin, str(position), label)
    return manager


def _implementations(each: object, monitor: Monitor | None) -> tuple[str, object]:
    """Return how messages call a component, and its hooks."""
    component, key, label = _identity(each)
    hooks = hooks_of(component, RUN_HOOKS, label)
    step = hooks.get("sft_micro_step")
    if step is not None and not is_wrapper(step):
        raise RecipeError(
            f"{label} has `sft_micro_step` without `@hookimpl(wrapper=True)` and one `yield`; "
            "it wraps the inner step and cannot stand beside it."
        )
    if "sft_teardown" in hooks:
        hooks["sft_teardown"] = _guarded(hooks["sft_teardown"], label)
    if monitor is not None:
        hooks = {name: _watched(call, key, name, monitor) for name, call in hooks.items()}
    return label, _Implementations(hooks)


def _identity(each: object) -> tuple[object, str, str]:
    if isinstance(each, Active):
        return each.component, each.key, str(each.planned)
    name = type(each).__name__
    return each, name, name


def _guarded(function: Callable[..., Any], label: str) -> Callable[..., Any]:
    """Turn an exception into an answer, so that the other components are still torn down."""

    @wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Exception | None:
        try:
            function(*args, **kwargs)
        except Exception as error:  # noqa: BLE001  the driver reports it
            error.add_note(f"in {label}")
            return error
        return None

    return guarded


def _watched(function: Callable[..., Any], key: str, name: str, monitor: Monitor) -> Any:
    """Tell the monitor of each call; of a wrapper, the time without what it wraps."""
    names = tuple(inspect.signature(function).parameters)
    if is_wrapper(function):
        return _watched_wrapper(function, key, name, monitor, names)

    @wraps(function)
    def watched(*args: Any) -> Any:
        done = monitor(key, name, dict(zip(names, args, strict=True)))
        answer = None
        start = time.perf_counter()
        try:
            answer = function(*args)
            if isinstance(answer, Iterator):  # a generator has done nothing yet
                answer = list(answer)
            return answer
        finally:
            done(answer, time.perf_counter() - start)

    return watched


def _watched_wrapper(
    function: Callable[..., Any], key: str, name: str, monitor: Monitor, names: Sequence[str]
) -> Any:
    @wraps(function)
    def watched(*args: Any) -> Generator[None, Any, Any]:
        done = monitor(key, name, dict(zip(names, args, strict=True)))
        inside = 0.0
        start = time.perf_counter()

        def pause() -> Generator[None, Any, Any]:
            nonlocal inside
            left = time.perf_counter()
            try:
                return (yield)
            finally:
                inside += time.perf_counter() - left

        generator = function(*args)
        try:
            next(generator)
            try:
                answer = yield from pause()
            except BaseException as error:  # noqa: BLE001  the component decides what becomes of it
                generator.throw(error)
            else:
                generator.send(answer)
        except StopIteration as finished:
            return finished.value
        finally:
            done(None, time.perf_counter() - start - inside)
        raise RuntimeError(f"{key}: `{name}` yields more than once")

    return watched


def note_component(error: BaseException, active: Sequence[Any]) -> None:
    """Add a note to an exception that says in which active component it was raised.

    Args:
        error: As caught; the innermost frame that belongs to a component decides.
        active: The run's `Active` components.
    """
    owners = {id(each.component): each for each in active}
    frames = []
    trace = error.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    for frame in reversed(frames):
        owner = owners.get(id(frame.f_locals.get("self")))
        if owner is not None:
            error.add_note(f"in {owner.planned}")
            return
