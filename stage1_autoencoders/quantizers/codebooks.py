"""Codebooks: tables of vectors, learned as moving averages or by gradients.

Codebook loss and moving averages follow van den Oord et al. (2017),
https://arxiv.org/abs/1711.00937. All processes of a run hold the same codebook.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_prior.stage1_autoencoders.options import QuantizerOptions
from latent_prior.stage1_autoencoders.quantizers.base import (
    LossWeights,
    Quantizer,
    QuantizerOutput,
    straight_through,
)
from latent_prior.stage1_autoencoders.quantizers.clustering import (
    KMEANS_STEPS,
    cluster_statistics,
    kmeans,
    nearest_codes,
    sample_rows,
)
from latent_prior.stage1_autoencoders.quantizers.entropy import codebook_entropy


class Codebook(Quantizer):
    """Abstract: a table of vectors, filled from the first training batch; unused rows restart.

    With the distance `cosine`, inputs and codes are first scaled to length 1.
    """

    reads = (*LossWeights._fields, "distance", "estimator", "initialisation")
    default_weights = LossWeights(0.25, 0.0, 0.01)

    codebook: Tensor
    counts: Tensor
    initialised: Tensor

    def __init__(self, options: QuantizerOptions) -> None:
        super().__init__()
        self.dim = options.code_dim
        self.vocabulary = options.codebook_size
        self.cosine = options.distance == "cosine"
        self.estimator = options.estimator
        self.kmeans_steps = KMEANS_STEPS if options.initialisation == "kmeans" else 0
        self.weights = self.loss_weights(options)
        self.decay = options.codebook_decay
        self.restart_below = options.restart_below
        self.register_buffer("counts", torch.ones(self.vocabulary))
        self.register_buffer("initialised", torch.tensor(False))
        self._create(torch.randn(self.vocabulary, self.dim))
        # The host's copy of what it must know about the state on the device; not saved.
        self._filled = False
        self._dead_on_host: Tensor | None = None
        self._dead_copied: torch.cuda.Event | None = None
        self._moved: Tensor | None = None

    def forward(self, inputs: Tensor) -> QuantizerOutput:
        """Quantize (B, D, H, W); in training mode, update the codebook."""
        B, _, H, W = inputs.shape
        with torch.autocast(inputs.device.type, enabled=False):
            vectors = self._scaled(rows_of(inputs))  # (N, D)
            quantized, codes, loss = self.quantize(vectors)
            carried = carry_gradient(vectors, quantized, self.estimator)
        return QuantizerOutput(
            maps_of(carried, B, H, W).to(self.codebook.dtype), codes.view(B, 1, H, W), loss
        )

    def vectors_to_codes(self, vectors: Tensor) -> Tensor:
        """(B, D, H, W) to int64 (B, 1, H, W), without learning."""
        B, _, H, W = vectors.shape
        with torch.autocast(vectors.device.type, enabled=False):
            rows = self._scaled(rows_of(vectors)).detach()
            return nearest_codes(rows, self.entries().detach()).view(B, 1, H, W)

    def codes_to_vectors(self, codes: Tensor) -> Tensor:
        """Int64 (B, 1, H, W) to (B, D, H, W) in the dtype of the weights."""
        B, _, H, W = codes.shape
        with torch.autocast(codes.device.type, enabled=False):
            rows = F.embedding(codes.flatten(), self.entries())
            return maps_of(rows, B, H, W).to(self.codebook.dtype)

    def quantize(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantize rows; in training mode, update the codebook.

        Args:
            vectors: float32 (N, D), of length 1 if the distance is cosine.

        Returns:
            The code vectors (N, D), the codes int64 (N,) and the scalar loss.
        """
        if self.training:
            self._prepare(vectors.detach())
        entries = self.entries()
        codes = nearest_codes(vectors.detach(), entries.detach())
        quantized = F.embedding(codes, entries)
        loss = self._loss(vectors, quantized)
        if self.weights.entropy_weight:
            loss = loss + self.weights.entropy_weight * codebook_entropy(
                vectors, entries, self.weights.entropy_temperature, joint=self.training
            )
        if self.training:
            self._learn(vectors.detach(), codes)
            self._copy_any_dead()
        return quantized, codes, loss

    def entries(self) -> Tensor:
        """The code vectors that are compared and returned, float32 (K, D)."""
        return self._scaled(self.codebook.float())

    @abstractmethod
    def _create(self, vectors: Tensor) -> None:
        """Register the code vectors (K, D) and the state that their updates need."""

    def _loss(self, vectors: Tensor, quantized: Tensor) -> Tensor:
        """Scalar commitment loss of vectors (N, D) to their code vectors (N, D)."""
        return self.weights.commitment * F.mse_loss(vectors, quantized.detach())

    @torch.no_grad()
    def _learn(self, vectors: Tensor, codes: Tensor) -> Tensor:
        """Update the usage counts from a training batch; returns the codes' sums (K, D)."""
        counts, sums = cluster_statistics(vectors, codes, len(self.counts))
        self.counts.lerp_(counts, 1 - self.decay)
        return sums

    @torch.no_grad()
    def _set(self, chosen: Tensor, vectors: Tensor, counts: Tensor) -> None:
        """Give the chosen codes (K,) new vectors (K, D) and usage counts (K,)."""
        self.codebook.copy_(torch.where(chosen[:, None], vectors, self.codebook))
        self.counts.copy_(torch.where(chosen, counts, self.counts))

    def _scaled(self, rows: Tensor) -> Tensor:
        return F.normalize(rows, dim=1) if self.cosine else rows

    @torch.no_grad()
    def _prepare(self, vectors: Tensor) -> None:
        """Fill the codebook from the first batch; in later batches restart dead codes."""
        if not self._filled:
            self._filled = bool(self.initialised)  # waits for the device, at the first step only
        if not self._filled:
            centres, counts = kmeans(
                vectors, len(self.counts), normalise=self.cosine, steps=self.kmeans_steps
            )
            self._set(torch.ones_like(counts, dtype=torch.bool), centres, counts)
            self.initialised.fill_(True)
            self._filled = True
            return
        if self._any_dead():
            even = self.counts.mean()
            dead = self._dead()
            live = self.entries()[~dead]
            errors = (vectors - live[nearest_codes(vectors, live)]).square().sum(1)
            self._set(dead, sample_rows(vectors, errors, len(dead)), even.expand_as(self.counts))

    def _dead(self) -> Tensor:
        """Codes used less than `restart_below` of the mean, bool (K,)."""
        return self.counts < self.restart_below * self.counts.mean()

    def _copy_any_dead(self) -> None:
        """Start copying to the host whether any code is dead after this step."""
        if self.counts.is_cuda:
            self._dead_on_host = self._dead().any().to("cpu", non_blocking=True)
            self._dead_copied = torch.cuda.current_stream().record_event()

    def _any_dead(self) -> bool:
        """Whether any code is dead.

        On a GPU this waits for the copy of the previous step, not for the work queued since then.
        """
        if self._dead_on_host is None or self._dead_copied is None:
            return bool(self._dead().any())
        self._dead_copied.synchronize()
        return bool(self._dead_on_host)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        """Also drop the host's copies, which describe the old state."""
        super()._load_from_state_dict(*arguments)
        self._filled, self._dead_on_host, self._dead_copied = False, None, None
        self._moved = None


