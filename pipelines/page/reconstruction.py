"""The tab *reconstruct*: an image, what is left of it after coding, and its codes."""

from __future__ import annotations

import random
from typing import Any

import gradio
import torch
from PIL import Image
from torch import Tensor

from latent_prior.data.codes import CodeMaps, Level
from latent_prior.pipelines.inputs import as_whole
from latent_prior.pipelines.page.codebook import Codebook
from latent_prior.pipelines.page.events import MODEL, message, on, said_line
from latent_prior.pipelines.page.pictures import as_pil, picture, text
from latent_prior.pipelines.page.shown import Shown
from latent_prior.pipelines.page.uploads import image_field, read_upload

NEIGHBOURS = 7
# Click, or arrow keys and Enter: marks all places of the code and asks for its neighbours.
SCRIPT = """
const mark = (map, row, column) => {
  const {level, columns, rows, codes} = map.dataset;
  const all = codes.split(","), code = all[row * columns + column];
  map.dataset.row = row; map.dataset.column = column;
  element.querySelectorAll("svg").forEach(svg => { svg.innerHTML = ""; });
  element.querySelectorAll(`svg[data-level="${level}"], svg[data-level=""]`).forEach(svg => {
    svg.setAttribute("viewBox", `0 0 ${columns} ${rows}`);
    svg.innerHTML = all.map((other, place) => other !== code ? "" :
      `<rect x="${place % columns}" y="${Math.floor(place / columns)}" width="1" height="1"
        class="${place === row * columns + column ? "chosen" : ""}"/>`).join("");
  });
};
const ask = map => trigger("click", {
  level: map.dataset.level, row: +map.dataset.row, column: +map.dataset.column});
element.addEventListener("click", event => {
  const map = event.target.closest(".codes");
  if (!map) return;
  const box = map.getBoundingClientRect(), {columns, rows} = map.dataset;
  const cell = (at, length, count) => Math.min(count - 1, Math.max(0, Math.floor(at / length * count)));
  mark(map, cell(event.clientY - box.top, box.height, rows),
    cell(event.clientX - box.left, box.width, columns));
  ask(map);
});
element.addEventListener("keydown", event => {
  const map = event.target.closest(".codes");
  const step = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[event.key];
  if (!map || !(step || event.key === "Enter")) return;
  event.preventDefault();
  const {columns, rows} = map.dataset;
  const moved = (from, by, count) => Math.min(count - 1, Math.max(0, +from + by));
  if (step) mark(map, moved(map.dataset.row, step[0], rows), moved(map.dataset.column, step[1], columns));
  else ask(map);
});
"""


def reconstruction_tab(shown: Shown) -> None:
    """Build the tab."""
    tab, codes = Reconstruction(shown), gradio.State(None)
    with gradio.Row(elem_classes="work"):
        with gradio.Column(elem_classes="ask", min_width=0):
            upload = image_field("Image", 260)
            take = None
            if shown.draws:
                take = gradio.Button("Take one that the pipeline draws", size="md")
        with gradio.Column(elem_classes="shown", min_width=0):
            line = message()
            pictures = gradio.HTML(min_height=160, padding=False, js_on_load=SCRIPT)
            details = gradio.HTML(padding=False, js_on_load=None)
    on(upload.change, tab.reconstruct, [upload], line, [pictures, details, codes], name="reconstruct")  # fmt: skip
    if take is not None:
        on(take.click, lambda: ("", drawn_image(shown)), [], line, [upload], name="draw_one")
    if shown.pipe.code_spec.kind == "codes":

        def look(event: gradio.EventData, maps: CodeMaps | None) -> tuple[Any, str]:
            try:
                return gradio.skip(), tab.neighbours(maps, event._data)
            except ValueError as error:
                return said_line(str(error), wrong=True), ""

        pictures.click(
            look, [codes], [line, details], concurrency_id=MODEL, show_progress="minimal",
            show_progress_on=details, api_visibility="private",
        )  # fmt: skip


def drawn_image(shown: Shown) -> Image.Image:
    """One image that the pipeline draws, of any of its classes."""
    trained = shown.pipe.trained_classes or range(len(shown.pipe.class_names))
    label = random.choice(trained) if trained else -1
    images = shown.pipe(1, labels=label, generator=random.randrange(2**31)).images
    assert isinstance(images, list)
    return images[0]


