"""What a pipeline folder's README.md says, and whose words stay."""

import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from latent_prior import folders
from latent_prior.cli import dump_config, parse_config
from latent_prior.evaluation.options import ScoreOptions
from latent_prior.manifests import MANIFEST, check_folder
from latent_prior.pipelines import Pipeline, Sampler, assemble, card, describe, generate
from latent_prior.pipelines.card import write_card
from latent_prior.pipelines.options import AssembleOptions, GenerateOptions
from latent_prior.records import SEAL
from latent_prior.stage1_autoencoders.options import EncodeOptions
from latent_prior.stage1_autoencoders.options import TrainOptions as AutoencoderOptions
from latent_prior.stage2_prior.options import TrainOptions as PriorTrainOptions

TRAINING = {"steps": 1200, "images_seen": 76_800, "seconds": 61.5, "cpu_seconds": 118.2, "device": "cpu", "num_processes": 1}  # fmt: skip
ROOT = Path(__file__).parents[2]
RECORDS = ("config.json", "encode.json", "pipeline.json", "generation.json", "scores.json")
OPTIONS = {
    "stage1_autoencoders/train.py": AutoencoderOptions,
    "stage1_autoencoders/encode.py": EncodeOptions,
    "stage2_prior/train.py": PriorTrainOptions,
    "pipelines/assemble.py": AssembleOptions,
    "pipelines/generate.py": GenerateOptions,
    "evaluation/score.py": ScoreOptions,
}


@pytest.fixture
def command(monkeypatch, tmp_path):
    """`command(script, **flags)`: a script's command line with local paths, run in this process."""

    def of(script, **flags):
        for name in ("LOCAL_RANK", "ACCELERATE_MIXED_PRECISION"):
            monkeypatch.delenv(name, raising=False)
        words = [f"--{name}={value}" for name, value in flags.items()]
        monkeypatch.setattr(sys, "argv", [str(ROOT / script), *words])
        return shlex.join(["python", script, *words])

    return of


@pytest.fixture
def runs(parts, tmp_path, command):
    """The run folders that two trainings and an encoding leave behind."""
    autoencoder = parts["vqvae"]()
    prior = parts["prior"](autoencoder)
    codes = tmp_path / "codes"
    codes.mkdir()
    encoding = dump_config(EncodeOptions(autoencoder="x", output_dir=str(codes), flip=True))
    encoding["command"] = command(
        "stage1_autoencoders/encode.py",
        autoencoder=tmp_path / "autoencoder/model",
        flip=True,
        output_dir="runs/codes",
    )
    (codes / "encode.json").write_text(json.dumps(encoding))
    options = {
        "autoencoder": AutoencoderOptions(output_dir="x", dataset="data/shapes", max_steps=7),
        "prior": PriorTrainOptions(output_dir="x", codes=str(codes), max_steps=9),
    }
    commands = {
        "autoencoder": command(
            "stage1_autoencoders/train.py", max_steps=7, output_dir=tmp_path / "autoencoder"
        ),
        "prior": command(
            "stage2_prior/train.py", codes=codes, max_steps=9, output_dir="runs/prior"
        ),
    }
    for name, model in {"autoencoder": autoencoder, "prior": prior}.items():
        model.config.training = TRAINING | {"command": commands[name]}
        model.save_pretrained(tmp_path / name / "model")
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(dump_config(options[name])))
    return tmp_path


@pytest.fixture
def folder(call, runs, command):
    """A pipeline of their models."""
    models = {name: runs / name / "model" for name in ("autoencoder", "prior")}
    flags = {**models, "guidance_scale": 2.0, "top_k": 5, "output_dir": runs / "pipeline"}
    command("pipelines/assemble.py", **flags)
    call(assemble, **flags)
    return runs / "pipeline"


@pytest.fixture
def samples(call, folder, runs, command):
    flags = {"pipeline": folder, "num_images": 12, "seed": 3, "output_dir": runs / "samples"}
    command("pipelines/generate.py", **flags)
    call(generate, **flags)
    return runs / "samples"


