"""Bernoulli masks conditional on exactly k units kept: exact draws and inclusion probabilities, in n log^2 n.

A binary tree over the units holds the distribution of the number kept under every node. Counts are drawn from the root
down, a node's count split between its two halves; inclusion probabilities come from the same tree, by what is left for
each unit once all others are counted.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor


class ExactSize:
    """Masks over units with keep probabilities s (n,), given that exactly `size` of them stay."""

    def __init__(self, keep_prob: Tensor, size: int) -> None:
        self.units, self.size = len(keep_prob), size
        width = 1 << max(0, self.units - 1).bit_length()
        s = torch.zeros(width, dtype=torch.float64)
        s[: self.units] = keep_prob.double()
        self.levels = [torch.stack([1 - s, s], dim=1)]
        while len(self.levels[-1]) > 1:
            halves = self.levels[-1]
            self.levels.append(_convolved(halves[0::2], halves[1::2]))

    def sample(self, num_masks: int, rng: Generator) -> Tensor:
        """Returns (K, n) bool."""
        counts = torch.full((num_masks, 1), self.size)
        for halves in reversed(self.levels[:-1]):
            left, right = halves[0::2], halves[1::2]
            split = torch.arange(left.shape[1])
            rest = counts[:, :, None] - split
            weight = torch.where(
                (rest >= 0) & (rest < right.shape[1]),
                left * right.expand(num_masks, -1, -1).gather(2, rest.clamp(0, right.shape[1] - 1)),
                0.0,
            )
            bar = torch.rand(counts.shape, generator=rng, dtype=torch.float64)[:, :, None] * weight.sum(2, keepdim=True)
            kept = (weight.cumsum(dim=2) <= bar).sum(dim=2).clamp(max=left.shape[1] - 1)
            counts = torch.stack([kept, counts - kept], dim=2).flatten(1)
        return counts[:, : self.units].bool()

    def inclusion(self) -> Tensor:
        """Returns (n,) float64: the probability that each unit stays."""
        # outside[v, c]: the probability that all units that are not under node v make up the size together with c of v.
        outside = torch.zeros(1, self.levels[-1].shape[1], dtype=torch.float64)
        outside[0, self.size] = 1
        for halves in reversed(self.levels[:-1]):
            sibling = halves.view(-1, 2, halves.shape[1]).flip(1).reshape(halves.shape)
            parent = outside.repeat_interleave(2, dim=0)
            outside = _convolved(parent, sibling.flip(1))[:, halves.shape[1] - 1 :][:, : halves.shape[1]]
        joint = self.levels[0] * outside
        kept: Tensor = joint[:, 1] / joint.sum(dim=1)
        return kept[: self.units]


def _convolved(a: Tensor, b: Tensor) -> Tensor:
    """Returns (V, A + B - 1): the convolution of each row of (V, A) with that of (V, B)."""
    length = a.shape[1] + b.shape[1] - 1
    product: Tensor = torch.fft.irfft(torch.fft.rfft(a, length) * torch.fft.rfft(b, length), length)
    return product.clamp_(min=0)
