"""p(image | prediction of the decoder): the reconstruction half of an ELBO, in nats.

Images are float32 (B, C, H, W) in [-1, 1] and stand for 8-bit values, so that neighbouring levels lie 2/255 apart.
`gaussian` and `laplace` are densities and become comparable with probabilities only when they are multiplied by that
distance; `bernoulli` and `logistic` are probabilities already. `bits_per_dim` knows which is which.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

LikelihoodKind = Literal["gaussian", "laplace", "bernoulli", "logistic"]
Number = TypeVar("Number", float, Tensor)

LEVEL = 2 / 255
"""Distance of neighbouring 8-bit values in [-1, 1]."""

# About the error of a new model. Too small would be worse than too large: the gradient of a logarithm is bounded above
# the best scale, but grows below it, and Adam long remembers large gradients.
_FIRST_SCALE = 0.5
# Adam moves a parameter by about the learning rate per step, too little for a logarithm to follow the error down. In
# this unit it does so within hundreds of steps, and its gradient is a mean over all pixels, so it hardly trembles.
_PACE = 10.0


class Likelihood(nn.Module, ABC):
    """Abstract: a distribution over images, independent for every value given the prediction.

    Everything is computed in float32, whatever the type of the prediction.
    """

    is_density: ClassVar[bool]

    def nll(self, images: Tensor, prediction: Tensor) -> Tensor:
        """Negative log-likelihood of images (B, C, H, W) in [-1, 1] in nats per image, (B,).

        Args:
            images: originals (B, C, H, W) in [-1, 1].
            prediction: the decoder's output (B, C, H, W), not bounded.
        """
        return self._nll(images.float(), prediction.float()).flatten(1).sum(1)

    @abstractmethod
    def _nll(self, images: Tensor, prediction: Tensor) -> Tensor:
        """Nats of every value: float32 (B, C, H, W) twice to the same."""

    @abstractmethod
    def mean(self, prediction: Tensor) -> Tensor:
        """The images to show for a prediction (B, C, H, W): float32, a little outside [-1, 1] at times."""

    @abstractmethod
    def sample(self, prediction: Tensor, generator: Generator | None = None) -> Tensor:
        """Images drawn for a prediction (B, C, H, W): float32, with a noise of their own in every value."""

    def bits_per_dim(self, nats: Number, dims: int) -> Number:
        """Bits per value of an 8-bit image, from the nats per image of an NLL or a negative ELBO (any shape).

        A density is turned into the probability of a level by the width of its bin, 2/255, over which it is taken
        to be constant; probabilities are divided by ln 2 only.

        Args:
            nats: per image.
            dims: values per image, C * H * W.
        """
        bits = nats / (dims * math.log(2))
        return bits - math.log2(LEVEL) if self.is_density else bits


class ScaledLikelihood(Likelihood):
    """Abstract: the prediction is a location, and every channel has one scale, fixed or learned.

    A learned scale is that of the sigma-VAE (Rybkin et al., 2021, https://arxiv.org/abs/2006.13202), which balances
    reconstruction and KL by itself. It is `floor` plus the exponential of a parameter, so that it cannot run to zero
    where a channel is reproduced exactly.

    Args:
        channels: of the images.
        scale: in units of [-1, 1]; None learns it.

    Raises:
        ValueError: for a scale that is not positive.
    """

    # Half a level: sharper than that, a density would reward knowing that images are rounded, and bits per dimension
    # could fall below zero.
    floor: ClassVar[float] = LEVEL / 2

    def __init__(self, channels: int, scale: float | None) -> None:
        super().__init__()
        if scale is not None and scale <= 0:
            raise ValueError(
                f"the scale of the likelihood must be positive, not {scale}; leave it out to learn it"
            )
        self.learned = scale is None
        if scale is None:
            start = math.log(_FIRST_SCALE - self.floor) / _PACE
            self.log_excess = nn.Parameter(torch.full((channels,), start))
        else:
            self.register_buffer("fixed_scale", torch.full((channels,), scale))

    def scale(self) -> Tensor:
        """The scale of every channel in units of [-1, 1], float32 (C, 1, 1)."""
        if self.learned:
            scale = self.floor + (_PACE * self.log_excess.float()).exp()
        else:
            scale = self.get_buffer("fixed_scale").float()
        return scale[:, None, None]

    def mean(self, prediction: Tensor) -> Tensor:
        """The prediction itself, float32."""
        return prediction.float()


class GaussianLikelihood(ScaledLikelihood):
    """Normal distribution; the scale is its standard deviation."""

    is_density = True

    def _nll(self, images: Tensor, prediction: Tensor) -> Tensor:
        scale = self.scale()
        error = (images - prediction) / scale
        return error.square() / 2 + (scale.log() + math.log(2 * math.pi) / 2)

    def sample(self, prediction: Tensor, generator: Generator | None = None) -> Tensor:
        """Prediction plus normal noise."""
        device = generator.device if generator else prediction.device
        noise = torch.randn(prediction.shape, generator=generator, device=device)
        return prediction.float() + self.scale() * noise.to(prediction.device)


class LaplaceLikelihood(ScaledLikelihood):
    """Laplace distribution; the scale is its mean absolute deviation."""

    is_density = True

    def _nll(self, images: Tensor, prediction: Tensor) -> Tensor:
        scale = self.scale()
        return (images - prediction).abs() / scale + (2 * scale).log()

    def sample(self, prediction: Tensor, generator: Generator | None = None) -> Tensor:
        """Prediction plus Laplace noise, which is the difference of two exponential ones."""
        first, second = (_exponential(prediction, generator) for _ in range(2))
        return prediction.float() + self.scale() * (first - second)


class LogisticLikelihood(ScaledLikelihood):
    """Logistic distribution rounded to the 256 levels, the outermost of which take the tails.

    Kingma et al., 2016 (https://arxiv.org/abs/1606.04934) and Salimans et al., 2017
    (https://arxiv.org/abs/1701.05517, Eq. 2), with one component and one scale per channel. Its standard deviation is
    1.81 times the scale. Images between two levels count as the nearer one.
    """

    is_density = False
    floor = math.exp(-7)  # a probability needs no floor to be fair; this one keeps float32 exact

    def _nll(self, images: Tensor, prediction: Tensor) -> Tensor:
        # sigmoid(upper) - sigmoid(lower) = sigmoid(upper) sigmoid(-lower) (1 - exp(lower - upper)): three factors whose
        # logarithms are exact however far out the level lies, where the difference itself would be 0.
        scale = self.scale()
        centred = _nearest_level(images) - prediction
        above_bottom, below_top = images > LEVEL / 2 - 1, images < 1 - LEVEL / 2
        upper = F.softplus(-(centred + LEVEL / 2) / scale)
        lower = F.softplus((centred - LEVEL / 2) / scale)
        width = -(-torch.expm1(-LEVEL / scale)).log()
        return upper * below_top + lower * above_bottom + width * (below_top & above_bottom)

    def sample(self, prediction: Tensor, generator: Generator | None = None) -> Tensor:
        """Prediction plus logistic noise, the log-ratio of two exponential ones, rounded to the levels in [-1, 1]."""
        first, second = (_exponential(prediction, generator) for _ in range(2))
        noisy = prediction.float() + self.scale() * (first / second).log()
        return _nearest_level(noisy.clamp(-1, 1))


class BernoulliLikelihood(Likelihood):
    """Black or white; the prediction is the logit of white.

    A likelihood for binary images only. Grey values enter as (image + 1) / 2 in [0, 1], which makes it the cross-entropy
    of those shares: a common loss, but not the probability of an image, and its bits per dimension are comparable
    with nothing.
    """

    is_density = False

    def _nll(self, images: Tensor, prediction: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(prediction, (images + 1) / 2, reduction="none")

    def mean(self, prediction: Tensor) -> Tensor:
        """Probability of white, in [-1, 1]: 2 sigmoid(logit) - 1."""
        return torch.tanh(prediction.float() / 2)

    def sample(self, prediction: Tensor, generator: Generator | None = None) -> Tensor:
        """Images of -1 and 1."""
        device = generator.device if generator else prediction.device
        uniform = torch.rand(prediction.shape, generator=generator, device=device)
        white = uniform.to(prediction.device) < prediction.float().sigmoid()
        return white.float() * 2 - 1


def make_likelihood(kind: LikelihoodKind, *, channels: int, scale: float | None) -> Likelihood:
    """The likelihood of a name.

    Args:
        kind: `gaussian`, `laplace`, `bernoulli` (for binary images) or `logistic` (discretised).
        channels: of the images.
        scale: in units of [-1, 1], the same for all channels; None learns one per channel.

    Raises:
        ValueError: for a scale that is not positive, or one for `bernoulli`, which has none.
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


def _nearest_level(images: Tensor) -> Tensor:
    """Values in [-1, 1] to the nearest of -1 + 2 k / 255."""
    return ((images + 1) * 127.5).round() / 127.5 - 1


def _exponential(like: Tensor, generator: Generator | None) -> Tensor:
    """Noise from Exp(1) in the shape of `like`, float32; drawn where the generator is."""
    device = generator.device if generator else like.device
    noise = torch.empty(like.shape, device=device).exponential_(generator=generator)
    return noise.to(like.device)
