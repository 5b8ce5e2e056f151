import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from filelock import FileLock
from PIL import Image

from latent_prior.data.images import ImageSet
from latent_prior.data.sources import ImageTable
from latent_prior.evaluation.features import reference_cache
from latent_prior.evaluation.features.extract import extract
from latent_prior.evaluation.features.networks import FeatureNetwork
from latent_prior.evaluation.features.reference_cache import content_digest, reference_statistics
from latent_prior.evaluation.features.resizing import resize_clean
from latent_prior.evaluation.measures import fid
from latent_prior.evaluation.options import Candidate, ScoreOptions
from latent_prior.evaluation.sets import ScoredSet, open_candidate
from latent_prior.options import ImageOptions

ROOT = Path(__file__).parents[3]
BATCH = 4


class Counting:
    """A feature network that counts the images it sees, and fails once it has seen `limit`."""

    def __init__(self, dimension=3, limit=None):
        self.weight = torch.randn(3 * 8 * 8, dimension, generator=torch.Generator().manual_seed(0))
        self.limit, self.seen = limit, 0

    def __call__(self, images):
        self.seen += len(images)
        if self.limit is not None and self.seen > self.limit:
            raise KeyboardInterrupt
        return images.flatten(1) @ self.weight


def network(forward, digest="weights"):
    device, dimension = torch.device("cpu"), forward.weight.shape[1]
    names = "tiny", "fd_custom", "FD-custom"
    return FeatureNetwork(
        *names, 8, dimension, "tiny", digest, forward, device, "clean 8", resize_clean
    )


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(reference_cache, "PART", 8)


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


def save(folder, count=27, seed=0):
    folder.mkdir()
    images = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:03d}.png")
    return folder


def opened(folder, **values):
    options = ScoreOptions(candidates=["a=x"], output_dir="x", features="inception", **values)
    return open_candidate(Candidate("a", str(folder), None), options)


@pytest.fixture
def scored(tmp_path):
    return opened(save(tmp_path / "images"))


def entries(cache):
    return sorted(path for path in (cache / "references").iterdir() if path.suffix != ".lock")


def same(one, other):
    np.testing.assert_array_equal(one.features, other.features)
    np.testing.assert_array_equal(one.statistics.mean, other.statistics.mean)
    np.testing.assert_array_equal(one.statistics.covariance, other.statistics.covariance)


def test_statistics_are_those_of_the_features_in_order(scored, accelerator):
    found = reference_statistics(network(Counting()), scored, BATCH, accelerator)
    features = extract(network(Counting()), scored, BATCH, accelerator)
    np.testing.assert_array_equal(found.features, features)
    np.testing.assert_allclose(found.statistics.mean, features.astype(np.float64).mean(0))
    np.testing.assert_allclose(
        found.statistics.covariance, np.cov(features.astype(np.float64), rowvar=False)
    )
    assert (found.num_images, found.source) == (27, scored.source)
    assert isinstance(found.features, np.memmap)
    assert not found.features.flags.writeable


def test_a_second_call_reads_the_cache(scored, accelerator, cache):
    first = reference_statistics(network(Counting()), scored, BATCH, accelerator)
    forward = Counting()
    second = reference_statistics(
        network(forward), scored, 5, accelerator
    )  # the batch size is no part of the name
    assert forward.seen == 0
    assert first.key == second.key
    same(first, second)
    assert [path.name for path in entries(cache)] == [first.key]
    assert sorted(path.name for path in entries(cache)[0].iterdir()) == [
        "features.npy", "reference.json", "statistics.npz",
    ]  # fmt: skip


def test_the_place_of_the_images_is_no_part_of_the_name(scored, tmp_path, accelerator):
    first = reference_statistics(network(Counting()), scored, BATCH, accelerator)
    forward = Counting()
    other = opened(save(tmp_path / "elsewhere"))
    found = reference_statistics(network(forward), other, BATCH, accelerator)
    assert (forward.seen, found.key, found.source) == (0, first.key, str(tmp_path / "elsewhere"))


