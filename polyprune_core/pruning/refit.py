"""Greedy removal of the columns of linear maps, each time those whose absence costs least after a least-squares refit.

Optimal Brain Surgeon (Hassibi and Stork 1993) for whole columns, as in ZipLM (arXiv 2302.04089, eq. 3) and OSSCAR
(arXiv 2403.12983). With W the weight, C the covariance of its inputs and H = (C + λI)^-1, removing the columns R and
fitting the others anew adds tr(W_R (H_RR)^-1 W_Rᵀ) to the error, and leaves W - W_R (H_RR)^-1 H_R: and H - H_:R
(H_RR)^-1 H_R:.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Columns that go before what they change is written back to the whole matrices.
LAZY = 64


@dataclass(frozen=True)
class DenseReader:
    """A reader before anything is removed: `weight` (out, in), `covariance` (in, in) of its inputs, both float64.

    `owner` (in,) int64 is the unit of each of its columns.
    """

    weight: Tensor
    covariance: Tensor
    owner: Tensor

    def size(self) -> float:
        """Returns E|W(x - E x)|²."""
        return float((self.weight @ self.covariance).mul_(self.weight).sum())


class Remainder:
    """What is left of one reader, as its units go one by one.

    Everything is padded to units of equally many columns, `width`; what is padded weighs nothing. U units, F = U width
    columns. Of the last removals only factors are kept, H = `inverse` - `spent` `spent`ᵀ and W = `weight` - `gone`
    `given`ᵀ, beside the blocks of H and of WᵀW on their diagonals, which are what errors are made of.
    """

    def __init__(self, reader: DenseReader, ridge: float) -> None:
        """`ridge`: λ over the median of the diagonal of the covariance."""
        weight, covariance, owner = reader.weight, reader.covariance, reader.owner
        count = owner.bincount()
        self.width = int(count.max())
        order = owner.argsort(stable=True)
        start = (count.cumsum(0) - count)[owner[order]]
        place = owner[order] * self.width + torch.arange(len(order)) - start
        size = len(count) * self.width
        diagonal = covariance.diag()
        added = ridge * float(diagonal.median() or diagonal.mean() or 1.0)
        self.inverse = torch.eye(size, dtype=torch.float64, device=weight.device)
        self.weight = weight.new_zeros(len(weight), size)
        inverse = torch.linalg.inv(covariance + added * torch.eye(len(covariance)).to(covariance))
        self.inverse[place[:, None], place] = inverse[order[:, None], order]
        self.weight[:, place] = weight[:, order]
        self.left = torch.arange(len(count))
        self._restart()

    def _restart(self) -> None:
        """Starts with empty factors."""
        units = len(self.left)
        room = max(LAZY // self.width, 1) * self.width
        self.spent, self.given = self.weight.new_empty(2, units * self.width, room)
        self.gone = self.weight.new_empty(len(self.weight), room)
        self.used = 0
        self.removed = torch.zeros(units, dtype=torch.bool)
        columns = self.weight.T.unflatten(0, (units, self.width))
        self.products = columns @ columns.mT
        diagonal = torch.arange(units)
        blocks = self.inverse.unflatten(0, (units, self.width)).unflatten(2, (units, self.width))
        self.blocks = blocks[diagonal, :, diagonal].clone()

    def errors(self) -> Tensor:
        """Returns (U,) float64: what removing each unit next would add to the error; infinite where it is gone."""
        if self.width == 1:
            found = (self.products / self.blocks).flatten()
        else:
            solved = torch.linalg.solve_ex(self.blocks, self.products).result
            found = solved.diagonal(dim1=1, dim2=2).sum(dim=1)
        errors = torch.full((int(self.left[-1]) + 1,), torch.inf, dtype=torch.float64)
        errors[self.left] = found.cpu().masked_fill(self.removed, torch.inf)
        return errors

    def remove(self, unit: int) -> None:
        """Takes a unit away, and fits the others anew."""
        at = int((self.left == unit).nonzero())
        own = slice(at * self.width, (at + 1) * self.width)
        used, more = self.used, self.used + self.width
        column = self.inverse[:, own] - self.spent[:, :used] @ self.spent[own, :used].T
        weight = self.weight[:, own] - self.gone[:, :used] @ self.given[own, :used].T
        root = torch.linalg.cholesky(self.blocks[at])
        spent = torch.linalg.solve_triangular(root, column.T, upper=False).T
        given = torch.linalg.solve_triangular(root.T, spent.T, upper=True).T
        inner = self.weight.T @ weight - self.given[:, :used] @ (self.gone[:, :used].T @ weight)
        self.spent[:, used:more], self.given[:, used:more], self.gone[:, used:more] = spent, given, weight
        self.used = more
        spent, given, inner = (each.unflatten(0, (-1, self.width)) for each in (spent, given, inner))
        self._renew(spent, given, inner, weight.T @ weight)
        self.removed[at] = True
        if more == self.spent.shape[1]:
            self._write_back()

    def _renew(self, spent: Tensor, given: Tensor, inner: Tensor, own: Tensor) -> None:
        """Takes from the blocks (U, width, width) what a removal changes."""
        if self.width == 1:
            self.blocks -= spent * spent
            self.products += given * (given * own - 2 * inner)
            return
        cross = given @ inner.mT
        self.blocks -= spent @ spent.mT
        self.products += given @ own @ given.mT - cross - cross.mT

    def _write_back(self) -> None:
        """Drops what is gone, and applies the factors to the rest."""
        stays = ~self.removed
        columns = stays.repeat_interleave(self.width).to(self.weight.device)
        self.left = self.left[stays]
        if len(self.left):
            spent = self.spent[columns]
            self.inverse = self.inverse[columns][:, columns].addmm_(spent, spent.T, alpha=-1)
            self.weight = self.weight[:, columns].addmm_(self.gone, self.given[columns].T, alpha=-1)
            self._restart()


def removal(readers: list[DenseReader], count: int, ridge: float) -> tuple[Tensor, Tensor]:
    """Returns the units (count,) in the order of their removal and what each then adds to the error, float64.

    A unit that is alone adds all that is lost with it.
    """
    if count == 1:
        return torch.zeros(1, dtype=torch.long), torch.tensor([sum(r.size() for r in readers)], dtype=torch.float64)
    remainders = [Remainder(reader, ridge) for reader in readers]
    order, errors = torch.empty(count, dtype=torch.long), torch.empty(count, dtype=torch.float64)
    for place in range(count):
        found = torch.stack([each.errors() for each in remainders]).sum(dim=0)
        unit = int(found.argmin())
        order[place], errors[place] = unit, found[unit]
        for each in remainders:
            each.remove(unit)
    return order, errors.clamp(min=0)
