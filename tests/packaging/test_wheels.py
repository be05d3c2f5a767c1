"""What is built is what a stranger installs: the wheels, alone with their declared dependencies, do the whole job."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, PathDistribution, distribution
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = ROOT / "plugins"
# Each distribution: its project, and the packages that its wheel holds.
PROJECTS = {
    "polyprune": (ROOT, (ROOT / "polyprune_core", PLUGINS / "polyprune_plugins")),
    "polyprune-example": (PLUGINS / "polyprune-example", (PLUGINS / "polyprune-example" / "polyprune_example",)),
    "polyprune-evolution": (
        PLUGINS / "polyprune-evolution",
        (PLUGINS / "polyprune-evolution" / "polyprune_evolution",),
    ),
}
VERSION = {
    name: tomllib.loads((project / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    for name, (project, _) in PROJECTS.items()
}
ADDED = {"ria": "polyprune-example", "evolution": "polyprune-evolution"}
NEEDED = {
    "polyprune": (
        "polyprune_core/py.typed",
        "polyprune_core/models/families.toml",
        "polyprune_core/models/catalogue.toml",
        "polyprune_core/models/tiny/model.safetensors",
        "polyprune_core/evaluation/prose.txt.gz",
        "polyprune_core/cli/templates/pyproject.toml.in",
        "polyprune_plugins/py.typed",
    ),
    "polyprune-example": ("polyprune_example/py.typed",),
    "polyprune-evolution": ("polyprune_evolution/py.typed",),
}


def run(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Runs a program as if from a fresh shell: without this process' settings of Python and polyprune."""
    inherited = {name: text for name, text in os.environ.items() if not name.startswith(("PYTHON", "POLYPRUNE"))}
    environment = inherited | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    words = [str(word) for word in command]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600, check=False, **options)


def succeeded(finished: subprocess.CompletedProcess[str]) -> str:
    """Returns what a program printed; it must have done what it was asked."""
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel of each distribution, built from its source distribution."""
    built = {}
    for name, (project, _) in PROJECTS.items():
        folder = tmp_path_factory.mktemp(name)
        succeeded(run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, project))
        (built[name],) = folder.glob("*.whl")
    return built


def contents(wheel: Path) -> set[str]:
    """Returns the files of a wheel without its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def metadata(wheel: Path) -> Distribution:
    (folder,) = (path for path in zipfile.Path(wheel).iterdir() if path.name.endswith(".dist-info"))
    return PathDistribution(folder)


@pytest.mark.parametrize("name", PROJECTS)
def test_a_wheel_holds_its_packages_whole_and_nothing_else(wheels, name) -> None:
    expected = {
        str(PurePosixPath(package.name, *path.relative_to(package).parts))
        for package in PROJECTS[name][1]
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert contents(wheels[name]) == expected
    assert expected >= set(NEEDED[name])


@pytest.mark.parametrize("name", PROJECTS)
def test_a_wheel_says_what_it_is(wheels, name) -> None:
    about = metadata(wheels[name])
    assert (about.name, about.version) == (name, VERSION[name])
    assert about.metadata["License-Expression"] == "Apache-2.0"
    assert f"# {name}" in about.metadata.get_payload()
    assert {point.group for point in about.entry_points} <= {"polyprune", "console_scripts"}


def needed_by(distributions: Iterable[Distribution]) -> dict[str, Distribution]:
    """Returns the installed distributions that these require, directly or not, by name; what is missing is left out."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(one, "") for one in distributions]
    while waiting:
        one, extra = waiting.pop()
        for requirement in map(Requirement, one.requires or ()):
            if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
                continue
            for wanted in ("", *requirement.extras):
                if (requirement.name, wanted) in seen or requirement.name.startswith("polyprune"):
                    continue
                seen.add((requirement.name, wanted))
                try:
                    found[requirement.name] = distribution(requirement.name)
                except PackageNotFoundError:
                    continue
                waiting.append((found[requirement.name], wanted))
    return found


@pytest.fixture(scope="module")
def programs(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a new environment that holds the three wheels, and links to what they declare that they need."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, symlinks=True)
    programs = home / "bin"
    packages = Path(
        succeeded(run(programs / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")).strip()
    )
    for one in needed_by(map(metadata, wheels.values())).values():
        for top in {file.parts[0] for file in one.files or ()} - {"..", "__pycache__"}:
            link = packages / top
            if not link.exists():
                link.symlink_to(Path(str(one.locate_file(top))))
    install = ("install", "--quiet", "--no-deps", "--no-index", *wheels.values())
    succeeded(run(sys.executable, "-m", "pip", "--python", programs / "python", *install))
    return programs


def test_what_they_declare_that_they_need_is_enough(programs) -> None:
    finished = run(sys.executable, "-m", "pip", "--python", programs / "python", "check")
    assert [line for line in finished.stdout.splitlines() if line.startswith("polyprune")] == []


def test_what_is_installed_is_the_wheel_and_not_this_checkout(programs) -> None:
    where = succeeded(run(programs / "python", "-I", "-c", "import polyprune_core; print(polyprune_core.__file__)"))
    assert Path(where).is_relative_to(programs.parent)


def test_installed_plugins_are_listed_with_their_distributions(programs) -> None:
    finished = run(programs / "polyprune", "plugins", "list")
    lines = succeeded(finished).splitlines()
    for name, source in (ADDED | {"wanda": "polyprune"}).items():
        (line,) = (line for line in lines if line.split()[:2] == ["initializer", name])
        assert line.rstrip().endswith(f"{source} {VERSION[source]}")
    assert finished.stderr == ""


@pytest.mark.slow
def test_an_installed_plugin_passes_the_kit(programs) -> None:
    said = succeeded(run(programs / "polyprune", "plugins", "check", "ria"))
    assert f"initializer ria (polyprune-example {VERSION['polyprune-example']})" in said
    assert ", 0 failed, 0 not run" in said


def test_they_stand_in_one_table_with_the_criteria_that_come_along(programs, tmp_path) -> None:
    small = ("--limit", 4, "--seq-len", 32, "--eval-seq-len", 32, "--calibration-samples", 4)
    metrics = ("wanda", "ria", "evolution:generations=2")
    asked = ("compare", "--model", "tiny", *small, "--baselines", ",".join(metrics), "--format", "json")
    rows = json.loads(succeeded(run(programs / "polyprune", *asked, cwd=tmp_path)))["rows"]
    assert [row["initializer"] for row in rows] == [None, *metrics]
    assert {row["status"] for row in rows} == {"ok"}
    assert [row["plugins"]["initializer"] for row in rows[1:]] == [
        f"{source} {VERSION[source]}" for source in ("polyprune", "polyprune-example", "polyprune-evolution")
    ]
    wanda, ria, evolution = (row["forward_tokens"] for row in rows[1:])
    assert wanda == ria < evolution
