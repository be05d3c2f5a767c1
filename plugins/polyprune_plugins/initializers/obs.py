"""OBS: greedy removal within a layer by the error that remains after the kept weights are fitted anew.

Optimal Brain Surgeon (Hassibi and Stork 1993) for whole columns of a reader, as in ZipLM (arXiv 2302.04089, eq. 3),
SlimGPT (arXiv 2412.18110) and OSSCAR (arXiv 2403.12983). With W the reader's weight, C the covariance of its inputs
over the text and H = (C + λI)^-1, the unit with columns R goes next for which tr(W_R (H_RR)^-1 W_Rᵀ) is least; then W
and H are what is left of them. λ is `ridge` times the median of the diagonal of C. The repair `least-squares` makes
the fit that is counted on here.

A score is the share of its layer's units that go before, so that a pool takes the same share of every layer; that of a
unit alone in its layer is all that is lost with it, E|W(x - E x)|². Forward passes alone, on the unpruned model.
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
    """`ridge`: what is added to the diagonal of the covariance, over its median."""

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
