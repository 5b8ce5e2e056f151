"""The learned prior: likelihood and samples of codes or latents from a `CodeTransformer`."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from latent_prior.data.codes import CodeMaps
from latent_prior.seeds import Generators, own_rows, step_rows
from latent_prior.stage2_prior import masked, mixtures, raster, sequences
from latent_prior.stage2_prior.logits import draw_uniforms, sum_dtype
from latent_prior.stage2_prior.network import CodeTransformer, Prefix, PriorConfig
from latent_prior.stage2_prior.sampler import EFFECTIVE, Sampler, Settings
from latent_prior.stage2_prior.text.reading import Text, TextSpec
from latent_prior.stage2_prior.text.tokenizer import CaptionTokenizer

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
    """A distribution over an image's codes or latents, given its class or its caption.

    Attributes:
        tokenizer: of its own; None if it reads an encoder's states, or no captions.
    """

    tokenizer: CaptionTokenizer | None = None

    def _read_description(self, folder: Path) -> None:
        """Read the tokenizer.

        Raises:
            ValueError: it is missing, damaged or another.
        """
        spec = self.config.text
        if spec is not None and spec["vocabulary"]:
            self.tokenizer = CaptionTokenizer.open(folder, spec)

    def _write_description(self, folder: Path) -> None:
        """Write the tokenizer."""
        if self.tokenizer is not None:
            self.tokenizer.write(folder)

    @property
    def unit(self) -> str:
        """What the mean log-likelihood counts: `code`, or `latent` for latent numbers."""
        return "latent" if self.latents else "code"

    @property
    def settings(self) -> tuple[str, ...]:
        """Names of the `Sampler` settings that have an effect on this prior."""
        return EFFECTIVE["latents" if self.latents else self.config.order]

    def forward(
        self, codes: CodeMaps, labels: Tensor | None = None, text: Text | None = None
    ) -> PriorOutput:
        """Predict each code from class or text and the codes before it; masked, the hidden codes.

        With patches, the codes before are those of the patches before, and of its own patch.

        Label dropout, dropout and masks use torch's global generator; in a training step what they
        draw for an image depends on its place in the whole batch.

        Args:
            codes: level name -> integers (B, height, width), or latents (B, C, height, width).
            labels: int64 (B,) in [0, num_classes), -1 for the null class; None is -1 for all. In
                training, label dropout sets a share of them to -1. Ignored without classes.
            text: of a prior whose condition is text, the captions; None is no caption for all.
                Label dropout drops them likewise.

        Raises:
            ValueError: maps do not fit the code spec, or codes or labels are out of range (checked
                on the CPU only; on an accelerator the check would wait for the device).
        """
        sequence = self._sequence(codes)
        start = self._prefix(len(sequence), labels, text)
        if self.masked:
            hidden, count = masked.hide_for_training(len(sequence), self.length, sequence.device)
            logits = self._unguided(start, torch.where(hidden, self.mask_token, sequence))
            nats = self._nats(logits, sequence) * hidden
            return PriorOutput(nats.sum() / count, logits, nats)
        logits = self._unguided(start, sequence)
        nats = self._nats(logits, sequence)
        return PriorOutput(nats.mean() / sequence[0, 0].numel(), logits, nats)

    def nats(
        self,
        codes: CodeMaps,
        labels: Tensor | None = None,
        text: Text | None = None,
        *,
        generator: Generators = None,
    ) -> dict[str, Tensor]:
        """Negative log-likelihood of images' codes or latents, per level.

        Exact in raster order; the sum over the levels is the image's. In masked order one unbiased
        sample of an upper bound, see `masked.hide_for_bound`.

        Args:
            codes: as in `forward`.
            labels: as in `forward`; none are dropped in evaluation mode.
            text: as in `forward`.
            generator: for the masks, one for all images or one each; None is torch's global one.

        Returns:
            level name -> float32 (B,), nats; of latents those of a density in their own units,
            which may be negative.
        """
        sequence = self._sequence(codes)
        start = self._prefix(len(sequence), labels, text)
        if self.masked:
            uniforms = draw_uniforms(len(sequence), 1 + self.length, generator)
            hidden, weight = masked.hide_for_bound(uniforms)
            hidden, weight = hidden.to(sequence.device), weight.float().to(sequence.device)
            logits = self._unguided(start, torch.where(hidden, self.mask_token, sequence))
            nats = self._nats(logits, sequence) * hidden * weight
        else:
            nats = self._nats(self._unguided(start, sequence), sequence)
        return {level.name: nats[:, level.start : level.stop].sum(1) for level in self.levels}

    @torch.no_grad()
    def sample(
        self,
        num_images: int,
        labels: Tensor | Sequence[int] | None = None,
        *,
        text: Text | None = None,
        generator: Generators = None,
        known: CodeMaps | None = None,
        keep: CodeMaps | None = None,
        **settings: Unpack[Settings],
    ) -> CodeMaps:
        """Sample code maps or latents, or complete partly known code maps.

        On a CPU with MKL an image's codes depend only on its label or text, its random numbers and
        the settings, bit for bit; other libraries round differently for different batch sizes,
        which occasionally changes a code.

        Args:
            num_images: images to sample (B).
            labels: B class numbers in [0, num_classes), -1 for the null class; None is -1 for all.
            text: B captions for a prior whose condition is text, see `Text`; None is none.
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
        stream = self.stream(
            num_images,
            labels,
            updates=1,
            text=text,
            generator=generator,
            known=known,
            keep=keep,
            **settings,
        )
        (maps,) = deque(stream, maxlen=1)
        return maps

    @torch.no_grad()
    def stream(
        self,
        num_images: int,
        labels: Tensor | Sequence[int] | None = None,
        *,
        updates: int,
        text: Text | None = None,
        generator: Generators = None,
        known: CodeMaps | None = None,
        keep: CodeMaps | None = None,
        **settings: Unpack[Settings],
    ) -> Iterator[CodeMaps]:
        """Sample as `sample`, bit for bit, and show the maps while they fill.

        Args:
            num_images: as all others, see `sample`.
            labels: see `sample`.
            updates: how often to yield, about; at most once per position or round.
            text: see `sample`.
            generator: see `sample`.
            known: see `sample`.
            keep: see `sample`.
            **settings: see `sample`.

        Returns:
            Maps as of `sample`: codes are -1 and latents NaN where they are still to be sampled;
            the last ones are complete.

        Raises:
            ValueError: as `sample`, before anything is sampled.
        """
        sampler = Sampler(**settings)
        if num_images < 1:
            raise ValueError(f"num_images must be at least 1, not {num_images}")
        if labels is not None:
            labels = torch.as_tensor(labels, dtype=torch.long)
            check_labels(labels, num_images, self.num_classes)
            labels = labels.to(self.device)
        patch = self.config.patch
        tokens = sequences.known_tokens(known, keep, num_images, self.code_spec, patch)
        if tokens is not None:
            tokens = tokens.to(self.device)
        with self._evaluating():
            start = self._prefix(num_images, labels, self._of_full_length(text))
        steps = self._sampling_steps(start, tokens, sampler, generator)
        count = sampler.steps if self.masked else self.length // self.slots
        return self._every(max(1, math.ceil(count / updates)), steps)

    def _sampling_steps(
        self,
        start: Prefix,
        known: Tensor | None,
        sampler: Sampler,
        generator: Generators,
    ) -> Iterator[Tensor]:
        """Tokens int64 (B, L), or normalised latents float32 (B, L, D), after each step."""
        if self.latents:
            guided = sampler.guidance_scale != 1
            count = self.length * mixtures.uniforms_per_vector(self.chunk, guided=guided)
        elif self.masked:
            count = masked.uniforms_per_image(self.length, sampler.steps)
        else:
            count = self.length
        device = start.tokens.device
        precision = sum_dtype(device)
        below_one = 1 - torch.finfo(precision).eps / 2  # float32 may round up to 1
        uniforms = draw_uniforms(len(start), count, generator)
        uniforms = uniforms.to(device, precision).clamp(max=below_one)
        if self.latents:
            uniforms = uniforms.unflatten(1, (self.length, -1))
            return raster.sample_latents(self, start, sampler, uniforms)
        order = masked if self.masked else raster
        return order.sample_codes(self, start, known, sampler, uniforms)

    def _every(self, stride: int, steps: Iterator[Tensor]) -> Iterator[CodeMaps]:
        """The maps after every `stride` steps and after the last one."""
        while True:
            # Left before each yield: what the caller does in between is not in these modes.
            with (
                self._evaluating(),
                torch.inference_mode(),
                torch.autocast(self.device.type, enabled=False),
            ):
                last = deque(itertools.islice(steps, stride), maxlen=1)
            if not last:
                return
            # Outside inference mode, so that the result can be used in training.
            yield self._maps(last[0])

    def _maps(self, sequence: Tensor) -> CodeMaps:
        """Maps of a sequence, of which some may still be hidden."""
        if self.latents:
            level = sequences.latent_level(self.code_spec)
            shift, scale = self.latent_shift, self.latent_scale
            return sequences.sequence_to_latents(sequence, shift, scale, level)
        maps = sequences.sequence_to_maps(sequence, self.code_spec, self.config.patch)
        return {name: codes.clamp(min=-1) for name, codes in maps.items()}

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Without dropout: masked rounds run the blocks."""
        training = self.training
        self.eval()
        try:
            yield
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

    def _unguided(self, start: Prefix, sequence: Tensor) -> Tensor:
        """Outputs of the head without the guidance they have learnt, as of `logits_of`.

        With `trained_guidance` s the network's logits l stand for u + s (c - u), where u are those
        of any class and c those of the likelihood, hence c = l / s + (1 - 1 / s) u. As in Chen et
        al., Visual generation without guidance, ICML 2025, https://arxiv.org/abs/2501.15420,
        section 3 (beta = 1 / s), no gradient flows through u, which images without class train.
        """
        logits, share = self.logits_of(start, sequence), 1 / self.config.trained_guidance
        if share == 1:
            return logits
        null = start.without(self.null_token)
        with torch.no_grad():
            of_any = self.logits_of(null, sequence)
        conditional = (start.tokens != null.tokens).any(1)[:, None, None]
        return torch.where(conditional, share * logits + (1 - share) * of_any, logits)

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

    def _prefix(self, num_images: int, labels: Tensor | None, text: Text | None) -> Prefix:
        """What stands in front of a batch of sequences, after label dropout."""
        null = torch.full((num_images, 1), self.null_token, device=self.device)
        if text is not None:
            return self._text_prefix(text, null)
        if labels is None or self.num_classes == 0:
            return Prefix(null)
        if labels.device.type == "cpu":
            check_labels(labels, num_images, self.num_classes)
        hidden = (labels < 0) | self._dropped(num_images)
        return Prefix(torch.where(hidden, null[:, 0], labels + self.first_class).unsqueeze(1))

    def _text_prefix(self, text: Text, null: Tensor) -> Prefix:
        """Captions, numbered as the embedding has them, then the null token."""
        if self.config.text is None:
            raise ValueError(
                "this prior was not trained on captions: leave them out, or train one with "
                "--model.condition text"
            )
        check_text(text, len(null), self.config.text)
        shown = (text.tokens >= 0) & ~self._dropped(len(null)).unsqueeze(1)
        numbers = text.tokens if text.states is not None else text.tokens + self.first_class
        return Prefix(torch.cat((torch.where(shown, numbers, -1), null), 1), text.states)

    def _of_full_length(self, text: Text | None) -> Text | None:
        """Captions padded in front to the longest there can be, on the model's device.

        The same arithmetic for every batch, so that an image does not depend on the others.
        """
        if text is None or self.config.text is None:
            return text
        missing = self.config.text["length"] - text.tokens.shape[1]
        tokens = F.pad(text.tokens.to(self.device), (max(0, missing), 0), value=-1)
        states = text.states
        if states is not None:
            states = F.pad(states.to(self.device), (0, 0, max(0, missing), 0))
        return Text(tokens, states)

    def _dropped(self, num_images: int) -> Tensor:
        """Images that are trained without their class or caption, bool (B,)."""
        if not self.training or self.config.label_dropout == 0:
            return torch.zeros(num_images, dtype=torch.bool, device=self.device)
        drawn = own_rows(torch.rand(step_rows(num_images), device=self.device))
        return drawn < self.config.label_dropout


def check_text(text: Text, num_images: int, spec: TextSpec) -> None:
    """Check captions against what a prior reads.

    Raises:
        ValueError: their number, length or kind is another.
    """
    count, length = text.tokens.shape
    if count != num_images:
        raise ValueError(f"{num_images} images need as many captions, not {count}")
    if length > spec["length"]:
        raise ValueError(
            f"a caption has {length} tokens, this prior reads up to {spec['length']}: shorten it"
        )
    highest = int(text.tokens.max()) if text.tokens.device.type == "cpu" else -1
    if highest >= max(1, spec["vocabulary"]):
        raise ValueError(f"token {highest} of a caption is out of range: another tokenizer made it")
    width = 0 if text.states is None else text.states.shape[-1]
    if width != spec["width"]:
        raise ValueError(
            f"captions as states of {width} numbers do not suit a prior that reads "
            f"{spec['width'] or 'none'}: encode them with its own encoder"
        )


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
