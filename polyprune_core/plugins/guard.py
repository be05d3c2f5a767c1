"""The border between core and a plugin: what a plugin raises is told with its name and distribution."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from polyprune_core.errors import PluginError, PolypruneError


class Guarded:
    """A plugin's implementation whose methods raise PluginError where they would raise anything but a user error."""

    def __init__(self, plugin: Any, blame: str) -> None:
        self._plugin, self._blame = plugin, blame

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._plugin, name)
        return self._guard(value) if callable(value) else value

    def __repr__(self) -> str:
        return self._blame

    def _guard(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            try:
                return method(*args, **kwargs)
            except (PolypruneError, MemoryError):
                raise
            except Exception as error:
                reason = (str(error).strip().splitlines() or [""])[0]
                raise PluginError(f"{self._blame} raised {type(error).__name__}: {reason}") from error

        return guarded
