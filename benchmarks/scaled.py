"""What several workers bring: measured on this machine, and planned and simulated for a thousand."""

from __future__ import annotations

from records import read


def spread() -> str:
    """How far a loss varies with the mask and with the batch."""
    lines = ["| masks of | over masks | over batches of 2 windows | of 8 windows |", "|---|---:|---:|---:|"]
    for name, found in read("estimator_variance")["results"]["smollm2-135m"].items():
        if name.startswith("spread, "):
            two, eight = found["2 windows"], found["8 windows"]
            deviations = (two["over_masks"], two["over_batches"], eight["over_batches"])
            lines.append(f"| {name.removeprefix('spread, ')} | {' | '.join(f'{each:.2f}' for each in deviations)} |")
    return "\n".join([*lines, "", "Standard deviations of the loss, nats per token, at sparsity 0.3."])


def cluster_plan() -> str:
    """What a search of a large model takes on a cluster."""
    lines = ["| search | workers | s a mask | s a step | masks/s | MB a step | hours | USD | bound by |"]
    lines += ["|---|---:|---:|---:|---:|---:|---:|---:|---|"]
    for row in read("cluster")["plan"]:
        lines.append(
            f"| {row['search']} | {row['workers']:,} | {row['seconds_a_mask']:.2f} | {row['seconds_a_step']:.2f} | "
            f"{row['masks_a_second']:.1f} | {row['bytes_a_step'] / 1e6:.1f} | {row['hours']:.2f} | {row['usd']:,.2f} | "
            f"{row['bound_by']} |"
        )
    record = read("cluster")
    call, workers = record["measured"]["seconds_a_call"], record["driver_bound_at_workers"]
    told = (
        f"A call takes {1000 * call:.1f} ms at the driver, which can keep {workers:.0f} workers busy at our defaults."
    )
    fixed, each = (1000 * record["measured"][f"arithmetic_a_{part}"] for part in ("step", "mask"))
    told += f" The search's own arithmetic takes {fixed:.0f} ms a step and {each:.1f} ms a mask on one processor."
    return "\n".join([*lines, "", told])


def cluster_simulation() -> str:
    """The same searches, run by the supervisor in made-up time."""
    record = read("cluster")
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
