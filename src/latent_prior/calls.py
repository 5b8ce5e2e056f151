"""Scripts as functions: options as keyword arguments, an object as the result, nothing printed."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import random
import re
import signal
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState

from latent_prior.cli import dotted, flags, make_options
from latent_prior.cli_values import is_list
from latent_prior.stopping import Stopped

Options = TypeVar("Options")
Result = TypeVar("Result")


def takes_options(
    options_class: type[Options],
) -> Callable[[Callable[[Options], Result]], Callable[..., Result]]:
    """Let a function of a script's options be called with these as keyword arguments.

    `config` is a preset or a file, as on the command line. Options of a part, such as the model,
    are a dictionary, or single arguments under dotted names. A path may be a `Path`, a tuple stands
    for a list, and a dictionary for a list of `NAME=VALUE`. A script passes `options=`, ready made.

    The caller's random generators, threads and Accelerate state are left as they were. Errors name
    options without the dashes of the command line. SIGINT during a training raises
    KeyboardInterrupt after a checkpoint.
    """

    def decorate(work: Callable[[Options], Result]) -> Callable[..., Result]:
        @functools.wraps(work)
        def call(*, options: Options | None = None, **values: Any) -> Result:
            if options is not None:
                with _undisturbed():
                    return work(options)
            try:
                with _undisturbed():
                    return work(make_options(options_class, _plain_values(values, lists)))
            except ValueError as error:
                known = {"config", *inspect.signature(call).parameters, *values}
                error.args = tuple(_without_dashes(each, known, name) for each in error.args)
                raise
            except Stopped as stopped:
                number, done = stopped.number, stopped.done
            if number != signal.SIGINT:
                signal.raise_signal(number)  # for the caller's own handler, or to end the process
            raise KeyboardInterrupt(f"stopped {done}; repeat the call to go on")

        name = work.__name__
        lists = {flag.name for flag in flags(options_class) if is_list(flag.kind)}
        call.__signature__ = _signature(options_class, work)  # type: ignore[attr-defined]
        if work.__module__ != "__main__":  # a script would start later and show it to nobody
            call.__doc__ = f"{inspect.getdoc(work)}\n\n{_described(options_class)}"
        return call

    return decorate


def _signature(options_class: Any, work: Callable[..., Any]) -> inspect.Signature:
    """Every option as a keyword argument with its default; a part's options are a dictionary."""
    parameters = [_keyword("config", str | os.PathLike[str] | None, None)]
    plain = {flag.name: flag for flag in flags(options_class) if "." not in flag.name}
    for field in dataclasses.fields(options_class):
        if field.name in plain:
            flag = plain[field.name]
            required = flag.default is dataclasses.MISSING
            default = inspect.Parameter.empty if required else flag.default
            parameters.append(_keyword(field.name, flag.kind, default))
        else:
            parameters.append(_keyword(field.name, dict[str, Any], {}))
    returns = inspect.signature(work, eval_str=True).return_annotation
    return inspect.Signature(parameters, return_annotation=returns)


def _keyword(name: str, kind: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def _described(options_class: type) -> str:
    """The options in the form of a docstring's section."""
    lines = ["Keyword Args:", "    config: A preset's name or a YAML file; other arguments win."]
    for flag in flags(options_class, {}):
        lines.append(f"    {flag.name} ({flag.type_text()}): {flag.explanation()}")
    return "\n".join(lines)


def _plain_values(values: Mapping[str, Any], lists: Collection[str]) -> dict[str, Any]:
    """Keyword arguments as values under dotted names, in the types that a preset has.

    Raises:
        ValueError: an option is given twice.
    """
    listed = {
        name: [f"{key}={os.fspath(each)}" for key, each in value.items()]
        for name, value in values.items()
        if name in lists and isinstance(value, Mapping)
    }
    pairs = [(name, _plain(value)) for name, value in dotted({**values, **listed})]
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice} is given twice, in a dictionary and under its dotted name")
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _without_dashes(part: Any, known: set[str], name: str) -> Any:
    """A message for somebody who called the function `name`, whose keywords are known."""
    if not isinstance(part, str):
        return part

    def option(match: re.Match[str]) -> str:
        return match[1] if match[1].partition(".")[0] in known else match[0]

    text = part.replace("--help lists them all", f"help({name}) lists them all")
    return re.sub(r"--([a-z]\w*(?:\.\w+)?)", option, text)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Afterwards, generators, threads and Accelerate's state are those of before.

    Accelerate would refuse another precision than the first one of the process.
    """
    shared = [state._shared_state for state in (AcceleratorState, GradientState)]
    states = [dict(each) for each in shared]
    threads = torch.get_num_threads()
    of_python, of_torch = random.getstate(), torch.get_rng_state()
    of_numpy = np.random.get_state()  # noqa: NPY002  # libraries draw from it
    of_cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    for each in shared:
        each.clear()
    try:
        yield
    finally:
        for each, state in zip(shared, states, strict=True):
            each.clear()
            each.update(state)
        torch.set_num_threads(threads)
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002
        torch.set_rng_state(of_torch)
        if of_cuda:
            torch.cuda.set_rng_state_all(of_cuda)
