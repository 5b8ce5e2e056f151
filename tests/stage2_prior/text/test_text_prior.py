"""A prior given captions: the network, samples, and the exported Llama."""

import dataclasses
import json

import pytest
import torch
from transformers import AutoTokenizer

from latent_prior.stage2_prior import TransformerPrior
from latent_prior.stage2_prior.export import main as export_main
from latent_prior.stage2_prior.export import to_llama
from latent_prior.stage2_prior.kv_cache import Decoder
from latent_prior.stage2_prior.text.reading import Text, left_padded
from latent_prior.stage2_prior.text.tokenizer import CaptionTokenizer
from tests.stage2_prior.samples import LATENTS, MASKED, PATCHES, RASTER, random_maps
from tests.stage2_prior.slow_transformer import slow_outputs

KINDS = RASTER | PATCHES | MASKED | LATENTS
CAPTIONS = ([3, 1, 4, 1], [5], [], [9, 2, 6])
OWN = {"length": 6, "vocabulary": 10, "width": 0, "sha256": "0" * 64, "encoder": None}
STATES = OWN | {"vocabulary": 0, "width": 5, "encoder": "somewhere"}


def text_of(prior, captions=CAPTIONS):
    """Captions as the prior reads them: their numbers, or states that are random but for those."""
    spec = prior.config.text
    if not spec["width"]:
        return Text(left_padded(captions))
    tokens = left_padded([[0] * len(caption) for caption in captions])
    table = torch.randn(10, 5, generator=torch.Generator().manual_seed(1))
    states = torch.zeros(*tokens.shape, 5)
    for row, caption in zip(states, captions, strict=True):
        if caption:
            row[-len(caption) :] = table[caption]
    return Text(tokens, states)


@pytest.fixture
def make_text_prior(make_prior):
    def make(kind="one map", text=OWN, **options):
        levels, of_kind = KINDS[kind]
        return make_prior(*levels, condition="text", text=text, **{**of_kind, **options})

    return make


def outputs(prior, maps, text):
    """Logits or mixtures of every position; in masked order of hidden codes."""
    sequence = prior._sequence(maps)
    if prior.masked:
        sequence = sequence.clone()
        sequence[:, ::2] = prior.mask_token
    with torch.no_grad():
        return prior.logits_of(prior._prefix(len(sequence), None, text), sequence)


