"""What the reference pages list of the code itself: plugins, checks, commands and public names, as Markdown."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import torch
from transformers import AutoModelForCausalLM

from polyprune_core.cli import cli
from polyprune_core.models.describe import describe
from polyprune_core.models.families import OWN
from polyprune_core.models.families import families as described
from polyprune_core.models.layout import ModelLayout
from polyprune_core.models.quiet import quiet
from polyprune_core.plugins.gallery import gallery
from polyprune_core.plugins.options import describe_options
from polyprune_core.plugins.registry import load_registry
from polyprune_core.testing.checks import CHECKS
from polyprune_core.testing.family import FAMILY_CHECKS
from polyprune_core.testing.tiny import tiny_config

NAMES = Path(__file__).resolve().parent.parent / "docs" / "reference" / "api.md"
CHECKED = NAMES.parents[2] / "benchmarks" / "results" / "families.json"
# What a plugin's needs mean for whoever takes it.
NEEDED = {
    "gradients": "back-propagates",
    "budget": "is asked anew for every sparsity",
    "mix": "fits weights to the text",
}
DIRECTIVE = re.compile(r"^\.\. auto(?:class|function|module):: (polyprune_core[\w.]*)$", re.M)


def plugins(kind: str) -> str:
    """What polyprune's own plugins of one kind say of themselves."""
    rows = []
    for item in load_registry().all(kind):
        if item.source.distribution == "polyprune":
            provider = item.provider
            needs = "".join(f"; {NEEDED[need]}" for need in sorted(provider.needs & NEEDED.keys()))
            options = ", ".join(f"`{name}: {text}`" for name, text in describe_options(provider).items())
            rows.append((f"`{provider.name}`", provider.summary + needs, options, provider.reference))
    return _table(("name", "what it does", "options", "source"), rows)


def others() -> str:
    """The plugins of other distributions that are known of."""
    return _table(
        ("plugin", "kind", "distribution", "what it does", "source"),
        [(f"`{p.name}`", p.kind, f"`{p.distribution}`", p.summary, p.source) for p in gallery()],
    )


def tries() -> str:
    """How each of those is installed and shown, and what the command printed of it."""
    rows = [(f"`{p.name}`", f"`{p.install}`", f"`{p.command}`", p.row) for p in gallery()]
    return _table(("plugin", "install", "command", "its row"), rows)


def checks() -> str:
    """The checks of the conformance kit, those for all kinds first."""
    rows = [
        (check.kind or "every kind", f"`{check.name}`", check.summary, "yes" if check.excusable else "")
        for check in sorted(CHECKS, key=lambda check: check.kind)
    ]
    return _table(("plugins", "check", "what it holds", "may be excused"), rows)


def families() -> str:
    """What each granularity finds in a tiny model of every model type that is tested: entries a layer, or whole."""
    registry, record = load_registry(), json.loads(CHECKED.read_text("utf-8"))["types"]
    names = [item.provider.name for item in registry.all("granularity") if item.provider.name != "auto"]
    rows = []
    for model_type, family in described().items():
        if family.source == OWN:
            layout = layout_of(model_type)
            found = [_units(registry.build("granularity", name), layout) for name in names]
            stock = all(axis.config_counts for axis in layout.axes if not axis.whole)
            checks = list(record.get(model_type, {}).get("checks", {}).values())
            told = f"{checks.count('passed')} of {len(checks)}"
            rows.append((f"`{model_type}`", f"`{family.name}`", *found, "" if stock else "resized", told))
    return _table(("model type", "family", *(f"`{name}`" for name in names), "layers", "checks passed"), rows)


def family_checks() -> str:
    """What is held of every model type."""
    rows = [(f"`{check.__name__}`", (inspect.getdoc(check) or "").partition("\n")[0]) for check in FAMILY_CHECKS]
    return _table(("check", "what it holds"), rows)


def layout_of(model_type: str) -> ModelLayout:
    with torch.device("meta"), quiet():
        return describe(AutoModelForCausalLM.from_config(tiny_config(model_type)))


def _units(granularity: Any, layout: ModelLayout) -> str:
    groups = granularity.groups(layout)
    kinds = dict.fromkeys(group.kind for group in groups)
    return " and ".join(kinds) if groups else ""


def commands() -> str:
    """Every command with its arguments and options, as `--help` tells them."""
    return "\n\n".join(_commands(cli, "polyprune", None))


def names(section: str) -> str:
    """The public names that a section of the page of the interface documents, each in a line."""
    part = re.split(rf"^## {re.escape(section)}$", NAMES.read_text("utf-8"), flags=re.M)[1].partition("\n## ")[0]
    rows = []
    for name, thing in (found for path in DIRECTIVE.findall(part) for found in _things(path)):
        paragraph = " ".join((inspect.getdoc(thing) or "").partition("\n\n")[0].split())
        rows.append((f"`{name}`", re.split(r"(?<=\.)\s", paragraph)[0].removesuffix("."), ", ".join(_members(thing))))
    return _table(("name", "what it is", "its members, or what it takes"), rows)


def _things(path: str) -> Iterator[tuple[str, Any]]:
    """A documented name, or those that a documented module defines."""
    where, _, name = path.rpartition(".")
    thing = getattr(import_module(where), name)
    if not inspect.ismodule(thing):
        yield name, thing
        return
    for name, own in vars(thing).items():
        documented = inspect.isclass(own) or name.startswith("polyprune_")
        if documented and getattr(own, "__module__", None) == path:
            yield name, own


def _members(thing: Any) -> list[str]:
    if not inspect.isclass(thing):
        return [f"`{name}`" for name in inspect.signature(thing).parameters]
    fields = [field.name for field in dataclasses.fields(thing)] if dataclasses.is_dataclass(thing) else []
    ours = [vars(each) for each in reversed(thing.__mro__) if each.__module__.startswith("polyprune_core.")]
    own = {name: value for each in ours for name, value in each.items() if name[0] != "_" and name not in fields}
    calls = (classmethod, staticmethod)
    methods = [f"{name}()" if callable(value) or isinstance(value, calls) else name for name, value in own.items()]
    return [f"`{name}`" for name in [*fields, *methods]]


def _commands(command: click.Command, path: str, parent: click.Context | None) -> Iterator[str]:
    context = click.Context(command, parent, info_name=path.rpartition(" ")[2], **command.context_settings)
    yield f"### {path}"
    yield f"`{path} {' '.join(command.collect_usage_pieces(context))}`"
    yield inspect.cleandoc(command.help or "")
    told = [found for parameter in command.params if (found := parameter.get_help_record(context))]
    options = [(f"`{name}`", " ".join(text.split())) for name, text in told if text]
    if options:
        yield _table(("option", "what it says"), options)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from _commands(inner, f"{path} {name}", context)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
