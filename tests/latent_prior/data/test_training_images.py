"""Which images a step sees, and how they are cut and mirrored, depends on seed and step only."""

import contextlib
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from latent_prior.data.images import open_images, open_stream
from latent_prior.data.training_images import (
    augment,
    first_images,
    open_training_images,
    training_batches,
)
from latent_prior.machine import thread_pool
from latent_prior.stage1_autoencoders import train
from latent_prior.stage1_autoencoders.options import TrainOptions


def process_of(index: int, count: int) -> SimpleNamespace:
    device = torch.device("cpu")
    return SimpleNamespace(process_index=index, num_processes=count, device=device)


@pytest.fixture
def of_run(images):
    """`of_run(...)`: options of a run over the 40 images."""

    def make(**others) -> TrainOptions:
        settings = {
            "dataset": str(images),
            "image_size": 16,
            "channels": 3,
            "batch_size": 8,
            "evaluate_every": 5,
            "crop_padding": 2,
            "random_crop": True,
            "random_flip": True,
        }
        return TrainOptions(output_dir="x", **{**settings, **others})

    return make


@pytest.fixture(params=["indexed", "streamed"])
def batches_of(request, of_run):
    """`batches_of(...)`: the first steps' batches, joined from all processes' micro-batches."""

    def collect(count=7, start=0, processes=1, **others) -> list[Tensor]:
        options = of_run(streaming=request.param == "streamed", **others)
        shares = []
        for index in range(processes):
            process = process_of(index, processes)
            images, options = open_training_images(options)
            stream = training_batches(start, images, options, process)
            shares.append(itertools.islice(stream, count * options.accumulation_steps))
        # Micro-batch by micro-batch, and within it process by process.
        micro = [torch.cat([b["images"] for b in one]) for one in zip(*shares, strict=True)]
        return list(torch.cat(micro).split(options.batch_size))

    return collect


def same(one: list[Tensor], two: list[Tensor]) -> bool:
    return len(one) == len(two) and all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_the_batch_of_a_step_depends_on_neither_processes_nor_micro_batches(
    batches_of, processes, accumulation_steps
):
    whole = batches_of()
    assert {batch.shape for batch in whole} == {(8, 3, 16, 16)}
    assert {batch.dtype for batch in whole} == {torch.uint8}
    found = batches_of(processes=processes, accumulation_steps=accumulation_steps)
    assert same(found, whole)


def test_batches_are_pure_functions_of_step_and_seed(batches_of):
    whole = batches_of()
    for start in (1, 6):
        assert same(batches_of(start=start, count=7 - start), whole[start:])
    assert not same(batches_of(seed=1), whole)
    assert len({batch.numpy().tobytes() for batch in whole}) == 7


def test_every_image_is_seen_once_an_epoch(batches_of, of_run):
    """Five batches of eight; the second epoch brings the same images in another order."""
    options = of_run()
    known = open_images(options, "train").crops(range(40)).flatten(1)
    seen = torch.cat(batches_of(10, random_crop=False, random_flip=False)).flatten(1)
    which = [int((known == image).all(1).nonzero()) for image in seen]
    for epoch in (which[:40], which[40:]):
        assert sorted(epoch) == list(range(40))
        assert epoch != list(range(40))
    assert which[:40] != which[40:]


def test_augmenting_a_share_is_the_share_of_the_augmented_batch(of_run):
    options = of_run()
    whole = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    together = augment(whole, options, 3, slice(0, 8))
    for begin in (0, 2, 6):
        place = slice(begin, begin + 2)
        assert torch.equal(augment(whole[place], options, 3, place), together[place])
    assert not torch.equal(augment(whole, options, 4, slice(0, 8)), together)


def test_half_of_the_images_are_mirrored(of_run):
    options = of_run(random_crop=False, batch_size=1000)
    whole = torch.arange(16, dtype=torch.uint8).expand(1000, 3, 16, 16)
    found = augment(whole, options, 0, slice(0, 1000))
    mirrored = (found == whole.flip(-1)).flatten(1).all(1)
    assert ((found == whole).flatten(1).all(1) ^ mirrored).all()
    assert 400 < mirrored.sum() < 600
    untouched = augment(whole, of_run(random_crop=False, random_flip=False), 0, slice(0, 8))
    assert torch.equal(untouched, whole)


