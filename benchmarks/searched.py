"""What searches found: curves over tokens, ablations, directions of gradients, and what a pass costs."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable
from typing import Any

from curves import beside, criteria, in_its_best_pooling, table
from records import SUITES, read

from polyprune_core.report import markdown
from polyprune_core.report.columns import number, short
from polyprune_core.results.results import Results


def estimators() -> str:
    """The comparison of metrics and estimators on SmolLM2-135M."""
    results = Results.from_json(read("estimators"))
    wanted = ("perplexity", "against its start", "n", "forward tokens", "backward passes", "KL to dense")
    return markdown(results, ("sparsity asked → got", *wanted))


def efficiency(sparsity: float, shown: Callable[[str], bool] = lambda name: "→ gaussian" in name) -> str:
    """Each metric in its best pooling, and the searches whose names are `shown`."""
    record = read("sample_efficiency")
    best = in_its_best_pooling(criteria(record, sparsity))
    return table(record, sparsity, lambda each: each in best or (each.searched and shown(each.name)))


def pooling(sparsity: float) -> str:
    """Every metric in every pooling."""
    return table(read("sample_efficiency"), sparsity, lambda each: not each.searched)


def free() -> str:
    """What every estimator makes of a keep probability for each unit, and its ratio to where all of them start."""
    record = read("sample_efficiency")
    rows = {row["id"]: row for row in record["rows"]}
    found: dict[tuple[float, int], dict[str, dict[int, float]]] = {}
    for comparison in (each for name, each in record["comparisons"].items() if name.startswith("probabilities")):
        for row in (rows[key] for key in comparison["rows"] if rows[key]["kind"] in ("start", "search")):
            column = found.setdefault((row["sparsity"], comparison["config"]["forward_tokens"]), {})
            column.setdefault(row["estimator"] or "no search", {})[row["seed"]] = row["nll"]
    columns = {key: found[key] for key in sorted(found)}
    seeds = [len(column["no search"]) for column in columns.values()]
    head = [f"{s:g}, {short(tokens)} tokens, n = {n}" for (s, tokens), n in zip(columns, seeds, strict=True)]
    lines = [f"| wanda → probabilities | {' | '.join(head)} |", "|---" + "|---:" * len(head) + "|"]
    for name in dict.fromkeys(name for column in columns.values() for name in column):
        cells = [_beside_start(column.get(name, {}), column["no search"]) for column in columns.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _beside_start(nll: dict[int, float], start: dict[int, float]) -> str:
    if not nll:
        return ""
    mean = number(math.exp(sum(nll.values()) / len(nll)), 1)
    return mean if nll is start else f"{mean}, {beside(nll, start)}"


def ablations() -> str:
    """Each change of the default search, its perplexities paired with the default's by seed."""
    record, suite = read("ablations"), tomllib.loads((SUITES / "ablations.toml").read_text("utf-8"))
    rows = {row["id"]: row for row in record["rows"]}
    found: dict[str, dict[int, float]] = {}
    for name, comparison in record["comparisons"].items():
        change = ", ".join(f"{key} {value}" for key, value in suite["runs"][name].items())
        for row in (rows[key] for key in comparison["rows"] if rows[key]["kind"] == "search"):
            what = f"estimator {row['estimator']}" if "estimators" in change else change or "default"
            found.setdefault(what, {})[row["seed"]] = row["nll"]
    default = found["default"]
    lines = ["| change | perplexity | n | against the default |", "|---|---:|---:|---:|"]
    for what, nll in found.items():
        told = "" if nll is default else beside(nll, default)
        mean = math.exp(sum(nll.values()) / len(nll))
        lines.append(f"| {what} | {mean:.1f} | {len(nll)} | {told} |")
    return "\n".join(lines)


