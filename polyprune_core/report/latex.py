"""LaTeX tables in the style of booktabs; ✓ and ✗ are set as + and −."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from polyprune_core.report.arrange import AS_RUN, Arrangement
from polyprune_core.report.columns import on_paper
from polyprune_core.report.sheet import Cell, Sheet, summary_sheet
from polyprune_core.results.results import Results

NEEDS = "% needs \\usepackage{booktabs}"
SIGNS = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"$\sim$",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "→": r"$\rightarrow$",
    "×": r"$\times$",
    "±": r"$\pm$",
    "∇": r"$\nabla$",
    "✓": "+",
    "✗": r"$-$",
    "—": "---",
    "–": "--",
    "…": r"\dots{}",
} | {sign: f"\\{sign}" for sign in "&%$#_"}
TRANSLATION = str.maketrans(SIGNS)


def latex(results: Results, titles: Sequence[str] | None = None, arrangement: Arrangement = AS_RUN) -> str:
    """Returns the summary as a table environment: the columns `titles`, or those that a page has room for."""
    return latex_table(summary_sheet(results, arrangement, on_paper(results.summaries()) if titles is None else titles))


def latex_table(sheet: Sheet) -> str:
    """Returns a sheet as a table environment that needs the booktabs package only."""
    columns = len(sheet.head)
    lines = [
        NEEDS,
        r"\begin{table}",
        r"\centering\footnotesize",
        f"\\caption{{{escape(sheet.title)}.}}",
        f"\\begin{{tabular}}{{l{'r' * (columns - 1)}}}",
        r"\toprule",
        _line(map(escape, sheet.head)),
    ]
    for band in sheet.bands:
        lines.append(r"\midrule")
        if band.title:
            lines.append(f"\\multicolumn{{{columns}}}{{l}}{{\\emph{{{escape(band.title)}}}}} \\\\")
        lines += [_line(map(_text, row)) for row in band.rows]
    lines += [r"\bottomrule", r"\end{tabular}", "", r"\smallskip"]
    lines += [f"\\parbox{{\\linewidth}}{{{escape(sheet.caption)}}}", r"\end{table}"]
    return "\n".join(lines)


def escape(text: str) -> str:
    """Returns a text that LaTeX sets as it is."""
    return text.translate(TRANSLATION)


def _text(cell: Cell) -> str:
    return f"\\textbf{{{escape(cell.text)}}}" if cell.bold else escape(cell.text)


def _line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"
