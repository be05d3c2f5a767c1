"""`polyprune plugins new`: the package it writes works as generated, and nothing is written half or over another."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import yaml

from polyprune_core import cli
from polyprune_core.cli import main
from polyprune_core.cli.check import _found
from polyprune_core.cli.new import KINDS, LONGEST_NAME, new
from polyprune_core.cli.plugins import plugins
from polyprune_core.plugins import hookspecs
from polyprune_core.plugins.registry import KINDS as ALL_KINDS
from polyprune_core.testing.checks import checks_for


@pytest.fixture(autouse=True)
def _no_trace(monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(plugins.commands, "new", new)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command and returns its exit status, stdout and stderr."""

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["polyprune", "plugins", "new", *words])
        try:
            main()
            status = 0
        except SystemExit as exit_:
            status = exit_.code
        return (status, *capsys.readouterr())

    return call


class Outcomes(Counter):
    """Counts test outcomes; a pytest plugin."""

    __hash__ = object.__hash__  # pytest before 9.1 keeps its plugins in a set

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome == "skipped":
            self[report.outcome] += 1


def run_own_tests(folder: Path) -> Outcomes:
    """Runs a package's tests under its own configuration."""
    outcomes = Outcomes()
    settings = ["-c", str(folder / "pyproject.toml"), "--rootdir", str(folder), "-p", "no:cacheprovider", "-q"]
    pytest.main([*settings, str(folder)], plugins=[outcomes])
    return outcomes


PACKAGES = [*((kind, None) for kind in KINDS), ("initializer", "class")]


def named(kind: str, form: str | None) -> str:
    return f"made-up-{kind}" + (f"-{form}" if form else "")


def asked(kind: str, form: str | None) -> tuple[str, ...]:
    return (named(kind, form), "--kind", kind, *(("--form", form) if form else ()))


@pytest.mark.parametrize(("kind", "form"), PACKAGES)
def test_a_new_package_passes_the_kit_and_its_own_tests_as_generated(run, tmp_path, kind, form) -> None:
    name = named(kind, form)
    status, out, err = run(*asked(kind, form))
    assert (status, err) == (0, "")
    folder = tmp_path / f"polyprune-{name}"
    module = f"polyprune_{name.replace('-', '_')}"
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == sorted(
        [
            ".github/workflows/test.yml",
            ".gitignore",
            "README.md",
            "pyproject.toml",
            f"{module}/__init__.py",
            f"{module}/py.typed",
            f"tests/test_{module}.py",
        ]
    )
    assert f"polyprune plugins check {name}" in out
    with _found(str(folder)) as registry:
        assert [(item.kind, item.provider.name) for item in registry.all()] == [(kind, name)]
    assert run_own_tests(folder) == {"passed": len(checks_for(kind))}


@pytest.fixture
def packages(run, tmp_path) -> list[Path]:
    """One new package of every kind and form."""
    for kind, form in PACKAGES:
        assert run(*asked(kind, form))[0] == 0
    return sorted(tmp_path.iterdir())


