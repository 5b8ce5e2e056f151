"""What imported tokenizers share, with whatever network: images to codes or latents and back."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_prior.data.codes import CodeMaps, Level
from latent_prior.losses.bounded import bounded
from latent_prior.stage1_autoencoders.autoencoder import Autoencoder, DiscreteOutput
from latent_prior.stage1_autoencoders.gaussian import Gaussian
from latent_prior.stage1_autoencoders.quantizers.clustering import nearest_codes
from latent_prior.stage1_autoencoders.vae import LATENTS, VAEOutput
from latent_prior.stage1_autoencoders.vqvae import CODES, VECTORS

Search = Literal["euclidean", "cosine", "logits"]
CHOICES = "choices"
LOG_VARIANCE_RANGE = (-30.0, 20.0)
"""Range of the log-variance in latent diffusion (Rombach et al., 2022)."""


class Lookup(nn.Module):
    """A codebook that is only read.

    Args:
        size: number of codes.
        dim: length of a code vector.
        search: how a vector finds its code: the nearest row; the nearest one after both sides were
            scaled to length 1, as in LlamaGen, where the scaled row is also the code's vector; or
            the largest of the logits that a 1x1 convolution gives, as in taming's Gumbel model
            without its noise (Jang et al., 2017, https://arxiv.org/abs/1611.01144).
    """

    def __init__(self, size: int, dim: int, search: Search = "euclidean") -> None:
        super().__init__()
        self.cosine = search == "cosine"
        self.embedding = nn.Embedding(size, dim)
        self.logits = nn.Conv2d(dim, size, 1) if search == "logits" else None

    def codes(self, vectors: Tensor) -> Tensor:
        """(B, D, h, w) to int64 (B, h, w); the lower index of a tie."""
        if self.logits is not None:
            return self.logits(vectors).argmax(1)
        B, D, h, w = vectors.shape
        rows = vectors.float().permute(0, 2, 3, 1).reshape(-1, D)
        if self.cosine:
            rows = F.normalize(rows, dim=1)
        return nearest_codes(rows, self.rows().float()).view(B, h, w)

    def vectors(self, codes: Tensor) -> Tensor:
        """(B, h, w) to (B, D, h, w); contiguous, as the originals have it, to equal their bits."""
        return F.embedding(codes, self.rows()).permute(0, 3, 1, 2).contiguous()

    def rows(self) -> Tensor:
        """The codes' vectors (K, D)."""
        rows = self.embedding.weight
        return F.normalize(rows, dim=1) if self.cosine else rows


class Tokenizer(Autoencoder):
    """Abstract: an autoencoder whose weights come from elsewhere and are not trained here."""

    encoder: nn.Module
    decoder: nn.Module
    quant_conv: nn.Module
    post_quant_conv: nn.Module

    choices: Tensor

    def _store_choices(self, *choices: object) -> None:
        """Store a digest of what no other weight tells, uint8 (32,), among the weights.

        The same file read in two ways gives other codes, so the fingerprint must differ as well.
        """
        digest = hashlib.sha256(repr(choices).encode()).digest()
        values = torch.tensor(list(digest), dtype=torch.uint8, device="cpu")
        self.register_buffer(CHOICES, values)

    @property
    def downsampling(self) -> int:
        """Image pixels per position of the codes or latents, along one side."""
        raise NotImplementedError

    @property
    def unit_pixels(self) -> bool:
        """Whether the network's pixels lie in [0, 1] instead of [-1, 1]."""
        return False

    def objective(self, images: Tensor, output: Any, step: int) -> dict[str, Tensor]:
        """Not there: the losses that the weights were trained with are not imported."""
        raise NotImplementedError("an imported tokenizer is not trained further")

    def before_quantization(self, images: Tensor) -> Tensor:
        """What quantizer or posterior see, (B, channels, h, w), for images in [-1, 1]."""
        pixels = (images + 1) / 2 if self.unit_pixels else images
        return self.quant_conv(self.encoder(pixels))

    def pixels_of(self, vectors: Tensor) -> Tensor:
        """Images, unbounded, around [-1, 1], of what quantizer or posterior give."""
        pixels = self.decode_unbounded(vectors)
        return 2 * pixels - 1 if self.unit_pixels else pixels

    def decode_unbounded(self, vectors: Tensor) -> Tensor:
        """The network's own pixels for what quantizer or posterior give, (B, channels, h, w)."""
        return self.decoder(self.post_quant_conv(vectors))


class DiscreteTokenizer(Tokenizer):
    """Abstract: a tokenizer with one map of codes."""

    quantize: Lookup

    def forward(self, images: Tensor) -> DiscreteOutput:
        """Reconstruct images (B, channels, size, size)."""
        codes = self.encode(images)
        return DiscreteOutput(self.decode(codes), codes, images.new_zeros(()))

    @torch.no_grad()
    def encode(self, images: Tensor) -> CodeMaps:
        """Codes (B, height, width) of images (B, channels, size, size)."""
        self.check_images(images)
        return {CODES: self.quantize.codes(self.before_quantization(images))}

    def decode(self, codes: CodeMaps) -> Tensor:
        """Images (B, channels, size, size) of codes (B, height, width)."""
        return self.decode_vectors(self.code_vectors(codes))

    @torch.no_grad()
    def embed(self, images: Tensor) -> CodeMaps:
        """The code vectors of images, (B, dim, height, width)."""
        return self.code_vectors(self.encode(images))

    def code_vectors(self, codes: CodeMaps) -> CodeMaps:
        """The vectors of codes (B, height, width), (B, dim, height, width)."""
        return {VECTORS: self.quantize.vectors(codes[CODES])}

    def decode_vectors(self, vectors: CodeMaps) -> Tensor:
        """Images of any vectors (B, dim, height, width), code vectors or not."""
        return bounded(self.pixels_of(vectors[VECTORS]))

    @property
    def levels(self) -> tuple[Level, ...]:
        """One level, `codes`."""
        side = self.config.image_size // self.downsampling
        return (Level(CODES, side, side, vocabulary=self.quantize.embedding.num_embeddings),)


class GaussianTokenizer(Tokenizer):
    """Abstract: a tokenizer with a Gaussian posterior over a grid of latents.

    Latents are (z - shift) * scale for the network's own z, which is what diffusion models are
    trained on.
    """

    def affine(self) -> tuple[Tensor, Tensor]:
        """Shift and scale, float32 (C, 1, 1) or (1, 1, 1)."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> VAEOutput:
        """Reconstruct images (B, channels, size, size) from the posterior means."""
        posterior = self.posterior(images)
        prediction = self._predict(posterior.mean)
        return VAEOutput(bounded(prediction.float()), prediction, posterior)

    def posterior(self, images: Tensor) -> Gaussian:
        """q(latents | images), (B, C, h, w)."""
        self.check_images(images)
        return self.scaled(self.before_quantization(images))

    def scaled(self, moments: Tensor) -> Gaussian:
        """The posterior of the scaled latents, from the network's moments (B, 2 C, h, w)."""
        mean, log_variance = moments.float().chunk(2, dim=1)
        shift, scale = self.affine()
        clamped = log_variance.clamp(*LOG_VARIANCE_RANGE)
        return Gaussian((mean - shift) * scale, clamped + 2 * scale.log(), bounds=None)

    @torch.no_grad()
    def encode(self, images: Tensor) -> CodeMaps:
        """The posterior means, (B, C, h, w)."""
        return {LATENTS: self.posterior(images).mean}

    def decode(self, codes: CodeMaps) -> Tensor:
        """Images of latents (B, C, h, w)."""
        return bounded(self._predict(codes[LATENTS]).float())

    def _predict(self, latents: Tensor) -> Tensor:
        shift, scale = self.affine()
        return self.pixels_of((latents.float() / scale + shift).to(self.dtype))
