"""The masks of a step on several copies of one model, each of which stays in a worker: masks go out, losses come back.

A loss does not depend on which worker it comes from, nor on how many there are: each mask is run alone, and what comes
back is put in the order in which the masks were drawn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyprune_core.errors import ModelError
from polyprune_core.evaluation.losses import Objective
from polyprune_core.models.describe import describe
from polyprune_core.models.placement import USUAL, Placement, placed, placement
from polyprune_core.models.sources import LoadedModel, load_model
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.pruning.surgery import Compactor
from polyprune_core.pruning.types import UnitGroup
from polyprune_core.utils.crew import Call, Crew, Engine, Tell

Bits = NDArray[np.uint8]
Numbers = NDArray[Any]
# A worker is taken for hung after this many times the longest answer so far, and no sooner than `PATIENCE_SECONDS`.
PATIENCE = 20
PATIENCE_SECONDS, FIRST_PATIENCE_SECONDS = 60.0, 900.0


@dataclass(frozen=True)
class Copy:
    """Makes a worker's copy of a model, read as the one it is a copy of was; `threads` compute in it."""

    name: str
    sha256: str
    dtype: str
    device: str
    revision: str | None
    trust_remote_code: bool
    threads: int
    placement: Placement = USUAL

    @classmethod
    def of(cls, loaded: LoadedModel, revision: str | None, trust_remote_code: bool, device: str, threads: int) -> Copy:
        """Returns what makes copies of a loaded model, in the same number format."""
        dtype = str(loaded.model.dtype).removeprefix("torch.")
        return cls(loaded.name, loaded.sha256, dtype, device, revision, trust_remote_code, threads, placement())

    def __call__(self, tell: Tell) -> Bench:
        torch.set_num_threads(self.threads)
        with placed(self.placement):
            loaded = load_model(
                self.name,
                dtype=self.dtype,
                device=self.device,
                revision=self.revision,
                trust_remote_code=self.trust_remote_code,
            )
        if loaded.sha256 != self.sha256:
            raise ModelError(f"{self.name} has other weights where a worker reads it: sha256 {loaded.sha256[:12]}.")
        return Bench(loaded)


class Bench:
    """A model in a worker, on which masks are tried one at a time; what goes in and out are arrays and numbers."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.layout = describe(loaded.model)
        self.compactor = Compactor(loaded.model, self.layout).__enter__()
        self._objectives: dict[tuple[str, tuple[UnitGroup, ...]], Objective] = {}

    def loss(self, units: tuple[UnitGroup, ...], of: str, bits: Bits, ids: Numbers) -> float:
        """Returns the loss under one mask, whose units are `bits`, eight in a byte."""
        objective = self._objective(units, of)
        mask = torch.from_numpy(np.unpackbits(bits, count=len(objective.space))).bool()
        return float(objective.losses(mask[None], torch.from_numpy(ids))[0])

    def gradient(self, units: tuple[UnitGroup, ...], of: str, gate: Numbers, ids: Numbers) -> tuple[float, Numbers]:
        """Returns the loss under one gate (U,), and its derivatives (U,)."""
        losses, slopes = self._objective(units, of).gradients(torch.from_numpy(gate)[None], torch.from_numpy(ids))
        return float(losses[0]), slopes[0].numpy()

    def _objective(self, units: tuple[UnitGroup, ...], of: str) -> Objective:
        key = (of, units)
        if key not in self._objectives:
            self._objectives[key] = _Remembering(self.compactor, MaskSpace(self.layout, units, "spread"), of)
        return self._objectives[key]


class _Remembering(Objective):
    """Runs the dense model once for all masks on one text."""

    _of: tuple[Tensor, Tensor | None] | None = None

    def _dense(self, ids: Tensor) -> Tensor | None:
        if self._of is None or not torch.equal(self._of[0], ids):
            self._of = (ids, super()._dense(ids))
        return self._of[1]


class MaskWorkers:
    """`size` copies of a model, read when they are first needed; used as a context, it ends them.

    `told(worker, Lost)` hears of workers that are lost.
    """

    def __init__(self, engine: Callable[[], Engine], copy: Copy, size: int, told: Callable[[int, Any], None]) -> None:
        self._engine, self._copy, self.size, self._told = engine, copy, size, told
        self._crew: Crew | None = None
        self._longest = 0.0

    def __enter__(self) -> MaskWorkers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._crew:
            self._crew.__exit__()
        self._crew = None

    def losses(self, space: MaskSpace, of: str, masks: Tensor, ids: Tensor) -> Tensor:
        """See `losses.Spread`."""
        found = self._each("loss", space, of, [np.packbits(mask.cpu().numpy()) for mask in masks], ids)
        return torch.tensor(found, dtype=torch.float32)

    def gradients(self, space: MaskSpace, of: str, gates: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """See `losses.Spread`."""
        found = self._each("gradient", space, of, [gate.detach().float().cpu().numpy().copy() for gate in gates], ids)
        losses, slopes = zip(*found, strict=True)
        return torch.tensor(losses, dtype=torch.float32), torch.stack([torch.from_numpy(each) for each in slopes])

    def _each(self, method: str, space: MaskSpace, of: str, masks: Sequence[Numbers], ids: Tensor) -> list[Any]:
        """Returns what workers make of each mask alone, in the order of the masks."""
        crew = self._crew = self._crew or Crew(self._engine(), self._copy, self.size, self._told)
        crew.patience = max(PATIENCE_SECONDS, PATIENCE * self._longest) if self._longest else FIRST_PATIENCE_SECONDS
        calls = [Call(method, (tuple(space.groups), of, mask, ids.cpu().numpy().copy())) for mask in masks]
        found: dict[int, Any] = {}
        start = time.perf_counter()
        for done in crew.results(calls):
            if done.error:
                raise done.error
            found[done.index] = done.value
        self._longest = max(self._longest, time.perf_counter() - start)
        return [found[index] for index in range(len(calls))]
