"""The results of a comparison as an object for notebooks: a table, a DataFrame, a chart, and its pruned models."""

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

    from polyprune_core.runs.pruning_result import PruningResult


class ComparisonResults(Results):
    """The results of a comparison: its measured `rows`, their `summaries()` over seeds, and the settings of the run.

    Notebooks and Python shells show it as a table.
    """

    @classmethod
    def of(cls, results: Results) -> ComparisonResults:
        """Returns the same results as an object of this class, which has methods for notebooks."""
        return cls(**{field.name: getattr(results, field.name) for field in dataclasses.fields(Results)})

    def to_pandas(self) -> pandas.DataFrame:
        """Returns a DataFrame with one line for each row, and the columns of `polyprune report --format csv`.

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
        """Returns the summary with the lowest mean perplexity over its seeds, among pruned rows.

        The lowest mean may be due to chance. The attribute `best` of the summary that is returned says whether every
        other row at its sparsity is worse by more than the noise.

        Args:
            coordinates: conditions that the rows must meet, such as `sparsity=0.3` or `kind="search"`. A list of values
                allows any of them. Without conditions all pruned rows are considered.

        Raises:
            ConfigError: no finished row meets the conditions.
        """
        keep = {
            name: tuple(map(str, value)) if isinstance(value, list | tuple) else (str(value),)
            for name, value in coordinates.items()
        }
        groups = Arrangement(sort="perplexity", keep=keep).groups(self)
        ranked = [summary for _, group in groups for summary in group if summary.row.cell.kind != "dense"]
        if not ranked or ranked[0].perplexity is None:
            raise ConfigError(
                "no finished row of a pruned model meets these conditions; give others, or see `error` of the rows."
            )
        return ranked[0]

    def plot(self, axes: Axes | None = None) -> Axes:
        """Draws perplexity against sparsity with 95 % intervals over seeds, one line per criterion; returns the axes.

        Args:
            axes: the matplotlib axes to draw on. Without them a new figure is made.

        Raises:
            ConfigError: matplotlib is not installed, or no finished row can be drawn.
        """
        from polyprune_core.api.plot import trade_off

        return trade_off(self, axes)

    def pruned(self, row: Row | Summary | str, *, model: str | None = None) -> PruningResult:
        """Returns the pruned model of a row, made again from the decision that its cell stored, without a new search.

        Args:
            row: one of `rows`, the id of a row, or a summary, which stands for the first of its seeds.
            model: the name or folder of the dense model, if it has moved since the comparison.

        Raises:
            PolypruneError: there is no such row, the row has no pruned model, or the dense model cannot be loaded.
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
