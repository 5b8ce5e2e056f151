"""The learned prior: likelihood and samples of codes or latents from a `CodeTransformer`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from latent_prior.data.codes import CodeMaps
from latent_prior.seeds import Generators
from latent_prior.stage2_prior import masked, mixtures, raster, sequences
from latent_prior.stage2_prior.logits import draw_uniforms, sum_dtype
from latent_prior.stage2_prior.network import CodeTransformer, PriorConfig
from latent_prior.stage2_prior.sampler import EFFECTIVE, Sampler, Settings

__all__ = ["PriorConfig", "PriorOutput", "TransformerPrior"]


@dataclass
class PriorOutput:
    """Result of `TransformerPrior.forward`.

    Attributes:
        loss: training objective, float32 scalar: mean negative log-likelihood in nats per code (in
            masked order of the hidden codes only), or per latent number in the latents' own units.
        logits: of codes float32 (B, L, K), K the sum of the levels' vocabularies, -inf at tokens of
            other levels; of latents the mixtures' parameters (B, L, `mixtures.num_outputs`).
        nats: negative log-likelihood per position, float32 (B, L); 0 where nothing was hidden.
    """

    loss: Tensor
    logits: Tensor
    nats: Tensor


class TransformerPrior(CodeTransformer):
    """A distribution over an image's codes or latents, given its class."""

    @property
    def unit(self) -> str:
        """What the mean log-likelihood counts: `code`, or `latent` for latent numbers."""
        return "latent" if self.latents else "code"

    @property
    def settings(self) -> tuple[str, ...]:
        """Names of the `Sampler` settings that have an effect on this prior."""
        return EFFECTIVE["latents" if self.latents else self.config.order]

    def forward(self, codes: CodeMaps, labels: Tensor | None = None) -> PriorOutput:
        """Predict each code from the class and the codes before it; in masked order, hidden codes.

        With patches, the codes before are those of the patches before, and of its own patch.

        Label dropout and masks use torch's global generator.

        Args:
            codes: level name -> integers (B, height, width), or latents (B, C, height, width).
            labels: int64 (B,) in [0, num_classes), -1 for the null class; None is -1 for all. In
                training, label dropout sets a share of them to -1. Ignored without classes.

        Raises:
            ValueError: maps do not fit the code spec, or codes or labels are out of range (checked
                on the CPU only; on an accelerator the check would wait for the device).
        """
        sequence = self._sequence(codes)
        start = self._start_tokens(labels, sequence)
        if self.masked:
            hidden = masked.hide_for_training(len(sequence), self.length, sequence.device)
            logits = self.logits_of(start, torch.where(hidden, self.mask_token, sequence))
            nats = self._nats(logits, sequence) * hidden
            return PriorOutput(nats.sum() / hidden.sum(), logits, nats)
        logits = self.logits_of(start, sequence)
        nats = self._nats(logits, sequence)
        return PriorOutput(nats.mean() / sequence[0, 0].numel(), logits, nats)

    def nats(
        self,
        codes: CodeMaps,
        labels: Tensor | None = None,
        *,
        generator: Generators = None,
    ) -> dict[str, Tensor]:
        """Negative log-likelihood of images' codes or latents, per level.

        Exact in raster order; the sum over the levels is the image's. In masked order one unbiased
        sample of an upper bound, see `masked.hide_for_bound`.

        Args:
            codes: as in `forward`.
            labels: as in `forward`; none are dropped in evaluation mode.
            generator: for the masks, one for all images or one each; None is torch's global one.

        Returns:
            level name -> float32 (B,), nats; of latents those of a density in their own units,
            which may be negative.
        """
        sequence = self._sequence(codes)
        start = self._start_tokens(labels, sequence)
        if self.masked:
            uniforms = draw_uniforms(len(sequence), 1 + self.length, generator)
            hidden, weight = masked.hide_for_bound(uniforms)
            hidden, weight = hidden.to(sequence.device), weight.float().to(sequence.device)
            logits = self.logits_of(start, torch.where(hidden, self.mask_token, sequence))
            nats = self._nats(logits, sequence) * hidden * weight
        else:
            nats = self._nats(self.logits_of(start, sequence), sequence)
        return {level.name: nats[:, level.start : level.stop].sum(1) for level in self.levels}

    @torch.no_grad()
    def sample(
        self,
        num_images: int,
        labels: Tensor | Sequence[int] | None = None,
        *,
        generator: Generators = None,
        known: CodeMaps | None = None,
        keep: CodeMaps | None = None,
        **settings: Unpack[Settings],
    ) -> CodeMaps:
        """Sample code maps or latents, or complete partly known code maps.

        On a CPU with MKL an image's codes depend only on its label, its random numbers and the
        settings, bit for bit; other libraries round differently for different batch sizes, which
        occasionally changes a code.

        Args:
            num_images: images to sample (B).
            labels: B class numbers in [0, num_classes), -1 for the null class; None is -1 for all.
            generator: source of randomness, one for all images or one each (an image is then the
                same in any batch); None is torch's global generator of the CPU.
            known: level name -> integers (B, height, width), read only where `keep` is True.
            keep: level name -> bool (B, height, width), True where a known code stays. In raster
                order the other codes are sampled given the class and all codes before them; in
                masked order given all that are kept.
            **settings: of a `Sampler`; `self.settings` names those that have an effect.

        Returns:
            level name -> int64 (B, height, width), or float32 (B, C, height, width), on the model's
            device.

        Raises:
            ValueError: a setting, label or kept code is out of range, the number of labels,
                generators or known maps is wrong, or only one of `known` and `keep` is given.
        """
        sampler = Sampler(**settings)
        if num_images < 1:
            raise ValueError(f"num_images must be at least 1, not {num_images}")
        labels = torch.as_tensor([-1] * num_images if labels is None else labels, dtype=torch.long)
        check_labels(labels, num_images, self.num_classes)
        start = torch.where(labels < 0, self.null_token, labels + self.first_class).to(self.device)
        patch = self.config.patch
        tokens = sequences.known_tokens(known, keep, num_images, self.code_spec, patch)
        if tokens is not None:
            tokens = tokens.to(self.device)
        sequence = self._sample_sequence(start, tokens, sampler, generator)
        # Outside inference mode, so that the result can be used in training.
        if self.latents:
            level = sequences.latent_level(self.code_spec)
            shift, scale = self.latent_shift, self.latent_scale
            return sequences.sequence_to_latents(sequence, shift, scale, level)
        return sequences.sequence_to_maps(sequence, self.code_spec, patch)

    def _sample_sequence(
        self,
        start: Tensor,
        known: Tensor | None,
        sampler: Sampler,
        generator: Generators,
    ) -> Tensor:
        """Tokens int64 (B, L), or normalised latents float32 (B, L, D), given first tokens (B,)."""
        if self.latents:
            guided = sampler.guidance_scale != 1
            count = self.length * mixtures.uniforms_per_vector(self.chunk, guided=guided)
        elif self.masked:
            count = masked.uniforms_per_image(self.length, sampler.steps)
        else:
            count = self.length
        precision = sum_dtype(start.device)
        below_one = 1 - torch.finfo(precision).eps / 2  # float32 may round up to 1
        uniforms = draw_uniforms(len(start), count, generator)
        uniforms = uniforms.to(start.device, precision).clamp(max=below_one)
        training = self.training
        self.eval()  # masked rounds run the blocks, dropout included
        try:
            with torch.inference_mode(), torch.autocast(start.device.type, enabled=False):
                if self.latents:
                    uniforms = uniforms.unflatten(1, (self.length, -1))
                    return raster.sample_latents(self, start, sampler, uniforms)
                if self.masked:
                    return masked.sample_codes(self, start, known, sampler, uniforms)
                return raster.sample_codes(self, start, known, sampler, uniforms)
        finally:
            self.train(training)

    def _sequence(self, codes: CodeMaps) -> Tensor:
        """Tokens (B, L), or vectors of latents (B, L, D)."""
        if self.latents:
            latents = sequences.latents_of(codes, sequences.latent_level(self.code_spec))
            shift, scale = self.latent_shift, self.latent_scale
            return sequences.latents_to_sequence(latents, shift, scale, self.chunk)
        sequence = sequences.maps_to_sequence(codes, self.code_spec, self.config.patch)
        if sequence.device.type == "cpu":
            sequences.check_codes(sequence, self.levels)
        return sequence

    def _nats(self, logits: Tensor, sequence: Tensor) -> Tensor:
        """Negative log-likelihood of each position, float32 (B, L)."""
        if not self.latents:
            nats = F.cross_entropy(logits.flatten(0, 1), sequence.flatten(), reduction="none")
            return nats.view_as(sequence)
        mixture = mixtures.mixture_of(logits, self.config.mixtures)
        # Change of variables: the head models latents divided by their scale.
        jacobian = self.latent_scale.log().view(-1, self.chunk).sum(1)
        jacobian = jacobian.repeat(self.length // len(jacobian))
        return jacobian - mixture.log_density(sequence)

    def _start_tokens(self, labels: Tensor | None, sequence: Tensor) -> Tensor:
        """First tokens (B,) of a batch of sequences, after label dropout."""
        null = torch.full((len(sequence),), self.null_token, device=sequence.device)
        if labels is None or self.num_classes == 0:
            return null
        if labels.device.type == "cpu":
            check_labels(labels, len(sequence), self.num_classes)
        hidden = labels < 0
        if self.training and self.config.label_dropout > 0:
            dropped = torch.rand(len(labels), device=labels.device) < self.config.label_dropout
            hidden = hidden | dropped
        return torch.where(hidden, null, labels + self.first_class)


def check_labels(labels: Tensor, num_images: int, num_classes: int) -> None:
    """Check that there is one label in [-1, num_classes) per image.

    Raises:
        ValueError: naming the label.
    """
    if labels.shape != (num_images,):
        raise ValueError(
            f"{num_images} images need labels of shape ({num_images},), not {tuple(labels.shape)}"
        )
    lowest, highest = labels.aminmax()
    if lowest < -1 or highest >= num_classes:
        wrong = int(lowest if lowest < -1 else highest)
        valid = f"0 to {num_classes - 1}, or -1 for any class"
        if not num_classes:
            valid = "only -1: it has no classes"
        raise ValueError(f"label {wrong} is out of range: this prior knows {valid}")
