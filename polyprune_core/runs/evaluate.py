"""One model, and beside it the model it was made from: how good, how large, how fast."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from polyprune_core.config.requests import EvaluateConfig
from polyprune_core.errors import ConfigError
from polyprune_core.evaluation.footprint import footprint
from polyprune_core.evaluation.latency import Load, Seconds, Spread, ratios, take_turns
from polyprune_core.evaluation.perplexity import Evaluator, in_turn
from polyprune_core.evaluation.tasks import Tasks
from polyprune_core.evaluation.text import Text, load_evaluations
from polyprune_core.evaluation.windows import Cutter, limits
from polyprune_core.models.quiet import quiet
from polyprune_core.models.sources import LoadedModel
from polyprune_core.runs.cell_row import on_texts
from polyprune_core.runs.evaluation_report import Findings, Side, Timing
from polyprune_core.runs.model_sources import Subject, open_reference, open_subject
from polyprune_core.utils.environment import environment
from polyprune_core.utils.progress import Reporter


def examine(request: EvaluateConfig, reporter: Reporter) -> Findings:
    """Measures what is asked for of `request.target`, and of its reference where there is one.

    Raises:
        PolypruneError: the model, its reference, a text or a task cannot be had.
    """
    tasks = None
    if request.tasks:
        tasks = Tasks(request.tasks, request.include_path, request.num_fewshot, request.tasks_limit)
    texts = load_evaluations(request.evaluation, request.text_column)
    subject = open_subject(request.target, request, reporter, request.model)
    _check_positions(request, subject)
    reference = open_reference(request, subject, reporter)
    subjects = [subject, *([reference] if reference else [])]
    loaded = [one.loaded for one in subjects]
    cutter = Cutter.of(loaded[0].tokenizer, loaded[0].model, request.bos)
    evaluators = _evaluators(texts, cutter, request)
    prompts = [_prompt(cutter, prompt) for prompt in request.generate]
    sides = _evaluated([_weighed(one, request) for one in subjects], loaded, evaluators, reporter)
    if tasks:
        sides = [
            dataclasses.replace(side, tasks=_asked(tasks, one, request, reporter))
            for side, one in zip(sides, loaded, strict=True)
        ]
    sides = [
        dataclasses.replace(side, samples=tuple(_continued(one, ids, request.new_tokens) for ids in prompts))
        for side, one in zip(sides, loaded, strict=True)
    ]
    load = Load(1, request.prompt_tokens, request.new_tokens, request.turns, beginning=cutter.beginning)
    sides, compared = _timed(sides, loaded, load, request, reporter) if request.latency else (sides, {})
    model = subject.loaded.model
    return Findings(
        environment=environment(),
        conditions={
            "device": str(model.device),
            "dtype": str(model.dtype).removeprefix("torch."),
            "texts": {text.name: text.sha256 for text in texts},
            "windows": [[each.text, each.windows, each.seq_len] for each in evaluators],
            "bos": cutter.told,
        },
        load=load,
        model=sides[0],
        reference=sides[1] if reference else None,
        ratios=compared,
    )


def _check_positions(request: EvaluateConfig, subject: Subject) -> None:
    """Raises ConfigError where more tokens are asked for than the model has positions; defaults are always tried."""
    asked = {"prompt_tokens", "new_tokens"} & request.model_fields_set
    positions = getattr(subject.loaded.model.config, "max_position_embeddings", None)
    tokens = request.prompt_tokens + (request.new_tokens if request.latency or request.generate else 0)
    if asked and positions and tokens > positions:
        told = " and ".join(f"--{name.replace('_', '-')} {getattr(request, name)}" for name in sorted(asked))
        raise ConfigError(f"{told}: {subject.loaded.name} has no more than {positions} positions; give fewer tokens.")


def _weighed(subject: Subject, request: EvaluateConfig) -> Side:
    loaded = subject.loaded
    return Side(loaded.name, loaded.sha256, footprint(loaded.model, subject.files, request.prompt_tokens))


def _evaluators(texts: Sequence[Text], cutter: Cutter, request: EvaluateConfig) -> list[Evaluator]:
    """Returns one for each text at each length."""
    cuts = product(texts, limits(request.eval_seq_len, request.limit).items())
    return [Evaluator(cutter.windows(text, seq_len, limit), text=text.name) for text, (seq_len, limit) in cuts]


def _evaluated(
    sides: list[Side], loaded: list[LoadedModel], evaluators: Sequence[Evaluator], reporter: Reporter
) -> list[Side]:
    """Evaluates the reference first, so that the model is compared with what it predicted."""
    longest = getattr(loaded[0].model.config, "max_position_embeddings", None)
    for seq_len in dict.fromkeys(each.seq_len for each in evaluators):
        if longest and seq_len > longest:
            reporter.warn(f"windows of {seq_len} tokens are longer than the {longest} that the model was made for")
    last = in_turn(evaluators, Evaluator.dense, loaded[-1].model, sides[-1].name, reporter)
    if len(sides) == 1:
        return [dataclasses.replace(sides[0], evaluations=on_texts(last, None))]
    first = in_turn(evaluators, Evaluator.compare, loaded[0].model, sides[0].name, reporter)
    return [
        dataclasses.replace(side, evaluations=on_texts(found, last))
        for side, found in zip(sides, (first, last), strict=True)
    ]


def _asked(
    tasks: Tasks, loaded: LoadedModel, request: EvaluateConfig, reporter: Reporter
) -> dict[str, dict[str, float]]:
    with reporter.task(f"tasks of {loaded.name}", 1):
        return tasks.run(loaded.model, loaded.tokenizer, request.batch_size)


def _prompt(cutter: Cutter, prompt: str) -> Tensor:
    """Returns the prompt's tokens (1, T), as the tokenizer itself cuts a text."""
    ids: Tensor = cutter.tokenizer(prompt, return_tensors="pt")["input_ids"]
    if not ids.shape[1]:
        raise ConfigError(f"the prompt {prompt!r} has no token; give --generate some text.")
    cutter.check(ids)
    return ids


@torch.inference_mode()
def _continued(loaded: LoadedModel, ids: Tensor, new_tokens: int) -> str:
    """Returns what the model writes after the prompt (1, T), taking the likeliest token each time."""
    model = loaded.model
    ids = ids.to(model.device)
    with quiet():
        written = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False, use_cache=True
        )
    return str(loaded.tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True))


def _timed(
    sides: list[Side], loaded: list[LoadedModel], load: Load, request: EvaluateConfig, reporter: Reporter
) -> tuple[list[Side], dict[int, Timing]]:
    times: list[dict[int, Timing]] = [{} for _ in sides]
    compared: dict[int, Timing] = {}
    models = [one.model for one in loaded]
    for batch_size in request.latency_batch_sizes:
        with reporter.task(f"latency, batch {batch_size}", 1):
            turns = take_turns(models, dataclasses.replace(load, batch_size=batch_size))
        for index, own in enumerate(turns):
            times[index][batch_size] = Timing(
                Spread.of([one.prefill for one in own]), Spread.of([one.decode for one in own])
            )
        if len(turns) > 1:
            ours, theirs = turns
            compared[batch_size] = Timing(ratios(ours, theirs, _prefill), ratios(ours, theirs, _decode))
    return [dataclasses.replace(side, latency=own) for side, own in zip(sides, times, strict=True)], compared


def _prefill(seconds: Seconds) -> float:
    return seconds.prefill


def _decode(seconds: Seconds) -> float:
    return seconds.decode
