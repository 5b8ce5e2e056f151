"""What happens when a visitor presses a button: one after the other, errors as a sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio
from gradio.blocks import Block
from gradio.events import Dependency
from gradio.state_holder import SessionState

from latent_prior.pipelines.page.pictures import text

MODEL = "model"
"""The queue that all events share which use a model: Gradio runs one of them at a time."""

Shows = tuple[Any, ...]

_store = SessionState.__setitem__


def _store_in_place(session: SessionState, key: int, value: Any) -> None:
    """Give a component that replaces another one in a visitor's page its number.

    Every `gradio.skip()` replaces one. In Gradio 6.31 the new component has a number of its own,
    under which the next value stores it once more: 20 kB for each request, as long as the visitor
    is remembered.
    """
    if isinstance(value, Block):
        value._id = key
    _store(session, key, value)


SessionState.__setitem__ = _store_in_place  # type: ignore[method-assign]


def message() -> gradio.HTML:
    """The line of a tab that says what was done, or why it was not."""
    return gradio.HTML("", elem_classes="message", padding=False, js_on_load=None)


def on(
    listener: Callable[..., Dependency],
    handler: Callable[..., Iterator[Shows] | Shows],
    inputs: Sequence[gradio.components.Component],
    line: gradio.HTML,
    outputs: Sequence[gradio.components.Component],
    *,
    name: str,
    script: str | None = None,
) -> Dependency:
    """Call a handler with the inputs' values, in its turn.

    Args:
        listener: of the event, such as `button.click`.
        handler: returns, or yields while it computes, what the tab's line says and the outputs'
            values. Its ValueErrors are said by the line, the outputs then stay as they are.
        inputs: of the handler.
        line: of the tab.
        outputs: of the handler.
        name: of the event in the page's API.
        script: JavaScript that is given the inputs' values and returns them, perhaps others.
    """

    def run(*values: Any) -> Iterator[Shows]:
        try:
            shows = handler(*values)
            for said, *shown in [shows] if isinstance(shows, tuple) else shows:
                yield said_line(said), *shown
        except ValueError as error:
            yield said_line(str(error), wrong=True), *[gradio.skip()] * len(outputs)

    return listener(
        run,
        list(inputs),
        [line, *outputs],
        api_name=name,
        concurrency_id=MODEL,
        show_progress="minimal",
        show_progress_on=outputs[0],
        js=script,
    )


def said_line(words: str, *, wrong: bool = False) -> str:
    """The HTML of a tab's line."""
    if not words:
        return ""
    if wrong:
        return f'<p role="alert" class="wrong">{text(words)}</p>'
    return f'<p role="status">{text(words)}</p>'
