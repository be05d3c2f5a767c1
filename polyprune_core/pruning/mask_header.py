"""masks.json: what a file of masks says to people, and what is checked before it is believed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import Tensor

from polyprune_core.errors import ModelError
from polyprune_core.pruning.types import Span, UnitGroup

# What is read of a recipe; scope and min_keep are checked where they decide something.
TEXTS = (
    "kind",
    "granularity",
    "initializer",
    "estimator",
    "budget",
    "scale",
    "revision",
    "protect",
    "shapes",
    "command",
)


class Base(BaseModel):
    """The dense model and where its weights come from.

    `folder` leads to it from the folder of masks, if it was read from a folder or file.
    """

    name: str
    sha256: str
    source: str | None = None
    folder: str | None = None


class Group(BaseModel):
    """A `UnitGroup`, and the units that stay as ranges, such as "0-3,7"."""

    kind: str
    layer: int = Field(ge=0)
    count: int = Field(gt=0)
    spans: tuple[tuple[str, Span], ...]
    kept: str

    @property
    def units(self) -> UnitGroup:
        """The group itself."""
        return UnitGroup(self.kind, self.layer, self.count, self.spans)


class Measured(BaseModel):
    """What the masked model scored on one text, and the dense one."""

    text: str
    window: int
    tokens: int
    perplexity: float
    dense: float


class Header(BaseModel):
    """The whole of masks.json; `scores` names the criterion, `tensors` is the SHA-256 of masks.safetensors."""

    model_config = ConfigDict(extra="allow")

    format: Literal["polyprune masks 1"] = "polyprune masks 1"
    base: Base
    granularity: str
    scores: str
    tensors: str | None = None
    recipe: dict[str, Any]
    measured: tuple[Measured, ...] = ()
    groups: list[Group] = Field(min_length=1)

    @field_validator("recipe")
    @classmethod
    def _can_be_followed(cls, recipe: dict[str, Any]) -> dict[str, Any]:
        for name in TEXTS:
            if not isinstance(recipe.get(name), str | None):
                raise ValueError(f"{name} is {recipe[name]!r}, where text is needed")
        sparsity = recipe.get("sparsity")
        if sparsity is not None and not (isinstance(sparsity, float) and 0 < sparsity < 1):
            raise ValueError(f"sparsity is {sparsity!r}, where a number above 0 and below 1 is needed")
        return recipe

    @property
    def units(self) -> int:
        """The number of units of all groups."""
        return sum(group.count for group in self.groups)

    def says(self, keep: Tensor) -> bool:
        """Whether the groups' ranges are those of `keep` (U,) bool."""
        return [group.kept for group in self.groups] == _kept([group.units for group in self.groups], keep)

    def write(self, path: Path) -> None:
        """Writes JSON with one line a group."""
        record = self.model_dump(mode="json")
        groups = ",\n  ".join(json.dumps(group) for group in record.pop("groups"))
        start = json.dumps(record, indent=1).removesuffix("\n}")
        path.write_text(f'{start},\n "groups": [\n  {groups}\n ]\n}}\n', encoding="utf-8")


def described(groups: Iterable[UnitGroup], keep: Tensor) -> list[Group]:
    """Returns the groups with what `keep` (U,) bool keeps of them."""
    groups = list(groups)
    kept = _kept(groups, keep)
    return [
        Group(kind=group.kind, layer=group.layer, count=group.count, spans=group.spans, kept=ranges)
        for group, ranges in zip(groups, kept, strict=True)
    ]


def read_header(path: Path) -> Header:
    """Reads masks.json.

    Raises:
        ModelError: it is missing, or not what `Header.write` writes.
    """
    try:
        return Header.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ModelError(
            f"no masks in {path.parent}: {path.name} cannot be read ({error.strerror}). Give a folder of masks."
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ModelError(
            f"{path} is not a mask file that this polyprune reads: {where}: {first['msg']}. Export the masks again."
        ) from error


def _kept(groups: list[UnitGroup], keep: Tensor) -> list[str]:
    return [_ranges(part.nonzero().flatten().tolist()) for part in torch.split(keep, [group.count for group in groups])]


def _ranges(numbers: list[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)
