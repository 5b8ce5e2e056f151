"""The same images in tar, parquet and Arrow shards."""

import io
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from latent_prior.stage1_autoencoders.options import TrainOptions
from tests.latent_prior.samples import encoded


def numbered(number: int) -> bytes:
    """An image that tells its number."""
    return encoded(Image.new("RGB", (8, 8), (number // 256, number % 256, 7)))


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def sample(number: int) -> dict[str, bytes]:
    """The members of one image."""
    return {
        f"{number:06d}.png": numbered(number),
        f"{number:06d}.cls": str(number % 3).encode(),
        f"{number:06d}.txt": f"picture {number}".encode(),
        f"{number:06d}.json": f'{{"kind": "{"abc"[number % 3]}", "said": "{number}!"}}'.encode(),
    }


def write_shards(folder: Path, kind: str, count: int, shards: int = 6, name: str = "train") -> Path:
    """`count` images in shards of unequal length."""
    folder.mkdir(parents=True, exist_ok=True)
    cuts = np.linspace(0, 1, shards + 1) ** 1.2 * count
    for shard, (first, last) in enumerate(
        zip(cuts.round().astype(int), cuts.round().astype(int)[1:], strict=False)
    ):
        numbers = range(first, last)
        path = folder / f"{name}-{shard:05d}-of-{shards:05d}.{kind}"
        if kind == "tar":
            write_tar(path, {k: v for n in numbers for k, v in sample(n).items()})
            continue
        rows = datasets.Dataset.from_dict({
            "image": [{"bytes": numbered(n), "path": None} for n in numbers],
            "label": [n % 3 for n in numbers],
            "said": [f"{n}!" for n in numbers],
        })  # fmt: skip
        if kind == "parquet":
            rows.to_parquet(path, batch_size=17)
        else:
            import pyarrow

            batches = rows.data.table.combine_chunks().to_batches(max_chunksize=17)
            # Both of Arrow's forms.
            new = (pyarrow.ipc.new_stream, pyarrow.ipc.new_file)[shard % 2]
            with new(str(path), batches[0].schema) as writer:
                for batch in batches:
                    writer.write_batch(batch)
    return folder


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """`shards(kind)`: a folder with 600 images; made once."""
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            made[kind] = write_shards(tmp_path_factory.mktemp("shards") / kind, kind, 600)
        return made[kind]

    return make


@pytest.fixture
def of_run():
    """`of_run(dataset, ...)`: options of a streamed training."""

    def make(dataset, **others) -> TrainOptions:
        settings = {"image_size": 8, "channels": 3, "batch_size": 16, "streaming": True, "seed": 3}
        return TrainOptions(output_dir="x", dataset=str(dataset), **{**settings, **others})

    return make


def number_of(image) -> int:
    """The number of an image (H, W, C)."""
    return int(image[0, 0, 0]) * 256 + int(image[0, 0, 1])
