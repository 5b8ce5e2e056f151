"""Every schema of a file that is read: round trips, and changed bytes."""

import importlib
import random
import string
import types
import typing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_prior.data.codes import CodeSpec, Level
from latent_prior.records import read_record, write_record
from latent_prior.stage2_prior.sampler import Sampler

for _module in (
    "data.codes_dataset", "models", "folders", "pipelines.index", "pipelines.card",
    "evaluation.sets", "evaluation.features.reference_cache",
):  # fmt: skip
    importlib.import_module(f"latent_prior.{_module}")

SCHEMAS = [
    *sorted((s for s in msgspec.Struct.__subclasses__() if s.__module__.startswith("latent_prior.")), key=lambda schema: f"{schema.__module__}.{schema.__name__}"),
    CodeSpec,
    Sampler,
]  # fmt: skip
JSON = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text("abc", max_size=3)
quick = settings(max_examples=8, derandomize=True, deadline=None, database=None)

level = st.builds(
    Level, name=st.text("abc", min_size=1, max_size=3), height=st.integers(1, 64),
    width=st.integers(1, 64), vocabulary=st.integers(1, 2**20),
)  # fmt: skip
spec = st.builds(
    CodeSpec, kind=st.just("codes"), levels=st.tuples(level), image_size=st.integers(1, 1024),
    image_channels=st.sampled_from([1, 3]), autoencoder_type=st.text("abc"),
    autoencoder_fingerprint=st.text(string.hexdigits, max_size=64),
    class_names=st.lists(st.text("äb🐝 ", max_size=4), unique=True, max_size=3).map(tuple),
)  # fmt: skip
sampler = st.builds(
    Sampler, guidance_scale=st.floats(0, 1e6), temperature=st.floats(0, 1e6),
    top_k=st.integers(0, 2**20), top_p=st.floats(0.001, 1), steps=st.integers(1, 1000),
)  # fmt: skip


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a type as msgspec understands it."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        (meta,) = arguments[1:]
        if meta.pattern is not None:
            return st.from_regex(
                meta.pattern.replace("$", r"\Z").replace(r"[\w", "[a-z").replace(r"\w", "[a-z]")
            )
        if meta.min_length is not None:
            return st.lists(values_of(typing.get_args(arguments[0])[0]), min_size=1, max_size=3)
        assert meta.ge is not None
        numbers = st.floats if arguments[0] is float else st.integers
        return numbers(meta.ge, 2.0**53 if arguments[0] is float else 2**53)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*map(values_of, arguments))
    if origin is typing.NotRequired:
        return values_of(arguments[0])
    if origin is dict:
        return st.dictionaries(values_of(arguments[0]), values_of(arguments[1]), max_size=3)
    if origin is list:
        return st.lists(values_of(arguments[0]), max_size=3)
    if typing.is_typeddict(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        return st.fixed_dictionaries({name: values_of(hints[name]) for name in kind.__required_keys__})  # fmt: skip
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        fields = typing.get_type_hints(kind, include_extras=True)
        return st.builds(kind, **{name: values_of(hint) for name, hint in fields.items()})
    plain = {
        int: st.integers(-(2**53), 2**53), float: st.floats(allow_nan=False, allow_infinity=False),
        str: st.text(st.characters(exclude_categories=["Cs"]), max_size=6), bool: st.booleans(),
        type(None): st.none(), Any: JSON, CodeSpec: spec, Sampler: sampler,
    }  # fmt: skip
    return plain[kind]


def written(value: Any, path: Path) -> Any:
    write_record(path, asdict(value) if isinstance(value, CodeSpec | Sampler) else value)
    return value


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.__name__)
def test_a_record_of_every_schema_survives_the_way_to_a_file_and_back(schema, tmp_path_factory):
    path = tmp_path_factory.mktemp("schema") / "a.json"

    @quick
    @given(value=values_of(schema))
    def there_and_back(value):
        expected = written(value, path)
        assert read_record(path, schema, "write it") == expected

    there_and_back()


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.__name__)
def test_a_changed_record_of_any_schema_is_refused_by_name_or_of_its_types(
    schema, tmp_path_factory
):
    path = tmp_path_factory.mktemp("schema") / "a.json"

    @quick
    @given(value=values_of(schema), seed=st.integers(0, 2**32))
    def changed(value, seed):
        chance = random.Random(seed)
        written(value, path)
        for _ in range(5):
            content = bytearray(path.read_bytes())
            content[chance.randrange(len(content))] = chance.randrange(256)
            (path.parent / "b.json").write_bytes(content)
            try:
                found = read_record(path.parent / "b.json", schema, "write it")
            except ValueError as error:
                assert "b.json" in str(error)  # noqa: PT017
            else:
                assert msgspec.convert(msgspec.to_builtins(found), schema) == found

    changed()
