"""Tiny real components, and entry scripts run in one or two processes, for several rooms."""

import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from latent_prior.cli import messages_shown, run

ROOT = Path(__file__).parents[1]
CLASSES = ("apple", "bee", "car")

# Flags of models that take milliseconds a step.
TINY_BACKBONE = {"model.width": 8, "model.multipliers": [1, 2], "model.blocks": [1, 1]}
TINY_VQVAE = {**TINY_BACKBONE, "model.codebook_size": 16, "model.code_dim": 4}
TINY_VAE = {**TINY_BACKBONE, "model.latent_channels": 4, "model.latent_dim": 6}
TINY_CRITIC = {"critic.width": 4, "critic.layers": 2}
FAMILY = {
    "vae": {"model.type": "vae", **TINY_VAE},
    "vqvae": {"model.type": "vqvae", **TINY_VQVAE},
    "vqvae2": {"model.type": "vqvae2", **TINY_VQVAE},
    "vaegan": {"model.type": "vaegan", **TINY_VAE, **TINY_CRITIC},
    "vqgan": {"model.type": "vqgan", **TINY_VQVAE, **TINY_CRITIC},
}
TINY_PRIOR = {"model.width": 16, "model.depth": 2, "model.heads": 2}

# Calls the `main` of several entry scripts one after the other within one process group. After a
# training every process writes down a digest of each part that must be the same in all of them.
SEVERAL_MAINS = """
import hashlib, importlib, json, sys
from pathlib import Path
import torch
from latent_prior.training import loop

def digest(state):
    found = hashlib.sha256()
    def add(name, value):
        if isinstance(value, dict):
            for key in value:
                add(f"{name}/{key}", value[key])
        elif isinstance(value, list):
            add(name, dict(enumerate(value)))
        else:
            value = value.detach().contiguous().numpy().tobytes() if torch.is_tensor(value) else repr(value).encode()
            found.update(name.encode() + value)
    add("", state)
    return found.hexdigest()

train = loop.train
def train_and_tell(accelerator, step, batches, state, options, **others):
    train(accelerator, step, batches, state, options, **others)
    counting = ("meter", "critic_health")  # each process counts its own images
    found = {name: digest(part.state_dict()) for name, part in state.parts.items() if name not in counting}
    Path(options.output_dir, f"state-{accelerator.process_index}.json").write_text(json.dumps(found))
loop.train = train_and_tell

for module, words in json.loads(sys.argv[1]):
    importlib.import_module(module).main(words)
"""

# Repeats a command, each time in a new process killed at a random moment, until it ends by itself;
# prints the number of kills. The children are forked before any thread has started, which saves
# each the seconds of imports.
KILLED_UNTIL_DONE = """
import importlib, json, os, random, signal, sys, time
import datasets, torchvision
module, words = json.loads(sys.argv[1])
main = importlib.import_module(module).main
random.seed(0)
kills, patience = 0, 0.5
while True:
    child = os.fork()
    if child == 0:
        try:
            main(words)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    deadline, ended, status = time.monotonic() + random.uniform(0, patience), 0, 0
    while not ended and time.monotonic() < deadline:
        time.sleep(0.002)
        ended, status = os.waitpid(child, os.WNOHANG)
    if not ended:
        os.kill(child, signal.SIGKILL)
        ended, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        break
    kills, patience = kills + 1, patience * 1.15
print(kills)
sys.exit(os.WEXITSTATUS(status))
"""


