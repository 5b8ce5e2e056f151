"""The distribution: which files it holds, and that a user's own modules do not get in its way."""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def packages_on_disk() -> dict[str, Path]:
    """Name -> folder of every package, through the links to the rooms."""
    found = {}
    for folder, children, files in os.walk(SOURCE / "latent_prior", followlinks=True):
        children[:] = [name for name in children if name != "__pycache__"]
        if "__init__.py" in files:
            found[".".join(Path(folder).relative_to(SOURCE).parts)] = Path(folder)
    return found


def test_every_package_on_disk_is_listed():
    """setuptools' `find` follows no links, so the list is written by hand."""
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == sorted(packages_on_disk())


def test_every_file_of_a_package_is_code_or_listed_data():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["*"]
    for folder in packages_on_disk().values():
        listed = {path for pattern in patterns for path in folder.glob(pattern)}
        files = [path for path in (*folder.glob("*"), *folder.glob("configs/*")) if path.is_file()]
        assert {path for path in files if path.suffix != ".py"} == listed, folder


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> Path:
    """A folder with an sdist of the working tree and the wheel that is built from it."""
    tree, dist = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    rooms = ("src", "stage1_autoencoders", "stage2_prior", "pipelines", "evaluation")
    skipped = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for room in rooms:
        shutil.copytree(ROOT / room, tree / room, symlinks=True, ignore=skipped)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    build(tree, f"build_sdist({str(dist)!r})")
    (archive,) = dist.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(tree / "unpacked", filter="data")
    (unpacked,) = (tree / "unpacked").iterdir()
    build(unpacked, f"build_wheel({str(dist)!r})")
    return dist


def build(folder: Path, call: str) -> None:
    code = f"import setuptools.build_meta as backend; backend.{call}"
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "is absent from the `packages`" not in done.stdout + done.stderr


def test_the_sdist_holds_real_files(distributions):
    (archive,) = distributions.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        members = {member.name.partition("/")[2]: member for member in file.getmembers()}
    assert not [name for name, member in members.items() if member.issym() or member.islnk()]
    for name, folder in packages_on_disk().items():
        for path in (*folder.glob("*.py"), *folder.glob("configs/*.yaml")):
            inside = Path("src", *name.split("."), path.relative_to(folder)).as_posix()
            assert members[inside].size == path.stat().st_size


def test_the_wheel_installs_one_top_level_package_with_presets_and_types(distributions):
    (wheel,) = distributions.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        (top_level,) = (name for name in names if name.endswith("top_level.txt"))
        assert file.read(top_level).decode().split() == ["latent_prior"]
    info = top_level.partition("/")[0]
    assert {name.partition("/")[0] for name in names} == {"latent_prior", info}
    for name, folder in packages_on_disk().items():
        for path in (*folder.glob("*.py"), *folder.glob("configs/*.yaml")):
            assert Path(*name.split("."), path.relative_to(folder)).as_posix() in names
    assert {"latent_prior/py.typed", "latent_prior/evaluation/gan_baseline/configs/mnist_sngan.yaml"} < names  # fmt: skip


# What may lie beside a user's script: packages, plain folders with a module in them, or modules.
MODULES = ("common", "pipelines", "evaluation", "training", "data", "losses", "stage1_autoencoders",
           "stage2_prior", "cli", "options", "files", "models", "machine", "seeds")  # fmt: skip
IMPORTS = """
import itertools, os, sys
from transformers import PreTrainedModel  # with torch, once for all cases
failed = []
for source, layout in itertools.product({sources!r}, {layouts!r}):
    child = os.fork()
    if child == 0:
        sys.path[:0] = [layout, source]
        import common, pipelines
        from latent_prior import Pipeline, PipelineOutput, Sampler, TransformerPrior, load_autoencoder, open_codes
        ours = [module for name, module in sys.modules.items() if name.startswith("latent_prior")]
        os._exit(not all(module.__file__.startswith(source) for module in ours))
    if os.waitpid(child, 0)[1]:
        failed.append((source, layout))
print(failed)
"""


def layouts(folder: Path) -> list[str]:
    """Projects of a user's own: their modules have our rooms' names."""
    for name in MODULES:
        for layout in ("packages", "folders"):
            (folder / layout / name).mkdir(parents=True)
            (folder / layout / name / "images.py").write_text("mine = True\n")
        (folder / "packages" / name / "__init__.py").touch()
        (folder / "modules").mkdir(exist_ok=True)
        (folder / "modules" / f"{name}.py").write_text("mine = True\n")
    return sorted(str(path) for path in folder.iterdir())


@pytest.mark.slow
def test_a_users_modules_of_the_same_names_do_not_matter(tmp_path, distributions):
    """Beside an editable installation, which is `src` on the path, and beside the wheel."""
    (wheel,) = distributions.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / "site")
    sources = [str(SOURCE), str(tmp_path / "site")]
    code = IMPORTS.format(sources=sources, layouts=layouts(tmp_path / "projects"))
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd="/", capture_output=True, text=True, timeout=900, check=False)
    assert done.stdout + done.stderr == "[]\n"


def test_the_wheel_finds_its_presets(tmp_path, distributions):
    (wheel,) = distributions.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path)
    words = [sys.executable, "-m", "latent_prior", "train-gan", "--config", "mnist_sngan"]
    words += ["--output_dir", "x", "--dry_run"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "output_dir: x" in done.stdout


def test_a_clone_without_links_says_what_to_do(tmp_path):
    """git writes the target of a link into a plain file where it may not make links."""
    (tmp_path / "src" / "latent_prior").mkdir(parents=True)
    (tmp_path / "src" / "latent_prior" / "pipelines").write_text("../../pipelines")
    shutil.copy(ROOT / "setup.py", tmp_path)
    words = [sys.executable, "setup.py"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "git clone -c core.symlinks=true" in done.stderr
