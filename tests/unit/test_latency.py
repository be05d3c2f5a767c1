"""What is timed, in which order, and how repeated times are summarised; never how long anything took."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from polyprune_core.evaluation import latency
from polyprune_core.evaluation.latency import Load, Seconds, Spread, ratios, request, take_turns


class Watched:
    """Stands for a model; notes the shape of every call."""

    device = torch.device("cpu")
    config = SimpleNamespace(vocab_size=11)

    def __init__(self, name: str, calls: list) -> None:
        self.name, self.calls = name, calls

    def __call__(self, input_ids, past_key_values=0, use_cache=False, logits_to_keep=0):
        assert use_cache
        assert logits_to_keep == 1
        assert int(input_ids.max()) < 11
        self.calls.append((self.name, tuple(input_ids.shape), past_key_values))
        logits = torch.nn.functional.one_hot(torch.full((len(input_ids), 1), 4), 11).float()
        return SimpleNamespace(logits=logits, past_key_values=past_key_values + input_ids.shape[1])


def test_models_take_turns_and_the_first_rounds_do_not_count() -> None:
    calls: list = []
    load = Load(batch_size=3, prompt_tokens=7, new_tokens=2, turns=4, warm_up=2)
    turns = take_turns([Watched("small", calls), Watched("dense", calls)], load)
    assert [len(one) for one in turns] == [4, 4]
    rounds = [calls[start : start + 6] for start in range(0, len(calls), 6)]
    assert len(rounds) == 6
    for name, part in [("small", slice(0, 3)), ("dense", slice(3, 6))]:
        assert all(one[part] == [(name, (3, 7), 0), (name, (3, 1), 7), (name, (3, 1), 8)] for one in rounds)


def test_decode_is_per_token_and_reading_the_prompt_is_no_part_of_it(monkeypatch) -> None:
    clock = iter([0.0, 2.0, 10.0, 16.0])
    monkeypatch.setattr(latency.time, "perf_counter", lambda: next(clock))
    assert request(Watched("small", []), torch.zeros(1, 5, dtype=torch.int64), 3) == Seconds(prefill=2.0, decode=2.0)


def test_a_ratio_is_the_median_of_turn_by_turn_ratios() -> None:
    ours = [Seconds(value, 0) for value in (1.0, 4.0, 30.0)]
    theirs = [Seconds(value, 0) for value in (2.0, 4.0, 10.0)]  # the machine drifts; the ratios are 0.5, 1 and 3
    assert ratios(ours, theirs, lambda seconds: seconds.prefill) == Spread(1.0, (0.75, 2.0))


@pytest.mark.parametrize("values", [(1.0, 1.0), (3.0, 1.0, 2.0)])
def test_a_spread_holds_its_median(values) -> None:
    spread = Spread.of(values)
    assert spread.quartiles[0] <= spread.median <= spread.quartiles[1]


def test_a_real_model_reads_and_writes_with_its_cache(model) -> None:
    (turns,) = take_turns([model], Load(batch_size=2, prompt_tokens=9, new_tokens=3, turns=2, warm_up=0))
    assert len(turns) == 2
    assert all(one.prefill > 0 and one.decode > 0 for one in turns)
