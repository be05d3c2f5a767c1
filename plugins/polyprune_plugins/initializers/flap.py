"""FLAP: how much the input features of a reader fluctuate, that is, how badly a constant bias could replace them.

arXiv 2312.11983, section 3. x_j are the inputs of an attention output projection or MLP down projection W over the n
tokens of the calibration text, and Fl_j = sum (x_j - mean x_j)² / (n - 1). As in the released code, the values of the
attention are squared, the values of each layer and kind are standardised column by column with n - 1, and the score of
a unit is the mean over its columns. Such scores are comparable across layers, so --scale does not apply. A unit that is
alone in its layer scores the sum of its values, not squared. The published method is this metric with the repair
`bias`. It takes forward passes of the dense model only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from polyprune_core import Initializer, Provider, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

    from polyprune_core import Calibration, MaskSpace

METRICS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "wifv": lambda weight, fluctuation, square: fluctuation * weight.square().sum(dim=0),
    "ifv": lambda weight, fluctuation, square: fluctuation,
    "wifn": lambda weight, fluctuation, square: weight.abs().mean(dim=0) * square.sqrt(),
}


@dataclass(frozen=True)
class Flap:
    """Scores units by the fluctuation of their values.

    Options:
        metric: the value of column j. `wifv` is Fl_j |W_:j|², `ifv` is Fl_j, and `wifn` is Wanda's mean_i |W_ij| (mean
            x_j²)^½.
        around: the mean in Fl_j. `whole` is the mean of the whole text. `running` is the mean of the windows so far, as
            in the released code; it leaves out the first window and depends on the order of windows.
    """

    comparable = True
    metric: Literal["wifv", "ifv", "wifn"] = "wifv"
    around: Literal["whole", "running"] = "whole"

    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        import torch

        fluctuate = around_the_whole if self.around == "whole" else around_the_running
        measured = {
            axis: (fluctuate(total, square, calibration.windows.shape[1]), square.sum(dim=0))
            for axis, (total, square) in window_sums(space, calibration).items()
        }

        def value(axis: str, weight: Tensor) -> Tensor:
            fluctuation, square = measured[axis]
            return METRICS[self.metric](weight.double(), fluctuation, square / calibration.windows.numel())

        def standardised(axis: str, weight: Tensor) -> Tensor:
            values = value(axis, weight)
            if space.layout.axis[axis].kind == "attention":
                values = values.square()
            return (values - values.mean()) / (values.std() or 1.0)

        columns = space.sum_columns(model, lambda axis, weight: weight.new_ones(weight.shape[1]))
        alone = torch.tensor([group.count == 1 for group in space.groups])[space.group]
        return torch.where(alone, space.sum_columns(model, value), space.sum_columns(model, standardised) / columns)


def around_the_whole(total: Tensor, square: Tensor, tokens: int) -> Tensor:
    """Returns (F,) float64 variances from (N, F) sums and sums of squares over the `tokens` of each window."""
    n = tokens * len(total)
    return (square.sum(dim=0) - total.sum(dim=0).square() / n) / (n - 1)


def around_the_running(total: Tensor, square: Tensor, tokens: int) -> Tensor:
    """Returns (F,) float64: the released recursion over windows, with the mean of all up to the one that is added.

    f_k = f_(k-1) (k - 2) / (k - 1) + sum over the tokens of window k of (x - mean_k)² / k, from f_1 = 0.
    """
    import torch

    found = torch.zeros_like(total[0])
    for k in range(2, len(total) + 1):
        mean = total[:k].mean(dim=0) / tokens
        around = square[k - 1] - 2 * mean * total[k - 1] + tokens * mean.square()
        found = found * (k - 2) / (k - 1) + around / k
    return found


def window_sums(space: MaskSpace, calibration: Calibration) -> dict[str, tuple[Tensor, Tensor]]:
    """Returns, by axis, (N, F) float64 sums over each window's tokens of its reader's inputs and of their squares."""
    import torch

    seen: dict[str, list[tuple[Tensor, Tensor]]] = {axis: [] for axis in space.axes}

    def add(axis: str, rows: Tensor) -> None:
        x = rows.view(-1, calibration.windows.shape[1], rows.shape[-1]).double()
        seen[axis].append((x.sum(dim=1), x.square().sum(dim=1)))

    calibration.observe_readers(space.axes, add)
    return {axis: (torch.cat([s for s, _ in parts]), torch.cat([q for _, q in parts])) for axis, parts in seen.items()}


@hookimpl
def polyprune_initializers() -> Iterator[Provider[Initializer]]:
    yield Provider(
        "flap",
        "how much inputs fluctuate, standardised in each layer",
        Flap,
        needs=frozenset({"calibration"}),
        reference="FLAP, arXiv 2312.11983, section 3; released code",
    )
