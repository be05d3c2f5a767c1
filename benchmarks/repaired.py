"""What the suite of repairs found: the excess loss that is left of each criterion by each repair, on every text."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

from polyprune_core.report.columns import number, short
from polyprune_core.results.statistics import evaluation_noise

HEADLINE_LENGTH = 128
NONE = "none"
Losses = NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    """One criterion with one repair at one sparsity: nats over the dense model and KL to it, by text, over seeds.

    `windows` are, by text, the nats over the dense model of every window, averaged over seeds. `ranges` are, by text,
    the least and the most nats over the dense model of a seed.
    """

    criterion: str
    repair: str
    searched: bool
    excess: dict[str, float]
    kl: dict[str, float]
    windows: dict[str, Losses]
    ranges: dict[str, tuple[float, float]]
    perplexity: float
    seeds: int
    forward_tokens: int
    backward_passes: int

    def mean(self, names: Sequence[str]) -> float:
        """Returns the excess over some texts together."""
        return statistics.fmean(self.excess[name] for name in names)


def texts(record: dict[str, Any]) -> list[str]:
    """Returns the names of the texts, the headline first."""
    return list(dict.fromkeys(each["text"] for row in record["rows"] for each in row["evaluations"]))


def mixed(record: dict[str, Any]) -> list[str]:
    """Returns the names of the texts that stand for one of the calibration mix; the last is in nobody's."""
    return texts(record)[:-1]


def lines(record: dict[str, Any], sparsity: float) -> list[Line]:
    """Returns the criteria of a record at one sparsity, each with its repairs.

    Of two runs of a seed the one is taken whose windows are known.
    """
    found: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    given = budgets(record)
    for row in sorted(record["rows"], key=lambda row: row["id"] not in record["windows"]):
        if row["status"] != "ok" or row["sparsity"] != sparsity or row["kind"] == "start" or not _places(row):
            continue
        name = (_name(row, given.get(row["id"])), row["repair"])
        found.setdefault(name, {}).setdefault(row["seed"], row)
    dense = _dense_windows(record)
    return [_line(record, name, repair, list(rows.values()), dense) for (name, repair), rows in found.items()]


def budgets(record: dict[str, Any]) -> dict[str, str]:
    """Returns the forward tokens that the search of each row was given, in words."""
    found = {}
    for comparison in record["comparisons"].values():
        config = comparison["config"]
        if config.get("estimators"):
            words = f"{short(config['forward_tokens'])} tokens{' at most' if config.get('early_stopping') else ''}"
            found |= dict.fromkeys(comparison["rows"], words)
    return found


def _name(row: dict[str, Any], budget: str | None) -> str:
    finer = "" if row["granularity"] == "head+channel" else f", {row['granularity'].split('+')[0]}s"
    if not row["estimator"]:
        # Of a metric that is told the sparsity there is one for every sparsity.
        alike = row["initializer"].removesuffix(f"={row['sparsity']:g}")
        return f"{alike}{finer}"
    return f"{row['initializer']} → {row['estimator']}{finer}, {budget}"


def _places(row: dict[str, Any]) -> list[int]:
    return [place for place, each in enumerate(row["evaluations"]) if each["seq_len"] == HEADLINE_LENGTH]


def _dense_windows(record: dict[str, Any]) -> dict[str, Losses]:
    """Returns, by row, the losses (evaluations, windows) of the dense model of its own comparison."""
    rows, found = {row["id"]: row for row in record["rows"]}, dict[str, Losses]()
    for comparison in record["comparisons"].values():
        dense = [name for name in comparison["rows"] if rows[name]["kind"] == "dense" and not rows[name]["repair"]]
        if dense and dense[0] in record["windows"]:
            found |= dict.fromkeys(comparison["rows"], np.array(record["windows"][dense[0]]))
    return found


