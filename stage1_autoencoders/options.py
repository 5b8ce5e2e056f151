"""What a user can set for stage one, as plain dataclasses that need no torch.

The options of a family member stand in its own file; here is what several members share, and the two commands.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from latent_prior.options import (
    ComputeOptions,
    ImageOptions,
    Options,
    ResolutionOptions,
    TrainingImageOptions,
    option,
)
from latent_prior.stage1_autoencoders import MODELS

DEFAULT_MODEL = "vqvae"


@dataclass(kw_only=True)
class ModelOptions(Options):
    """Abstract: the options of one family member, chosen by `model.type`.

    The class methods are what `latent_prior.cli` needs to choose a member by its name.
    """

    flag_prefix: ClassVar[str] = "model."

    adversarial: ClassVar[bool] = False
    """Whether the member is trained against a critic."""

    def check_image_size(self, image_size: int) -> None:
        """Stop before an image size that the model cannot take.

        Raises:
            ValueError: naming the size and what it must be.
        """
        raise NotImplementedError

    @classmethod
    def get_choice_class(cls, name: str) -> type[ModelOptions]:
        """The options of a member, from its file; a name that is in `MODELS`."""
        module, model = MODELS[name]
        found: type[ModelOptions] = getattr(importlib.import_module(module), f"{model}Options")
        return found

    @classmethod
    def get_known_choices(cls) -> dict[str, Any]:
        """Names of the members; what stands behind them is imported by `get_choice_class` only."""
        return dict(MODELS)

    @classmethod
    def get_choice_name(cls, subcls: type) -> str:
        """The name of a member, from the class of its options."""
        for name, (_, model) in MODELS.items():
            if subcls.__name__ == f"{model}Options":
                return name
        raise ValueError(f"{subcls.__name__} are the options of no model in {', '.join(MODELS)}")

    @classmethod
    def default_choice_name(cls) -> str:
        """What is trained where nothing is said."""
        return DEFAULT_MODEL


@dataclass(kw_only=True)
class BackboneOptions(ResolutionOptions):
    """Shape of the convolutional encoder and decoder."""

    attention: list[int] = field(default_factory=list)
    """Resolutions, in pixels, at which each residual block is followed by self-attention."""
    upsampling: Literal["nearest", "transposed"] = "nearest"
    """How the decoder doubles the size: repeated pixels and a 3x3 convolution, or a transposed 4x4 convolution."""

    def check_image_size(self, image_size: int) -> None:
        """Stop before an image size that the resolutions do not fit.

        Raises:
            ValueError: naming the size and what it must be.
        """
        super().check_image_size(image_size)
        resolutions = [image_size >> level for level in range(len(self.multipliers))]
        if unknown := sorted(set(self.attention) - set(resolutions)):
            raise ValueError(
                f"--model.attention {unknown[0]} is none of the resolutions {resolutions} of --image_size {image_size}"
            )


@dataclass(kw_only=True)
class CriticOptions(Options):
    """The discriminator of VAE-GAN and VQ-VAE-GAN: training state, never part of the saved model."""

    flag_prefix: ClassVar[str] = "critic."

    network: Literal["patch", "residual"] = "patch"
    """PatchGAN, which judges overlapping patches, or a residual network, which judges the whole image."""
    width: int = option(32, at_least=1)
    """Channels of the critic's first layer, doubled at each halving of the image up to eight times."""
    layers: int = option(3, at_least=1)
    """Halvings of the image."""
    spectral_norm: bool = False
    """Divide every layer's weight by its largest singular value (Miyato et al., 2018)."""
    loss: Literal["hinge", "non_saturating", "relativistic"] = "hinge"
    """Adversarial loss of both sides."""
    weight: float = option(0.8, at_least=0)
    """Weight of the adversarial loss in the autoencoder's; with `adaptive`, of the balanced one."""
    adaptive: bool = False
    """Balance the adversarial gradient with the reconstruction's at the decoder's last layer (Esser et al., 2021)."""
    start_step: int = option(0, at_least=0)
    """Step at which the critic's training begins and its loss joins the autoencoder's."""
    r1: float = option(0.0, at_least=0)
    """Weight gamma of the R1 penalty on the critic's gradient at real images (Mescheder et al., 2018); 0 is none."""
    r1_every: int = option(16, at_least=1)
    """Steps between R1 penalties, each multiplied by this number."""
    lecam: float = option(0.0, at_least=0)
    """Weight of LeCAM's pull on the critic's answers (Tseng et al., 2021); 0 is none."""
    feature_matching: float = option(0.0, at_least=0)
    """Weight of the distance between original and reconstruction in the critic's features (Larsen et al., 2016)."""
    perceptual: Literal["none", "lpips", "efficientnet_lite0"] = "none"
    """Pretrained network for a perceptual distance; its weights must be on this machine."""
    perceptual_weight: float = option(1.0, at_least=0)
    """Weight of the perceptual distance."""
    augment: list[Literal["color", "translation", "cutout"]] = field(default_factory=list)
    """Differentiable augmentations of everything the critic sees (Zhao et al., 2020), for small data."""
    learning_rate: float | None = option(None, above=0)
    """Peak learning rate of the critic's AdamW, on the autoencoder's schedule; null takes the autoencoder's."""
    beta1: float = option(0.5, at_least=0, below=1)
    """First-moment decay of the critic's AdamW."""


