from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from latent_prior.machine import available_cores
from latent_prior.options import RunOptions
from latent_prior.processes import share, start_processes, start_training_processes


@pytest.fixture(autouse=True)
def restore_threads(fresh_processes):
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_cpu_process_takes_its_share_of_the_cores(monkeypatch):
    """`accelerate launch` exports OMP_NUM_THREADS=1, which would leave the other cores idle."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    start_processes()
    assert torch.get_num_threads() == available_cores()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    start_processes()
    assert torch.get_num_threads() == max(1, available_cores() // 2)
    start_processes(cpu_threads=3)
    assert torch.get_num_threads() == 3


def test_a_lone_process_that_was_to_have_company_refuses(monkeypatch, fresh_processes):
    start_processes(
        cpu_threads=1
    )  # alone, as without ACCELERATE_USE_CPU on a machine that has no GPU
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="ACCELERATE_USE_CPU=true torchrun --standalone"):
        start_processes(cpu_threads=1)


def test_half_precision_that_a_cpu_does_not_compute_is_refused():
    with pytest.raises(ValueError, match="--mixed_precision fp16"):
        start_processes(mixed_precision="fp16", cpu_threads=1)


def test_gradients_lie_where_they_are_sent_from(tmp_path):
    """A copy of them would be 4 bytes per parameter."""
    accelerator = start_processes(cpu_threads=1)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        layers = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
        model = DistributedDataParallel(layers, **accelerator.ddp_handler.to_kwargs())
        for _ in range(2):
            model.zero_grad()
            model(torch.ones(1, 4)).sum().backward()
            places = {each.grad.untyped_storage().data_ptr() for each in layers.parameters()}
            assert len(places) == 1
    finally:
        dist.destroy_process_group()


def test_the_same_seed_gives_the_same_weights(fresh_processes):
    drawn = []
    for seed in (3, 3, 4):
        fresh_processes()
        options = RunOptions(output_dir="x", seed=seed, accumulation_steps=2, cpu_threads=1)
        accelerator = start_training_processes(options)
        assert accelerator.gradient_accumulation_steps == 2
        drawn.append(torch.rand(3))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("num_processes", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [0, 2, 7, 8, 33, 300])
def test_processes_take_the_batches_of_one_process_in_order(count, num_processes):
    def shares(processes):
        ranks = [
            SimpleNamespace(process_index=r, num_processes=processes) for r in range(processes)
        ]
        return [share(count, 4, rank) for rank in ranks]

    together = [batch for own in shares(num_processes) for batch in own]
    assert [together] == shares(1)
    assert [index for batch in together for index in batch] == list(range(count))
    sizes = [len(own) for own in shares(num_processes)]
    assert max(sizes) - min(sizes) <= 1
