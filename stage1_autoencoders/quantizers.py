"""Vector quantizers: maps of vectors to codes of a learned codebook and back.

The codebook loss and the moving averages are those of van den Oord et al. (2017), https://arxiv.org/abs/1711.00937.
Everything here is computed in float32, also inside autocast, and all processes of a run hold the same codebook.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

Distance = Literal["euclidean", "cosine"]

KMEANS_STEPS = 10
_BLOCK = 64  # codes whose best score is found together in the look-up
_TILE_CPU = 2**19  # scores held at once: 2 MB, about a core's second-level cache
_TILE_GPU = 2**25


@dataclass(frozen=True)
class QuantizerOutput:
    """What every quantizer returns in training.

    Attributes:
        vectors: the quantized vectors (B, C, H, W); the gradient passes straight through to the input.
        codes: int64 (B, H, W).
        loss: scalar to add to the reconstruction loss, a mean over all vector elements.
    """

    vectors: Tensor
    codes: Tensor
    loss: Tensor


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
    # The last block is filled up with codes that score -inf.
    keys = codebook.new_zeros(blocks * _BLOCK, D + 1)
    keys[:K, :D] = codebook
    keys[:K, D] = codebook.square().sum(1) / -2
    keys[K:, D] = -torch.inf

    tile = _TILE_CPU if vectors.device.type == "cpu" else _TILE_GPU
    step = max(_BLOCK, tile // len(keys))
    queries = vectors.new_ones(min(step, N), D + 1)
    scores = vectors.new_empty(len(keys) * len(queries))
    for start in range(0, N, step):
        chunk = vectors[start : start + step]
        n = len(chunk)
        queries[:n, :D] = chunk
        tiles = scores[: len(keys) * n].view(blocks, _BLOCK, n)
        torch.mm(keys, queries[:n].T, out=tiles.view(-1, n))
        best_block = tiles.amax(1).argmax(0)  # (n,)
        in_block = tiles.gather(0, best_block.expand(1, _BLOCK, n))[0].argmax(0)  # (n,)
        torch.add(in_block, best_block, alpha=_BLOCK, out=codes[start : start + n])
    return codes


class Codebook(nn.Module, ABC):
    """Abstract: a table of vectors, filled from the first training batch, whose unused rows are restarted.

    Args:
        size: number of codes K.
        dim: length of a code vector.
        distance: `cosine` scales inputs and codes to length 1 before anything else.
        commitment: weight beta of the commitment loss.
        decay: of the moving averages, per training step.
        restart_below: share of even use under which a code is restarted; 0 switches it off.
    """

    codebook: Tensor
    counts: Tensor
    initialised: Tensor

    def __init__(
        self,
        *,
        size: int,
        dim: int,
        distance: Distance,
        commitment: float,
        decay: float,
        restart_below: float,
    ) -> None:
        super().__init__()
        self.distance = distance
        self.commitment = commitment
        self.decay = decay
        self.restart_below = restart_below
        self.register_buffer("counts", torch.ones(size))
        self.register_buffer("initialised", torch.tensor(False))

    def forward(self, inputs: Tensor) -> QuantizerOutput:
        """Quantize (B, C, H, W), and in training mode let the codebook learn from it."""
        with torch.autocast(inputs.device.type, enabled=False):
            vectors = self._rows(inputs)  # (N, C)
            if self.training:
                self._prepare(vectors.detach())
            entries = self._entries()
            codes = nearest_codes(vectors.detach(), entries.detach())
            quantized = F.embedding(codes, entries)
            loss = self._loss(vectors, quantized)
            if self.training:
                self._learn(vectors.detach(), codes)
            # The zero in brackets carries the gradient; z + (e - z) would round e.
            straight = quantized.detach() + (vectors - vectors.detach())
        B, _, H, W = inputs.shape
        return QuantizerOutput(_as_map(straight, B, H, W), codes.view(B, H, W), loss)

    def vectors_to_codes(self, vectors: Tensor) -> Tensor:
        """(B, C, H, W) to int64 (B, H, W); learns nothing."""
        B, _, H, W = vectors.shape
        with torch.autocast(vectors.device.type, enabled=False):
            return nearest_codes(self._rows(vectors).detach(), self._entries().detach()).view(
                B, H, W
            )

    def codes_to_vectors(self, codes: Tensor) -> Tensor:
        """Int64 (B, H, W) to (B, C, H, W)."""
        with torch.autocast(codes.device.type, enabled=False):
            return _as_map(F.embedding(codes.flatten(), self._entries()), *codes.shape)

    @abstractmethod
    def _loss(self, vectors: Tensor, quantized: Tensor) -> Tensor:
        """Scalar loss of vectors (N, C) and their codes (N, C), both with gradient."""

    @abstractmethod
    def _learn(self, vectors: Tensor, codes: Tensor) -> None:
        """Update the moving averages from a training batch."""

    @abstractmethod
    def _set(self, chosen: Tensor, vectors: Tensor, counts: Tensor) -> None:
        """Give the chosen codes (K,) new vectors (K, C) and usage counts (K,)."""

    def _entries(self) -> Tensor:
        """The code vectors as they are compared and returned, float32 (K, C)."""
        return (
            F.normalize(self.codebook.float(), dim=1)
            if self.distance == "cosine"
            else self.codebook.float()
        )

    def _rows(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) to float32 (B * H * W, C)."""
        rows = maps.float().permute(0, 2, 3, 1).reshape(-1, maps.shape[1])
        return F.normalize(rows, dim=1) if self.distance == "cosine" else rows

    @torch.no_grad()
    def _prepare(self, vectors: Tensor) -> None:
        """Fill the codebook from the first batch; afterwards restart the codes that are hardly used."""
        if not self.initialised:
            centres, counts = kmeans(vectors, len(self.counts), normalise=self.distance == "cosine")
            self._set(torch.ones_like(counts, dtype=torch.bool), centres, counts)
            self.initialised.fill_(True)
            return
        even = self.counts.mean()
        dead = self.counts < self.restart_below * even
        if dead.any():
            live = self._entries()[~dead]
            errors = (vectors - live[nearest_codes(vectors, live)]).square().sum(1)
            self._set(dead, sample_rows(vectors, errors, len(dead)), even.expand_as(self.counts))


