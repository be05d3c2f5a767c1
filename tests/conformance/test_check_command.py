"""`polyprune plugins check`: what it finds, what it prints, how it exits."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from polyprune_core.cli import main
from polyprune_core.cli.check import _found, check
from polyprune_core.cli.plugins import plugins
from polyprune_core.errors import plain
from polyprune_core.plugins.registry import load_registry
from polyprune_core.testing.checks import checks_for

HEADER = """\
from dataclasses import dataclass
from polyprune_core import Provider, hookimpl
"""
SOUND = """\
@dataclass(frozen=True)
class Everything:
    def score(self, model, space, calibration):
        return space.sum_weights(lambda name: model.get_parameter(name).square())

@hookimpl
def polyprune_initializers():
    yield Provider("{name}", "squared weights", Everything)
"""
HOSTILE = """\
import sys
CODES = "\\x1b[2J\\x1b]0;title\\x07[bold]bold[/bold]\\x9b31m\\r\\u202e"
print("printed" + CODES)
print("printed" + CODES, file=sys.stderr)

@dataclass(frozen=True)
class Hostile:
    def score(self, model, space, calibration):
        print("printed" + CODES)
        raise RuntimeError("first line" + CODES + "\\nsecond line")

@hookimpl
def polyprune_initializers():
    yield Provider("hostile", "shows" + CODES, Hostile)
"""


@pytest.fixture(autouse=True)
def _no_trace(monkeypatch, tmp_path) -> Iterator[None]:
    monkeypatch.setitem(plugins.commands, "check", check)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command and returns its exit status, stdout and stderr."""

    def call(what: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["polyprune", "plugins", "check", str(what)])
        with pytest.raises(SystemExit) as exit_:
            main()
        return (exit_.value.code, *capsys.readouterr())

    return call


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HEADER + text, encoding="utf-8")
    return path


def test_a_plugin_by_name_is_checked_in_full(run) -> None:
    status, out, err = run("rloo")
    assert status == 0
    lines = out.splitlines()
    assert lines[0].startswith("estimator rloo (polyprune ")
    assert [line.split()[0] for line in lines[2:-1]] == [c.name for c in checks_for("estimator")]
    assert lines[-1] == f"{len(checks_for('estimator'))} passed, 0 failed, 0 not run, 0 excused"
    assert "checking rloo" in err


def test_a_failed_check_is_exit_status_1(run, tmp_path) -> None:
    status, out, _ = run(
        write(tmp_path / "checked_sign.py", SOUND.format(name="wrong-sign").replace(".square", ".neg"))
    )
    assert status == 1
    (line,) = [line for line in out.splitlines() if "failed" in line and "other channels score as low" in line]
    assert line.startswith("zero_channel_ranks_last")
    assert out.splitlines()[-1].endswith("1 failed, 0 not run, 0 excused")


def test_what_a_plugin_is_right_to_fail_is_excused_with_its_reason_and_exit_status_0(run) -> None:
    status, out, _ = run("random")
    assert status == 0
    (line,) = [line for line in out.splitlines() if line.startswith("zero_channel_ranks_last")]
    assert line.split()[1] == "excused"
    assert load_registry().get("initializer", "random").provider.xfail["zero_channel_ranks_last"] in line
    assert out.splitlines()[-1].endswith("0 failed, 0 not run, 2 excused")


def test_an_unknown_name_is_exit_status_2_with_a_suggestion(run) -> None:
    status, out, err = run("wandaa")
    assert (status, out) == (2, "")
    assert "no plugin, distribution or module named 'wandaa'. Did you mean 'wanda'?" in err


def test_nothing_of_a_plugins_text_reaches_the_terminal_as_markup_or_control_codes(run, tmp_path) -> None:
    status, out, err = run(write(tmp_path / "hostile_plugin.py", HOSTILE))
    assert status == 1
    assert "[bold]bold[/bold]" in out
    assert "first line" in out
    assert "printed" not in out + err
    assert all(character.isprintable() or character == "\n" for character in out + err)


