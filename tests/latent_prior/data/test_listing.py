import os
import socket

import pytest

from latent_prior.data.images import open_images
from latent_prior.data.listing import files_below, images_among
from tests.latent_prior.samples import encoded, pixels, write


def names(root):
    return [str(path.relative_to(root)) for path in images_among(files_below(root))]


def save(root, *files):
    for number, file in enumerate(files):
        write(root / file, encoded(pixels(number)))
    return root


def test_linked_folders_elsewhere_are_followed(tmp_path):
    save(tmp_path / "elsewhere", "0.png", "deeper/1.png")
    here = save(tmp_path / "here", "2.png")
    (here / "a").symlink_to(tmp_path / "elsewhere")
    assert names(here) == ["2.png", "a/0.png", "a/deeper/1.png"]


@pytest.mark.parametrize("target", [".", "..", "../a", "../..", "/"])
def test_links_that_lead_back_end_and_count_nothing_twice(tmp_path, target, caplog):
    root = save(tmp_path / "images", "a/0.png", "a/1.png", "b/2.png")
    (root / "a" / "back").symlink_to(target)
    (root / "b" / "back").symlink_to(target if target != "../a" else "../b")
    assert names(root) == ["a/0.png", "a/1.png", "b/2.png"]
    assert "passed over 2 links to what is listed already, for example" in caplog.text


def test_circles_through_another_folder_end(tmp_path):
    root, other = save(tmp_path / "images", "0.png"), save(tmp_path / "other", "1.png")
    (root / "there").symlink_to(other)
    (other / "back").symlink_to(root)
    (other / "again").symlink_to(other)
    (root / "twice").symlink_to(other)
    assert names(root) == ["0.png", "there/1.png"]


def test_a_linked_file_counts_once_and_by_its_own_name(tmp_path):
    root = save(tmp_path / "images", "b/0.png")
    save(tmp_path, "pool/1.png")
    (root / "a.png").symlink_to("b/0.png")
    (root / "c.png").symlink_to(tmp_path / "pool" / "1.png")
    (root / "d.png").symlink_to(tmp_path / "pool" / "1.png")
    assert names(root) == ["b/0.png", "c.png"]


def broken(path):
    path.symlink_to("nowhere")


def itself(path):
    path.symlink_to(path.name)


def to(target):
    return lambda path: path.symlink_to(target)


def listening(path):
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(path))


KINDS = {
    "fifo": os.mkfifo, "socket": listening, "broken link": broken, "link to itself": itself,
    "/dev/zero": to("/dev/zero"), "/dev/full": to("/dev/full"), "/dev/urandom": to("/dev/urandom"),
    "/dev/stdin": to("/dev/stdin"), "/proc/self/mem": to("/proc/self/mem"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_regular_file_is_an_unreadable_image(tmp_path, kind, options, monkeypatch):
    monkeypatch.chdir(tmp_path)  # paths of sockets must be short
    save(tmp_path, "images/0.png")
    KINDS[kind](tmp_path.joinpath("images/x.png").relative_to(tmp_path))
    with pytest.raises(ValueError, match=r"x\.png cannot be read as an image .*skip"):
        open_images(options("images", image_size=8), "train")
    kept = open_images(options("images", image_size=8, on_corrupt="skip"), "train")
    assert (len(kept), kept.skipped) == (1, 1)
    assert len(kept.fingerprint) == 64


def test_a_file_larger_than_the_limit_is_refused_unread(tmp_path, options):
    save(tmp_path, "0.png")
    with (tmp_path / "x.png").open("wb") as file:
        file.truncate(2**40)  # takes no room on the disk
    with pytest.raises(ValueError, match=r"x\.png .*has 1,099,511,627,776 bytes; at most 536,"):
        open_images(options(tmp_path, image_size=8), "train")


def test_names_that_are_not_utf8_are_told(tmp_path):
    save(tmp_path, "0.png")
    write(tmp_path / os.fsdecode(b"caf\xe9.txt"), b"")
    assert names(tmp_path) == ["0.png"]
    write(tmp_path / os.fsdecode(b"caf\xe9.png"), b"")
    with pytest.raises(ValueError, match=r"caf\\udce9\.png of an image is not UTF-8: rename it"):
        names(tmp_path)


def test_a_folder_that_cannot_be_listed_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"x\.png cannot be listed"):
        files_below(save(tmp_path, "x.png") / "x.png")


@pytest.mark.parametrize("record", ["generation.json", "latents.json"])
def test_only_the_grid_of_our_own_generators_is_left_out(tmp_path, record):
    """In a data set and among candidates alike."""
    root = save(tmp_path, "000000.png", "grid.png", "grid_1.png", "inner/grid.png", "inner/1.png")
    every = ["000000.png", "grid.png", "grid_1.png", "inner/1.png", "inner/grid.png"]
    assert names(root) == every
    write(root / "labels.csv", b"file,label,class\n000000.png,0,a\n")
    write(root / record, b"{}")
    assert names(root) == [name for name in every if name != "grid.png"]
    write(root / "labels.csv", b"file,label,class\r\n000000.png,0,a\r\ngrid.png,0,a\r\n")
    assert names(root) == every


def test_our_samples_are_a_data_set_without_their_grid(tmp_path, options):
    save(tmp_path, "000000.png", "000001.png", "grid.png")
    write(tmp_path / "generation.json", b"{}")
    assert len(open_images(options(tmp_path, image_size=8), "train")) == 2
