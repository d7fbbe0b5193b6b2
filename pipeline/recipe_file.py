"""A recipe, or the description of a cluster, as YAML and back.

It is written with the documentation of every field, and read strictly: unknown or repeated keys and
values of another type are errors, which name the key and the nearest valid one. A field that is
left out gets its default, not the preset's value.
"""

import ast
import dataclasses
import inspect
import textwrap
import types
import typing
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml

from cluster.words import nearest
from pipeline.recipes import Recipe

T = TypeVar("T")


class ConfigError(ValueError):
    """The file does not describe what it is read as."""


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML; each field's documentation stands above it."""
    return (
        f"# Recipe {recipe.name}. Run it: python -m pipeline run FILE.yaml\n{dump_config(recipe)}"
    )


def dump_config(config: object) -> str:
    """A config as YAML; each field's documentation stands above it."""
    return "\n".join(_dump(config)) + "\n"


def read_file(name: str, template: str) -> str:
    """The text of a YAML file that the user names; ValueError if it cannot be read."""
    try:
        return Path(name).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its bytes are no UTF-8 text"
        raise ValueError(
            f"{name} cannot be read ({reason}): a YAML file is required; correct the name, or write "
            f"a template with `python -m pipeline {template}`"
        ) from error


def load_recipe(text: str, source: str) -> Recipe:
    """The recipe of a YAML text, such as `dump_recipe` writes.

    `source` is the file's name for messages. ConfigError names the key that is wrong.
    """
    return load_config(Recipe, text, source, "config quickstart")


def load_config(owner: type[T], text: str, source: str, template: str) -> T:
    """The config of type `owner` in the text of a file; the verb `template` prints one.

    ConfigError names the key that is wrong, and the file.
    """
    try:
        values = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        reason = _reason(error)
        raise ConfigError(
            f"{source} is not YAML ({reason}): correct it, or write a template with "
            f"`python -m pipeline {template}`"
        ) from error
    return typing.cast(T, _load(owner, {} if values is None else values, source))


def _reason(error: yaml.YAMLError) -> str:
    """What is wrong, and where, on one line; PyYAML also shows the line itself."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return f"{error.problem}, line {mark.line + 1}, column {mark.column + 1}"
    return " ".join(str(error).split())


class _Loader(yaml.SafeLoader):
    """A YAML loader that refuses repeated keys, of which PyYAML silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} occurs twice: leave one", node.start_mark
                )
        return super().construct_mapping(node, deep)


def _dump(value: Any, indent: str = "") -> list[str]:
    owner: type = type(value)
    lines = []
    docs = field_docs(owner)

    for item in dataclasses.fields(value):
        entry = getattr(value, item.name)
        doc = docs.get(item.name, "")
        lines += [f"{indent}# {line}" for line in textwrap.wrap(doc, 110 - len(indent))]
        if dataclasses.is_dataclass(entry):
            lines += [f"{indent}{item.name}:", *_dump(entry, indent + "  ")]
        else:
            lines.append(f"{indent}{item.name}: {_literal(entry)}")

    return lines


def _literal(value: object) -> str:
    """The value on one line; PyYAML ends a bare scalar with the document marker "..."."""
    return (
        yaml.safe_dump(_plain(value), default_flow_style=True, width=10_000)
        .removesuffix("...\n")
        .strip()
    )


def _plain(value: object) -> object:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


@cache
def field_docs(owner: type) -> dict[str, str]:
    """The documentation of each field of a dataclass: the string literal under it."""
    body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs = {}

    # Python keeps no docstrings of fields: they are read from the source, as pairs of a field and
    # the string that follows it.
    for name, text in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(name, ast.AnnAssign)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        ):
            docs[ast.unparse(name.target)] = inspect.cleandoc(str(text.value.value))

    return docs


def _load(kind: object, value: object, where: str) -> object:
    """`value`, as read from YAML, as an instance of the annotated type `kind`."""
    if dataclasses.is_dataclass(kind):
        return _load_fields(typing.cast(type, kind), value, where)

    origin = typing.get_origin(kind)
    options = typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _load_union(options, value, where)
    if origin is typing.Literal:
        if value not in options:
            raise ConfigError(
                f"{where} is {value!r}: it must be one of {', '.join(map(repr, options))}"
            )
        return value
    if origin is tuple and isinstance(value, list):
        # tuple[int, ...] has one type for any number of entries; tuple[int, str] has one per entry.
        kinds = [options[0]] * len(value) if options[-1] is Ellipsis else list(options)
        if len(kinds) != len(value):
            raise ConfigError(f"{where} has {len(value)} entries: it must have {len(kinds)}")
        return tuple(
            _load(each, item, f"{where}[{index}]")
            for index, (each, item) in enumerate(zip(kinds, value, strict=True))
        )

    # bool is a subclass of int, but `true` is neither a float nor an int here.
    if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        return _number(value, where)
    if (
        not isinstance(kind, type)
        or not isinstance(value, kind)
        or (kind is int and isinstance(value, bool))
    ):
        expected = getattr(kind, "__name__", str(kind))
        raise ConfigError(f"{where} is {value!r}: it must be of type {expected}")

    return value


def _number(value: int | str, where: str) -> float:
    """A float from a whole number, or from text: YAML reads 3e-4, without a dot, as text."""
    try:
        return float(value)
    except ValueError:
        raise ConfigError(f"{where} is {value!r}: it must be of type float") from None


def _load_fields(owner: type, value: object, where: str) -> object:
    if not isinstance(value, dict):
        raise ConfigError(f"{where} is {value!r}: it must be a section with keys")
    kinds = typing.get_type_hints(owner)
    for key in value:
        if key not in kinds:
            raise ConfigError(f"{where} has the unknown key {key!r}{nearest(str(key), kinds)}")
    missing = [
        field.name
        for field in dataclasses.fields(owner)
        if field.name not in value
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{where} is incomplete: {' and '.join(missing)} must be there; add them")

    return owner(**{key: _load(kinds[key], item, f"{where}: {key}") for key, item in value.items()})


def _load_union(options: tuple[object, ...], value: object, where: str) -> object:
    if value is None and type(None) in options:
        return None
    if any(
        typing.get_origin(option) is typing.Literal and value in typing.get_args(option)
        for option in options
    ):
        return value

    # The option whose type the value has; otherwise the first one, for its message or conversion.
    present = [option for option in options if option is not type(None)]
    matching = [
        option for option in present if isinstance(option, type) and isinstance(value, option)
    ]

    return _load((*matching, *present)[0], value, where)
