"""Code of plugins may raise, hang, yield without end and set what is everybody's: it is told by name, and undone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from forks import posix

from polyprune_core import Provider, hookimpl
from polyprune_core.cli.streams import stoppable
from polyprune_core.errors import PluginError
from polyprune_core.plugins import registry as registries
from polyprune_core.plugins.registry import Registered, Registry, Source, load_registry


def guarded(act: Callable[..., Any]) -> Any:
    plugin = SimpleNamespace(sample=act, gradient=act)
    provider: Provider[Any] = Provider("toy", "a toy", lambda: plugin)
    return Registry([Registered("estimator", provider, Source("an-author", "1.0"))], []).build("estimator", "toy")


def raising(error: BaseException) -> Callable[..., Any]:
    def act(*_: Any) -> Any:
        raise error

    return act


class Strange(BaseException):
    pass


@pytest.mark.parametrize("error", [Strange("x"), GeneratorExit("x"), KeyboardInterrupt("x"), SystemExit("x")])
def test_whatever_a_plugin_raises_is_its_own_fault_where_the_user_did_not_interrupt(error) -> None:
    with stoppable(), pytest.raises(PluginError, match=rf"'toy' of an-author 1\.0 raised {type(error).__name__}: x"):
        guarded(raising(error)).sample()


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_of_the_users_gets_through(number) -> None:
    with stoppable(), pytest.raises(KeyboardInterrupt):
        guarded(lambda: os.kill(os.getpid(), number)).sample()


def swallow(number: int) -> None:
    with contextlib.suppress(BaseException):
        os.kill(os.getpid(), number)
        time.sleep(1)


def disguise(number: int) -> None:
    try:
        os.kill(os.getpid(), number)
        time.sleep(1)
    except KeyboardInterrupt:
        raise ValueError("what?") from None


@posix
@pytest.mark.parametrize("act", [swallow, disguise])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_that_a_plugin_catches_gets_through_all_the_same(act, number) -> None:
    with stoppable(), pytest.raises(KeyboardInterrupt):
        guarded(lambda: act(number)).sample()


def test_where_nobody_watches_for_signals_a_keyboard_interrupt_is_the_users() -> None:
    with pytest.raises(KeyboardInterrupt):
        guarded(raising(KeyboardInterrupt())).sample()


def test_ctrl_c_is_as_before_once_a_command_has_ended() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stoppable():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "torch's default dtype": (lambda: torch.set_default_dtype(torch.float64), torch.get_default_dtype),
    "torch's default device": (lambda: torch.set_default_device("meta"), lambda: torch.empty(0).device),
    "torch's number of threads": (lambda: torch.set_num_threads(3), torch.get_num_threads),
    "torch's deterministic algorithms": (
        lambda: torch.use_deterministic_algorithms(True),
        torch.are_deterministic_algorithms_enabled,
    ),
    "the precision of torch's products": (
        lambda: torch.set_float32_matmul_precision("medium"),
        torch.get_float32_matmul_precision,
    ),
    "torch's gradient mode": (lambda: torch.set_grad_enabled(False), torch.is_grad_enabled),
    "the working directory": (lambda: os.chdir("/"), os.getcwd),
}


@pytest.mark.parametrize("what", SETTINGS)
def test_a_setting_of_the_process_that_a_plugin_changes_is_put_back_and_told(what) -> None:
    change, read = SETTINGS[what]
    before = read()
    with pytest.raises(PluginError, match=f"'toy' of an-author 1.0 changed {what}"):
        guarded(lambda: change()).sample()
    assert read() == before


def test_a_setting_is_put_back_where_the_plugin_raises_besides() -> None:
    def act() -> None:
        torch.set_default_dtype(torch.float64)
        raise ZeroDivisionError

    with pytest.raises(PluginError, match="ZeroDivisionError"):
        guarded(act).sample()
    assert torch.get_default_dtype() == torch.float32


def point(monkeypatch: pytest.MonkeyPatch, plugin: Any) -> EntryPoint:
    """An entry point that leads to `plugin`, called where it is a function."""
    monkeypatch.setattr(EntryPoint, "load", lambda self: plugin() if callable(plugin) else plugin)
    return EntryPoint("toys", "toys", "polyprune")


class Yielding:
    def __init__(self, *names: str, then: Callable[[], Iterator[Any]] = lambda: iter(())) -> None:
        self.names, self.then = names, then

    @hookimpl
    def polyprune_initializers(self) -> Iterator[Any]:
        yield from (Provider(name, "a toy", lambda: None) for name in self.names)
        yield from self.then()


def without_end() -> Iterator[Any]:
    while True:
        yield Provider("endless", "a toy", lambda: None)


def test_providers_without_end_are_a_problem_that_is_told(monkeypatch) -> None:
    (problem,) = load_registry([point(monkeypatch, Yielding(then=without_end))]).problems
    assert "polyprune_initializers: it yields more than 1,000" in str(problem)


def test_units_without_end_are_the_granularitys_fault() -> None:
    def groups(layout: Any) -> Iterator[Any]:
        while True:
            yield layout

    provider: Provider[Any] = Provider("toy", "a toy", lambda: SimpleNamespace(groups=groups))
    found = Registry([Registered("granularity", provider, Source("an-author", "1.0"))], [])
    with pytest.raises(PluginError, match=r"granularity 'toy' of an-author 1\.0 yields more than 100,000"):
        found.build("granularity", "toy").groups(None)


@pytest.mark.parametrize("error", [Strange("x"), KeyboardInterrupt("x"), GeneratorExit("x")])
def test_an_import_that_raises_what_is_no_exception_is_a_problem_like_any_other(monkeypatch, error) -> None:
    with stoppable():
        (problem,) = load_registry([point(monkeypatch, raising(error))]).problems
    assert f"{type(error).__name__}: x" in str(problem)


def test_an_import_that_changes_a_setting_is_a_problem_and_undone(monkeypatch) -> None:
    (problem,) = load_registry([point(monkeypatch, lambda: torch.set_default_dtype(torch.float64))]).problems
    assert "its import changed torch's default dtype" in str(problem)
    assert torch.get_default_dtype() == torch.float32


def test_an_import_that_takes_long_is_told_of_by_name(monkeypatch, capsys) -> None:
    monkeypatch.setattr(registries, "SLOW_SECONDS", 0.05)

    def load() -> Yielding:
        time.sleep(0.3)
        return Yielding("slow")

    load_registry([point(monkeypatch, load)])
    assert (
        "polyprune: plugin toys of unknown distribution has been importing for 0.05 seconds" in capsys.readouterr().err
    )
    monkeypatch.setattr(registries, "SLOW_SECONDS", 60.0)
    load_registry([point(monkeypatch, load)])
    assert capsys.readouterr().err == ""


def test_a_name_of_polyprunes_own_stays_its_own() -> None:
    provider: Provider[Any] = Provider("wanda", "a toy", lambda: None)
    ours, theirs = Source("polyprune", "0.1"), Source("an-author", "1.0")
    items = [Registered("initializer", provider, theirs), Registered("initializer", provider, ours)]
    found, problems = registries._without_clashes(items)
    assert [item.source for item in found] == [ours]
    assert [str(problem) for problem in problems] == [
        "wanda (an-author 1.0): initializer 'wanda' is a name of polyprune's own; this one needs another."
    ]


LOUD = """
import os, subprocess, sys
import polyprune_core.plugins.registry as registry

load = registry.load_registry

def loud(*given):
    sys.__stdout__.write("one\\n")
    sys.__stdout__.flush()
    os.write(1, b"two\\n")
    subprocess.run(["echo", "three"])
    return load(*given)

registry.load_registry = loud
from polyprune_core.cli import main
main()
"""


def test_what_is_written_to_the_processs_own_stdout_is_no_result(tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text(textwrap.dedent(LOUD))
    found = subprocess.run(
        (sys.executable, str(tmp_path / "loud.py"), "plugins", "list"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert "thinet" in found.stdout
    assert not {"one", "two", "three"} & set(found.stdout.splitlines())
    assert found.stderr.splitlines() == ["one", "two", "three"]
