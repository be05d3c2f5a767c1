"""Bernoulli masks conditional on exactly k units kept: exact draws, and inclusion probabilities.

A binary tree over n units holds for every node the distribution of the number of units kept below it. Making the tree
takes time n log^2 n. A draw goes from the root down, and splits the number of each node between its two halves. The
inclusion probability of a unit comes from the same tree, from the distribution of the number that all others keep.

If there are many units, only some are in the tree. The others are drawn independently, and the units in the tree make
up the size. A draw is accepted with a probability proportional to the chance that the units in the tree have the
missing number. The accepted masks have the same distribution, at a fraction of the cost (rejection sampling).
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor


class ExactSize:
    """The distribution of masks of n independent units, given that exactly `size` of the units stay.

    Args:
        keep_prob: (n,), the probability that each unit would stay without this condition.
        size: how many units stay. It must be a number that masks drawn independently can plausibly have, such as the
            rounded sum of `keep_prob`.
        closing: the most units that are drawn together to make up the size: those with probabilities nearest to 1/2.
            All other units are drawn independently first.
    """

    def __init__(self, keep_prob: Tensor, size: int, closing: int = 4096) -> None:
        self.keep_prob, self.size = keep_prob.double(), size
        variance = self.keep_prob * (1 - self.keep_prob)
        order = torch.argsort(variance, descending=True, stable=True)
        self.closing, self.free = order[:closing].sort().values, order[closing:].sort().values
        width = 1 << max(0, len(self.closing) - 1).bit_length()
        s = torch.zeros(width, dtype=torch.float64)
        s[: len(self.closing)] = self.keep_prob[self.closing]
        self.levels = [torch.stack([1 - s, s], dim=1)]
        while len(self.levels[-1]) > 1:
            halves = self.levels[-1]
            self.levels.append(_convolved(halves[0::2], halves[1::2]))

    def sample(self, num_masks: int, rng: Generator) -> Tensor:
        """Returns `num_masks` masks (K, n) bool, drawn from `rng`."""
        masks = torch.empty((num_masks, len(self.keep_prob)), dtype=torch.bool)
        missing = torch.empty(num_masks, dtype=torch.long)
        for mask, free in enumerate(self._accepted(num_masks, rng)):
            masks[mask, self.free] = free
            missing[mask] = self.size - int(free.sum())
        masks[:, self.closing] = self._closed(missing, rng)
        return masks

    def inclusion(self) -> Tensor:
        """Returns (n,) float64: the probability that each unit stays, given the size.

        With more than `closing` units it is approximate: s_i P(k - 1 of the others) / P(k of all), s = keep_prob and
        k = size, where both distributions are taken as normal (local limit theorem). The error falls faster than the
        number of units grows.
        """
        return self._inclusion_by_limit() if len(self.free) else self._inclusion_by_tree()

    def _accepted(self, num_masks: int, rng: Generator) -> list[Tensor]:
        """Draws the free units until the others can make up the size as likely as at best."""
        likelihood, s = self.levels[-1][0], self.keep_prob[self.free].float()
        if not len(s):
            return [torch.empty(0, dtype=torch.bool)] * num_masks
        taken: list[Tensor] = []
        while len(taken) < num_masks:
            drawn = torch.rand(len(s), generator=rng) < s
            missing = self.size - int(drawn.sum())
            bar = float(torch.rand((), generator=rng, dtype=torch.float64) * likelihood.max())
            if 0 <= missing < len(likelihood) and bar < float(likelihood[missing]):
                taken.append(drawn)
        return taken

    def _closed(self, counts: Tensor, rng: Generator) -> Tensor:
        """Returns (K, closing) bool: masks of exactly `counts` (K,) units."""
        counts = counts[:, None]
        for halves in reversed(self.levels[:-1]):
            left, right = halves[0::2], halves[1::2]
            split = torch.arange(left.shape[1])
            rest = counts[:, :, None] - split
            weight = torch.where(
                (rest >= 0) & (rest < right.shape[1]),
                left * right.expand(len(counts), -1, -1).gather(2, rest.clamp(0, right.shape[1] - 1)),
                0.0,
            )
            bar = torch.rand(counts.shape, generator=rng, dtype=torch.float64)[:, :, None] * weight.sum(2, keepdim=True)
            kept = (weight.cumsum(dim=2) <= bar).sum(dim=2).clamp(max=left.shape[1] - 1)
            counts = torch.stack([kept, counts - kept], dim=2).flatten(1)
        return counts[:, : len(self.closing)].bool()

    def _inclusion_by_limit(self) -> Tensor:
        s = self.keep_prob
        variance = s * (1 - s)
        beyond, whole = self.size - s.sum(), variance.sum()
        others = whole - variance
        apart = beyond**2 / whole - (beyond - 1 + s) ** 2 / others
        kept: Tensor = s * (whole / others).sqrt() * (apart / 2).exp()
        return kept.clamp(0, 1)

    def _inclusion_by_tree(self) -> Tensor:
        # outside[v, c]: the probability that all units that are not under node v make up the size together with c of v.
        outside = torch.zeros(1, self.levels[-1].shape[1], dtype=torch.float64)
        outside[0, self.size] = 1
        for halves in reversed(self.levels[:-1]):
            sibling = halves.view(-1, 2, halves.shape[1]).flip(1).reshape(halves.shape)
            parent = outside.repeat_interleave(2, dim=0)
            outside = _convolved(parent, sibling.flip(1))[:, halves.shape[1] - 1 :][:, : halves.shape[1]]
        joint = self.levels[0] * outside
        kept: Tensor = joint[:, 1] / joint.sum(dim=1)
        return kept[: len(self.closing)]


def _convolved(a: Tensor, b: Tensor) -> Tensor:
    """Returns (V, A + B - 1): the convolution of each row of (V, A) with that of (V, B)."""
    length = a.shape[1] + b.shape[1] - 1
    product: Tensor = torch.fft.irfft(torch.fft.rfft(a, length) * torch.fft.rfft(b, length), length)
    return product.clamp_(min=0)
