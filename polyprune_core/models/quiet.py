"""What a user sees while a model is fetched and read: our status lines, and none of the libraries' own noise."""

from __future__ import annotations

import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

Status = Callable[[str], None]
HEARTBEAT_SECONDS = 2.0
# By module: how it tells whether its bars are shown, how they are hidden and shown again.
BARS = {
    "transformers.utils.logging": ("is_progress_bar_enabled", "disable_progress_bar", "enable_progress_bar"),
    "huggingface_hub.utils": ("are_progress_bars_disabled", "disable_progress_bars", "enable_progress_bars"),
    "datasets.utils.logging": ("is_progress_bar_enabled", "disable_progress_bar", "enable_progress_bar"),
}


def silent(text: str) -> None:
    """A status receiver that shows nothing."""


@contextmanager
def heartbeat(status: Status, describe: Callable[[float], str]) -> Iterator[None]:
    """Sends `describe(seconds so far)` to status every two seconds while the block runs, from a thread of its own."""
    done = threading.Event()
    begun = time.monotonic()

    def beat() -> None:
        while not done.wait(HEARTBEAT_SECONDS):
            status(describe(time.monotonic() - begun))

    thread = threading.Thread(target=beat, name="polyprune-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def megabytes_in(folder: Path) -> float:
    """The size of the ordinary files under folder, in 10^6 bytes; files that vanish meanwhile count as nothing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size if path.is_file() and not path.is_symlink() else 0
        except OSError:
            continue
    return total / 1e6


@contextmanager
def no_bars() -> Iterator[None]:
    """Hides the progress bars of transformers, the hub client and datasets while the block runs, then restores them.

    A library that is not loaded by then is left alone.
    """
    with ExitStack() as undo:
        for name, (told, hide, show) in BARS.items():
            module: Any = sys.modules.get(name)
            if module is not None and getattr(module, told)() == (told.startswith("is_")):
                undo.callback(getattr(module, show))
                getattr(module, hide)()
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Hides progress bars and warnings of transformers and the hub client while the block runs, then restores them."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    transformers_logging: Any = logging

    with ExitStack() as undo, no_bars():
        undo.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for log in (transformers_logging, hub_logging):
            undo.callback(log.set_verbosity, log.get_verbosity())
            log.set_verbosity_error()
        yield
