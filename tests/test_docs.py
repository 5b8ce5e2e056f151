"""What README, docs and presets name exists: files, commands with flags, make targets, links."""

import ast
import importlib
import importlib.metadata
import importlib.util
import itertools
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from latent_prior import cli, manifests
from latent_prior.data import listing
from latent_prior.data.image_files import FILE_LIMIT, LONGEST_SIDE
from latent_prior.options import MAX_PIXELS
from latent_prior.records import DEPTH, LINES_LIMIT, RECORD_LIMIT, YAML_LIMIT

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
PRESETS = sorted(ROOT.glob("*/configs/*.yaml")) + sorted(ROOT.glob("*/*/configs/*.yaml"))
ROOMS = ("stage1_autoencoders", "stage2_prior", "pipelines", "evaluation", "benchmarks")


def scripts_in(*folders: str) -> dict[str, Path]:
    """Entry scripts by their paths from the project's root."""
    return {
        str(path.relative_to(ROOT)): path
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
        if "answer_early(__name__" in path.read_text()
    }


SCRIPTS = scripts_in(*ROOMS)
COMMANDS = SCRIPTS | scripts_in("examples")
SOME_SCRIPT = re.compile(r"\b(?:\w+/)+\w+\.py\b")
# Of other programs that the pages name: Accelerate, torchrun, pip, git, curl, inference engines.
FOREIGN = {
    "--config_file", "--cpu", "--multi_gpu", "--num_processes", "--num_machines", "--machine_rank", "--main_process_ip",
    "--main_process_port", "--standalone", "--nproc_per_node", "--editable", "--dtype", "--sampling-defaults",
    "--nnodes", "--max_restarts", "--rdzv_backend", "--rdzv_endpoint", "--rdzv_id", "--rdzv_conf", "--time", "--nodes", "--file", "--tag", "--gpus", "--ipc",
    "--volume", "--json", "--retry", "--retry-connrefused", "--retry-delay", "--model-path", "--skip-tokenizer-init", "--gradient_accumulation_steps",
}  # fmt: skip


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def options_of(script: str) -> type:
    """The class that a script parses its command line into."""
    tree = ast.parse(COMMANDS[script].read_text())
    (name,) = {
        ast.unparse(call.args[1])
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "answer_early"
    }
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names}:
            return getattr(importlib.import_module(str(node.module)), name)
    # The options stand in the script, below which a benchmark imports the peer it measures.
    if script.startswith("benchmarks") and importlib.util.find_spec("diffusers") is None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "diffusers", Mock())
            return getattr(importlib.import_module(Path(script).stem), name)
    # Benchmarks and examples are no part of the package.
    room, _, stem = script.removesuffix(".py").replace("/", ".").partition(".")
    outside = room in ("benchmarks", "examples")
    module = Path(script).stem if outside else f"latent_prior.{room}.{stem}"
    return getattr(importlib.import_module(module), name)


def code_blocks(text: str) -> Iterator[str]:
    yield from re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(path: Path) -> Iterator[tuple[str, list[str]]]:
    """(script, its words) of every command in a page's code blocks or a preset's first line."""
    text = path.read_text()
    blocks = [text.partition("\n")[0].lstrip("# ")] if path.suffix == ".yaml" else code_blocks(text)
    for line in itertools.chain.from_iterable(
        block.replace("\\\n", " ").splitlines() for block in blocks
    ):
        words = shlex.split(line, comments=True)
        for place, word in enumerate(words):
            if word in COMMANDS:
                yield word, [*itertools.takewhile(lambda each: each != "&", words[place + 1 :])]


@pytest.mark.parametrize("path", [*PAGES, *PRESETS], ids=name_of)
def test_every_command_is_one_that_its_script_takes(path, capsys):
    """Flags, their values and presets; a page shows commands with all that is required."""
    found = list(commands(path))
    assert found or path in PAGES
    for script, words in found:
        if "..." in words:
            words = words[: words.index("...")]
            continue
        with pytest.raises(SystemExit) as stopped:
            cli.parse_config(options_of(script), [*words, "--dry_run"])
        assert stopped.value.code == 0, f"{script} {shlex.join(words)}: {capsys.readouterr().err}"


@pytest.fixture(scope="module")
def flags() -> set[str]:
    """Every flag of every script, those of all family members included."""
    known: set[str] = {"--help", "--config", "--dry_run"}
    for script in COMMANDS:
        options: Any = options_of(script)
        members = ("vae", "vqvae2", "vaegan", "vqgan") if script.startswith("stage1") else (None,)
        for member in members:
            chosen = {} if member is None else {"model.type": member}
            known |= {f"--{flag.name}" for flag in cli.flags(options, chosen)}
    return known


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_flag_that_is_named_exists(path, flags):
    named = set(re.findall(r"(?<![\w-])--[a-z][\w.-]*\w(?![\w.-]*>)", path.read_text()))
    groups = {flag.rpartition(".")[0] for flag in flags}
    assert named <= flags | FOREIGN | groups, named - flags - FOREIGN - groups


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_file_that_is_named_exists(path):
    """Paths from the project's root, from the page, or of a module within one of the rooms."""
    files = {each.relative_to(ROOT) for each in ROOT.rglob("*")}
    endings = tuple(f"/{each}" for each in files if each.parts[0] not in (".git", ".venv", "runs"))
    named = set(re.findall(r"(?<![\w/.*{-])[\w./-]*\w\.(?:py|md|yaml|toml)\b", path.read_text()))
    made_elsewhere = re.compile(
        r"^(FILE|config|autoencoder|prior|configs/DATA_MEMBER)\.yaml$|^(scores|sweep|likelihood|league|ablation)\.md$"
        r"|^card/|^convert_hf_to_gguf\.py$"
    )
    for name in sorted(named):
        if made_elsewhere.match(name) or name.startswith(("runs/", "path/")):
            continue
        beside = (path.parent / name).exists() or (ROOT / name).exists()
        assert beside or any(ending.endswith(f"/{name}") for ending in endings), name


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_link_leads_somewhere(path):
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        if target.startswith("http"):
            continue
        file, _, heading = target.partition("#")
        page = path if not file else path.parent / file
        assert page.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
            assert heading in {
                re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings
            }


