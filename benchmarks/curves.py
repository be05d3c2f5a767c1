"""What the sample-efficiency suite found: criteria with their costs and seeds, as a table and as a picture."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyprune_core.report.columns import number, short
from polyprune_core.results.statistics import Sample, paired, sample

TOKENS = (10_000, 30_000, 100_000, 300_000, 1_000_000)
PERPLEXITIES = (60, 70, 80, 100, 120, 150, 200, 300, 500, 700, 1000)
FEWER = (60, 100, 200, 500, 1000, 2000, 5000, 10_000)


@dataclass(frozen=True)
class Criterion:
    """One way to prune at one sparsity and cost: nats per token by seed; forward and backward passes of one seed."""

    name: str
    searched: bool
    forward_tokens: int
    backward_passes: int
    nll: dict[int, float]

    @property
    def metric(self) -> str:
        """The first word of its name."""
        return self.name.split()[0]

    @property
    def place(self) -> tuple[bool, float, float]:
        """Where it stands in a table."""
        mean = self.spread.mean
        return (True, self.forward_tokens, -mean) if self.searched else (False, mean, 0.0)

    @property
    def spread(self) -> Sample:
        """Nats per token over seeds."""
        return sample(list(self.nll.values()))


def criteria(record: dict[str, Any], sparsity: float) -> list[Criterion]:
    """Returns the metrics and searches of a record at one sparsity; a metric's seeds are taken from all comparisons."""
    rows = {row["id"]: row for row in record["rows"]}
    found: dict[tuple[Any, ...], Criterion] = {}
    for comparison in record["comparisons"].values():
        for row in (rows[key] for key in comparison["rows"]):
            if row["sparsity"] == sparsity and row["kind"] in ("baseline", "search") and row["nll"] is not None:
                name = _name(row, comparison["config"])
                cost = row["forward_tokens"], row["backward_passes"]
                key = (name, row["forward_tokens"])
                found.setdefault(key, Criterion(name, row["kind"] == "search", *cost, {})).nll[row["seed"]] = row["nll"]
    return list(found.values())


def _name(row: dict[str, Any], config: dict[str, Any]) -> str:
    if row["kind"] == "search":
        preset = "" if config["preset"] == "default" else f", {config['preset']}"
        return f"{row['initializer']} → {config['policy']}, {row['estimator']}{preset}"
    pooled = "per layer" if row["scope"] == "layer" else f"{row['scope']}, {row['scale']}"
    return f"{row['initializer']} ({pooled})"