# Starting several interpreters or processes takes these longer than all the rest of their file.
LONG = {"one_and_two", "two_processes", "killed_until_done"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Start with the files that take longest, so that both workers end together.

    The tests of a file stay on one worker, and so do all that share the fixture `one_and_two`.
    """
    long: set[Path] = set()
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if fixtures & LONG or item.get_closest_marker("slow"):
            long.add(item.path)
        if config.pluginmanager.hasplugin("xdist"):
            group = "one_and_two" if "one_and_two" in fixtures else str(item.path.relative_to(ROOT))
            item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(autouse=True, scope="session")
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What evaluation keeps in the user's cache folder stays out of the real one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATENT_PRIOR_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def words(flags: dict[str, object]) -> list[str]:
    """Flags as the words of a command line; None leaves a flag out, True gives it no value."""
    line: list[str] = []
    for name, value in flags.items():
        if value is None:
            continue
        values = value if isinstance(value, list | tuple) else [] if value is True else [value]
        line += [f"--{name}", *map(str, values)]
    return line


def write_images(
    folder: Path, count: int, *, size: int = 16, mode: str = "RGB", seed: int = 0
) -> Path:
    """`count` smooth random images as PNG files, dealt out to a sub-folder for each class."""
    random = np.random.default_rng(seed)
    for number in range(count):
        path = folder / CLASSES[number % len(CLASSES)] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(random.integers(0, 256, (4, 4, 4), dtype=np.uint8))
        coarse.resize((size, size), Image.Resampling.BICUBIC).convert(mode).save(path)
    return folder


def caption_rows(folder: Path) -> dict[str, list[str]]:
    """One caption or two for every image of a folder, which name its file, in the files' order."""
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    return {path: [f"🐝 {path}", f"also {path}"][: 1 + n % 2] for n, path in enumerate(paths)}


def write_captions(folder: Path, change: Iterable[tuple[str, list[str]]] = ()) -> None:
    """A metadata file of `caption_rows`, backwards, some of which `change` replaces."""
    rows = {**caption_rows(folder), **dict(change)}
    lines = [json.dumps({"file_name": path, "text": text}) for path, text in rows.items()]
    (folder / "metadata.jsonl").write_text("\n".join(lines[::-1]))


def make_vqvae(seed: int = 0, **shape: object) -> torch.nn.Module:
    """An untrained VQ-VAE of 16 x 16 RGB images whose codes visibly change the image."""
    from latent_prior.stage1_autoencoders.vqvae import VQVAE, VQVAEConfig

    torch.manual_seed(seed)
    options = {name.removeprefix("model."): value for name, value in TINY_VQVAE.items()}
    settings = {"image_size": 16, "image_channels": 3, **options, **shape}
    model = VQVAE(VQVAEConfig(**settings)).eval()
    with torch.no_grad():
        # Spread the codebook over what the encoder says about noise, as training would.
        vectors = model.encoder(torch.rand(8, settings["image_channels"], 16, 16) * 2 - 1)
        rows = vectors.permute(0, 2, 3, 1).flatten(0, 2)
        centred = (rows - rows.mean(0)) * 3 + rows.mean(0)
        chosen = torch.randperm(len(rows))[: settings["codebook_size"]]
        model.quantizer.codebook.copy_(centred[chosen])
        list(model.decoder.parameters())[-2].mul_(2)
    return model


def make_autoencoder(name: str, seed: int = 0, **shape: object) -> torch.nn.Module:
    """An untrained family member for 16 x 16 RGB images, with filled codebooks.

    Its codes and latents visibly change the image.
    """
    from latent_prior.stage1_autoencoders import model_class

    torch.manual_seed(seed)
    options = {
        flag.removeprefix("model."): value
        for flag, value in FAMILY[name].items()
        if flag.startswith("model.") and flag != "model.type"
    }
    settings = {"image_size": 16, "image_channels": 3, **options, **shape}
    chosen = model_class(name)
    model = chosen(chosen.config_class(**settings))
    size, channels = settings["image_size"], settings["image_channels"]
    with torch.no_grad():
        model(torch.rand(8, channels, size, size) * 2 - 1)  # in training mode: fills the codebooks
        model.last_layer.mul_(3)
    return model.eval()


def make_prior(autoencoder: torch.nn.Module, classes: Sequence[str] = CLASSES) -> torch.nn.Module:
    """An untrained prior over an autoencoder's codes, with weights large enough for preferences."""
    import dataclasses

    from latent_prior.stage2_prior.prior import PriorConfig, TransformerPrior

    torch.manual_seed(1)
    spec = dataclasses.replace(autoencoder.code_spec, class_names=tuple(classes))
    shape = {name.removeprefix("model."): value for name, value in TINY_PRIOR.items()}
    prior = TransformerPrior(PriorConfig(code_spec=spec.to_dict(), **shape)).eval()
    with torch.no_grad():
        for parameter in prior.parameters():
            if parameter.ndim > 1:
                parameter *= 5
    return prior


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """40 RGB images of 16 x 16 in three classes."""
    return write_images(tmp_path_factory.mktemp("images") / "shapes", 40)


@pytest.fixture(scope="session")
def autoencoder_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("parts") / "autoencoder"
    make_vqvae().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory, autoencoder_folder) -> Path:
    from latent_prior.pipelines import Pipeline, Sampler
    from latent_prior.stage1_autoencoders import load_autoencoder

    autoencoder = load_autoencoder(autoencoder_folder)
    folder = tmp_path_factory.mktemp("pipeline") / "tiny"
    Pipeline(autoencoder, make_prior(autoencoder), Sampler(temperature=0.9)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def parts() -> dict[str, Any]:
    """Makers and shapes of tiny components."""
    return {
        "vqvae": make_vqvae,
        "autoencoder": make_autoencoder,
        "prior": make_prior,
        "images": write_images,
        "family_flags": FAMILY,
        "vqvae_flags": TINY_VQVAE,
        "prior_flags": TINY_PRIOR,
    }


Call = Callable[..., None]


@pytest.fixture(scope="session")
def call() -> Call:
    """`call(module, output_dir=..., ...)` runs an entry script in this process."""

    def run_main(module: ModuleType, **flags: object) -> None:
        with messages_shown():
            module.main(words({**_defaults(module), **flags}))

    return run_main


@pytest.fixture
def refused(capfd, monkeypatch) -> Callable[..., str]:
    """`refused(module, ...)`: the one line of a script that exits with 2 and leaves no files."""

    def run_main(module: ModuleType, **flags: object) -> str:
        program = f"{module.__name__.rpartition('.')[2]}.py"
        monkeypatch.setattr(sys, "argv", [program])
        parent = Path(str(flags["output_dir"])).parent
        before = _tree(parent)
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            run(lambda: module.main(words({**_defaults(module), **flags})))
        said = capfd.readouterr().err.splitlines()
        assert stopped.value.code == 2
        assert len(said) == 1, said
        assert said[0].startswith(f"{program}: error: ")
        assert _tree(parent) == before
        return said[0].removeprefix(f"{program}: error: ")

    return run_main


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory) -> Callable[..., Path]:
    """`encoder_folder(kind, seed)`: a tiny text encoder with random weights."""
    from tests.text_encoders import write_encoder

    return lambda *shape, **seed: write_encoder(tmp_path_factory.mktemp("encoder"), *shape, **seed)


