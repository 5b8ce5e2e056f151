"""The network under the prior: a sequence in, the head's outputs for every position out."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from latent_prior.data.codes import CodeSpec
from latent_prior.models import ModelConfig, StrictModel
from latent_prior.stage2_prior import mixtures, sequences
from latent_prior.stage2_prior.options import PriorOptions
from latent_prior.stage2_prior.text.reading import TextSpec
from latent_prior.stage2_prior.transformer import (
    Block,
    Dropout,
    normalise,
    rotations,
    swiglu,
    swiglu_width,
)


class PriorConfig(ModelConfig, PriorOptions):
    """Shape of a prior, and the codes it models."""

    model_type = "latent_prior_transformer"

    code_spec: dict[str, Any] = dataclasses.field(default_factory=dict)
    """`CodeSpec.to_dict` of the codes; vocabulary, length and classes come from it."""
    trained_classes: list[int] | None = None
    """Numbers of the classes with training images; null: all."""
    text: TextSpec | None = None
    """How captions are read; of a prior with the condition text only."""

    def __post_init__(self, class_conditional: bool | None = None, **undeclared: Any) -> None:
        """Read `class_conditional` of earlier versions as `condition`, then check the options."""
        if class_conditional is not None:
            self.condition = "class" if class_conditional else "none"
        super().__post_init__(**undeclared)


@dataclasses.dataclass(frozen=True, eq=False)
class Prefix:
    """What stands in front of the codes of B images.

    Attributes:
        tokens: int64 (B, P), the class; or the tokens of the caption, then the null token. Shorter
            captions have -1 in front.
        states: float (B, P - 1, D) of a text encoder in place of the caption's tokens, whose
            numbers are then 0.
    """

    tokens: Tensor
    states: Tensor | None = None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.tokens)

    def without(self, null_token: int) -> Prefix:
        """The same number of positions, all padding but the null token."""
        tokens = torch.full_like(self.tokens, -1)
        tokens[:, -1] = null_token
        return Prefix(tokens, self.states)

    def joined(self, other: Prefix) -> Prefix:
        """The images of both, of equally many positions."""
        states = None
        if self.states is not None and other.states is not None:
            states = torch.cat((self.states, other.states))
        return Prefix(torch.cat((self.tokens, other.tokens)), states)


class CodeTransformer(StrictModel):
    """A Transformer in Llama form over the codes or latents of an image.

    Its head is categorical over codes, or a mixture of Gaussians over latents (`mixtures`). In
    raster order a position sees all positions before it, in masked order every unmasked position.

    Token numbers: codes first (with patches once for every place in a patch), then classes or the
    tokens of captions, then the null token. That one means "any class": it replaces the labels that
    label dropout hides and starts every sequence of a prior without classes; after a caption, or
    without the dropped one, it starts the image (Ramesh et al., Zero-shot text-to-image generation,
    2021, https://arxiv.org/abs/2102.12092). A masked prior has one more token, the mask. The head
    has outputs for codes only.

    Attributes:
        length: L, codes or vectors of latents in a sequence.
        slots: codes at each of the L / slots positions of the Transformer.
    """

    config_class = PriorConfig
    config: PriorConfig
    projection: nn.Linear | None
    latent_shift: Tensor
    latent_scale: Tensor
    last_decoder: tuple[object, Any] | None = None
    """Kept by `kv_cache.decoder_for` for the next call."""

    def __init__(self, config: PriorConfig) -> None:
        """Build the model with fresh weights.

        Raises:
            ValueError: the code spec is invalid, or does not suit the order or the chunk.
        """
        super().__init__(config)
        spec = self.code_spec = CodeSpec.from_dict(config.code_spec)
        self.masked = config.order == "masked"
        self.latents = spec.kind == "latents"
        self.slots = config.patch**2
        if self.slots > 1 and (self.masked or self.latents):
            raise ValueError(
                f"--model.patch {config.patch} is for codes in raster order: leave it at 1 for "
                f"{'latents' if self.latents else '--model.order masked'}"
            )
        if self.latents and config.trained_guidance != 1:
            raise ValueError(
                f"--model.trained_guidance {config.trained_guidance} is for codes: leave it at 1 "
                "for latents"
            )
        if self.latents:
            self._prepare_latents(spec, config)
        else:
            self.levels = sequences.level_spans(spec, config.patch)
            self.length, self.num_codes = spec.length, self.levels[-1].last
            self.projection = None
        if (config.condition == "text") != (config.text is not None):
            raise ValueError("a prior whose condition is text, and no other, says how to read it")
        self.num_classes = len(spec.class_names) if config.condition == "class" else 0
        self.first_class = self.slots * self.num_codes
        self.text_vocabulary = 0 if config.text is None else config.text["vocabulary"]
        self.null_token = self.first_class + self.num_classes + self.text_vocabulary
        self.mask_token = self.null_token + 1
        hidden = swiglu_width(config.width, config.mlp_ratio)
        self.embedding = nn.Embedding(self.null_token + 1 + self.masked, config.width)
        state_width = 0 if config.text is None else config.text["width"]
        self.text_projection = (
            nn.Linear(state_width, config.width, bias=False) if state_width else None
        )
        # Rotation alone suffices for one code map in raster order, as in Llama.
        one_map = len(self.levels) == 1 and not self.latents
        one_code_each = one_map and self.slots == 1
        like_llama = one_code_each and not self.masked and config.positions == "1d"
        positions = self.length // self.slots
        self.position_embedding = (
            None if like_llama else nn.Parameter(torch.empty(positions, config.width))
        )
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, hidden, config.dropout, causal=not self.masked)
            for _ in range(config.depth)
        )
        self.within = PatchMLP(config.width, self.slots, self.num_codes) if self.slots > 1 else None
        self.final_gain = nn.Parameter(torch.ones(config.width))
        self.head = nn.Linear(config.width, self.slots * self.levels[-1].last, bias=False)
        self._initialise()
        # Accelerate shards these as units of their own.
        self._no_split_modules, self._input_embed_layer = ["Block"], "embedding"
        self.post_init()

    def logits_of(self, start: Prefix, sequence: Tensor) -> Tensor:
        """Outputs of the head for every position, teacher-forced.

        Args:
            start: what stands in front of the codes.
            sequence: tokens int64 (B, L), or normalised latents (B, L, D). In raster order a
                position sees those before it, in masked order all of them and itself.

        Returns:
            float32 (B, L, outputs), see `PriorOutput.logits`.
        """
        seen = sequence if self.masked else sequence[:, : -self.slots]
        if self.projection is not None:
            x = self.projection(seen.to(self.projection.weight.dtype))
        elif self.slots > 1:
            x = self.embedding(self.in_slots(seen)).sum(2)
        else:
            x = self.embedding(seen)
        first = self.embed_prefix(start)
        x = torch.cat((first, x.to(first.dtype)), dim=1)
        # The last token of the prefix precedes a masked sequence, but is the first input of a
        # raster one.
        front = first.shape[1] - (0 if self.masked else 1)
        if self.position_embedding is not None:
            x = x + F.pad(self.position_embedding, (0, 0, front, 0))
        x = self.dropout(x)
        rotation, mask = self.rotation(first.shape[1]), self.attention_mask(start, x.shape[1])
        for block in self.blocks:
            if self.config.gradient_checkpointing and self.training:
                x = checkpoint(block, x, rotation, mask, use_reentrant=False)
            else:
                x = block(x, rotation, mask)
        x = x[:, front:]
        if self.within is not None:
            x = self.within(x, self.in_slots(sequence))
        return self._head_outputs(normalise(x))

    def embed_prefix(self, start: Prefix) -> Tensor:
        """Inputs of the Transformer in front of the codes, (B, P, W); padding is any number."""
        if self.text_projection is None or start.states is None:
            return self.embedding(start.tokens.clamp(min=0))
        states = self.text_projection(start.states.to(self.text_projection.weight.dtype))
        return torch.cat((states, self.embedding(start.tokens[:, -1:])), dim=1)

    def attention_mask(self, start: Prefix, length: int) -> Tensor | None:
        """Which of `length` positions each one sees, bool (B, 1, length, length or 1).

        None where there is no padding to hide: then `Block` knows the order.
        """
        if start.tokens.shape[1] == 1:
            return None
        front = start.tokens >= 0
        seen = F.pad(front, (0, length - front.shape[1]), value=True)[:, None, None]
        if self.masked:
            return seen
        # Padding sees itself, or its softmax would divide by 0.
        both = torch.ones(length, length, dtype=torch.bool, device=front.device)
        return (seen & both.tril()) | both.diag().diag()

    def in_slots(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N x slots) by patch (B, N, slots), with numbers of their own in each place."""
        places = torch.arange(self.slots, device=tokens.device) * self.num_codes
        return tokens.unflatten(1, (-1, self.slots)) + places

    def rotation(self, front: int = 1) -> Tensor:
        """Factors that rotate queries and keys, complex64 (positions, 3, 1, head width / 2).

        With 2-D positions in raster order, a query has the position of the code or patch to
        predict, a key that of the one it carries. The `front` tokens of the prefix lie outside the
        image, on its diagonal.
        """
        head_width, device = self.config.width // self.config.heads, self.embedding.weight.device
        if self.config.positions == "1d":
            positions = front + self.length // self.slots - (0 if self.masked else 1)
            line = torch.arange(positions, device=device).unsqueeze(1)
            return rotations(line, line, head_width)
        grid = sequences.grid_positions(self.levels, device)
        outside = torch.arange(-front, 0, dtype=grid.dtype, device=device)
        keys = torch.cat((outside.unsqueeze(1).expand(-1, 2), grid))
        if self.masked:
            return rotations(keys, keys, head_width)
        return rotations(keys[1:], keys[:-1], head_width)

    def _prepare_latents(self, spec: CodeSpec, config: PriorConfig) -> None:
        """Set what only a prior over latents has."""
        if self.masked:
            raise ValueError("--model.order masked is for codes; latents need --model.order raster")
        level = sequences.latent_level(spec)
        self.chunk = sequences.chunk_width(level, config.chunk)
        assert level.channels is not None
        self.length, self.num_codes = level.length * level.channels // self.chunk, 0
        outputs = mixtures.num_outputs(config.mixtures, self.chunk)
        span = (level.name, level.height, level.width, 0, self.length, 0, outputs, self.chunk)
        self.levels = (sequences.Span(*span),)
        scale = torch.tensor(spec.latent_scale).clamp(sequences.SMALLEST_SCALE)
        self.register_buffer("latent_shift", torch.tensor(spec.latent_shift))
        self.register_buffer("latent_scale", scale)
        self.projection = nn.Linear(self.chunk, config.width, bias=False)

    def _initialise(self) -> None:
        """Normal weights of deviation 0.02, scaled down where a matrix adds to the residual stream.

        Radford et al., Language models are unsupervised multitask learners, 2019, section 2.3.
        """
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                to_residual = name.endswith(("attention_out.weight", "mlp_out.weight"))
                scale = math.sqrt(2 * self.config.depth) if to_residual else 1
                nn.init.normal_(parameter, std=0.02 / scale)

    def _head_outputs(self, x: Tensor) -> Tensor:
        """Float32 outputs for normalised activations (B, L, W); each level over its own tokens."""
        weight = (self.head.weight * self.final_gain).unflatten(0, (self.slots, -1))
        parts = []
        for level in self.levels:
            of_level = x[:, level.start : level.stop].unflatten(1, (-1, self.slots))
            in_slots = [
                F.linear(of_level[:, :, slot], weight[slot, level.first : level.last]).float()
                for slot in range(self.slots)
            ]
            logits = torch.stack(in_slots, 2).flatten(1, 2) if self.slots > 1 else in_slots[0]
            padding = (level.first, self.levels[-1].last - level.last)
            parts.append(
                logits if len(self.levels) == 1 else F.pad(logits, padding, value=-math.inf)
            )
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class PatchMLP(nn.Module):
    """What the codes of a patch add to the Transformer's vector for those after them.

    As the depth transformer of Lee et al., RQ-Transformer, CVPR 2022,
    https://arxiv.org/abs/2203.01941, but without attention: the codes before are summed up.

    Args:
        width: W.
        slots: codes in a patch, S.
        num_codes: codes in the vocabularies of all levels, K.
    """

    def __init__(self, width: int, slots: int, num_codes: int) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.empty(slots, width))
        # The last code of a patch precedes none.
        self.embedding = nn.Embedding((slots - 1) * num_codes, width)
        self.gain = nn.Parameter(torch.ones(width))
        self.gate_up = nn.Linear(width, 2 * width, bias=False)
        self.mlp_out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """What predicts each code, (B, N x S, W).

        Args:
            x: the Transformer's vectors (B, N, W).
            tokens: codes of each patch with numbers of their own in each place (B, N, S).
        """
        before = F.pad(self.embedding(tokens[:, :, :-1]).cumsum(2), (0, 0, 1, 0))  # (B, N, S, W)
        x = (x.unsqueeze(2) + before + self.place).flatten(1, 2)
        return x + self.mlp_out(swiglu(F.linear(normalise(x), self.gate_up.weight * self.gain)))