class EMACodebook(Codebook):
    """Codes are moving averages of the vectors assigned to them (van den Oord et al., 2017, appendix A.1)."""

    sums: Tensor

    def __init__(
        self,
        *,
        size: int,
        dim: int,
        distance: Distance,
        commitment: float,
        decay: float,
        restart_below: float,
    ) -> None:
        super().__init__(
            size=size,
            dim=dim,
            distance=distance,
            commitment=commitment,
            decay=decay,
            restart_below=restart_below,
        )
        self.register_buffer("codebook", torch.randn(size, dim))
        self.register_buffer("sums", self.codebook.clone())

    def _loss(self, vectors: Tensor, quantized: Tensor) -> Tensor:
        return self.commitment * F.mse_loss(vectors, quantized.detach())

    @torch.no_grad()
    def _learn(self, vectors: Tensor, codes: Tensor) -> None:
        """Eqs. 6-8 of the paper, with the counts smoothed so that an unused code is not divided by zero."""
        counts, sums = cluster_statistics(vectors, codes, len(self.counts))
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        total, smoothing = self.counts.sum(), 1e-5
        smoothed = (self.counts + smoothing) * (total / (total + len(counts) * smoothing))
        means = self.sums / smoothed[:, None]
        self.codebook.copy_(F.normalize(means, dim=1) if self.distance == "cosine" else means)

    def _set(self, chosen: Tensor, vectors: Tensor, counts: Tensor) -> None:
        self.codebook.copy_(torch.where(chosen[:, None], vectors, self.codebook))
        self.counts.copy_(torch.where(chosen, counts, self.counts))
        self.sums.copy_(torch.where(chosen[:, None], vectors * counts[:, None], self.sums))


class GradientCodebook(Codebook):
    """Codes are parameters that the codebook loss pulls to their vectors (van den Oord et al., 2017, Eq. 3)."""

    def __init__(
        self,
        *,
        size: int,
        dim: int,
        distance: Distance,
        commitment: float,
        decay: float,
        restart_below: float,
    ) -> None:
        super().__init__(
            size=size,
            dim=dim,
            distance=distance,
            commitment=commitment,
            decay=decay,
            restart_below=restart_below,
        )
        self.codebook = nn.Parameter(torch.randn(size, dim))

    def _loss(self, vectors: Tensor, quantized: Tensor) -> Tensor:
        """|sg[z] - e|^2 + beta |z - sg[e]|^2: beta weighs the encoder's side, not the codebook's."""
        codebook_loss = F.mse_loss(quantized, vectors.detach())
        return codebook_loss + self.commitment * F.mse_loss(vectors, quantized.detach())

    @torch.no_grad()
    def _learn(self, vectors: Tensor, codes: Tensor) -> None:
        counts, _ = cluster_statistics(vectors, codes, len(self.counts))
        self.counts.lerp_(counts, 1 - self.decay)

    def _set(self, chosen: Tensor, vectors: Tensor, counts: Tensor) -> None:
        self.codebook.copy_(torch.where(chosen[:, None], vectors, self.codebook))
        self.counts.copy_(torch.where(chosen, counts, self.counts))


@torch.no_grad()
def kmeans(vectors: Tensor, size: int, *, normalise: bool) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm over the vectors of all processes; an empty cluster is moved to a badly coded vector.

    Args:
        vectors: this process's vectors, float32 (N, D).
        size: number of centres K.
        normalise: scale the centres to length 1 (spherical k-means).

    Returns:
        Centres (K, D) and how many vectors belong to each (K,), the same on all processes.
    """
    centres = sample_rows(vectors, torch.ones_like(vectors[:, 0]), size)
    for _ in range(KMEANS_STEPS):
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


def _as_map(rows: Tensor, B: int, H: int, W: int) -> Tensor:
    """(B * H * W, C) to (B, C, H, W), without a copy."""
    return rows.view(B, H, W, -1).permute(0, 3, 1, 2)
