"""The learned prior: a Transformer over [class token, codes...] that knows which codes occur together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.utils.checkpoint import checkpoint

from common.codes import CodeMaps, CodeSpec
from common.pretrained import ModelConfig, StrictModel
from stage2_prior import sampling
from stage2_prior.decoding import Decoder
from stage2_prior.options import PriorOptions
from stage2_prior.tokens import level_spans, maps_to_sequence, sequence_to_maps
from stage2_prior.transformer import Block, normalise, rotations, swiglu_width


class PriorConfig(ModelConfig, PriorOptions):
    """A prior's shape, and the codes it speaks about."""

    model_type = "latent_prior_transformer"

    code_spec: dict[str, Any] = dataclasses.field(default_factory=dict)
    """`CodeSpec.to_dict` of the codes; vocabulary, length and classes come from it."""


@dataclass
class PriorOutput:
    """What `TransformerPrior.forward` returns.

    Attributes:
        loss: mean negative log-likelihood in nats per code, float32 scalar.
        logits: float32 (B, L, K) before each code, K the sum of the levels' vocabularies; -inf at the tokens of other
            levels.
    """

    loss: Tensor
    logits: Tensor


class TransformerPrior(StrictModel):
    """A decoder-only Transformer in the Llama form over the codes of an image.

    Tokens are numbered codes first, then classes, then the null class, which stands for "any class": it replaces the
    labels that label dropout hides, and starts every sequence of a prior without classes. The output head knows codes
    only.
    """

    config_class = PriorConfig
    config: PriorConfig

    def __init__(self, config: PriorConfig) -> None:
        """Build the model with fresh weights.

        Raises:
            ValueError: for a code spec that is none, or one of latents.
        """
        super().__init__(config)
        self.code_spec = CodeSpec.from_dict(config.code_spec)
        self.levels = level_spans(self.code_spec)
        self.length = self.code_spec.length
        self.num_codes = self.levels[-1].last
        self.num_classes = len(self.code_spec.class_names) if config.class_conditional else 0
        self.null_token = self.num_codes + self.num_classes
        hidden = swiglu_width(config.width, config.mlp_ratio)
        self.embedding = nn.Embedding(self.null_token + 1, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, hidden, config.dropout) for _ in range(config.depth)
        )
        self.final_gain = nn.Parameter(torch.ones(config.width))
        self.head = nn.Linear(config.width, self.num_codes, bias=False)
        self._initialise()
        self.post_init()

    def forward(self, codes: CodeMaps, labels: Tensor | None = None) -> PriorOutput:
        """Predict every code from the class and the codes before it.

        Args:
            codes: level name -> integers (B, height, width).
            labels: int64 (B,) in [0, num_classes), -1 for the null class; None is -1 throughout. In training,
                label dropout turns a share of them into -1, drawn from torch's global generator. A prior without
                classes does not look at them.

        Raises:
            ValueError: for maps that do not fit the code spec, and for codes or labels out of range, which are
                looked at on the CPU only (on an accelerator that would wait for the device).
        """
        sequence = maps_to_sequence(codes, self.code_spec)  # (B, L)
        if sequence.device.type == "cpu":
            self._check_codes(sequence)
        start = self._start_tokens(labels, sequence)
        tokens = torch.cat((start.unsqueeze(1), sequence[:, :-1]), dim=1)
        x = self.dropout(self.embedding(tokens))
        rotation = rotations(self.length, self.config.width // self.config.heads, x.device)
        for block in self.blocks:
            if self.config.gradient_checkpointing and self.training:
                x = checkpoint(block, x, rotation, use_reentrant=False)
            else:
                x = block(x, rotation)
        logits = self._logits(normalise(x))
        return PriorOutput(F.cross_entropy(logits.flatten(0, 1), sequence.flatten()), logits)

    @torch.no_grad()
    def sample(
        self,
        num_images: int,
        labels: Tensor | Sequence[int] | None = None,
        *,
        guidance_scale: float = 1.0,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        generator: Generator | Sequence[Generator] | None = None,
        known: CodeMaps | None = None,
        keep: CodeMaps | None = None,
    ) -> CodeMaps:
        """Draw code maps, one code after the other; or complete maps that are known in part.

        On a CPU with MKL an image's codes depend on its label, its random numbers and the settings alone, bit for
        bit; other libraries round differently for different batch sizes, which now and then changes a code.

        Args:
            num_images: images to draw (B).
            labels: B class numbers in [0, num_classes), -1 for the null class; None is -1 throughout.
            guidance_scale: classifier-free guidance; 1 is none and costs nothing, more computes every step for twice
                the rows.
            temperature: divides the logits; 0 always takes the likeliest code.
            top_k: codes to choose from at each step, the likeliest; 0 means all.
            top_p: probability of the set of likeliest codes to choose from at each step; 1 means all.
            generator: source of randomness, one for all images or one for each (then an image is the same in any
                batch); None is torch's global generator of the CPU.
            known: level name -> integers (B, height, width), codes of which some stay as they are; they are read only
                where `keep` says so.
            keep: level name -> bool (B, height, width), True where a known code stays. Every other code is drawn given
                the class and all codes before it in the sequence (see `tokens`), kept or drawn; none looks ahead.

        Returns:
            level name -> int64 (B, height, width), on the model's device.

        Raises:
            ValueError: for a setting, label or kept code out of its range, another number of labels or generators than
                images, or one of `known` and `keep` without the other or in another shape.
        """
        sampling.check_settings(
            guidance_scale=guidance_scale, temperature=temperature, top_k=top_k, top_p=top_p
        )
        if num_images < 1:
            raise ValueError(f"num_images must be at least 1, not {num_images}")
        start = self._sample_start(num_images, labels)
        given = self._given_tokens(num_images, known, keep)
        guided = guidance_scale != 1 and bool((start != self.null_token).any())
        precision = (
            torch.float32 if self.device.type == "mps" else torch.float64
        )  # Metal lacks the latter
        uniforms = sampling.draw_uniforms(num_images, self.length, generator)
        uniforms = uniforms.to(self.device, precision)
        null = torch.full_like(start, self.null_token)
        sequence = torch.empty(num_images, self.length, dtype=torch.long, device=self.device)
        # A lone row goes through other matrix kernels with other rounding than two or more: compute it twice.
        rows = num_images * (2 if guided or num_images == 1 else 1)
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
            decoder = Decoder(self, rows)
            tokens = torch.cat((start, null if guided else start))
            for level in self.levels:
                for position in range(level.start, level.stop):
                    logits = decoder.step(tokens[:rows], position, level)
                    if guided:
                        conditional, unconditional = logits.chunk(2)
                        logits = sampling.apply_guidance(conditional, unconditional, guidance_scale)
                    logits = sampling.apply_temperature(logits[:num_images], temperature)
                    logits = sampling.keep_top_p(sampling.keep_top_k(logits, top_k), top_p)
                    chosen = sampling.choose(logits, uniforms[:, position]) + level.first
                    if given is not None:
                        chosen = torch.where(given[:, position] < 0, chosen, given[:, position])
                    sequence[:, position] = chosen
                    tokens = chosen.repeat(2)
        return sequence_to_maps(sequence, self.code_spec)

    def _initialise(self) -> None:
        """Normal with deviation 0.02, smaller where a matrix adds to the residual stream (Radford et al., 2019)."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                into_stream = name.endswith(("attention_out.weight", "mlp_out.weight"))
                nn.init.normal_(
                    parameter, std=0.02 / math.sqrt(2 * self.config.depth) if into_stream else 0.02
                )

    def _logits(self, x: Tensor) -> Tensor:
        """Float32 logits (B, L, K) from normalised activations (B, L, W); each level over its own tokens only."""
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
        """First tokens (B,) of a batch of sequences (B, L), after label dropout."""
        null = sequence.new_full((len(sequence),), self.null_token)
        if labels is None or self.num_classes == 0:
            return null
        if labels.device.type == "cpu":
            self._check_labels(labels, len(sequence))
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
        self._check_labels(labels, num_images)
        return torch.where(labels < 0, self.null_token, labels + self.num_codes).to(self.device)

    def _given_tokens(
        self, num_images: int, known: CodeMaps | None, keep: CodeMaps | None
    ) -> Tensor | None:
        """Tokens (num_images, L) that are not to be drawn, -1 at those that are, on the model's device."""
        if known is None and keep is None:
            return None
        if known is None or keep is None:
            raise ValueError("known codes and the places to keep belong together: give both")
        for name, codes in known.items():
            places = keep.get(name)
            if places is None or places.dtype != torch.bool or places.shape != codes.shape:
                raise ValueError(f"keep needs a bool map {name!r} of shape {tuple(codes.shape)}")
        # What is not kept may be anything in `known`; 0 is a code of every level.
        valid = {name: torch.where(keep[name], codes, 0) for name, codes in known.items()}
        tokens = maps_to_sequence(valid, self.code_spec)
        if len(tokens) != num_images:
            raise ValueError(f"{num_images} images need as many known codes, not {len(tokens)}")
        self._check_codes(tokens)
        kept = torch.cat([keep[level.name].flatten(1) for level in self.levels], dim=1)
        return torch.where(kept, tokens, -1).to(self.device)

    def _check_labels(self, labels: Tensor, num_images: int) -> None:
        if labels.shape != (num_images,):
            raise ValueError(
                f"{num_images} images need labels of shape ({num_images},), not {tuple(labels.shape)}"
            )
        lowest, highest = labels.aminmax()
        if lowest < -1 or highest >= self.num_classes:
            known = (
                f"0 to {self.num_classes - 1}, or -1 for any class"
                if self.num_classes
                else "only -1: it has no classes"
            )
            wrong = int(lowest if lowest < -1 else highest)
            raise ValueError(f"label {wrong} is out of range: this prior knows {known}")

    def _check_codes(self, sequence: Tensor) -> None:
        for level in self.levels:
            lowest, highest = sequence[:, level.start : level.stop].aminmax()
            if lowest < level.first or highest >= level.last:
                wrong = int(lowest if lowest < level.first else highest) - level.first
                raise ValueError(
                    f"code {wrong} in map {level.name} is out of range: its vocabulary is {level.last - level.first}"
                )
