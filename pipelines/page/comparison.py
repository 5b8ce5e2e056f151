"""The tab *compare*: which of two images is real, or better, without knowing whose it is."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import gradio
from PIL import Image

from latent_prior.data.codes import CodeSpec
from latent_prior.data.images import ImageSet, open_images, to_pil
from latent_prior.data.sources import open_source
from latent_prior.options import ImageOptions
from latent_prior.pipelines.page.events import Shows, message, on
from latent_prior.pipelines.page.pictures import picture, text
from latent_prior.pipelines.page.reconstruction import drawn_image
from latent_prior.pipelines.page.shown import Shown

REAL = "real"
"""The name of a contestant whose images are photographs: the other one's are to be told apart."""
Z = 1.96  # two-sided 95%


@dataclass(frozen=True)
class Contestant:
    """Somebody whose images are compared: a name, and what gives one at random."""

    name: str
    image: Callable[[], Image.Image]


@dataclass
class Round:
    """One visitor's state.

    Attributes:
        order: contestants on the left and on the right.
        wins: how often the first of the contestants was chosen.
        answers: how many answers there were.
    """

    order: list[int] = field(default_factory=list)
    wins: int = 0
    answers: int = 0


def open_folder(given: str, spec: CodeSpec) -> Contestant:
    """A contestant from `NAME=DATASET` or `NAME=DATASET[SPLIT]`.

    Raises:
        ValueError: it has another form, or there are no such images.
    """
    parts = re.fullmatch(r"([^=]+)=(.+?)(?:\[([\w-]+)\])?", given)
    if parts is None:
        raise ValueError(f"--images {given}: expected NAME=FOLDER or NAME=DATASET[SPLIT]")
    name, dataset, split = parts.groups()
    channels: Literal[1, 3] = 1 if spec.image_channels == 1 else 3
    options = ImageOptions(dataset=dataset, image_size=spec.image_size, channels=channels)
    try:
        names = open_source(options).split_names()
        images = open_images(options, split or ("test" if "test" in names else names[0]))
    except ValueError as error:
        raise ValueError(f"--images {name}: {error}") from error
    return Contestant(name, lambda: _some_image(images))


def _some_image(images: ImageSet) -> Image.Image:
    return to_pil(images.crops([random.randrange(len(images))])[0])


def of_pipeline(shown: Shown) -> Contestant:
    """A contestant that draws its images."""
    return Contestant(shown.name, lambda: drawn_image(shown))


def wilson(wins: int, answers: int) -> tuple[float, float]:
    """The 95% confidence interval of a share (Wilson, 1927, https://doi.org/10.2307/2276774)."""
    if not answers:
        return 0.0, 1.0
    share, spread = wins / answers, Z**2 / answers
    middle = share + spread / 2
    half = Z * math.sqrt(share * (1 - share) / answers + spread / answers / 4)
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))


def compare_with(shown: Shown, opponents: Sequence[Contestant]) -> None:
    """Build the tab; with several opponents, one inside it for each."""
    own = of_pipeline(shown)
    if len(opponents) == 1:
        _duel((own, opponents[0]))
        return
    with gradio.Tabs(overflow_behavior="wrap"):
        for opponent in opponents:
            with gradio.Tab(f"with {opponent.name}"):
                _duel((own, opponent))


def _duel(contestants: tuple[Contestant, Contestant]) -> None:
    """The buttons and images for two contestants."""
    tab, state = Comparison(contestants), gradio.State(Round(), time_to_live=3600)
    with gradio.Column(elem_classes="duel", min_width=0):
        gradio.HTML(f"<p>{text(tab.introduction)}</p>", padding=False, js_on_load=None)
        pictures = gradio.HTML(min_height=200, padding=False, js_on_load=None)
        with gradio.Row():
            start = gradio.Button("Show two images", variant="primary", size="md", min_width=70)
            left = gradio.Button("Left", size="md", min_width=70, visible=False)
            right = gradio.Button("Right", size="md", min_width=70, visible=False)
        line = message()
    outputs = [pictures, state, start, left, right]
    on(start.click, tab.begin, [], line, outputs, name="compare")
    for button, side in ((left, 0), (right, 1)):
        on(
            button.click,
            lambda round_, side=side: tab.answer(round_, side),
            [state], line, outputs, name=("choose_left", "choose_right")[side],
        )  # fmt: skip


class Comparison:
    """What the tab does; the first contestant's wins are counted, or those of `REAL`."""

    def __init__(self, contestants: tuple[Contestant, Contestant]) -> None:
        first, second = contestants
        self.real = REAL in (first.name, second.name)
        self.contestants = (second, first) if second.name == REAL else (first, second)
        names = f"{first.name} or {second.name}"
        self.question = "Which one is real?" if self.real else "Which one do you prefer?"
        self.introduction = (
            f"Two images, one of them real, the other one drawn by {self.contestants[1].name}."
            if self.real
            else f"Two images, from {names}; you learn which one after your answer."
        )

    def begin(self) -> Shows:
        """The first two images."""
        return self._next(Round(), "")

    def answer(self, round_: Round, side: int) -> Shows:
        """Count an answer, say whose the image was, and show the next two.

        Raises:
            ValueError: there is nothing to answer.
        """
        if not round_.order:
            raise ValueError("there are no images yet: press the button that shows them")
        chosen = round_.order[side]
        answered = Round([], round_.wins + (chosen == 0), round_.answers + 1)
        return self._next(answered, f"{self._verdict(chosen)} {self.score(answered)}")

    def score(self, round_: Round) -> str:
        """The share of wins with its interval, in words."""
        low, high = wilson(round_.wins, round_.answers)
        what = "You found the real one" if self.real else f"You chose {self.contestants[0].name}"
        guessing = "; guessing finds 50%" if self.real else ""
        return (
            f"{what} in {round_.wins} of {round_.answers} ({round_.wins / round_.answers:.0%}, "
            f"95% interval {low:.0%} to {high:.0%}{guessing})."
        )

    def _verdict(self, chosen: int) -> str:
        name = self.contestants[chosen].name
        if self.real:
            return "Right." if chosen == 0 else f"Wrong, that was {name}."
        return f"That was {name}."

    def _next(self, round_: Round, said: str) -> Shows:
        order = random.sample([0, 1], 2)
        images = [self.contestants[place].image() for place in order]
        shown = "".join(
            picture(image, side) for image, side in zip(images, ("left", "right"), strict=True)
        )
        html = f'<p>{text(self.question)}</p><div class="pictures two">{shown}</div>'
        return (
            said,
            html,
            Round(order, round_.wins, round_.answers),
            gradio.Button(visible=False),
            gradio.Button(visible=True),
            gradio.Button(visible=True),
        )
