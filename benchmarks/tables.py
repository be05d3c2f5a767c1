"""Writes the tables of README.md and docs/ from the committed results and the code, between their markers.

python benchmarks/tables.py            # rewrite
python benchmarks/tables.py --check    # exit status 1 where a page is out of date
"""

from __future__ import annotations

import json
import math
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import headline
import pooled
import reference
import repaired
from curves import beside, criteria, in_its_best_pooling, table

from polyprune_core.report import markdown
from polyprune_core.report.columns import number, short
from polyprune_core.results.results import Results

ROOT = Path(__file__).resolve().parent.parent
RESULTS, SUITES = ROOT / "benchmarks" / "results", ROOT / "benchmarks" / "suites"
# The default search, the same from another metric, and the published one as its paper and as its code step.
HEADLINE = {
    "thinet → gaussian, antithetic",
    "wanda → gaussian, antithetic",
    "wanda → probabilities, reinforce",
    "wanda → probabilities, reinforce, released",
}
REFERENCE = [
    ROOT / "docs" / "reference" / f"{name}.md"
    for name in ("api", "cli", "conformance", "families", "gallery", "plugins")
]
EXPLAINED = [
    ROOT / "docs" / "explanation" / f"{name}.md"
    for name in ("baselines", "experts", "found", "repair", "sample-efficiency", "scale", "which-criterion")
]
HOWTO = [ROOT / "docs" / "howto" / f"{name}.md" for name in ("load-elsewhere", "recover")]
PAGES = [ROOT / "README.md", *HOWTO, *EXPLAINED, *REFERENCE]


def estimators() -> str:
    """The comparison of metrics and estimators on SmolLM2-135M."""
    results = Results.from_json(_read("estimators"))
    wanted = ("perplexity", "against its start", "n", "forward tokens", "backward passes", "KL to dense")
    return markdown(results, ("sparsity asked → got", *wanted))


def repair_seconds() -> str:
    """What forward passes, inner products and solving take of a least-squares repair."""
    lines = ["| model | tokens | forward passes | inner products | solving |", "|---|---:|---:|---:|---:|"]
    for each in _read("repair_seconds")["results"]:
        seconds = " | ".join(f"{value:.0f} s" for value in each["seconds"].values())
        lines.append(f"| {each['model']} | {each['tokens']:,} | {seconds} |")
    return "\n".join(lines)


def experts() -> str:
    """What removes experts, with and without a repair, on a small mixture."""
    results = Results.from_json(_read("moe"))
    wanted = ("perplexity", "n", "parameters", "active", "KL to dense", "forward tokens")
    return markdown(results, ("sparsity asked → got", *wanted))


def originals() -> str:
    """How far each metric is from what its authors' own code computes."""
    lines = ["| metric | original | largest difference |", "|---|---|---:|"]
    for row in json.loads((RESULTS / "originals.json").read_text("utf-8")):
        told = f"{row['difference']:.0e}" if row["difference"] else "none"
        lines.append(f"| `{row['metric']}` | {row['original']} | {told} |")
    return "\n".join(lines)


def efficiency(sparsity: float, shown: Callable[[str], bool] = lambda name: "→ gaussian" in name) -> str:
    """Each metric in its best pooling, and the searches whose names are `shown`."""
    record = _read("sample_efficiency")
    best = in_its_best_pooling(criteria(record, sparsity))
    return table(record, sparsity, lambda each: each in best or (each.searched and shown(each.name)))


def pooling(sparsity: float) -> str:
    """Every metric in every pooling."""
    return table(_read("sample_efficiency"), sparsity, lambda each: not each.searched)


def free() -> str:
    """What every estimator makes of a keep probability for each unit, and its ratio to where all of them start."""
    record = _read("sample_efficiency")
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
    record, suite = _read("ablations"), tomllib.loads((SUITES / "ablations.toml").read_text("utf-8"))
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


def spread() -> str:
    """How far a loss varies with the mask and with the batch."""
    lines = ["| masks of | over masks | over batches of 2 windows | of 8 windows |", "|---|---:|---:|---:|"]
    for name, found in _read("estimator_variance")["results"]["smollm2-135m"].items():
        if name.startswith("spread, "):
            two, eight = found["2 windows"], found["8 windows"]
            deviations = (two["over_masks"], two["over_batches"], eight["over_batches"])
            lines.append(f"| {name.removeprefix('spread, ')} | {' | '.join(f'{each:.2f}' for each in deviations)} |")
    return "\n".join([*lines, "", "Standard deviations of the loss, nats per token, at sparsity 0.3."])


