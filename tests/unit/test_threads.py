"""How many threads torch computes in: asked, told by the environment, or the faster of all and one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from polyprune_core.utils.threads import computing_in


@pytest.fixture(autouse=True)
def three(monkeypatch) -> Iterator[None]:
    """torch would compute in three threads, and nobody says otherwise."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def never(threads: int) -> float:
    raise AssertionError("nothing is to be measured")


def test_what_is_asked_is_taken() -> None:
    with computing_in(2, pytest.fail, never):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 3  # as before, for what comes after


def test_the_environment_is_obeyed(monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with computing_in(None, pytest.fail, never):
        assert torch.get_num_threads() == 3


def test_all_are_taken_where_they_are_faster() -> None:
    with computing_in(None, pytest.fail, lambda threads: 1 / threads):
        assert torch.get_num_threads() == 3


def test_one_is_taken_where_the_others_are_kept_waiting_and_that_is_said() -> None:
    told: list[str] = []
    with computing_in(None, told.append, lambda threads: 9.0 if threads > 1 else 0.5):
        assert torch.get_num_threads() == 1
    assert told == [
        "computing in 1 thread, which is 18.0 times as fast here and now as 3: other programs use the processor. "
        "--threads 3 takes all."
    ]


def test_a_measurement_takes_a_moment_and_leaves_one_of_the_two() -> None:
    with computing_in(None, lambda text: None):
        assert torch.get_num_threads() in (1, 3)
