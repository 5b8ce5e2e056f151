"""Vector quantizers: maps of vectors to codes of a learned codebook and back.

The codebook loss and the moving averages are those of van den Oord et al. (2017), https://arxiv.org/abs/1711.00937.
Everything here is computed in float32, also inside autocast, and all processes of a run hold the same codebook.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stage1_autoencoders.clustering import cluster_statistics, kmeans, nearest_codes, sample_rows

Distance = Literal["euclidean", "cosine"]


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
        self._create(torch.randn(size, dim))
        # What the host knows of the state on the device; not part of the state.
        self._filled = False
        self._dead_found: Tensor | None = None
        self._dead_copied: torch.cuda.Event | None = None

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
                self._announce_dead()
            # The zero in brackets carries the gradient; z + (e - z) would round e.
            straight = quantized.detach() + (vectors - vectors.detach())
        B, _, H, W = inputs.shape
        return QuantizerOutput(self._as_map(straight, B, H, W), codes.view(B, H, W), loss)

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
            return self._as_map(F.embedding(codes.flatten(), self._entries()), *codes.shape)

    @abstractmethod
    def _create(self, vectors: Tensor) -> None:
        """Hold the code vectors (K, C), as parameter or buffer, and what their learning needs besides."""

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

    def _as_map(self, rows: Tensor, B: int, H: int, W: int) -> Tensor:
        """(B * H * W, C) to (B, C, H, W) in the type of the weights: float32 unless the model was loaded as half."""
        return rows.view(B, H, W, -1).permute(0, 3, 1, 2).to(self.codebook.dtype)

    @torch.no_grad()
    def _prepare(self, vectors: Tensor) -> None:
        """Fill the codebook from the first batch; afterwards restart the codes that are hardly used."""
        if not self._filled:
            self._filled = bool(self.initialised)  # waits for the device, at the first step only
        if not self._filled:
            centres, counts = kmeans(vectors, len(self.counts), normalise=self.distance == "cosine")
            self._set(torch.ones_like(counts, dtype=torch.bool), centres, counts)
            self.initialised.fill_(True)
            self._filled = True
            return
        if self._any_dead():
            even = self.counts.mean()
            dead = self._dead()
            live = self._entries()[~dead]
            errors = (vectors - live[nearest_codes(vectors, live)]).square().sum(1)
            self._set(dead, sample_rows(vectors, errors, len(dead)), even.expand_as(self.counts))

    def _dead(self) -> Tensor:
        """Which codes are hardly used, bool (K,)."""
        return self.counts < self.restart_below * self.counts.mean()

    def _announce_dead(self) -> None:
        """Start copying to the host whether any code is dead, as the counts stand after this step."""
        if self.counts.is_cuda:
            self._dead_found = self._dead().any().to("cpu", non_blocking=True)
            self._dead_copied = torch.cuda.current_stream().record_event()

    def _any_dead(self) -> bool:
        """Whether any code is dead.

        On a GPU this waits for the previous step's copy, long done, and not for the work queued since.
        """
        if self._dead_found is None or self._dead_copied is None:
            return bool(self._dead().any())
        self._dead_copied.synchronize()
        return bool(self._dead_found)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        """Forget what the host knew of the old state."""
        super()._load_from_state_dict(*arguments)
        self._filled, self._dead_found, self._dead_copied = False, None, None


class EMACodebook(Codebook):
    """Codes are moving averages of the vectors assigned to them (van den Oord et al., 2017, appendix A.1)."""

    sums: Tensor

    def _create(self, vectors: Tensor) -> None:
        self.register_buffer("codebook", vectors)
        self.register_buffer("sums", vectors.clone())

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

    @torch.no_grad()
    def _set(self, chosen: Tensor, vectors: Tensor, counts: Tensor) -> None:
        self.codebook.copy_(torch.where(chosen[:, None], vectors, self.codebook))
        self.counts.copy_(torch.where(chosen, counts, self.counts))
        self.sums.copy_(torch.where(chosen[:, None], vectors * counts[:, None], self.sums))


class GradientCodebook(Codebook):
    """Codes are parameters that the codebook loss pulls to their vectors (van den Oord et al., 2017, Eq. 3)."""

    def _create(self, vectors: Tensor) -> None:
        self.codebook = nn.Parameter(vectors)

    def _loss(self, vectors: Tensor, quantized: Tensor) -> Tensor:
        """|sg[z] - e|^2 + beta |z - sg[e]|^2: beta weighs the encoder's side, not the codebook's."""
        codebook_loss = F.mse_loss(quantized, vectors.detach())
        return codebook_loss + self.commitment * F.mse_loss(vectors, quantized.detach())

    @torch.no_grad()
    def _learn(self, vectors: Tensor, codes: Tensor) -> None:
        counts, _ = cluster_statistics(vectors, codes, len(self.counts))
        self.counts.lerp_(counts, 1 - self.decay)

    @torch.no_grad()
    def _set(self, chosen: Tensor, vectors: Tensor, counts: Tensor) -> None:
        self.codebook.copy_(torch.where(chosen[:, None], vectors, self.codebook))
        self.counts.copy_(torch.where(chosen, counts, self.counts))