@pytest.fixture
def scores(folder, samples, runs, command):
    """What score.py would write about these samples and the reconstructions."""
    settings = json.loads((samples / "generation.json").read_text())
    own = json.loads((folder / "pipeline.json").read_text())["code_spec"]["autoencoder_fingerprint"]
    of = {"split": None, "num_images": 12, "available": 12, "skipped": 0}
    protocol = {
        "reference": "data/shapes", "reference_split": "test", "num_images": 40, "features": "inception",
        "kid_subsets": 100, "kid_subset_size": 1000, "seed": 0, "image_size": None, "channels": None,
        "image_column": "image", "label_column": None, "on_corrupt": "error", "train_split": "train", "classifier": None, "pipeline": "elsewhere",
        "autoencoder_fingerprint": own,
        "candidates": {
            "ours": {"source": str(samples), **of, "sampler": settings},
            "real": {"source": "data/shapes", **of, "split": "train"},
        },
        "command": command(
            "evaluation/score.py", candidates=f"ours={samples}", nearest=True, output_dir="runs/scores"
        ),
    }  # fmt: skip
    (runs / "scores").mkdir()
    rows = [{"name": "ours", "num_images": 12, "fid": 31.4159}]
    (runs / "scores" / "scores.json").write_text(json.dumps({"protocol": protocol, "rows": rows}))
    (runs / "scores" / "scores.md").write_text(
        "| Images | FID |\n| --- | ---: |\n| ours | 31.42 |\n"
    )
    return runs / "scores"


def words_of(text):
    """The command lines of a card, each as (script, words)."""
    block = text.partition("```sh\n")[2].partition("```")[0]
    lines = [shlex.split(line) for line in block.splitlines()]
    assert all(line[0] == "python" for line in lines)
    return [(line[1], line[2:]) for line in lines]


