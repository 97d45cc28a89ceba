from __future__ import annotations

import inspect
import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass

import click
import pluggy
import pytest

from sft_engine import hookspecs
from sft_engine.catalog import Planned, plan
from sft_engine.entries import Entry
from sft_engine.errors import RecipeError
from sft_engine.flow import Active
from sft_engine.hook_rules import HOOKS, MODULE_HOOKS, REVERSED_HOOKS, RUN_HOOKS
from sft_engine.hookspecs import hookimpl
from sft_engine.plugins import RunHooks, load_plugins, note_component
from sft_engine.recipe import parse_recipe
from sft_engine.testing import install_fake

GOOD = """
from sft_engine import hookimpl

@hookimpl
def sft_register(catalog):
    catalog.add("regularizer", "{name}", "acme_heavy.pull:Pull", "Pull.")
"""

PULL = """
import torch_that_is_not_installed

class Pull:
    def __init__(self, alpha: float = 0.1): ...
"""


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Install fake distributions; `site("sft-acme", source)` has the entry point and module `acme`."""

    def install(distribution, source, version="1.0", modules=None):
        name = distribution.removeprefix("sft-")
        sources = {f"acme_{name}": source, **(modules or {})}
        install_fake(
            tmp_path, distribution, sources, version=version, entry_points={name: f"acme_{name}"}
        )

    monkeypatch.syspath_prepend(tmp_path)
    yield install
    for name in [name for name in sys.modules if name.startswith("acme")]:
        del sys.modules[name]


def active(component, key="regularizer[0]", name="l2-sp", owner=("sft-acme", "2.1")):
    entry = Entry(key.partition("[")[0], name, "a:B", "", *owner)
    return Active(Planned(key, entry, {}), component)


# --- Finding and loading ---------------------------------------------------------------------------


def test_installed_plugins_are_loaded_in_the_order_of_their_names(site):
    site("sft-zeta", GOOD.format(name="z"), version="3.1")
    site("sft-alpha", GOOD.format(name="a"))
    plugins = load_plugins()
    ours = [p for p in plugins.loaded if p.name in ("alpha", "zeta")]
    assert [(p.name, p.distribution, p.version, p.hooks) for p in ours] == [
        ("alpha", "sft-alpha", "1.0", ("sft_register",)),
        ("zeta", "sft-zeta", "3.1", ("sft_register",)),
    ]
    assert plugins.loaded[0].name == "builtin"
    assert plugins.catalog.get("regularizer", "z").owner == "sft-zeta 3.1"


def test_two_loads_share_nothing(site):
    first, second = load_plugins(), load_plugins()
    first.catalog.add("probe", "only-here", "a:B", "")
    assert second.catalog.get("probe", "only-here") is None
    assert first.manager is not second.manager


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import nothing_such", "ModuleNotFoundError: No module named 'nothing_such'"),
        ("def f(:", "SyntaxError"),
        (
            "from sft_engine import hookimpl\n@hookimpl\ndef sft_register(catalog):\n    1 / 0\n",
            "ZeroDivisionError: division by zero",
        ),
    ],
)
def test_a_broken_plugin_is_named_and_the_others_work(site, source, cause):
    site("sft-bad", source, version="0.9")
    site("sft-good", GOOD.format(name="pull"))
    plugins = load_plugins()
    (broken,) = plugins.broken
    assert (broken.name, broken.distribution, broken.version) == ("bad", "sft-bad", "0.9")
    assert str(broken).startswith(f"sft-bad 0.9 cannot be loaded ({cause}")
    assert plugins.catalog.get("regularizer", "pull")
    assert "bad" not in [p.name for p in plugins.loaded]


def test_what_a_broken_plugin_added_before_it_broke_is_not_kept(site):
    site("sft-bad", GOOD.format(name="half") + "    raise ValueError\n")
    assert load_plugins().catalog.get("regularizer", "half") is None


@pytest.mark.parametrize(
    ("selection", "names"),
    [("", []), ("one", ["one"]), ("sft-two", ["two"]), (" one, two ,", ["one", "two"])],
)
def test_an_environment_variable_selects_plugins(site, monkeypatch, selection, names):
    site("sft-one", GOOD.format(name="one"))
    site("sft-two", GOOD.format(name="two"))
    monkeypatch.setenv("SFT_ENGINE_PLUGINS", selection)
    assert [p.name for p in load_plugins().loaded] == ["builtin", *names]


def test_a_selection_of_what_is_not_installed_is_an_error(site, monkeypatch):
    site("sft-regularizing", GOOD.format(name="one"))
    monkeypatch.setenv("SFT_ENGINE_PLUGINS", "regularising")
    with pytest.raises(RecipeError) as caught:
        load_plugins()
    assert str(caught.value) == (
        'SFT_ENGINE_PLUGINS: found "regularising", which is no installed plugin; '
        "did you mean `regularizing`?"
    )


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (
            "@hookimpl\ndef sft_registr(catalog): ...",
            "marks `sft_registr` with `@hookimpl`, which is no hook; did you mean `sft_register`?",
        ),
        (
            "@hookimpl\ndef zzz(): ...",
            (
                "marks `zzz` with `@hookimpl`, which is no hook; "
                "allowed: `sft_register`, `sft_check_recipe`, `sft_cli`, `sft_study_report`."
            ),
        ),
        (
            "def sft_register(catalog): ...",
            "has `sft_register` without the mark `@hookimpl`; add it.",
        ),
        (
            "@hookimpl\ndef sft_step_end(run): ...",
            "has `sft_step_end` as a function of its module, allowed: a method of a component.",
        ),
        (
            "@hookimpl(specname='sft_clii')\ndef verbs(group): ...",
            "marks `sft_clii` with `@hookimpl`, which is no hook; did you mean `sft_cli`?",
        ),
        (
            "@hookimpl\ndef sft_cli(grp): ...",
            "takes `grp` in `sft_cli`, which does not give it; did you mean `group`?",
        ),
        (
            "@hookimpl(wrapper=True)\ndef sft_cli(group): ...",
            (
                "implements a hook wrongly: Plugin 'bad' for hook 'sft_cli' hookimpl definition: "
                "sft_cli(group) Declared as wrapper=True or hookwrapper=True but function is not a "
                "generator function."
            ),
        ),
    ],
)
def test_a_wrong_hook_of_a_plugin_is_an_error_that_names_its_distribution(site, function, expected):
    site("sft-bad", f"from sft_engine import hookimpl\n{function}\n", version="0.9")
    with pytest.raises(RecipeError) as caught:
        load_plugins()
    assert str(caught.value) == f'the plugin "bad" of sft-bad 0.9 {expected}'


def test_an_import_of_another_plugins_hooks_is_no_mistake(site):
    site("sft-good", "from sft_engine import hookspecs\n" + GOOD.format(name="x"))
    assert load_plugins().catalog.get("regularizer", "x")


def test_plugins_add_verbs(site):
    source = """
        import click
        from sft_engine import hookimpl

        @hookimpl
        def sft_cli(group):
            group.add_command(click.Command("acme"))
    """
    site("sft-verb", textwrap.dedent(source))
    group = click.Group()
    load_plugins().add_commands(group)
    assert "acme" in group.commands


def test_the_typo_of_a_third_party_option_is_found_without_importing_it(site):
    site("sft-good", GOOD.format(name="pull"), modules={"acme_heavy.pull": PULL})
    recipe = parse_recipe("[[regularizer]]\nuse = 'pull'\nalhpa = 1\n", "r.toml")
    with pytest.raises(RecipeError) as caught:
        plan(recipe, load_plugins())
    assert (
        'r.toml:3: `regularizer[0].alhpa`: regularizer "pull" has no such option; '
        "did you mean `alpha`? Allowed: `alpha`."
    ) in str(caught.value).splitlines()
    assert "acme_heavy.pull" not in sys.modules


def test_loading_plugins_imports_nothing_heavy(site, tmp_path):
    """In a fresh process, with whatever is installed."""
    site("sft-good", GOOD.format(name="pull"), modules={"acme_heavy.pull": PULL})
    code = """
        import sys
        from sft_engine.plugins import load_plugins
        plugins = load_plugins()
        assert plugins.catalog.get("regularizer", "pull"), plugins.loaded
        heavy = {"torch", "numpy", "pydantic", "transformers", "datasets", "accelerate", "tomlkit"}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
    """
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# --- Hooks of a run --------------------------------------------------------------------------------


class Everything:
    """Implements every hook of a run and notes each call."""

    def __init__(self, name, calls):
        self.name = name
        self.calls = calls


def _listener(hook):
    if hook == "sft_micro_step":

        @hookimpl(wrapper=True)
        def wrap(self, run):
            self.calls.append(f"{self.name} before")
            answer = yield
            self.calls.append(f"{self.name} after")
            return answer

        return wrap

    @hookimpl
    def listen(self):
        self.calls.append(self.name)

    return listen


for _hook in RUN_HOOKS:
    setattr(Everything, _hook, _listener(_hook))


def call(hooks, name):
    arguments = inspect.signature(getattr(hookspecs, name)).parameters
    return getattr(hooks, name)(**dict.fromkeys(arguments))


def test_every_hook_of_a_run_is_an_attribute_and_has_an_order():
    assert set(RunHooks.__annotations__) == set(RUN_HOOKS)
    assert set(RUN_HOOKS) | set(MODULE_HOOKS) == set(HOOKS)
    closing = {n for n in RUN_HOOKS if n.endswith("_end")} | {"sft_teardown"}
    assert set(REVERSED_HOOKS) == closing


@pytest.mark.parametrize("name", [n for n in RUN_HOOKS if n != "sft_micro_step"])
def test_the_first_of_the_recipe_runs_first_and_closes_last(name):
    calls = []
    hooks = RunHooks([Everything("first", calls), Everything("second", calls)])
    call(hooks, name)
    expected = ["first", "second"]
    assert calls == (expected[::-1] if name in REVERSED_HOOKS else expected)


def test_the_first_of_the_recipe_wraps_the_others_and_the_core():
    calls = []
    components = [Everything("first", calls), Everything("second", calls)]
    hooks = RunHooks(components, core=lambda run, batch: calls.append(f"core {run} {batch}"))
    hooks.sft_micro_step(run="R", batch="B")
    assert calls == ["first before", "second before", "core R B", "second after", "first after"]


def test_without_a_wrapper_the_core_is_no_listener():
    assert RunHooks([object()], core=lambda run, batch: None).sft_micro_step is None


def test_tryfirst_and_trylast_hold():
    calls = []

    class Last:
        @hookimpl(trylast=True)
        def sft_setup(self, run):
            calls.append("last")

    class First:
        @hookimpl(tryfirst=True)
        def sft_setup(self, run):
            calls.append("first")

    RunHooks([Last(), Everything("middle", calls), First()]).sft_setup(run=None)
    assert calls == ["first", "middle", "last"]


def test_answers_come_as_a_list_in_order_without_none():
    class Answer:
        def __init__(self, value):
            self.value = value

        @hookimpl
        def sft_loss_terms(self, run):
            return self.value

    hooks = RunHooks([Answer([1]), Answer(None), Answer([2])])
    assert hooks.sft_loss_terms(run=None, batch=None, outputs=None) == [[1], [2]]


def test_a_hook_that_nobody_implements_is_none_and_costs_no_call(monkeypatch):
    """A loop that asks `is not None` first makes no call of pluggy: counted, not timed.

    Only a hook that is wrapped goes through pluggy at all.
    """

    class TwoHooks:
        @hookimpl
        def sft_step_end(self, run): ...

        @hookimpl(wrapper=True)
        def sft_micro_step(self, run, batch):
            return (yield)

    counted = []
    real = pluggy.HookCaller.__call__
    monkeypatch.setattr(
        pluggy.HookCaller,
        "__call__",
        lambda self, **kw: counted.append(self.name) or real(self, **kw),
    )
    hooks = RunHooks([TwoHooks()])
    assert [name for name in RUN_HOOKS if getattr(hooks, name) is not None] == [
        "sft_micro_step",
        "sft_step_end",
    ]
    for _ in range(10):
        for name in RUN_HOOKS:
            if getattr(hooks, name) is not None:
                call(hooks, name)
    assert counted == ["sft_micro_step"] * 10


def test_components_that_are_equal_are_still_two():
    calls = []

    @dataclass
    class Equal:
        alpha: float = 0.1

        @hookimpl
        def sft_setup(self, run):
            calls.append(id(self))

    first, second = Equal(), Equal()
    assert first == second
    RunHooks([first, second]).sft_setup(run=None)
    assert calls == [id(first), id(second)]


def test_properties_of_a_component_are_not_computed():
    class Lazy:
        @property
        def head(self):
            raise AssertionError("computed")

        @hookimpl
        def sft_setup(self, run): ...

    assert RunHooks([Lazy()]).sft_setup is not None


def test_two_runs_do_not_hear_each_other():
    calls = []
    one, two = (RunHooks([Everything(name, calls)]) for name in ("one", "two"))
    one.sft_setup(run=None)
    assert calls == ["one"]
    two.sft_setup(run=None)
    assert calls == ["one", "two"]


def _component(**methods):
    return type("Pull", (), methods)()


@pytest.mark.parametrize(
    ("component", "expected"),
    [
        (
            _component(sft_step_ende=hookimpl(lambda self, run: None)),
            "marks `sft_step_ende` with `@hookimpl`, which is no hook; did you mean `sft_step_end`?",
        ),
        (
            _component(sft_step_end=lambda self, run: None),
            "has `sft_step_end` without the mark `@hookimpl`; add it.",
        ),
        (
            _component(sft_register=hookimpl(lambda self, catalog: None)),
            "has `sft_register` as a method, allowed: a function of the plugin's module.",
        ),
        (
            _component(sft_micro_step=hookimpl(lambda self, run: None)),
            (
                "has `sft_micro_step` without `@hookimpl(wrapper=True)` and one `yield`; "
                "it wraps the inner step and cannot stand beside it."
            ),
        ),
        (
            _component(sft_setup=hookimpl(lambda self, model: None)),
            "takes `model` in `sft_setup`, which does not give it; allowed: `run`.",
        ),
    ],
)
def test_a_wrong_hook_of_a_component_is_an_error_that_names_it(component, expected):
    with pytest.raises(RecipeError) as caught:
        RunHooks([active(component)])
    assert str(caught.value) == f'regularizer[0] "l2-sp" of sft-acme 2.1 {expected}'


def test_teardown_reaches_every_component_and_returns_what_was_raised():
    calls = []

    class Bad:
        @hookimpl
        def sft_teardown(self, run, error):
            raise OSError("disk full")

    hooks = RunHooks([Everything("first", calls), active(Bad()), Everything("last", calls)])
    (raised,) = hooks.sft_teardown(run=None, error=None)
    assert calls == ["last", "first"]
    assert isinstance(raised, OSError)
    assert raised.__notes__ == ['in regularizer[0] "l2-sp" of sft-acme 2.1']


# --- Tracing ---------------------------------------------------------------------------------------


def listener(heard):
    """A monitor that keeps component, hook and seconds of each call."""
    return lambda key, hook, _: lambda _, seconds: heard.append((key, hook, seconds))


def test_a_monitor_hears_of_every_implementation(monkeypatch):
    seconds = iter(range(100))
    monkeypatch.setattr("sft_engine.dispatch.time.perf_counter", lambda: next(seconds))
    heard, calls = [], []
    first = active(Everything("a", calls), "probe[0]")
    second = active(Everything("b", calls), "probe[1]")
    hooks = RunHooks([first, second], monitor=listener(heard))
    hooks.sft_setup(run=None)
    hooks.sft_step_end(run=None)
    assert heard == [
        ("probe[0]", "sft_setup", 1),
        ("probe[1]", "sft_setup", 1),
        ("probe[1]", "sft_step_end", 1),
        ("probe[0]", "sft_step_end", 1),
    ]


def test_the_time_of_a_wrapper_leaves_out_what_it_wraps(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("sft_engine.dispatch.time.perf_counter", lambda: now[0])
    heard = []

    class Slow:
        @hookimpl(wrapper=True)
        def sft_micro_step(self, run):
            now[0] += 1
            yield
            now[0] += 2

    def core(run, batch):
        now[0] += 100

    hooks = RunHooks([active(Slow())], core=core, monitor=listener(heard))
    assert hooks.sft_micro_step(run=None, batch=None) == []
    assert heard == [("regularizer[0]", "sft_micro_step", 3)]


def test_a_traced_wrapper_still_sees_exceptions():
    seen = []

    class Watch:
        @hookimpl(wrapper=True)
        def sft_micro_step(self, run):
            try:
                yield
            except ValueError as error:
                seen.append(error)

    def core(run, batch):
        raise ValueError("inner")

    hooks = RunHooks([active(Watch())], core=core, monitor=listener([]))
    assert hooks.sft_micro_step(run=None, batch=None) == []
    assert [str(e) for e in seen] == ["inner"]


def test_a_monitor_gets_arguments_by_name_and_the_answer_of_a_generator():
    heard = []

    class Terms:
        @hookimpl
        def sft_loss_terms(self, batch, run):
            yield "one"
            yield "two"

    def monitor(key, hook, arguments):
        return lambda answer, _: heard.append((arguments, answer))

    hooks = RunHooks([active(Terms())], monitor=monitor)
    assert hooks.sft_loss_terms(run="r", batch="b", outputs="o") == [["one", "two"]]
    assert heard == [({"batch": "b", "run": "r"}, ["one", "two"])]


# --- Whose exception -------------------------------------------------------------------------------


class Raises:
    def __init__(self, inner=None):
        self.inner = inner

    @hookimpl
    def sft_setup(self, run):
        self.work()

    def work(self):
        if self.inner:
            self.inner.work()
        raise KeyError("lost")


def _caught(hooks):
    with pytest.raises(KeyError) as caught:
        hooks.sft_setup(run=None)
    return caught.value


def test_an_exception_is_noted_with_the_component_it_came_from():
    component = active(Raises())
    error = _caught(RunHooks([component]))
    note_component(error, [active(object(), "task"), component])
    assert error.__notes__ == ['in regularizer[0] "l2-sp" of sft-acme 2.1']


def test_the_innermost_component_is_the_one_that_is_noted():
    inner = active(Raises(), "task", "text", ("sft-engine", "0.1"))
    outer = active(Raises(inner.component))
    error = _caught(RunHooks([outer]))
    note_component(error, [outer, inner])
    assert error.__notes__ == ['in task "text" of sft-engine 0.1']


def test_an_exception_of_no_component_gets_no_note():
    error = _caught(RunHooks([Raises()]))
    note_component(error, [active(object())])
    assert not hasattr(error, "__notes__")
