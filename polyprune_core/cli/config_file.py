"""Configuration files: options that are given in TOML, and overruled by those on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rich_click as click

from polyprune_core.errors import ConfigError

# Options of the commands themselves: what they ask for is in no request.
OF_THE_COMMAND = {name: name for name in ("output", "overwrite", "quiet", "verbose", "dry_run")} | {"format": "form"}


def read_config(context: click.Context, parameter: click.Parameter, config: Path | None) -> Path | None:
    """Makes what a configuration file says of the command's own options their defaults."""
    from polyprune_core.config.parsing import read_toml

    if config is not None:
        own, _ = _parted(context.command, read_toml(config))
        if wrong := [name for name, value in own.items() if not isinstance(value, str | bool)]:
            raise ConfigError(f"{config}: {wrong[0]} is {own[wrong[0]]!r}; a text, true or false is needed.")
        context.default_map = {OF_THE_COMMAND[name]: value for name, value in own.items()}
    return config


def _parted(command: click.Command, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns what is for the command itself, and what is for its request."""
    there = {parameter.name for parameter in command.params}
    own = {name: value for name, value in values.items() if OF_THE_COMMAND.get(name) in there}
    return own, {name: value for name, value in values.items() if name not in own}


def given(values: dict[str, Any], config: Path | None) -> tuple[dict[str, Any], dict[str, Path]]:
    """Returns what the user asked for, and the file of each value that is from one; the command line overrules it."""
    from polyprune_core.config.parsing import read_toml

    asked = {name: value for name, value in values.items() if value is not None}
    if config is None:
        return asked, {}
    context = click.get_current_context()
    assert context is not None
    read = _parted(context.command, read_toml(config))[1]
    return read | asked, {name: config for name in read if name not in asked}
