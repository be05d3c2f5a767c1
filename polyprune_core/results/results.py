"""The results of a comparison: rows as measured, and their JSON form with the summary over seeds (schema 1)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from polyprune_core.results.row import Row, row_from_json
from polyprune_core.results.summaries import Summary, summarise
from polyprune_core.utils.numbers import finite

if TYPE_CHECKING:
    from polyprune_core.results.cell_file import Details

SCHEMA = 1


@dataclass(frozen=True)
class Results:
    """A comparison: what ran on what, its rows, and by row id what their cells hold beside them."""

    polyprune: str
    environment: dict[str, Any]
    config: dict[str, Any]
    model: dict[str, Any]
    texts: dict[str, Any]
    rows: list[Row]
    details: dict[str, Details] = field(default_factory=dict, repr=False, compare=False)

    def summaries(self) -> list[Summary]:
        """Groups rows over seeds, in the order in which they first appear."""
        return list(self._summaries)

    @cached_property
    def _summaries(self) -> list[Summary]:
        return summarise(self.rows, {key: found.window_nll for key, found in self.details.items()})

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values; a number that is not finite becomes null."""
        record: dict[str, Any] = finite(
            {
                "schema": SCHEMA,
                "polyprune": self.polyprune,
                "environment": self.environment,
                "config": self.config,
                "model": self.model,
                "texts": self.texts,
                "rows": [row.to_json() for row in self.rows],
                "summary": [summary.to_json() for summary in self.summaries()],
            }
        )
        return record

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Results:
        """Reads what `to_json` gave."""
        names = [f.name for f in dataclasses.fields(cls) if f.name not in ("rows", "details")]
        return cls(**{name: record[name] for name in names}, rows=[row_from_json(row) for row in record["rows"]])