def _line(record: dict[str, Any], name: str, repair: str, rows: list[dict[str, Any]], dense: dict[str, Losses]) -> Line:
    cut = [[row["evaluations"][place] for place in _places(row)] for row in rows]

    def by_seed(what: str) -> dict[str, list[float]]:
        return {same[0]["text"]: [each[what] for each in same] for same in zip(*cut, strict=True)}

    excess = by_seed("excess")
    told = [row["id"] for row in rows if row["id"] in record["windows"] and row["id"] in dense]
    beyond = [np.array(record["windows"][row]) - dense[row] for row in told]
    windows = {
        each["text"]: np.mean([losses[place] for losses in beyond], axis=0)
        for place, each in zip(_places(rows[0]), cut[0], strict=True)
        if len(told) == len(rows)
    }
    return Line(
        name,
        repair,
        rows[0]["kind"] == "search",
        {text: statistics.fmean(each) for text, each in excess.items()},
        {text: statistics.fmean(each) for text, each in by_seed("kl_to_dense").items()},
        windows,
        {text: (min(each), max(each)) for text, each in excess.items()},
        statistics.fmean(each[0]["perplexity"] for each in cut),
        len(rows),
        rows[0]["forward_tokens"],
        rows[0]["backward_passes"],
    )


def best_metric(found: list[Line], names: Sequence[str]) -> Line:
    """Returns the metric without repair that loses least on some texts together."""
    return min((line for line in found if line.repair == NONE and not line.searched), key=lambda line: line.mean(names))


def share(line: Line, best: Line, names: Sequence[str]) -> str:
    """Returns what a row leaves of the best metric's excess on some texts, and its 95 % interval over windows."""
    part = line.mean(names) / best.mean(names)
    told = f"{part:.0%}" if abs(part) >= 0.005 else "0%"
    if line is best or not all(name in line.windows and name in best.windows for name in names):
        return told
    left, squares = best.mean(names) * len(names), 0.0
    for name in names:
        ours, theirs = line.windows[name], best.windows[name]
        noise = evaluation_noise((ours - part * theirs)[None], np.zeros((1, len(ours))))
        squares += 0.0 if noise is None else (math.log(noise.ci95[1] / noise.ci95[0]) / 2) ** 2
    return f"{told} ± {100 * math.sqrt(squares) / left:.0f}"


def shares(record: dict[str, Any], sparsity: float, most: float = math.inf) -> str:
    """Returns a Markdown table: what every row leaves of the excess loss, and of the KL, of the best metric alone.

    `most`: the largest share on the texts of the mix that is told of.
    """
    found, names = lines(record, sparsity), texts(record)
    if not any(line.repair == NONE and not line.searched for line in found):
        return "*not measured*"
    head = ["criterion", "repair", "n", "forward tokens", "backward passes", "perplexity", "the mix"]
    head += names + [f"KL, {name}" for name in names]
    told = [f"| {' | '.join(head)} |", "|---|---" + "|---:" * (len(head) - 2) + "|"]
    best = {name: best_metric(found, [name]) for name in names}
    together = best_metric(found, mixed(record))
    for line in sorted(found, key=lambda line: line.mean(mixed(record))):
        if line.mean(mixed(record)) > most * together.mean(mixed(record)):
            continue
        cells = [share(line, together, mixed(record)), *(share(line, best[name], [name]) for name in names)]
        cells += [f"{line.kl[name] / min(each.kl[name] for each in best.values()):.0%}" for name in names]
        cost = [str(line.seeds), short(line.forward_tokens), str(line.backward_passes or ""), number(line.perplexity)]
        told.append(f"| {' | '.join([line.criterion, line.repair, *cost, *cells])} |")
    return "\n".join(told)


def lengths(record: dict[str, Any], sparsity: float) -> str:
    """Returns a Markdown table: nats over the dense model on every text, in windows of every length."""
    rows = [row for row in record["rows"] if row["status"] == "ok" and row["sparsity"] == sparsity]
    criteria = [row["initializer"] for row in rows]
    rows.sort(key=lambda row: criteria.index(row["initializer"]))
    places = list(dict.fromkeys((each["text"], each["seq_len"]) for row in rows for each in row["evaluations"]))
    told = ["| criterion | repair | " + " | ".join(f"{text}, {length:,}" for text, length in places) + " |"]
    told.append("|---|---" + "|---:" * len(places) + "|")
    for row in rows:
        excess = {(each["text"], each["seq_len"]): each["excess"] for each in row["evaluations"]}
        told.append(
            f"| {row['initializer']} | {row['repair']} | " + " | ".join(f"{excess[p]:.2f}" for p in places) + " |"
        )
    return "\n".join(told)


