"""What was written: exported models against those in memory, and the models that were trained on."""

from __future__ import annotations

from records import read


def exports() -> str:
    """Returns the exports that ran in their runtimes, beside the dense model there."""
    lines = [
        "| decision | exporter | runtime | max Δ log p | same top-1 | perplexity (dense) | MB (dense) |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in read("exports")["rows"]:
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
    record = read("recovered")
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