class Reconstruction:
    """What the tab does."""

    def __init__(self, shown: Shown) -> None:
        self.pipe = shown.pipe
        self.books: dict[str, Codebook] = {}

    def reconstruct(self, path: str | None) -> tuple[str, str, str, CodeMaps | None]:
        """Original, reconstruction and maps, and the codes for `neighbours`.

        Raises:
            ValueError: the file is no image.
        """
        if path is None:
            return "", "", "", None
        spec = self.pipe.code_spec
        image = read_upload(path, spec, "the image")
        codes = self.pipe.encode(image)
        decoded = self.pipe.decode(codes).cpu()
        original, reconstruction = as_pil(torch.cat([image, decoded]))
        error = float((image - decoded).square().mean()) / 4
        noise = "no error" if error == 0 else f"PSNR {-10 * torch.tensor(error).log10():.1f} dB"
        parts = [
            picture(original, "original"),
            picture(reconstruction, f"reconstruction, {noise}", _overlay("")),
        ]
        if spec.kind == "latents":
            return "", f'<div class="pictures maps">{"".join(parts)}</div>', "", None
        parts += [self._map(level, codes[level.name][0].cpu()) for level in spec.levels]
        used = ", ".join(
            f"{len(codes[level.name].unique())} of {level.vocabulary}" for level in spec.levels
        )
        said = f"Uses {used} codes. Click on a code, or reach it with the arrow keys and Enter."
        pictures = f'<div class="pictures maps">{"".join(parts)}</div>'
        return said, pictures, "", {name: values.cpu() for name, values in codes.items()}

    def neighbours(self, codes: CodeMaps | None, place: Any) -> str:
        """What a code and its neighbours in the codebook look like at its place in the image.

        Args:
            codes: of the image, (1, height, width) by level.
            place: `level`, `row` and `column`, as the visitor's browser sends them.

        Raises:
            ValueError: there is no such place.
        """
        if codes is None or not isinstance(place, dict):
            raise ValueError("there is no image: drop one into its field")
        level = next((e for e in self.pipe.code_spec.levels if e.name == place.get("level")), None)
        if level is None:
            raise ValueError("there is no such code map")
        row, column = (as_whole(place.get(axis), axis) for axis in ("row", "column"))
        if not (0 <= row < level.height and 0 <= column < level.width):
            raise ValueError(f"the map has {level.height} x {level.width} codes")
        values = codes[level.name]
        code = int(values[0, row, column])
        found = [(code, 0.0), *self._book(level.name).nearest(code, NEIGHBOURS)]
        replaced = {name: each.repeat(len(found), 1, 1) for name, each in codes.items()}
        replaced[level.name][:, row, column] = torch.tensor([each for each, _ in found])
        patches, outline = _around(self.pipe.decode(replaced).cpu(), level, row, column)
        captions = [f"code {code}, as it is", *(f"{each}, at {d:.2f}" for each, d in found[1:])]
        others = int((values == code).sum()) - 1
        where = "nowhere else" if not others else f"at {others} other place{'s' * (others > 1)}"
        heading = (
            f"Code {code} stands at row {row}, column {column} of {level.name}, and {where} in this "
            "image (outlined). Its nearest neighbours in the codebook, each in its place:"
        )
        pictures = (
            picture(image, caption, outline)
            for image, caption in zip(as_pil(patches), captions, strict=True)
        )
        return f'<p>{text(heading)}</p><div class="pictures small">{"".join(pictures)}</div>'

    def _book(self, level: str) -> Codebook:
        if level not in self.books:
            self.books[level] = Codebook(self.pipe, level)
        return self.books[level]

    def _map(self, level: Level, codes: Tensor) -> str:
        """The map (height, width) of a level as a picture that can be clicked."""
        colours = self._book(level.name).colours[codes]  # (height, width, 3)
        (image,) = as_pil(colours.permute(2, 0, 1)[None])
        listed = ",".join(map(str, codes.flatten().tolist()))
        size = f"{level.height} x {level.width}"
        around = (
            f'<div class="codes" tabindex="0" role="application" data-level="{level.name}" '
            f'data-rows="{level.height}" data-columns="{level.width}" data-row="0" data-column="0" '
            f'data-codes="{listed}" aria-label="Map of {size} codes: arrow keys choose a code, '
            f'Enter shows its neighbours">'
        )
        name = "codes" if level.name == "codes" else f"codes, {level.name}"
        return picture(image, f"{name}: {size}", _overlay(level.name), around)


def _overlay(level: str) -> str:
    """Where the script marks the places of a code; without a level, of a code of any."""
    return f'<svg data-level="{level}" preserveAspectRatio="none" aria-hidden="true"></svg>'


def _around(images: Tensor, level: Level, row: int, column: int) -> tuple[Tensor, str]:
    """The patch of a code with one more on each side, and an outline around its own."""
    height, width = images.shape[2] // level.height, images.shape[3] // level.width
    top, left = max(0, row - 1), max(0, column - 1)
    bottom, right = min(level.height, row + 2), min(level.width, column + 2)
    outline = (
        f'<svg viewBox="0 0 {right - left} {bottom - top}" preserveAspectRatio="none" '
        f'aria-hidden="true"><rect class="chosen" x="{column - left}" y="{row - top}" width="1" '
        'height="1"/></svg>'
    )
    return images[:, :, top * height : bottom * height, left * width : right * width], outline