def mixes(record: dict[str, Any]) -> str:
    """Returns a Markdown table: nats over the dense model and KL to it on every text, by the calibration."""
    rows, names = {row["id"]: row for row in record["rows"]}, texts(record)
    head = ["calibrated on", "repair", *names, *(f"KL, {name}" for name in names)]
    told = [f"| {' | '.join(head)} |", "|---|---" + "|---:" * (len(head) - 2) + "|"]
    for comparison in record["comparisons"].values():
        for row in [rows[name] for name in comparison["rows"] if rows[name]["kind"] != "dense"]:
            cells = [f"{each[what]:.2f}" for what in ("excess", "kl_to_dense") for each in row["evaluations"]]
            told.append(f"| {' | '.join([comparison['config']['calibration'], row['repair'], *cells])} |")
    return "\n".join(told)


def headline(record: dict[str, Any], sparsity: float) -> str:
    """Returns a Markdown table of a few rows: the best metric alone, and what is left of its excess by what follows."""
    found, names = lines(record, sparsity), texts(record)
    best, other = best_metric(found, mixed(record)), best_metric(found, names[-1:])
    wanted = [best]
    for repair in ("least-squares", "sequential"):
        wanted += [line for line in found if (line.criterion, line.repair) == (best.criterion, repair)]
    searched = [line for line in found if line.searched and line.repair == "sequential"]
    wanted += sorted(searched, key=lambda line: (-line.seeds, line.mean(mixed(record))))[:1]
    trained = [line for line in found if line.repair.startswith("distil")]
    trained = sorted(trained, key=lambda line: line.mean(mixed(record)))[:1]
    wanted += trained
    told = [
        "| criterion | repair | n | forward tokens | backward passes | perplexity | "
        "excess on the texts of the mix | on a third text |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for line in [*wanted, *_trained_dense(record, trained)]:
        cells = [line.criterion, line.repair, str(line.seeds)]
        cells += [short(line.forward_tokens), str(line.backward_passes or "")]
        cells += [number(line.perplexity), share(line, best, mixed(record)), share(line, other, names[-1:])]
        told.append(f"| {' | '.join(cells)} |")
    return "\n".join(told)


def _trained_dense(record: dict[str, Any], trained: list[Line]) -> Iterator[Line]:
    """Yields the dense model after the same training as a row."""
    dense = _dense_windows(record)
    for row in record["rows"]:
        if row["kind"] == "dense" and row["repair"] and row["repair"] in [line.repair for line in trained]:
            yield _line(record, "dense", row["repair"], [row], dense)


def excesses(record: dict[str, Any], text: str) -> str:
    """Returns a Markdown table: nats over the dense model on one text, criteria by sparsities and repairs."""
    sparsities = sorted({row["sparsity"] for row in record["rows"] if row["sparsity"]})
    found = {(s, line.criterion, line.repair): line for s in sparsities for line in lines(record, s)}
    repairs = [name for name in (NONE, "bias", "least-squares") if any(key[2] == name for key in found)]
    columns = list(itertools.product(sparsities, repairs))
    told = ["| criterion | " + " | ".join(f"{s:g}, {repair}" for s, repair in columns) + " |"]
    told.append("|---" + "|---:" * len(columns) + "|")
    metrics = {key: line for key, line in found.items() if not line.searched}
    least = {
        column: min(metrics[key].excess[text] for key in metrics if (key[0], key[2]) == column) for column in columns
    }
    for name in dict.fromkeys(key[1] for key in metrics):
        cells = []
        for column in columns:
            line = metrics.get((column[0], name, column[1]))
            value = f"{line.excess[text]:.2f}" if line else ""
            cells.append(f"**{value}**" if line and line.excess[text] == least[column] else value)
        told.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(told)


def seeds(record: dict[str, Any]) -> str:
    """Returns a Markdown table: the least and the most nats over the dense model of a seed, of metrics with several."""
    names = texts(record)
    told = [
        f"| sparsity | criterion | repair | n | {' | '.join(names)} |",
        "|---:|---|---|---:" + "|---:" * len(names) + "|",
    ]
    for sparsity in sorted({row["sparsity"] for row in record["rows"] if row["sparsity"]}):
        for line in lines(record, sparsity):
            if line.seeds > 1 and not line.searched:
                cells = [f"{least:.2f} to {most:.2f}" for least, most in (line.ranges[name] for name in names)]
                told.append(f"| {sparsity:g} | {line.criterion} | {line.repair} | {line.seeds} | {' | '.join(cells)} |")
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