def test_a_new_folder_says_what_it_is_and_what_it_cost(folder):
    text = (folder / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["library_name"] == "latent-prior"
    assert front["pipeline_tag"] == "unconditional-image-generation"
    assert "license" not in front
    assert {"vqvae", "transformerprior"} <= set(front["tags"])
    assert "RGB images of 16 x 16 pixels" in text
    assert "8 x 8 of 16 codes" in text
    assert "Trained on `data/shapes`" in text
    assert "`apple`, `bee`, `car`" in text
    pipe = Pipeline.from_pretrained(folder)
    for part in (pipe.autoencoder, pipe.prior):
        assert (
            f"| {part.num_parameters():,} | 1,200 | 76,800 | 62 s, 118 processor seconds, cpu |"
            in text
        )
    assert "By default it samples with guidance_scale 2.0, top_k 5." in text
    assert "from latent_prior import Pipeline" in text
    assert "## Samples" not in text
    assert "## Scores" not in text


def test_its_command_lines_are_those_that_were_typed(folder, samples, scores):
    describe.main(["--pipeline", str(folder), "--samples", str(samples), "--scores", str(scores)])
    parsed = {
        script: parse_config(OPTIONS[script], words)
        for script, words in words_of((folder / "README.md").read_text())
    }
    assert list(parsed) == list(OPTIONS)
    assert parsed["stage1_autoencoders/train.py"].max_steps == 7
    assert parsed["stage1_autoencoders/train.py"].output_dir == "autoencoder"
    assert parsed["stage1_autoencoders/encode.py"].flip
    assert parsed["stage1_autoencoders/encode.py"].autoencoder == "model"
    assert parsed["stage2_prior/train.py"].max_steps == 9
    assert (
        parsed["pipelines/assemble.py"].guidance_scale,
        parsed["pipelines/assemble.py"].top_k,
    ) == (2, 5)
    generated = parsed["pipelines/generate.py"]
    assert (generated.num_images, generated.seed, generated.output_dir) == (12, 3, "samples")
    assert parsed["evaluation/score.py"].candidates == ["ours=samples"]
    assert parsed["evaluation/score.py"].nearest


def test_folders_without_commands_have_a_card(folder, samples, scores, runs):
    """Versions before recorded none; whatever is known of the rest is shown."""
    for path in runs.rglob("*.json"):
        if path.name in (*RECORDS, "about.json"):
            values = json.loads(path.read_text())
            for record in (values, values.get("training") or {}, values.get("protocol") or {}):
                record.pop("command", None)
            values.pop(SEAL, None)
            path.write_text(json.dumps(values))
    for path in list(runs.rglob(MANIFEST)):
        path.unlink()
    describe.main(["--pipeline", str(folder), "--samples", str(samples), "--scores", str(scores)])
    text = (folder / "README.md").read_text()
    assert "```sh" not in text
    assert "All options of the trainings are in `card/`." in text
    assert "| ours | 31.42 |" in text
    Pipeline.from_pretrained(folder).save_pretrained(runs / "copy")
    assert (runs / "copy" / "README.md").read_text() == text
    (runs / "samples" / "about.json").unlink()
    assert card.write_card(folder, grid=samples / "grid.png")


def test_samples_and_scores_come_with_their_settings_and_protocol(folder, samples, scores):
    describe.main(
        [
            "--pipeline",
            str(folder),
            "--samples",
            str(samples),
            "--scores",
            str(scores),
            "--license",
            "mit",
        ]
    )
    text = (folder / "README.md").read_text()
    assert "license: mit\n" in text
    assert "![samples](card/grid.png)" in text
    assert (folder / "card" / "grid.png").read_bytes() == (samples / "grid.png").read_bytes()
    assert "The first 12 of 12 images, not cherry-picked: guidance_scale 2.0" in text
    assert "| ours | 31.42 |" in text
    protocol = json.loads((folder / "card" / "scores.json").read_text())["protocol"]
    assert json.loads(text.partition("```json\n")[2].partition("```")[0]) == protocol
    # Each can be renewed alone; the rest stays.
    describe.main(["--pipeline", str(folder), "--samples", str(samples)])
    assert (folder / "README.md").read_text() == text


def test_a_card_goes_where_the_same_pipeline_goes(folder, samples, scores, runs):
    describe.main(
        [
            "--pipeline",
            str(folder),
            "--samples",
            str(samples),
            "--scores",
            str(scores),
            "--license",
            "mit",
        ]
    )
    pipe = Pipeline.from_pretrained(folder)
    pipe.sampler = Sampler(temperature=0.5)
    pipe.save_pretrained(runs / "copy")
    text = (runs / "copy" / "README.md").read_text()
    assert "| ours | 31.42 |" in text
    assert "license: mit\n" in text
    assert "By default it samples with temperature 0.5." in text
    assert "guidance_scale 2.0, " in text  # of the samples
    assert "python pipelines/assemble.py" in text
    assert {path.name for path in (runs / "copy" / "card").iterdir()} == {
        "autoencoder.yaml", "encode.json", "prior.yaml", "grid.png", "generation.json", "scores.json", "scores.md",
    }  # fmt: skip
    pipe.save_pretrained(folder)  # over itself
    assert "| ours | 31.42 |" in (folder / "README.md").read_text()


def test_nothing_says_where_it_lay_on_this_machine(folder, samples, scores, runs):
    found = json.loads((scores / "scores.json").read_text())
    found["protocol"]["reference"] = str(runs / "mine")
    (scores / "scores.json").write_text(json.dumps(found))
    table = scores / "scores.md"
    table.write_text(table.read_text() + f"\nReference: {runs / 'mine'}, split test\n")
    describe.main(["--pipeline", str(folder), "--samples", str(samples), "--scores", str(scores)])
    texts = [path for path in folder.rglob("*.[jmy]*") if path.name != "code_spec.json"]
    assert len(texts) == 13  # with three manifests
    for path in texts:
        assert str(runs) not in path.read_text(), path
    assert "Reference: mine, split test" in (folder / "README.md").read_text()
    assert "codes: codes\n" in (folder / "card" / "prior.yaml").read_text()


def test_another_prior_does_not_inherit_pictures_and_scores(folder, samples, scores, parts):
    describe.main(["--pipeline", str(folder), "--samples", str(samples), "--scores", str(scores)])
    pipe = Pipeline.from_pretrained(folder)
    Pipeline(pipe.autoencoder, parts["prior"](pipe.autoencoder, ["x", "y"])).save_pretrained(folder)
    text = (folder / "README.md").read_text()
    assert "## Scores" not in text
    assert "## Samples" not in text
    assert {path.name for path in (folder / "card").iterdir()} == {"autoencoder.yaml"}


def test_a_description_is_added_in_one_step(folder, samples, scores, monkeypatch):
    """A process that is killed on the way leaves the pipeline as it was."""
    words = ["--pipeline", str(folder), "--samples", str(samples), "--scores", str(scores)]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def dies(first, second):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(folders, "exchange", dies)
        with pytest.raises(KeyboardInterrupt):
            describe.main(words)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    describe.main(words)
    check_folder(folder, "pipeline")
    Pipeline.from_pretrained(folder)
    assert (folder / "card" / "grid.png").read_bytes() == (samples / "grid.png").read_bytes()


def test_a_damaged_pipeline_is_not_described(folder, samples):
    """The new manifest would vouch for the damage."""
    path = folder / "card" / "autoencoder.yaml"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match=f"{path} is damaged"):
        describe.main(["--pipeline", str(folder), "--samples", str(samples)])


