"""What can be pruned of a model, found without its weights: on the meta device, from its configuration alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from polyprune_core.errors import ConfigError, PluginError
from polyprune_core.models.describe import describe
from polyprune_core.models.families import family_of
from polyprune_core.models.layout import ModelLayout
from polyprune_core.models.reading import model_without_weights
from polyprune_core.models.sources import resolve
from polyprune_core.plugins.registry import load_registry


@dataclass(frozen=True)
class Prunable:
    """What one granularity finds: its units by kind, the parameters that they own, or why it finds none."""

    granularity: str
    units: dict[str, int]
    parameters: int
    why_not: str = ""


@dataclass(frozen=True)
class ModelReport:
    """A model's family, sizes, and what every granularity finds in it.

    `notes` say what cannot be cut in it, and why.
    """

    name: str
    model_type: str
    family: str
    layers: int
    parameters: int
    notes: tuple[str, ...]
    found: tuple[Prunable, ...]


def report_on(
    name: str, *, trust_remote_code: bool = False, status: Callable[[str], None] = lambda _: None
) -> ModelReport:
    """Returns what can be pruned of the model called `name`; of its files only config.json is read.

    Raises:
        ModelError: there is no such model, its configuration cannot be set up, or no family describes it; the message
            says what is missing.
    """
    folder = resolve(name, trust_remote_code=trust_remote_code, status=status)
    model = model_without_weights(folder, trust_remote_code)
    layout = describe(model)
    family = family_of(layout.family)
    return ModelReport(
        name=name,
        model_type=layout.family,
        family=f"{family.name} ({family.source})",
        layers=layout.num_layers,
        parameters=layout.total_parameters,
        notes=tuple(_notes(layout)),
        found=tuple(_found(layout)),
    )


def _notes(layout: ModelLayout) -> Iterator[str]:
    for mixer in layout.mixers:
        yield f"{mixer} cannot be cut"
    if layout.fixed:
        yield f"{len(layout.fixed)} of {layout.num_layers} layers always stay"
    for kind in dict.fromkeys(axis.kind for axis in layout.axes if axis.whole):
        yield f"{kind} goes as a whole only: something in it looks at all of its entries at once"
    for kind in dict.fromkeys(axis.kind for axis in layout.axes if not axis.config_counts):
        yield f"layers with less {kind} cannot be told by a configuration; written folders bring a file of code"
    for kind in dict.fromkeys(axis.kind for axis in layout.axes if axis.at_least):
        least = max(axis.at_least for axis in layout.axes if axis.kind == kind)
        yield f"a layer keeps at least {least} of its {kind}s, so that its router finds as many as it chooses"


def _found(layout: ModelLayout) -> Iterator[Prunable]:
    registry = load_registry()
    for item in registry.all("granularity"):
        name = item.provider.name
        try:
            space = registry.space(name, layout)
        except (ConfigError, PluginError) as error:
            yield Prunable(name, {}, 0, str(error))
            continue
        units = {kind: sum(g.count for g in space.groups if g.kind == kind) for kind in space.kinds}
        yield Prunable(name, units, space.total_cost)
