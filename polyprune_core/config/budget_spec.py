"""What a budget asks for: so much of a currency, as a fraction or as an amount."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from polyprune_core.errors import BudgetError, unknown_name

COUNTS = {"k": 1e3, "M": 1e6, "B": 1e9}
BYTES = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
# The units in which an amount can be given; a currency without any is given as a fraction only.
UNITS: dict[str, dict[str, float]] = {"parameters": COUNTS, "bytes": BYTES, "kv-cache": BYTES, "latency": {}}
EXAMPLES = {"parameters": "100M", "bytes": "200MB", "kv-cache": "20kB"}


@dataclass(frozen=True)
class BudgetSpec:
    """How much a pruned model may hold or take at most.

    `amount` is a fraction where `relative`: of the prunable parameters for `parameters`, otherwise of the whole dense
    model's. If not relative it counts the whole pruned model: parameters, bytes of its weights, or bytes of KV cache
    per token.
    """

    currency: str
    amount: float
    relative: bool = True

    @classmethod
    def parse(cls, text: str) -> BudgetSpec:
        """Reads "kv-cache=0.7" or "bytes=200MB"; a bare number of at most 1 is a fraction.

        Raises:
            BudgetError: no such currency or unit, or a fraction that is not above 0 and below 1.
        """
        currency, equals, value = (part.strip() for part in text.partition("="))
        currency = currency.lower().replace("_", "-")
        if not equals and currency not in UNITS:
            raise BudgetError(f"budget {text!r} has no currency; give CURRENCY=AMOUNT, such as parameters=0.7.")
        if currency not in UNITS:
            raise BudgetError(unknown_name("budget currency", currency, UNITS))
        units = UNITS[currency]
        match = re.fullmatch(r"(\d+\.?\d*|\.\d+)(?:[eE]([+-]?\d+))?\s*([A-Za-z]*)", value)
        if not match or (match[3] and match[3].lower() not in {unit.lower() for unit in units}):
            raise BudgetError(f"budget {text!r} cannot be read; {_examples(currency)}.")
        number = float(f"{match[1]}e{match[2] or 0}")
        if match[3]:
            scale = next(size for unit, size in units.items() if unit.lower() == match[3].lower())
            return cls(currency, number * scale, relative=False)._checked()
        return cls(currency, number, relative=number <= 1 or not units)._checked()

    @classmethod
    def of_sparsity(cls, sparsity: float) -> BudgetSpec:
        """The budget that removes this fraction of the prunable parameters."""
        return cls("parameters", round(1 - sparsity, 12))

    @property
    def sparsity(self) -> float | None:
        """The fraction of the prunable parameters that it removes, where that is what it says."""
        return round(1 - self.amount, 12) if self.currency == "parameters" and self.relative else None

    def __str__(self) -> str:
        return f"{self.currency}={self.words(self.amount, 12)}"

    def words(self, amount: float, digits: int = 4) -> str:
        """Returns an amount of this target's kind as it could be asked for."""
        if self.relative:
            return f"{amount:.{digits}g}"
        scales = {unit: size for unit, size in UNITS[self.currency].items() if "i" not in unit}
        unit = max((u for u in scales if scales[u] <= amount), key=scales.__getitem__, default="")
        return f"{amount / scales.get(unit, 1.0):.{digits}g}{unit}"

    def at_least(self, amount: float) -> str:
        """Returns a budget just above `amount`, as advice: three decimals of a fraction, four digits of an amount."""
        step = 1e-3 if self.relative else 10.0 ** (math.floor(math.log10(max(amount, 1.0))) - 3)
        return f"{self.currency}={self.words(math.ceil(amount / step - 1e-9) * step)}"

    def _checked(self) -> BudgetSpec:
        if self.relative and not 0 < self.amount < 1:
            raise BudgetError(
                f"budget {self.currency}={self.amount:g} is not a fraction to keep; {_examples(self.currency)}."
            )
        return self


def _examples(currency: str) -> str:
    fraction = f"give a fraction above 0 and below 1 such as {currency}=0.7"
    return f"{fraction}, or an amount such as {currency}={EXAMPLES[currency]}" if currency in EXAMPLES else fraction


def check_sparsity(sparsity: float) -> float:
    """Returns `sparsity`, or raises BudgetError unless it lies strictly between 0 and 1."""
    if not (math.isfinite(sparsity) and 0.0 < sparsity < 1.0):
        raise BudgetError(
            f"sparsity {sparsity:g} is not a fraction to remove; give a number above 0 and below 1, for example 0.2."
        )
    return sparsity