@pytest.mark.parametrize("text", [OWN, STATES], ids=["tokens", "states"])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_those_of_plain_loops_and_no_padding_is_seen(make_text_prior, kind, text):
    """The loops have no padding at all; the network has captions of four lengths in a batch."""
    prior = make_text_prior(kind, text)
    maps, captions = random_maps(prior, 4), text_of(prior)
    found = outputs(prior, maps, captions).double()
    for row, caption in enumerate(CAPTIONS):
        alone = text_of(prior, [caption])
        before = prior.embed_prefix(prior._prefix(1, None, alone))[0, :-1] if caption else []
        sequence = prior._sequence(maps)[row].clone()
        if prior.masked:
            sequence[::2] = prior.mask_token
        with torch.no_grad():
            expected = slow_outputs(prior, prior.null_token, sequence, before)
        for level in prior.levels:
            own = slice(level.start, level.stop), slice(level.first, level.last)
            assert expected[own].std() > 0.3
            torch.testing.assert_close(found[row][own], expected[own], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("text", [OWN, STATES], ids=["tokens", "states"])
@pytest.mark.parametrize("kind", [*RASTER, *PATCHES, *LATENTS])
def test_cached_steps_after_a_caption_give_the_outputs_of_forward(make_text_prior, kind, text):
    prior = make_text_prior(kind, text)
    maps, captions = random_maps(prior, 4), text_of(prior)
    expected, sequence = outputs(prior, maps, captions), prior._sequence(maps)
    start = prior._prefix(4, None, prior._of_full_length(captions))
    assert start.tokens.shape == (4, 7)
    with torch.no_grad():
        decoder = Decoder(prior, 4, 7)
        x = decoder.read(start)
        for level in prior.levels:
            for first in range(level.start, level.stop, prior.slots):
                x = decoder.step(x, first // prior.slots)
                given = sequence[:, first : first + prior.slots]
                for slot in range(prior.slots):
                    found = decoder.outputs(x, level, slot)
                    within = expected[:, first + slot, level.first : level.last]
                    torch.testing.assert_close(found, within, rtol=1e-5, atol=2e-5)
                    if slot + 1 < prior.slots:
                        decoder.add_code(x, given[:, slot], slot)
                x = decoder.project(given[:, 0]) if prior.latents else decoder.embed_patch(given)


@pytest.mark.parametrize("text", [OWN, STATES], ids=["tokens", "states"])
@pytest.mark.parametrize(
    "kind", ["one map", "patches of a map", "masked, one map", "a grid of latents"]
)
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_an_image_depends_on_its_own_caption_alone(make_text_prior, kind, text, scale):
    """Not on the others of its batch, however long, and not on the batch's size."""
    prior = make_text_prior(kind, text)

    def draw(captions, seeds):
        drawn = prior.sample(
            len(captions),
            text=text_of(prior, captions),
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            guidance_scale=scale,
        )
        return next(iter(drawn.values()))

    together = draw(CAPTIONS, range(4))
    for number, caption in enumerate(CAPTIONS):
        alone = draw([caption], [number])[0]
        if prior.latents:
            torch.testing.assert_close(alone, together[number], rtol=1e-4, atol=1e-4)
        else:
            assert torch.equal(alone, together[number])
    first, other = (draw([caption] * 32, range(32)) for caption in ([3, 1, 4, 1], [3, 1, 4, 2]))
    assert not torch.allclose(first.float(), other.float(), atol=1e-3)  # of one word


def test_no_caption_is_the_dropped_one_and_guidance_zero(make_text_prior):
    prior = make_text_prior()
    maps, text = random_maps(prior, 4), text_of(prior)
    with torch.no_grad():
        plain = prior(maps).logits
        torch.testing.assert_close(prior(maps, text=text_of(prior, [[]] * 4)).logits, plain)
        assert (prior(maps, text=text).logits - plain)[[0, 1, 3]].abs().amax((1, 2)).min() > 0.1
        dropping = TransformerPrior(dataclasses.replace(prior.config, label_dropout=1.0))
        dropping.load_state_dict(prior.state_dict())
        torch.testing.assert_close(dropping.train()(maps, text=text).logits, plain)

    def draw(scale, **given):
        noise = torch.Generator().manual_seed(0)
        return prior.sample(4, generator=noise, guidance_scale=scale, **given)["codes"]

    assert torch.equal(draw(0.0, text=text), draw(1.0))
    assert not torch.equal(draw(3.0, text=text), draw(1.0, text=text))


def test_captions_that_do_not_suit_the_prior_are_refused(make_prior, make_text_prior):
    prior, maps = make_text_prior(), random_maps(make_text_prior(), 2)
    for text, message in (
        (Text(left_padded([[1] * 7, [2]])), "a caption has 7 tokens, this prior reads up to 6"),
        (Text(left_padded([[1]])), "2 images need as many captions, not 1"),
        (Text(left_padded([[10], [2]])), "token 10 of a caption is out of range"),
        (Text(left_padded([[0], [0]]), torch.zeros(2, 1, 5)), "states of 5 numbers do not suit"),
    ):
        with pytest.raises(ValueError, match=message):
            prior(maps, text=text)
        with pytest.raises(ValueError, match=message):
            prior.sample(2, text=text)
    with pytest.raises(ValueError, match="was not trained on captions"):
        make_prior().sample(1, text=Text(left_padded([[1]])))
    with pytest.raises(ValueError, match="it has no classes"):
        prior.sample(1, [0])


WORDS = ["a red circle", "a blue square, top left", "a red star", "ein grüner Kreis ⭐"]


@pytest.fixture
def with_tokenizer(make_prior):
    """A prior with a tokenizer of its own, which Llama can compute."""
    tokenizer = CaptionTokenizer.train(WORDS * 2, 300)
    prior = make_prior((4, 5, 50), condition="text", text=tokenizer.spec)
    prior.tokenizer = tokenizer
    return prior


def test_the_exported_llama_draws_the_priors_codes_from_a_caption(with_tokenizer, tmp_path):
    """Token for token, greedily, and the prompt is what the exported tokenizer makes of it."""
    prior = with_tokenizer
    prior.save_pretrained(tmp_path / "prior")
    export_main(["--prior", str(tmp_path / "prior"), "--output_dir", str(tmp_path / "llama")])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "llama")
    llama = to_llama(prior)
    drawn = []
    for caption in WORDS:
        text = prior.tokenizer.read([caption])
        prompt = torch.cat((text.tokens + prior.first_class, torch.tensor([[prior.null_token]])), 1)
        assert tokenizer(caption)["input_ids"] == prompt[0].tolist()
        found = llama.generate(prompt, do_sample=False)[0, prompt.shape[1] :]
        expected = prior.sample(1, text=text, temperature=0)["codes"].flatten()
        assert torch.equal(found, expected)
        drawn.append(tuple(found.tolist()))
    assert len(set(drawn)) == len(WORDS)
    together = llama.generate(
        **tokenizer(WORDS, padding=True, return_tensors="pt"), do_sample=False
    )
    assert [tuple(row[-prior.length :].tolist()) for row in together] == drawn


def test_the_tokenizer_is_saved_and_another_priors_is_refused(with_tokenizer, tmp_path):
    with_tokenizer.save_pretrained(tmp_path)
    loaded = TransformerPrior.from_pretrained(tmp_path)
    assert loaded.tokenizer.json == with_tokenizer.tokenizer.json
    assert torch.equal(
        loaded.tokenizer.read(WORDS).tokens, with_tokenizer.tokenizer.read(WORDS).tokens
    )
    (tmp_path / "manifest.json").unlink()  # as somebody who exchanges files would
    other = CaptionTokenizer.train(["something else"] * 9, 300)
    other.write(tmp_path)
    with pytest.raises(ValueError, match=r"tokenizer\.json is not the tokenizer of this prior"):
        TransformerPrior.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        TransformerPrior.from_pretrained(tmp_path)


def test_a_prior_of_states_is_no_llama(make_text_prior):
    with pytest.raises(ValueError, match="it reads the states of a text encoder"):
        to_llama(make_text_prior(text=STATES))


@pytest.mark.parametrize(("before", "now"), [(True, "class"), (False, "none")])
def test_a_prior_from_before_there_was_a_condition_is_read(make_prior, tmp_path, before, now):
    prior = make_prior(condition=now)
    prior.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    for name in ("condition", "text"):
        del values[name]
    (tmp_path / "config.json").write_text(json.dumps(values | {"class_conditional": before}))
    (tmp_path / "manifest.json").unlink()
    loaded = TransformerPrior.from_pretrained(tmp_path)
    assert (loaded.config.condition, loaded.num_classes) == (now, prior.num_classes)
    maps = random_maps(prior, 2)
    with torch.no_grad():
        assert torch.equal(loaded(maps).logits, prior(maps).logits)
    loaded.save_pretrained(tmp_path / "again")
    assert "class_conditional" not in json.loads((tmp_path / "again/config.json").read_text())
