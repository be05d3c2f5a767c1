"""What every plugin owes: a provider that can be listed, options that can be typed, a value that can be passed on."""

from __future__ import annotations

import inspect
import json
import pickle
from typing import Any

from polyprune_core.errors import PluginError
from polyprune_core.plugins.contracts import NEEDS
from polyprune_core.plugins.guard import METHODS
from polyprune_core.plugins.options import build
from polyprune_core.plugins.registry import NAME, Registered
from polyprune_core.testing.checking import CHECKS, by_default, check, global_randomness_unused, made, require

SUMMARY_LENGTH = 80


def _options(plugin: Registered) -> dict[str, inspect.Parameter]:
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(plugin.provider.factory).parameters
    return {name: parameter for name, parameter in parameters.items() if parameter.kind in named}


@check("")
def provider_can_be_listed(plugin: Registered) -> None:
    """Name, summary, needs and reference are what the table of plugins can show."""
    provider = plugin.provider
    require(NAME.fullmatch(provider.name), f"the name {provider.name!r} is not lower-case words joined by dashes")
    for field, text in (("summary", provider.summary), ("reference", provider.reference)):
        require(isinstance(text, str) and (text == "" or text.isprintable()), f"the {field} {text!r} is not one line")
    length = len(provider.summary)
    require(0 < length <= SUMMARY_LENGTH, f"the summary has {length} characters; give 1 to {SUMMARY_LENGTH}")
    needs = provider.needs
    require(isinstance(needs, frozenset) and needs <= NEEDS, f"needs is {needs!r}; it is a frozenset out of {NEEDS}")


@check("")
def exceptions_are_allowed_and_have_reasons(plugin: Registered) -> None:
    """What the provider's xfail names are checks that a plugin may be right to fail, each with the reason."""
    excusable = sorted(check.name for check in CHECKS if check.kind in ("", plugin.kind) and check.excusable)
    for name, reason in plugin.provider.xfail.items():
        allowed = ", ".join(excusable) or "none"
        require(name in excusable, f"xfail names {name!r}; checks of kind {plugin.kind} that may fail are: {allowed}")
        require(isinstance(reason, str) and reason.strip(), f"xfail gives no reason for {name}")


@check("")
def builds_with_its_defaults(plugin: Registered) -> None:
    """Without any option, and with its quick ones, the factory gives something that has the methods of its kind."""
    for implementation in (by_default(plugin), made(plugin)):
        for name in METHODS[plugin.kind]:
            method = getattr(implementation, name, None)
            named = type(implementation).__name__
            require(callable(method), f"{named} has no method {name}; every {plugin.kind} needs it")


@check("", "builds_with_its_defaults")
def options_can_be_typed_and_stored(plugin: Registered) -> None:
    """Every option's default is JSON, and read back from its text gives an equal implementation."""
    for name, parameter in _options(plugin).items():
        default = parameter.default
        try:
            json.dumps(default, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise AssertionError(f"the default of option {name} cannot be stored as JSON: {error}") from error
        if default is None:
            continue
        require(
            isinstance(default, str | int | float), f"the default of option {name} is no text, number or truth value"
        )
        try:
            built = build(plugin.kind, plugin.provider, {name: str(default)})
        except PluginError as error:
            raise AssertionError(f"option {name} cannot be given as its own default, {default}: {error}") from error
        require(built == by_default(plugin), f"option {name} given as its own default, {default}, makes {built!r}")


@check("", "builds_with_its_defaults")
def unknown_option_is_refused(plugin: Registered) -> None:
    """A misspelt option is an error, not something to be dropped."""
    unknown: dict[str, Any] = {"no_such_option": "1"}
    try:
        plugin.provider.factory(**unknown)
    except TypeError:
        return
    raise AssertionError("the factory takes an option that does not exist, no_such_option=1")


@check("", "builds_with_its_defaults")
def implementation_is_immutable(plugin: Registered) -> None:
    """No attribute can be set on the implementation, and two made alike are equal."""
    implementation = by_default(plugin)
    for name in (*_options(plugin), "no_such_attribute"):
        try:
            setattr(implementation, name, getattr(implementation, name, None))
        except (AttributeError, TypeError):
            continue
        raise AssertionError(f"attribute {name} of {type(implementation).__name__} can be set; use a frozen dataclass")
    again = by_default(plugin)
    require(by_default(plugin) == again, "two made with the same options are not equal; use a frozen dataclass")


@check("", "builds_with_its_defaults")
def implementation_can_be_pickled(plugin: Registered) -> None:
    """The implementation reaches another process as it is."""
    try:
        again = pickle.loads(pickle.dumps(by_default(plugin)))
    except Exception as error:
        raise AssertionError(f"it cannot be pickled and read back: {error}") from error
    require(type(again) is type(by_default(plugin)), f"it comes back from pickling as a {type(again).__name__}")


@check("", "builds_with_its_defaults")
def building_uses_no_global_randomness(plugin: Registered) -> None:
    """Making the implementation neither draws from nor seeds a generator that others share."""
    with global_randomness_unused():
        by_default(plugin)
