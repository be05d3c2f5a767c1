"""Rotation: what is left of a reader's output is rotated towards the output of the dense model.

For one reader: W is its weight, x its inputs over the calibration text, S its kept columns, Y = W x its outputs in the
dense model, and Z = W_S x_S what is left of them.

    W_S' = U Vᵀ W_S,        U Σ Vᵀ = svd(E[Y Zᵀ]),        E[Y Zᵀ] = W E[x x_Sᵀ] W_Sᵀ

U Vᵀ is the orthogonal matrix that brings Z closest to Y (the Procrustes problem). It does not change the length of
outputs. This is the rotation of RCPU without its search for what to remove.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polyprune_core import Provider, Repair, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from polyprune_core import Calibration, PrunedModel


@dataclass(frozen=True)
class Rotation:
    def repair(self, pruned: PrunedModel, calibration: Calibration) -> Mapping[str, Tensor]:
        import torch

        updates: dict[str, Tensor] = {}
        for reader in pruned.cut_readers():
            weight, products = reader.weight.double(), calibration.moments(reader.axis).second.double()
            left = weight[:, reader.keep]
            u, _, v = torch.linalg.svd(weight @ products[:, reader.keep] @ left.T)
            updates |= reader.updates(u @ (v @ left))
        return updates


@hookimpl
def polyprune_repairs() -> Iterator[Provider[Repair]]:
    yield Provider(
        "rotation",
        "outputs turned towards those of the dense model",
        Rotation,
        needs=frozenset({"calibration", "mix"}),
        reference="RCPU: orthogonal Procrustes on the outputs of readers",
    )
