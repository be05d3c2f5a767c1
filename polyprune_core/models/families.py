"""Model families as data: polyprune's own, those that installed packages bring, and files that the user names.

A package brings families with an entry point in the group `polyprune.families` whose value `module:name` stands for the
file name.toml in that module. It is read, and no code of the package runs. What the file may say is told at the top
of `families.toml` beside this module.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, lru_cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from polyprune_core.errors import ModelError, unknown_name

GROUP = "polyprune.families"
VARIABLE = "POLYPRUNE_FAMILIES"
OWN = "polyprune"
LISTS = ("norm", "rows", "scales", "buffers", "attributes", "capped", "whole")
NAMES = (
    "of",
    "module",
    "within",
    "has",
    "lacks",
    "adds",
    "reader",
    "router",
    "experts",
    "stack",
    "scaled",
    "counted_on",
)
# What an axis may say, with the type of it.
AXIS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(NAMES, (str,)),
    **dict.fromkeys(LISTS, (list,)),
    "entry_width": (str, int),
    "at_least": (str, int),
    "chosen": (str, int),
    "multiple": (int,),
    "blocks": (str,),
    "whole_where": (dict,),
    "outputs": (int,),
    "returns": (int,),
    "cache": (int,),
    "config": (dict,),
}
NEEDED = ("module", "rows", "counted_on")
FAMILY: dict[str, tuple[type, ...]] = {
    "model_types": (list,),
    "like": (str,),
    "layers": (str,),
    "mixers": (dict,),
    "logits": (dict,),
    "text": (str,),
    "requires": (dict,),
    "layer_lists": (list,),
    "layer_indices": (list,),
    "layers_by_number": (bool,),
    "tiny": (dict,),
    "axes": (dict,),
}
ROW = {"name", "parts", "owned", "dim", "beside"}


@dataclass(frozen=True)
class Family:
    """One family: `axes` maps a kind to what a file says of it, everything that it leaves out filled in."""

    name: str
    source: str
    model_types: tuple[str, ...]
    layers: str
    axes: Mapping[str, Mapping[str, Any]]
    mixers: Mapping[str, str] = field(default_factory=dict)
    logits: Mapping[str, str] = field(default_factory=dict)
    text: str = ""
    requires: Mapping[str, Any] = field(default_factory=dict)
    layer_lists: tuple[str, ...] = ("layer_types",)
    layer_indices: tuple[str, ...] = ()
    layers_by_number: bool = False
    tiny: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def decoder(self, config: Any) -> Any:
        """Returns the configuration of the decoder: the model's, or the part of it that `text` names."""
        return getattr(config, self.text) if self.text else config


@dataclass(frozen=True)
class FamilyFile:
    """A file of families: where it comes from, its path, and the families in it or what is wrong with it."""

    name: str
    source: str
    version: str
    path: Path
    families: tuple[Family, ...] = ()
    problem: str = ""


@cache
def families() -> dict[str, Family]:
    """All usable families by model type; where two files describe a type, the one that is read later counts.

    Read in this order: polyprune's own, those of installed packages, the files that POLYPRUNE_FAMILIES names.
    """
    return {kind: family for file in family_files() for family in file.families for kind in family.model_types}


def family_of(model_type: str) -> Family:
    """Returns the family of a model type.

    Raises:
        ModelError: no file describes it.
    """
    known = families()
    if model_type in known:
        return known[model_type]
    broken = [f"{file.path}: {file.problem}" for file in family_files() if file.problem]
    raise ModelError(
        f"models of family {model_type!r} cannot be cut yet; those of {', '.join(sorted(known))} can. "
        "A family is a few lines of data: `polyprune plugins new NAME --kind family` writes a package with them, and "
        "`polyprune models check MODEL` says what is still missing."
        + "".join(f"\nA file of families cannot be used: {b}" for b in broken)
    )


@cache
def family_files() -> tuple[FamilyFile, ...]:
    """All files of families, in the order in which they are read; one that is broken says why."""
    from polyprune_core.version import __version__

    own = Path(__file__).with_name("families.toml")
    known = {family.name: family for family in parse(own, OWN)}
    files = [FamilyFile(OWN, OWN, __version__, own, tuple(known.values()))]
    for name, source, version, path in [*_installed(), *_named()]:
        try:
            found = tuple(parse(path, source, known))
            files.append(FamilyFile(name, source, version, path, found))
        except ModelError as error:
            files.append(FamilyFile(name, source, version, path, problem=str(error)))
    return tuple(files)


@contextmanager
def also(path: Path) -> Iterator[FamilyFile]:
    """Yields a file of families that is known inside the block beside the others, before which it counts.

    Raises:
        ModelError: it cannot be used.
    """
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = os.pathsep.join(filter(None, [before, str(path)]))
    _forget()
    try:
        file = family_files()[-1]
        if file.problem:
            raise ModelError(file.problem)
        yield file
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
        _forget()