def table(record: dict[str, Any], sparsity: float, shown: Callable[[Criterion], bool] = lambda each: True) -> str:
    """Returns a Markdown table of the criteria `shown` at one sparsity: metrics by loss, then searches by cost.

    Excess: nats per token over the dense model, as a share of the best metric's. The last column is the ratio of
    perplexities to the best metric's, paired by seed, with its 95 % t interval.
    """
    dense = next(row["nll"] for row in record["rows"] if row["kind"] == "dense")
    found = criteria(record, sparsity)
    best = in_its_best_pooling(found)[0]
    head = ("criterion", "forward tokens", "backward passes", "perplexity", "n", "excess", "against the best metric")
    lines = [f"| {' | '.join(head)} |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for each in sorted(filter(shown, found), key=lambda each: each.place):
        mean = each.spread.mean
        cells = [each.name, short(each.forward_tokens), short(each.backward_passes), number(math.exp(mean))]
        cells += [
            str(each.spread.n),
            f"{(mean - dense) / (best.spread.mean - dense):.0%}",
            "" if each is best else beside(each.nll, best.nll),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def in_its_best_pooling(found: list[Criterion]) -> list[Criterion]:
    """Returns each metric once, in its best pooling; the best metric first."""
    ranked = sorted((each for each in found if not each.searched), key=lambda each: each.place)
    return sorted({each.metric: each for each in reversed(ranked)}.values(), key=lambda each: each.place)


def beside(nll: dict[int, float], reference: dict[int, float]) -> str:
    """Returns the ratio of perplexities with its 95 % t interval, over the seeds that both have; nothing if none."""
    seeds = sorted(nll.keys() & reference.keys())
    if not seeds:
        return ""
    found = paired([nll[seed] for seed in seeds], [reference[seed] for seed in seeds])
    return f"×{found.ratio:.3f}" + (f" ({found.ci95[0]:.3f} to {found.ci95[1]:.3f})" if found.ci95 else "")


def draw(record: dict[str, Any], path: Path) -> None:
    """Writes the picture: perplexity against forward tokens, one panel a sparsity, the best metrics as levels."""
    from matplotlib import pyplot

    pyplot.rcParams["svg.hashsalt"] = "polyprune"
    dense = next(row["perplexity"] for row in record["rows"] if row["kind"] == "dense")
    sparsities = sorted({row["sparsity"] for row in record["rows"] if row["kind"] == "search"})
    down = math.ceil(len(sparsities) / 2)
    figure, panels = pyplot.subplots(down, 2, figsize=(9, 3.6 * down + 0.6), squeeze=False, layout="constrained")
    names = list(dict.fromkeys(each.name for s in sparsities for each in criteria(record, s) if each.searched))
    for panel, sparsity in zip(panels.flat, sparsities, strict=False):
        found = criteria(record, sparsity)
        for name in names:
            line = sorted((c for c in found if c.name == name), key=lambda c: c.forward_tokens)
            if line:
                _line(panel, line, _style(name, names))
        levels = {"dense": dense} | {c.name: math.exp(c.spread.mean) for c in in_its_best_pooling(found)[:2]}
        for (name, level), side in zip(levels.items(), ("bottom", "top", "bottom"), strict=False):
            panel.axhline(level, color="0.5", lw=0.8, ls="--")
            panel.annotate(name, (0.99, level), xycoords=("axes fraction", "data"), ha="right", va=side, fontsize=7)
        highest = max([math.exp(c.spread.mean) for c in found if c.searched] + list(levels.values()))
        panel.set(xscale="log", yscale="log", title=f"sparsity {sparsity:g}", xlim=(1e4, 2e6))
        panel.set_xticks(TOKENS, map(short, TOKENS))
        ticks = FEWER if highest > 20 * dense else PERPLEXITIES
        panel.set_yticks(ticks, map(str, ticks))
        panel.minorticks_off()
        panel.set_ylim(dense * 0.9, highest * 1.3)
    for panel in panels[-1]:
        panel.set_xlabel("forward tokens")
    for panel in panels.flat[len(sparsities) :]:
        panel.remove()
    figure.supylabel("perplexity on the test split", fontsize=10)
    legend = _legend(panels.flat[: len(sparsities)])
    figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=3, fontsize=7)
    figure.savefig(path, metadata={"Date": None})


def _line(panel: Any, line: list[Criterion], style: dict[str, Any]) -> None:
    """Means with 95 % t intervals of log-perplexity over seeds."""
    spreads = [each.spread for each in line]
    values = [math.exp(spread.mean) for spread in spreads]
    ends = [spread.ci95 if spread.ci95 and spread.n > 2 else (spread.mean, spread.mean) for spread in spreads]
    below = [value - math.exp(low) for value, (low, _) in zip(values, ends, strict=True)]
    above = [math.exp(high) - value for value, (_, high) in zip(values, ends, strict=True)]
    panel.errorbar([each.forward_tokens for each in line], values, [below, above], ms=4, capsize=2, **style)


def _style(name: str, names: list[str]) -> dict[str, Any]:
    """A colour and a marker of its own; estimators on keep probabilities share grey points, as they hardly differ."""
    own = [each for each in names if "→ probabilities" not in each]
    if name not in own:
        label = f"{name.split(',')[0]}, all estimators"
        return {"color": "0.7", "marker": ".", "ls": "none", "lw": 0.6, "zorder": 1, "label": label}
    index = own.index(name)
    return {"color": f"C{index % 10}", "marker": "os^Dvx"[index % 6], "lw": 1.2, "label": name}


def _legend(panels: Any) -> dict[str, Any]:
    return {label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
