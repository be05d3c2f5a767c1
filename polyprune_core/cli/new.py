"""`polyprune plugins new`: a package with one small working plugin, its test and its CI."""

from __future__ import annotations

import os
import shutil
import tempfile
from importlib.resources import files
from pathlib import Path
from string import Template

import rich_click as click

from polyprune_core.cli.params import UserPath
from polyprune_core.errors import ConfigError
from polyprune_core.version import __version__

FILES = {
    "pyproject.toml": "pyproject.toml.in",
    "README.md": "README.md.in",
    ".gitignore": "gitignore.in",
    ".github/workflows/test.yml": "test.yml.in",
    "tests/test_${module}.py": "test_plugin.py.in",
    "${module}/__init__.py": "${template}.py.in",
    "${module}/py.typed": "py.typed.in",
}
KINDS = {
    "granularity": "Granularity",
    "initializer": "Initializer",
    "policy": "Policy",
    "estimator": "Estimator",
    "repair": "Repair",
    "exporter": "Exporter",
}
FAMILY = "family"  # data, not a plugin: no code of the package runs
OF_FAMILIES = {
    **FILES,
    "pyproject.toml": "family_pyproject.toml.in",
    "README.md": "family_README.md.in",
    "tests/test_${module}.py": "family_test.py.in",
    "${module}/__init__.py": "family.py.in",
    "${module}/families.toml": "families.toml.in",
}
FORMS = ("function", "class")
FUNCTIONS = ("initializer",)  # the kinds that a plain function can be
EXAMPLES = {
    "granularity": "compare --granularity ${name} --model tiny",
    "initializer": "compare --baselines random,magnitude,wanda,${name} --model tiny",
    "policy": "compare --policy ${name} --estimators rloo --model tiny",
    "estimator": "compare --estimators ${name} --model tiny",
    "repair": "compare --repair none,${name} --model tiny",
    "exporter": "prune --exporter ${name} --model tiny --output pruned",
}
LONGEST_NAME = 40


@click.command()
@click.argument("name")
@click.option(
    "--kind",
    type=click.Choice([*KINDS, FAMILY]),
    required=True,
    help="What the plugin decides. family is data about models that can be cut.",
)
@click.option(
    "--form",
    type=click.Choice(FORMS),
    help="Form of an initializer: a function of one weight, or a class that sees the model. [function]",
)
@click.option("--output", "-o", type=UserPath(), help="New folder. [./polyprune-NAME]")
def new(name: str, kind: str, form: str | None, output: Path | None) -> None:
    """Write a package polyprune-NAME with a plugin NAME that works, to be changed into yours."""
    check_name(name, kind)
    folder = write_package(name, kind, output or Path(f"polyprune-{name}"), form)
    where = "families.toml" if kind == FAMILY else "__init__.py"
    click.echo(
        f"{folder}: a plugin that works; put your {kind} into polyprune_{name.replace('-', '_')}/{where}.\n\n"
        f"    cd {folder}\n    pip install -e '.[dev]'\n    pytest\n    polyprune plugins check {name}"
    )


def check_name(name: str, kind: str) -> None:
    """Raises ConfigError unless a plugin of that kind can be called so."""
    from polyprune_core.plugins.registry import NAME, load_registry

    if not NAME.fullmatch(name) or len(name) > LONGEST_NAME:
        raise ConfigError(
            f"{name!r} cannot be a plugin's name; use lower-case words joined by dashes, such as my-{kind}, of at most "
            f"{LONGEST_NAME} characters."
        )
    if name.startswith("polyprune-"):
        raise ConfigError(f"the package is called polyprune-NAME by itself; write {name.removeprefix('polyprune-')!r}.")
    if name in ("core", "plugins"):
        raise ConfigError(f"polyprune_{name} is a package of polyprune's own; choose another name.")
    if kind == FAMILY:
        _require_free(name)
        return
    for item in load_registry().all(kind):
        if item.provider.name == name:
            raise ConfigError(
                f"{item.source} has {kind} {name!r} already; with two, neither works. Choose another name."
            )


def _require_free(name: str) -> None:
    from polyprune_core.models.families import family_files

    for file in family_files():
        if name in (file.name, *(family.name for family in file.families)):
            raise ConfigError(f"{file.source} has family {name!r} already; choose another name.")


def write_package(name: str, kind: str, folder: Path, form: str | None = None) -> Path:
    """Writes the package to `folder`, which appears whole or not at all, and returns it.

    Raises:
        ConfigError: the folder exists, or cannot be written, or a plugin of that kind has no such form.
    """
    if form == "function" and kind not in FUNCTIONS:
        raise ConfigError(f"only {' and '.join(FUNCTIONS)} plugins can be functions; leave --form out for {kind}.")
    if folder.exists() or folder.is_symlink():
        raise ConfigError(f"{folder} exists; give another --output.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except OSError as error:
        raise ConfigError(f"cannot write beside {folder}: {error.strerror}. Give another --output.") from error
    try:
        values = _values(name, kind) | {"template": _template(kind, form)}
        for target, template in (OF_FAMILIES if kind == FAMILY else FILES).items():
            path = building / Template(target).substitute(values)
            path.parent.mkdir(parents=True, exist_ok=True)
            source = files("polyprune_core.cli").joinpath("templates", Template(template).substitute(values))
            path.write_text(Template(source.read_text("utf-8")).substitute(values), encoding="utf-8")
        building.chmod(0o755)
        os.rename(building, folder)
    except OSError as error:
        raise ConfigError(f"cannot write {folder}: {error.strerror}. Give another --output.") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder


def _template(kind: str, form: str | None) -> str:
    return f"{kind}_class" if form == "class" and kind in FUNCTIONS else kind


def _values(name: str, kind: str) -> dict[str, str]:
    major, minor = (int(part) for part in __version__.split(".")[:2])
    words = "".join(word.capitalize() for word in name.split("-"))
    return {
        "name": name,
        "kind": kind,
        "module": f"polyprune_{name.replace('-', '_')}",
        "title": name.replace("-", " ").capitalize(),
        "class_name": f"{'N' if words[0].isdigit() else ''}{words}{KINDS.get(kind, '')}",
        "example": Template(EXAMPLES.get(kind, "")).substitute(name=name),
        "versions": f">={major}.{minor},<{major}.{minor + 1}",
    }
