from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image, ImageOps

from latent_prior.evaluation import class_accuracy
from latent_prior.evaluation.class_accuracy import (
    Classifier,
    augmented,
    convolutional_network,
    open_class_images,
    train_classifier,
)
from latent_prior.evaluation.options import Candidate, ScoreOptions
from latent_prior.evaluation.sets import open_candidate, open_reference


def options(**values):
    return ScoreOptions(
        **{"candidates": ["a=x"], "output_dir": "out", "class_accuracy": True, **values}
    )


def shapes(folder, count, seed, *, size=12, mode="L"):
    """Noisy pictures in a folder per class: a bright half on the left, on top, or none."""
    random = np.random.default_rng(seed)
    for number in range(count):
        for name in ("left", "none", "top"):
            image = random.integers(0, 60, (size, size), dtype=np.uint8)
            if name == "left":
                image[:, : size // 2] += 150
            if name == "top":
                image[: size // 2] += 150
            path = folder / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).convert(mode).save(path)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes")
    shapes(root / "train", 20, 0)
    shapes(root / "test", 10, 1)
    return root


@pytest.fixture(scope="module")
def trained(data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(class_accuracy, "IMAGES_SEEN", 3200)
        chosen = options(reference=str(data))
        images = open_class_images(chosen, [open_reference(chosen)])
        return train_classifier(images, 0, Accelerator(cpu=True))


def test_it_learns_what_it_is_shown_and_judges_what_it_has_not_seen(trained, data):
    accelerator, chosen = Accelerator(cpu=True), options(reference=str(data))
    reference = open_reference(chosen)
    assert trained.accuracy(reference, 7, accelerator) == 1
    assert trained.class_names == ("left", "none", "top")
    found = trained.protocol("train", 1.0)
    assert found["num_images"] == 58  # of 60, of which two are held out for validation
    assert found["image_size"] == 12
    assert found["channels"] == 1


def test_accuracy_is_the_share_that_is_taken_for_the_class_asked_for(trained, tmp_path):
    """A folder whose table asks for a wrong class for 4 of 20 images, and for none for 10 more."""
    shapes(tmp_path, 10, 5)
    rows = ["file,class"]
    for number in range(10):
        wrong = "top" if number < 4 else "left"
        rows += [f"left/{number}.png,{wrong}", f"none/{number}.png,none", f"top/{number}.png,"]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    scored = open_candidate(Candidate("a", str(tmp_path), None), options())
    for batch_size in (1, 7, 64):
        assert trained.accuracy(scored, batch_size, Accelerator(cpu=True)) == pytest.approx(16 / 20)
    assert trained.note(scored) is None
    assert replace(trained, trained_classes=[0]).note(scored).startswith("14 of 30 images are of")
    (tmp_path / "labels.csv").unlink()
    scored = open_candidate(Candidate("a", str(tmp_path), None), options())
    assert trained.accuracy(scored, 64, Accelerator(cpu=True)) is None


def test_images_of_other_sizes_and_in_colour_are_brought_to_the_reference(trained, tmp_path):
    for folder, values in (("large", {"size": 40}), ("colour", {"mode": "RGB"})):
        shapes(tmp_path / folder / "test", 5, 3, **values)
        scored = open_candidate(Candidate("a", str(tmp_path / folder), "test"), options())
        assert trained.accuracy(scored, 4, Accelerator(cpu=True)) == 1


def test_resizing_is_the_evaluators_own():
    cleanfid = pytest.importorskip("cleanfid.resize")
    image = np.random.default_rng(0).integers(0, 256, (20, 31, 3), dtype=np.uint8)
    expected = cleanfid.make_resizer("PIL", False, "bicubic", (12, 12))(image)

    def resized(image, size):
        """What a classifier of this size sees of an image."""
        seen = []

        def network(batch):
            seen.append(batch[0].permute(1, 2, 0))
            return torch.zeros(1, 2)

        classifier = Classifier(network, ("a", "b"), size, image.shape[2], {})
        classifier.classify([image], torch.device("cpu"))
        return seen[0].numpy()

    square = image[:20, :20]
    for given, wanted in (
        (image, expected),
        (image[..., :1], expected[..., :1]),
        (square, square.astype(np.float32)),
    ):
        np.testing.assert_array_equal(resized(given, len(wanted)), wanted / 127.5 - 1)


def test_training_is_seeded_and_leaves_the_global_generator_alone(data, monkeypatch):
    monkeypatch.setattr(class_accuracy, "IMAGES_SEEN", 640)
    monkeypatch.setattr(class_accuracy, "FEWEST_EPOCHS", 1)
    chosen = options(reference=str(data))
    images = open_class_images(chosen, [open_reference(chosen)])
    before = torch.get_rng_state()
    runs = []
    for seed, used in ((0, images), (0, replace(images, cached=None)), (1, images)):
        torch.rand(3 + seed)  # whatever happened before must not matter
        state = torch.get_rng_state()
        network = train_classifier(used, seed, Accelerator(cpu=True)).network
        assert torch.equal(torch.get_rng_state(), state)
        runs.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    torch.set_rng_state(before)
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize(
    ("channels", "size"), [(1, 1), (1, 8), (1, 28), (3, 32), (3, 64), (3, 256)]
)
def test_networks_take_every_size_and_do_about_the_same_work(channels, size):
    network = convolutional_network(channels, size, 7).eval()
    assert network(torch.zeros(2, channels, size, size)).shape == (2, 7)
    grid = network[0](torch.zeros(1, channels, size, size)).shape[-1]
    assert grid <= 31
    assert sum(p.numel() for p in network.parameters()) < 1_000_000


def test_augmented_images_stay_near_and_in_range():
    images = torch.full((64, 1, 28, 28), -1.0)
    images[:, :, 10:18, 12:16] = 1
    found = augmented(images, torch.Generator().manual_seed(0))
    assert found.shape == images.shape
    assert found.min() == -1  # the edge is repeated: no grey frame comes into view
    assert found.max() <= 1
    places = torch.arange(28.0)
    ink = (found + 1).clamp_min(0)[:, 0]
    total = ink.sum((1, 2))
    centre = torch.stack(
        [(ink.sum(2) * places).sum(1) / total, (ink.sum(1) * places).sum(1) / total]
    )
    shift = (centre - 13.5).abs()
    assert 1 < shift.max() < 28 / 14 * 1.35  # of the side, and what turning off the centre adds
    assert len(torch.unique(total.round(decimals=3))) > 60  # every image its own


def test_a_data_set_without_classes_is_refused(data, tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / split / "0.png")
        Image.new("L", (8, 8)).save(tmp_path / split / "1.png")
    bare = options(reference=str(tmp_path))
    with pytest.raises(ValueError, match=r"--train_split: split train of .* has no class labels"):
        open_class_images(bare, [open_reference(bare)])
    labelled = options(reference=str(data))
    with pytest.raises(
        ValueError, match=r"--class_accuracy: split test of .* has no class labels to measure"
    ):
        open_class_images(labelled, [open_reference(bare)])
    missing = options(train_split="tarin")
    with pytest.raises(ValueError, match=r"--train_split: mnist5k has no split 'tarin'; it has"):
        open_class_images(missing, [open_reference(missing)])


def test_training_images_of_several_sizes_ask_for_one(data, tmp_path):
    shapes(tmp_path / "train", 2, 0)
    shapes(tmp_path / "test", 2, 0)
    path = tmp_path / "train" / "top" / "0.png"
    ImageOps.pad(Image.open(path), (20, 20)).save(path)
    mixed = options(reference=str(tmp_path))
    with pytest.raises(ValueError, match="set --image_size to bring them to one"):
        open_class_images(mixed, [open_reference(mixed)])
    sized = options(reference=str(tmp_path), image_size=10)
    images = open_class_images(sized, [open_reference(sized)])
    assert images.read([0, 1]).shape == (2, 1, 10, 10)


def test_digits_are_told_apart_after_a_short_training(monkeypatch):
    """The whole training reaches 99 % on the 1,000 held-out digits; a sixteenth comes near."""
    monkeypatch.setattr(class_accuracy, "IMAGES_SEEN", 4800)
    monkeypatch.setattr(class_accuracy, "FEWEST_EPOCHS", 1)
    chosen = options()
    reference, accelerator = open_reference(chosen), Accelerator(cpu=True)
    images = open_class_images(chosen, [reference])
    assert train_classifier(images, 0, accelerator).accuracy(reference, 64, accelerator) > 0.9
