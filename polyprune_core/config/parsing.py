"""Settings from what users give: values of options, and configuration files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from polyprune_core.errors import ConfigError, plain, unknown_name

NOWHERE: Mapping[str, Path] = {}


def parse(model: type[BaseModel], values: Mapping[str, Any], files: Mapping[str, Path] = NOWHERE) -> Any:
    """Returns `model(**values)`; true and false are no numbers.

    Args:
        model: the class of the request.
        values: what it is made of, by the names of its fields.
        files: the file that a value was read from, by its name; the others are options of the command line.

    Raises:
        ConfigError: a value cannot be used; every fault is told.
    """
    for name, value in values.items():
        told = value if isinstance(value, list | tuple) else [value]
        field = model.model_fields.get(name)
        if field and field.annotation is not bool and any(isinstance(each, bool) for each in told):
            place = _place(name, files)
            raise ConfigError(f"{place}: true and false are no values of it; give text or a number.")
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        faults = {fault["loc"]: fault for fault in error.errors()}
        nested = {location[:1] for location in faults if len(location) > 1}
        told = [_explain(fault, model, files) for location, fault in faults.items() if location not in nested]
        raise ConfigError(" ".join(told)) from error


def _place(name: str, files: Mapping[str, Path]) -> str:
    """Returns what a user finds a value by."""
    shown = name.replace("_", "-")
    return f"{files[name]}: {shown}" if name in files else f"--{shown}"


def _explain(fault: Any, model: type[BaseModel], files: Mapping[str, Path]) -> str:
    field = str(fault["loc"][0])
    name, place = field.replace("_", "-"), _place(field, files)
    if fault["type"] == "extra_forbidden":
        told = unknown_name("option", name, [known.replace("_", "-") for known in model.model_fields])
        return f"{files[field]}: {told}" if field in files else told
    if fault["type"] == "literal_error":
        allowed = re.findall(r"'([^']*)'", fault["ctx"]["expected"])
        return f"{place}: " + unknown_name(name, str(fault["input"]), allowed)
    given = repr(fault["input"])
    given = given if len(given) <= 80 else f"{given[:80]}…"
    reason = fault["msg"].replace("Input should", "it has to")
    return f"{place}: {given} cannot be used: {reason[0].lower()}{reason[1:]}."


def read_toml(path: Path) -> dict[str, Any]:
    """Returns the keys of a configuration file, with underscores for dashes.

    Raises:
        ConfigError: the file cannot be read, is not TOML, or gives an option twice.
    """
    import tomllib

    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        told = error.strerror if isinstance(error, OSError) else None
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else told or plain(str(error))
        raise ConfigError(
            f"cannot read the configuration {path}: {reason}. Give a TOML file of option names."
        ) from error
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name in found:
            raise ConfigError(f"the configuration {path} gives {plain(name)} twice, with - and with _; leave one out.")
        found[name] = value
    return found
