"""The learned prior: a Transformer over [class token, codes...] that knows which codes or latents occur together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.utils.checkpoint import checkpoint

from latent_prior.data.codes import CodeMaps, CodeSpec
from latent_prior.models import ModelConfig, StrictModel
from latent_prior.stage2_prior import masked, mixtures, sampling
from latent_prior.stage2_prior.drawing import draw_sequence
from latent_prior.stage2_prior.inputs import check_codes, check_labels, given_tokens
from latent_prior.stage2_prior.kv_cache import Decoder
from latent_prior.stage2_prior.options import PriorOptions
from latent_prior.stage2_prior.sampler import (
    LATENT_SETTINGS,
    MASKED_SETTINGS,
    RASTER_SETTINGS,
    Sampler,
    Settings,
)
from latent_prior.stage2_prior.tokens import (
    Span,
    level_spans,
    maps_to_sequence,
    places,
    sequence_to_maps,
)
from latent_prior.stage2_prior.transformer import Block, normalise, rotations, swiglu_width
from latent_prior.stage2_prior.vectors import (
    SMALLEST_SCALE,
    chunk_width,
    latent_level,
    latents_of,
    latents_to_sequence,
    sequence_to_latents,
)


class PriorConfig(ModelConfig, PriorOptions):
    """A prior's shape, and the codes it speaks about."""

    model_type = "latent_prior_transformer"

    code_spec: dict[str, Any] = dataclasses.field(default_factory=dict)
    """`CodeSpec.to_dict` of the codes; vocabulary, length and classes come from it."""


@dataclass
class PriorOutput:
    """What `TransformerPrior.forward` returns.

    Attributes:
        loss: what training minimises, float32 scalar. In raster order the mean negative log-likelihood in nats per
            code, or per latent number in the latents' own units; in masked order that of the hidden codes.
        logits: of codes float32 (B, L, K) for each code, K the sum of the levels' vocabularies, -inf at the tokens of
            other levels; of latents the mixtures' parameters (B, L, `mixtures.mixture_outputs`).
        nats: negative log-likelihood of each position, float32 (B, L); 0 where masked order hid nothing.
    """

    loss: Tensor
    logits: Tensor
    nats: Tensor


