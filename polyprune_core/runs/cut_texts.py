"""The texts of a run, cut into windows: what metrics, searches and repairs look at, and what models are measured on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

from torch import Tensor

from polyprune_core.config.settings import Settings
from polyprune_core.errors import ConfigError
from polyprune_core.evaluation.text import Text, Texts
from polyprune_core.evaluation.windows import (
    Cutter,
    held_back_windows,
    limits,
    other_windows,
    sample_windows,
    shared_runs,
)


@dataclass(frozen=True)
class CutText:
    """A text to evaluate on, its windows (N, T), and the share of them that is in the text calibrated on too."""

    text: Text
    windows: Tensor
    overlap: float

    @property
    def name(self) -> str:
        """What tells it from the others."""
        return f"{self.text.name} in windows of {self.windows.shape[1]}"


class CutTexts:
    """The windows of a run on one model.

    Attributes:
        calibration: (N, T) all that metrics draw from, and that searches go through.
        evaluated: every evaluation text at every length, in the order in which they were asked for.
    """

    def __init__(self, texts: Texts, settings: Settings, tokenizer: Any, model: Any) -> None:
        self.texts, self.settings = texts, settings
        self.cutter = Cutter.of(tokenizer, model, settings.bos)
        self.calibration = self.cutter.pool(texts.calibration, settings.seq_len, settings.calibration_samples)
        self.evaluated = tuple(
            self._evaluated(text, seq_len, limit)
            for text, (seq_len, limit) in product(
                texts.evaluations, limits(settings.eval_seq_len, settings.limit).items()
            )
        )

    def sample(self, seed: int) -> Tensor:
        """Returns the windows that a metric looks at."""
        return sample_windows(self.calibration, self.settings.calibration_samples, seed)

    def repair_sample(self, seed: int) -> Tensor:
        """Returns the windows that a repair looks at."""
        return sample_windows(self._repair_pool, self.settings.repair_samples, seed)

    def held_back(self, seed: int) -> Tensor:
        """Returns windows of the calibration text that no metric of this seed looks at.

        Raises:
            ConfigError: the metric looks at all of them.
        """
        asked, pool = self.settings, self.calibration
        windows = held_back_windows(pool, asked.calibration_samples, seed, asked.held_back)
        if not len(windows):
            raise ConfigError(
                f"the calibration text has {len(pool)} windows of {asked.seq_len} tokens, and a metric looks at all of "
                "them. None is left to hold back, which --scope auto, --scale auto and --early-stopping need. Give a "
                "longer text, a lower --calibration-samples or --seq-len, or both --scope and --scale, without "
                "--early-stopping."
            )
        return windows

    def learned_from(self, seed: int) -> Tensor:
        """Returns the windows that a search goes through: all, but those held back where it stops by them."""
        held = self.settings.held_back if self.settings.early_stopping else 0
        return other_windows(self.calibration, self.settings.calibration_samples, seed, held)

    @cached_property
    def _repair_pool(self) -> Tensor:
        asked = self.settings
        if len(self.calibration) >= asked.repair_samples:
            return self.calibration
        return self.cutter.pool(self.texts.calibration, asked.seq_len, asked.repair_samples)

    def _evaluated(self, text: Text, seq_len: int, limit: int | None) -> CutText:
        windows = self.cutter.windows(text, seq_len, limit)
        return CutText(text, windows, shared_runs(windows, self.calibration, self.cutter.beginning))
