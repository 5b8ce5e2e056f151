import html

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_prior.markdown import code, code_block, plain, visible

quick = settings(max_examples=60, derandomize=True, deadline=None, database=None)


@quick
@given(st.text())
def test_text_of_others_stays_on_its_line_and_starts_nothing(text):
    assert visible(text).isprintable()
    shown = plain(text)
    assert "<" not in shown
    assert shown.isprintable()
    for letter in "`*[]":
        assert all(shown[at - 1] == "\\" for at in range(len(shown)) if shown[at] == letter)
    back = html.unescape(shown)
    for letter in "\\`*[]":
        back = back.replace(f"\\{letter}", letter) if letter != "\\" else back
    assert len(back) >= len(visible(text))


@quick
@given(st.text("`a\n\x01|<"))
def test_code_ends_where_it_should(text):
    fence = code(text)[: len(code(text)) - len(code(text).lstrip("`"))]
    assert code(text).endswith(fence)
    assert fence not in visible(text)
    first, *lines, last = code_block(text, "sh").split("\n")
    assert first == f"{last}sh"
    assert not any(line.startswith(last) for line in lines)


@pytest.mark.parametrize("text", ["a\nb", "a\x01b", "a\u202eb", "a\u2028b", "a\udcffb"])
def test_characters_that_do_not_show_are_escaped(text):
    assert visible(text).startswith("a\\")
    visible(text).encode()