class TransformerPrior(StrictModel):
    """A Transformer in the Llama form over the codes or latents of an image.

    The kind of codes decides the head: categorical over codes, a mixture of Gaussians over latents (`mixtures`). The
    option `order` decides what each position sees: all before it (`raster`), or all that is not masked (`masked`).

    Tokens are numbered codes first, then classes, then the null class, which stands for "any class": it replaces the
    labels that label dropout hides, and starts every sequence of a prior without classes. A masked prior has one more,
    the mask. The output head knows codes only.
    """

    config_class = PriorConfig
    config: PriorConfig
    projection: nn.Linear | None
    latent_shift: Tensor
    latent_scale: Tensor

    def __init__(self, config: PriorConfig) -> None:
        """Build the model with fresh weights.

        Raises:
            ValueError: for a code spec that is none, or one that this order or chunk does not fit.
        """
        super().__init__(config)
        spec = self.code_spec = CodeSpec.from_dict(config.code_spec)
        self.masked = config.order == "masked"
        self.latents = spec.kind == "latents"
        if self.latents:
            self._prepare_latents(spec, config)
        else:
            self.levels = level_spans(spec)
            self.length, self.num_codes = spec.length, self.levels[-1].last
            self.projection = None
        self.num_classes = len(spec.class_names) if config.class_conditional else 0
        self.null_token = self.num_codes + self.num_classes
        self.mask_token = self.null_token + 1
        hidden = swiglu_width(config.width, config.mlp_ratio)
        self.embedding = nn.Embedding(self.null_token + 1 + self.masked, config.width)
        # One map in raster order knows its places well enough by rotation, which is all that Llama has.
        plain = config.positions == "1d" and len(self.levels) == 1
        self.position_embedding = (
            None
            if plain and not self.masked and not self.latents
            else nn.Parameter(torch.empty(self.length, config.width))
        )
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, hidden, config.dropout, causal=not self.masked)
            for _ in range(config.depth)
        )
        self.final_gain = nn.Parameter(torch.ones(config.width))
        self.head = nn.Linear(config.width, self.levels[-1].last, bias=False)
        self._initialise()
        # What Accelerate looks for in a model that it is to shard: these become units of their own.
        self._no_split_modules, self._input_embed_layer = ["Block"], "embedding"
        self._decoder: tuple[object, Decoder] | None = None
        self.post_init()

    @property
    def unit(self) -> str:
        """What the mean log-likelihood is taken over: `code`, or `latent` for latent numbers."""
        return "latent" if self.latents else "code"

    @property
    def settings(self) -> tuple[str, ...]:
        """Names of the `Sampler` settings that mean something to this prior."""
        if self.latents:
            return LATENT_SETTINGS
        return MASKED_SETTINGS if self.masked else RASTER_SETTINGS

    def forward(self, codes: CodeMaps, labels: Tensor | None = None) -> PriorOutput:
        """Predict every code from the class and the codes before it, or those that a random mask hides from the rest.

        Args:
            codes: level name -> integers (B, height, width), or floats (B, C, height, width) of latents.
            labels: int64 (B,) in [0, num_classes), -1 for the null class; None is -1 throughout. In training,
                label dropout turns a share of them into -1. A prior without classes does not look at them.
                Label dropout and masks are drawn from torch's global generator.

        Raises:
            ValueError: for maps that do not fit the code spec, and for codes or labels out of range, which are
                looked at on the CPU only (on an accelerator that would wait for the device).
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
        generator: Generator | Sequence[Generator] | None = None,
    ) -> dict[str, Tensor]:
        """Negative log-likelihood of images' codes or latents, level by level.

        Exact in raster order; the sum over the levels is the image's. In masked order one unbiased draw of an upper
        bound, see `masked.hide_for_bound`.

        Args:
            codes: as in `forward`.
            labels: as in `forward`; none are dropped in evaluation mode.
            generator: of the masks: one for all images, one for each, or torch's global one of the CPU.

        Returns:
            level name -> float32 (B,), nats; of latents the density's in their own units, which may be negative.
        """
        sequence = self._sequence(codes)
        start = self._start_tokens(labels, sequence)
        if self.masked:
            uniforms = sampling.draw_uniforms(len(sequence), 1 + self.length, generator)
            hidden, weight = masked.hide_for_bound(uniforms)
            hidden, weight = (each.to(sequence.device) for each in (hidden, weight.float()))
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
        generator: Generator | Sequence[Generator] | None = None,
        known: CodeMaps | None = None,
        keep: CodeMaps | None = None,
        **settings: Unpack[Settings],
    ) -> CodeMaps:
        """Draw code maps or latents; or complete code maps that are known in part.

        On a CPU with MKL an image's codes depend on its label, its random numbers and the settings alone, bit for
        bit; other libraries round differently for different batch sizes, which now and then changes a code.

        Args:
            num_images: images to draw (B).
            labels: B class numbers in [0, num_classes), -1 for the null class; None is -1 throughout.
            generator: source of randomness, one for all images or one for each (then an image is the same in any
                batch); None is torch's global generator of the CPU.
            known: level name -> integers (B, height, width), codes of which some stay as they are; they are read only
                where `keep` says so.
            keep: level name -> bool (B, height, width), True where a known code stays. In raster order every other
                code is drawn given the class and all codes before it, kept or drawn, and none looks ahead; in masked
                order each sees all that is kept.
            **settings: of the `Sampler`; `self.settings` names those that have an effect on this prior.

        Returns:
            level name -> int64 (B, height, width), or float32 (B, C, height, width), on the model's device.

        Raises:
            ValueError: for a setting, label or kept code out of its range, another number of labels or generators than
                images, or one of `known` and `keep` without the other, in another shape, or of latents.
        """
        sampler = Sampler(**settings)
        if num_images < 1:
            raise ValueError(f"num_images must be at least 1, not {num_images}")
        start = self._sample_start(num_images, labels)
        given = given_tokens(num_images, known, keep, self.code_spec, self.levels)
        if given is not None:
            given = given.to(self.device)
        sequence = draw_sequence(self, start, given, sampler, generator)
        # Outside of inference mode, so that what comes out can be used in training.
        if self.latents:
            return self._to_latents(sequence)
        return sequence_to_maps(sequence, self.code_spec)

    def logits_of(self, start: Tensor, sequence: Tensor) -> Tensor:
        """What the head says at every position, teacher-forced.

        Args:
            start: first tokens (B,), a class or the null class.
            sequence: tokens int64 (B, L), or normalised latents (B, L, D); in raster order a position sees those
                before it, in masked order all of them, its own included.

        Returns:
            as `PriorOutput.logits`.
        """
        if not self.masked:
            sequence = sequence[:, :-1]
        if self.projection is not None:
            first = self.embedding(start).unsqueeze(1)
            vectors = self.projection(sequence.to(self.projection.weight.dtype))
            x = torch.cat((first, vectors.to(first.dtype)), dim=1)
        else:
            x = self.embedding(torch.cat((start.unsqueeze(1), sequence), dim=1))
        if self.position_embedding is not None:
            # In masked order the class token stands in front of the sequence, in raster order in its first place.
            x = x + F.pad(self.position_embedding, (0, 0, int(self.masked), 0))
        x = self.dropout(x)
        rotation = self.rotation()
        for block in self.blocks:
            if self.config.gradient_checkpointing and self.training:
                x = checkpoint(block, x, rotation, use_reentrant=False)
            else:
                x = block(x, rotation)
        return self._logits(normalise(x[:, 1:] if self.masked else x))

    def rotation(self) -> Tensor:
        """What turns queries and keys, complex64 (positions, 3, 1, head width / 2).

        With rows and columns, a query of raster order stands for the place that is to be predicted and a key for the
        place of the code that it carries; the class token lies outside of the image.
        """
        head_width, device = self.config.width // self.config.heads, self.embedding.weight.device
        if self.config.positions == "1d":
            line = torch.arange(self.length + self.masked, device=device).unsqueeze(1)
            return rotations(line, line, head_width)
        grid = places(self.levels, device)
        behind_class = F.pad(grid, (0, 0, 1, 0), value=-1.0)
        if self.masked:
            return rotations(behind_class, behind_class, head_width)
        return rotations(grid, behind_class[:-1], head_width)

    def decoder(self, rows: int) -> Decoder:
        """A decoder for so many sequences; the last one again, if it has as many rows and the weights are the same."""
        parameters = list(self.parameters())
        versions = [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in parameters]
        # Fused optimizers change weights and not their versions. The norms cost less than a step: one reading.
        norms = torch.stack([torch.linalg.vector_norm(p.detach()).float() for p in parameters])
        key = (rows, self.device, versions, norms.tolist())
        if self._decoder is None or self._decoder[0] != key:
            self._decoder = None  # two caches at a time could be too much memory
            self._decoder = (key, Decoder(self, rows))
        return self._decoder[1]

    def _prepare_latents(self, spec: CodeSpec, config: PriorConfig) -> None:
        """What only a prior over latents has."""
        if self.masked:
            raise ValueError("--model.order masked is for codes; over latents there is raster only")
        level = latent_level(spec)
        self.chunk = chunk_width(level, config.chunk)
        assert level.channels is not None
        self.length, self.num_codes = level.length * level.channels // self.chunk, 0
        outputs = mixtures.mixture_outputs(config.mixtures, self.chunk)
        self.levels = (
            Span(level.name, level.height, level.width, 0, self.length, 0, outputs, self.chunk),
        )
        self.register_buffer("latent_shift", torch.tensor(spec.latent_shift))
        self.register_buffer("latent_scale", torch.tensor(spec.latent_scale).clamp(SMALLEST_SCALE))
        self.projection = nn.Linear(self.chunk, config.width, bias=False)

    def _initialise(self) -> None:
        """Normal with deviation 0.02, smaller where a matrix adds to the residual stream (Radford et al., 2019)."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                into_stream = name.endswith(("attention_out.weight", "mlp_out.weight"))
                nn.init.normal_(
                    parameter, std=0.02 / math.sqrt(2 * self.config.depth) if into_stream else 0.02
                )

    def _sequence(self, codes: CodeMaps) -> Tensor:
        """Tokens (B, L), or vectors of latents (B, L, D)."""
        if self.latents:
            latents = latents_of(codes, latent_level(self.code_spec))
            return latents_to_sequence(latents, self.latent_shift, self.latent_scale, self.chunk)
        sequence = maps_to_sequence(codes, self.code_spec)
        if sequence.device.type == "cpu":
            check_codes(sequence, self.levels)
        return sequence

    def _to_latents(self, sequence: Tensor) -> CodeMaps:
        level = latent_level(self.code_spec)
        return sequence_to_latents(sequence, self.latent_shift, self.latent_scale, level)

    def _nats(self, logits: Tensor, sequence: Tensor) -> Tensor:
        """Negative log-likelihood of each position, float32 (B, L)."""
        if not self.latents:
            nats = F.cross_entropy(logits.flatten(0, 1), sequence.flatten(), reduction="none")
            return nats.view_as(sequence)
        mixture = mixtures.mixture_of(logits, self.config.mixtures)
        # A density of normalised numbers is that of the latents times their scale.
        jacobian = self.latent_scale.log().view(-1, self.chunk).sum(1)
        jacobian = jacobian.repeat(self.length // len(jacobian))
        return jacobian - mixture.log_density(sequence)

    def _logits(self, x: Tensor) -> Tensor:
        """Float32 outputs of the head from normalised activations (B, L, W); each level over its own tokens only."""
        weight = self.head.weight * self.final_gain
        if len(self.levels) == 1:
            return F.linear(x, weight).float()
        parts = []
        for level in self.levels:
            part = F.linear(
                x[:, level.start : level.stop], weight[level.first : level.last]
            ).float()
            parts.append(F.pad(part, (level.first, self.num_codes - level.last), value=-math.inf))
        return torch.cat(parts, dim=1)

    def _start_tokens(self, labels: Tensor | None, sequence: Tensor) -> Tensor:
        """First tokens (B,) of a batch of sequences, after label dropout."""
        null = torch.full((len(sequence),), self.null_token, device=sequence.device)
        if labels is None or self.num_classes == 0:
            return null
        if labels.device.type == "cpu":
            check_labels(labels, len(sequence), self.num_classes)
        hidden = labels < 0
        if self.training and self.config.label_dropout > 0:
            hidden = hidden | (
                torch.rand(len(labels), device=labels.device) < self.config.label_dropout
            )
        return torch.where(hidden, null, labels + self.num_codes)

    def _sample_start(self, num_images: int, labels: Tensor | Sequence[int] | None) -> Tensor:
        """First tokens (num_images,) of the sequences to draw, on the model's device."""
        if labels is None:
            labels = [-1] * num_images
        labels = torch.as_tensor(labels, dtype=torch.long).cpu()
        check_labels(labels, num_images, self.num_classes)
        return torch.where(labels < 0, self.null_token, labels + self.num_codes).to(self.device)
