"""Nearest neighbours, cluster statistics and k-means over vectors that are spread over the processes of a run."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

KMEANS_STEPS = 10
_BLOCK = 64  # codes whose best score is found together in the look-up
# Scores held at once. On a CPU 4 MB: they stay in a cache, and the threads seldom wait for each other.
_TILE_CPU = 2**20
_TILE_GPU = 2**25


@torch.no_grad()
def nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index of the codebook row with the smallest Euclidean distance; the lowest one of equals.

    |v - c|^2 is least where v.c - |c|^2 / 2 is largest. The scores of a few vectors at a time come from one matrix
    product, which adds the second term through a column of ones, into a buffer that stays in the cache. An arg-max over
    thousands of scores is slow because it cannot be vectorised, so first the best score of every block of 64 codes
    is found (a plain maximum), then the best block, then the best code in it. Memory does not depend on N.

    Args:
        vectors: float32 (N, D).
        codebook: float32 (K, D).

    Returns:
        int64 (N,).
    """
    (N, D), K = vectors.shape, len(codebook)
    blocks = -(-K // _BLOCK)
    codes = torch.empty(N, dtype=torch.int64, device=vectors.device)
    # Distances do not change when both sides are centred, but the scores lose the rounding error of a common offset.
    centre = codebook.mean(0)
    # The last block is filled up with codes that score -inf.
    keys = codebook.new_zeros(blocks * _BLOCK, D + 1)
    keys[:K, :D] = codebook - centre
    keys[:K, D] = keys[:K, :D].square().sum(1) / -2
    keys[K:, D] = -torch.inf

    tile = _TILE_CPU if vectors.device.type == "cpu" else _TILE_GPU
    step = max(_BLOCK, tile // len(keys))
    queries = vectors.new_ones(min(step, N), D + 1)
    scores = vectors.new_empty(len(keys) * len(queries))
    for start in range(0, N, step):
        chunk = vectors[start : start + step]
        n = len(chunk)
        torch.sub(chunk, centre, out=queries[:n, :D])
        tiles = scores[: len(keys) * n].view(blocks, _BLOCK, n)
        torch.mm(keys, queries[:n].T, out=tiles.view(-1, n))
        best_block = tiles.amax(1).argmax(0)  # (n,)
        in_block = tiles.gather(0, best_block.expand(1, _BLOCK, n))[0].argmax(0)  # (n,)
        torch.add(in_block, best_block, alpha=_BLOCK, out=codes[start : start + n])
    return codes


@torch.no_grad()
def kmeans(
    vectors: Tensor, size: int, *, normalise: bool, steps: int = KMEANS_STEPS
) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm over the vectors of all processes; an empty cluster is moved to a badly coded vector.

    Args:
        vectors: this process's vectors, float32 (N, D).
        size: number of centres K.
        normalise: scale the centres to length 1 (spherical k-means).
        steps: with 0 the centres are vectors drawn from the batch.

    Returns:
        Centres (K, D) and how many vectors belong to each (K,), the same on all processes.
    """
    centres = sample_rows(vectors, torch.ones_like(vectors[:, 0]), size)
    for _ in range(steps):
        codes = nearest_codes(vectors, centres)
        counts, sums = cluster_statistics(vectors, codes, size)
        spare = sample_rows(vectors, (vectors - centres[codes]).square().sum(1), size)
        centres = torch.where(counts[:, None] > 0, sums / counts[:, None], spare)
        centres = F.normalize(centres, dim=1) if normalise else centres
    counts, _ = cluster_statistics(vectors, nearest_codes(vectors, centres), size)
    return centres, counts


def cluster_statistics(vectors: Tensor, codes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Number (K,) and sum (K, D) of the vectors of each code, over the vectors (N, D) of all processes."""
    table = vectors.new_zeros(size, vectors.shape[1] + 1)
    table.index_add_(0, codes, F.pad(vectors, (0, 1), value=1.0))
    if dist.is_initialized():
        dist.all_reduce(table)
    return table[:, -1], table[:, :-1]


def sample_rows(vectors: Tensor, weights: Tensor, size: int) -> Tensor:
    """Draw rows without replacement, with probability proportional to their weight, from the batch of all processes.

    Every row's weight is divided by exponential noise and the largest win (Efraimidis & Spirakis, 2006). The
    noise belongs to the row's place in the joint batch and comes from the global generator of the first process,
    so any number of processes draws the same rows as a single one would.

    Args:
        vectors: this process's rows (N, D).
        weights: not negative (N,).
        size: rows to draw; where the batch has fewer, they are repeated.

    Returns:
        (size, D), the same on all processes.
    """
    seed = torch.randint(2**62, (1,)).to(vectors.device)
    rows = torch.tensor([len(vectors)], device=vectors.device)
    all_rows = [rows]
    rank = 0
    if dist.is_initialized():
        rank = dist.get_rank()
        dist.broadcast(seed, 0)
        all_rows = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(all_rows, rows)
    before, total = int(sum(all_rows[:rank])), int(sum(all_rows))
    noise = torch.empty(total).exponential_(generator=torch.Generator().manual_seed(int(seed)))
    keys = weights / noise[before : before + len(vectors)].to(weights)

    best = keys.topk(min(size, len(keys))).indices
    # Each process offers `size` candidates; missing ones get a key below every real one.
    offer = F.pad(
        torch.cat([vectors[best], keys[best, None]], 1), (0, 0, 0, size - len(best)), value=-1.0
    )
    if dist.is_initialized():
        offers = [torch.empty_like(offer) for _ in all_rows]
        dist.all_gather(offers, offer)
        offer = torch.cat(offers)
    winners = offer[:, -1].topk(min(size, total)).indices
    return offer[winners[torch.arange(size, device=winners.device) % len(winners)], :-1]