def test_what_somebody_wrote_stays(folder, samples, caplog):
    caplog.set_level("INFO", "latent_prior")
    own = "---\nlicense: mit\n---\n# My digits\n"
    (folder / "README.md").write_text(own)
    describe.main(["--pipeline", str(folder), "--samples", str(samples)])
    assert "is handwritten and was left unchanged" in caplog.text
    assert (folder / "card" / "grid.png").is_file()
    pipe = Pipeline.from_pretrained(folder)
    pipe.save_pretrained(folder)
    pipe.save_pretrained(folder.with_name("copy"))
    for place in (folder, folder.with_name("copy")):
        assert (place / "README.md").read_text() == own


def test_front_matter_of_the_hubs_website_is_no_ones_words(folder):
    (folder / "README.md").write_text("---\nlicense: cc0-1.0\n---\n")
    assert card.write_card(folder)
    text = (folder / "README.md").read_text()
    assert "license: cc0-1.0\n" in text
    assert "# VQVAE + TransformerPrior" in text


def test_pictures_and_scores_of_another_pipeline_are_refused(call, folder, scores, parts, runs):
    Pipeline(parts["vqvae"](seed=5), sampler=Sampler()).save_pretrained(runs / "other")
    call(
        generate,
        pipeline=runs / "other",
        num_images=2,
        random_codes=True,
        output_dir=runs / "noise",
    )
    before = {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="images of another pipeline"):
        card.write_card(folder, grid=runs / "noise" / "grid.png")
    with pytest.raises(ValueError, match="scores no images of this pipeline"):
        card.write_card(runs / "other", scores=scores / "scores.json")
    with pytest.raises(ValueError, match=r"pipeline\.json is missing"):
        card.write_card(runs / "samples")
    shutil.rmtree(scores)
    with pytest.raises(ValueError, match=r"scores\.json is missing"):
        card.write_card(folder, scores=scores / "scores.json")
    assert all(path.read_bytes() == before[path] for path in before if path.exists())


def test_models_of_no_run_have_a_card_that_says_so(parts, tmp_path):
    Pipeline(parts["autoencoder"]("vae")).save_pretrained(tmp_path / "vae")
    text = (tmp_path / "vae" / "README.md").read_text()
    assert "not recorded" in text
    assert "New latents are drawn from N(0, I)." in text
    assert not (tmp_path / "vae" / "card").exists()
    assert "```sh" not in text


@pytest.mark.parametrize(
    ("text", "handwritten", "license_name"),
    [
        ("", False, None),
        ("---\nlicense: mit\n---\n", False, "mit"),
        ("---\nlicense: mit\ntags: [a]\n---\n\nMine.", True, "mit"),
        ("# Mine\n\n---\n\nlicense: mit\n", True, None),
        ("---\nlicense: [mit\n---\n", True, None),  # damaged front matter
        ("---\nonly text\n---\n", True, None),
        (f"---\nlicense: mit\n---\n{card.MARK}\n# Ours", False, "mit"),
    ],
)
def test_what_a_readme_holds(text, handwritten, license_name):
    assert card.is_handwritten(text) == handwritten
    assert card.license_of(text) == license_name


@pytest.mark.parametrize("name", ["mit\ntags:\n- x", "x\n---\n# y", "<script>", "", "-", "m" * 200])
def test_a_license_that_is_no_name_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="--license"):
        write_card(tmp_path, license_name=name)
