"""Options of stage 1 that need no torch: those shared by several models, and the two commands.

The options of a model are in its own file.
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
    """Abstract: the options of one model, chosen by `model.type`.

    The class methods let `latent_prior.cli` choose a model by its name.
    """

    flag_prefix: ClassVar[str] = "model."

    adversarial: ClassVar[bool] = False
    """Whether the model is trained against a critic."""

    def check_image_size(self, image_size: int) -> None:
        """Check that the model can take images of this size.

        Raises:
            ValueError: naming the size and what it must be.
        """
        raise NotImplementedError

    @classmethod
    def get_choice_class(cls, name: str) -> type[ModelOptions]:
        """Import the options class of a model, by its name in `MODELS`."""
        module, model = MODELS[name]
        options_class: type[ModelOptions] = getattr(
            importlib.import_module(module), f"{model}Options"
        )
        return options_class

    @classmethod
    def get_known_choices(cls) -> dict[str, Any]:
        """The models by name; only `get_choice_class` imports them."""
        return dict(MODELS)

    @classmethod
    def get_choice_name(cls, subcls: type) -> str:
        """The name of a model, from the class of its options."""
        for name, (_, model) in MODELS.items():
            if subcls.__name__ == f"{model}Options":
                return name
        raise ValueError(f"{subcls.__name__} are the options of no model in {', '.join(MODELS)}")

    @classmethod
    def default_choice_name(cls) -> str:
        """The model that is trained by default."""
        return DEFAULT_MODEL


@dataclass(kw_only=True)
class BackboneOptions(ResolutionOptions):
    """Shape of the convolutional encoder and decoder."""

    attention: list[int] = field(default_factory=list)
    """Resolutions, in pixels, at which each residual block is followed by self-attention."""
    upsampling: Literal["nearest", "transposed"] = "nearest"
    """Upsampling in the decoder: nearest neighbour and convolution, or transposed convolution."""

    def check_image_size(self, image_size: int) -> None:
        """Check that the resolutions, and those with attention, fit the image size.

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
class QuantizerOptions(Options):
    """How vectors become codes, and how the codebook learns; see `quantizers.check_quantizer`."""

    flag_prefix: ClassVar[str] = "model."

    quantizer: str = "ema"
    """Codebook (EMA or gradient), FSQ, lookup-free (LFQ), binary spherical (BSQ), or residual."""
    codebook_size: int = option(512, at_least=2)
    """Number of codes; with `residual`, of each stage."""
    code_dim: int = option(16, at_least=1)
    """Length of a code vector; `fsq`, `lfq` and `bsq` derive it from codebook_size."""
    distance: Literal["euclidean", "cosine"] = "euclidean"
    """Distance to the codes; cosine scales both sides to length 1 and suits a code_dim of 8."""
    estimator: Literal["straight_through", "rotation"] = "straight_through"
    """Gradient estimator: straight-through, or the rotation trick (Fifty et al., 2024)."""
    initialisation: Literal["kmeans", "data"] = "kmeans"
    """Initial codebook: k-means over the first batch, or random vectors of it."""
    commitment: float | None = option(None, at_least=0)
    """Weight beta of the loss that pulls encoder outputs to their codes. Default: per quantizer."""
    codebook_decay: float = option(0.99, at_least=0, below=1)
    """Decay per step of the codebook's moving averages (with `gradient`: of the usage counts)."""
    restart_below: float = option(0.1, at_least=0, below=1)
    """Codes used less than this share of the mean restart at a badly coded vector; 0: none."""
    entropy_weight: float | None = option(None, at_least=0)
    """Weight of the entropy loss (confident assignments, uniform usage). Default: per quantizer."""
    entropy_temperature: float | None = option(None, above=0)
    """Temperature of the soft assignments in the entropy loss. Default: per quantizer."""
    fsq_levels: list[int] = field(default_factory=list)
    """Values along each dimension of `fsq`; their product is codebook_size. Empty chooses them."""
    residual_stages: int = option(4, at_least=1, at_most=1000)
    """Number of codebooks of `residual`, each for the residual of those before."""


