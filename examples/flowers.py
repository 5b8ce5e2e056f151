"""Draws a folder of flowers, as mixed as such folders are: `python examples/flowers.py photos`.

300 images in three sub-folders, which become classes: daisies, tulips and sunflowers. Sides from 96
to 480 pixels; RGB, grey, with transparency, with a palette, 16 bits, and JPEGs in CMYK.
"""

import colorsys
import math
import random
import sys
from pathlib import Path

from PIL import Image, ImageDraw

KINDS = ("daisy", "tulip", "sunflower")
COUNT = 300
# Ending and mode of an image; most are plain.
FORMS = [("jpg", "RGB"), ("png", "RGB")] * 6 + [
    ("png", "L"), ("png", "RGBA"), ("png", "P"), ("gif", "P"), ("png", "I;16"), ("jpg", "CMYK"),
]  # fmt: skip
FINER = 3  # pixels are drawn this many times finer, then averaged


def colour(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    """RGB of a hue in degrees."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 360 / 360, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def flower(kind: str, width: int, height: int, dice: random.Random) -> Image.Image:
    """One flower in front of a sky and a meadow."""
    size, unit = (width * FINER, height * FINER), min(width, height) * FINER / 100
    image = Image.new("RGB", size)
    draw = ImageDraw.Draw(image)
    horizon = int(size[1] * dice.uniform(0.6, 0.85))
    sky, light = dice.uniform(195, 215), dice.uniform(0.8, 1)
    for row in range(size[1]):
        part = row / size[1]
        above = colour(sky, 0.55 - 0.45 * part, light)
        below = colour(100, 0.6, light * (1.05 - 0.6 * part))
        draw.line([(0, row), (size[0], row)], fill=above if row < horizon else below)
    x, y = size[0] * dice.uniform(0.42, 0.58), size[1] * dice.uniform(0.35, 0.45)
    foot = (x + unit * dice.uniform(-8, 8), size[1])
    draw.line([(x, y), foot], fill=colour(115, 0.8, 0.4), width=int(4 * unit))
    for side in (-1, 1):
        base = (x + (foot[0] - x) * 0.7, y + (foot[1] - y) * 0.7)
        tip = (base[0] + side * 22 * unit, base[1] - 14 * unit)
        middle = (base[0] + side * 8 * unit, base[1] - 14 * unit)
        draw.polygon([base, middle, tip], fill=colour(115, 0.75, 0.5))
    radius = unit * dice.uniform(22, 30)
    if kind == "tulip":
        petals = colour(dice.choice([340, 355, 45, 290]), 0.8, 0.9)
        draw.pieslice([x - radius, y - radius, x + radius, y + radius], 0, 180, fill=petals)
        for step in (-0.67, 0, 0.67):
            left, right = x + (step - 0.34) * radius, x + (step + 0.34) * radius
            top = (x + step * radius * 1.1, y - radius)
            draw.polygon([(left, y + 2), top, (right, y + 2)], fill=petals)
        return image.resize((width, height), Image.Resampling.LANCZOS)
    daisy = kind == "daisy"
    petals = colour(dice.choice([0, 320, 260]), dice.choice([0.05, 0.35]), 1)
    petals = petals if daisy else colour(48, 0.9, 1)
    count, turn = (8 if daisy else 16), dice.uniform(0, 2 * math.pi)
    for number in range(count):
        angle = turn + 2 * math.pi * number / count
        tip = (x + radius * math.cos(angle), y + radius * math.sin(angle))
        draw.line([(x, y), tip], fill=petals, width=int(radius * (0.5 if daisy else 0.28)))
        end = radius * (0.25 if daisy else 0.14)
        draw.ellipse([tip[0] - end, tip[1] - end, tip[0] + end, tip[1] + end], fill=petals)
    heart = radius * (0.38 if daisy else 0.6)
    middle_of = colour(45, 0.9, 0.95) if daisy else colour(25, 0.75, 0.3)
    draw.ellipse([x - heart, y - heart, x + heart, y + heart], fill=middle_of)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def main(folder: Path) -> None:
    """Write all images; the same ones every time."""
    dice = random.Random(0)
    for number in range(COUNT):
        kind = KINDS[number % len(KINDS)]
        width = dice.randint(96, 480)
        height = min(480, max(96, int(width * dice.uniform(0.75, 1.33))))
        image = flower(kind, width, height, dice)
        ending, mode = dice.choice(FORMS)
        if mode == "I;16":
            wide = image.convert("L").convert("I").point(lambda value: value * 257)
            image = wide.convert("I;16")
        elif mode == "RGBA":
            image.putalpha(
                Image.linear_gradient("L").resize(image.size).point(lambda v: 255 - v // 3)
            )
        else:
            image = image.convert(mode)
        path = folder / kind / f"{number:03d}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    print(f"{COUNT} images: {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
