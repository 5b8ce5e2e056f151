"""Every code block of README and docs does what its page says, with few steps and few images.

`tests/snippets.py` says how a block is typed and how a page names what it needs.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import contest
import experiments
import numpy as np
import pytest
from PIL import Image

from latent_prior import Pipeline, calls
from latent_prior.data import sources
from latent_prior.data.embedded import shapes
from latent_prior.evaluation import class_accuracy
from latent_prior.stage2_prior import progress
from tests import snippets
from tests.conftest import write_images
from tests.snippets import Block, Typist
from tests.stage1_autoencoders.imported.conftest import unpack
from tests.test_docs import ROOT

PAGES = snippets.pages()
BLOCKS = [block for path in PAGES for block in snippets.blocks_of(path)]
NOT_RUN = [block for block in BLOCKS if block.reason]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture(scope="module")
def few_images(tmp_path_factory) -> Iterator[None]:
    """The embedded data sets without most of their rows, benchmarks without other processes."""
    digits = sources.digits

    def few_digits(split: str) -> tuple[np.ndarray, np.ndarray]:
        images, labels = digits(split)
        return images[:60], labels[:60]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "digits", few_digits)
        patch.setitem(shapes.SPLITS, "train", 200)
        patch.setitem(shapes.SPLITS, "test", 200)
        patch.setenv("LATENT_PRIOR_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(class_accuracy, "IMAGES_SEEN", 128)
        patch.setattr(class_accuracy, "FEWEST_EPOCHS", 1)
        patch.setattr(progress, "GRID_ROWS", 1)
        patch.setattr(contest, "PROBE", 0.25)
        patch.setattr(calls, "make_options", snippets.short_options)
        command = snippets.command_in_this_process
        patch.setattr(experiments.Experiment, "command", command)
        yield


def what_a_reader_has(folder: Path) -> None:
    """Images, and tokenizers of other projects, under the names that pages give them."""
    for name, count in (("FOLDER", 200), ("path/to/captioned", 100), ("path/to/images", 10)):
        write_images(folder / name, count, size=32)
    captioned = folder / "path/to/captioned"
    files = [path.relative_to(captioned) for path in sorted(captioned.rglob("*.png"))]
    rows = [
        f"{file},{('a red barn', 'two boats in the snow')[len(file.stem) % 2]}" for file in files
    ]
    (captioned / "metadata.csv").write_text("\n".join(["file_name,text", *rows]) + "\n")
    unpack("diffusers_kl", folder / "path/sd-turbo/vae")
    unpack("taming_vq_attention", folder / "path/vqgan_imagenet_f16")
    unpack("llamagen_vq_l2", folder / "path/llamagen")
    (folder / "path/llamagen/vq.pt").rename(folder / "path/vq_ds16_c2i.pt")


Reader = Callable[[Path], Path]


@pytest.fixture(scope="module")
def read(few_images, tmp_path_factory) -> Reader:
    """`read(page)`: the folder in which every block of the page was typed, once."""
    controls = tmp_path_factory.mktemp("typed") / "controls"
    folders: dict[Path, Path] = {}

    def read_page(page: Path) -> Path:
        if page in folders:
            return folders[page]
        before = snippets.page_before(page)
        files = read_page(before) if before else None
        folder = tmp_path_factory.mktemp(page.stem)
        if files:
            for each in files.iterdir():
                if each.is_dir() and not each.is_symlink():
                    shutil.copytree(each, folder / each.name)
        else:
            what_a_reader_has(folder)
        typist = Typist(folder, controls)
        for block in snippets.blocks_of(page):
            if block.reason is None:
                typist.type(block)
        folders[page] = folder
        return folder

    return read_page


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_of_the_page_runs(page, read):
    read(page)


@pytest.mark.parametrize("block", NOT_RUN, ids=lambda block: block.place)
def test_a_block_that_cannot_run_says_why(block: Block):
    """Flags of its commands are checked with all others, in `test_docs.py`."""
    assert block.reason in snippets.REASONS, f"{block.place}: {block.reason}"
    if block.language == "python":
        compile(block.text, block.page, "exec")
    pytest.skip(f"{block.place}: {snippets.REASONS[block.reason]}")


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place)
def test_every_block_says_what_it_is(block: Block):
    assert block.language in snippets.LANGUAGES, f"{block.place}: {block.language!r}"


@pytest.mark.parametrize("page", [p for p in PAGES if p.suffix == ".ipynb"], ids=name_of)
def test_a_notebook_is_stored_without_what_it_printed(page):
    cells = [c for c in json.loads(page.read_text())["cells"] if c["cell_type"] == "code"]
    assert not [cell for cell in cells if cell["outputs"] or cell["execution_count"]]


def test_a_block_that_fails_is_reported_with_its_place(few_images, tmp_path):
    (tmp_path / "clone").mkdir()
    typist = Typist(tmp_path / "clone", tmp_path / "controls")
    page, fine = "docs/page.md", "python pipelines/generate.py --help | grep -q num_images\n"
    typist.type(Block(page, 1, "bash", f"{fine}echo done > file\n", None))
    assert (tmp_path / "clone/file").read_text() == "done\n"
    for language, text, said in (
        ("bash", f"python pipelines/generate.py --pipeline nowhere --output_dir a\n{fine}", "nowhere"),
        ("bash", "false\ntrue\n", ""),
        ("python", "missing\n", "NameError"),
        ("json", "{", ""),
    ):  # fmt: skip
        with pytest.raises((AssertionError, ValueError)) as failed:
            typist.type(Block(page, 7, language, text, None))
        assert said in str(failed.value)
        assert language == "json" or f"{page}:7" in str(failed.value)


def test_a_folder_of_any_images_becomes_a_pipeline_and_a_grid(read):
    """The tutorial about images of one's own, typed with 300 of mixed sizes and modes."""
    folder = read(ROOT / "docs/tutorials/own_images.md")
    found = set()
    for path in (folder / "photos").rglob("*.*"):
        with Image.open(path) as image:
            found.add((image.mode, image.size))
    assert {mode for mode, _ in found} == {"RGB", "L", "RGBA", "P", "I;16", "CMYK"}
    assert len({size for _, size in found}) > 200
    pipe = Pipeline.from_pretrained(folder / "runs/mine/pipeline")
    assert pipe.class_names == ("daisy", "sunflower", "tulip")
    with Image.open(folder / "runs/mine/samples/grid.png") as grid:
        assert min(grid.size) > 2 * 64
        assert np.asarray(grid).std() > 1
    with Image.open(folder / "new.png") as new:
        assert new.size == (64, 64)
