"""Writes the tables of README.md and docs/ from the committed results and the code, between their markers.

python benchmarks/tables.py            # rewrite
python benchmarks/tables.py --check    # exit status 1 where a page is out of date
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable

import click
import headline
import pooled
import reference
import repaired
import scaled
import searched
import written
from curves import table
from records import RESULTS, ROOT, read

from polyprune_core.report import markdown
from polyprune_core.results.results import Results

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
    for name in ("baselines", "experts", "found", "policies", "repair", "sample-efficiency", "scale", "which-criterion")
]
HOWTO = [ROOT / "docs" / "howto" / f"{name}.md" for name in ("load-elsewhere", "recover")]
PAGES = [ROOT / "README.md", *HOWTO, *EXPLAINED, *REFERENCE]


def repair_seconds() -> str:
    """What forward passes, inner products and solving take of a least-squares repair."""
    lines = ["| model | tokens | forward passes | inner products | solving |", "|---|---:|---:|---:|---:|"]
    for each in read("repair_seconds")["results"]:
        seconds = " | ".join(f"{value:.0f} s" for value in each["seconds"].values())
        lines.append(f"| {each['model']} | {each['tokens']:,} | {seconds} |")
    return "\n".join(lines)


def experts() -> str:
    """What removes experts, with and without a repair, on a small mixture."""
    results = Results.from_json(read("moe"))
    wanted = ("perplexity", "n", "parameters", "active", "KL to dense", "forward tokens")
    return markdown(results, ("sparsity asked → got", *wanted))


def originals() -> str:
    """How far each metric is from what its authors' own code computes."""
    lines = ["| metric | original | largest difference |", "|---|---|---:|"]
    for row in json.loads((RESULTS / "originals.json").read_text("utf-8")):
        told = f"{row['difference']:.0e}" if row["difference"] else "none"
        lines.append(f"| `{row['metric']}` | {row['original']} | {told} |")
    return "\n".join(lines)


def dense_perplexity() -> str:
    """The dense model on the evaluation text at two window lengths."""
    record = read("dense_perplexity")
    lines = [f"| {record['model']}, dense, on {record['text']} | perplexity |", "|---|---:|"]
    rows = record["rows"]
    return "\n".join([*lines, *(f"| {r['windows']} windows of {r['seq_len']} | {r['perplexity']:.2f} |" for r in rows)])


TABLES: dict[str, Callable[[], str]] = {
    "estimators": searched.estimators,
    "headline": lambda: headline.table(read("repair")),
    "headline 0.2": lambda: searched.efficiency(0.2, HEADLINE.__contains__),
    "headline 0.3": lambda: searched.efficiency(0.3, HEADLINE.__contains__),
    "efficiency 0.2": lambda: searched.efficiency(0.2),
    "efficiency 0.3": lambda: searched.efficiency(0.3),
    "efficiency 0.1": lambda: searched.efficiency(0.1),
    "efficiency 0.5": lambda: searched.efficiency(0.5),
    "pooling 0.3": lambda: searched.pooling(0.3),
    "free": searched.free,
    "other text 0.3": lambda: table(read("other_text"), 0.3),
    "other text 0.2": lambda: table(read("other_text"), 0.2),
    "ablations": searched.ablations,
    "spread": scaled.spread,
    "gradients": searched.gradients,
    "layers": searched.layers,
    "overhead": searched.overhead,
    "dense-perplexity": dense_perplexity,
    "mask-evaluation": searched.mask_evaluation,
    "originals": originals,
    "pooling choices": lambda: pooled.choices(read("repair")),
    "pooling gains": lambda: pooled.gains(read("pooling")),
    "few windows": lambda: pooled.few_windows(read("held_back")),
    "repaired headline": lambda: repaired.headline(read("repair"), 0.3),
    **{f"repaired {s}": lambda s=s: repaired.shares(read("repair"), s, 1.5) for s in (0.2, 0.3, 0.5)},
    **{f"repaired gemma {s}": lambda s=s: repaired.shares(read("gemma"), s, 1.5) for s in (0.2, 0.3)},
    "query heads": lambda: repaired.shares(read("query_heads"), 0.3),
    **{f"repaired three texts {s}": lambda s=s: repaired.shares(read("three_texts"), s) for s in (0.2, 0.3)},
    "own text": lambda: repaired.mixes(read("own_text")),
    "long windows": lambda: repaired.lengths(read("long_windows"), 0.3),
    "starts": lambda: repaired.shares(read("starts"), 0.3),
    "repair seconds": repair_seconds,
    "repairs": lambda: repaired.shares(read("defaults"), 0.3),
    "excess wiki": lambda: repaired.excesses(read("repair"), "wiki.test.raw"),
    "excess pydocs": lambda: repaired.excesses(read("repair"), "builtin:pydocs"),
    "excess stories": lambda: repaired.excesses(read("repair"), "tinystories.txt"),
    "seeds": lambda: repaired.seeds(read("repair")),
    "orders": lambda: repaired.orders(read("repair")),
    "exports": written.exports,
    "recovered": written.recovered,
    "experts": experts,
    "cluster plan": scaled.cluster_plan,
    "cluster simulation": scaled.cluster_simulation,
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
