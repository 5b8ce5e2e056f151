import dataclasses
import json
import sys

import pytest
import torch
from safetensors import safe_open
from transformers import AutoTokenizer, LlamaForCausalLM

from latent_prior.data.codes import CodeSpec, Level
from latent_prior.stage2_prior import export
from latent_prior.stage2_prior.engine_tokens import codes_from_tokens
from latent_prior.stage2_prior.export import halves_to_pairs, pairs_to_halves, to_llama
from latent_prior.stage2_prior.prior import PriorConfig, TransformerPrior


@pytest.fixture
def exported(call, tmp_path):
    """`exported(prior)`: it, saved and exported by the script, as transformers loads it."""

    def load(prior: TransformerPrior) -> LlamaForCausalLM:
        prior.save_pretrained(tmp_path / "prior")
        call(export, prior=tmp_path / "prior", output_dir=tmp_path / "llama")
        return LlamaForCausalLM.from_pretrained(tmp_path / "llama")

    return load


def start_tokens(prior, labels):
    labels = torch.tensor(labels)
    return torch.where(labels < 0, prior.null_token, labels + prior.num_codes).unsqueeze(1)


def random_codes(prior, count):
    (level,) = prior.levels
    return {"codes": torch.randint(level.last, (count, level.height, level.width))}


