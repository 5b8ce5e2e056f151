"""The tab *complete*: paint over a part of an image, and see what could be there."""

from __future__ import annotations

from typing import Any

import gradio
import torch
from torch import Tensor

from latent_prior.pipelines.inputs import as_count
from latent_prior.pipelines.page.events import message, on
from latent_prior.pipelines.page.generation import ANY, prompt_of, subject_field
from latent_prior.pipelines.page.pictures import as_pil, gallery, picture
from latent_prior.pipelines.page.reconstruction import drawn_image
from latent_prior.pipelines.page.shown import Shown
from latent_prior.pipelines.page.uploads import image_field, read_upload
from latent_prior.seeds import generator

# A canvas with a pixel for each of the image: Gradio's editor keeps on the server whatever is
# painted or sent, in any amount, until it is used.
SCRIPT = """
let size = 3, last = null;
const canvas = () => element.querySelector("canvas");
const at = event => {
  const box = canvas().getBoundingClientRect();
  return [(event.clientX - box.left) / box.width * canvas().width,
    (event.clientY - box.top) / box.height * canvas().height];
};
const paint = (from, to) => {
  const context = canvas().getContext("2d", {willReadFrequently: true}), side = Math.max(1, Math.round(size * canvas().width / 28));
  const steps = Math.ceil(Math.hypot(to[0] - from[0], to[1] - from[1])) || 1;
  context.fillStyle = "#ff2d78";
  for (let step = 0; step <= steps; step++) {
    const [x, y] = [0, 1].map(axis => from[axis] + (to[axis] - from[axis]) * step / steps);
    context.fillRect(Math.round(x - side / 2), Math.round(y - side / 2), side, side);
  }
};
element.addEventListener("pointerdown", event => {
  if (event.target !== canvas()) return;
  event.preventDefault();
  canvas().setPointerCapture(event.pointerId);
  last = at(event); paint(last, last);
});
element.addEventListener("pointermove", event => {
  if (!last || event.target !== canvas()) return;
  const now = at(event); paint(last, now); last = now;
});
for (const name of ["pointerup", "pointercancel"]) element.addEventListener(name, () => { last = null; });
element.addEventListener("click", event => {
  const button = event.target.closest("button");
  if (!button || !canvas()) return;
  const {brush, part} = button.dataset, side = canvas().width, half = side / 2;
  if (brush) {
    size = +brush;
    element.querySelectorAll("[data-brush]").forEach(each => each.setAttribute("aria-pressed", each === button));
    return;
  }
  const context = canvas().getContext("2d", {willReadFrequently: true});
  context.clearRect(0, 0, side, side);
  context.fillStyle = "#ff2d78";
  const box = {left: [0, 0, half, side], right: [half, 0, half, side], top: [0, 0, side, half],
    bottom: [0, half, side, half], center: [side / 4, side / 4, half, half]}[part];
  if (box) context.fillRect(...box.map(Math.round));
});
"""
# What is painted, a 0 or 1 for each pixel, in place of the event's first input.
READ_MASK = """
(_, ...others) => {
  const canvas = document.querySelector(".mask canvas");
  if (!canvas) return ["", ...others];
  const pixels = canvas.getContext("2d", {willReadFrequently: true}).getImageData(0, 0, canvas.width, canvas.height).data;
  let mask = "";
  for (let place = 3; place < pixels.length; place += 4) mask += pixels[place] ? "1" : "0";
  return [mask, ...others];
}
"""
PARTS = ("left", "right", "top", "bottom", "center", "nothing")
BRUSHES = {"fine": 1, "medium": 3, "broad": 6}