def test_every_make_target_that_is_named_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in PAGES:
        named = set(re.findall(r"(?:`|^)make ([a-z-]+)", path.read_text(), re.MULTILINE))
        assert named <= targets, (path, named - targets)


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_lines_are_short_enough_to_read_beside_code(path):
    """100 columns, but for what cannot be broken: tables, pictures and links."""
    within = False
    for line in path.read_text().splitlines():
        within ^= line.startswith("```")
        if not within and not line.startswith(("|", "![", "[", "<!-- made by")):
            assert len(line) <= 100 or " " not in line.strip(), line


def figures_of(lines: list[str]) -> Iterator[tuple[int, int]]:
    """First line of every picture and table of figures, and the line after its last."""
    place = 0
    while place < len(lines):
        start = place
        while place < len(lines) and lines[place].startswith("|"):
            place += 1
        table = "\n".join(lines[start:place])
        place = max(place, start + 1)
        if "![" in table or "---:" in table or lines[start].startswith("!["):
            yield start, place


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_picture_and_table_of_figures_says_what_makes_it(path, capsys):
    """By a comment below it: a command, `by hand` with an explanation, or the page's commands."""
    lines = path.read_text().splitlines()
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for start, end in figures_of(lines):
        below = [line for line in lines[end:] if line.strip()][:1]
        made = re.fullmatch(r"<!-- made by: (.*) -->", "".join(below))
        assert made, f"{name_of(path)}:{start + 1}: no <!-- made by: COMMAND --> below"
        first, *words = shlex.split(made[1])
        if first == "make":
            assert words[0] in targets, made[1]
        elif words[:1] and (ROOT / words[0]).is_file() and words[0] not in COMMANDS:
            assert first == "python"  # a benchmark without options
        elif first == "python":
            with pytest.raises(SystemExit) as stopped:
                cli.parse_config(options_of(words[0]), [*words[1:], "--dry_run"])
            assert stopped.value.code == 0, f"{made[1]}: {capsys.readouterr().err}"
        elif made[1].startswith("the commands"):
            assert "```bash" in lines
        else:
            assert re.match(r"by hand: \w+", made[1]), made[1]


def test_the_readme_fits_one_screen_and_starts_with_commands():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 62
    assert text.index("make demo") < text.index("| Images |")


@pytest.mark.parametrize("path", PRESETS, ids=name_of)
def test_a_preset_is_named_for_its_data_and_its_member(path):
    """DATA_MEMBER.yaml; a VAE with a grid and masked or text priors have that for a member."""
    data, _, member = path.stem.partition("_")
    autoencoders = {"vae", "vae_grid", "vqvae", "vqvae2", "vaegan", "vqgan"}
    members = autoencoders | {"masked", "text", "text_encoder", "sngan", "r3gan"}
    assert data in {"mnist", "shapes", "cifar10", "folder64", "laptop64"}
    assert member in members


def test_every_promise_names_tests_that_exist():
    page = (ROOT / "docs/reliability.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", page))
    sources = (path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    written = {name for source in sources for name in re.findall(r"def (test_\w+)", source)}
    assert len(named) > 30
    assert named <= written, named - written
    promises = page[: page.index("## What is not promised")].splitlines()
    rows = [line for line in promises if line.startswith("| ") and "held by" not in line]
    assert all(re.search(r"`test_\w+`", row) for row in rows if not row.startswith("| ---"))


def test_the_limits_in_security_are_those_of_the_code():
    text = (ROOT / "SECURITY.md").read_text()
    limits = text[text.index("## Limits") : text.index("## Files")]
    mebibytes = [RECORD_LIMIT, manifests.MANIFEST_LIMIT, LINES_LIMIT, YAML_LIMIT, FILE_LIMIT]
    expected = [f"{limit >> 20:,} MiB" for limit in mebibytes]
    expected += [f"{MAX_PIXELS:,} (", f"{LONGEST_SIDE:,} along", f"{DEPTH} levels"]
    assert manifests.MANIFEST_LIMIT == listing.TABLE_LIMIT
    assert not [limit for limit in expected if f" {limit}" not in limits]
    requirements = importlib.metadata.requires("latent-prior")
    assert any(each.startswith("datasets>=4") for each in requirements)
