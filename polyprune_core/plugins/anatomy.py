"""What a model is made of besides its numbers: its modules, their attributes, and the code that they run.

A weight is compared by its bits elsewhere. Here things are compared by identity: a forward that was replaced, a module
that was exchanged, a function of torch or transformers that is another one now.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

MISSING: Any = object()
LIBRARIES = ("torch", "torch.nn.functional", "torch._C._nn")
# Rotary embeddings of these kinds take on the length of the text that they last saw.
OF_THE_LAST_TEXT = ("dynamic", "longrope")
PLAIN = (bool, int, float, str, tuple, type(None))


class Anatomy:
    """A model and its code as they are now; `restore` brings them back to that."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        named = [(name, module) for name, module in model.named_modules() if not _follows_text(module)]
        self._modules = [(f"of {name or 'the model'}", module, type(module), _parts(module)) for name, module in named]
        config = getattr(model, "config", None)
        self._config, self._settings = config, copy.deepcopy(vars(config)) if config is not None else {}
        self._code = [(place, {n: v for n, v in vars(place).items() if _is_code(v)}) for place in _places(model)]

    def restore(self) -> list[str]:
        """Puts back what has changed since, and returns what that was."""
        changed = [told for place, known in self._code for told in _restore_code(place, known)]
        for where, module, kind, parts in self._modules:
            if type(module) is not kind:
                module.__class__ = kind
                changed.append(f"the class {where}")
            changed += [f"{name} {where}" for name in _restore_parts(module, parts)]
        if self._config is not None and vars(self._config) != self._settings:
            vars(self._config).clear()
            vars(self._config).update(copy.deepcopy(self._settings))
            changed.append("the configuration of the model")
        return changed


def _parts(module: nn.Module) -> dict[str, tuple[Any, dict[Any, Any] | None]]:
    """Returns by name each attribute of a module, and of one that is a dictionary what it holds."""
    return {name: (value, dict(value) if isinstance(value, dict) else None) for name, value in vars(module).items()}


def _restore_parts(module: nn.Module, parts: dict[str, tuple[Any, dict[Any, Any] | None]]) -> list[str]:
    own = vars(module)
    changed = [name for name in own if name not in parts]
    for name in changed:
        del own[name]
    for name, (value, held) in parts.items():
        if not _same(own.get(name, MISSING), value):
            own[name] = value
            changed.append(name)
        if held is not None and _other(name, value, held):
            changed += _other(name, value, held)
            value.clear()
            value.update(held)
    return changed


def _other(name: str, now: Mapping[Any, Any], before: Mapping[Any, Any]) -> list[str]:
    """Returns which entries of a module's dictionary are others than before; buffers are compared by their bits."""
    if name == "_buffers":
        return [str(key) for key in {*now, *before} if (now.get(key) is None) != (before.get(key) is None)]
    keys = dict.fromkeys([*before, *now])
    differ = [key for key in keys if not _same(now.get(key, MISSING), before.get(key, MISSING))]
    return [str(key) if name in ("_parameters", "_modules") else name.strip("_") for key in differ]


def _same(now: Any, before: Any) -> bool:
    return now is before or (isinstance(before, PLAIN) and type(now) is type(before) and bool(now == before))


def _follows_text(module: nn.Module) -> bool:
    return getattr(module, "rope_type", None) in OF_THE_LAST_TEXT


def _places(model: nn.Module) -> list[Any]:
    """Returns the namespaces whose code a model and its evaluation run: classes, their modules, libraries, our own."""
    classes = dict.fromkeys(base for module in model.modules() for base in type(module).__mro__ if base is not object)
    names = [*LIBRARIES, *(kind.__module__ for kind in classes)]
    ours = [name for name in sys.modules if name.partition(".")[0] == "polyprune_core"]
    modules = [sys.modules[name] for name in dict.fromkeys([*names, *ours]) if name in sys.modules]
    return [*classes, sys.modules["torch"].Tensor, *modules]


def _is_code(value: Any) -> bool:
    return callable(value) or isinstance(value, (property, staticmethod, classmethod))


def _restore_code(place: Any, known: Mapping[str, Any]) -> list[str]:
    now = vars(place)
    changed = [name for name, value in known.items() if now.get(name, MISSING) is not value]
    # What is new in a class shadows what it inherits; modules take in new names all the time.
    new = [] if isinstance(place, ModuleType) else [n for n, v in now.items() if n not in known and _is_code(v)]
    for name in changed:
        setattr(place, name, known[name])
    for name in new:
        delattr(place, name)
    return [f"{_name(place)}.{name}" for name in (*changed, *new)]


def _name(place: Any) -> str:
    return str(place.__name__ if isinstance(place, ModuleType) else f"{place.__module__}.{place.__qualname__}")
