"""Angular distance: finds the run of successive layers that changes the direction of the hidden state least.

Gromov et al. (arXiv 2403.17887), eq. 6. n is the number of layers that the budget removes. The distance of the run of n
layers from layer l is arccos(cos(h_l, h_(l + n))) / π, where h_l is the hidden state of the last token of a window
before layer l. It is averaged over windows. The n layers of the run with the smallest distance get the lowest scores;
of these, the first layer scores highest. Every other layer scores above them, by the smallest distance of the runs that
it is in. The metric is for whole layers only. It takes forward passes of the dense model only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from math import ceil, pi
from typing import TYPE_CHECKING, Any, cast

from polyprune_core import ConfigError, Initializer, Provider, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

    from polyprune_core import Calibration, MaskSpace


@dataclass(frozen=True)
class AngularDistance:
    granularities = ("layer",)

    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        import torch

        layers = space.layout.num_layers
        axes = [sum(axis.layer == layer for axis in space.layout.axes) for layer in range(layers)]
        if [len(group.spans) for group in space.groups] != axes or len(space) != layers:
            raise ConfigError(
                f"angular-distance is about whole layers, and {space.name or 'this granularity'} has other units; use "
                "--granularity layer, or block-influence for sublayers."
            )
        run = min(max(ceil(calibration.budget.sparsity * layers - 1e-9), 1), layers)
        states = last_states(model, space, calibration)
        distance = torch.stack([angles(states[at], states[at + run]).mean() for at in range(layers - run + 1)])
        scores = torch.tensor([float(distance[max(at - run + 1, 0) : at + 1].min()) for at in range(layers)])
        first = int(distance.argmin())
        scores[first : first + run] = -torch.arange(1.0, run + 1)
        return scores


def angles(before: Tensor, after: Tensor) -> Tensor:
    """Returns (N,) angles between states (N, D), over π."""
    cosine = (before * after).sum(dim=-1) / (before.norm(dim=-1) * after.norm(dim=-1)).clamp(min=1e-300)
    angle: Tensor = cosine.clamp(-1, 1).arccos() / pi
    return angle


def last_states(model: nn.Module, space: MaskSpace, calibration: Calibration) -> list[Tensor]:
    """Returns (N, D) float64 states of each window's last token: as it enters each layer, and as it leaves the last."""
    import torch

    path, layers = space.layout.layers, space.layout.num_layers
    seen: list[list[Tensor]] = [[] for _ in range(layers + 1)]

    def enter(layer: int) -> Callable[..., None]:
        return lambda _layer, inputs: seen[layer].append(inputs[0][:, -1].double().cpu())

    def leave(_layer: nn.Module, _inputs: Any, output: Any) -> None:
        state = output[0] if isinstance(output, tuple) else output
        seen[layers].append(state[:, -1].double().cpu())

    with torch.inference_mode(), ExitStack() as undo:
        for layer in range(layers):
            undo.enter_context(model.get_submodule(f"{path}.{layer}").register_forward_pre_hook(enter(layer)))
        undo.enter_context(model.get_submodule(f"{path}.{layers - 1}").register_forward_hook(leave))
        for ids in calibration.batches():
            cast(Any, model).base_model(input_ids=ids, use_cache=False)
    return [torch.cat(parts) for parts in seen]


@hookimpl
def polyprune_initializers() -> Iterator[Provider[Initializer]]:
    yield Provider(
        "angular-distance",
        "the run of layers that turns the hidden state least",
        AngularDistance,
        needs=frozenset({"calibration", "budget"}),
        reference="Gromov et al., arXiv 2403.17887, eq. 6",
    )
