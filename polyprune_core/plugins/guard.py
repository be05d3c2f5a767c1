"""The border between core and a plugin: what it raises, returns or touches wrongly is told with its name and source."""

from __future__ import annotations

import functools
import itertools
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Any

from polyprune_core.errors import PluginError, PolypruneError, brief, plain
from polyprune_core.models.quiet import no_bars
from polyprune_core.plugins.contracts import OPTIONAL
from polyprune_core.plugins.deprecation import running
from polyprune_core.plugins.process import settings_kept
from polyprune_core.plugins.side_effects import model_untouched, shared_randomness_unused
from polyprune_core.plugins.validation import CHECKS
from polyprune_core.utils.interrupts import by_user

METHODS = {
    "granularity": ("groups",),
    "initializer": ("score",),
    "policy": ("bind",),
    "estimator": ("sample", "gradient"),
    "repair": ("repair",),
    "exporter": ("export", "load"),
    "bound policy": ("start", "policy", "gradient", "fisher", "project", "ranking"),
}
# What these methods return is a plugin's too.
BINDS = {"bind": "bound policy"}
# Whatever a stranger's code raises must not stop the others, unless it is the user's own interruption.
FAULTS = (BaseException,)
ENDLESS = 100_000


@contextmanager
def blamed(who: str) -> Iterator[None]:
    """Turns whatever a plugin raises in the block into a PluginError that names it; user errors stay what they are.

    What it prints goes to stderr: stdout is for results. Want of memory and Ctrl-C are the user's to hear of, Ctrl-C
    also where the plugin has caught it.
    """
    try:
        with redirect_stdout(sys.stderr), running(who):
            yield
    except PolypruneError as error:
        require_no_interrupt()
        if str(error) == plain(str(error)):
            raise
        raise type(error)(plain(str(error))) from error
    except MemoryError:
        raise
    except FAULTS as error:
        require_no_interrupt(error)
        raise PluginError(f"{who} raised {described(error)}") from error
    require_no_interrupt()


def require_no_interrupt(error: BaseException | None = None) -> None:
    """Raises KeyboardInterrupt where the user has interrupted, whatever became of that in somebody's code."""
    if by_user(error):
        raise error if isinstance(error, KeyboardInterrupt) else KeyboardInterrupt from error


def listed(found: Iterator[Any], most: int, what: str) -> list[Any]:
    """Returns what an iterator yields; raises PluginError where that is more than `most`."""
    some = list(itertools.islice(found, most + 1))
    if len(some) > most:
        raise PluginError(f"{what} yields more than {most:,}, and perhaps without end.")
    return some


def described(error: BaseException) -> str:
    """Returns the type and the message of an exception on one line."""
    name = type(error).__name__
    return f"{name}: {brief(error)}" if plain(str(error)) else name


def traced(error: BaseException) -> str:
    """Returns where an exception comes from, as Python tells it."""
    return "".join(traceback.format_exception(error))


class Guarded:
    """A plugin's implementation; its methods raise PluginError for any fault that is not a user error.

    Results are checked, and so is that an initializer leaves the model as it was and that nothing but an exporter
    touches the random numbers that others share.
    """

    def __init__(self, plugin: Any, kind: str, blame: str, bound_to: tuple[Any, ...] = ()) -> None:
        """Raises PluginError unless `plugin` has the methods of its kind; `bound_to` is what it was made for."""
        self._plugin, self._kind, self._blame, self._bound_to = plugin, kind, blame, bound_to
        for name in METHODS[kind]:
            if not callable(getattr(self, name)):
                raise PluginError(f"{blame} has a {name!r} that is no method.")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        missing = object()
        with blamed(self._blame):
            value = getattr(self._plugin, name, OPTIONAL.get(self._kind, {}).get(name, missing))
        if value is missing:
            raise PluginError(f"{self._blame} has no {name!r}, which its contract asks for.")
        return self._guard(name, value) if callable(value) else value

    def __repr__(self) -> str:
        return self._blame

    def _guard(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            with blamed(self._blame), settings_kept(self._blame), ExitStack() as watched:
                if self._kind != "exporter":
                    watched.enter_context(shared_randomness_unused(self._blame))
                if self._kind in ("exporter", "initializer"):
                    watched.enter_context(no_bars())
                if name == "score":
                    watched.enter_context(model_untouched(args[0], self._blame))
                if name in ("repair", "export"):
                    watched.enter_context(model_untouched(args[0].base.model, self._blame))
                watched.enter_context(blamed(self._blame))  # once more inside, so that the watches see user errors only
                returned = method(*args, **kwargs)
                if isinstance(returned, Iterator):
                    returned = listed(returned, ENDLESS, self._blame)
                if (self._kind, name) in CHECKS:
                    CHECKS[self._kind, name](returned, self._blame, *self._bound_to, *args)
            return Guarded(returned, BINDS[name], self._blame, args) if name in BINDS else returned

        return guarded