@pytest.mark.parametrize(
    ("labels", "options"),
    [
        ([0, 1, 2, -1, 0], {}),
        ([0, 1, 2, -1, 0], {"heads": 4, "width": 48, "depth": 3, "mlp_ratio": 3.0, "dropout": 0.2}),
        ([0, 1, 2, -1, 0], {"heads": 1}),
        ([-1] * 5, {"num_classes": 0}),
        ([-1] * 5, {"condition": "none"}),
    ],
)
def test_logits_are_the_priors(make_prior, exported, labels, options):
    prior = make_prior((4, 5, 50), **options)
    llama = exported(prior)
    codes = random_codes(prior, 5)
    tokens = torch.cat((start_tokens(prior, labels), codes["codes"].flatten(1)), dim=1)
    with torch.no_grad():
        expected = prior(codes, torch.tensor(labels)).logits
        found = llama(input_ids=tokens[:, :-1]).logits[..., : prior.num_codes]
    assert expected.std() > 0.5
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_neighbouring_channels_become_halves_of_each_head():
    weight = torch.arange(8.0).unsqueeze(1).expand(8, 8)
    assert pairs_to_halves(weight, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert pairs_to_halves(weight, 1)[:, 0].tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


def test_the_channels_of_llama_cpp_are_the_priors_own():
    weight = torch.rand(12, 5)
    assert torch.equal(halves_to_pairs(pairs_to_halves(weight, 3), 3), weight)


def test_without_the_reordering_the_logits_are_others(make_prior, monkeypatch):
    prior = make_prior((4, 5, 50))
    codes = random_codes(prior, 5)
    tokens = torch.cat((start_tokens(prior, [0] * 5), codes["codes"].flatten(1)), dim=1)[:, :-1]
    monkeypatch.setattr(export, "pairs_to_halves", lambda weight, heads: weight)
    with torch.no_grad():
        found = to_llama(prior)(input_ids=tokens).logits[..., : prior.num_codes]
        expected = prior(codes, torch.zeros(5, dtype=torch.long)).logits
    assert (found - expected).abs().max() > 0.1


def test_greedy_generate_draws_the_priors_codes(make_prior, exported):
    prior = make_prior((4, 5, 50))
    llama = exported(prior)
    labels = [0, 1, 2, -1]
    found = llama.generate(start_tokens(prior, labels), do_sample=False)
    expected = prior.sample(4, labels, temperature=0)["codes"]
    assert len(expected.flatten().unique()) > 5
    assert torch.equal(codes_from_tokens(found, prior.code_spec)["codes"], expected)


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_guided_greedy_generate_draws_the_priors_codes(make_prior, exported, scale):
    prior = make_prior((4, 5, 50))
    llama = exported(prior)
    labels = [0, 1, 2]
    found = llama.generate(
        start_tokens(prior, labels),
        do_sample=False,
        guidance_scale=scale,
        negative_prompt_ids=start_tokens(prior, [-1] * 3),
    )
    expected = prior.sample(3, labels, temperature=0, guidance_scale=scale)["codes"]
    plain = prior.sample(3, labels, temperature=0)["codes"]
    assert not torch.equal(plain, expected)
    assert torch.equal(codes_from_tokens(found, prior.code_spec)["codes"], expected)


def test_sampling_draws_every_code_no_class_and_whole_images(make_prior, exported):
    """transformers' defaults would draw 50 codes at most, and Llama's end the image at code 2."""
    prior = make_prior((2, 3, 70), spread=1.0)  # nearly uniform
    llama = exported(prior)
    torch.manual_seed(0)
    found = llama.generate(start_tokens(prior, [0, 1, 2, -1]).repeat(500, 1))
    assert found.shape == (2000, 7)
    codes = found[:, 1:]
    assert codes.max() < prior.num_codes
    assert len(codes[:, 0].unique()) == 70
    assert (codes[:, :-1] == 2).any()
    # The first code of a class: its frequencies are the prior's probabilities.
    with torch.no_grad():
        logits = prior({"codes": torch.zeros(1, 2, 3, dtype=torch.long)}, torch.tensor([0])).logits
    expected = logits[0, 0].softmax(0) * 500
    counts = codes[::4, 0].bincount(minlength=70)
    assert ((counts - expected).square() / expected).sum() < 69 + 5 * (2 * 69) ** 0.5  # chi-squared


@pytest.mark.parametrize("shift", [0.0, -20.0])
def test_a_class_never_has_the_largest_logit_whatever_the_engine_suppresses(make_prior, shift):
    """A row of zeros would be the largest wherever all codes have negative logits."""
    prior = make_prior((4, 5, 50))
    with torch.no_grad():  # every code's logit moves by the same, which changes no probability
        prior.final_gain.fill_(1.0)
        prior.blocks[-1].mlp_out.weight[0] += 3.0
        prior.head.weight[:, 0] += shift
    codes = random_codes(prior, 40)
    tokens = torch.cat((start_tokens(prior, [0, 1, 2, -1] * 10), codes["codes"].flatten(1)), dim=1)
    with torch.no_grad():
        logits = to_llama(prior)(input_ids=tokens).logits
    codes_alone, classes = logits.split([50, 4], dim=-1)
    assert (classes.amax(-1) < codes_alone.amax(-1)).all()
    mean_of_codes = codes_alone.exp().mean(-1)
    # The exponential of a logit near -100 has a hundred times the logit's rounding error.
    assert (classes.exp() <= mean_of_codes.unsqueeze(-1) * 1.01).all()


def test_the_folder_says_what_the_tokens_are(make_prior, exported, tmp_path, capfd):
    prior = make_prior((4, 5, 50))
    llama = exported(prior)
    said = capfd.readouterr()
    assert (said.out, said.err) == (f"llama: {tmp_path / 'llama'}\n", "")
    _, report = LlamaForCausalLM.from_pretrained(tmp_path / "llama", output_loading_info=True)
    assert not any(report.values()), report

    names = {path.name for path in (tmp_path / "llama").iterdir()}
    assert names == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "code_spec.json",
        "manifest.json",
    }
    config = json.loads((tmp_path / "llama" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["class_tokens"] == {"class 0": 50, "class 1": 51, "class 2": 52}
    assert config["null_token"] == 53
    assert config["vocab_size"] == 54
    assert config["prior_fingerprint"] == prior.fingerprint
    assert config["autoencoder_fingerprint"] == prior.code_spec.autoencoder_fingerprint
    assert config["max_position_embeddings"] == 21  # with the class token
    assert config["attention_dropout"] == 0
    assert llama.config.class_tokens == config["class_tokens"]
    generation = json.loads((tmp_path / "llama" / "generation_config.json").read_text())
    assert generation["suppress_tokens"] == [50, 51, 52, 53]
    assert (generation["top_k"], generation["do_sample"]) == (0, True)
    assert generation["max_new_tokens"] == generation["min_new_tokens"] == 20
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert config.get(name) is generation.get(name) is None
    spec = CodeSpec.from_dict(json.loads((tmp_path / "llama" / "code_spec.json").read_text()))
    assert spec == prior.code_spec
    with safe_open(tmp_path / "llama" / "model.safetensors", framework="pt") as weights:
        assert len(weights.keys()) == 3 + 9 * prior.config.depth


def test_the_tokenizer_writes_tokens_as_their_numbers(make_prior, exported, tmp_path):
    exported(make_prior((4, 5, 50)))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "llama")
    assert tokenizer.get_vocab() == {str(token): token for token in range(54)}
    assert tokenizer("53 0 49 7")["input_ids"] == [53, 0, 49, 7]
    assert tokenizer.decode([53, 0, 49, 7]) == "53 0 49 7"
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == 53  # no token of an image


def test_gguf_without_its_package_says_what_to_install(saved, refused, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gguf", None)
    said = refused(export, prior=saved, output_dir=tmp_path / "llama", gguf="true")
    assert '--gguf needs: pip install "latent-prior[engines]"' in said
    assert not (tmp_path / "llama").exists()


def test_a_prior_without_classes_has_the_null_token_alone(make_prior):
    llama = to_llama(make_prior((4, 5, 50), condition="none"))
    assert (llama.config.class_tokens, llama.config.null_token) == ({}, 50)
    assert llama.generation_config.suppress_tokens == [50]


def test_the_export_shares_no_memory_with_the_prior(make_prior):
    prior = make_prior()
    before = {name: weight.clone() for name, weight in prior.state_dict().items()}
    with torch.no_grad():
        for weight in to_llama(prior).parameters():
            weight.zero_()
    for name, weight in prior.state_dict().items():
        assert torch.equal(weight, before[name])


def test_exporting_again_replaces_the_export(make_prior, exported, tmp_path):
    exported(make_prior())
    other = make_prior((2, 2, 9))
    assert exported(other).config.prior_fingerprint == other.fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llama", "prior"]


@pytest.fixture
def saved(make_prior, tmp_path):
    """The folder of a prior."""
    make_prior().save_pretrained(tmp_path / "prior")
    return tmp_path / "prior"


def test_other_peoples_folders_and_files_are_left_alone(saved, refused, tmp_path):
    assert "holds no export;" in refused(export, prior=saved, output_dir=saved)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    assert "holds no export;" in refused(export, prior=saved, output_dir=tmp_path / "notes")
    file = tmp_path / "notes" / "a.txt"
    assert f"--output_dir {file} is a file" in refused(export, prior=saved, output_dir=file)
    assert (tmp_path / "notes" / "a.txt").read_text() == "mine"


def test_a_missing_prior_is_named(refused, tmp_path):
    said = refused(export, prior=tmp_path / "no", output_dir=tmp_path / "llama")
    assert f"there is no folder {tmp_path / 'no'}" in said


@pytest.mark.parametrize(
    ("levels", "options", "reason"),
    [
        ([(2, 2, 5), (3, 3, 7)], {}, "codes of one of its maps level0, level1"),
        ([(3, 4, 11)], {"order": "masked"}, "in masked order"),
        ([(3, 4, 11)], {"positions": "2d"}, "its positions are rows and columns"),
    ],
)
def test_what_llama_cannot_compute_is_refused(
    make_prior, refused, tmp_path, levels, options, reason
):
    make_prior(*levels, **options).save_pretrained(tmp_path / "prior")
    said = refused(export, prior=tmp_path / "prior", output_dir=tmp_path / "llama")
    assert "cannot be exported" in said
    assert reason in said


def test_a_prior_over_latents_is_refused(make_spec, refused, tmp_path):
    spec = dataclasses.replace(
        make_spec((1, 1, 5)),
        kind="latents",
        levels=(Level("latents", 2, 2, channels=3),),
        latent_shift=(0.0,) * 3,
        latent_scale=(1.0,) * 3,
    )
    prior = TransformerPrior(PriorConfig(code_spec=spec.to_dict(), width=16, depth=1, heads=2))
    prior.save_pretrained(tmp_path / "prior")
    said = refused(export, prior=tmp_path / "prior", output_dir=tmp_path / "llama")
    assert "its head is a mixture of Gaussians over latents" in said


def test_a_full_disk_leaves_the_export_that_was_there(
    make_prior, exported, refused, monkeypatch, tmp_path
):
    prior = make_prior()
    exported(prior)

    def full(spec, folder):
        (folder / "code_spec.json").write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "write_spec", full)
    for output in ("llama", "new"):
        assert "No space left" in refused(
            export, prior=tmp_path / "prior", output_dir=tmp_path / output
        )
    found = LlamaForCausalLM.from_pretrained(tmp_path / "llama")
    assert found.config.prior_fingerprint == prior.fingerprint