def verdict(folder: Path, *command: str) -> str:
    """Returns what a tool found fault with in a package, under the package's own settings."""
    done = subprocess.run([sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr if done.returncode else ""


def test_ruff_finds_no_fault_with_a_new_package(packages, run, tmp_path) -> None:
    pytest.importorskip("ruff")
    for kind in KINDS:
        assert run(f"a-name-as-long-as-a-name-can-be-of-{kind}"[:LONGEST_NAME].strip("-"), "--kind", kind)[0] == 0
    for folder in sorted(tmp_path.iterdir()):
        assert verdict(folder, "ruff", "check", ".") == ""
        assert verdict(folder, "ruff", "format", "--check", ".") == ""


@pytest.mark.slow
def test_mypy_finds_no_fault_with_a_new_package(packages) -> None:
    pytest.importorskip("mypy")
    for folder in packages:
        assert verdict(folder, "mypy", "--cache-dir", "../mypy-cache") == ""


def test_an_initializer_is_a_plain_function_of_ten_lines(packages) -> None:
    package = next(f for f in packages if f.name == "polyprune-made-up-initializer")
    source = package / "polyprune_made_up_initializer" / "__init__.py"
    lines = source.read_text().partition("from __future__")[2].splitlines()
    assert "@initializer(" in source.read_text()
    assert sum(bool(line.strip()) for line in lines) <= 10


def test_the_class_form_is_a_dataclass_behind_a_hook(packages) -> None:
    package = next(f for f in packages if f.name == "polyprune-made-up-initializer-class")
    source = (package / "polyprune_made_up_initializer_class" / "__init__.py").read_text()
    assert "@dataclass(frozen=True)\nclass MadeUpInitializerClassInitializer:" in source
    assert "def polyprune_initializers()" in source


def test_only_an_initializer_can_be_a_function(run, tmp_path) -> None:
    status, out, err = run("mine", "--kind", "policy", "--form", "function")
    assert (status, out) == (2, "")
    assert "only initializer plugins can be functions; leave --form out for policy" in err
    assert list(tmp_path.iterdir()) == []


def test_new_packages_and_the_examples_of_hooks_import_public_names_only(packages) -> None:
    modules = [path.read_text() for folder in packages for path in folder.rglob("*.py")]
    examples = [inspect.getdoc(getattr(hookspecs, hook)) or "" for hook in ALL_KINDS.values()]
    found = {name for text in [*modules, *examples] for name in re.findall(r"(?:from|import) (polyprune_\w+\S*)", text)}
    ours = {name for name in found if not name.startswith("polyprune_made_up")}
    assert ours == {"polyprune_core", "polyprune_core.testing", "polyprune_core.testing.tiny"}
    assert sorted(KINDS) == sorted(ALL_KINDS)


@pytest.mark.parametrize("name", ["polyprune-made-up-policy", "polyprune-made-up-initializer-class"])
def test_a_new_package_builds_where_other_output_lies(packages, name) -> None:
    folder = next(folder for folder in packages if folder.name == name)
    for other in ("pruned", "masks", "store"):
        (folder / other).mkdir()
        (folder / other / "model.py").write_text("")
    assert verdict(folder, "hatchling", "build", "-t", "wheel", "-d", "../wheels") == ""
    (wheel,) = (folder.parent / "wheels").glob("*.whl")
    module = name.replace("-", "_")
    assert {entry.split("/")[0] for entry in ZipFile(wheel).namelist()} == {module, f"{module}-0.1.0.dist-info"}


def test_an_expected_failure_that_passes_fails_the_authors_tests(run, tmp_path) -> None:
    run("passing", "--kind", "granularity")
    folder = tmp_path / "polyprune-passing"
    test = folder / "tests" / "test_polyprune_passing.py"
    xfail = '{"passing/every_unit_costs_something": "it does not"}'
    test.write_text(test.read_text().replace("(polyprune_passing)", f"(polyprune_passing, {xfail})"))
    assert run_own_tests(folder) == {"passed": len(checks_for("granularity")) - 1, "failed": 1}


def test_a_fault_in_the_plugin_fails_the_authors_tests(run, tmp_path) -> None:
    run("at-fault", "--kind", "estimator")
    module = tmp_path / "polyprune-at-fault" / "polyprune_at_fault" / "__init__.py"
    module.write_text(module.read_text().replace("/ len(losses), None", "/ (len(losses) - 1), None"))
    outcomes = run_own_tests(module.parents[1])
    assert outcomes == {"passed": len(checks_for("estimator")) - 2, "failed": 1, "skipped": 1}


def test_the_package_names_what_it_needs(run, tmp_path) -> None:
    run("two-words", "--kind", "initializer", "--output", "deep/elsewhere")
    folder = tmp_path / "deep" / "elsewhere"
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["name"] == "polyprune-two-words"
    assert project["entry-points"]["polyprune"] == {"two-words": "polyprune_two_words"}
    assert project["dependencies"] == ["polyprune>=0.1,<0.2"]
    steps = yaml.safe_load((folder / ".github/workflows/test.yml").read_text())["jobs"]["test"]["steps"]
    assert steps[1]["with"]["python-version"] == "${{ matrix.python }}"
    commands = [step.get("run") for step in steps]
    assert "polyprune plugins check two-words" in commands
    source = next(step for step in steps if "POLYPRUNE" in step.get("env", {}))
    assert source["env"]["POLYPRUNE"] == "${{ vars.POLYPRUNE }}"
    assert source["run"].startswith('pip install "${POLYPRUNE:?')
    assert commands.index(source["run"]) < commands.index("pip install -e '.[dev]'")
    test = (folder / "tests" / "test_polyprune_two_words.py").read_text()
    assert len(test.splitlines()) == 5
    assert (folder.stat().st_mode & 0o777) == 0o755


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Upper", "lower-case words joined by dashes"),
        ("under_score", "lower-case words joined by dashes"),
        ("../escape", "lower-case words joined by dashes"),
        ("a--b", "lower-case words joined by dashes"),
        ("x" * 41, "at most 40 characters"),
        ("polyprune-mine", "write 'mine'"),
        ("core", "package of polyprune's own"),
        ("plugins", "package of polyprune's own"),
        ("wanda", "has initializer 'wanda' already"),
    ],
)
def test_a_name_that_cannot_be_used_is_refused(run, tmp_path, name, message) -> None:
    status, out, err = run(name, "--kind", "initializer")
    assert (status, out) == (2, "")
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_a_name_of_another_kind_or_that_starts_with_a_digit_can_be_used(run, tmp_path) -> None:
    assert run("wanda", "--kind", "granularity")[0] == 0
    assert run("2-bit", "--kind", "estimator")[0] == 0
    assert "class N2BitEstimator:" in (tmp_path / "polyprune-2-bit" / "polyprune_2_bit" / "__init__.py").read_text()


def test_a_missing_or_unknown_kind_is_refused(run, tmp_path) -> None:
    assert run("mine")[0] == 2
    assert run("mine", "--kind", "metric")[0] == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("there", ["folder", "file", "link to nothing"])
def test_what_exists_is_left_alone(run, tmp_path, there) -> None:
    target = tmp_path / "polyprune-mine"
    if there == "folder":
        target.mkdir()
    elif there == "file":
        target.write_text("mine")
    else:
        target.symlink_to("nothing")
    status, _, err = run("mine", "--kind", "exporter")
    assert status == 2
    assert "exists; give another --output" in err
    assert [path.name for path in tmp_path.iterdir()] == ["polyprune-mine"]


def test_a_package_that_cannot_be_finished_leaves_nothing_behind(run, tmp_path, monkeypatch) -> None:
    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", no_room)
    status, _, err = run("mine", "--kind", "exporter")
    assert status == 2
    assert "No space left on device" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", ["check.py", "new.py"])
def test_the_commands_load_no_torch_until_they_need_it(module) -> None:
    lines = (Path(cli.__file__).parent / module).read_text("utf-8").splitlines()
    top = [line for line in lines if line.startswith(("import ", "from "))]
    assert len(top) > 5
    assert not any("torch" in line or "testing" in line for line in top)
