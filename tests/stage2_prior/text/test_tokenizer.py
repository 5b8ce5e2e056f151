import pytest
import torch

from latent_prior.stage2_prior.text.captions import check_longest, longest_of
from latent_prior.stage2_prior.text.tokenizer import CaptionTokenizer

CAPTIONS = [
    f"a {size} {colour} {shape}"
    for size in ("small", "large")
    for colour in ("red", "green", "blue")
    for shape in ("circle", "square")
]


@pytest.fixture
def tokenizer():
    return CaptionTokenizer.train(CAPTIONS, 400)


def test_the_same_captions_give_the_same_tokenizer(tokenizer):
    assert CaptionTokenizer.train(CAPTIONS, 400).json == tokenizer.json
    assert CaptionTokenizer(tokenizer.json, tokenizer.length).spec == tokenizer.spec


def test_words_become_few_tokens_and_the_longest_caption_counts(tokenizer):
    assert longest_of(tokenizer, CAPTIONS) == 4
    assert [len(each) for each in tokenizer.numbers(CAPTIONS)] == [4] * 12
    numbers = tokenizer.numbers(CAPTIONS)
    assert len({tuple(each) for each in numbers}) == 12
    assert tokenizer.spec["vocabulary"] > 256


@pytest.mark.parametrize(
    "text", ["ein grüner Kreis", "赤い円", "⭐️ 🏳️‍🌈", "دائرة حمراء", "\x00\x7f", "a\nb"]
)
def test_every_string_has_tokens_of_its_own(tokenizer, text):
    """Letters that no caption has are bytes, none is thrown away."""
    own, other = tokenizer.numbers([text, text + "?"])
    assert own
    assert own != other
    assert max(own) < tokenizer.spec["vocabulary"]


def test_case_and_white_space_around_it_do_not_matter(tokenizer):
    first, *others = tokenizer.numbers(["a red circle", "A RED Circle", "  a red circle \n"])
    assert others == [first, first]
    composed, decomposed = tokenizer.numbers(["gr\u00fcn", "gru\u0308n"])
    assert composed == decomposed


def test_captions_are_padded_in_front_and_an_empty_one_is_none(tokenizer):
    tokens = tokenizer.read(["a red circle", "", "red"]).tokens
    assert (tokens >= 0).sum(1).tolist() == [3, 0, 1]
    assert torch.equal((tokens >= 0).int().sort(1).values, (tokens >= 0).int())
    assert tokenizer.read([""]).tokens.tolist() == [[-1]]


def test_a_caption_is_never_cut(tokenizer):
    with pytest.raises(
        ValueError, match="has 68 tokens, more than the 64 that are read: shorten it"
    ):
        tokenizer.read(["a small red circle " * 17])
    few = CaptionTokenizer(tokenizer.json, 3)
    with pytest.raises(
        ValueError, match=r"'a small red circle' has 4 tokens, more than the 3 .*--text_length"
    ):
        check_longest(few, CAPTIONS, 4)
    check_longest(tokenizer, CAPTIONS, 4)


@pytest.mark.parametrize("content", ["", "{}", "[1, 2]", '{"model": {"type": "BPE"}}'])
def test_other_files_are_no_tokenizers(content):
    with pytest.raises(ValueError, match="it holds no tokenizer"):
        CaptionTokenizer(content, 4)
