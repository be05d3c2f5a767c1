"""The option `max_shard_size`, which exporters of transformers' folders share."""

from __future__ import annotations

import re

from polyprune_core import ConfigError


def check_shard_size(size: str, exporter: str) -> None:
    """Raises ConfigError unless `size` is one that transformers reads, such as 5GB or 1.5MB."""
    if not re.fullmatch(r"\d+(\.\d+)?[KMGT]B", size, re.IGNORECASE):
        raise ConfigError(
            f"{exporter}: option max_shard_size={size!r} is no size; give a number with KB, MB, GB or TB, such as 5GB."
        )
