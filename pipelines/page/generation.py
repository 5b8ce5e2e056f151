"""The tab *generate*: images from a class or a prompt, shown while they are drawn."""

from __future__ import annotations

import random
import shlex
import time
from collections.abc import Iterator, Sequence
from typing import Any

import gradio

from latent_prior.data.labels import classes_in_turn, label_number
from latent_prior.pipelines.inputs import as_count
from latent_prior.pipelines.page.events import message, on, said_line
from latent_prior.pipelines.page.pictures import gallery
from latent_prior.pipelines.page.shown import MOST_LETTERS, MOST_STEPS, Shown
from latent_prior.pipelines.pipeline import PipelineOutput
from latent_prior.seeds import generator

EACH, ANY = "each in turn", "-1"
UPDATES = 16
# Label and range of the settings that are a number.
SLIDERS: dict[str, tuple[str, float, float, float]] = {
    "guidance_scale": ("Guidance: how much it keeps to what is asked; 1 is none", 0, 10, 0.1),
    "temperature": ("Temperature: less is likelier, more is bolder", 0, 2, 0.05),
    "top_k": ("Top-k: choose among so many codes; 0 is all", 0, 1024, 1),
    "top_p": ("Top-p: choose within this probability; 1 is all", 0, 1, 0.01),
    "steps": ("Rounds", 1, MOST_STEPS, 1),
    "choice_temperature": ("Noise in the choice of what to keep in a round", 0, 20, 0.1),
}
FIRST = ("guidance_scale", "temperature", "top_k", "top_p", "steps")
"""Settings in sight; the others are folded away."""


def generation_tab(shown: Shown) -> None:
    """Build the tab."""
    pipe, tab = shown.pipe, Generation(shown)
    with gradio.Row(elem_classes="work"):
        with gradio.Column(elem_classes="ask", min_width=0):
            subject = subject_field(shown)
            with gradio.Row():
                seed = gradio.Number(0, label="Seed", precision=0, min_width=100)
                count = gradio.Slider(
                    1, shown.most, min(8, shown.most), step=1, label="Images", min_width=140
                )
            with gradio.Row():
                draw = gradio.Button("Draw", variant="primary", size="md", min_width=70)
                others = gradio.Button("New seed", size="md", min_width=70)
                stop = gradio.Button("Stop", variant="stop", size="md", min_width=70)
        with gradio.Column(elem_classes="shown", min_width=0):
            line, pictures = message(), gradio.HTML(min_height=160, padding=False, js_on_load=None)
            with gradio.Accordion("The same images by a command, and in Python", open=False):
                command = gradio.Code(
                    label="Command",
                    language="shell",
                    interactive=False,
                    wrap_lines=True,
                    lines=1,
                    max_lines=6,
                )
                python = gradio.Code(
                    label="Python", language="python", interactive=False, lines=1, max_lines=16
                )
        with gradio.Column(elem_classes="settings", min_width=0):
            controls = {name: _control(shown, name) for name in pipe.settings if name in FIRST}
            if hidden := [name for name in pipe.settings if name not in FIRST]:
                with gradio.Accordion("More settings", open=False):
                    controls |= {name: _control(shown, name) for name in hidden}
    inputs = [count, seed, *([] if subject is None else [subject]), *controls.values()]
    tab.names = ["num_images", "seed", *([] if subject is None else [tab.subject]), *controls]
    outputs = [pictures, command, python]
    drawing = on(draw.click, tab.draw, inputs, line, outputs, name="generate")
    anew = others.click(
        lambda: random.randrange(1_000_000), None, seed, api_visibility="private", queue=False
    )
    again = on(anew.then, tab.draw, inputs, line, outputs, name="generate_others")
    stop.click(
        lambda: said_line("Stopped."),
        None,
        line,
        cancels=[drawing, again],
        api_visibility="private",
        queue=False,
    )


class Generation:
    """What the tab does.

    Attributes:
        names: of the values that `draw` is given.
    """

    names: list[str]

    def __init__(self, shown: Shown) -> None:
        self.shown = shown
        self.subject = "prompt" if shown.pipe.prompt_reader is not None else "label"

    def draw(self, *values: Any) -> Iterator[tuple[str, str, Any, Any]]:
        """Draw images: what is said, the images so far, the command and the Python code.

        Raises:
            ValueError: a value is out of range.
        """
        asked = Asked(self.shown, dict(zip(self.names, values, strict=True)))
        started, first = time.perf_counter(), True
        for output in asked.stream():
            images = output.images
            assert isinstance(images, list)
            code = (asked.command(), asked.python()) if first else (gradio.skip(), gradio.skip())
            yield "Drawing ...", gallery(images, asked.captions(output)), *code
            first = False
        seconds = time.perf_counter() - started
        said = f"Drawn in {seconds:.1f} seconds. A click on an image saves it."
        yield said, gradio.skip(), gradio.skip(), gradio.skip()


