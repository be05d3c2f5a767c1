"""Modules with one fault each that stops them, or one of their plugins, from being loaded."""

from __future__ import annotations

HEADER = """
from dataclasses import dataclass
from polyprune_core import Provider, hookimpl, initializer

@dataclass(frozen=True)
class Sound:
    def score(self, model, space, calibration):
        return space.sum_weights(lambda name: model.get_parameter(name).abs())
"""
HOOK = """
@hookimpl
def polyprune_initializers():
    {body}
"""


def _hook(body: str) -> str:
    return HOOK.format(body=body)


# What stands in the module, and what polyprune says of it.
FAULTS: dict[str, tuple[str, str]] = {
    "import-error": ("from polyprune_core import NoSuchName", "ImportError: cannot import name 'NoSuchName'"),
    "missing-dependency": ("import a_library_that_is_not_here", "ModuleNotFoundError: No module named 'a_library"),
    "syntax-error": ("def broken(:", "SyntaxError: invalid syntax"),
    "ends-the-program": ("raise SystemExit(0)", "SystemExit: 0"),
    "mistyped-hook": ("@hookimpl\ndef polyprune_initialisers():\n    return []", "polyprune_initialisers"),
    "hook-with-an-argument": ("@hookimpl\ndef polyprune_initializers(model):\n    return []", "{'model'}"),
    "unmarked-hook": ("def polyprune_initializers():\n    return []", "registers no plugin"),
    "no-hook": ("answer = 42", "registers no plugin"),
    "hook-raises": (_hook("raise ValueError('no GPU')"), "polyprune_initializers: ValueError: no GPU"),
    "hook-returns-nothing": (_hook("pass"), "TypeError: 'NoneType' object is not iterable"),
    "no-provider": (_hook("yield Sound"), "yields a type where a Provider is needed"),
    "untypable-name": (_hook("yield Provider('My Metric', 'x', Sound)"), "'My Metric' is not lower-case words"),
    "summary-is-no-text": (
        _hook("yield Provider('mine', None, Sound)"),
        "summary and reference of 'mine' are not text",
    ),
    "factory-is-no-factory": (_hook("yield Provider('mine', 'x', Sound())"), "factory of 'mine' is not callable"),
    "unknown-need": (_hook("yield Provider('mine', 'x', Sound, needs={'gpu'})"), "needs of 'mine' are {'gpu'}"),
    "name-twice": (
        _hook("yield Provider('mine', 'x', Sound); yield Provider('mine', 'y', Sound)"),
        "initializer 'mine' is provided by broken 0 and by broken 0",
    ),
    "function-asks-for-more": (
        "@initializer('mine')\ndef mine(weight, activations):\n    return weight",
        "TypeError: parameter 'activations' is not one of weight, input_norm, gradient",
    ),
}
