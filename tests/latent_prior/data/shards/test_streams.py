"""A stream is the same for any number of processes, and begins anywhere as fast as at its start."""

import contextlib
import itertools
import re
import shutil
import threading
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest
import torch

from latent_prior.data.image_source import Blocks
from latent_prior.data.images import open_images, open_stream
from latent_prior.data.shards import order
from latent_prior.data.shards import rows as shard_rows
from latent_prior.data.sources import open_source
from latent_prior.data.training_images import training_batches
from tests.latent_prior.data.shards.conftest import number_of, sample, write_shards, write_tar

KINDS = ("tar", "parquet", "arrow")


def numbers(options, steps, start=0, processes=1, index=None) -> list[list[int]]:
    """The images of each step, of all processes or of one."""
    shares = []
    for number in range(processes) if index is None else [index]:
        device = torch.device("cpu")
        process = SimpleNamespace(process_index=number, num_processes=processes, device=device)
        stream = training_batches(start, open_stream(options, "train"), options, process)
        with contextlib.closing(stream):
            batches = itertools.islice(stream, steps * options.accumulation_steps)
            shares.append([
                [number_of(image.permute(1, 2, 0)) for image in batch["images"]]
                for batch in batches
            ])  # fmt: skip
    micro = [list(itertools.chain(*one)) for one in zip(*shares, strict=True)]
    each = options.accumulation_steps
    return [list(itertools.chain(*micro[n : n + each])) for n in range(0, len(micro), each)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_images_of_a_step_depend_on_nothing_but_seed_and_step(shards, of_run, kind):
    """On any number of processes and micro-batches, and resumed anywhere with any other."""
    options = of_run(shards(kind))
    whole = numbers(options, 70)  # of 31 steps an epoch
    for processes, accumulation_steps in ((2, 1), (1, 4), (4, 2)):
        parts = of_run(shards(kind), accumulation_steps=accumulation_steps)
        assert numbers(parts, 40, processes=processes) == whole[:40]
        assert numbers(parts, 9, start=27, processes=processes) == whole[27:36]
    assert numbers(options, 3, start=67) == whole[67:]
    assert numbers(of_run(shards(kind), seed=4), 40) != whole[:40]


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_brings_every_training_image_once_in_random_order(shards, of_run, kind):
    """Of four lanes, none begins an epoch more than a block of 17 images early or late."""
    options = of_run(shards(kind))
    table = open_images(options, "train")
    expected = {number_of(table.array(row)) for row in range(len(table))}
    size, seen = len(expected), list(itertools.chain(*numbers(options, 100)))
    for epoch in range(3):
        inside = Counter(seen[epoch * size + 68 : (epoch + 1) * size - 68])
        assert set(inside.values()) == {1}
        assert set(seen[max(0, epoch * size - 68) : (epoch + 1) * size + 68]) == expected
    places = [expected and sorted(expected).index(number) for number in seen[:size]]
    assert abs(np.corrcoef(places, range(size))[0, 1]) < 0.35  # 7 standard deviations
    held_out = {name: open_stream(options, name).first(1000) for name in ("validation", "test")}
    others = {number_of(image) for images in held_out.values() for image in images}
    assert expected | others == set(range(600))
    assert not expected & others


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_read_no_row_twice_in_an_epoch(of_run, tmp_path, monkeypatch, kind):
    """Counted where tar files are read and tables decompressed, over six epochs of both.

    A row was read once for every time that it was taken. On top come blocks that are in use or read
    ahead: two in each of four lanes, which may hold a row for two epochs.
    """
    monkeypatch.setattr(shard_rows, "_BLOCK_ROWS", 17)
    monkeypatch.setattr(order, "SHUFFLED", 1)
    for name, count in (("train", 400), ("validation", 1), ("test", 1)):  # nothing is held out
        write_shards(tmp_path / kind, kind, count, min(count, 6), name)
    reads = []  # appended to by many threads
    tar, table = shard_rows._TarRows.read, shard_rows.TableRows._block

    def read_tar(self, block, places):
        reads.append((int(self.starts[block]) + places).tolist())
        return tar(self, block, places)

    def read_table(self, number, block, names):
        found = table(self, number, block, names)
        reads.append(range(int(self.starts[block]), int(self.starts[block]) + len(found)))
        return found

    monkeypatch.setattr(shard_rows._TarRows, "read", read_tar)
    monkeypatch.setattr(shard_rows.TableRows, "_block", read_table)
    steps = numbers(of_run(tmp_path / kind, batch_size=8), 300, processes=2)
    taken, read = Counter(itertools.chain(*steps)), Counter(itertools.chain(*reads))
    assert taken.total() == 6 * 400
    assert all(taken[row] <= read[row] <= taken[row] + 2 for row in range(400))
    assert read.total() <= taken.total() + 4 * 2 * 17


def test_lanes_take_blocks_as_wholes_and_images_equally_often():
    """Blocks of 1 to 20 images over 50 epochs: no drift, and other lanes in every epoch."""
    sizes = np.random.default_rng(0).integers(0, 20, 300) + (np.arange(300) == 7)
    blocks = Blocks(sizes, lambda *_: [], lambda *_: "", str)
    made, total = order.BlockOrder(blocks, 32, 0), int(sizes.sum())
    assert (made.lanes, made.width) == (32, 1)
    taken, owners = np.zeros((300, 20), int), set()
    for lane in range(32):
        place, end = 0, 50 * total // 32
        while place < end:
            pool = made.pool(lane, place)
            assert pool.first == place
            assert made.pool(lane, place + len(pool.blocks) - 1).first == place
            for block in np.unique(pool.blocks).tolist():
                whole = np.sort(pool.places[pool.blocks == block])
                assert whole.tolist() == list(range(sizes[block]))
                owners.add((lane, block))
            taken[pool.blocks[: end - place], pool.places[: end - place]] += 1
            place += len(pool.blocks)
    taken = taken[np.arange(20) < sizes[:, None]]
    assert set(taken.tolist()) <= {49, 50, 51}
    assert (taken == 50).mean() > 0.8
    assert len(owners) > 5000


@pytest.mark.parametrize(
    ("sizes", "largest", "batch_size", "lanes"),
    [
        ([100] * 1000, 0, 256, 64),
        ([100] * 1000, 2**24, 256, 32),  # half a gigabyte in all lanes
        ([100] * 1000, 2**40, 256, 1),
        ([100] * 1000, 0, 96, 48),
        ([100] * 1000, 0, 7, 7),
        ([100, 0, 0, 100] * 4, 0, 256, 2),  # an epoch gives a lane four blocks
        ([100] * 1000, 0, 768, 48),  # rather than 64: three processes share none
    ],
)
def test_lanes_fit_the_batch_and_the_memory(sizes, largest, batch_size, lanes):
    blocks = Blocks(np.array(sizes), lambda *_: [], lambda *_: "", str, largest)
    assert order.BlockOrder(blocks, batch_size, 0).lanes == lanes


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_before_the_first_image_does_not_grow_with_the_step(
    of_run, tmp_path, monkeypatch, kind
):
    """Nor with the number of images: at most two blocks of each of the four lanes."""
    monkeypatch.setattr(order, "SHUFFLED", 1)
    monkeypatch.setattr(shard_rows, "_BLOCK_ROWS", 17)
    for count in (400, 1600):
        folder = write_shards(tmp_path / str(count), kind, count)
        for start in (0, 50, 90, 1003):
            stream, read = open_stream(of_run(folder), "train"), []

            def counted(block, places, stored=stream.blocks.read, read=read):
                read.append(len(places))
                return stored(block, places)

            stream.blocks.read = counted
            with contextlib.closing(stream.batches(start, [slice(0, 4)], 4, 0)) as batches:
                for task in next(batches):
                    task.result()
            assert 4 <= sum(read) <= 2 * 4 * 17


def test_damaged_images_are_named_or_replaced_by_their_neighbours(shards, of_run, tmp_path):
    folder = write_shards(tmp_path / "d", "tar", 40, 2)
    path = sorted(folder.iterdir())[1]
    data = path.read_bytes()
    where = data.index(b"\x89PNG", len(data) // 2)
    path.write_bytes(data[:where] + b"\0" * 30 + data[where + 30 :])
    with pytest.raises(
        ValueError,
        match=r"train-00001-of-00002\.tar: 0000\d\d\.png of .*cannot be read as an image",
    ):
        numbers(of_run(folder), 3)
    skipping = of_run(folder, on_corrupt="skip")
    found = numbers(skipping, 5)
    assert found == numbers(skipping, 5, processes=2)
    assert numbers(skipping, 2, start=3) == found[3:]
    counts = Counter(itertools.chain(*found))
    assert sorted(counts.values()) == [2] * 38 + [4]  # 80 images: one came for the damaged one too
    assert len(open_stream(skipping, "train").first(99)) == 39


@pytest.mark.parametrize("kind", KINDS)
def test_every_image_has_its_own_class(shards, of_run, tmp_path, kind):
    """That of another image where this one takes the place of an unreadable one."""
    folder, damaged = shutil.copytree(shards(kind), tmp_path / kind), 0
    for path in folder.glob("train-*"):
        data = path.read_bytes()
        where = data.index(b"IDAT", len(data) // 2)
        path.write_bytes(data[:where] + b"oops" + data[where + 4 :])
        damaged += 1
    assert damaged == 6
    options = of_run(folder, on_corrupt="skip")
    images = open_stream(options, "train", classes=True)
    assert images.class_names == ("0", "1", "2")
    process = SimpleNamespace(process_index=1, num_processes=2, device=torch.device("cpu"))
    with contextlib.closing(training_batches(5, images, options, process)) as stream:
        for batch in itertools.islice(stream, 31):
            found = [number_of(image.permute(1, 2, 0)) % 3 for image in batch["images"]]
            assert batch["labels"].tolist() == found
            assert batch["labels"].dtype == torch.int64
    assert open_stream(of_run(folder, label_column="none"), "train", classes=True).labels is None


def test_a_damaged_block_is_named_or_replaced(of_run, tmp_path):
    folder = write_shards(tmp_path / "d", "parquet", 120, 2)
    path = sorted(folder.iterdir())[1]
    data = bytearray(path.read_bytes())
    data[100:900] = b"\xff" * 800
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"train-00001-of-00002\.parquet cannot be read"):
        numbers(of_run(folder), 12)
    skipping = of_run(folder, on_corrupt="skip")
    assert numbers(skipping, 8) == numbers(skipping, 8, processes=2)


def test_a_stream_from_an_object_store(of_run, tmp_path):
    store = fsspec.filesystem("memory")
    for shard in range(3):
        members = {k: v for n in range(shard * 20, shard * 20 + 20) for k, v in sample(n).items()}
        path = write_tar(tmp_path / "x.tar", members)
        store.pipe(f"/bucket/set-train-{shard:04d}.tar", path.read_bytes())
    for place in ("", "/set-train-{0000..0002}.tar", "/*.tar"):
        options = of_run(f"memory://bucket{place}")
        images = open_stream(options, "train").first(99)
        assert len(images) == open_source(options).size("train")
        assert numbers(options, 3) == numbers(options, 3, processes=2)
    with pytest.raises(ValueError, match="memory://elsewhere"):
        open_source(of_run("memory://elsewhere"))
    with pytest.raises(ValueError, match="nothing://x cannot be listed"):
        open_source(of_run("nothing://x"))


class _Ranges(SimpleHTTPRequestHandler):
    """As Python's server, which sends whole files only, but with ranges."""

    def do_GET(self):
        path, asked = Path(self.translate_path(self.path)), self.headers.get("Range")
        if asked is None or not path.is_file():
            return super().do_GET()
        first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", asked).groups())
        data = path.read_bytes()
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Content-Length", len(data[first : last + 1]))
        self.end_headers()
        self.wfile.write(data[first : last + 1])

    def log_message(self, *_):
        pass


class _NoRanges(_Ranges):
    do_GET = SimpleHTTPRequestHandler.do_GET


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_from_a_web_server(shards, of_run, kind):
    pytest.importorskip("aiohttp")
    expected, size = (
        numbers(of_run(shards(kind)), 3),
        open_source(of_run(shards(kind))).size("train"),
    )
    for handler in (_Ranges, _NoRanges):
        serve = partial(handler, directory=shards(kind))
        with ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            for place in ("", f"/*.{kind}", f"/train-{{00000..00005}}-of-00006.{kind}"):
                options = of_run(f"http://127.0.0.1:{server.server_port}{place}")
                if handler is _Ranges:
                    assert open_source(options).size("train") == size
                else:
                    with pytest.raises(ValueError, match="its server sends whole files only"):
                        open_source(options)
            if handler is _Ranges:
                assert numbers(options, 3) == expected
            server.shutdown()
