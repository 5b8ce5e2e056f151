"""Both stages as one object: a prior samples codes, an autoencoder decodes them to images."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple, Self, Unpack, cast

import numpy as np
import torch
from huggingface_hub import HfApi
from numpy.typing import NDArray
from PIL import Image
from torch import Generator, Tensor

from latent_prior.data.codes import CodeMaps, CodeSpec, check_same_codes
from latent_prior.data.images import to_pil, to_uint8
from latent_prior.data.labels import classes_in_turn, label_number
from latent_prior.models import StrictModel, local_folder
from latent_prior.pipelines.completion import (
    fill_with_mean,
    hidden_codes,
    hide_grey,
    not_sampled,
    one_mask_each,
    settle,
)
from latent_prior.pipelines.folder import merge_card, read_folder, write_folder
from latent_prior.pipelines.inputs import (
    ImageInput,
    MaskInput,
    as_batch,
    as_codes,
    as_count,
    as_images,
    as_mask,
    as_vectors,
    check_values,
)
from latent_prior.pipelines.prompts import Prompts, prompt_for_each, read_prompts, reader_of
from latent_prior.seeds import Generators, one_per_image
from latent_prior.stage1_autoencoders.autoencoder import Autoencoder
from latent_prior.stage2_prior.engine_tokens import codes_from_tokens
from latent_prior.stage2_prior.prior import TransformerPrior
from latent_prior.stage2_prior.sampler import Sampler, Settings
from latent_prior.stage2_prior.text.encoder import TextEncoder
from latent_prior.stage2_prior.text.reading import Text

OutputType = Literal["pil", "pt", "np"]
Images = list[Image.Image] | Tensor | NDArray[np.float32]
Labels = int | str | Sequence[int | str] | NDArray[np.integer[Any]] | Tensor


@dataclass
class PipelineOutput:
    """Result of a call.

    Attributes:
        images: PIL images; or a float tensor (N, C, H, W) in [-1, 1] (`pt`); or a float array
            (N, H, W, C) in [0, 1] (`np`).
        codes: level name -> sampled codes, int64 (N, height, width), or latents, float
            (N, channels, height, width).
        labels: class of each image, -1 for none.
    """

    images: Images
    codes: CodeMaps
    labels: list[int]


class _Request(NamedTuple):
    """What a call asks for: a prompt, if any, and a class for each image."""

    num_images: int
    prompts: list[str | None] | None
    labels: list[int]
    sampler: Sampler


class Pipeline:
    """An autoencoder and the prior over its codes, to generate, encode, decode and complete images.

    Example::

        pipe = Pipeline.from_pretrained("runs/mnist/pipeline")
        images = pipe(num_images=16).images
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        prior: TransformerPrior | None = None,
        sampler: Sampler | None = None,
        text_encoder: TextEncoder | None = None,
    ) -> None:
        """Combine an autoencoder with a prior over its codes.

        Without a prior, a VAE's latents are sampled from N(0, I); others only encode and decode. A
        prior that was trained with a text encoder needs that one.

        Raises:
            ValueError: the prior was trained on the codes of another autoencoder, or with another
                text encoder.
        """
        if prior is not None:
            check_same_codes(autoencoder.code_spec, prior.code_spec, "the autoencoder", "the prior")
        self.autoencoder = autoencoder.eval()
        self.prior = None if prior is None else prior.eval()
        self.sampler = sampler or Sampler()
        self.text_encoder = text_encoder
        self.prompt_reader = reader_of(prior, text_encoder)

    @classmethod
    def from_pretrained(
        cls, path_or_hub_id: str | os.PathLike[str], *, revision: str | None = None
    ) -> Self:
        """Load a pipeline folder, local or from the Hugging Face hub.

        Raises:
            ValueError: the folder is missing, damaged or no pipeline, or components do not match.
        """
        return cls(*read_folder(local_folder(path_or_hub_id, revision=revision)))

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *, max_shard_size: int | str = "50GB"
    ) -> None:
        """Write the pipeline folder, replacing an existing pipeline when the new one is complete.

        A handwritten README.md stays; otherwise the model card is written.

        Raises:
            ValueError: the folder holds something else, which would be lost.
        """
        write_folder(
            Path(save_directory),
            self.components,
            self.sampler,
            self.code_spec,
            text_encoder=self.text_encoder,
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
        """Upload the folder of `save_pretrained`; a handwritten README.md on the hub stays.

        Args:
            repo_id: `user/name`; created if missing.
            commit_message: message of the commit.
            private: whether a new repository is private; None uses the account's default.
            token: True uses the token of `hf auth login`.
            revision: branch, created if missing.
            create_pr: open a pull request instead of committing.
            max_shard_size: see `save_pretrained`.

        Returns:
            URL of the commit.
        """
        hub = HfApi(token=token)
        repo = hub.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not create_pr:
            hub.create_branch(repo, branch=revision, exist_ok=True)
        with TemporaryDirectory() as temporary:
            folder = Path(temporary) / "pipeline"
            self.save_pretrained(folder, max_shard_size=max_shard_size)
            return hub.upload_folder(
                repo_id=repo,
                folder_path=folder,
                commit_message=commit_message,
                revision=revision,
                create_pr=create_pr,
                ignore_patterns=merge_card(folder, hub, repo, None if create_pr else revision),
            ).commit_url

    @property
    def components(self) -> dict[str, StrictModel]:
        """The models by name."""
        parts: dict[str, StrictModel] = {"autoencoder": self.autoencoder}
        return parts if self.prior is None else {**parts, "prior": self.prior}

    def to(self, device: str | torch.device) -> Self:
        """Move all components."""
        self.autoencoder.to(device)
        if self.prior is not None:
            self.prior.to(device)
        if self.text_encoder is not None:
            self.text_encoder.to(torch.device(device))
        return self

    @property
    def device(self) -> torch.device:
        """Device of the components."""
        return self.autoencoder.device

    @property
    def code_spec(self) -> CodeSpec:
        """Kind and shapes of the codes, with class names if the prior has classes."""
        return self.autoencoder.code_spec if self.prior is None else self.prior.code_spec

    @property
    def settings(self) -> tuple[str, ...]:
        """Names of the `Sampler` settings that have an effect."""
        return ("temperature",) if self.prior is None else self.prior.settings

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes that can be sampled; empty for an unconditional prior."""
        return (
            self.code_spec.class_names if self.prior is not None and self.prior.num_classes else ()
        )

    @property
    def trained_classes(self) -> list[int] | None:
        """Numbers of the classes with training images; None: all."""
        return None if self.prior is None else self.prior.config.trained_classes

    @torch.no_grad()
    def __call__(
        self,
        num_images: int | None = None,
        *,
        prompt: Prompts | None = None,
        labels: Labels | None = None,
        generator: Generators = None,
        batch_size: int = 64,
        output_type: OutputType = "pil",
        **settings: Unpack[Settings],
    ) -> PipelineOutput:
        """Sample codes from the prior, or latents from N(0, I) without one, and decode them.

        Args:
            num_images: number of images; None is one, or one for each of several prompts.
            prompt: what the images show, one text for all or one per image; None there, or without
                any, is no caption. For a prior whose condition is text.
            labels: one class for all images or one per image, as number or name; -1 is any class.
                None uses the classes with training images in turn, each equally often.
            generator: one generator or seed for all images, or one per image; the same seed gives
                the same images for any batch size.
            batch_size: images computed at a time.
            output_type: `pil`, `pt` or `np`, see `PipelineOutput`.
            **settings: see `Sampler`; those left out keep the pipeline's default. Without a prior,
                `temperature` multiplies the latents.

        Raises:
            ValueError: an argument is out of range or has no effect, or there is no prior.
        """
        request = self._request(num_images, prompt, labels, settings)
        num_images, batch_size = _checked(output_type, request.num_images, batch_size)
        parts: list[CodeMaps] = []
        images: list[Tensor] = []
        for batch, generators in _batches(num_images, batch_size, generator):
            (codes,) = deque(self._sample(request, batch, generators, updates=1), maxlen=1)
            parts.append(codes)
            images.append(self.decode(codes).cpu())
        return _output(parts, images, request.labels, output_type)

    @torch.no_grad()
    def stream(
        self,
        num_images: int | None = None,
        *,
        prompt: Prompts | None = None,
        labels: Labels | None = None,
        generator: Generators = None,
        updates: int = 12,
        output_type: OutputType = "pil",
        **settings: Unpack[Settings],
    ) -> Iterator[PipelineOutput]:
        """Generate as a call does, and show the images while they are sampled.

        Args:
            num_images: as all others, see `__call__`; all of them are computed at a time.
            prompt: see `__call__`.
            labels: see `__call__`.
            generator: see `__call__`.
            updates: how often to show them, about.
            output_type: see `__call__`.
            **settings: see `__call__`.

        Returns:
            Outputs of which the last one is that of a call. In those before it codes are -1, and
            latents NaN, where they are still to be sampled. An image is mid grey where not even its
            coarsest code is known. Without a prior there is one output.

        Raises:
            ValueError: as a call, before anything is sampled.
        """
        request = self._request(num_images, prompt, labels, settings)
        count, updates = _checked(output_type, request.num_images, updates, "updates")
        batch, generators = slice(0, count), one_per_image(generator, count)
        samples = self._sample(request, batch, generators, updates=updates)
        return self._previews(samples, request.labels, output_type)

    @torch.no_grad()
    def _previews(
        self, samples: Iterator[CodeMaps], labels: list[int], output_type: OutputType
    ) -> Iterator[PipelineOutput]:
        for codes in samples:
            images = self._decode_partly(codes).cpu()
            yield _output([codes], [images], labels, output_type)

    def _decode_partly(self, codes: CodeMaps) -> Tensor:
        """Images of codes of which some are still to be sampled, see `stream`."""
        hidden = not_sampled(codes)
        if self.code_spec.kind == "latents":
            if self.code_spec.latent_shift is None:
                return self.decode(codes)
            mean = torch.tensor(self.code_spec.latent_shift, device=self.device).view(-1, 1, 1)
            filled = {name: values.where(~values.isnan(), mean) for name, values in codes.items()}
        else:
            filled = {
                name: values.where(values >= 0, self._grey_codes[name])
                for name, values in codes.items()
            }
        return hide_grey(self.decode(filled), hidden)

    @functools.cached_property
    def _grey_codes(self) -> CodeMaps:
        """The codes (1, height, width) of an image that is mid grey all over."""
        spec = self.code_spec
        return self.encode(torch.zeros(1, spec.image_channels, spec.image_size, spec.image_size))

    def _request(
        self,
        num_images: int | None,
        prompt: Prompts | None,
        labels: Labels | None,
        settings: Settings,
    ) -> _Request:
        """What a call asks for, checked."""
        if self.prior is None and self.code_spec.kind == "codes":
            raise ValueError(
                "this pipeline has no prior to sample from; use encode, decode and reconstruct"
            )
        if isinstance(num_images, str):
            raise ValueError(f"num_images must be a number; write pipe(prompt={num_images[:40]!r})")
        if num_images is None and prompt is not None and not prompt:
            raise ValueError("the prompt is empty: say what the images show")
        if num_images is None:
            num_images = len(prompt) if isinstance(prompt, list | tuple) else 1
        num_images = as_count(num_images, "num_images")
        prompts = None if prompt is None else self.prompts_for(prompt, num_images)
        numbers = self.label_numbers(labels, num_images)
        return _Request(num_images, prompts, numbers, self.resolve(settings))

    def _sample(
        self, request: _Request, batch: slice, generators: Sequence[Generator | None], updates: int
    ) -> Iterator[CodeMaps]:
        """Codes or latents of some images of a request while they fill."""
        count, sampler = batch.stop - batch.start, request.sampler
        if self.prior is None:
            latents = self.standard_normal(count, generators, temperature=sampler.temperature)
            return iter([latents])
        return self.prior.stream(
            count,
            request.labels[batch],
            updates=updates,
            text=self.read_prompts(request.prompts, batch),
            generator=generators,
            **dataclasses.asdict(sampler),
        )

    def prompts_for(self, prompt: Prompts, num_images: int) -> list[str | None]:
        """A prompt for each image; see `__call__`.

        Raises:
            ValueError: the prior reads no captions; or the number of prompts is not that of the
                images, or one is empty or too long.
        """
        prompts = prompt_for_each(prompt, num_images)
        read_prompts(self.prompt_reader, list(dict.fromkeys(prompts)))
        return prompts

    def read_prompts(self, prompts: Sequence[str | None] | None, images: slice) -> Text | None:
        """The prompts of some images as the prior reads them; None without any."""
        return None if prompts is None else read_prompts(self.prompt_reader, prompts[images])

    def resolve(self, settings: Mapping[str, Any], prefix: str = "") -> Sampler:
        """The pipeline's default settings, updated by the given ones.

        Args:
            settings: settings by name; None keeps the default.
            prefix: before a setting's name in an error, for example `--`.

        Raises:
            ValueError: a setting is out of range or has no effect.
        """
        given = {name: value for name, value in settings.items() if value is not None}
        sampler = dataclasses.replace(self.sampler, **given)
        if self.prior is None:
            reason = "is for a prior, and this pipeline has none"
        elif self.prior.latents:
            reason = "has no effect on a prior over latents"
        else:
            reason = "has no effect on a prior in raster order"
        for name in given:
            if name not in self.settings:
                raise ValueError(f"{prefix}{name} {reason}; leave it out")
        return sampler

    def label_numbers(self, labels: Labels | None, num_images: int) -> list[int]:
        """Class numbers for `num_images` images; see `__call__`.

        Raises:
            ValueError: an unknown class, or the number of labels is not that of the images.
        """
        names = self.class_names
        if labels is None:
            return classes_in_turn(num_images, len(names), self.trained_classes)
        if isinstance(labels, Tensor | np.ndarray | np.generic):
            labels = cast(Labels, labels.tolist())
        listed = (
            list(labels)
            if isinstance(labels, Iterable) and not isinstance(labels, str)
            else [labels] * num_images
        )
        if len(listed) != num_images:
            raise ValueError(f"{num_images} images need one label, or one each, not {len(listed)}")
        if self.prompt_reader is not None and any(label not in (-1, "-1") for label in listed):
            raise ValueError("this pipeline's prior reads captions and no labels: give a prompt")
        return [label_number(label, names) for label in listed]

    @torch.no_grad()
    def encode(self, images: ImageInput) -> CodeMaps:
        """Images to codes or latents.

        Args:
            images: float (B, C, H, W) in [-1, 1], or another kind of `inputs.ImageInput`.

        Raises:
            ValueError: kind, shape or values do not fit the autoencoder.
        """
        return self.autoencoder.encode(as_images(images, self.code_spec).to(self.device))

    @torch.no_grad()
    def decode(self, codes: Mapping[str, Tensor] | Tensor | Sequence[Sequence[int]]) -> Tensor:
        """Codes or latents to images, float (B, C, H, W) clamped to [-1, 1].

        Args:
            codes: level name -> codes, int64 (B, height, width), or latents, float
                (B, channels, height, width); or tokens (B, L) from an engine that serves an
                exported prior, with or without the class token in front.

        Raises:
            ValueError: shapes or values do not fit the autoencoder, or tokens are no codes.
        """
        if not isinstance(codes, Mapping):
            codes = codes_from_tokens(codes, self.code_spec)
        codes = as_codes(codes, self.code_spec)
        on_device = {name: values.to(self.device) for name, values in codes.items()}
        return self.autoencoder.decode(on_device).float().clamp(-1, 1)

    @torch.no_grad()
    def complete(
        self,
        images: ImageInput,
        mask: MaskInput,
        *,
        prompt: Prompts | None = None,
        labels: Labels | None = None,
        generator: Generators = None,
        rounds: int = 32,
        paste: bool = True,
        batch_size: int = 64,
        output_type: OutputType = "pil",
        **settings: Unpack[Settings],
    ) -> PipelineOutput:
        """Fill in the hidden parts of images.

        Codes whose patch is hidden, even in part, are sampled from the prior given the class, the
        visible codes and those sampled before. A prior in raster order only sees codes above and to
        the left, so it completes a lower half better than an upper one. Latents need no prior: they
        converge over rounds of encoding and decoding (see `completion.settle`).

        Args:
            images: as for `encode`; hidden pixels are ignored.
            mask: bool (H, W) or (B, H, W), True where a pixel is hidden; or another kind of
                `inputs.MaskInput`.
            prompt: one text for all images or one per image, as in a call.
            labels: one class for all images or one per image; -1 and None are any class.
            generator: one generator or seed for all images or one per image, as in a call.
            rounds: rounds of encoding and decoding, for latents.
            paste: paste the visible pixels over the decoded image.
            batch_size: images computed at a time.
            output_type: `pil`, `pt` or `np`, see `PipelineOutput`.
            **settings: see `Sampler`; those left out keep the pipeline's default.

        Raises:
            ValueError: an argument is out of range or has no effect, or there is no prior.
        """
        sampler = self.resolve_completion(labels, settings, prompt=prompt)
        every = as_batch(images, self.code_spec)
        count, batch_size = _checked(output_type, len(every), batch_size)
        rounds = as_count(rounds, "rounds", 0)
        prompts = None if prompt is None else self.prompts_for(prompt, count)
        numbers = self.label_numbers(-1 if labels is None else labels, count)
        masks = one_mask_each(as_mask(mask), every)
        visible = fill_with_mean(every, masks)
        check_values(visible)
        parts: list[CodeMaps] = []
        completed: list[Tensor] = []
        for batch, generators in _batches(count, batch_size, generator):
            hidden, filled = (each[batch].to(self.device) for each in (masks, visible))
            if sampler is None or self.prior is None:
                codes = settle(self.autoencoder, filled, hidden, rounds)
            else:
                resampled = hidden_codes(hidden, self.code_spec.levels)
                codes = self.prior.sample(
                    len(filled),
                    numbers[batch],
                    text=self.read_prompts(prompts, batch),
                    generator=generators,
                    known=self.autoencoder.encode(filled),
                    keep={name: ~positions for name, positions in resampled.items()},
                    **dataclasses.asdict(sampler),
                )
            decoded = self.decode(codes)
            parts.append(codes)
            completed.append((torch.where(hidden, decoded, filled) if paste else decoded).cpu())
        return _output(parts, completed, numbers, output_type)

    def resolve_completion(
        self,
        labels: Labels | None,
        settings: Mapping[str, Any],
        prefix: str = "",
        *,
        prompt: Prompts | None = None,
    ) -> Sampler | None:
        """The settings of `complete`, see `resolve`; None for latents, which need no prior.

        Raises:
            ValueError: an argument is out of range or has no effect, or there is no prior.
        """
        if self.code_spec.kind == "codes":
            if self.prior is None:
                raise ValueError(
                    "this pipeline has no prior to sample the hidden codes from; assemble one with a prior"
                )
            return self.resolve(settings, prefix)
        for name, value in {"labels": labels, "prompt": prompt, **settings}.items():
            if value is not None:
                raise ValueError(
                    f"{prefix}{name} is for a prior over codes; latents are completed without one"
                )
        return None

    @torch.no_grad()
    def embed(self, images: ImageInput) -> CodeMaps:
        """Images, as for `encode`, to continuous vectors, see `Autoencoder.embed`."""
        return self.autoencoder.embed(as_images(images, self.code_spec).to(self.device))

    @torch.no_grad()
    def decode_vectors(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """The inverse of `embed`, for any vectors; images are float (B, C, H, W) in [-1, 1].

        Raises:
            ValueError: levels, shapes or values do not fit.
        """
        vectors = as_vectors(vectors, self._vector_shapes)
        on_device = {name: values.to(self.device) for name, values in vectors.items()}
        return self.autoencoder.decode_vectors(on_device).float().clamp(-1, 1)

    @functools.cached_property
    def _vector_shapes(self) -> dict[str, torch.Size]:
        """The shape of one image's vectors, by level."""
        spec = self.code_spec
        black = torch.zeros(1, spec.image_channels, spec.image_size, spec.image_size)
        return {name: values.shape[1:] for name, values in self.embed(black).items()}

    def reconstruct(self, images: ImageInput) -> Tensor:
        """Images to codes and back; shapes and ranges as in `encode` and `decode`."""
        return self.decode(self.encode(images))

    def random_codes(self, num_images: int, generator: Generators = None) -> CodeMaps:
        """Uniformly random codes: the floor any prior must beat.

        Raises:
            ValueError: the pipeline has latents instead of codes.
        """
        if self.code_spec.kind == "latents":
            raise ValueError(
                "this pipeline has latents, not codes: without a prior it samples them from N(0, I)"
            )
        generators, codes = one_per_image(generator, as_count(num_images, "num_images")), {}
        for level in self.code_spec.levels:
            assert level.vocabulary is not None
            codes[level.name] = torch.stack(
                [torch.randint(level.vocabulary, level.shape, generator=g) for g in generators]
            )
        return codes

    def standard_normal(
        self, num_images: int, generator: Generators = None, *, temperature: float = 1.0
    ) -> CodeMaps:
        """Latents from N(0, I), the prior of a VAE, multiplied by the temperature.

        Raises:
            ValueError: the pipeline has codes instead of latents.
        """
        if self.code_spec.kind == "codes":
            raise ValueError("this pipeline has codes, not latents: call random_codes")
        generators = one_per_image(generator, as_count(num_images, "num_images"))
        return {
            level.name: torch.stack([torch.randn(level.shape, generator=g) for g in generators])
            * temperature
            for level in self.code_spec.levels
        }


def _batches(
    num_images: int, batch_size: int, generator: Generators
) -> Iterator[tuple[slice, list[Generator | None]]]:
    """The images of each batch, with their generators."""
    generators = one_per_image(generator, num_images)
    for start in range(0, num_images, batch_size):
        batch = slice(start, min(start + batch_size, num_images))
        yield batch, generators[batch]


def _checked(
    output_type: str, num_images: int, other: int, name: str = "batch_size"
) -> tuple[int, int]:
    """Check the output type and the counts, which are returned."""
    if output_type not in ("pil", "pt", "np"):
        raise ValueError(f"output_type must be pil, pt or np, not {output_type!r}")
    return as_count(num_images, "num_images"), as_count(other, name)


def _output(
    parts: list[CodeMaps], images: list[Tensor], labels: list[int], output_type: OutputType
) -> PipelineOutput:
    """Join batches of codes and of images (B, C, H, W) in [-1, 1]."""
    codes = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    joined = torch.cat(images)
    converted: Images = joined
    if output_type == "np":
        converted = joined.add(1).div(2).permute(0, 2, 3, 1).numpy()
    elif output_type == "pil":
        converted = [to_pil(image) for image in to_uint8(joined)]
    return PipelineOutput(converted, codes, labels)
