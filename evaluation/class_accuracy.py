"""Class accuracy: the share of images that a classifier, trained on originals, takes for the class asked for.

The classifier is made anew for every run, from the reference's own training split and at its size; the generators
never see it. What it reaches on the reference itself is the most that a perfect generator could be credited with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from latent_prior.data.images import ImageSet, open_images, square_size, to_float
from latent_prior.evaluation.classes import asked_classes
from latent_prior.evaluation.features.extract import gather_in_order
from latent_prior.evaluation.measures import fid
from latent_prior.evaluation.options import ScoreOptions
from latent_prior.evaluation.sets import ScoredSet
from latent_prior.options import RunOptions
from latent_prior.processes import share
from latent_prior.seeds import derive_seed, generator
from latent_prior.training.optim import learning_rate_at, make_optimizer

IMAGES_SEEN = 80_000  # in training, at least; 20 epochs of the embedded digits
FEWEST_EPOCHS = 4
BATCH_SIZE = 64
LABEL_SMOOTHING = 0.1
CACHED_BYTES = 2**28  # training images up to here are decoded once
ROTATION, SCALE, SHEAR, SHIFT = math.radians(12), 0.1, 0.1, 1 / 14  # largest; the shift of the side


@dataclass(frozen=True, eq=False)
class Classifier:
    """A trained network and what it was trained on.

    Attributes:
        network: float32 (B, channels, image_size, image_size) in [-1, 1] -> logits (B, K), in evaluation mode.
        class_names: K names in the order of the logits.
        image_size: pixels.
        channels: 1 or 3.
        num_images: how many images it was trained on.
        images_seen: the same, counted once in every epoch.
    """

    network: nn.Module
    class_names: tuple[str, ...]
    image_size: int
    channels: int
    num_images: int
    images_seen: int

    def protocol(self, split: str, reference_accuracy: float) -> dict[str, Any]:
        """How it came about and how good it is, JSON-ready."""
        return {
            "split": split,
            "num_images": self.num_images,
            "images_seen": self.images_seen,
            "image_size": self.image_size,
            "channels": self.channels,
            "num_classes": len(self.class_names),
            "parameters": sum(p.numel() for p in self.network.parameters()),
            "reference_accuracy": reference_accuracy,
        }

    def accuracy(
        self, scored: ScoredSet, batch_size: int, accelerator: Accelerator
    ) -> float | None:
        """Share of the images with a class that are taken for it, the same in every process; None without classes.

        Raises:
            ValueError: a class is unknown, or an image cannot be read.
        """
        asked = asked_classes(scored, self.class_names)
        if asked is None:
            return None
        images = replace(scored.images, channels=1 if self.channels == 1 else 3)
        scored = replace(scored, images=images)
        right = [np.empty((0, 1), np.float32)]
        for batch in share(len(scored), batch_size, accelerator):
            found = self.classify(scored.arrays(batch), accelerator.device)
            right.append((found == asked[batch.start : batch.stop]).astype(np.float32)[:, None])
        gathered = gather_in_order(np.concatenate(right), accelerator)
        return float(gathered[asked >= 0].mean(dtype=np.float64))

    def classify(
        self, images: Sequence[NDArray[np.uint8]], device: torch.device
    ) -> NDArray[np.int64]:
        """The most likely class of each image, int64 (N,); uint8 (H, W, channels) of other sizes are resized."""
        pixels = np.stack([_fitted(image, self.image_size) for image in images])
        batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device)
        with torch.inference_mode():
            return self.network(batch / 127.5 - 1).argmax(1).cpu().numpy()


def open_class_images(options: ScoreOptions, scored: Sequence[ScoredSet]) -> ImageSet:
    """The labelled images that the classifier learns from, of one size, at the reference's own number of channels.

    Args:
        options: name the reference and the split.
        scored: the sets that will be classified, the reference first; their classes are checked here, before any work.

    Raises:
        ValueError: no such split, no labels there or in the reference, images of several sizes, or see `asked_classes`.
    """
    split, name = options.train_split, f"split {options.train_split} of {options.reference}"
    wanted = replace(options.image_options(options.reference), channels=options.channels)
    try:
        images = open_images(wanted, split)
    except ValueError as error:
        raise ValueError(str(error).replace("--dataset", "--train_split:")) from error
    labels = images.labels
    if labels is None or not (labels >= 0).any():
        raise ValueError(
            f"--train_split: {name} has no class labels; name their column by --label_column"
        )
    asked = [asked_classes(each, images.class_names) for each in scored]
    if asked[0] is None:
        raise ValueError(
            f"--class_accuracy: split {options.reference_split} of {options.reference} has no class labels "
            "to measure the classifier on; choose another --reference_split"
        )
    images = replace(images, source_index=images.source_index[(labels >= 0).numpy()])
    size = options.image_size or square_size(images)
    images = replace(images, options=replace(wanted, image_size=size))
    if len(images) * images.channels * size**2 <= CACHED_BYTES:
        images.cached = images.read(torch.arange(len(images)))
    return images


def train_classifier(images: ImageSet, seed: int, accelerator: Accelerator) -> Classifier:
    """A small convolutional network after a cosine schedule over slightly moved, turned and stretched images.

    Every process trains the same network, from the same random numbers; that of the first is used by all.

    Args:
        images: labelled, of one size; see `open_class_images`.
        seed: of the weights, the order and the changes.
        accelerator: the processes.

    Raises:
        ValueError: naming an image that cannot be read.
    """
    labels, size = images.labels, images.options.image_size
    assert labels is not None
    assert size is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "classifier"))
        network = convolutional_network(images.channels, size, len(images.class_names))
    network = network.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps = max(IMAGES_SEEN, FEWEST_EPOCHS * len(images)) // BATCH_SIZE
    options = RunOptions(
        output_dir="", max_steps=steps, warmup_steps=steps // 5, learning_rate=3e-3,
        schedule="cosine", beta2=0.999, weight_decay=0.05,
    )  # fmt: skip
    optimizer = make_optimizer(network, options)
    random = generator(seed, "classifier")
    order = _epochs(len(images), steps * BATCH_SIZE, random).split(BATCH_SIZE)
    hidden = not accelerator.is_main_process
    for step, rows in enumerate(tqdm(order, desc="classifier", unit="step", disable=hidden)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, options)
        batch = to_float(images.read(rows).to(accelerator.device))
        batch = moved(batch, random).contiguous(memory_format=torch.channels_last)
        loss = F.cross_entropy(
            network(batch), labels[rows].to(batch.device), label_smoothing=LABEL_SMOOTHING
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    if accelerator.num_processes > 1:
        broadcast(network.state_dict())
    return Classifier(
        network.eval(),
        images.class_names,
        size,
        images.channels,
        len(images),
        steps * BATCH_SIZE,
    )


def convolutional_network(channels: int, size: int, num_classes: int) -> nn.Module:
    """(B, channels, size, size) -> (B, num_classes); work on a 14 to 31 wide grid, whatever the size of the images."""
    width = 16 if channels == 1 else 32  # colour images show more than strokes
    stride = max(2, size // 16)

    def block(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())

    return nn.Sequential(
        block(channels, width, 2 * stride + 1, stride),
        block(width, 2 * width, 3),
        block(2 * width, 2 * width, 3),
        nn.MaxPool2d(2, ceil_mode=True),  # so that even a single pixel remains one
        block(2 * width, 4 * width, 3),
        block(4 * width, 4 * width, 3),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, num_classes),
    )


def moved(images: Tensor, random: torch.Generator) -> Tensor:
    """Every image (B, C, H, W) shifted, turned, stretched and slanted a little, its edge repeated outwards.

    Never mirrored: a mirrored digit is another one, or none.
    """
    draws = 2 * torch.rand(5, len(images), generator=random) - 1  # on the CPU: equal on all devices
    angle, scale, slant = ROTATION * draws[0], 1 + SCALE * draws[1], SHEAR * draws[2]
    shifts = 2 * SHIFT * draws[3:].T  # (B, 2) in grid coordinates, 2 to a side
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = torch.stack([cos, slant - sin, sin, cos], 1).view(-1, 2, 2)
    matrices = torch.cat([rows, shifts[:, :, None]], 2).to(images.device)  # (B, 2, 3)
    places = F.affine_grid(matrices, list(images.shape), align_corners=False)
    return F.grid_sample(images, places, padding_mode="border", align_corners=False)


def _epochs(count: int, total: int, random: torch.Generator) -> Tensor:
    """The first `total` places of shuffled epochs over `count` images, int64 (total,)."""
    epochs = [torch.randperm(count, generator=random) for _ in range(-(-total // count))]
    return torch.cat(epochs)[:total]


def _fitted(image: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    """uint8 (H, W, C) -> float32 (size, size, C) in [0, 255], resized as for the feature networks."""
    if image.shape[:2] == (size, size):
        return image.astype(np.float32)
    channels = image.shape[2]
    rgb = np.broadcast_to(image, (*image.shape[:2], 3))  # the resizer takes nothing else
    return fid.clean_resizer(size)(rgb)[..., :channels]
