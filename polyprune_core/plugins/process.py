"""Settings of the whole process that a plugin must leave as they are: they would change what others compute."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from polyprune_core.errors import PluginError


def _put_device(torch: Any, device: Any) -> None:
    """Sets the default device; none at all is the processor without a detour for every function, where that works."""
    torch.set_default_device(None if device == torch.device("cpu") else device)
    try:
        torch.get_default_device()
    except AttributeError:  # torch 2.9 takes None, and then cannot say what the default is
        torch.set_default_device(device)


Setting = tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]
# By name: how it is read, and how it is set.
SETTINGS: dict[str, Setting] = {
    "torch's default dtype": (lambda t: t.get_default_dtype(), lambda t, v: t.set_default_dtype(v)),
    "torch's default device": (lambda t: t.empty(0).device, _put_device),
    "torch's number of threads": (lambda t: t.get_num_threads(), lambda t, v: t.set_num_threads(v)),
    "torch's deterministic algorithms": (
        lambda t: (t.are_deterministic_algorithms_enabled(), t.is_deterministic_algorithms_warn_only_enabled()),
        lambda t, v: t.use_deterministic_algorithms(v[0], warn_only=v[1]),
    ),
    "the precision of torch's products": (
        lambda t: t.get_float32_matmul_precision(),
        lambda t, v: t.set_float32_matmul_precision(v),
    ),
    "torch's gradient mode": (lambda t: t.is_grad_enabled(), lambda t, v: t.set_grad_enabled(v)),
}
# What torch begins with, where a plugin is the first to import it; the number of threads is the machine's.
FIRST = {
    "torch's default dtype": lambda t: t.float32,
    "torch's default device": lambda t: t.device("cpu"),
    "torch's deterministic algorithms": lambda t: (False, False),
    "the precision of torch's products": lambda t: "highest",
    "torch's gradient mode": lambda t: True,
}


@contextmanager
def settings_kept(blame: str) -> Iterator[None]:
    """Raises PluginError if the block leaves a setting of the process changed; it is put back."""
    torch, where = sys.modules.get("torch"), _folder()
    before = {name: read(torch) for name, (read, _) in SETTINGS.items()} if torch else None
    changed = []
    try:
        yield
    finally:
        torch = sys.modules.get("torch")
        if torch is not None and hasattr(torch, "get_default_dtype"):
            known = before or {name: first(torch) for name, first in FIRST.items()}
            for name, value in known.items():
                read, put = SETTINGS[name]
                if read(torch) != value:
                    put(torch, value)
                    changed.append(name)
        if where and _folder() != where:
            os.chdir(where)
            changed.append("the working directory")
    if changed:
        raise PluginError(f"{blame} changed {' and '.join(changed)} for everybody; it was put back.")


def _folder() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""