class EMACodebook(Codebook):
    """Codes are moving averages of their vectors (van den Oord et al., 2017, appendix A.1)."""

    sums: Tensor

    def _create(self, vectors: Tensor) -> None:
        self.register_buffer("codebook", vectors)
        self.register_buffer("sums", vectors.clone())

    @torch.no_grad()
    def _learn(self, vectors: Tensor, codes: Tensor) -> Tensor:
        """Eqs. 6-8 of the paper; smoothed counts avoid a division by zero for an unused code."""
        sums = super()._learn(vectors, codes)
        self.sums.lerp_(sums, 1 - self.decay)
        total, smoothing = self.counts.sum(), 1e-5
        smoothed = (self.counts + smoothing) * (total / (total + self.vocabulary * smoothing))
        self.codebook.copy_(self._scaled(self.sums / smoothed[:, None]))
        return sums

    @torch.no_grad()
    def _set(self, chosen: Tensor, vectors: Tensor, counts: Tensor) -> None:
        super()._set(chosen, vectors, counts)
        self.sums.copy_(torch.where(chosen[:, None], vectors * counts[:, None], self.sums))


class GradientCodebook(Codebook):
    """Codes are parameters, trained by the codebook loss (van den Oord et al., 2017, Eq. 3)."""

    def _create(self, vectors: Tensor) -> None:
        self.codebook = nn.Parameter(vectors)

    def take_moved(self) -> Tensor | None:
        """Codes that were filled or restarted since the last call, bool (K,); None if none were."""
        moved, self._moved = self._moved, None
        return moved

    @torch.no_grad()
    def _set(self, chosen: Tensor, vectors: Tensor, counts: Tensor) -> None:
        super()._set(chosen, vectors, counts)
        self._moved = chosen if self._moved is None else self._moved | chosen

    def _loss(self, vectors: Tensor, quantized: Tensor) -> Tensor:
        """|sg[z] - e|^2 + beta |z - sg[e]|^2: beta weights the encoder's term only."""
        return F.mse_loss(quantized, vectors.detach()) + super()._loss(vectors, quantized)


