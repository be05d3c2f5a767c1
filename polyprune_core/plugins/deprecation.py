"""How a name of the plugin interface is withdrawn: it works for one more minor release, with a warning."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
_caller: ContextVar[str] = ContextVar("the plugin that is running", default="")


class PluginDeprecationWarning(DeprecationWarning):
    """Warns that a plugin uses a name which a later release removes. The command line shows each message once."""


@contextmanager
def running(plugin: str) -> Iterator[None]:
    """Has the warnings of the block name `plugin`, "initializer 'wanda' of polyprune 0.1.0" and the like."""
    token = _caller.set(plugin)
    try:
        yield
    finally:
        _caller.reset(token)


def deprecated(*, since: str, removed_in: str, use: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Returns a decorator that makes every call of a function, method or factory warn that it will be removed.

    The warning is a `PluginDeprecationWarning`. It names the plugin that makes the call, if a plugin is running.

        @deprecated(since="0.3", removed_in="0.5", use="MaskSpace.sum_weights")
        def sum_rows(...): ...

    Args:
        since: the release in which the name is first marked.
        removed_in: the release that no longer has it, at least one minor release later.
        use: what to use in its place.
    """

    def mark(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def warned(*args: P.args, **kwargs: P.kwargs) -> R:
            by = f", used by {_caller.get()}," if _caller.get() else ""
            message = (
                f"{function.__qualname__}{by} is deprecated since {since} and will be removed in {removed_in}; "
                f"use {use} instead."
            )
            warnings.warn(message, PluginDeprecationWarning, stacklevel=2)
            return function(*args, **kwargs)

        return warned

    return mark