class Asked:
    """What a visitor asks for, and how the command line and Python ask for the same."""

    def __init__(self, shown: Shown, values: dict[str, Any]) -> None:
        """Read the values of the controls.

        Raises:
            ValueError: one is out of range.
        """
        self.shown = shown
        self.count = shown.check_count(as_count(values["num_images"], "num_images"))
        self.seed = as_count(values["seed"], "seed", 0)
        self.prompt = prompt_of(values.get("prompt"))
        label = values.get("label", EACH)
        self.label: str | None = None if label == EACH else label
        settings = {name: values[name] for name in shown.pipe.settings if name in values}
        if (interval := settings.get("guidance_interval")) is not None:
            settings["guidance_interval"] = _interval(interval)
        shown.pipe.resolve(settings)
        self.settings = shown.changed(settings)

    def stream(self) -> Iterator[PipelineOutput]:
        """The images while they are drawn; the same as those of `generate.py`."""
        pipe = self.shown.pipe
        labels: Any = self.label
        if labels is None:
            labels = classes_in_turn(self.count, len(pipe.class_names), pipe.trained_classes)
        return pipe.stream(
            self.count,
            prompt=self.prompt,
            labels=labels,
            generator=[generator(self.seed, "image", number) for number in range(self.count)],
            updates=UPDATES,
            **self.settings,  # type: ignore[arg-type]
        )

    def captions(self, output: PipelineOutput) -> list[str]:
        """What each image was asked to show."""
        names = self.shown.pipe.class_names
        if self.prompt is not None:
            return [self.prompt] * self.count
        return [names[label] if label >= 0 else f"{number + 1}" for number, label in enumerate(output.labels)]  # fmt: skip

    def command(self) -> str:
        """The command line that writes these images into a folder."""
        words = ["--pipeline", self.shown.source, "--num_images", str(self.count)]
        if self.prompt is not None:
            words += ["--prompts", self.prompt]
        if self.label is not None:
            words += ["--labels", self.label]
        for name, value in self.settings.items():
            words += [f"--{name}", *map(_plain, value if isinstance(value, tuple) else [value])]
        words += ["--seed", str(self.seed), "--output_dir", "generated"]
        return f"{self.shown.generate} {shlex.join(words)}"

    def python(self) -> str:
        """Python code that makes these images."""
        arguments = [str(self.count)]
        if self.prompt is not None:
            arguments.append(f"prompt={self.prompt!r}")
        if self.label is not None:
            arguments.append(f"labels={self.label!r}")
        arguments += [f"{name}={value!r}" for name, value in self.settings.items()]
        arguments.append(f'generator=[generator({self.seed}, "image", n) for n in range({self.count})]')  # fmt: skip
        lines = "".join(f"    {argument},\n" for argument in arguments)
        return (
            "from latent_prior import Pipeline\n"
            "from latent_prior.seeds import generator\n\n"
            f"pipe = Pipeline.from_pretrained({self.shown.source!r})\n"
            f"output = pipe(\n{lines})\n"
            "for number, image in enumerate(output.images):\n"
            '    image.save(f"{number:06d}.png")'
        )


def subject_field(
    shown: Shown, label: str = "Class", default: str = EACH
) -> gradio.components.Component | None:
    """The field for what the images show; None for a pipeline that cannot be asked."""
    pipe = shown.pipe
    if pipe.prompt_reader is not None:
        return gradio.Textbox(
            label="Prompt: what the images show; empty is anything", max_length=MOST_LETTERS
        )
    if not pipe.class_names:
        return None
    trained = pipe.trained_classes
    numbers = range(len(pipe.class_names)) if trained is None else trained
    names = [(pipe.class_names[number], _typed(number, pipe.class_names)) for number in numbers]
    first = [("each in turn", EACH)] if default == EACH else []
    choices = [*first, *names, ("any: drawn without a class", ANY)]
    return gradio.Dropdown(choices, value=default, label=label, filterable=len(choices) > 12)


def prompt_of(words: str | None) -> str | None:
    """The prompt in its field, None for anything.

    Raises:
        ValueError: it is too long for this page.
    """
    prompt = (words or "").strip()
    if len(prompt) > MOST_LETTERS:
        raise ValueError(f"the prompt has {len(prompt)} letters: shorten it")
    return prompt or None


def _control(shown: Shown, name: str) -> gradio.components.Component:
    """The control of a sampler setting, at the pipeline's default."""
    pipe = shown.pipe
    value = getattr(pipe.sampler, name)
    if name == "guidance_schedule":
        return gradio.Dropdown(
            ["constant", "linear", "cosine"], value=value, label="Guidance: how it rises from 1"
        )
    if name == "guidance_interval":
        return gradio.Textbox(
            f"{value[0]:g} {value[1]:g}", label="Guidance: first and last share with it, 0 to 1"
        )
    label, low, high, step = SLIDERS[name]
    if name == "top_k":
        high = max(level.vocabulary or 1 for level in pipe.code_spec.levels)
    return gradio.Slider(low, max(high, value), value, step=step, label=label)


def _interval(words: str) -> tuple[float, ...]:
    """The two numbers of a guidance interval.

    Raises:
        ValueError: they are no numbers.
    """
    try:
        return tuple(float(word) for word in words.replace(",", " ").split())
    except ValueError as error:
        raise ValueError(
            f"guidance_interval must be two rising shares in [0, 1], not {words[:40]!r}"
        ) from error


def _typed(number: int, names: Sequence[str]) -> str:
    """What a user types for a class: its name, or its number where that is another one's name."""
    return names[number] if label_number(names[number], names) == number else str(number)


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