def gradients() -> str:
    """How well the mean over 64 forward passes points along the gradient by logits, and what one pass is worth.

    Of ten units of `tiny`, whose gradient is known, and of SmolLM2-135M's heads, the only part known from zero.
    """
    found = _read("estimator_variance")["results"]
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
    for row in _read("layer_search")["rows"]:
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
    for row in _read("step_overhead")["results"]:
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
    record = _read("mask_evaluation")
    lines = ["| model | sparsity | compact / dense | gated / dense |", "|---|---:|---:|---:|"]
    lines += [
        f"| {r['model']} | {r['sparsity']} | {_ratio(r['compact'])} | {_ratio(r['gated'])} |" for r in record["results"]
    ]
    batch, environment = record["batch"], record["environment"]
    where = f"{record['dtype']}, {environment['cpu']}, {environment['threads']} threads, torch {environment['torch']}"
    return "\n".join(
        [*lines, "", f"Median and quartiles of turn-by-turn ratios, {batch[0]} x {batch[1]} tokens, {where}."]
    )


def dense_perplexity() -> str:
    """The dense model on the evaluation text at two window lengths."""
    record = _read("dense_perplexity")
    lines = [f"| {record['model']}, dense, on {record['text']} | perplexity |", "|---|---:|"]
    rows = record["rows"]
    return "\n".join([*lines, *(f"| {r['windows']} windows of {r['seq_len']} | {r['perplexity']:.2f} |" for r in rows)])