def test_all_that_the_numbers_depend_on_is(scored, tmp_path, monkeypatch):
    folder, net = Path(scored.source), network(Counting())

    def name(scored, net=net):
        return json.dumps(reference_cache.describe(net, scored), sort_keys=True)

    names = [
        name(scored),
        name(opened(folder, num_images=20)),
        name(opened(folder, num_images=20, seed=1)),
        name(opened(folder, image_size=4)),
        name(opened(folder, channels=1)),
        name(scored, network(Counting(), "others")),
        name(scored, replace(net, resizer="clip 8")),
    ]
    monkeypatch.setattr(reference_cache, "versions", lambda packages: {"pillow": "0"})
    names.append(name(scored))
    monkeypatch.undo()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "003.png")
    names.append(name(opened(folder)))
    (folder / "003.png").rename(folder / "0001.png")  # the same images in another order
    names.append(name(opened(folder)))
    assert len(set(names)) == len(names)


def test_the_digest_is_that_of_the_encoded_images(scored):
    files = sorted(Path(scored.source).iterdir())
    digests = [hashlib.sha256(path.read_bytes()).digest() for path in files]
    assert content_digest(scored) == hashlib.sha256(b"".join(digests)).hexdigest()


def test_an_image_that_vanished_is_named(scored, accelerator):
    (Path(scored.source) / "005.png").unlink()
    with pytest.raises(ValueError, match=r"005\.png cannot be read"):
        reference_statistics(network(Counting()), scored, BATCH, accelerator)


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: flip(folder / "features.npy", -1),
        lambda folder: flip(folder / "statistics.npz", 300),
        lambda folder: (folder / "statistics.npz").write_bytes(b""),
        lambda folder: (folder / "features.npy").unlink(),
        lambda folder: (folder / "reference.json").write_text("{"),
        lambda folder: (folder / "reference.json").write_text("[]"),
        lambda folder: (folder / "reference.json").unlink(),
    ],
)
def test_a_damaged_entry_is_computed_anew(scored, accelerator, cache, damage):
    first = reference_statistics(network(Counting()), scored, BATCH, accelerator)
    expected = np.array(first.features)
    damage(entries(cache)[0])
    forward = Counting()
    again = reference_statistics(network(forward), scored, BATCH, accelerator)
    assert forward.seen == 27
    np.testing.assert_array_equal(again.features, expected)
    np.testing.assert_array_equal(again.statistics.covariance, first.statistics.covariance)
    assert len(entries(cache)) == 1


def stop_after(scored, accelerator, images):
    with pytest.raises(KeyboardInterrupt):
        reference_statistics(network(Counting(limit=images)), scored, BATCH, accelerator)


def test_a_stopped_run_goes_on_behind_its_last_part(scored, accelerator, cache):
    stop_after(scored, accelerator, 20)
    assert [path.suffix for path in entries(cache)] == [".partial"]
    forward = Counting()
    found = reference_statistics(network(forward), scored, BATCH, accelerator)
    assert forward.seen == 27 - 16  # two parts of 8 were there
    np.testing.assert_array_equal(
        found.features, extract(network(Counting()), scored, BATCH, accelerator)
    )
    assert [path.name for path in entries(cache)] == [found.key]


def test_damaged_parts_are_computed_anew(scored, accelerator, cache):
    stop_after(scored, accelerator, 24)
    flip(entries(cache)[0] / "features.npy", 128 + 8 * 3 * 4)  # the first number of the second part
    forward = Counting()
    found = reference_statistics(network(forward), scored, BATCH, accelerator)
    assert forward.seen == 27 - 16
    np.testing.assert_array_equal(
        found.features, extract(network(Counting()), scored, BATCH, accelerator)
    )


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY"])
def test_a_file_that_was_hardly_begun_is_begun_anew(scored, accelerator, cache, damage):
    stop_after(scored, accelerator, 20)
    (entries(cache)[0] / "features.npy").write_bytes(damage)
    forward = Counting()
    reference_statistics(network(forward), scored, BATCH, accelerator)
    assert forward.seen == 27