def gradients() -> str:
    """How well the mean over 64 forward passes points along the gradient by logits, and what one pass is worth.

    Of ten units of `tiny`, whose gradient is known, and of SmolLM2-135M's heads, the only part known from zero.
    """
    found = read("estimator_variance")["results"]
    small, large = found["table"], found["smollm2-135m"]
    head = ("estimator", "ten units, start", "trained", "90 heads, start", "trained", "variance, start", "trained")
    lines = [f"| {' | '.join(head)} |", "|---" + "|---:" * (len(head) - 1) + "|"]
    unit = {point: _variance(large[point]["estimators"]["rloo, 16 masks"]) for point in ("start", "trained")}
    for name in large["start"]["estimators"]:
        if name.endswith(" 16 masks") or f"{name.split(',')[0]}, 16 masks" not in large["start"]["estimators"]:
            of_small, of_large = ([each[point]["estimators"][name] for point in unit] for each in (small, large))
            cells = [_cosine(each["unit"]) for each in of_small] + [_cosine(each["unit, head"]) for each in of_large]
            cells += [f"×{_variance(each) / unit[point]:.2g}" for point, each in zip(unit, of_large, strict=True)]
            lines.append(f"| {name.split(',')[0]} | {' | '.join(cells)} |")
    length = large["start"]["leave-one-out over the pool"]["unit"]
    size = f"{length['squared_length']:.1f} ± {length['error']:.1f}"
    told = f"Variance: that of one pass over all {large['units']['units']:,} units, in rloo's. At the start rloo's is "
    return "\n".join([*lines, "", f"{told}{unit['start']:,.0f}, and the squared length of the gradient {size}."])


def _variance(found: dict[str, dict[str, float]]) -> float:
    return found["unit"]["variance_per_pass"]


def _cosine(found: dict[str, float | None]) -> str:
    """A cosine with its standard error; nothing where that is above a half."""
    cosine, error = found["cosine"], found["cosine_error"]
    return "" if cosine is None or error is None or error > 0.5 else f"{cosine:.2f} ± {error:.2f}"


def layers() -> str:
    """Pairs of layers, by what chose them; searches with all their seeds."""
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in read("layer_search")["rows"]:
        if row["removed"] == 2 and row["perplexity"] is not None:
            found.setdefault((_way(row), row["forward_tokens"]), []).append(row)
    lines = ["| criterion | forward tokens | place of all 435 | perplexity |", "|---|---:|---:|---:|"]
    for (name, tokens), group in found.items():
        if group[0]["estimator"] is None or len(group) >= 3:
            places = ", ".join(str(row["place_of_all_pairs"]) for row in group)
            perplexities = ", ".join(number(row["perplexity"], 1) for row in group)
            lines.append(f"| {name} | {short(tokens)} | {places} | {perplexities} |")
    return "\n".join(lines)


def _way(row: dict[str, Any]) -> str:
    criterion = row["criterion"].split(":")[0]
    if not row["estimator"]:
        return criterion
    return f"{criterion} → {row['policy']}, {row['estimator']}, rate {row['learning_rate']:g}"


def overhead() -> str:
    """What a step costs beside its forward passes: the cheapest and dearest estimator of each policy."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in read("step_overhead")["results"]:
        shape = f"{row['masks']} masks on {row['batch'][0]} x {row['batch'][1]} tokens"
        found.setdefault((row["policy"], shape), []).append(row)
    lines = ["| policy | step | of the forward passes | dearest estimator |", "|---|---|---:|---|"]
    for (policy, shape), rows in found.items():
        shares = [row["of_forward"] for row in rows]
        dearest = max(rows, key=lambda row: row["of_forward"])["estimator"]
        lines.append(f"| {policy} | {shape} | {min(shares):.1%} to {max(shares):.1%} | {dearest} |")
    return "\n".join([*lines, "", "Processor time on one thread, SmolLM2-135M in bfloat16."])


def mask_evaluation() -> str:
    """Compact, gated and dense evaluation of one mask."""
    record = read("mask_evaluation")
    lines = ["| model | sparsity | compact / dense | gated / dense |", "|---|---:|---:|---:|"]
    lines += [
        f"| {r['model']} | {r['sparsity']} | {_ratio(r['compact'])} | {_ratio(r['gated'])} |" for r in record["results"]
    ]
    batch, environment = record["batch"], record["environment"]
    where = f"{record['dtype']}, {environment['cpu']}, {environment['threads']} threads, torch {environment['torch']}"
    return "\n".join(
        [*lines, "", f"Median and quartiles of turn-by-turn ratios, {batch[0]} x {batch[1]} tokens, {where}."]
    )


def _ratio(way: dict[str, Any]) -> str:
    low, high = way["quartiles"]
    return f"{way['of_dense']:.2f} ({low:.2f} to {high:.2f})"
