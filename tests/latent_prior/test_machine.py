import threading

import pytest

from latent_prior.machine import available_cores, in_threads, is_main_process, thread_pool


def test_every_number_is_called_once():
    seen, lock = [], threading.Lock()

    def note(number: int) -> None:
        with lock:
            seen.append(number)

    assert in_threads(lambda number: note(number) or -number, range(20_001)) == [
        -number for number in range(20_001)
    ]
    assert sorted(seen) == list(range(20_001))
    assert in_threads(note, []) == []


def test_the_first_failure_is_raised():
    def fail(number: int) -> None:
        if number in (700, 30):
            raise ValueError(f"number {number}")

    with pytest.raises(ValueError, match="number 30"):
        in_threads(fail, range(1000))


def test_there_is_one_pool_and_at_least_one_core():
    assert thread_pool() is thread_pool()
    assert available_cores() >= 1


@pytest.mark.parametrize(("rank", "speaks"), [(None, True), ("0", True), ("1", False)])
def test_the_first_process_speaks(monkeypatch, rank, speaks):
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    assert is_main_process() is speaks
