"""What a cell measured and decided in full, in one file beside its row: read with NumPy, without a model.

CELL.safetensors holds `window_nll` (N,) float32, the mean loss of each evaluation window in nats per token, and as
`window_nll 1`, `window_nll 2` and so on those of the row's further evaluations. For a pruned model it holds `scores`
(U,) float32, higher = keep, and `keep`, one bit a unit; after a repair also `update NAME` for every parameter that it
changed or added. Its header holds the cell's id, the run that made it, the units as groups of one kind and layer, and
the losses of the poolings that were tried.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyprune_core.errors import ConfigError, brief
from polyprune_core.utils.files import parse_json, write_atomically
from polyprune_core.utils.numbers import finite

FORMAT = "polyprune cell 1"
WINDOWS = "window_nll"
UPDATE = "update "


@dataclass(frozen=True)
class Group:
    """A run of `count` units of one kind in one layer, in the order of the units."""

    kind: str
    layer: int
    count: int


@dataclass(frozen=True)
class Details:
    """`run` is the record of the comparison: polyprune, environment, config, model, texts. N windows, U units.

    `window_nll` is that of the headline, `further_nll` those of the row's other evaluations in their order.
    `updates` are parameters that a repair has changed or added, by name, in their kept shape. `poolings` are losses in
    nats per token by "scope, scale", of those that the metric's was chosen among.
    """

    window_nll: NDArray[np.float32]
    run: dict[str, Any] = field(default_factory=dict)
    groups: tuple[Group, ...] = ()
    keep: NDArray[np.bool_] | None = None
    scores: NDArray[np.float32] | None = None
    updates: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    further_nll: tuple[NDArray[np.float32], ...] = ()
    poolings: Mapping[str, float] = field(default_factory=dict)

    def kept(self) -> dict[str, list[tuple[int, int, int]]]:
        """Returns (layer, units kept, units there are) for every layer of every kind."""
        found: dict[str, list[tuple[int, int, int]]] = {}
        if self.keep is None:
            return found
        start = 0
        for group in self.groups:
            there = self.keep[start : start + group.count]
            found.setdefault(group.kind, []).append((group.layer, int(there.sum()), group.count))
            start += group.count
        return found

    def of_kind(self, kind: str) -> NDArray[np.bool_]:
        """Returns (U,) bool: which units are of this kind."""
        counts = [group.count for group in self.groups]
        return np.repeat([group.kind == kind for group in self.groups], counts)


def path_of(cells: Path, key: str) -> Path:
    """Returns where the details of a cell lie."""
    return cells / f"{key}.safetensors"


def write_details(path: Path, details: Details) -> None:
    """Writes the file whole or not at all."""
    from safetensors.numpy import save

    arrays: dict[str, NDArray[Any]] = {WINDOWS: np.asarray(details.window_nll, np.float32)}
    arrays |= {f"{WINDOWS} {i}": np.asarray(value, np.float32) for i, value in enumerate(details.further_nll, 1)}
    if details.keep is not None and details.scores is not None:
        arrays |= {"keep": np.packbits(details.keep), "scores": np.asarray(details.scores, np.float32)}
    arrays |= {UPDATE + name: np.asarray(value, np.float32) for name, value in details.updates.items()}
    groups = [[group.kind, group.layer, group.count] for group in details.groups]
    header = {"format": FORMAT, "cell": path.stem, "run": json.dumps(details.run), "groups": json.dumps(groups)}
    if details.poolings:
        header["poolings"] = json.dumps(finite(dict(details.poolings)))
    write_atomically(path, save(arrays, header))


def read_details(path: Path) -> Details | None:
    """Returns what `write_details` wrote, or None for a cell without such a file.

    Raises:
        ConfigError: the file is there but is not one of ours, or another cell's.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, "np") as file:
            header = file.metadata() or {}
            if (cell := header.get("cell", path.stem)) != path.stem:
                raise ValueError(f"they are those of cell {cell}")
            return _details(header, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} does not hold the details of a cell ({brief(error, 160)}). Delete it to do without."
        ) from error


def _details(header: Mapping[str, str], arrays: Mapping[str, NDArray[Any]]) -> Details:
    if header.get("format") != FORMAT:
        raise ValueError(f"format {header.get('format')!r} is not {FORMAT!r}")
    groups = tuple(Group(str(kind), int(layer), int(count)) for kind, layer, count in parse_json(header["groups"]))
    units = sum(group.count for group in groups)
    if any(group.count < 1 for group in groups):
        raise ValueError("a group without units")
    windows, scores, run = arrays[WINDOWS], arrays.get("scores"), parse_json(header["run"])
    keep = np.unpackbits(arrays["keep"])[:units].astype(bool) if "keep" in arrays else None
    further = tuple(arrays[name] for i in range(1, len(arrays)) if (name := f"{WINDOWS} {i}") in arrays)
    if (
        any(each.ndim != 1 for each in (windows, *further))
        or not isinstance(run, dict)
        or any(len(v) != units for v in (keep, scores) if v is not None)
    ):
        raise ValueError("its arrays do not fit its header")
    updates = {name.removeprefix(UPDATE): value for name, value in arrays.items() if name.startswith(UPDATE)}
    losses = parse_json(header.get("poolings", "{}"))
    poolings = {str(name): math.inf if loss is None else float(loss) for name, loss in losses.items()}
    return Details(windows, run, groups, keep, scores, updates, further, poolings)
