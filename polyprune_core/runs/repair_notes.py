"""What to tell of a repair: a text that weights should not be fitted to, and experts that it left as they were."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from polyprune_core.config.cell import NO_REPAIR
from polyprune_core.plugins.contracts import Provider

if TYPE_CHECKING:
    from polyprune_core.evaluation.text import Text
    from polyprune_core.pruning.pruned_model import PrunedModel


def of_its_text(
    pruned: PrunedModel, spec: str, provider: Provider[Any], text: Text, tokens: int
) -> Iterator[tuple[str, str]]:
    """Yields kinds of warnings and warnings of a text of `tokens` tokens that a repair fits weights to."""
    if "mix" not in provider.needs:
        return
    widest = max((reader.weight.shape[1] for reader in pruned.cut_readers()), default=0)
    if len(text.parts or (text,)) == 1:
        yield (
            "one text",
            f"repair {spec} fits weights to {text.name} alone, which can make the model worse on other text than no "
            "repair does; give --calibration A+B.",
        )
    if tokens < widest:
        yield (
            "few tokens",
            f"repair {spec} looks at {tokens} tokens, fewer than the {widest} inputs of a reader; raise "
            "--repair-samples, or give a longer text.",
        )


def of_experts(pruned: PrunedModel, spec: str, updates: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields kinds of warnings and warnings of experts that lost something, and of which a repair changed nothing."""
    if spec == NO_REPAIR:
        return
    layout, inside, beside = pruned.layout, set[int](), set[int]()
    for name, keep in pruned.axis_keep().items():
        axis = layout.axis[name]
        parameter = axis.stack.parameter if axis.stack else axis.scaled
        if parameter is None or keep.all() or not keep.any() or parameter in updates:
            continue
        (beside if axis.router else inside).add(axis.layer)
    if beside:
        yield (
            f"experts beside {spec}",
            f"repair {spec} leaves the experts of {len(beside)} layers as they are: some were removed, and of what the "
            "others take in nothing was cut. The repair sequential fits them to what the router sends them now.",
        )
    if inside:
        yield (
            f"channels of experts {spec}",
            f"repair {spec} leaves the experts of {len(inside)} layers as they are, of which channels were removed; "
            "least-squares and sequential fit what is left of them.",
        )