@dataclass(kw_only=True)
class CriticOptions(Options):
    """The critic of VAE-GAN and VQGAN: training state, never part of the saved model."""

    flag_prefix: ClassVar[str] = "critic."

    network: Literal["patch", "residual"] = "patch"
    """PatchGAN, with one logit per overlapping patch, or a residual network, with one per image."""
    width: int = option(32, at_least=1)
    """Channels of the critic's first layer; every halving doubles them, up to eight times."""
    layers: int = option(3, at_least=1)
    """How often the image is halved."""
    spectral_norm: bool = False
    """Divide every layer's weight by its largest singular value (Miyato et al., 2018)."""
    loss: Literal["hinge", "non_saturating", "relativistic"] = "hinge"
    """Adversarial loss of critic and decoder."""
    weight: float = option(0.8, at_least=0)
    """Weight of the adversarial loss; with `adaptive`, after balancing."""
    adaptive: bool = False
    """Balance adversarial and reconstruction gradients at the last layer (Esser et al., 2021)."""
    start_step: int = option(0, at_least=0)
    """Step at which the critic starts to train and the adversarial loss starts to count."""
    r1: float = option(0.0, at_least=0)
    """Weight gamma of the R1 gradient penalty (Mescheder et al., 2018); 0 disables it."""
    r1_every: int = option(16, at_least=1)
    """Steps between R1 penalties, each multiplied by this number."""
    lecam: float = option(0.0, at_least=0)
    """Weight of the LeCAM regularisation of the logits (Tseng et al., 2021); 0 disables it."""
    feature_matching: float = option(0.0, at_least=0)
    """Weight of the reconstruction error in the critic's features (Larsen et al., 2016)."""
    perceptual: Literal["none", "lpips", "efficientnet_lite0"] = "none"
    """Pretrained network of the perceptual distance; its weights must be on this machine."""
    perceptual_weight: float = option(1.0, at_least=0)
    """Weight of the perceptual distance."""
    augment: list[Literal["color", "translation", "cutout"]] = field(default_factory=list)
    """Differentiable augmentations of the critic's inputs, for small data (Zhao et al., 2020)."""
    learning_rate: float | None = option(None, above=0, may_change=True)
    """Peak learning rate of the critic. Default: the autoencoder's, whose schedule it follows."""
    beta1: float = option(0.5, at_least=0, below=1)
    """First-moment decay of the critic's AdamW."""


def _default_model() -> ModelOptions:
    return ModelOptions.get_choice_class(DEFAULT_MODEL)()


@dataclass(kw_only=True)
class TrainOptions(TrainingImageOptions):
    """Train an autoencoder on images; repeating the command resumes the run."""

    model: ModelOptions = field(default_factory=_default_model)
    """The model, by its `type`, and its options."""
    critic: CriticOptions = field(default_factory=CriticOptions)
    """The critic of VAE-GAN and VQGAN."""
    validation_split: str | None = None
    """Split that every evaluation measures, as a rule `validation`, which is held out of `train` if
    there is none. Default: none, training images only."""
    validation_images: int = 512
    """Number of validation images."""

    def __post_init__(self) -> None:
        """Also check the image size, and that only adversarial models have critic options."""
        super().__post_init__()
        if self.image_size is not None:
            self.model.check_image_size(self.image_size)
        if not self.model.adversarial and self.critic != CriticOptions():
            name = ModelOptions.get_choice_name(type(self.model))
            raise ValueError(f"--critic.*: --model.type {name} is trained without a critic")


@dataclass(kw_only=True)
class EncodeOptions(ComputeOptions, ImageOptions):
    """Write the codes of a dataset's images as a dataset; repeating the command resumes it."""

    autoencoder: str = option(may_change=True, path=True)
    """Folder or hub id of a trained autoencoder."""
    output_dir: str = option(may_change=True, path=True)
    """Folder of the codes dataset."""
    split: str | None = option(None, may_change=True)
    """Split to encode, or to add to the folder. Default: all but test, which only the final scores
    read."""
    crops: int = option(0, at_least=0)
    """Random crops per training image, besides the central one; see `resize` and `crop_padding`."""
    flip: bool = False
    """Add the mirrored view to every crop of a training image."""
    posterior: Literal["mean", "sample"] = "mean"
    """Latents of a VAE: the mean of the posterior, or one sample per view."""
    cache_mb: int = option(0, may_change=True)
    """Megabytes of images to decode in advance; each is read only once."""
    augmented_split: str = "train"
    """Split with crops and mirrored views; the others have central crops only."""
    batch_size: int = option(256, at_least=1, may_change=True)
    """Images per forward pass and process."""
    shard_images: int = option(1024, at_least=1, may_change=True)
    """Images per shard: what a stopped run repeats at most, and what a process holds in memory."""
    seed: int = option(0, at_least=0)
    """Seed of crops and samples."""

    def __post_init__(self) -> None:
        """Also check that crops have room to move."""
        super().__post_init__()
        if self.crops and not self.crop_padding and self.resize is None:
            raise ValueError("--crops needs room around the image: set --crop_padding or --resize")
