"""Draws what is left of the best metric's excess loss by repairs, on the texts of the mix and on a third text.

python benchmarks/repair_picture.py --output docs/_static/repair.svg
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import repaired
from matplotlib.transforms import Bbox

RECORD = Path(__file__).parent / "results" / "repair.json"
SPARSITIES = (0.2, 0.3)
# Rows that leave more are as far from the rest as they are uninteresting.
MOST = 1.08
# Names of points at the right edge need some room.
RIGHT = 1.16
GREEN, BLUE, RED = "#3a7d44", "#1f5fa8", "#b23a48"
# Where a name may stand beside its point, in points: the first place that is free.
PLACES = [
    (5, -3, "left"),
    (-5, -3, "right"),
    (5, 4, "left"),
    (5, -10, "left"),
    (-5, 4, "right"),
    (-5, -10, "right"),
    (5, 11, "left"),
    (5, -17, "left"),
    (-5, 11, "right"),
    (-5, -17, "right"),
]


def points(record: dict[str, Any], sparsity: float) -> list[tuple[float, float, str, str]]:
    """Returns, for every row, its share on the mix, on the third text, its name and its colour.

    Of rows of one name the one with the most seeds, and of these the best.
    """
    found, names = repaired.lines(record, sparsity), repaired.texts(record)
    on_mix, on_third = (repaired.best_metric(found, of) for of in (repaired.mixed(record), names[-1:]))
    told = []
    for line in found:
        mix = line.mean(repaired.mixed(record)) / on_mix.mean(repaired.mixed(record))
        third = line.mean(names[-1:]) / on_third.mean(names[-1:])
        colour = RED if line.backward_passes and line.repair.startswith("distil") else BLUE if line.searched else GREEN
        repair = "" if line.repair == repaired.NONE else f" + {line.repair.partition(':')[0]}"
        told.append((-line.seeds, mix, third, f"{line.criterion.partition(' →')[0]}{repair}", colour))
    best = {(name, colour): point for _, *point, name, colour in sorted(told, reverse=True)}
    return [(mix, third, name, colour) for (name, colour), (mix, third) in best.items() if max(mix, third) <= MOST]


def name_points(panel: Any, named: list[tuple[float, float, str, str]]) -> None:
    """Writes each point's name beside it, where it covers no other name and no point, and stays in the frame."""
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in panel.transData.transform([each[:2] for each in named])]
    for mix, third, name, _ in sorted(named):
        for x, y, side in PLACES:
            told = panel.annotate(name, (mix, third), (x, y), textcoords="offset points", fontsize=7, ha=side)
            box = told.get_window_extent()
            if panel.bbox.containsx(box.x0) and panel.bbox.containsx(box.x1) and not box.count_overlaps(taken):
                break
            told.remove()
        else:
            raise SystemExit(f"{name} finds no free place in the picture.")
        taken.append(box)


@click.command()
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Picture to write.")
def main(output: Path) -> None:
    """Draw the record of repairs."""
    from matplotlib import pyplot

    pyplot.rcParams.update({"svg.hashsalt": "polyprune", "font.size": 9})
    record = json.loads(RECORD.read_text("utf-8"))
    figure, panels = pyplot.subplots(
        1, len(SPARSITIES), figsize=(10, 5), sharex=True, sharey=True, layout="constrained"
    )
    for panel, sparsity in zip(panels, SPARSITIES, strict=True):
        panel.plot([0, MOST], [0, MOST], color="#cccccc", linewidth=1, zorder=0)
        panel.axvline(1, color="#cccccc", linewidth=1, zorder=0)
        panel.axhline(1, color="#cccccc", linewidth=1, zorder=0)
        for mix, third, _, colour in points(record, sparsity):
            panel.scatter(mix, third, color=colour, s=22)
        panel.set(title=f"{sparsity:.0%} removed", xlabel="excess left on the texts of the mix", xlim=(0.2, RIGHT))
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    panels[0].set(ylabel="excess left on a text that nothing was calibrated on", ylim=(0.5, MOST))
    shown = [pyplot.Line2D([], [], color=c, marker="o", linestyle="") for c in (GREEN, BLUE, RED)]
    told = ["a metric", "a search, forward passes alone", "trained without labels"]
    figure.legend(shown, told, loc="outside lower center", ncols=3, frameon=False)
    figure.draw_without_rendering()  # lays the panels out, so that the boxes of names are known
    for panel, sparsity in zip(panels, SPARSITIES, strict=True):
        name_points(panel, points(record, sparsity))
    figure.savefig(output, metadata={"Date": None})


if __name__ == "__main__":
    main()