@pytest.fixture(scope="session")
def random_vgg16(tmp_path_factory) -> Path:
    """Random weights of VGG-16's convolutions under the name of torchvision's file."""
    from torchvision import models

    torch.manual_seed(0)
    layers = models.vgg.make_layers(models.vgg.cfgs["D"])
    for layer in layers:
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight)
    folder = tmp_path_factory.mktemp("torch") / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    file = folder / Path(models.VGG16_Weights.IMAGENET1K_V1.url).name
    torch.save({f"features.{name}": value for name, value in layers.state_dict().items()}, file)
    return file


@pytest.fixture
def vgg16(monkeypatch, random_vgg16) -> Path:
    """The file where LPIPS looks for VGG-16, with random weights."""
    from latent_prior.losses import perceptual

    digest = hashlib.sha256(random_vgg16.read_bytes()).hexdigest()
    monkeypatch.setattr(perceptual, "VGG16_SHA256", digest)
    monkeypatch.setenv("TORCH_HOME", str(random_vgg16.parents[2]))
    return random_vgg16


@pytest.fixture
def lpips_package(monkeypatch, vgg16) -> Callable[..., torch.Tensor]:
    """The `lpips` package's own network with these weights."""
    import lpips
    from torchvision import models

    layers = models.vgg.make_layers(models.vgg.cfgs["D"])
    weights = torch.load(vgg16, weights_only=True)
    layers.load_state_dict({n.removeprefix("features."): value for n, value in weights.items()})
    with monkeypatch.context() as patch:
        patch.setattr(models, "vgg16", lambda **_: SimpleNamespace(features=layers))
        return lpips.LPIPS(net="vgg", verbose=False)


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory) -> Callable[[list[tuple[str, dict[str, object]]]], None]:
    """Run the mains of entry scripts, [(module name, flags)], in a group of two CPU processes."""
    script = tmp_path_factory.mktemp("driver") / "several_mains.py"
    script.write_text(SEVERAL_MAINS)

    def start(mains: list[tuple[str, dict[str, object]]]) -> None:
        work = json.dumps([(name, words({**flags, "cpu_threads": 1})) for name, flags in mains])
        launcher = [sys.executable, "-m", "torch.distributed.run"]
        launcher += ["--standalone", "--nproc_per_node", "2"]
        done = subprocess.run(
            [*launcher, str(script), work],
            env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
            cwd=script.parent,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, done.stderr[-4000:]

    return start


@pytest.fixture(scope="session")
def one_and_two(tmp_path_factory, call, two_processes, images) -> dict[str, Path]:
    """Folders "1" and "2" of what one and two processes make of the same input: see the module."""
    from tests.one_and_two import HALF, RESUMED, mains, write_shards
    from tests.text_encoders import write_encoder

    root = tmp_path_factory.mktemp("processes")
    shutil.copytree(images, root / "captioned")
    write_captions(root / "captioned")
    write_shards(root / "shards", images)
    write_encoder(root / "encoder")
    all_mains = mains(root)
    resumed = {
        processes: [
            (module, f"resumed_{name}", flags)
            for module, name, flags in all_mains
            if name == chosen
        ]
        for processes, chosen in RESUMED.items()
    }

    def one(several: Sequence[Any], folder: str, **others: object) -> None:
        for module, name, flags in several:
            own = {**flags, **others, "output_dir": root / folder / name}
            call(importlib.import_module(module), **own)

    def two(several: Sequence[Any], folder: str, **others: object) -> list[Any]:
        return [
            (m, {**flags, **others, "output_dir": root / folder / n}) for m, n, flags in several
        ]

    one(all_mains, "1")
    one(resumed["2"], "2", **HALF)
    two_processes([*two(all_mains, "2"), *two(resumed["2"], "2"), *two(resumed["1"], "1", **HALF)])
    one(resumed["1"], "1")
    return {"1": root / "1", "2": root / "2"}


@pytest.fixture(scope="session")
def killed_until_done(tmp_path_factory) -> Callable[..., int]:
    """`killed_until_done(module, ...)` kills a command until it ends; returns how often."""
    script = tmp_path_factory.mktemp("driver") / "killed_until_done.py"
    script.write_text(KILLED_UNTIL_DONE)

    def start(module: ModuleType, **flags: object) -> int:
        work = json.dumps([module.__name__, words({**_defaults(module), **flags})])
        done = subprocess.run(
            [sys.executable, str(script), work],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            cwd=script.parent,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return int(done.stdout.splitlines()[-1])

    return start


def _defaults(module: ModuleType) -> dict[str, object]:
    return (
        {} if module.__name__.endswith(("assemble", "export", "_tokenizer")) else {"cpu_threads": 1}
    )


def _tree(folder: Path) -> dict[str, int]:
    """Every file below a folder with its size, hidden ones too."""
    return {
        str(path.relative_to(folder)): path.stat().st_size if path.is_file() else -1
        for path in folder.rglob("*")
    }
