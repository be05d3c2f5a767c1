"""How a name of the plugin interface is withdrawn: it works for a minor release more, and says who still uses it."""

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
    """A plugin uses a name that a later release no longer has; the command line shows each such message once."""


@contextmanager
def running(plugin: str) -> Iterator[None]:
    """Has the warnings of the block name `plugin`, "initializer 'wanda' of polyprune 0.1.0" and the like."""
    token = _caller.set(plugin)
    try:
        yield
    finally:
        _caller.reset(token)


def deprecated(*, since: str, removed_in: str, use: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Returns a decorator for a function, method or factory that is to be withdrawn.

    since and removed_in are releases, at least a minor one apart; `use` says what takes its place. The warning names
    the plugin that makes the call, or no plugin where none is running.

        @deprecated(since="0.3", removed_in="0.5", use="MaskSpace.sum_weights")
        def sum_rows(...): ...
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
