r"""Read randomly changed images, presets, indices and Arrow files for some minutes each.

python tests/faults/loops.py --minutes 10 --seed 0
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from faults.commands import Place
from faults.trials import MEMORY
from PIL import Image

from latent_prior.cli import parse_config
from latent_prior.data.codes_dataset import open_codes
from latent_prior.data.image_files import decode_image, resize_and_crop
from latent_prior.data.images import open_images
from latent_prior.manifests import write_manifest
from latent_prior.options import ImageOptions
from latent_prior.pipelines.folder import read_folder
from latent_prior.stage1_autoencoders.options import TrainOptions

SECONDS = 20  # a file that takes longer hangs
_FORMATS = ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "ICO", "TGA", "PPM", "JPEG2000", "AVIF")
_WORDS = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"-1", b"1e308", b"NaN", b"null", b"[", b"{", b"&a ", b"*a ")  # fmt: skip


def change(content: bytes, chance: random.Random) -> bytes:
    """A few bytes replaced, removed, inserted or cut off."""
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        place = chance.randrange(min(len(changed), chance.choice((40, 400, 10**6))) or 1)
        kind = chance.random()
        if kind < 0.5 and changed:
            changed[place] = chance.randrange(256)
        elif kind < 0.65:
            del changed[place : place + chance.randrange(1, 9)]
        elif kind < 0.9:
            changed[place:place] = chance.choice(_WORDS)
        else:
            del changed[chance.randrange(len(changed) + 1) :]
    return bytes(changed)


def images(place: Place, chance: random.Random) -> Callable[[], None]:
    """A changed image file of each format, decoded and resized."""
    pixels = np.random.default_rng(0).integers(0, 255, (24, 24, 3)).astype(np.uint8)
    seeds = []
    for kind in _FORMATS:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind)
        seeds.append(buffer.getvalue())

    def read() -> None:
        resize_and_crop(decode_image(change(chance.choice(seeds), chance), 3), 16)

    return read


def presets(place: Place, chance: random.Random) -> Callable[[], None]:
    """A changed preset of stage 1, parsed."""
    import latent_prior.stage1_autoencoders as stage1

    folder = Path(stage1.__file__ or "").parent / "configs"
    seeds = [path.read_bytes() for path in sorted(folder.glob("*.yaml"))]
    path = place.work / "preset.yaml"

    def read() -> None:
        path.write_bytes(change(chance.choice(seeds), chance))
        with contextlib.redirect_stderr(io.StringIO()):
            try:
                parse_config(TrainOptions, ["--config", str(path), "--output_dir", "x"])
            except SystemExit as refused:
                if refused.code != 2:
                    raise RuntimeError(f"exit code {refused.code}") from refused

    return read


def indices(place: Place, chance: random.Random) -> Callable[[], None]:
    """A pipeline with a changed index or config, its manifest written anew."""
    place.prepare(place.commands["generate"])
    folder = place.work / "pipeline"
    names = ("pipeline.json", "autoencoder/config.json", "prior/config.json", "autoencoder/code_spec.json", "manifest.json")  # fmt: skip
    seeds = {name: (folder / name).read_bytes() for name in names}

    def read() -> None:
        name = chance.choice(names)
        (folder / name).write_bytes(change(seeds[name], chance))
        if name != "manifest.json":
            for inner in ("autoencoder", "prior"):
                write_manifest(folder / inner, "model")
            write_manifest(folder, "pipeline")
        try:
            read_folder(folder)
        finally:
            (folder / name).write_bytes(seeds[name])

    return read


def arrow(place: Place, chance: random.Random) -> Callable[[], None]:
    """A codes set with a changed file, its manifest written anew; all rows are read."""
    place.prepare(place.commands["prior raster"])
    folder = place.work / "codes"
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "manifest.json"]
    seeds = {path: path.read_bytes() for path in files}
    tables = [path for path in files if path.suffix == ".arrow"]

    def read() -> None:
        path = chance.choice(tables if chance.random() < 0.7 else files)
        path.write_bytes(change(seeds[path], chance))
        write_manifest(folder, "codes")
        try:
            for split in open_codes(folder)[0].values():
                split.batch(torch.arange(len(split)))
                if split.has_captions:
                    split.captions(torch.arange(len(split)))
        finally:
            path.write_bytes(seeds[path])

    return read


def described(place: Place, chance: random.Random) -> Callable[[], None]:
    """A folder of images whose metadata file was changed, of each of the three kinds."""
    folder = place.work / "described"
    for number in range(3):
        path = folder / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(path)
    table = pyarrow.table(
        {
            "file_name": [f"{n}.png" for n in range(3)],
            "text": ["a é", "b\nc, d", "e"],
            "kind": [1, 2, 1],
        }
    )
    packed = io.BytesIO()
    pyarrow.parquet.write_table(table, packed)
    csv = b'file_name,text,kind\n0.png,a,1\n1.png,"b\nc, d",2\n2.png,\xc3\xa9,1\n'
    lines = "\n".join(json.dumps(row) for row in table.to_pylist()).encode()
    seeds = {"csv": csv, "jsonl": lines, "parquet": packed.getvalue()}

    def read() -> None:
        kind = chance.choice(list(seeds))
        path = folder / f"metadata.{kind}"
        path.write_bytes(change(seeds[kind], chance))
        flags = {"label_column": "kind"} if chance.random() < 0.5 else {}
        skip = "skip" if chance.random() < 0.5 else "error"
        try:
            images = open_images(
                ImageOptions(dataset=str(folder), on_corrupt=skip, **flags), "train"
            )
            if images.has_captions:
                images.captions(range(len(images)))
        finally:
            path.unlink()

    return read


LOOPS = {
    "images": images, "presets": presets, "indices": indices, "arrow": arrow,
    "metadata": described,
}  # fmt: skip


def loop(name: str, place: Place, seed: int, seconds: float) -> tuple[int, list[str]]:
    """Read changed files for a time; returns their number and what was raised but ValueError."""
    chance, count, problems = random.Random(seed), 0, []
    place.work.mkdir(parents=True, exist_ok=True)
    read = LOOPS[name](place, chance)
    deadline = time.monotonic() + seconds

    def hangs(number: int, frame: object) -> None:
        raise TimeoutError(f"it took more than {SECONDS} s")

    signal.signal(signal.SIGALRM, hangs)
    warnings.simplefilter("ignore")  # PIL warns of strange TIFF tags
    while time.monotonic() < deadline:
        state = chance.getstate()
        signal.alarm(SECONDS)
        try:
            read()
        except ValueError as error:
            if "\n" in str(error).strip() or not str(error):
                problems.append(f"no one sentence: {error!r}")
        except Exception as error:
            problems.append(f"number {count}: {type(error).__name__}: {str(error)[:200]}")
        signal.alarm(0)
        count += 1
        assert chance.getstate() != state
    return count, problems


def main() -> int:
    """Run the loops; returns 1 if something but ValueError was raised."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="for each loop")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--loops", nargs="*", default=list(LOOPS), choices=list(LOOPS))
    parser.add_argument("--root", type=Path, help="folder to keep; the default is a temporary one")
    options = parser.parse_args()
    ill = 0
    with tempfile.TemporaryDirectory() as temporary:
        root = options.root or Path(temporary)
        os.environ["LATENT_PRIOR_FAULTS"] = str(root)
        place = Place(root)
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        for name in options.loops:
            count, problems = loop(name, place, options.seed, 60 * options.minutes)
            ill += len(problems)
            for problem in problems[:10]:
                print(f"ILL {name}: {problem}")
            print(f"{name}: {count} changed files, {len(problems)} ill", flush=True)
    return int(ill > 0)


if __name__ == "__main__":
    sys.exit(main())
