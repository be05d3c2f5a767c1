"""Strangers' plugins, installed: faults in a real run, hostile text, and the switches for what is loaded."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commandline import Run, polyprune

TINY = ("--model", "tiny", "--limit", "2", "--eval-seq-len", "32", "--seq-len", "32", "--calibration-samples", "4")
COMPARE = ("compare", *TINY, "-q", "--format", "json")
POOLED = ("--scope", "kind", "--scale", "raw")
CODES = "\x1b[2J\x1b]0;title\x07[bold red]marked[/]\x9b31m\r\u202eright\u2066\n\tsecond line"
HEADER = """
from dataclasses import dataclass
import torch
from polyprune_core import Provider, UnitGroup, deprecated, hookimpl, initializer
"""


@pytest.fixture(autouse=True)
def _short(short_texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short texts where a command names none."""
    for command in ("COMPARE", "PRUNE"):
        monkeypatch.setenv(f"POLYPRUNE_{command}_CALIBRATION", str(short_texts / "learn.txt"))
        monkeypatch.setenv(f"POLYPRUNE_{command}_EVALUATION", str(short_texts / "test.txt"))


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Installs a distribution of one module: install(name, source, version="1.0", group="polyprune")."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    modules = []

    def add(name: str, source: str, version: str = "1.0", group: str = "polyprune") -> None:
        module = name.replace("-", "_")
        modules.append(module)
        (folder / f"{module}.py").write_text(source.replace("HEADER", HEADER), encoding="utf-8")
        info = folder / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
        (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}\n", encoding="utf-8")

    yield add
    for module in modules:
        sys.modules.pop(module, None)


def metric(name: str, body: str) -> str:
    """The source of an initializer whose score method has `body`, and after it returns the size of the weights."""
    return f'''HEADER
@dataclass(frozen=True)
class Metric:
    def score(self, model, space, calibration):
        {body}
        return space.sum_weights(lambda name: model.get_parameter(name).detach().float().abs() ** 2.0)

@hookimpl
def polyprune_initializers():
    yield Provider("{name}", "for a test", Metric)
'''


IN_A_RUN = {
    "nan": ("return torch.full((len(space),), float('nan'))", "scores that are not finite"),
    "wrong-shape": ("return torch.zeros(3)", "shape (3,)"),
    "wrong-dtype": ("return torch.zeros(len(space), dtype=torch.int32)", "int32"),
    "raises": ("raise KeyError('no such thing')", "KeyError"),
    "ends-the-program": ("raise SystemExit(0)", "SystemExit"),
    "leaks-a-hook": ("model.register_forward_hook(lambda m, x, y: None if m.training else (_ for _ in ()))", "hooks"),
    "trains": ("model.train()", "training mode"),
    "draws": ("torch.rand(1)", "global generator of torch"),
    "seeds": ("torch.manual_seed(1)", "global generator of torch"),
    "changes-weights": (
        "model.get_parameter('model.layers.0.mlp.up_proj.weight').data.mul_(-3)",
        "changed 1 weight of the model, the first is model.layers.0.mlp.up_proj.weight",
    ),
}


def results(run: Run) -> list[tuple[str, float]]:
    return [(row["kind"], row["perplexity"]) for row in run.rows if row["status"] == "ok"]


@pytest.fixture(scope="module")
def alone(short_texts: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, float]]:
    """What the other cells give where there is no fault."""
    texts = ("--calibration", short_texts / "learn.txt", "--evaluation", short_texts / "test.txt")
    store = tmp_path_factory.mktemp("alone") / "runs"
    return results(polyprune(*COMPARE, *texts, *POOLED, "--baselines", "random,magnitude", "-o", store))


def test_faults_in_a_run_are_blamed_and_the_other_cells_are_as_if_they_had_not_been(install, alone, tmp_path) -> None:
    for fault, (body, _) in IN_A_RUN.items():
        install(f"strangers-{fault}", metric(fault, body), version="0.7")
    run = polyprune(
        *COMPARE, *POOLED, "--baselines", ",".join([*IN_A_RUN, "random,magnitude"]), "-o", tmp_path / "mixed"
    )
    assert run.status == 1
    failed = {row["initializer"]: row["error"] for row in run.rows if row["status"] == "failed"}
    assert failed.keys() == IN_A_RUN.keys()
    for fault, (_, told) in IN_A_RUN.items():
        assert failed[fault].startswith(f"initializer '{fault}' of strangers-{fault} 0.7")
        assert told in failed[fault]
    assert len(alone) == 3
    assert results(run) == alone