def take_moved_codes(model: nn.Module) -> dict[str, Tensor]:
    """Rows of the model's parameters, bool (K,) by name, that are codes filled or restarted.

    They were moved since the last call, by more than a gradient would: their moving averages have
    to start anew. Codebooks that are moving averages themselves are buffers and not among them.
    """
    moved = {
        f"{name}.codebook".lstrip("."): module.take_moved()
        for name, module in model.named_modules()
        if isinstance(module, GradientCodebook)
    }
    return {name: rows for name, rows in moved.items() if rows is not None}


def rows_of(maps: Tensor) -> Tensor:
    """(B, D, H, W) to float32 (B * H * W, D)."""
    return maps.float().permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


def maps_of(rows: Tensor, B: int, H: int, W: int) -> Tensor:
    """(B * H * W, D) to (B, D, H, W)."""
    return rows.view(B, H, W, -1).permute(0, 3, 1, 2)


def carry_gradient(
    vectors: Tensor, quantized: Tensor, estimator: Literal["straight_through", "rotation"]
) -> Tensor:
    """Exactly the quantized rows (N, D), with a gradient to the vectors (N, D) only."""
    carrier = vectors if estimator == "straight_through" else rotate(vectors, quantized.detach())
    return straight_through(quantized, carrier)


def rotate(vectors: Tensor, quantized: Tensor) -> Tensor:
    """Rotate and scale each vector z onto its code q by a matrix that is treated as constant.

    q = (|q| / |z|) R z with R = I - 2 r r^T + 2 q' z'^T, where z' and q' have length 1 and r is
    z' + q' scaled to length 1 (Fifty et al., 2024, https://arxiv.org/abs/2410.06424, Sec. 4.2):
    two reflections, O(D) per vector.

    Args:
        vectors: (N, D), with gradient.
        quantized: (N, D), without gradient.
    """
    source = vectors.detach()
    z, q = F.normalize(source, dim=1), F.normalize(quantized, dim=1)
    r = F.normalize(z + q, dim=1)
    stretch = quantized.norm(dim=1, keepdim=True) / source.norm(dim=1, keepdim=True).clamp_min(1e-6)

    def component(axis: Tensor) -> Tensor:
        return (vectors * axis).sum(1, keepdim=True)

    return stretch * (vectors - 2 * component(r) * r + 2 * component(z) * q)