def exports() -> str:
    """Returns the exports that ran in their runtimes, beside the dense model there."""
    lines = [
        "| decision | exporter | runtime | max Δ log p | same top-1 | perplexity (dense) | MB (dense) |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in _read("exports")["rows"]:
        found = row.get("in_runtime")
        if not found:
            why = row.get("refused", "").removeprefix("polyprune: ").partition(". ")[0]
            said = "not within its tolerance" if row["status"] == 1 else f"refused: {why}"
            lines.append(f"| {row['decision']} | `{row['exporter']}` | {said} | | | | |")
            continue
        this, dense = found["pruned"], found["dense"]
        cells = [row["decision"], f"`{row['exporter']}`", f"{found['runtime']} {found['version']}"]
        cells += [f"{found['largest_difference']:.2g}", f"{found['top1_agreement']:.1%}"]
        cells += [f"{this['perplexity']:.3f} ({dense['perplexity']:.3f})"]
        cells += [f"{this['bytes'] / 1e6:.0f} ({dense['bytes'] / 1e6:.0f})"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def recovered() -> str:
    """A pruned model and its dense one before and after the same training, and how far apart they are."""
    record = _read("recovered")
    told, decision, environment = record["recovery"], record["decision"], record["environment"]
    rows = {row["name"]: row for row in told["rows"]}
    places = [f"{each['text']} at {each['seq_len']}" for each in told["rows"][0]["evaluations"]]
    lines = [f"| {record['model']} | parameters | trained on | perplexity on {' | '.join(places)} |"]
    lines.append("|---|" + "---:|" * (2 + len(places)))
    for name, row in rows.items():
        figures = [f"{each['perplexity']:.2f}" for each in row["evaluations"]]
        cells = [name, f"{row['parameters']:,}", f"{row['forward_tokens']:,} tokens", *figures]
        lines.append(f"| {' | '.join(cells)} |")
    for when, ours, theirs in (("before", "pruned", "dense"), ("after", "pruned, trained", "dense, trained")):
        pairs = zip(rows[ours]["evaluations"], rows[theirs]["evaluations"], strict=True)
        apart = [f"{mine['nll'] - other['nll']:.3f}" for mine, other in pairs]
        lines.append(f"| pruned over dense {when}, in nats a token | | | {' | '.join(apart)} |")
    windows = f"{record['limit']} windows of each text, {record['dtype']}, torch {environment['torch']}"
    made = f"{decision['sparsity']:.0%} removed by `{decision['initializer']}`, then `{told['repair']}`"
    return "\n".join([*lines, "", f"{made}, seed {told['seed']}, on {told['calibration']}; {windows}."])


def _ratio(way: dict[str, Any]) -> str:
    low, high = way["quartiles"]
    return f"{way['of_dense']:.2f} ({low:.2f} to {high:.2f})"


def cluster_plan() -> str:
    """What a search of a large model takes on a cluster."""
    lines = ["| search | workers | s a mask | s a step | masks/s | MB a step | hours | USD | bound by |"]
    lines += ["|---|---:|---:|---:|---:|---:|---:|---:|---|"]
    for row in _read("cluster")["plan"]:
        lines.append(
            f"| {row['search']} | {row['workers']:,} | {row['seconds_a_mask']:.2f} | {row['seconds_a_step']:.2f} | "
            f"{row['masks_a_second']:.1f} | {row['bytes_a_step'] / 1e6:.1f} | {row['hours']:.2f} | {row['usd']:,.2f} | "
            f"{row['bound_by']} |"
        )
    record = _read("cluster")
    call, workers = record["measured"]["seconds_a_call"], record["driver_bound_at_workers"]
    told = (
        f"A call takes {1000 * call:.1f} ms at the driver, which can keep {workers:.0f} workers busy at our defaults."
    )
    fixed, each = (1000 * record["measured"][f"arithmetic_a_{part}"] for part in ("step", "mask"))
    told += f" The search's own arithmetic takes {fixed:.0f} ms a step and {each:.1f} ms a mask on one processor."
    return "\n".join([*lines, "", told])


def cluster_simulation() -> str:
    """The same searches, run by the supervisor in made-up time."""
    record = _read("cluster")
    plan = {(row["search"], row["workers"]): row["seconds_of_masks"] for row in record["plan"]}
    lines = ["| search | workers | planned s of masks a step | simulated, mean | median | longest | workers lost |"]
    lines += ["|---|---:|---:|---:|---:|---:|---:|"]
    lines += [
        f"| {row['search']} | {row['workers']:,} | {plan[row['search'], row['workers']]:.2f} | "
        f"{row['seconds_a_step']:.2f} | {row['median_seconds_a_step']:.2f} | {row['longest_step']:.1f} | "
        f"{row['lost']} in {row['hours_simulated']:.1f} h |"
        for row in record["simulation"]
    ]
    own = max(row["supervisor_seconds_a_call"] for row in record["simulation"])
    return "\n".join([*lines, "", f"The supervisor itself takes at most {1000 * own:.2f} ms a call, at 1,000 workers."])


def _read(name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    return record


TABLES: dict[str, Callable[[], str]] = {
    "estimators": estimators,
    "headline": lambda: headline.table(_read("repair")),
    "headline 0.2": lambda: efficiency(0.2, HEADLINE.__contains__),
    "headline 0.3": lambda: efficiency(0.3, HEADLINE.__contains__),
    "efficiency 0.2": lambda: efficiency(0.2),
    "efficiency 0.3": lambda: efficiency(0.3),
    "efficiency 0.1": lambda: efficiency(0.1),
    "efficiency 0.5": lambda: efficiency(0.5),
    "pooling 0.3": lambda: pooling(0.3),
    "free": free,
    "other text 0.3": lambda: table(_read("other_text"), 0.3),
    "other text 0.2": lambda: table(_read("other_text"), 0.2),
    "ablations": ablations,
    "spread": spread,
    "gradients": gradients,
    "layers": layers,
    "overhead": overhead,
    "dense-perplexity": dense_perplexity,
    "mask-evaluation": mask_evaluation,
    "originals": originals,
    "pooling choices": lambda: pooled.choices(_read("repair")),
    "repaired headline": lambda: repaired.headline(_read("repair"), 0.3),
    **{f"repaired {s}": lambda s=s: repaired.shares(_read("repair"), s, 1.5) for s in (0.2, 0.3, 0.5)},
    **{f"repaired gemma {s}": lambda s=s: repaired.shares(_read("gemma"), s, 1.5) for s in (0.2, 0.3)},
    "query heads": lambda: repaired.shares(_read("query_heads"), 0.3),
    "repaired three texts": lambda: repaired.shares(_read("three_texts"), 0.2),
    **{f"long windows {s}": lambda s=s: repaired.lengths(_read("long_windows"), s) for s in (0.2, 0.3)},
    "repair seconds": repair_seconds,
    "repairs": lambda: repaired.shares(_read("defaults"), 0.3),
    "excess wiki": lambda: repaired.excesses(_read("repair"), "wiki.test.raw"),
    "excess pydocs": lambda: repaired.excesses(_read("repair"), "builtin:pydocs"),
    "excess stories": lambda: repaired.excesses(_read("repair"), "tinystories.txt"),
    "orders": lambda: repaired.orders(_read("repair")),
    "exports": exports,
    "recovered": recovered,
    "experts": experts,
    "cluster plan": cluster_plan,
    "cluster simulation": cluster_simulation,
    "checks": reference.checks,
    "families": reference.families,
    "family checks": reference.family_checks,
    "commands": reference.commands,
    "gallery": reference.others,
    "gallery commands": reference.tries,
}
# Tables that are made for what their name ends with.
KINDS: dict[str, Callable[[str], str]] = {"plugins": reference.plugins, "names": reference.names}


def render(text: str) -> str:
    """Returns a page with every table between its markers made anew."""

    def anew(found: re.Match[str]) -> str:
        begin, name, end = found[1], found[2], found[3]
        kind, _, what = name.partition(" ")
        made = KINDS[kind](what) if kind in KINDS else TABLES[name]()
        return f"{begin}\n{made}\n{end}"

    return re.sub(r"(<!-- table: ([\w .-]+) -->).*?(<!-- end: \2 -->)", anew, text, flags=re.S)


@click.command()
@click.option("--check", is_flag=True, help="Only say whether the pages are up to date.")
def main(check: bool) -> None:
    """Write the tables of README.md and docs/ from benchmarks/results and from what the code says of itself."""
    stale = {page: made for page in PAGES if (made := render(text := page.read_text("utf-8"))) != text}
    if check:
        sys.exit(bool(stale))
    for page, made in stale.items():
        page.write_text(made, "utf-8")


if __name__ == "__main__":
    main()
