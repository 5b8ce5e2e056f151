"""The hardware and the networks of a computation of scaling."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from latent_prior.cli import parse_config
from latent_prior.options import Options, option
from latent_prior.stage1_autoencoders.options import TrainOptions as AutoencoderOptions
from latent_prior.stage2_prior.options import TrainOptions as PriorOptions

IMAGENET_AUTOENCODER = (
    "--image_size 256 --channels 3 --batch_size 256 --max_steps 200000 --model.width 128 "
    "--model.multipliers 1 1 2 2 4 --model.blocks 2 --model.attention 16 "
    "--model.codebook_size 16384 --model.code_dim 8"
)
IMAGENET_PRIOR = (
    "--batch_size 1024 --max_steps 375000 --model.width 1024 --model.depth 24 --model.heads 16"
)


@dataclass(kw_only=True)
class ScalingOptions(Options):
    """Compute bytes, memory and hours of both stages for given hardware."""

    images: int = option(1_281_167, at_least=1)
    """Training images; by default those of ImageNet-1k."""
    autoencoder: str = IMAGENET_AUTOENCODER
    """Flags of stage1_autoencoders/train.py, as one word."""
    prior: str = IMAGENET_PRIOR
    """Flags of stage2_prior/train.py, as one word; the codes are the autoencoder's."""
    classes: int = option(1000, at_least=0)
    """Classes of the images; 0 for none."""
    generated: int = option(50_000, at_least=1)
    """Images to generate."""
    stored_bytes: float = option(110e3, above=0)
    """Bytes of a stored image."""
    stored_pixels: float = option(400 * 350, above=0)
    """Pixels of a stored image, all of which are decoded."""
    shard_bytes: float = option(512e6, above=0)
    """Bytes of a shard of stored images."""
    shard_images: int = option(1024, at_least=1)
    """Images of a shard of codes; `--shard_images` of encode.py."""

    flops: float = option(989e12, above=0)
    """Largest number of operations per second of a device in the precision of the training."""
    attained_autoencoder: float = option(0.4, above=0, at_most=1)
    """Share of `flops` that convolutions attain; other operations are bound by the memory."""
    attained_prior: float = option(0.6, above=0, at_most=1)
    """Share of `flops` that the products of a Transformer attain."""
    memory: float = option(80e9, above=0)
    """Bytes of memory of a device."""
    memory_bandwidth: float = option(3.35e12, above=0)
    """Bytes per second between a device and its memory."""
    network: float = option(50e9, above=0)
    """Bytes per second that a device sends to others, and receives at the same time."""
    storage: float = option(5e9, above=0)
    """Bytes per second that a node reads from the disk or object store with the images."""
    decoded_pixels: float = option(35e6, above=0)
    """Pixels per second that a core decodes."""
    resized_pixels: float = option(80e6, above=0)
    """Pixels per second, of the result, that a core resizes."""
    cores: int = option(96, at_least=1)
    """Cores of a node that decode."""
    devices: int = option(8, at_least=1)
    """Devices, and processes, of a node."""
    nodes: int = option(1, at_least=1)
    """Nodes."""
    sharding: Literal["ddp", "fsdp"] = "ddp"
    """Whole copies of the prior (DDP) or shards (FSDP 2); the autoencoder is always copied."""
    overlap: bool = True
    """Whether reading, computing and sending happen at the same time, as on accelerators."""

    check: bool = False
    """Measure on this machine, in one process and in two, what this arithmetic says of it."""
    output: str | None = None
    """JSON file for the check's results; null only prints them."""

    @cached_property
    def autoencoder_options(self) -> AutoencoderOptions:
        """The autoencoder's options."""
        words = shlex.split(self.autoencoder)
        options: AutoencoderOptions = parse_config(
            AutoencoderOptions, [*words, "--dataset", "none", "--output_dir", "none"]
        )
        if options.image_size is None or options.channels is None:
            raise ValueError("--autoencoder needs --image_size and --channels")
        return options

    @cached_property
    def prior_options(self) -> PriorOptions:
        """The prior's options."""
        words = shlex.split(self.prior)
        options: PriorOptions = parse_config(
            PriorOptions, [*words, "--codes", "none", "--output_dir", "none"]
        )
        return options

    def __post_init__(self) -> None:
        """Check that the devices can share the batches.

        Raises:
            ValueError: they cannot.
        """
        super().__post_init__()
        for stage in ("autoencoder", "prior"):
            batch = getattr(self, f"{stage}_options").batch_size
            if batch % self.processes:
                raise ValueError(
                    f"--{stage}: {self.processes} devices cannot share batches of {batch} images "
                    "evenly; change --batch_size there, --devices or --nodes"
                )

    @property
    def processes(self) -> int:
        """Processes of a training, one for each device."""
        return self.devices * self.nodes