def test_a_run_stopped_before_the_statistics_needs_no_network(scored, accelerator, monkeypatch):
    def stop(features):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fid, "statistics", stop)
        with pytest.raises(KeyboardInterrupt):
            reference_statistics(network(Counting()), scored, BATCH, accelerator)
    forward = Counting()
    found = reference_statistics(network(forward), scored, BATCH, accelerator)
    assert forward.seen == 0
    same(found, replace(found, statistics=fid.statistics(found.features)))


def test_a_second_run_waits_for_the_first(scored, accelerator, caplog):
    caplog.set_level("INFO", "latent_prior")
    found = reference_statistics(network(Counting()), scored, BATCH, accelerator)
    held = threading.Event()

    entry = reference_cache.cache_folder() / "references" / found.key
    entry.rename(entry.with_suffix(".aside"))

    def other_run():
        with FileLock(f"{entry}.lock"):
            held.set()
            time.sleep(0.3)
            entry.with_suffix(".aside").rename(entry)

    thread = threading.Thread(target=other_run)
    thread.start()
    held.wait()
    forward = Counting()
    same(reference_statistics(network(forward), scored, BATCH, accelerator), found)
    thread.join()
    assert forward.seen == 0
    assert "waiting for it" in caplog.text


def test_a_read_only_cache_is_read(scored, accelerator, cache):
    found = reference_statistics(network(Counting()), scored, BATCH, accelerator)
    (cache / "references" / f"{found.key}.lock").unlink(missing_ok=True)
    (cache / "references" / f"{found.key}.lock").mkdir()  # even root cannot lock it
    forward = Counting()
    same(reference_statistics(network(forward), scored, BATCH, accelerator), found)
    assert forward.seen == 0
    (cache / "references" / found.key / "features.npy").unlink()
    with pytest.raises(ValueError, match=f"{cache}.*cannot be written.*LATENT_PRIOR_CACHE"):
        reference_statistics(network(Counting()), scored, BATCH, accelerator)


@pytest.mark.parametrize("name", [".", "references"])
def test_a_file_in_place_of_the_cache_is_named(scored, accelerator, cache, name):
    path = cache / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        path.rmdir()
    path.write_text("mine")
    with pytest.raises(ValueError, match=f"{cache}.*cannot be written"):
        reference_statistics(network(Counting()), scored, BATCH, accelerator)
    assert path.read_text() == "mine"


@pytest.mark.parametrize("place", ["entry", "partial"])
@pytest.mark.parametrize(
    "how", ["file", "dangling link", "link", "damaged behind a link", "fifo", "other entry"]
)
def test_whatever_lies_in_place_of_an_entry_the_scores_are_right(
    scored, accelerator, cache, tmp_path, place, how
):
    first = reference_statistics(network(Counting()), scored, BATCH, accelerator)
    expected = np.array(first.features)
    entry, moved = entries(cache)[0], tmp_path / "moved"
    if how == "other entry":
        other = opened(save(tmp_path / "others", seed=5))
        reference_statistics(network(Counting()), other, BATCH, accelerator)
        (entries(cache)[0] if entries(cache)[1] == entry else entries(cache)[1]).rename(moved)
        shutil.rmtree(entry)
    else:
        entry.rename(moved)
    left = entry if place == "entry" else entry.with_name(f".{entry.name}.partial")
    if how == "file":
        left.write_text("x")
    elif how == "fifo":
        left.mkdir()
        for name in ("features.npy", "reference.json"):
            os.mkfifo(left / name)
    elif how == "other entry":
        moved.rename(left)
    else:
        left.symlink_to(tmp_path / "nowhere" if how == "dangling link" else moved)
    if how.startswith("damaged"):
        flip(moved / "features.npy", -1)
    content = {path.name: path.read_bytes() for path in moved.glob("*")}
    again = reference_statistics(network(Counting()), scored, BATCH, accelerator)
    np.testing.assert_array_equal(again.features, expected)
    np.testing.assert_array_equal(again.statistics.covariance, first.statistics.covariance)
    assert {path.name: path.read_bytes() for path in moved.glob("*")} == content
    assert [path.name for path in entries(cache)] == [entry.name]


