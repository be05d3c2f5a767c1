"""Results as an object for notebooks: shown as a table, turned into a DataFrame, a chart, or one of its models."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from polyprune_core.errors import ConfigError, unknown_name
from polyprune_core.report.arrange import Arrangement
from polyprune_core.report.csvfile import flat
from polyprune_core.report.html import table_html
from polyprune_core.report.sheet import summary_sheet
from polyprune_core.report.terminal import drawn, shown_width, table
from polyprune_core.results.results import Results
from polyprune_core.results.row import Row
from polyprune_core.results.summaries import Summary

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

    from polyprune_core.runs.prune import PruningResult


class ComparisonResults(Results):
    """What a comparison found: `rows` as measured, `summaries()` over their seeds, and what ran on what.

    A notebook shows it as a table, and so does a shell.
    """

    @classmethod
    def of(cls, results: Results) -> ComparisonResults:
        """Returns these results, with what is offered here."""
        return cls(**{field.name: getattr(results, field.name) for field in dataclasses.fields(Results)})

    def to_pandas(self) -> pandas.DataFrame:
        """Returns a DataFrame of one line a row, in the columns of `polyprune report --format csv`.

        Raises:
            ConfigError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ConfigError("to_pandas needs pandas, which is not installed: pip install pandas.") from error
        head, lines = flat(self)
        return pandas.DataFrame(lines, columns=head)

    def best(self, **coordinates: Any) -> Summary:
        """Returns the pruned rows of the lowest mean perplexity over their seeds, of all or of those asked for.

        It says nothing of chance: `.best` of what is returned says whether every other row at its sparsity is worse
        beyond the noise.

        Args:
            coordinates: what the rows must be, such as `sparsity=0.3` or `kind="search"`; one value or a list.

        Raises:
            ConfigError: no finished row is so.
        """
        keep = {
            name: tuple(map(str, value)) if isinstance(value, list | tuple) else (str(value),)
            for name, value in coordinates.items()
        }
        groups = Arrangement(sort="perplexity", keep=keep).groups(self)
        ranked = [summary for _, group in groups for summary in group if summary.row.cell.kind != "dense"]
        if not ranked or ranked[0].perplexity is None:
            raise ConfigError("no row of a pruned model that is asked for has finished; see error of the rows.")
        return ranked[0]

    def plot(self, axes: Axes | None = None) -> Axes:
        """Draws perplexity against sparsity, a line a criterion, with 95 % intervals over seeds; returns the axes.

        Args:
            axes: where to draw; without them a new figure is made.

        Raises:
            ConfigError: matplotlib is not installed, or nothing finished that could be drawn.
        """
        from polyprune_core.api.plot import trade_off

        return trade_off(self, axes)

    def pruned(self, row: Row | Summary | str, *, model: str | None = None) -> PruningResult:
        """Returns a row's pruned model, made again from what its cell kept; nothing is learned anew.

        Args:
            row: one of `rows`, its id, or a summary for the first of its seeds.
            model: where the dense model lies now, if not where it was.

        Raises:
            PolypruneError: there is no such row, it decided nothing, or the dense model cannot be had.
        """
        from polyprune_core.api.rebuild import rebuilt

        if isinstance(row, Summary):
            row = row.rows[0] if row.rows else row.row
        key = row if isinstance(row, str) else row.id
        rows = {each.id: each for each in self.rows}
        if key not in rows:
            raise ConfigError(unknown_name("row", key, rows))
        return rebuilt(self, rows[key], model)

    def __repr__(self) -> str:
        width = shown_width()
        return drawn(table(self, width), width)

    def _repr_html_(self) -> str:
        return table_html(summary_sheet(self))
