"""Nearest codes, cluster statistics and k-means over the vectors of all processes of a run."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

KMEANS_STEPS = 10
_BLOCK = 64  # codes per block of the look-up
# Scores held at once. 4 MB stay in a CPU's cache, and its threads seldom wait for each other.
_TILE_CPU = 2**20
_TILE_GPU = 2**25


@torch.no_grad()
def nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index of the codebook row with the smallest Euclidean distance; the lowest index of a tie.

    |v - c|^2 is smallest where v.c - |c|^2 / 2 is largest. The scores of a few vectors at a time
    come from one matrix product, whose column of ones adds the second term, in a buffer that stays
    in the cache. An arg-max over thousands of scores is not vectorised and slow, so a plain maximum
    gives the best score of every block of 64 codes, then come the best block and the best code in
    it. Memory does not depend on N.

    Args:
        vectors: float32 (N, D).
        codebook: float32 (K, D).

    Returns:
        int64 (N,).
    """
    (N, D), K = vectors.shape, len(codebook)
    blocks = -(-K // _BLOCK)
    codes = torch.empty(N, dtype=torch.int64, device=vectors.device)
    # Centring both sides keeps the distances and removes the rounding error of a common offset.
    centre = codebook.mean(0)
    # The last block is padded with codes that score -inf.
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
    """Lloyd's algorithm over the vectors of all processes.

    An empty cluster moves to a vector with a large quantization error.

    Args:
        vectors: this process's vectors, float32 (N, D).
        size: number of centres K.
        normalise: scale the centres to length 1 (spherical k-means).
        steps: with 0 the centres are random vectors of the batch.

    Returns:
        Centres (K, D) and the number of vectors in each cluster (K,), the same on all processes.
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
    """Number (K,) and sum (K, D) of each code's vectors, over all processes' vectors (N, D)."""
    table = vectors.new_zeros(size, vectors.shape[1] + 1)
    table.index_add_(0, codes, F.pad(vectors, (0, 1), value=1.0))
    if dist.is_initialized():
        dist.all_reduce(table)
    return table[:, -1], table[:, :-1]


def sample_rows(vectors: Tensor, weights: Tensor, size: int) -> Tensor:
    """Sample rows of the joint batch without replacement, with probability proportional to weight.

    Every row's weight is divided by exponential noise, and the largest results win (Efraimidis &
    Spirakis, 2006). A row's noise depends on its position in the joint batch and comes from the
    global generator of the first process, so any number of processes samples the same rows.

    Args:
        vectors: this process's rows (N, D).
        weights: non-negative (N,).
        size: rows to sample; a batch with fewer rows repeats them.

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
    first, total = int(sum(all_rows[:rank])), int(sum(all_rows))
    noise = torch.empty(total).exponential_(generator=torch.Generator().manual_seed(int(seed)))
    keys = weights / noise[first : first + len(vectors)].to(weights)

    best = keys.topk(min(size, len(keys))).indices
    # `size` candidates per process; the padding has a key below every real one.
    candidates = F.pad(
        torch.cat([vectors[best], keys[best, None]], 1), (0, 0, 0, size - len(best)), value=-1.0
    )
    if dist.is_initialized():
        gathered = [torch.empty_like(candidates) for _ in all_rows]
        dist.all_gather(gathered, candidates)
        candidates = torch.cat(gathered)
    winners = candidates[:, -1].topk(min(size, total)).indices
    return candidates[winners[torch.arange(size, device=winners.device) % len(winners)], :-1]
