import json

import numpy as np
import pytest
from PIL import Image

from latent_prior.data.images import open_images
from latent_prior.data.labels import write_labels
from latent_prior.data.listing import files_below, images_among
from latent_prior.evaluation.options import Candidate, ScoreOptions
from latent_prior.evaluation.sets import (
    About,
    choose,
    open_candidate,
    open_reference,
)

NAMES = ("cat", "dog", "owl")


def options(**values):
    return ScoreOptions(**{"candidates": ["a=x"], "output_dir": "out", **values})


def save(folder, name, value=0, size=(6, 5), mode="RGB"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)
    return path


def test_every_format_in_every_sub_folder_counts(tmp_path):
    names = ["b.JPG", "c/d/a.webp", "c/x.bmp", "train/1.png", "z.tif"]
    for name in names:
        save(tmp_path, name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_bytes(b"")
    assert [
        str(path.relative_to(tmp_path)) for path in images_among(files_below(tmp_path))
    ] == sorted(names)


def test_pixels_arrive_unchanged_and_grey_becomes_rgb(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "0.png")
    Image.fromarray(pixels[:, :, 0]).save(tmp_path / "1.png")
    found = open_candidate(Candidate("a", str(tmp_path), None), options()).arrays(range(2))
    np.testing.assert_array_equal(found[0], pixels)
    np.testing.assert_array_equal(found[1], np.repeat(pixels[:, :, :1], 3, axis=2))


def test_image_flags_reach_the_candidates(tmp_path):
    save(tmp_path, "0.png", size=(20, 10))
    save(tmp_path, "1.png", size=(8, 8))
    scored = open_candidate(Candidate("a", str(tmp_path), None), options(image_size=8, channels=1))
    assert [image.shape for image in scored.arrays(range(2))] == [(8, 8, 1)] * 2


def test_captions_are_nothing_that_is_scored(tmp_path):
    """A metadata file of another kind, and captions that would be refused elsewhere."""
    for number in range(3):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    for name, content in (("metadata.csv", "name,text\n0.png,\n"), ("0.txt", "")):
        (tmp_path / name).write_text(content)
    images = open_images(options().image_options(str(tmp_path)), "train")
    assert len(images) == 3
    assert not images.has_captions


def test_sampler_settings_are_read(tmp_path):
    for name in ("0.png", "1.png"):
        save(tmp_path, name)
    (tmp_path / "generation.json").write_text(json.dumps({"guidance_scale": 1.5}))
    scored = open_candidate(Candidate("a", str(tmp_path), None), options())
    assert scored.protocol() == {
        "source": str(tmp_path), "split": None, "num_images": 2, "available": 2, "skipped": 0,
        "sampler": {"guidance_scale": 1.5},
    }  # fmt: skip
    assert scored.about is None
    (tmp_path / "about.json").write_text(json.dumps({"parameters": 7, "training": None}))
    scored = open_candidate(Candidate("a", str(tmp_path), None), options())
    assert scored.about == About(parameters=7)
    (tmp_path / "generation.json").write_text("{")
    with pytest.raises(ValueError, match=r"generation\.json is not JSON"):
        open_candidate(Candidate("a", str(tmp_path), None), options())


def test_an_unreadable_file_is_named_or_skipped(tmp_path):
    for name in ("0.png", "1.png", "3.png"):
        save(tmp_path, name)
    (tmp_path / "2.png").write_bytes(b"\x89PNG broken")
    candidate = Candidate("a", str(tmp_path), None)
    with pytest.raises(ValueError, match=r"2\.png cannot be read"):
        open_candidate(candidate, options()).arrays(range(4))
    scored = open_candidate(candidate, options(on_corrupt="skip"))
    assert len(scored.arrays(range(3))) == 3
    assert scored.protocol()["skipped"] == 1


@pytest.mark.parametrize(
    ("files", "message"),
    [(None, r"there is no folder .* write a=.*\[SPLIT\]"), ([], "holds no images"), (["0.png"], "holds 1 readable image;")],
)  # fmt: skip
def test_folders_that_cannot_be_scored(tmp_path, files, message):
    folder = tmp_path / "samples"
    if files is not None:
        folder.mkdir()
        for name in files:
            save(folder, name)
    with pytest.raises(ValueError, match=message) as caught:
        open_candidate(Candidate("a", str(folder), None), options())
    assert str(folder) in str(caught.value)


def refused(folder, **values):
    with pytest.raises(ValueError, match=r"^--candidates a: ") as caught:
        open_candidate(Candidate("a", str(folder), None), options(**values))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_sizes_are_compared_as_a_viewer_shows_them(tmp_path):
    """A camera held upright stores the same size and says that it was turned."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 4)).save(tmp_path / "0.jpg")
    Image.new("RGB", (4, 6)).save(tmp_path / "1.jpg", exif=exif)
    scored = open_candidate(Candidate("a", str(tmp_path), None), options())
    assert [image.shape for image in scored.arrays(range(2))] == [(4, 6, 3)] * 2
    Image.new("RGB", (6, 4)).save(tmp_path / "1.jpg", exif=exif)
    with pytest.raises(ValueError, match=r"0\.jpg has 6 x 4 pixels and .*1\.jpg 4 x 6, so"):
        open_candidate(Candidate("a", str(tmp_path), None), options())


def test_two_sizes_in_one_folder_are_refused_unless_one_is_asked_for(tmp_path):
    for name in ("0.png", "1.png", "3.png"):
        save(tmp_path, name)
    save(tmp_path, "2.png", size=(5, 6))
    message = refused(tmp_path)
    assert f"{tmp_path / '0.png'} has 6 x 5 pixels and {tmp_path / '2.png'} 5 x 6" in message
    assert "--image_size" in message
    assert f"a={tmp_path}[train]" in message
    for candidate in (Candidate("a", str(tmp_path), None), Candidate("a", str(tmp_path), "train")):
        sized = options(image_size=5 if candidate.split is None else None)
        assert len(open_candidate(candidate, sized)) == 4


def test_grey_and_coloured_images_of_one_size_are_one_set(tmp_path):
    save(tmp_path, "0.png")
    save(tmp_path, "1.jpg", mode="L")
    assert len(open_candidate(Candidate("a", str(tmp_path), None), options())) == 2


@pytest.mark.parametrize("other", ["x/0.png", "x/y/0.png"])
def test_a_set_within_a_set_is_refused(tmp_path, other):
    for name in ("0.png", "1.png", other):
        save(tmp_path, name)
    inner = (tmp_path / other).parent
    assert (
        f"{inner} is a folder of images within {tmp_path}, which has images of its own"
        in refused(tmp_path)
    )


def test_a_set_within_a_class_of_a_set_is_refused(tmp_path):
    for name in ("cat/0.png", "dog/0.png", "dog/more/0.png"):
        save(tmp_path, name)
    assert (
        f"{tmp_path / 'dog' / 'more'} is a folder of images within {tmp_path / 'dog'}"
        in refused(tmp_path)
    )


def test_the_folder_of_several_generated_sets_is_refused(tmp_path):
    for name in ("first/0.png", "second/0.png"):
        save(tmp_path, name)
    assert len(open_candidate(Candidate("a", str(tmp_path), None), options())) == 2  # two classes
    (tmp_path / "second" / "generation.json").write_text("{}")
    assert (
        f"{tmp_path / 'second'} is a folder of images within {tmp_path}, which is not"
        in refused(tmp_path)
    )


def test_an_overview_beside_generated_classes_is_no_second_set(tmp_path):
    for name in ("grid.png", "0/0.png", "1/0.png"):
        save(tmp_path, name)
    (tmp_path / "generation.json").write_text("{}")
    assert len(open_candidate(Candidate("a", str(tmp_path), None), options())) == 2


def test_archives_are_to_be_unpacked(tmp_path):
    archive = tmp_path / "samples.zip"
    archive.write_bytes(b"PK")
    assert f"{archive} is an archive: unpack it" in refused(archive)
    assert f"{tmp_path} holds no images; unpack its samples.zip" in refused(tmp_path)
    other = tmp_path / "notes.txt"
    other.write_bytes(b"")
    assert f"{other} is a file: name the folder" in refused(other)
    with pytest.raises(
        ValueError, match=r"--reference .*samples\.zip is a file; expected a folder"
    ):
        open_reference(options(reference=str(archive)))


def test_hidden_folders_hold_no_samples(tmp_path):
    for name in ("0.png", "1.png", ".ipynb_checkpoints/0-checkpoint.png"):
        save(tmp_path, name)
    assert len(open_candidate(Candidate("a", str(tmp_path), None), options())) == 2


def test_mistakes_in_a_data_set_name_the_flag_at_fault():
    with pytest.raises(ValueError, match=r"--reference mnist5k has no split 'tset'"):
        open_reference(options(reference_split="tset"))
    with pytest.raises(ValueError, match=r"--candidates real mnist5k has no split 'tset'"):
        open_candidate(Candidate("real", "mnist5k", "tset"), options())


def test_a_split_is_opened(tmp_path):
    scored = open_reference(options(num_images=5, seed=3))
    assert scored.arrays(range(5))[0].shape == (28, 28, 3)
    assert scored.protocol()["available"] == 1000
    assert len(scored) == 5
    small = scored.resized(16, 1)
    assert small.arrays(range(5))[0].shape == (16, 16, 1)
    np.testing.assert_array_equal(small.chosen, scored.chosen)


def test_the_choice_is_seeded_distinct_and_in_order():
    chosen = choose(100, 30, 1, "a")
    np.testing.assert_array_equal(chosen, choose(100, 30, 1, "b"))
    assert (np.diff(chosen) > 0).all()
    assert 0 <= chosen[0] <= chosen[-1] < 100
    assert not np.array_equal(chosen, choose(100, 30, 2, "a"))
    np.testing.assert_array_equal(choose(4, None, 0, "a"), np.arange(4))
    with pytest.raises(ValueError, match="a holds 20 readable images; --num_images asks for 30"):
        choose(20, 30, 0, "a")


def folder_of(path, count):
    path.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("L", (4, 4), number).save(path / f"{number:06d}.png")
    return path


def opened(folder, **values):
    return open_candidate(Candidate("a", str(folder), None), options(**values))


def test_classes_of_a_folder_meet_by_name_whatever_their_numbers(tmp_path):
    folder = folder_of(tmp_path, 4)
    files = [f"{number:06d}.png" for number in (3, 1, 0, 2)]  # rows in any order
    write_labels(folder / "labels.csv", files, [0, 1, 1, -1], ["owl", "cat"])
    np.testing.assert_array_equal(opened(folder).labels(NAMES), [0, 0, -1, 2])


def test_only_images_that_take_part_are_told(tmp_path):
    folder = folder_of(tmp_path, 30)
    labels = [number % 3 for number in range(30)]
    write_labels(
        folder / "labels.csv", [f"{n:06d}.png" for n in range(30)], labels, ["owl", "dog", "cat"]
    )
    scored = opened(folder, num_images=10, seed=2)
    np.testing.assert_array_equal(scored.labels(NAMES), 2 - scored.chosen % 3)


def test_skipped_files_do_not_shift_the_classes(tmp_path):
    folder = folder_of(tmp_path, 4)
    (folder / "000001.png").write_bytes(b"broken")
    write_labels(
        folder / "labels.csv", [f"{n:06d}.png" for n in range(4)], [0, 1, 2, 2], list(NAMES)
    )
    found = opened(folder, on_corrupt="skip").labels(NAMES)
    np.testing.assert_array_equal(found, [0, 2, 2])


def test_a_choice_of_images_without_classes_has_none(tmp_path):
    folder = folder_of(tmp_path, 4)
    chosen = opened(folder, num_images=2).chosen.tolist()
    rows = [f"{n:06d}.png,{'' if n in chosen else 'cat'}" for n in range(4)]
    (folder / "labels.csv").write_text("\n".join(["file,class", *rows]))
    assert opened(folder, num_images=2).labels() is None
    assert opened(folder).labels() is not None


def test_images_in_sub_folders_are_named_with_them(tmp_path):
    folder_of(tmp_path / "x", 1)
    folder_of(tmp_path / "y", 1)
    (tmp_path / "labels.csv").write_text("class,file\ndog,x/000000.png\nowl,y/000000.png\n")
    np.testing.assert_array_equal(opened(tmp_path).labels(NAMES), [1, 2])


def test_folders_without_classes_have_none(tmp_path):
    folder = folder_of(tmp_path, 2)
    assert opened(folder).labels(NAMES) is None
    write_labels(folder / "labels.csv", ["000000.png", "000001.png"], [-1, -1], [])
    assert opened(folder).labels(NAMES) is None


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file,label,class\n000000.png,0,cat\n000001.png,1,cow\n", r"--candidates a: .*has images of the class 'cow', .* it has: cat, dog, owl"),
        ("file,label,class\n000000.png,0,cat\n", r"has no row for the image 000001\.png"),
        ("000000.png,0,cat\n000001.png,0,cat\n", r"labels\.csv needs the columns file and class"),
        ("", r"labels\.csv needs the columns file and class"),
    ],
)  # fmt: skip
def test_mistakes_in_the_table_are_one_sentence(tmp_path, table, message):
    folder = folder_of(tmp_path, 2)
    (folder / "labels.csv").write_text(table)
    with pytest.raises(ValueError, match=message) as caught:
        opened(folder).labels(NAMES)
    assert "\n" not in str(caught.value)


ROWS = [("000000.png", "cät"), ("000001.png", "=1+1")]


@pytest.mark.parametrize(
    "data",
    [
        "".join(f"{file},{name}\n" for file, name in [("file", "class"), *ROWS]).encode("utf-8-sig"),
        "".join(f"{file};{name};x\r\n" for file, name in [("Filename", "Label"), *ROWS]).encode("latin-1"),
        "".join(f"{file}\t{name}\r" for file, name in [("image", "category"), *ROWS]).encode("utf-16"),
    ],
)  # fmt: skip
def test_tables_of_other_programs_are_read(tmp_path, data):
    folder = folder_of(tmp_path, 2)
    (folder / "labels.csv").write_bytes(data)
    np.testing.assert_array_equal(opened(folder).labels(("=1+1", "cät")), [1, 0])


@pytest.mark.parametrize(
    "data", [b"", b"a,b\n1,2\n", b"file,class\n" + b"000000.png," + b"x" * 200_000, b"file\n"]
)
def test_a_table_that_cannot_be_read_matters_once_classes_are_asked_for(tmp_path, data):
    folder = folder_of(tmp_path, 2)
    (folder / "labels.csv").write_bytes(data)
    assert opened(folder).labels() is None
    with pytest.raises(ValueError, match=r"--candidates a: .*labels\.csv"):
        opened(folder).labels(NAMES)


def test_many_known_classes_are_not_all_told(tmp_path):
    folder = folder_of(tmp_path, 2)
    (folder / "labels.csv").write_text("file,class\n000000.png,x\n000001.png,x\n")
    with pytest.raises(ValueError, match=r"it has: 0, 1, .*9, \.\.\.$"):
        opened(folder).labels(tuple(map(str, range(1000))))


def test_classes_of_a_split_meet_by_name_too(tmp_path):
    reference = open_reference(options(num_images=20))
    labels = reference.images.labels.numpy()[reference.chosen]
    names = tuple(str(9 - number) for number in range(10))
    np.testing.assert_array_equal(reference.labels(names), 9 - labels)
    with pytest.raises(
        ValueError, match=r"--reference: mnist5k has images of the class '9', .*lacks"
    ):
        reference.labels(names[1:])
    for name in ("0", "1"):
        Image.new("L", (4, 4)).save(tmp_path / f"{name}.png")
    unlabelled = open_candidate(Candidate("a", str(tmp_path), "train"), options())
    assert unlabelled.labels(names) is None
