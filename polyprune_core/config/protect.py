"""Layers that are left whole, counted from both ends of the model."""

from __future__ import annotations

from dataclasses import dataclass

from polyprune_core.errors import ConfigError

ENDS = ("first", "last")


@dataclass(frozen=True)
class Protect:
    """The `first` and the `last` so many decoder layers lose no unit."""

    first: int = 0
    last: int = 0

    @classmethod
    def parse(cls, text: str | None) -> Protect:
        """Reads "first=4,last=2", of which one may be left out; None protects nothing.

        Raises:
            ConfigError: it names another end, or is no whole number.
        """
        found: dict[str, int] = {}
        for part in text.split(",") if text is not None else ():
            end, _, value = (word.strip() for word in part.partition("="))
            if end not in ENDS or end in found or not value.isdecimal() or len(value) > 6:
                raise ConfigError(
                    f"--protect {text} does not say which layers are left whole; give first=N, last=N or both, as "
                    "first=4,last=2."
                )
            found[end] = int(value)
        return cls(**found)

    def __str__(self) -> str:
        return ",".join(f"{end}={getattr(self, end)}" for end in ENDS if getattr(self, end))

    def __bool__(self) -> bool:
        return bool(self.first or self.last)

    def covers(self, layer: int, layers: int) -> bool:
        """Whether a layer of a model of so many is left whole."""
        return layer < self.first or layer >= layers - self.last


NOTHING = Protect()
