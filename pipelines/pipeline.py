"""A prior and a decoder chained: codes are sampled, then decoded to images. What lies on disk is in `folder`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Self

import torch
from torch import Generator, Tensor

from latent_prior.data.codes import CodeMaps, CodeSpec, check_same_codes
from latent_prior.models import StrictModel, local_folder
from latent_prior.pipelines.arguments import check_settings_apply, label_number, one_each
from latent_prior.pipelines.completion import fill_with_mean, hidden_codes, one_mask_each, settle
from latent_prior.pipelines.folder import push_folder, read_folder, write_folder
from latent_prior.pipelines.outputs import PipelineOutput, check_output, convert
from latent_prior.stage1_autoencoders.autoencoder import Autoencoder
from latent_prior.stage2_prior.engine_tokens import codes_from_tokens
from latent_prior.stage2_prior.prior import TransformerPrior
from latent_prior.stage2_prior.sampler import Sampler


class Pipeline:
    """Generate images: `Pipeline.from_pretrained("runs/mnist/pipeline")(num_images=16).images`."""

    def __init__(
        self,
        autoencoder: Autoencoder,
        prior: TransformerPrior | None = None,
        sampler: Sampler | None = None,
    ) -> None:
        """Chain an autoencoder with a prior over its codes.

        Without a prior a VAE's latents are drawn from N(0, I); other pipelines then encode and decode only.

        Raises:
            ValueError: the prior was trained on the codes of another autoencoder.
        """
        if prior is not None:
            check_same_codes(autoencoder.code_spec, prior.code_spec, "the autoencoder", "the prior")
        self.autoencoder = autoencoder.eval()
        self.prior = None if prior is None else prior.eval()
        self.sampler = sampler or Sampler()

    @classmethod
    def from_pretrained(
        cls, path_or_hub_id: str | os.PathLike[str], *, revision: str | None = None
    ) -> Self:
        """Load a pipeline folder, or a repository of the Hugging Face hub that holds one.

        Raises:
            ValueError: a missing, damaged or foreign folder, or parts that do not belong together.
        """
        return cls(*read_folder(local_folder(path_or_hub_id, revision=revision)))

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *, max_shard_size: int | str = "50GB"
    ) -> None:
        """Write the pipeline folder; a pipeline already there is replaced when the new one is complete.

        Its README.md, if somebody wrote one, stays; otherwise it is the model card.

        Raises:
            ValueError: the folder holds something else, which would be lost.
        """
        write_folder(
            Path(save_directory),
            self.components,
            self.sampler,
            self.code_spec,
            max_shard_size=max_shard_size,
        )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Upload pipeline",
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str = "50GB",
    ) -> str:
        """Upload the folder that `save_pretrained` writes; see `hub.push_folder`.

        Args:
            repo_id: `user/name`; made if missing.
            commit_message: of the upload.
            private: whether a new repository is private; None leaves it to the account.
            token: True takes the one of `hf auth login`.
            revision: branch, made if missing.
            create_pr: propose the upload instead of making it.
            max_shard_size: see `save_pretrained`.

        Returns:
            Address of the commit.
        """
        with TemporaryDirectory() as temporary:
            folder = Path(temporary) / "pipeline"
            self.save_pretrained(folder, max_shard_size=max_shard_size)
            return push_folder(
                folder, repo_id, commit_message=commit_message, private=private, token=token,
                revision=revision, create_pr=create_pr,
            )  # fmt: skip

    @property
    def components(self) -> dict[str, StrictModel]:
        """The models by name."""
        parts: dict[str, StrictModel] = {"autoencoder": self.autoencoder}
        return parts if self.prior is None else {**parts, "prior": self.prior}

    def to(self, device: str | torch.device) -> Self:
        """Move both components."""
        self.autoencoder.to(device)
        if self.prior is not None:
            self.prior.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the components are."""
        return self.autoencoder.device

    @property
    def code_spec(self) -> CodeSpec:
        """What the codes are; with class names where the prior has classes."""
        return self.autoencoder.code_spec if self.prior is None else self.prior.code_spec

    @property
    def settings(self) -> tuple[str, ...]:
        """Names of the `Sampler` settings that have an effect; without a prior the temperature multiplies N(0, I)."""
        return ("temperature",) if self.prior is None else self.prior.settings

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes that can be asked for; empty for an unconditional prior."""
        return (
            self.code_spec.class_names if self.prior is not None and self.prior.num_classes else ()
        )

    @torch.no_grad()
    def __call__(
        self,
        num_images: int = 1,
        *,
        labels: int | str | Sequence[int | str] | None = None,
        guidance_scale: float | None = None,
        guidance_schedule: Literal["constant", "linear", "cosine"] | None = None,
        guidance_interval: tuple[float, float] | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        steps: int | None = None,
        choice_temperature: float | None = None,
        generator: Generator | Sequence[Generator] | None = None,
        batch_size: int = 64,
        output_type: Literal["pil", "pt", "np"] = "pil",
    ) -> PipelineOutput:
        """Sample codes from the prior, or a VAE's latents from N(0, I) where there is none, and decode them.

        Args:
            num_images: how many.
            labels: one class for all or one each, as number or name; -1 is any class. None takes the classes in
                turn, so that all are drawn equally often; without classes it is the only choice.
            guidance_scale: see `Sampler`; None takes the pipeline's own default, here and below.
            guidance_schedule: see `Sampler`.
            guidance_interval: see `Sampler`.
            temperature: see `Sampler`; without a prior it multiplies the latents.
            top_k: see `Sampler`.
            top_p: see `Sampler`.
            steps: see `Sampler`.
            choice_temperature: see `Sampler`.
            generator: one source of randomness for all images or one for each; the same seed gives the same images,
                whatever the batch size.
            batch_size: images computed at a time.
            output_type: `pil`, `pt` or `np`, see `PipelineOutput`.

        Raises:
            ValueError: an argument out of its range or without effect, or nothing to sample from.
        """
        if self.prior is None and self.code_spec.kind == "codes":
            raise ValueError(
                "this pipeline has no prior to sample from; use encode, decode and reconstruct"
            )
        check_output(output_type, num_images, batch_size)
        numbers = self.label_numbers(labels, num_images)
        generators = one_each(generator, num_images)
        given: dict[str, Any] = {
            "guidance_scale": guidance_scale, "guidance_schedule": guidance_schedule,
            "guidance_interval": guidance_interval, "temperature": temperature, "top_k": top_k, "top_p": top_p,
            "steps": steps, "choice_temperature": choice_temperature,
        }  # fmt: skip
        sampler = self.resolve(given)
        parts: list[CodeMaps] = []
        images: list[Tensor] = []
        for start in range(0, num_images, batch_size):
            chunk = slice(start, min(start + batch_size, num_images))
            own = None if generators is None else generators[chunk]
            count = chunk.stop - chunk.start
            if self.prior is None:
                codes = self.standard_normal(count, own, temperature=sampler.temperature)
            else:
                settings = dataclasses.asdict(sampler)
                codes = self.prior.sample(count, numbers[chunk], **settings, generator=own)
            parts.append(codes)
            images.append(self.decode(codes).cpu())
        codes = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return PipelineOutput(convert(torch.cat(images), output_type), codes, numbers)

    def resolve(self, given: Mapping[str, Any], prefix: str = "") -> Sampler:
        """The pipeline's own settings, but for those given.

        Args:
            given: settings by name, None where nothing was said.
            prefix: put before a setting's name in an error, as `--`.

        Raises:
            ValueError: a setting out of its range or without effect.
        """
        if self.prior is None:
            reason = "is for a prior, and this pipeline has none"
        elif self.prior.latents:
            reason = "has no effect on a prior over latents"
        else:
            reason = "has no effect on a prior in raster order"
        check_settings_apply(given, self.settings, reason, prefix)
        chosen = {name: value for name, value in given.items() if value is not None}
        return dataclasses.replace(self.sampler, **chosen)

    def label_numbers(
        self, labels: int | str | Sequence[int | str] | None, num_images: int
    ) -> list[int]:
        """Class numbers for `num_images` images; see `__call__`.

        Raises:
            ValueError: an unknown class, or another number of labels than images.
        """
        names = self.class_names
        if labels is None:
            return [place % len(names) if names else -1 for place in range(num_images)]
        listed = [labels] * num_images if isinstance(labels, int | str) else list(labels)
        if len(listed) != num_images:
            raise ValueError(f"{num_images} images need one label, or one each, not {len(listed)}")
        return [label_number(label, names) for label in listed]

    @torch.no_grad()
    def encode(self, images: Tensor) -> CodeMaps:
        """Images, float (B, C, H, W) in [-1, 1], to codes or latents."""
        return self.autoencoder.encode(images.to(self.device))

    @torch.no_grad()
    def decode(self, codes: CodeMaps | Tensor | Sequence[Sequence[int]]) -> Tensor:
        """Codes or latents to images, float (B, C, H, W) clamped to [-1, 1].

        Args:
            codes: level name -> codes or latents; or tokens (B, L), with or without the class token in front, as an
                engine returns them that serves an exported prior.

        Raises:
            ValueError: maps of another shape or vocabulary than the autoencoder's, or tokens that are no codes.
        """
        if not isinstance(codes, dict):
            codes = codes_from_tokens(codes, self.code_spec)
        for level in self.code_spec.levels:
            found = codes.get(level.name)
            if found is None or tuple(found.shape[1:]) != level.shape:
                shape = None if found is None else tuple(found.shape)
                expected = ", ".join(map(str, ("B", *level.shape)))
                raise ValueError(f"codes {level.name!r}: expected ({expected}), found {shape}")
            if level.vocabulary is None or not found.numel():
                continue
            if not 0 <= int(found.min()) <= int(found.max()) < level.vocabulary:
                raise ValueError(
                    f"codes {level.name!r}: values must lie in [0, {level.vocabulary})"
                )
        on_device = {name: values.to(self.device) for name, values in codes.items()}
        return self.autoencoder.decode(on_device).float().clamp(-1, 1)

    @torch.no_grad()
    def complete(
        self,
        images: Tensor,
        mask: Tensor,
        *,
        labels: int | str | Sequence[int | str] | None = None,
        guidance_scale: float | None = None,
        guidance_schedule: Literal["constant", "linear", "cosine"] | None = None,
        guidance_interval: tuple[float, float] | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        steps: int | None = None,
        choice_temperature: float | None = None,
        generator: Generator | Sequence[Generator] | None = None,
        rounds: int = 32,
        paste: bool = True,
        batch_size: int = 64,
        output_type: Literal["pil", "pt", "np"] = "pil",
    ) -> PipelineOutput:
        """Fill in the hidden parts of images.

        Codes whose patch of the image is hidden, in full or in part, are drawn from the prior, given the class, the
        codes of the visible patches and those drawn before, in the order of the sequence: a prior looks at what stands
        above and to the left, so a hidden lower half fits the visible upper one better than the other way round.
        Latents need no prior: they settle in some rounds of encoding and decoding (see `completion.settle`).

        Args:
            images: float (B, C, H, W) in [-1, 1]; the hidden pixels are not looked at.
            mask: bool (H, W) or (B, H, W), True where a pixel is hidden.
            labels: one class for all or one each, as number or name; -1 and None are any class.
            guidance_scale: see `Sampler`; None takes the pipeline's own default, here and below.
            guidance_schedule: see `Sampler`.
            guidance_interval: see `Sampler`.
            temperature: see `Sampler`.
            top_k: see `Sampler`.
            top_p: see `Sampler`.
            steps: see `Sampler`.
            choice_temperature: see `Sampler`.
            generator: one source of randomness for all images or one for each, as in a call.
            rounds: of encoding and decoding; for latents.
            paste: put the visible pixels back over what the decoder made of them.
            batch_size: images computed at a time.
            output_type: `pil`, `pt` or `np`, see `PipelineOutput`.

        Raises:
            ValueError: an argument out of its range or without effect, or no prior to draw codes from.
        """
        given: dict[str, Any] = {
            "guidance_scale": guidance_scale, "guidance_schedule": guidance_schedule,
            "guidance_interval": guidance_interval, "temperature": temperature, "top_k": top_k, "top_p": top_p,
            "steps": steps, "choice_temperature": choice_temperature,
        }  # fmt: skip
        self._check_completion(labels, given)
        check_output(output_type, len(images), batch_size)
        numbers = self.label_numbers(-1 if labels is None else labels, len(images))
        latents = self.code_spec.kind == "latents"
        generators = one_each(generator, len(images))
        settings = {} if latents else dataclasses.asdict(self.resolve(given))
        hidden_of_all = one_mask_each(mask, images)
        parts: list[CodeMaps] = []
        completed: list[Tensor] = []
        for start in range(0, len(images), batch_size):
            chunk = slice(start, min(start + batch_size, len(images)))
            hidden = hidden_of_all[chunk].to(self.device)
            filled = fill_with_mean(images[chunk].to(self.device), hidden)
            if latents or self.prior is None:
                codes = settle(self.autoencoder, filled, hidden, rounds)
            else:
                drawn = hidden_codes(hidden, self.code_spec.levels)
                codes = self.prior.sample(
                    len(filled),
                    numbers[chunk],
                    **settings,
                    generator=None if generators is None else generators[chunk],
                    known=self.autoencoder.encode(filled),
                    keep={name: ~places for name, places in drawn.items()},
                )
            decoded = self.decode(codes)
            parts.append(codes)
            completed.append((torch.where(hidden, decoded, filled) if paste else decoded).cpu())
        codes = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return PipelineOutput(convert(torch.cat(completed), output_type), codes, numbers)

    @torch.no_grad()
    def embed(self, images: Tensor) -> CodeMaps:
        """Images, float (B, C, H, W) in [-1, 1], to vectors that can be mixed and moved, see `Autoencoder.embed`."""
        return self.autoencoder.embed(images.to(self.device))

    @torch.no_grad()
    def decode_vectors(self, vectors: CodeMaps) -> Tensor:
        """The way back from `embed`, also for vectors of no image: images, float (B, C, H, W) clamped to [-1, 1]."""
        on_device = {name: values.to(self.device) for name, values in vectors.items()}
        return self.autoencoder.decode_vectors(on_device).float().clamp(-1, 1)

    def reconstruct(self, images: Tensor) -> Tensor:
        """Images to codes and back; shapes and ranges as in `encode` and `decode`."""
        return self.decode(self.encode(images))

    def random_codes(
        self, num_images: int, generator: Generator | Sequence[Generator] | None = None
    ) -> CodeMaps:
        """Uniformly random codes: what decoding looks like without a prior, the line any prior must beat."""
        if self.code_spec.kind == "latents":
            raise ValueError(
                "this pipeline has latents, not codes: without a prior it samples them from N(0, I)"
            )
        generators: Sequence[Generator | None] = (
            one_each(generator, num_images) or [None] * num_images
        )
        codes: CodeMaps = {}
        for level in self.code_spec.levels:
            assert level.vocabulary is not None
            codes[level.name] = torch.stack(
                [torch.randint(level.vocabulary, level.shape, generator=g) for g in generators]
            )
        return codes

    def standard_normal(
        self,
        num_images: int,
        generator: Generator | Sequence[Generator] | None = None,
        *,
        temperature: float = 1.0,
    ) -> CodeMaps:
        """Latents from N(0, I), the prior that a VAE is trained towards, scaled by the temperature."""
        generators: Sequence[Generator | None] = (
            one_each(generator, num_images) or [None] * num_images
        )
        return {
            level.name: torch.stack([torch.randn(level.shape, generator=g) for g in generators])
            * temperature
            for level in self.code_spec.levels
        }

    def _check_completion(self, labels: object, given: dict[str, Any]) -> None:
        latents = self.code_spec.kind == "latents"
        if self.prior is None and not latents:
            raise ValueError(
                "this pipeline has no prior to draw the hidden codes from; assemble one with a prior"
            )
        named = ["labels"] if labels is not None else []
        named += [name for name, value in given.items() if value is not None]
        if latents and named:
            raise ValueError(
                f"{named[0]} is for a prior over codes; latents are completed without one"
            )
