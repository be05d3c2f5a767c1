"""A row of results as the model that it was measured on."""

from __future__ import annotations

from polyprune_core.config.settings import Comparison
from polyprune_core.errors import ConfigError
from polyprune_core.evaluation.perplexity import Evaluation
from polyprune_core.models.sources import load_model
from polyprune_core.plugins.registry import load_registry
from polyprune_core.results.results import Results
from polyprune_core.results.row import Row, TextScores
from polyprune_core.runs.decision import Cost
from polyprune_core.runs.pruning_result import PruningResult
from polyprune_core.runs.stored_cell import finished_cell

LOADING = ("dtype", "device", "trust_remote_code")


def rebuilt(results: Results, row: Row, model: str | None) -> PruningResult:
    """Returns the row's model, with what was measured of it; `model` is the dense one, if not where it was.

    Raises:
        PolypruneError: the row decided nothing, or the dense model cannot be had.
    """
    if row.cell.kind == "dense" or row.status != "ok":
        raise ConfigError(
            f"row {row.id} ({row.cell.kind}, {row.status}) has no pruned model; give a finished row that has one."
        )
    cell = finished_cell(row, results.details.get(row.id), f"row {row.id}, if read without its store's folder,")
    asked = Comparison.model_validate({name: cell.config[name] for name in LOADING if name in cell.config})
    base = load_model(
        model or cell.model,
        dtype=asked.dtype,
        device=asked.device,
        revision=None if model else cell.revision,
        trust_remote_code=asked.trust_remote_code,
    )
    dense = next((each for each in results.rows if each.cell.is_reference and each.status == "ok"), None)
    cost = Cost(row.forward_passes, row.forward_tokens, row.backward_passes, row.search_seconds, row.peak_memory_mb)
    return PruningResult(
        pruned=cell.apply(base, load_registry()),
        evaluations=_evaluations(results, row),
        dense_evaluations=_evaluations(results, dense) if dense else (),
        cost=cost,
        budget=row.cell.budget,
        budget_achieved=row.budget_achieved,
    )


def _evaluations(results: Results, row: Row) -> tuple[Evaluation, ...]:
    """The row's evaluations; of a row from before there were several, the one."""
    beside = results.details.get(row.id)
    windows = dict(enumerate((beside.window_nll, *beside.further_nll))) if beside else {}
    headline = TextScores("", 0, row.perplexity, row.nll, row.eval_tokens or 0, row.kl_to_dense, row.top1_agreement)
    return tuple(
        Evaluation(
            nll=each.nll or 0.0,
            tokens=each.tokens,
            kl_to_dense=each.kl_to_dense,
            top1_agreement=each.top1_agreement,
            window_nll=tuple(windows[index].tolist()) if index in windows else (),
            text=each.text,
            seq_len=each.seq_len,
        )
        for index, each in enumerate(row.evaluations or (headline,))
    )
