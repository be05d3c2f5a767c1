"""The numbers of units that a layer may keep, as they are asked for: multiples by kind, and what a target holds."""

from __future__ import annotations

import re
from dataclasses import dataclass

from polyprune_core.errors import ConfigError

FREE = "none"
PART = re.compile(r"\s*([a-z][a-z-]*)\s*=\s*([1-9]\d{0,5})\s*")
FOR = " for "


@dataclass(frozen=True)
class ShapesSpec:
    """`multiple_of`: kinds of unit with the number that is kept in multiples of; `target`: an exporter's spec."""

    multiple_of: tuple[tuple[str, int], ...] = ()
    target: str | None = None

    @classmethod
    def of(cls, multiples: str | None, target: str | None) -> ShapesSpec:
        """Reads "channel=32,head=1" and a target; `none` and None ask for nothing.

        Raises:
            ConfigError: a multiple is not KIND=N, or a kind stands twice.
        """
        found: dict[str, int] = {}
        for part in multiples.split(",") if multiples is not None and multiples != FREE else ():
            match = PART.fullmatch(part.lower().replace("_", "-"))
            if match is None or match[1] in found:
                raise ConfigError(
                    f"--multiple-of {multiples} does not say what widths are multiples of; give KIND=N, each kind "
                    "once, as channel=32 or channel=32,head=1. A grid takes several, as none/channel=32."
                )
            found[match[1]] = int(match[2])
        return cls(tuple(found.items()), None if target in (None, FREE) else target)

    @classmethod
    def parse(cls, text: str | None) -> ShapesSpec:
        """Reads what `str` gives; None asks for nothing."""
        multiples, _, target = (text or "").rpartition(FOR)
        if not multiples and PART.fullmatch(target.split(",")[0]):
            return cls.of(target, None)
        return cls.of(multiples or None, target or None)

    @property
    def multiples(self) -> str | None:
        """The multiples as they are asked for."""
        return ",".join(f"{kind}={number}" for kind, number in self.multiple_of) or None

    def words(self) -> str:
        """Returns it for people."""
        told = [f"{kind} in multiples of {number}" for kind, number in self.multiple_of]
        return ", ".join(told + ([f"what {self.target} holds"] if self.target else []))

    def __str__(self) -> str:
        return FOR.join(filter(None, (self.multiples, self.target)))

    def __bool__(self) -> bool:
        return bool(self.multiple_of or self.target)


def normal_multiples(text: str) -> str:
    """Returns "channel=32,head=1" as a cell writes it, or "none"."""
    return ShapesSpec.of(text, None).multiples or FREE
