"""OBS: greedy removal within a layer, each time of the unit that leaves the smallest error after a refit of the others.

Optimal Brain Surgeon (Hassibi and Stork 1993) for whole columns of a reader, as in ZipLM (arXiv 2302.04089, eq. 3),
SlimGPT (arXiv 2412.18110) and OSSCAR (arXiv 2403.12983). W is the reader's weight, C the covariance of its inputs over
the text, and H = (C + λI)^-1, where λ is `ridge` times the median of the diagonal of C. The next unit to go is the one
whose columns R have the smallest tr(W_R (H_RR)^-1 W_Rᵀ). W and H are then updated to what is left. The repair
`least-squares` makes the refit that this metric counts on.

The score of a unit is the fraction of its layer's units that are removed before it, so a pool loses the same fraction
of every layer. A unit that is alone in its layer scores the whole error E|W(x - E x)|². It takes forward passes of the
dense model only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polyprune_core import Initializer, Provider, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

    from polyprune_core import Calibration, MaskSpace


@dataclass(frozen=True)
class Obs:
    """Scores units by the order of greedy removal with refits.

    Options:
        ridge: what is added to the diagonal of the covariance, as a multiple of the median of that diagonal.
    """

    ridge: float = 0.1

    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        import torch

        from polyprune_core import removals

        parts = []
        for gone in removals(model, space, calibration, self.ridge):
            place = torch.empty(len(gone.order))
            place[gone.order] = torch.arange(len(gone.order)) / len(gone.order)
            parts.append(place if len(gone.order) > 1 else gone.errors.float())
        return torch.cat(parts)


@hookimpl
def polyprune_initializers() -> Iterator[Provider[Initializer]]:
    yield Provider(
        "obs",
        "greedy removal by the error after a least-squares refit",
        Obs,
        needs=frozenset({"calibration"}),
        reference="Hassibi and Stork 1993; ZipLM, arXiv 2302.04089, eq. 3; OSSCAR, arXiv 2403.12983",
    )