def test_a_hostile_name_is_no_markup_either(run) -> None:
    status, _, err = run("[red]nobody[/red]\x1b[2J")
    assert status == 2
    assert "[red]nobody" in err
    assert "\x1b" not in err


def test_a_module_of_a_package_by_path(run, tmp_path) -> None:
    write(tmp_path / "pack_of_one" / "__init__.py", "")
    path = write(tmp_path / "pack_of_one" / "inner.py", SOUND.format(name="in-a-package"))
    status, out, _ = run(path)
    assert status == 0, out
    assert "initializer in-a-package" in out


def found(what: object) -> list[str]:
    with _found(str(what)) as registry:
        return [item.provider.name for item in registry.all()]


def test_a_project_folder_by_path_with_all_of_its_entry_points(tmp_path) -> None:
    entries = 'first = "checked_first"\nsecond = "checked_second:plugin"\n'
    (tmp_path / "pyproject.toml").write_text(f"[project]\nname='x'\n[project.entry-points.polyprune]\n{entries}")
    write(tmp_path / "src" / "checked_first.py", SOUND.format(name="first"))
    body = SOUND.format(name="second").replace("@hookimpl\ndef ", "class plugin:\n  @hookimpl\n  @staticmethod\n  def ")
    write(tmp_path / "src" / "checked_second.py", body.replace("    yield", "      yield"))
    before = list(sys.path)
    assert found(tmp_path) == ["first", "second"]
    assert sys.path == before


def test_a_package_by_path_a_module_by_name_and_a_distribution(tmp_path, monkeypatch) -> None:
    write(tmp_path / "checked_package" / "__init__.py", SOUND.format(name="whole-package"))
    assert found(tmp_path / "checked_package") == ["whole-package"]
    write(tmp_path / "checked_by_name.py", SOUND.format(name="by-name"))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert found("checked_by_name") == ["by-name"]
    assert {"wanda", "rloo", "head", "masks"} <= set(found("polyprune"))


def test_a_module_that_cannot_be_imported_is_a_failed_check(run, tmp_path) -> None:
    status, out, _ = run(write(tmp_path / "checked_broken.py", "import no_such_module\n"))
    assert status == 1
    assert "ModuleNotFoundError: No module named 'no_such_module'" in out


@pytest.mark.parametrize(
    ("files", "what", "message"),
    [
        ({}, "nowhere/plugin.py", "there is no file or folder"),
        ({"notes.txt": ""}, "notes.txt", "is no Python file"),
        ({"empty/notes.txt": ""}, "empty", "no pyproject.toml and no __init__.py"),
        ({"pyproject.toml": "[project]\nname='x'"}, "", "has no [project.entry-points.polyprune]"),
        ({"pyproject.toml": "[project"}, "", "cannot be read"),
        ({"pyproject.toml": "[project.entry-points.polyprune]\na='no module'"}, "", "is no name of a module"),
        ({"json.py": ""}, "json.py", "the name json belongs to"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, str) else "",
)
def test_a_path_without_a_plugin_is_refused(run, tmp_path, files, what, message) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    status, out, err = run(f"{tmp_path}/{what}")
    assert (status, out) == (2, "")
    assert message in err


def test_a_module_without_a_plugin_is_a_failed_check(run) -> None:
    status, out, _ = run("colorsys")
    assert status == 1
    assert "colorsys registers no plugin; it needs one of polyprune_granularities" in out


def test_plain_text_is_one_line_of_printable_characters() -> None:
    assert plain("a\tb\nc \x1b[31md\x00 é") == "a b c [31md é"


def test_a_module_that_ends_the_program_fails_to_load(run, tmp_path) -> None:
    (tmp_path / "checked_exit.py").write_text("raise SystemExit(0)")
    status, out, _ = run(f"{tmp_path}/checked_exit.py")
    assert status == 1
    assert "SystemExit: 0" in out
