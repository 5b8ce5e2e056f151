import pytest

from evaluation.extract import share


@pytest.mark.parametrize("num_processes", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [2, 7, 8, 33])
def test_processes_take_the_batches_of_one_process_in_order(count, num_processes):
    alone = share(count, 4, 0, 1)
    together = [
        batch for rank in range(num_processes) for batch in share(count, 4, rank, num_processes)
    ]
    assert together == alone
    assert [index for batch in together for index in batch] == list(range(count))
    sizes = [len(share(count, 4, rank, num_processes)) for rank in range(num_processes)]
    assert max(sizes) - min(sizes) <= 1