def _forget() -> None:
    families.cache_clear()
    family_files.cache_clear()


def parse(path: Path, source: str, known: Mapping[str, Family] | None = None) -> list[Family]:
    """Returns the families in a file; `known` are those that it may be `like`.

    Raises:
        ModelError: it cannot be read, or says something that is not understood.
    """
    try:
        tables = _tables(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}.") from error
    found: dict[str, Family] = {}
    for name, table in tables.items():
        found[name] = _family(name, table, f"{path.name}, [{name}]", source, {**(known or {}), **found})
    return list(found.values())


@lru_cache(maxsize=8)
def _tables(text: str) -> Mapping[str, Any]:
    return tomllib.loads(text)


def _family(name: str, table: Any, where: str, source: str, known: Mapping[str, Family]) -> Family:
    _require(table, FAMILY, where)
    base = table.get("like")
    if base is not None and base not in known:
        raise ModelError(f"{where}: like: {unknown_name('family', base, known)}")
    values: dict[str, Any] = {}
    axes: dict[str, dict[str, Any]] = {}
    if base is not None:
        values = {key: getattr(known[base], key) for key in FAMILY if hasattr(known[base], key)}
        axes = {kind: dict(axis) for kind, axis in known[base].axes.items()}
    for kind, axis in table.get("axes", {}).items():
        _require(axis, AXIS, f"{where}, axes.{kind}")
        axes[kind] = axes.get(kind, {}) | axis
    for kind, axis in axes.items():
        whole = (axes.get(axis["of"], {}) if "of" in axis else {}) | axis
        missing = [key for key in NEEDED if key not in whole]
        if missing:
            raise ModelError(f"{where}, axes.{kind}: {' and '.join(missing)} is missing.")
        _check_rows(whole["rows"], f"{where}, axes.{kind}")
    values |= {key: value for key, value in table.items() if key not in ("like", "axes")}
    values |= {"model_types": table.get("model_types"), "tiny": table.get("tiny", {}), "axes": axes}
    if not values["model_types"] or "layers" not in values or not axes:
        raise ModelError(f"{where}: model_types, layers and axes are needed (or like, for the last two).")
    lists = ("model_types", "layer_lists", "layer_indices")
    values = {key: tuple(value) if key in lists else value for key, value in values.items()}
    return Family(name=name, source=source, **values)


def _require(table: Any, keys: Mapping[str, tuple[type, ...]], where: str) -> None:
    if not isinstance(table, dict):
        raise ModelError(f"{where} is {table!r}; a table is needed.")
    for key, value in table.items():
        if key not in keys:
            raise ModelError(f"{where}: {unknown_name('key', key, keys)}")
        if not isinstance(value, keys[key]) or (isinstance(value, bool) and bool not in keys[key]):
            wanted = " or ".join(kind.__name__ for kind in keys[key])
            raise ModelError(f"{where}: {key} is {value!r}; {wanted} is needed.")


def _check_rows(rows: list[Any], where: str) -> None:
    for row in rows:
        if isinstance(row, dict) and ("name" not in row or row.keys() - ROW):
            raise ModelError(f"{where}: a row is {row!r}; a table of {', '.join(sorted(ROW))} with a name is needed.")


def _installed() -> Iterator[tuple[str, str, str, Path]]:
    for point in entry_points(group=GROUP):
        source, version = (point.dist.name, point.dist.version) if point.dist else ("unknown distribution", "")
        if not is_off(point.name, source):
            yield point.name, source, version, _file_of(point)


def _file_of(point: EntryPoint) -> Path:
    """Returns the file that an entry point stands for; the package is found, not imported."""
    top, *inner = point.module.split(".")
    spec = find_spec(top)
    folder = Path(next(iter(spec.submodule_search_locations or ()), ".")) if spec else Path(top)
    return folder.joinpath(*inner, f"{point.attr or 'families'}.toml")


def _named() -> Iterator[tuple[str, str, str, Path]]:
    for path in filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)):
        yield Path(path).stem, path, "", Path(os.path.expanduser(path))


def is_off(name: str, source: str) -> bool:
    """Whether the user switched off what an installed package brings, by the variables that switch plugins off."""
    off = {word.strip().lower().replace("_", "-") for word in os.environ.get("POLYPRUNE_DISABLE", "").split(",")}
    external = os.environ.get("POLYPRUNE_NO_EXTERNAL", "").strip().lower() in ("1", "true", "yes", "on")
    return external or bool({name.lower().replace("_", "-"), source.lower().replace("_", "-")} & off)
