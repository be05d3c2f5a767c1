"""Block Influence: how much a layer changes the direction of the hidden state that passes through it.

ShortGPT (arXiv 2403.03853): the score is the mean over tokens of 1 - cos(input, output) of the layer. The score of a
whole attention or MLP sublayer is the same across its residual connection (arXiv 2406.15786). It takes forward passes
of the dense model only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from math import pi
from typing import TYPE_CHECKING, Any, Literal, cast

from polyprune_core import ConfigError, Initializer, Provider, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

    from polyprune_core import Calibration, MaskSpace


DISTANCES: dict[str, Callable[[Tensor], Tensor]] = {
    "cosine": lambda cosine: 1 - cosine,
    "angular": lambda cosine: cosine.clamp(-1, 1).arccos() / pi,
}


@dataclass(frozen=True)
class BlockInfluence:
    """Scores layers and sublayers by their Block Influence.

    Options:
        last: the state after the last layer. `residual` is the residual stream as it is. `normed` is the stream after
            the model's final norm, as in the released code.
        distance: `cosine` is 1 - cosine. `angular` is the angle divided by π, the distance of Gromov et al. (arXiv
            2403.17887) for one layer at a time.
        tokens: `all` tokens, or the `last` token of each window, as in Gromov et al.
    """

    granularities = ("layer", "attention", "mlp")
    last: Literal["residual", "normed"] = "residual"
    distance: Literal["cosine", "angular"] = "cosine"
    tokens: Literal["all", "last"] = "all"

    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        import torch
        from torch.nn.functional import cosine_similarity

        if len(space) > len(space.groups):
            raise ConfigError(
                f"block-influence is about whole sublayers, and {space.name or 'this granularity'} has units that are "
                "parts of one; use --granularity layer, attention, mlp or attention+mlp, or another metric."
            )
        layout, body = space.layout, cast(Any, model).base_model
        apart = torch.zeros(len(space), dtype=torch.float64)
        measure, watched = DISTANCES[self.distance], slice(-1 if self.tokens == "last" else 0, None)
        states: list[Tensor] = []  # of the layer that runs: what enters it, then what leaves each of its sublayers

        def enter(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            states[:] = [inputs[0].float()]

        def add(_sublayer: nn.Module, _inputs: Any, output: Any) -> None:
            states.append(states[-1] + (output[0] if isinstance(output, tuple) else output))

        def tally(index: int) -> Callable[..., None]:
            places = {axis.name: place for place, axis in enumerate(a for a in layout.axes if a.layer == index)}
            units = [
                (unit, min(places[axis] for axis, _ in group.spans), max(places[axis] for axis, _ in group.spans) + 1)
                for unit, group in enumerate(space.groups)
                if group.layer == index
            ]

            def compare(*_: Any) -> None:
                for unit, before, after in units:
                    cosines = cosine_similarity(states[before][:, watched], states[after][:, watched], dim=-1)
                    apart[unit] += measure(cosines.double()).sum().cpu()

            return compare

        tallies = [tally(index) for index in range(layout.num_layers)]
        with torch.no_grad(), ExitStack() as undo:
            for index in range(layout.num_layers):
                layer = model.get_submodule(f"{layout.layers}.{index}")
                undo.enter_context(layer.register_forward_pre_hook(enter))
                if index < layout.num_layers - 1:
                    undo.enter_context(layer.register_forward_hook(tallies[index]))
            for axis in layout.axes:
                undo.enter_context(model.get_submodule(axis.added).register_forward_hook(add))
            for ids in calibration.batches():
                output = body(input_ids=ids, use_cache=False).last_hidden_state
                if self.last == "normed":
                    states[-1] = output.float()
                tallies[-1]()
        return (apart / calibration.windows[:, watched].numel()).float()


@hookimpl
def polyprune_initializers() -> Iterator[Provider[Initializer]]:
    yield Provider(
        "block-influence",
        "how much a layer turns the hidden state",
        BlockInfluence,
        needs=frozenset({"calibration"}),
        reference="ShortGPT, arXiv 2403.03853; sublayers as in arXiv 2406.15786",
    )
