"""Class accuracy: the share of images that a classifier assigns to the class they should show.

The classifier is trained for every run on the reference's training split, at the reference's size;
the generators never see it. Its accuracy on the reference is the ceiling for a perfect generator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from latent_prior.data.images import ImageSet, square_size, to_float
from latent_prior.data.labels import seen_classes
from latent_prior.evaluation.features.extract import gather_in_order
from latent_prior.evaluation.features.resizing import resize_clean
from latent_prior.evaluation.options import ScoreOptions
from latent_prior.evaluation.sets import ScoredSet, open_split
from latent_prior.options import RunOptions
from latent_prior.processes import share
from latent_prior.progress import Progress
from latent_prior.seeds import derive_seed, generator
from latent_prior.training.optim import learning_rate_at, make_optimizer

IMAGES_SEEN = 80_000  # in training, at least; 20 epochs of mnist5k
FEWEST_EPOCHS = 4
BATCH_SIZE = 64
LABEL_SMOOTHING = 0.1
CACHED_BYTES = 2**28  # smaller sets of training images are decoded once
# Largest augmentations; the shift is a share of the side.
ROTATION, SCALE, SHEAR, SHIFT = math.radians(12), 0.1, 0.1, 1 / 14


@dataclass(frozen=True, eq=False)
class Classifier:
    """A trained network and what it was trained on.

    Attributes:
        network: float32 (B, channels, image_size, image_size) in [-1, 1] -> logits (B, K), in
            evaluation mode.
        class_names: K names in the order of the logits.
        image_size: height and width in pixels.
        channels: of its images.
        training: numbers that describe the training, JSON-ready.
    """

    network: nn.Module
    class_names: tuple[str, ...]
    image_size: int
    channels: Literal[1, 3]
    training: dict[str, int]
    trained_classes: list[int] | None = None
    """Numbers of the classes with training images; None: all."""

    def note(self, scored: ScoredSet) -> str | None:
        """A caveat if images are of classes that the classifier cannot know."""
        labels = scored.labels(self.class_names)
        if labels is None or self.trained_classes is None:
            return None
        unseen = ~np.isin(labels, self.trained_classes) & (labels >= 0)
        if not unseen.any():
            return None
        return (
            f"{unseen.sum():,} of {len(labels):,} images are of classes without training images "
            f"({len(np.unique(labels[unseen])):,} classes), so the class accuracy counts them wrong."
        )

    def protocol(self, split: str, reference_accuracy: float | None) -> dict[str, Any]:
        """Its training and its accuracy, JSON-ready."""
        return {
            "split": split,
            **self.training,
            "image_size": self.image_size,
            "channels": self.channels,
            "num_classes": len(self.class_names),
            "parameters": sum(p.numel() for p in self.network.parameters()),
            "reference_accuracy": reference_accuracy,
        }

    def accuracy(
        self, scored: ScoredSet, batch_size: int, accelerator: Accelerator
    ) -> float | None:
        """Share of the images with a class that are assigned to it; None without classes.

        The same in every process.

        Raises:
            ValueError: a class is unknown, or an image cannot be read.
        """
        labels = scored.labels(self.class_names)
        if labels is None:
            return None
        scored = replace(scored, images=replace(scored.images, channels=self.channels))
        correct = []
        for batch in share(len(scored), batch_size, accelerator):
            predicted = self.classify(scored.arrays(batch), accelerator.device)
            hits = predicted == labels[batch.start : batch.stop]
            correct.append(hits.astype(np.float32)[:, None])
        gathered = gather_in_order(correct, 1, accelerator)
        return float(gathered[labels >= 0].mean(dtype=np.float64))

    def classify(
        self, images: Sequence[NDArray[np.uint8]], device: torch.device
    ) -> NDArray[np.int64]:
        """The most likely class of each uint8 image (H, W, channels) of any size: int64 (N,)."""
        pixels = torch.from_numpy(resize_clean(images, self.image_size)[:, : self.channels])
        batch = pixels.to(device).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            return self.network(batch / 127.5 - 1).argmax(1).cpu().numpy()


def open_class_images(options: ScoreOptions, scored: Sequence[ScoredSet]) -> ImageSet:
    """The labelled training images, of one size and with the reference's number of channels.

    Also checks the classes of the sets to be classified, of which the reference is the first.

    Raises:
        ValueError: no such split, no labels in it or in the reference, images of several sizes, or
            an unknown class.
    """
    split, name = options.train_split, f"split {options.train_split} of {options.reference}"
    image_options = replace(options.image_options(options.reference), channels=options.channels)
    images = open_split(image_options, split, "--train_split:")
    labels = images.labels
    if labels is None or not (labels >= 0).any():
        raise ValueError(
            f"--train_split: {name} has no class labels; name their column by --label_column"
        )
    numbers = [each.labels(images.class_names) for each in scored]
    if numbers[0] is None:
        raise ValueError(
            f"--class_accuracy: split {options.reference_split} of {options.reference} has no class labels "
            "to measure the classifier on; choose another --reference_split"
        )
    images = replace(images, source_index=images.source_index[(labels >= 0).numpy()])
    size = options.image_size or square_size(images)
    images = replace(images, options=replace(image_options, image_size=size))
    if len(images) * images.channels * size**2 <= CACHED_BYTES:
        images.cached = images.read(torch.arange(len(images)))
    return images


def train_classifier(images: ImageSet, seed: int, accelerator: Accelerator) -> Classifier:
    """Train a small convolutional network on augmented images.

    Every process trains the same network from the same random numbers; all use the first one's.
    The images are those of `open_class_images`.

    Raises:
        ValueError: an image cannot be read.
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
    epochs = -(-steps * BATCH_SIZE // len(images))
    order = torch.cat([torch.randperm(len(images), generator=random) for _ in range(epochs)])
    batches = order[: steps * BATCH_SIZE].split(BATCH_SIZE)
    shown = accelerator.is_main_process
    with Progress("training classifier", steps, shown=shown, images=BATCH_SIZE) as line:
        for step, rows in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(step, options)
            batch = to_float(images.read(rows).to(accelerator.device))
            batch = augmented(batch, random).contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(
                network(batch), labels[rows].to(batch.device), label_smoothing=LABEL_SMOOTHING
            )
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            line.advance()
    if accelerator.num_processes > 1:
        broadcast(network.state_dict())
    training = {"num_images": len(images), "images_seen": steps * BATCH_SIZE}
    trained = seen_classes(labels.numpy(), len(images.class_names))
    return Classifier(network.eval(), images.class_names, size, images.channels, training, trained)


def convolutional_network(channels: int, size: int, num_classes: int) -> nn.Module:
    """(B, channels, size, size) -> (B, num_classes), on a grid of at most 31 x 31 for any size."""
    width = 16 if channels == 1 else 32  # colour images show more than strokes
    stride = max(2, size // 16)

    def block(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())

    return nn.Sequential(
        block(channels, width, 2 * stride + 1, stride),
        block(width, 2 * width, 3),
        block(2 * width, 2 * width, 3),
        nn.MaxPool2d(2, ceil_mode=True),  # keeps a single pixel
        block(2 * width, 4 * width, 3),
        block(4 * width, 4 * width, 3),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, num_classes),
    )


def augmented(images: Tensor, random: torch.Generator) -> Tensor:
    """Shift, rotate, scale and shear images (B, C, H, W) slightly, repeating their edges.

    They are not mirrored: a mirrored digit is a different one, or none.
    """
    draws = 2 * torch.rand(5, len(images), generator=random) - 1  # CPU: the same on all devices
    angle, scale, slant = ROTATION * draws[0], 1 + SCALE * draws[1], SHEAR * draws[2]
    shifts = 2 * SHIFT * draws[3:].T  # (B, 2) in grid coordinates; a side is 2
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = torch.stack([cos, slant - sin, sin, cos], 1).view(-1, 2, 2)
    matrices = torch.cat([rows, shifts[:, :, None]], 2).to(images.device)  # (B, 2, 3)
    positions = F.affine_grid(matrices, list(images.shape), align_corners=False)
    return F.grid_sample(images, positions, padding_mode="border", align_corners=False)