@pytest.mark.parametrize(("flags", "places"), [({"crop_padding": 2}, 5), ({"crop_padding": 0, "resize": 19}, 4)])  # fmt: skip
def test_windows_lie_anywhere_the_options_allow(of_run, flags, places):
    """Every corner occurs, and no other; without `random_crop` it is the centre."""
    options = of_run(**flags, random_flip=False, batch_size=400)
    side, padding = options.resize or 16, options.crop_padding
    rows = torch.arange(side, dtype=torch.uint8)[:, None].expand(side, side)
    whole = torch.stack([rows, rows.T, rows]).expand(400, 3, side, side)
    found = augment(whole, options, 0, slice(0, 400))
    assert found.shape == (400, 3, 16, 16)
    # Of a pixel that is no edge: its row and column.
    corners = found[:, 0, 8, 0].int() - 8, found[:, 1, 0, 8].int() - 8
    for corner in corners:
        assert set((corner + padding).tolist()) == set(range(places))
    fixed = augment(whole, of_run(**flags, random_crop=False, random_flip=False), 0, slice(0, 400))
    centre = (side - 16) // 2
    assert (fixed[:, 0, 0, 0] == centre).all()


def test_size_channels_and_epoch_are_those_of_the_images(of_run):
    images, options = open_training_images(
        of_run(image_size=None, channels=None, evaluate_every=None, batch_size=12)
    )
    assert len(images) == 40
    assert (options.image_size, options.channels) == (16, 3)
    assert options.evaluate_every == 4  # 40 images in batches of 12
    _, smaller = open_training_images(of_run(image_size=8, channels=None))
    assert (smaller.image_size, smaller.channels, smaller.evaluate_every) == (8, 3, 5)
    stream, options = open_training_images(of_run(streaming=True, evaluate_every=None))
    assert len(stream) == 40
    assert options.evaluate_every == 5


def test_decoding_ahead_counts_as_reading(of_run):
    before = thread_pool().seconds_ahead
    images, options = open_training_images(of_run(streaming=True))
    with contextlib.closing(training_batches(0, images, options, process_of(0, 1))) as stream:
        next(stream)
    assert thread_pool().seconds_ahead > before


def test_the_first_images_are_shown_as_they_are(of_run):
    options = of_run(resize=20)
    images = open_images(options, "train")
    shown = first_images(images, options, 5)
    assert torch.equal(shown, images.read(range(5))[..., 2:18, 2:18])
    streamed = of_run(resize=20, streaming=True)
    assert torch.equal(first_images(open_stream(streamed, "train"), streamed, 5), shown)
    assert len(first_images(images, options, 100)) == 40


def test_a_stream_without_a_readable_image_ends(tmp_path):
    """It would otherwise be read from the start for ever."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(b"no image")
    options = TrainOptions(
        output_dir="x", dataset=str(tmp_path / "images"), image_size=8, channels=1, evaluate_every=1, batch_size=2,
        streaming=True, on_corrupt="skip",
    )  # fmt: skip
    with pytest.raises(ValueError, match="not one image can be read"):
        next(training_batches(0, open_stream(options, "train"), options, process_of(0, 1)))


def test_a_streamed_run_resumes_bit_for_bit(call, images, parts, tmp_path):
    flags = {
        **parts["vqvae_flags"], "dataset": images, "image_size": 16, "channels": 3, "batch_size": 8, "max_steps": 8,
        "streaming": True, "random_flip": True, "evaluate_every": 4, "checkpoint_every": 3,
    }  # fmt: skip
    call(train, output_dir=tmp_path / "whole", **flags)
    call(train, output_dir=tmp_path / "parts", **{**flags, "max_steps": 4})
    call(train, output_dir=tmp_path / "parts", **flags)
    weights = [(tmp_path / n / "model/model.safetensors").read_bytes() for n in ("whole", "parts")]
    assert weights[0] == weights[1]
    first = np.asarray(Image.open(sorted(images.rglob("*.png"))[0]))
    grid = np.asarray(Image.open(tmp_path / "whole/samples/step-000000008.png"))
    assert np.array_equal(grid[1:17, 1:17], first)