def test_a_plugin_without_a_fault_gives_the_row_of_our_own_to_the_bit(install, tmp_path) -> None:
    install("strangers-metric", metric("sound", "pass"))
    run = polyprune(*COMPARE, "--baselines", "sound,magnitude", "-o", tmp_path / "runs")
    assert run.status == 0
    dense, sound, magnitude = (row["perplexity"] for row in run.rows)
    assert dense < sound == magnitude


GROUPS = {
    "no-list": ("3", "returned a int"),
    "no-cost": ("[UnitGroup('c', 0, 2, ())]", "own nothing"),
    "another-layer": ("[UnitGroup('c', 1, a.size, ((a.name, 1),)) for a in layout.of_kind('mlp')[:1]]", "layer 1"),
    "raises": ("1 // 0", "ZeroDivisionError"),
}


@pytest.mark.parametrize("fault", GROUPS)
def test_a_granularity_at_fault_is_one_line_and_exit_status_2(install, tmp_path, fault) -> None:
    groups, told = GROUPS[fault]
    install(
        "strangers-units",
        f"""HEADER
class Units:
    def groups(self, layout):
        return {groups}

@hookimpl
def polyprune_granularities():
    yield Provider("faulty", "for a test", Units)
""",
    )
    run = polyprune(*COMPARE, "--granularity", "faulty", "-o", tmp_path / "runs")
    assert (run.status, run.out) == (2, "")
    (line,) = run.err.splitlines()
    assert line.startswith("polyprune: granularity 'faulty' of strangers-units 1.0")
    assert told in line


HOSTILE = f"""HEADER
CODES = {CODES!r}

@dataclass(frozen=True)
class Hostile:
    option: str = CODES

    def score(self, model, space, calibration):
        raise RuntimeError("in a call " + CODES)

@hookimpl
def polyprune_initializers():
    yield Provider("hostile", "summary " + CODES, Hostile, reference="reference " + CODES)
    yield Provider("name " + CODES, "a name", Hostile)

@hookimpl
def polyprune_estimators():
    raise ValueError("in a hook " + CODES)

@hookimpl
def polyprune_exporters():
    def refuse():
        from polyprune_core.errors import ConfigError
        raise ConfigError("of its own " + CODES)
    yield Provider("hostile-exporter", "made", refuse)
"""


@pytest.fixture
def hostile(install) -> None:
    """A plugin whose every text holds markup, control codes and lines of its own."""
    codes = CODES.replace("\n", "").encode("unicode_escape").decode()
    install("hostile-plugin", f'"""Docstring {codes}"""\n' + HOSTILE, version="9")
    install("hostile-import", f"raise ImportError('at import ' + {CODES!r})")


PRINTED = {
    "plugins list": ("summary", "in a hook", "at import", r"'name \x1b[2J"),
    "plugins show hostile": ("Docstring", "reference", "option"),
    "plugins show at": ("no plugin named",),
    "plugins check hostile-plugin": ("in a call", "in a hook"),
    "compare --baselines hostile": ("in a call",),
    "compare --baselines hostile --format json": ("in a call",),
    "compare --baselines hostile --format markdown": (),
    "compare --baselines hostile --format csv": ("in a call",),
    "compare --baselines hostile-import": ("at import",),
    "prune --exporter hostile-exporter -o OUT": ("of its own",),
}


@pytest.mark.parametrize("command", PRINTED)
def test_nothing_of_a_plugins_text_is_markup_or_controls_a_terminal(hostile, tmp_path, monkeypatch, command) -> None:
    monkeypatch.chdir(tmp_path)
    words = command.replace("OUT", str(tmp_path / "out")).split()
    run = polyprune(*words, *(TINY if words[0] in ("compare", "prune") else ()))
    for told in PRINTED[command]:
        assert told in run.out + run.err
    assert all(c.isprintable() or c == "\n" for c in run.out.replace("\r\n", "\n") + run.err)
    assert "\nsecond line" not in run.out + run.err
    for text in (run.out, run.err):
        assert text.count("marked") == text.count("[bold red]marked[/]")