def _default_model() -> ModelOptions:
    return ModelOptions.get_choice_class(DEFAULT_MODEL)()


@dataclass(kw_only=True)
class TrainOptions(TrainingImageOptions):
    """Train an autoencoder on images; repeating the command resumes the run."""

    model: ModelOptions = field(default_factory=_default_model)
    """The family member, by its `type`, and what it is made of."""
    critic: CriticOptions = field(default_factory=CriticOptions)
    """The discriminator of the members that have one."""
    validation_split: str | None = None
    """Split whose error is logged at every evaluation; null looks at training images only."""
    validation_images: int = 512
    """How many of its images are looked at."""

    def __post_init__(self) -> None:
        """Check the numbers, and that image and model fit."""
        super().__post_init__()
        if self.image_size is not None:
            self.model.check_image_size(self.image_size)
        if not self.model.adversarial and self.critic != CriticOptions():
            name = ModelOptions.get_choice_name(type(self.model))
            raise ValueError(f"--critic.*: --model.type {name} is trained without a critic")


@dataclass(kw_only=True)
class EncodeOptions(ComputeOptions, ImageOptions):
    """Write the codes of a dataset's images as a Hugging Face dataset; repeating the command goes on where it stopped."""

    autoencoder: str = option(may_change=True)
    """Folder or hub id of a trained autoencoder."""
    output_dir: str = option(may_change=True)
    """Folder of the codes dataset."""
    split: str | None = None
    """Split to encode; null encodes all of them."""
    crops: int = option(0, at_least=0)
    """Randomly moved windows per training image, besides the plain one; see `resize` and `crop_padding`."""
    flip: bool = False
    """Add the mirrored image to every window of a training image."""
    posterior: Literal["mean", "sample"] = "mean"
    """Of a VAE's posterior: its mean, or one draw per view; discrete members have none."""
    augmented_split: str = "train"
    """The split that gets windows and mirrored images; the others stay plain."""
    batch_size: int = option(256, at_least=1, may_change=True)
    """Images per forward pass and process."""
    shard_images: int = option(1024, at_least=1, may_change=True)
    """Images per unit of work: what a stopped run does again at most, and what one process holds in memory."""
    seed: int = option(0, at_least=0)
    """Seed of the windows."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        if self.crops and not self.crop_padding and self.resize is None:
            raise ValueError(
                "--crops needs room to move the window: set --crop_padding or --resize"
            )
