"""Biases that a repair adds, held against the format that is written: refused before anything is scored."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from itertools import product

from polyprune_core.config.cell import NO_REPAIR
from polyprune_core.config.shapes_spec import ShapesSpec
from polyprune_core.errors import ConfigError
from polyprune_core.plugins.options import FIRST, parse_spec
from polyprune_core.plugins.registry import Registry
from polyprune_core.pruning.pruned_model import PrunedModel
from polyprune_core.pruning.types import LegalShapes
from polyprune_core.runs.asked_shapes import held_by


def check_targets(repairs: Iterable[str], asked: Iterable[str | None], pruned: PrunedModel, registry: Registry) -> None:
    """Refuses repairs that add biases which a target, of the widths that are asked for, cannot hold.

    Raises:
        ConfigError: as `check_repair`.
    """
    targets = dict.fromkeys(filter(None, (ShapesSpec.parse(each).target for each in asked)))
    for target, spec in product(targets, repairs):
        held = held_by(registry.build("exporter", target), pruned.layout)
        check_repair(spec, f"--target {target}", held, pruned, registry)


def check_repair(spec: str, asked: str, held: LegalShapes, pruned: PrunedModel, registry: Registry) -> None:
    """Refuses a repair that adds biases to `pruned` which what is `asked` for, an option and its value, cannot hold.

    Raises:
        ConfigError: it says which repairs add none, and which formats hold them.
    """
    if held.added_biases or not registry.adds_biases(spec):
        return
    if names := list(pruned.possible_biases()):
        raise ConfigError(
            f"--repair {spec} adds biases to linear modules that have none ({names[0]}, …), and {asked} has no place "
            f"for them. {_ways_out(spec, pruned, registry)}"
        )


def check_added(exporter: str, pruned: PrunedModel, registry: Registry) -> None:
    """Refuses to write a model whose repair has added biases in a format that cannot hold them.

    Raises:
        ConfigError: it says which repairs add none, and which formats hold them.
    """
    names = pruned.added()
    if not names or held_by(registry.build("exporter", exporter), pruned.layout).added_biases:
        return
    spec = str(pruned.recipe.get("repair", NO_REPAIR))
    raise ConfigError(
        f"the repair {spec} has added biases to linear modules that had none ({names[0]}, …), and --exporter "
        f"{exporter} has no place for them. {_ways_out(spec, pruned, registry)}"
    )


def _ways_out(spec: str, pruned: PrunedModel, registry: Registry) -> str:
    plain = [*_other_options(spec, registry), *_names("repair", registry)]
    without = [each for each in plain if not registry.adds_biases(each)]
    formats = _names("exporter", registry)
    holding = [each for each in formats if held_by(registry.build("exporter", each), pruned.layout).added_biases]
    return (
        f"Repair without them, as with --repair {without[0]} (or {', '.join(without[1:])}), or write a format that "
        f"holds them: --exporter {', '.join(holding)}."
    )


def _names(kind: str, registry: Registry) -> list[str]:
    return [item.provider.name for item in registry.all(kind)]


def _other_options(spec: str, registry: Registry) -> Iterator[str]:
    """Yields a repair with each of its switches the other way round, and with no other repair to start from."""
    known = inspect.signature(registry.get("repair", spec).provider.factory).parameters
    name, options = parse_spec(spec)
    given = {next(iter(known)) if key == FIRST else key: value for key, value in options.items()}
    for option, parameter in known.items():
        told = {key: value for key, value in given.items() if key != option}
        if isinstance(parameter.default, bool):
            told[option] = str(not parameter.default).lower()
        elif option == "start":
            told[option] = NO_REPAIR
        else:
            continue
        yield ":".join([name, *(f"{key}={value}" for key, value in told.items())])
