"""Bonsai: regression of the loss of random smaller models on which units they lack.

arXiv 2402.05406. Wanda's |W| rms(x), the mean over a unit's columns, is the prior. Units of each layer that are among
the best 1 - 2 `share` of it stay; the others are removed at random, `share` of the layer at a time, a unit the more
likely the smaller its prior, and each mask is followed by its complement among the units that may go. What a unit is
worth is its coefficient in a linear model of -loss: `c` times its prior, fitted first, plus a ridge regression on what
that leaves, whose weight is the one of least leave-one-out error. A unit that always stays scores above all others, by
its prior. Forward passes alone: `masks` of them on each of `windows`.

The prior, and which units stay, are those of the authors' code, but that two units of a layer may go at least: one
alone would be gone in every other mask. The rest is other: one round, where theirs goes on from the pruned model, as a
score here serves every sparsity; the loss, where theirs takes perplexity, of which a few bad masks make up most; and a
fit in closed form, where theirs takes Adam from the prior and stops by Kendall's tau in shuffled folds, so that it
depends on a seed of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polyprune_core import ConfigError, Initializer, Provider, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

    from polyprune_core import Calibration, MaskSpace

# Weights of the ridge that are tried, over the mean of the eigenvalues.
RIDGES = tuple(10.0**power for power in range(-3, 5))


@dataclass(frozen=True)
class Bonsai:
    """`masks` at random, half of them complements; `windows` of text for each; `share` of a layer that one removes."""

    comparable = True
    masks: int = 200
    windows: int = 32
    share: float = 0.05

    def __post_init__(self) -> None:
        if self.masks < 4 or self.masks % 2:
            raise ConfigError(f"bonsai: masks={self.masks} are no pairs; give an even number, 4 or more.")
        if self.windows < 1:
            raise ConfigError(f"bonsai: windows={self.windows} is no number of windows; give 1 or more.")
        if not 0 < self.share <= 0.5:
            raise ConfigError(f"bonsai: share={self.share:g} is no share of a layer; give more than 0, at most 0.5.")

    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        import torch

        prior = self.prior(model, space, calibration)
        free = self.free(prior, space)
        masks = torch.cat([self.pair(prior, free, space, calibration) for _ in range(self.masks // 2)])
        worth = coefficients(masks[:, free].double(), -self.losses(masks, space, calibration), prior[free])
        scores = worth.max() + 1 + prior
        scores[free] = worth
        return scores.float()

    def windows_run(self, units: int, windows: int, held_back: int) -> int:
        """See `Initializer`."""
        return windows + self.masks * min(self.windows, windows)

    def prior(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        """Returns (U,) float64: |W| rms(x), the mean over a unit's columns."""
        norms = {axis: found.mean_square.sqrt() for axis, found in calibration.input_statistics().items()}
        total = space.sum_columns(model, lambda axis, weight: weight.abs().mean(dim=0) * norms[axis])
        return (total / space.sum_columns(model, lambda axis, weight: weight.new_ones(weight.shape[1]))).double()

    def free(self, prior: Tensor, space: MaskSpace) -> Tensor:
        """Returns (U,) bool: which units may go, the worst 2 `share` of each layer and at least two."""
        import torch

        free = torch.zeros(len(space), dtype=torch.bool)
        for units in runs(space):
            stay = min(int(len(units) * (1 - 2 * self.share)), max(len(units) - 2, 0))
            free[units[prior[units].argsort(stable=True)[: len(units) - stay]]] = True
        return free

    def pair(self, prior: Tensor, free: Tensor, space: MaskSpace, calibration: Calibration) -> Tensor:
        """Returns (2, U) bool: a random mask and its complement among the free units."""
        import torch

        mask = torch.ones(len(space), dtype=torch.bool)
        for units in runs(space):
            own = units[free[units]]
            weight = (prior[units].max() - prior[own]).clamp(min=1e-12 * float(prior[units].max() or 1.0))
            # The largest of uniform^(1 / weight), compared by logarithm, are a weighted draw without replacement.
            keys = calibration.rand(len(own)).double().clamp(min=1e-300).log() / weight
            mask[own[keys.argsort(descending=True)[: min(int(self.share * len(units)) + 1, len(own))]]] = False
        return torch.stack([mask, mask ^ free])

    def losses(self, masks: Tensor, space: MaskSpace, calibration: Calibration) -> Tensor:
        """Returns (K,) float64 mean losses in nats."""
        import torch

        text = calibration.windows[: self.windows]
        found = torch.zeros(len(masks), dtype=torch.float64)
        for done, mask in enumerate(masks):
            for ids in text.split(calibration.batch_size):
                found[done] += float(calibration.losses(space, mask[None], ids)) * len(ids) / len(text)
            calibration.progress(done + 1, len(masks))
        return found


def runs(space: MaskSpace) -> list[Tensor]:
    """Returns the units that are drawn from together: those of a layer and kind, or of a kind where each is alone."""
    return [(space.peers == label).nonzero().flatten() for label in space.peers.unique()]


def coefficients(kept: Tensor, worth: Tensor, prior: Tensor) -> Tensor:
    """Returns (F,) float64: how much each of F units is worth, from (K, F) 0 or 1 and the worth (K,) of each mask."""
    import torch

    kept, worth = kept - kept.mean(dim=0), worth - worth.mean()
    along = kept @ prior
    scale = float((along @ worth / (along @ along).clamp(min=1e-300)).clamp(min=0))
    left = worth - scale * along
    values, vectors = torch.linalg.eigh(kept @ kept.T)
    values, seen = values.clamp(min=0), vectors.T @ left
    best, errors = torch.zeros_like(left), float("inf")
    for ridge in RIDGES:
        shrunk = 1 / (values + ridge * float(values.mean()) + 1e-300)
        dual = vectors @ (shrunk * seen)
        # Leave-one-out residuals of a ridge regression: dual coefficients over the diagonal of the inverse kernel.
        without = float((dual / (vectors.square() @ shrunk)).square().sum())
        if without < errors:
            best, errors = dual, without
    return scale * prior + kept.T @ best


@hookimpl
def polyprune_initializers() -> Iterator[Provider[Initializer]]:
    yield Provider(
        "bonsai",
        "regression of losses of random masks on their units",
        Bonsai,
        needs=frozenset({"calibration"}),
        reference="Bonsai, arXiv 2402.05406, section 3",
        xfail={
            "permuted_channels_have_permuted_scores": "masks are drawn by place",
            "zero_channel_ranks_last": "the regression is as noisy as its masks are few",
        },
        quick={"masks": 12},
    )
