"""The border between core and a plugin: what a plugin raises is told with its name and distribution."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from polyprune_core.errors import PluginError, PolypruneError
from polyprune_core.plugins.contracts import OPTIONAL


class Guarded:
    """A plugin's implementation whose methods raise PluginError where they would raise anything but a user error."""

    def __init__(self, plugin: Any, blame: str) -> None:
        self._plugin, self._blame = plugin, blame

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name in OPTIONAL:
            return getattr(self._plugin, name, OPTIONAL[name])
        try:
            value = getattr(self._plugin, name)
        except AttributeError as error:
            raise PluginError(f"{self._blame} has no {name!r}, which its contract asks for.") from error
        return self._guard(value) if callable(value) else value

    def __repr__(self) -> str:
        return self._blame

    def _guard(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            try:
                returned = method(*args, **kwargs)
                return list(returned) if isinstance(returned, Iterator) else returned
            except (PolypruneError, MemoryError):
                raise
            except Exception as error:
                reason = (str(error).strip().splitlines() or [""])[0]
                raise PluginError(f"{self._blame} raised {type(error).__name__}: {reason}") from error

        return guarded
