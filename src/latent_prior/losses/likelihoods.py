"""Likelihoods p(image | prediction of a decoder), in nats.

Images are float32 (B, C, H, W) in [-1, 1] and stand for 8-bit values, 2/255 apart. `gaussian` and
`laplace` are densities, comparable with probabilities only when multiplied by that bin width;
`bernoulli` and `logistic` are probabilities already. `bits_per_dim` takes care of it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from latent_prior.losses.bounded import bounded

LikelihoodKind = Literal["gaussian", "laplace", "bernoulli", "logistic"]
Number = TypeVar("Number", float, Tensor)

BIN_WIDTH = 2 / 255
"""Distance between neighbouring 8-bit values in [-1, 1]."""

# About the error of a new model. Above the best scale the gradient of the log is bounded; below it
# the gradient grows, and Adam remembers large gradients for long. So start large.
_INITIAL_SCALE = 0.5
# Adam moves a parameter by about the learning rate per step, too slowly for the log-scale to follow
# the falling error. In this unit it follows within hundreds of steps.
_LOG_SCALE_UNIT = 10.0


class Likelihood(nn.Module, ABC):
    """Abstract: a distribution over images whose values are independent given the prediction.

    Everything is computed in float32.
    """

    is_density: ClassVar[bool]

    def nll(self, images: Tensor, prediction: Tensor) -> Tensor:
        """Negative log-likelihood in nats per image, (B,).

        Images are (B, C, H, W) in [-1, 1]; the prediction, the decoder's output, is unbounded.
        """
        return self._nll(images.float(), prediction.float()).flatten(1).sum(1)

    @abstractmethod
    def _nll(self, images: Tensor, prediction: Tensor) -> Tensor:
        """Nats per value, from float32 images and prediction; all (B, C, H, W)."""

    @abstractmethod
    def mean(self, prediction: Tensor) -> Tensor:
        """Mean images of a prediction, float32 (B, C, H, W) in [-1, 1]."""

    @abstractmethod
    def sample(self, prediction: Tensor, generator: Generator | None = None) -> Tensor:
        """Sample images for a prediction, float32 (B, C, H, W)."""

    def bits_per_dim(self, nats: Number, dims: int) -> Number:
        """NLL or negative ELBO of 8-bit images, in nats, to bits per value; `dims` is C * H * W.

        A density becomes a probability by multiplying by the bin width, 2/255, over which it is
        taken to be constant.
        """
        bits = nats / (dims * math.log(2))
        return bits - math.log2(BIN_WIDTH) if self.is_density else bits


class ScaledLikelihood(Likelihood):
    """Abstract: the prediction is a location; every channel has one scale, fixed or learned.

    The mean is the location, kept in [-1, 1] by `bounded`.

    A learned scale balances reconstruction and KL (sigma-VAE, Rybkin et al., 2021,
    https://arxiv.org/abs/2006.13202). It is `floor` plus the exponential of a parameter, so it
    stays positive even for a channel that is reconstructed exactly. A given scale is in units of
    [-1, 1]; None learns it.

    Raises:
        ValueError: for a scale that is not positive.
    """

    # Half a bin: a sharper density would exploit the rounding of images, and bits per dimension
    # could become negative.
    floor: ClassVar[float] = BIN_WIDTH / 2

    def __init__(self, channels: int, scale: float | None) -> None:
        super().__init__()
        if scale is not None and scale <= 0:
            raise ValueError(
                f"the scale of the likelihood must be positive, not {scale}; leave it out to learn it"
            )
        self.learned = scale is None
        if scale is None:
            start = math.log(_INITIAL_SCALE - self.floor) / _LOG_SCALE_UNIT
            self.log_excess = nn.Parameter(torch.full((channels,), start))
        else:
            self.register_buffer("fixed_scale", torch.full((channels,), scale))

    def scale(self) -> Tensor:
        """Scale per channel in units of [-1, 1], float32 (C, 1, 1)."""
        if self.learned:
            scale = self.floor + (_LOG_SCALE_UNIT * self.log_excess.float()).exp()
        else:
            scale = self.get_buffer("fixed_scale").float()
        return scale[:, None, None]

    def mean(self, prediction: Tensor) -> Tensor:
        """The location, float32."""
        return bounded(prediction.float())


class GaussianLikelihood(ScaledLikelihood):
    """Normal distribution; the scale is its standard deviation."""

    is_density = True

    def _nll(self, images: Tensor, prediction: Tensor) -> Tensor:
        scale = self.scale()
        error = (images - self.mean(prediction)) / scale
        return error.square() / 2 + (scale.log() + math.log(2 * math.pi) / 2)

    def sample(self, prediction: Tensor, generator: Generator | None = None) -> Tensor:
        """Location plus normal noise."""
        noise = _empty(prediction, generator).normal_(generator=generator)
        return self.mean(prediction) + self.scale() * noise.to(prediction.device)


class LaplaceLikelihood(ScaledLikelihood):
    """Laplace distribution; the scale is its mean absolute deviation."""

    is_density = True

    def _nll(self, images: Tensor, prediction: Tensor) -> Tensor:
        scale = self.scale()
        return (images - self.mean(prediction)).abs() / scale + (2 * scale).log()

    def sample(self, prediction: Tensor, generator: Generator | None = None) -> Tensor:
        """Location plus Laplace noise, the difference of two exponential variables."""
        first, second = (_exponential(prediction, generator) for _ in range(2))
        return self.mean(prediction) + self.scale() * (first - second)


class LogisticLikelihood(ScaledLikelihood):
    """Logistic distribution discretised to 256 values, the outermost of which take the tails.

    Kingma et al., 2016 (https://arxiv.org/abs/1606.04934) and Salimans et al., 2017
    (https://arxiv.org/abs/1701.05517, Eq. 2), with one component and one scale per channel. Its
    standard deviation is 1.81 times the scale. Images are rounded to the nearest 8-bit value. The
    location may lie out of range, where the outermost values come closer to certainty.
    """

    is_density = False
    floor = math.exp(-7)  # only for float32 precision: a probability gains nothing by a tiny scale

    def _nll(self, images: Tensor, prediction: Tensor) -> Tensor:
        # sigmoid(upper) - sigmoid(lower) = sigmoid(upper) sigmoid(-lower) (1 - exp(lower - upper)).
        # The logs of the three factors are exact even where the difference would underflow to 0.
        scale = self.scale()
        centred = _round_to_8_bits(images) - prediction
        above_bottom, below_top = images > BIN_WIDTH / 2 - 1, images < 1 - BIN_WIDTH / 2
        upper = F.softplus(-(centred + BIN_WIDTH / 2) / scale)
        lower = F.softplus((centred - BIN_WIDTH / 2) / scale)
        width = -(-torch.expm1(-BIN_WIDTH / scale)).log()
        return upper * below_top + lower * above_bottom + width * (below_top & above_bottom)

    def sample(self, prediction: Tensor, generator: Generator | None = None) -> Tensor:
        """Prediction plus logistic noise (log-ratio of two exponentials), rounded to 8 bits."""
        first, second = (_exponential(prediction, generator) for _ in range(2))
        noisy = prediction.float() + self.scale() * (first / second).log()
        return _round_to_8_bits(noisy.clamp(-1, 1))


class BernoulliLikelihood(Likelihood):
    """Black or white; the prediction is the logit of white.

    A likelihood of binary images only. For grey values, which enter as (image + 1) / 2 in [0, 1],
    it is the usual cross-entropy, but not a probability; do not compare its bits per dimension.
    """

    is_density = False

    def _nll(self, images: Tensor, prediction: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(prediction, (images + 1) / 2, reduction="none")

    def mean(self, prediction: Tensor) -> Tensor:
        """Probability of white, in [-1, 1]: 2 sigmoid(logit) - 1."""
        return torch.tanh(prediction.float() / 2)

    def sample(self, prediction: Tensor, generator: Generator | None = None) -> Tensor:
        """Images of -1 and 1."""
        uniform = _empty(prediction, generator).uniform_(generator=generator)
        white = uniform.to(prediction.device) < prediction.float().sigmoid()
        return white.float() * 2 - 1


def make_likelihood(kind: LikelihoodKind, *, channels: int, scale: float | None) -> Likelihood:
    """Build a likelihood by name.

    The scale, in units of [-1, 1], is the same for all channels; None learns one per channel.

    Raises:
        ValueError: a scale that is not positive, or any scale for `bernoulli`.
    """
    if kind == "bernoulli":
        if scale is not None:
            raise ValueError(f"the bernoulli likelihood has no scale: leave out {scale}")
        return BernoulliLikelihood()
    if kind == "gaussian":
        return GaussianLikelihood(channels, scale)
    if kind == "laplace":
        return LaplaceLikelihood(channels, scale)
    return LogisticLikelihood(channels, scale)


def _round_to_8_bits(images: Tensor) -> Tensor:
    """Round values in [-1, 1] to the nearest -1 + 2 k / 255."""
    return ((images + 1) * 127.5).round() / 127.5 - 1


def _exponential(like: Tensor, generator: Generator | None) -> Tensor:
    """Samples from Exp(1) in the shape of `like`, float32."""
    return _empty(like, generator).exponential_(generator=generator).to(like.device)


def _empty(like: Tensor, generator: Generator | None) -> Tensor:
    """A tensor for random numbers in the shape of `like`, float32 on the generator's device."""
    return torch.empty(like.shape, device=generator.device if generator else like.device)
