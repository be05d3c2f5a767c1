"""Plugin options: NAME:option=value:option=value on the command line, typed by the factory's own signature.

A value alone, NAME:value, is that of the plugin's first option.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any, cast

from polyprune_core.errors import PluginError, unknown_name
from polyprune_core.plugins.contracts import Provider

FIRST = ":"


def parse_spec(spec: str) -> tuple[str, dict[str, str]]:
    """Splits "llm-pruner:taylor=vector" into the normalised name and its options as text.

    A value that stands alone, and first, has the name FIRST.
    """
    name, *pairs = spec.strip().split(":")
    options = {}
    for place, pair in enumerate(pairs):
        key, equals, value = pair.partition("=") if "=" in pair or place else (FIRST, "=", pair)
        if not (equals and key and value):
            raise PluginError(f"{spec!r}: {pair!r} is not option=value; write {name}:option=value.")
        options[key.strip().replace("-", "_")] = value.strip()
    return name.strip().lower().replace("_", "-"), options


def describe_options(provider: Provider[Any]) -> dict[str, str]:
    """Returns each option's name with its type and default as text."""
    return {
        name: f"{_type(parameter.annotation)} = {parameter.default!r}"
        for name, parameter in inspect.signature(provider.factory).parameters.items()
    }


def explain_options(docstring: str) -> tuple[str, dict[str, str]]:
    """Returns a docstring without its part "Options:", which is its last, and what that part says of each option."""
    text, _, part = docstring.partition("Options:\n")
    found = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", part, re.M)
    return text.rstrip(), {name: " ".join(meaning.split()) for name, meaning in found}


def _type(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation).replace("typing.", "")


def build(kind: str, provider: Provider[Any], options: Mapping[str, Any]) -> Any:
    """Returns `provider.factory(**options)` with each value read as its declared type."""
    known = inspect.signature(provider.factory).parameters
    options = {next(iter(known), name) if name == FIRST else name: value for name, value in options.items()}
    for name in options:
        if name not in known:
            raise PluginError(f"{kind} {provider.name!r}: " + unknown_name("option", name, known))
    if not options:
        return provider.factory()
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(cast(Any, provider.factory)).validate_python(options)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        reason = first["msg"].replace("Input should be", "it has to be")
        raise PluginError(f"{kind} {provider.name!r}: option {where}={first['input']!r}: {reason}.") from error
