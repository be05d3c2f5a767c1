"""What is said below a table: what all rows share, and how to read the columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from polyprune_core.config.settings import Settings
from polyprune_core.config.shapes_spec import ShapesSpec
from polyprune_core.errors import counted, plain
from polyprune_core.report.columns import ALIKE, columns, places, task_names
from polyprune_core.results.results import Results
from polyprune_core.results.summaries import Summary


def caption(results: Results) -> str:
    """Returns the conditions that every row of the table shares, and how to read its columns."""
    hidden = _on_request(results.summaries())
    said = (text for title, text in how_to_read(results.summaries()) if title not in hidden)
    return " ".join([conditions(results), *said])


def conditions(results: Results) -> str:
    """Returns what every row of the table shares."""
    model, calibration, evaluation = results.model, results.texts["calibration"], results.texts["evaluation"]
    prunable = ", ".join(f"{count / 1e6:.1f} M {name}" for name, count in model["prunable_parameters"].items())
    prunable = f" (prunable: {prunable})" if prunable else ""
    return plain(
        f"{model['name']}{_weights(model)}, {model['parameters'] / 1e6:.1f} M parameters{prunable}, "
        f"{model['dtype']} on {model['device']}. "
        f"Perplexity on {'; on '.join(map(_cut_up, results.texts.get('evaluations') or [evaluation]))}; "
        f"calibrated on {calibration['name']}, {calibration['tokens_per_window']}-token windows."
        f"{_cut(evaluation)}{_widths(results)}{_quick(results)}"
    )


def _quick(results: Results) -> str:
    """How much less a quick look is than what is taken unless told."""
    if results.config.get("preset") != "quick":
        return ""
    usual = Settings.model_fields["steps"].default
    searched = any(row.cell.kind == "search" for row in results.rows)
    shorter = (
        f"searches take {results.config['steps']} steps instead of {usual}, which find more, and " if searched else ""
    )
    return f" A quick look: {shorter}a part of the text is evaluated on. Leave out --preset quick for all of it."


def _widths(results: Results) -> str:
    """The widths that all rows of the table were asked to have, where there are such."""
    asked = {row.cell.shapes for row in results.rows if row.cell.kind != "dense"}
    told = asked.pop() if len(asked) == 1 else None
    return f" Widths of layers: {ShapesSpec.parse(told).words()}." if told else ""


def _cut_up(text: Mapping[str, Any]) -> str:
    return f"{text['name']}: {counted(text['windows'], 'window')} of {text['tokens_per_window']}"


def _weights(model: Mapping[str, Any]) -> str:
    """Which weights they are that go by this name, as far as that is known."""
    sha256 = f"weights sha256 {model['sha256'][:8]}…" if model.get("sha256") else ""
    told = "; ".join(filter(None, (model.get("source"), sha256)))
    return f" ({told})" if told else ""


def _cut(evaluation: Mapping[str, Any]) -> str:
    """What windows begin with, and how much of them was calibrated on, where there is something to say."""
    bos, shared = evaluation.get("bos"), evaluation.get("overlap") or 0.0
    begun = f" Every window begins with {bos}." if bos else ""
    return begun + (f" {shared:.0%} of what is evaluated on was calibrated on too." if shared >= 0.01 else "")


def _on_request(summaries: Sequence[Summary]) -> list[str]:
    return [column.title for column in columns(summaries) if column.on_request]


def how_to_read(summaries: list[Summary], shown: Sequence[Summary] | None = None) -> list[tuple[str, str]]:
    """Returns (title of a column, what it says) for the columns that say something.

    `summaries` are those of the whole comparison; marks are explained where one of those `shown` has them.
    """
    shown = summaries if shown is None else shown
    compared = [summary.versus for summary in summaries if summary.versus]
    windows = sorted({found.evaluation.windows for found in compared if found.evaluation})
    said = [("perplexity", "Mean ± sd over n seeds.")]
    if any(summary.alike for summary in shown):
        said.append(("perplexity", f"{ALIKE}: same for every seed, so the n rows are one measurement."))
    if any(summary.best for summary in shown):
        at = "budget" if any(summary.row.cell.budget for summary in summaries) else "sparsity"
        said.append(("perplexity", f"Bold: better than every other row at its {at}, beyond the noise."))
    if places(summaries):
        said.append(("excess", "Excess: nats per token over the dense model."))
    shares = "the excess as a fraction of that of the best metric alone without repair"
    said += [(title, f"{title.capitalize()}: {shares}.") for title in _on_request(summaries)]
    if compared:
        all_of_them = f" over all {len(compared)} of them" if len(compared) > 1 else ""
        text = (
            "Against its start: the perplexity of a search divided by that of the policy it started from, paired by "
            "seed, ± the wider side of the 95 % t interval over seeds. ✓: better. ✗: worse. ~: no difference shown. "
            "A mark in brackets is lost when the comparisons of this table are corrected for their number, at a false "
            f"discovery rate of 5 %{all_of_them}."
        )
        said.append(("against its start", text))
    if windows:
        count = " or ".join(map(str, windows))
        noun = "window" if windows == [1] else "windows"
        text = (
            f"Evaluation noise: 95 % interval of that ratio over {count} {noun} of text, the pruned models held fixed."
        )
        said.append(("evaluation noise", text))
    if any(found.p is not None for found in compared):
        said.append(("p", "p: the p-value of a sign-flip test over seeds."))
    if any(found.q is not None for found in compared):
        said.append(("q", "q: the corrected p-value of the t test over seeds."))
    if any(summary.pareto for summary in shown):
        text = "Pareto: no row has both a lower mean perplexity and fewer parameters (size) or passes (cost)."
        said.append(("Pareto", text))
    if any(summary.row.backward_passes for summary in shown):
        said.append(("criterion", "∇: needs back-propagation."))
    said += [(task, f"{task}: score ± standard error over items.") for task in task_names(summaries)]
    return said