def completion_tab(shown: Shown) -> None:
    """Build the tab."""
    tab, codes = Completion(shown), shown.pipe.code_spec.kind == "codes"
    with gradio.Row(elem_classes="work"):
        with gradio.Column(elem_classes="ask", min_width=0):
            upload = image_field("Image")
            take = None
            if shown.draws:
                take = gradio.Button("Take one that the pipeline draws", size="md")
            editor = gradio.HTML(elem_classes="mask", padding=False, js_on_load=SCRIPT)
            mask = gradio.Textbox(visible=False)
        with gradio.Column(elem_classes="shown", min_width=0):
            line = message()
            pictures = gradio.HTML(min_height=160, padding=False, js_on_load=None)
        with gradio.Column(elem_classes="settings", min_width=0):
            subject = subject_field(shown, "Class of the image", ANY) if codes else None
            count, seed = None, None
            if codes:
                with gradio.Row():
                    seed = gradio.Number(0, label="Seed", precision=0, min_width=100)
                    most = max(1, shown.most // 2)
                    count = gradio.Slider(
                        1, most, min(4, most), step=1, label="Completions", min_width=140
                    )
            complete = gradio.Button("Complete", variant="primary", size="md")
    on(upload.change, tab.open, [upload], line, [editor], name="mask")
    fields = [field for field in (count, seed, subject) if field is not None]
    on(
        complete.click, tab.complete, [mask, upload, *fields], line, [pictures],
        name="complete", script=READ_MASK,
    )  # fmt: skip
    if take is not None:
        on(take.click, lambda: ("", drawn_image(shown)), [], line, [upload], name="draw_for_mask")


class Completion:
    """What the tab does."""

    def __init__(self, shown: Shown) -> None:
        self.shown, self.pipe = shown, shown.pipe

    def open(self, path: str | None) -> tuple[str, str]:
        """The image, ready to be painted over.

        Raises:
            ValueError: it is no image.
        """
        if path is None:
            return "", ""
        (image,) = as_pil(read_upload(path, self.pipe.code_spec, "the image"))
        side = self.pipe.code_spec.image_size
        canvas = f'<canvas width="{side}" height="{side}" aria-label="What is hidden"></canvas>'
        brushes = "".join(
            f'<button type="button" data-brush="{size}" aria-pressed="{str(name == "medium").lower()}">{name}</button>'
            for name, size in BRUSHES.items()
        )
        parts = "".join(
            f'<button type="button" data-part="{part}">{part}</button>' for part in PARTS
        )
        words = "paint over what is to be completed"
        return "", (
            f'<div class="pictures maps one">{picture(image, words, canvas)}</div>'
            f'<p class="tools" role="group" aria-label="Brush">Brush: {brushes}</p>'
            f'<p class="tools" role="group" aria-label="Hide a part">Or hide: {parts}</p>'
        )

    def complete(
        self,
        painted: str | None,
        path: str | None,
        count: int = 1,
        seed: int = 0,
        subject: str | None = None,
    ) -> tuple[str, str]:
        """Several completions of an image.

        Raises:
            ValueError: there is no image, nothing of it is hidden, or a value is out of range.
        """
        image, pipe = read_upload(path, self.pipe.code_spec, "the image"), self.pipe
        hidden = as_mask(painted, image.shape[-1])
        count = self.shown.check_count(as_count(count, "num_images"))
        seed = as_count(seed, "seed", 0)
        asked: dict[str, Any] = {}
        if pipe.prompt_reader is not None:
            asked["prompt"] = prompt_of(subject)
        elif subject is not None:
            asked["labels"] = subject
        output = pipe.complete(
            image.repeat(count, 1, 1, 1),
            hidden,
            generator=[generator(seed, "image", number) for number in range(count)],
            output_type="pt",
            **asked,
        )
        assert isinstance(output.images, Tensor)
        given = image.masked_fill(hidden, 0.0)
        captions = ["given", *(f"completion {number + 1}" for number in range(count))]
        said = f"Completed {hidden.float().mean():.0%} of the image."
        return said, gallery(as_pil(torch.cat([given, output.images])), captions)


def as_mask(painted: str | None, side: int) -> Tensor:
    """A mask of side x side pixels, True where one is painted.

    Raises:
        ValueError: nothing is painted, or it is of another size.
    """
    if not painted or "1" not in painted:
        raise ValueError("nothing is hidden: paint over the part that is to be completed")
    if len(painted) != side**2 or painted.strip("01"):
        raise ValueError(f"the mask must have a 0 or 1 for each of {side} x {side} pixels")
    return torch.tensor([letter == "1" for letter in painted]).view(side, side)
