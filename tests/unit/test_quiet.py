"""Progress bars of libraries: hidden while we work, shown again after."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import datasets.utils.logging
import huggingface_hub.utils
import pytest
import torch
import transformers.utils.logging

from polyprune_core import Provider
from polyprune_core.models.quiet import no_bars, quiet
from polyprune_core.plugins.registry import Registered, Registry, Source


def shown() -> list[bool]:
    return [
        transformers.utils.logging.is_progress_bar_enabled(),
        not huggingface_hub.utils.are_progress_bars_disabled(),
        datasets.utils.logging.is_progress_bar_enabled(),
    ]


@pytest.mark.parametrize("hiding", [no_bars, quiet])
def test_bars_are_hidden_and_then_as_they_were(hiding) -> None:
    before = shown()
    with hiding():
        assert shown() == [False, False, False]
    assert shown() == before


def test_a_plugin_that_reads_or_writes_models_draws_none() -> None:
    class Seeing:
        def export(self, pruned: Any) -> None:
            raise RuntimeError(f"bars: {shown()}")

        def load(self) -> None:
            raise NotImplementedError

    pruned = SimpleNamespace(base=SimpleNamespace(model=torch.nn.Linear(1, 1)))
    registry = Registry([Registered("exporter", Provider("seeing", "for a test", Seeing), Source("a", "1"))], [])
    with pytest.raises(Exception, match=r"bars: \[False, False, False\]"):
        registry.build("exporter", "seeing").export(pruned)
