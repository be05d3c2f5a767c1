"""Decoder layers that lose no unit, counted from both ends of the model."""

from __future__ import annotations

from dataclasses import dataclass

from polyprune_core.errors import ConfigError

ENDS = ("first", "last")


@dataclass(frozen=True)
class Protect:
    """Says how many decoder layers at the beginning (`first`) and at the end (`last`) of a model lose no unit."""

    first: int = 0
    last: int = 0

    @classmethod
    def parse(cls, text: str | None) -> Protect:
        """Reads a text such as "first=4,last=2", "first=4" or "last=2"; None protects no layer.

        Raises:
            ConfigError: the text names another end, or a number in it is not a whole number.
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
        """Returns whether layer number `layer`, counted from 0, of a model of `layers` layers is protected."""
        return layer < self.first or layer >= layers - self.last


NOTHING = Protect()