def test_other_plugins_go_on_beside_hostile_ones(hostile, tmp_path) -> None:
    run = polyprune(*COMPARE, "--baselines", "random", "-o", tmp_path / "runs")
    assert run.status == 0
    lines = polyprune("plugins", "list").err.splitlines()
    assert len([line for line in lines if "plugin not usable: hostile-plugin (hostile-plugin 9)" in line]) == 2
    assert len([line for line in lines if "plugin not usable: hostile-import (hostile-import 1.0)" in line]) == 1


def test_strict_mode_refuses_to_start_beside_a_broken_plugin(install, monkeypatch, tmp_path) -> None:
    install("broken-one", "import no_such_library")
    monkeypatch.setenv("POLYPRUNE_STRICT_PLUGINS", "1")
    for command in (("plugins", "list"), (*COMPARE, "-o", tmp_path / "runs")):
        run = polyprune(*command)
        assert (run.status, run.out) == (2, "")
        assert "broken-one (broken-one 1.0): ModuleNotFoundError: No module named 'no_such_library'" in run.err


def test_a_broken_plugin_is_out_of_the_way_where_no_external_ones_are_wanted(install, monkeypatch, tmp_path) -> None:
    install("broken-one", "import no_such_library")
    monkeypatch.setenv("POLYPRUNE_STRICT_PLUGINS", "1")
    run = polyprune("--no-external", "plugins", "list")
    assert run.status == 0
    assert "broken-one (broken-one 1.0): switched off" in run.err
    assert polyprune("--no-external", *COMPARE, "-o", tmp_path / "runs", "--baselines", "random").status == 0
    assert polyprune("plugins", "list").status == 2


def test_a_switched_off_plugin_is_listed_as_such_and_refused_by_name(install, monkeypatch, tmp_path) -> None:
    install("strangers-metric", metric("sound", "pass"))
    assert "sound" in polyprune("plugins", "list").out
    monkeypatch.setenv("POLYPRUNE_DISABLE", "sound")
    run = polyprune("plugins", "list")
    assert "sound" not in run.out
    assert run.err == "sound (strangers-metric 1.0): switched off by POLYPRUNE_DISABLE.\n"
    run = polyprune(*COMPARE, "--baselines", "sound", "-o", tmp_path / "runs")
    assert run.status == 2
    assert "switched off by POLYPRUNE_DISABLE" in run.err


def test_a_deprecation_is_shown_once_with_its_plugin_and_its_replacement(install, tmp_path) -> None:
    source = """HEADER
@deprecated(since="0.1", removed_in="0.3", use="weights")
def old_weights(space):
    return torch.arange(len(space)).float()
"""
    install("old-metric", source + metric("old", "return old_weights(space)"))
    run = polyprune(*COMPARE, "--baselines", "old", "--seeds", "0,1,2", "-o", tmp_path / "runs")
    assert run.status == 0
    assert run.err == (
        "polyprune: old_weights, used by initializer 'old' of old-metric 1.0, is deprecated since 0.1 and will be "
        "removed in 0.3; use weights instead.\n"
    )


def test_a_metric_of_ten_lines_stands_in_the_table(install, tmp_path) -> None:
    install(
        "ten-lines",
        """HEADER
@initializer("contribution", summary="mean contribution of a weight")
def contribution(weight, input_norm, power=2.0):
    return (weight.abs() * input_norm) ** power
""",
    )
    run = polyprune(*COMPARE, "--baselines", "contribution:power=1,contribution,random", "-o", tmp_path / "runs")
    assert run.status == 0, run.err
    rows = {row["initializer"]: row for row in run.rows}
    assert rows["contribution"]["forward_passes"] > 0 == rows["contribution"]["backward_passes"]
    assert rows["contribution"]["perplexity"] != rows["contribution:power=1"]["perplexity"]
    shown = polyprune("plugins", "show", "contribution").out.splitlines()
    assert shown[0] == "contribution (initializer, ten-lines 1.0)"
    assert {"needs calibration", "source ten_lines", "api 1", "option power: float = 2.0"} <= set(shown)
