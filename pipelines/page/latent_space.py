"""The tab *latent*: ways between images, single dimensions, and attributes."""

from __future__ import annotations

import functools
import random
from typing import Literal

import gradio
import torch
from torch import Tensor

from latent_prior.data.codes import CodeMaps
from latent_prior.pipelines import directions, operations
from latent_prior.pipelines.inputs import as_whole
from latent_prior.pipelines.page.events import message, on
from latent_prior.pipelines.page.pictures import as_pil, gallery
from latent_prior.pipelines.page.reconstruction import drawn_image
from latent_prior.pipelines.page.shown import Shown
from latent_prior.pipelines.page.uploads import image_field, read_upload

Method = Literal["linear", "spherical"]
OTHERS = "all others"
STEPS = 7
REACH = 3.0


def latent_tab(shown: Shown) -> None:
    """Build the tab."""
    tab, names = LatentSpace(shown), shown.pipe.class_names
    with gradio.Row(elem_classes="work"):
        with gradio.Column(elem_classes="ask", min_width=0):
            with gradio.Row():
                first, second = (
                    image_field(label)
                    for label in ("Image", "Other image")
                )  # fmt: skip
            take = None
            if shown.draws:
                take = gradio.Button("Take two that the pipeline draws", size="md")
        with gradio.Column(elem_classes="shown", min_width=0):
            line = message()
            pictures = gradio.HTML(min_height=160, padding=False, js_on_load=None)
        with (
            gradio.Column(elem_classes="settings", min_width=0),
            gradio.Tabs(overflow_behavior="wrap"),
        ):
            with gradio.Tab("between"):
                method = gradio.Radio(
                    [("straight", "linear"), ("along the arc", "spherical")],
                    value="linear", label="Way from the image to the other one",
                )  # fmt: skip
                between = gradio.Button("Show the way", variant="primary", size="md")
            with gradio.Tab("dimension"):
                dimension = gradio.Slider(
                    0, tab.dimensions - 1, 0, step=1, label="Dimension, counted through the levels"
                )
                span = gradio.Slider(
                    0.5, 10, REACH, step=0.5, label="Largest change either way, in deviations"
                )
                along = gradio.Button("Change the dimension", variant="primary", size="md")
            if names and shown.draws:
                with gradio.Tab("attribute"):
                    has = gradio.Dropdown(list(names), value=names[0], label="Towards")
                    lacks = gradio.Dropdown([*names, OTHERS], value=OTHERS, label="Away from")
                    strength = gradio.Slider(
                        -REACH, REACH, 1, step=0.1,
                        label="Strength: 0 is the image, 1 the way from one mean to the other",
                    )  # fmt: skip
    on(between.click, tab.between, [first, second, method], line, [pictures], name="interpolate")
    on(along.click, tab.along, [first, dimension, span], line, [pictures], name="traverse")
    if names and shown.draws:
        on(
            functools.partial(
                gradio.on, [strength.change, has.change, lacks.change], trigger_mode="always_last"
            ),
            tab.moved, [first, has, lacks, strength], line, [pictures], name="attribute",
        )  # fmt: skip
    if take is not None:
        on(
            take.click,
            lambda: ("", drawn_image(shown), drawn_image(shown)),
            [], line, [first, second], name="draw_two",
        )  # fmt: skip


class LatentSpace:
    """What the tab does."""

    def __init__(self, shown: Shown) -> None:
        self.shown, self.pipe = shown, shown.pipe
        spec = shown.pipe.code_spec
        black = torch.zeros(1, spec.image_channels, spec.image_size, spec.image_size)
        self.dimensions = sum(part.shape[1] for part in shown.pipe.embed(black).values())
        self.steps = min(STEPS, max(3, shown.most))
        self.drawn = functools.lru_cache(maxsize=16)(self._drawn)
        self.spread = functools.cache(self._spread)

    def between(self, first: str | None, second: str | None, method: Method) -> tuple[str, str]:
        """Images from the first to the second.

        Raises:
            ValueError: one is missing or no image.
        """
        spec = self.pipe.code_spec
        start, end = (
            read_upload(first, spec, "the image"),
            read_upload(second, spec, "the other image"),
        )
        images = operations.interpolate(
            self.pipe, start, end, steps=self.steps, method=method
        )[0]  # fmt: skip
        shares = [f"{100 * step / (self.steps - 1):.0f}%" for step in range(self.steps)]
        return "Both ends are reconstructions.", gallery(as_pil(images), shares)

    def along(self, path: str | None, dimension: int, span: float) -> tuple[str, str]:
        """The image with one dimension changed.

        Raises:
            ValueError: there is no image, or no such dimension.
        """
        image = read_upload(path, self.pipe.code_spec, "the image")
        deviations = self.spread() if self.shown.draws else self._deviations(image)
        images = operations.traverse(
            self.pipe, image, deviations, as_whole(dimension, "dimension"),
            steps=self.steps, span=span,
        )[0]  # fmt: skip
        amounts = [span * (2 * step / (self.steps - 1) - 1) for step in range(self.steps)]
        of = f"{self._many()} images that the pipeline draws" if self.shown.draws else "this image"
        said = f"In standard deviations of the dimension over {of}; 0 is the reconstruction."
        return said, gallery(as_pil(images), [f"{amount:+.1f}" for amount in amounts])

    def moved(self, path: str | None, has: str, lacks: str, strength: float) -> tuple[str, str]:
        """The image with more or less of an attribute.

        Raises:
            ValueError: there is no image, or both classes are the same.
        """
        image = read_upload(path, self.pipe.code_spec, "the image")
        if has == lacks:
            raise ValueError(f"away from {lacks} is the same class as towards {has}")
        batches = [
            (images, torch.full((len(images),), value))
            for value, images in ((1, self.drawn(has)), (0, self.drawn(lacks, has)))
        ]
        direction = directions.attribute_direction(self.pipe, batches)
        images = operations.move(self.pipe, image, direction, [0.0, float(strength)])[0]
        captions = ["original", "reconstruction", f"strength {strength:+.1f}"]
        said = (
            f"The direction is the difference of the means of {self._many() // 2} images each that "
            "the pipeline draws."
        )
        return said, gallery(as_pil(torch.cat([image, images])), captions)

    def _many(self) -> int:
        """How many images a statistic is taken from."""
        return 4 * self.shown.most

    def _drawn(self, of: str, without: str | None = None) -> Tensor:
        """Images that the pipeline draws of a class, or of all others than another."""
        names, trained = self.pipe.class_names, self.pipe.trained_classes
        labels = [number for number in (trained or range(len(names))) if names[number] != without]
        if of != OTHERS:
            labels = [names.index(of)]
        count = self._many() // 2
        random_labels = random.Random(0).choices(labels, k=count)
        images = self.pipe(count, labels=random_labels, generator=0, output_type="pt").images
        assert isinstance(images, Tensor)
        return images

    def _spread(self) -> CodeMaps:
        """The deviation of each channel over images that the pipeline draws."""
        images = self.pipe(self._many(), generator=0, output_type="pt").images
        assert isinstance(images, Tensor)
        return self._deviations(images)

    def _deviations(self, images: Tensor) -> CodeMaps:
        labels = torch.zeros(len(images), dtype=torch.long)
        return directions.channel_deviations(self.pipe, [(images, labels)])