def test_marks_of_other_features_are_not_believed(scored, accelerator, cache):
    stop_after(scored, accelerator, 24)
    partial = entries(cache)[0]
    features = np.load(partial / "features.npy", mmap_mode="r+")
    features[:] = 0
    features.flush()
    for mark, content in zip(
        sorted((partial / "parts").iterdir()), (b"0" * 64, b"\xff"), strict=False
    ):
        mark.write_bytes(content)
    found = reference_statistics(network(Counting()), scored, BATCH, accelerator)
    np.testing.assert_array_equal(
        found.features, extract(network(Counting()), scored, BATCH, accelerator)
    )


def test_processes_that_do_not_share_the_cache_are_told(scored):
    elsewhere = SimpleNamespace(
        is_main_process=False, process_index=1, num_processes=2, wait_for_everyone=lambda: None
    )
    with pytest.raises(
        ValueError, match=r"do not share the cache folder .* set \$LATENT_PRIOR_CACHE"
    ):
        reference_statistics(network(Counting()), scored, BATCH, elsewhere)


def test_memory_does_not_grow_with_the_images(accelerator, monkeypatch):
    count, dimension = 512, 4096
    image = b"P5 8 8 255\n" + bytes(range(64))
    table = ImageTable(lambda row: image, str, count, None, (), str)
    images = ImageSet(table, ImageOptions(dataset="x"), 3, np.arange(count))
    scored = ScoredSet("reference", "x", None, images, np.arange(count))
    none = fid.Gaussian(np.zeros(dimension), np.zeros((1, 1)))
    monkeypatch.setattr(fid, "statistics", lambda features: none)
    net = network(Counting(dimension))
    tracemalloc.start()
    found = reference_statistics(net, scored, BATCH, accelerator)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.3 * found.features.nbytes


WORKER = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from accelerate import Accelerator
from latent_prior.evaluation.features import reference_cache
sys.path.append(sys.argv[3])
from test_reference_cache import Counting, network, opened

class Dying(Counting):
    def __call__(self, images):
        if self.limit is not None and self.seen + len(images) > self.limit:
            os.kill(os.getpid(), signal.SIGKILL)
        self.seen += len(images)
        return images.flatten(1) @ self.weight

reference_cache.PART = 8
accelerator = Accelerator(cpu=True)
forward = Dying(limit=int(sys.argv[2]) if accelerator.process_index == 0 and sys.argv[2] != "-" else None)
found = reference_cache.reference_statistics(network(forward), opened(sys.argv[1]), 4, accelerator)
# In one piece: torchrun's processes are unbuffered, and print would write word by word.
sys.stdout.write(f"saw {accelerator.process_index} {accelerator.num_processes} {forward.seen} {found.key}\\n")
"""


def work(folder, limit, cache, processes):
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    script = folder.parent / "worker.py"
    script.write_text(WORKER)
    environment = os.environ | {
        "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "LATENT_PRIOR_CACHE": str(cache),
    }  # fmt: skip
    return subprocess.run(
        [*launcher, str(script), str(folder), limit, str(Path(__file__).parent)],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_two_killed_processes_are_continued_to_the_bytes_of_one(tmp_path, cache):
    folder = save(tmp_path / "images")
    alone = work(folder, "-", tmp_path / "alone", processes=1)
    assert alone.returncode == 0, alone.stderr
    assert work(folder, "12", cache, processes=2).returncode != 0
    assert [path.suffix for path in entries(cache)] == [".partial"]
    done = work(folder, "-", cache, processes=2)
    assert done.returncode == 0, done.stderr
    saw = sorted(line.split() for line in done.stdout.splitlines() if line.startswith("saw"))
    assert [(line[1], line[2]) for line in saw] == [("0", "2"), ("1", "2")]
    assert int(saw[0][3]) < 16  # of the first process; its first part was there
    (one,), (two,) = entries(tmp_path / "alone"), entries(cache)
    assert one.name == two.name == saw[0][4]
    for name in ("features.npy", "statistics.npz", "reference.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
