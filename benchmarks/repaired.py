"""What the suite of repairs found: the excess loss that is left of each criterion by each repair, on every text."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from scipy.stats import kendalltau

from polyprune_core.report.columns import number, short

HEADLINE_LENGTH = 128
NONE = "none"


@dataclass(frozen=True)
class Line:
    """One criterion with one repair at one sparsity: nats over the dense model and KL to it, by text, over seeds."""

    criterion: str
    repair: str
    searched: bool
    excess: dict[str, float]
    kl: dict[str, float]
    perplexity: float
    seeds: int
    forward_tokens: int
    backward_passes: int


def texts(record: dict[str, Any]) -> list[str]:
    """Returns the names of the texts, the headline first."""
    return list(dict.fromkeys(each["text"] for row in record["rows"] for each in row["evaluations"]))


def lines(record: dict[str, Any], sparsity: float, seq_len: int = HEADLINE_LENGTH) -> list[Line]:
    """Returns the criteria of a record at one sparsity, each with its repairs."""
    found: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for row in record["rows"]:
        measured = any(each["seq_len"] == seq_len for each in row["evaluations"])
        if row["status"] != "ok" or row["sparsity"] != sparsity or row["kind"] == "start" or not measured:
            continue
        found.setdefault((_name(row), row["repair"]), {})[row["seed"]] = row
    return [_line(name, repair, list(rows.values()), seq_len) for (name, repair), rows in found.items()]


def _name(row: dict[str, Any]) -> str:
    return f"{row['initializer']} → {row['estimator']}" if row["estimator"] else str(row["initializer"])


def _line(name: str, repair: str, rows: list[dict[str, Any]], seq_len: int) -> Line:
    cut = [[each for each in row["evaluations"] if each["seq_len"] == seq_len] for row in rows]

    def means(what: str) -> dict[str, float]:
        return {same[0]["text"]: statistics.fmean(each[what] for each in same) for same in zip(*cut, strict=True)}

    return Line(
        name,
        repair,
        rows[0]["kind"] == "search",
        means("excess"),
        means("kl_to_dense"),
        statistics.fmean(each[0]["perplexity"] for each in cut),
        len(rows),
        rows[0]["forward_tokens"],
        rows[0]["backward_passes"],
    )


def best_metric(found: list[Line], text: str) -> Line:
    """Returns the metric without repair that loses least on a text, among those with the most seeds there are."""
    return min(
        (line for line in found if line.repair == NONE and not line.searched), key=lambda line: line.excess[text]
    )


def shares(record: dict[str, Any], sparsity: float, seq_len: int = HEADLINE_LENGTH) -> str:
    """Returns a Markdown table: what every row leaves of the excess loss, and of the KL, of the best metric alone."""
    found, names = lines(record, sparsity, seq_len), texts(record)
    if not any(line.repair == NONE and not line.searched for line in found):
        return "*not measured*"
    head = ["criterion", "repair", "n", "forward tokens", "backward passes", "perplexity"]
    head += [f"excess on {name}" for name in names] + [f"KL on {name}" for name in names]
    told = [f"| {' | '.join(head)} |", "|---|---" + "|---:" * (len(head) - 2) + "|"]
    best = {name: best_metric(found, name) for name in names}
    for line in sorted(found, key=lambda line: sum(line.excess.values())):
        share = [f"{line.excess[name] / best[name].excess[name]:.0%}" for name in names]
        share += [f"{line.kl[name] / min(each.kl[name] for each in best.values()):.0%}" for name in names]
        cost = [str(line.seeds), short(line.forward_tokens), str(line.backward_passes or ""), number(line.perplexity)]
        told.append(f"| {' | '.join([line.criterion, line.repair, *cost, *share])} |")
    return "\n".join(told)


def excesses(record: dict[str, Any], text: str) -> str:
    """Returns a Markdown table: nats over the dense model on one text, criteria by sparsities and repairs."""
    sparsities = sorted({row["sparsity"] for row in record["rows"] if row["sparsity"]})
    found = {(s, line.criterion, line.repair): line for s in sparsities for line in lines(record, s)}
    repairs = [name for name in (NONE, "bias", "least-squares") if any(key[2] == name for key in found)]
    columns = list(itertools.product(sparsities, repairs))
    told = ["| criterion | " + " | ".join(f"{s:g}, {repair}" for s, repair in columns) + " |"]
    told.append("|---" + "|---:" * len(columns) + "|")
    least = {column: min(found[key].excess[text] for key in found if (key[0], key[2]) == column) for column in columns}
    for name in dict.fromkeys(key[1] for key in found if "→" not in key[1]):
        cells = []
        for column in columns:
            line = found.get((column[0], name, column[1]))
            value = f"{line.excess[text]:.2f}" if line else ""
            cells.append(f"**{value}**" if line and line.excess[text] == least[column] else value)
        told.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(told)


def orders(record: dict[str, Any]) -> str:
    """Returns a Markdown table: how far the order of metrics by a repaired loss agrees with that without repair."""
    told = [
        "| sparsity | text | repair | metrics | Kendall's tau | best without | best with |",
        "|---:|---|---|---:|---:|---|---|",
    ]
    for sparsity in sorted({row["sparsity"] for row in record["rows"] if row["sparsity"]}):
        for text, repair, pairs in _pairs(record, sparsity):
            before, after = ([pair[i].excess[text] for pair in pairs] for i in (0, 1))
            tau = kendalltau(before, after).statistic
            best = [min(pairs, key=lambda pair, i=i: pair[i].excess[text])[0].criterion for i in (0, 1)]
            told.append(f"| {sparsity:g} | {text} | {repair} | {len(pairs)} | {tau:.2f} | {best[0]} | {best[1]} |")
    return "\n".join(told)


def _pairs(record: dict[str, Any], sparsity: float) -> Iterator[tuple[str, str, list[tuple[Line, Line]]]]:
    found = {(line.criterion, line.repair): line for line in lines(record, sparsity) if not line.searched}
    for text, repair in itertools.product(texts(record), ("bias", "least-squares")):
        pairs = [(found[name, NONE], line) for (name, made), line in found.items() if made == repair]
        if len(pairs) > 2:
            yield text, repair, pairs
