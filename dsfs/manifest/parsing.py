"""Text becomes plain objects: YAML and JSON, several documents in one text, with nothing guessed and nothing run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode

from dsfs.errors import ConfigError, one_line

_STR_TAG = "tag:yaml.org,2002:str"
_NOT_TEXT_TAGS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "bool", "timestamp", "value"))
# Values in these are text whatever they look like: `commit: 0123456` is no octal number, `version: 4.10` is not 4.1.
_TEXT_MAPPINGS = frozenset({"options", "stringData", "data"})
_TEXT_FIELDS = frozenset({"mode"})
_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
"""How JSON escapes one character (RFC 8259 section 7), which PyYAML leaves two."""
# Messages of PyYAML that quote what was written; an unquoted password may begin with "*", "&", "!" or "%".
_QUOTING = ("alias", "anchor", "tag handle", "constructor for")


class _ProblemError(ConstructorError):
    """One of our own sentences, free of values."""


class _Loader(yaml.SafeLoader):
    """The safe loader, but a key may stand only once in a mapping, and every failure has a line and a column."""

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        node: MappingNode = super().compose_mapping_node(anchor)
        # Here and not in construct_mapping: that one sees the keys that "<<" has merged in, which may be overridden.
        seen: set[tuple[str, str]] = set()
        for index, (key, value) in enumerate(node.value):
            if not isinstance(key, ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                raise _ProblemError(None, None, f"the key {one_line(key.value, 60)} stands twice", key.start_mark)
            seen.add((key.tag, key.value))
            if key.value in _TEXT_FIELDS:
                node.value[index] = (key, _as_text(value))
            elif key.value in _TEXT_MAPPINGS and isinstance(value, MappingNode):
                value.value = [(name, _as_text(item)) for name, item in value.value]
        return node

    def construct_scalar(self, node: ScalarNode | MappingNode) -> Any:
        text = super().construct_scalar(node)
        return _PAIR.sub(_joined, text) if isinstance(text, str) else text

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, LookupError, AttributeError, TypeError, OverflowError):
            # PyYAML lets the errors of its converters through: `2024-13-41` looks like a date, `0x_` like a number.
            raise _ProblemError(None, None, "this value cannot be read (put it in quotes)", node.start_mark) from None


def _joined(pair: re.Match[str]) -> str:
    return pair[0].encode("utf-16", "surrogatepass").decode("utf-16")


def _as_text(node: Node) -> Node:
    if isinstance(node, ScalarNode) and node.tag in _NOT_TEXT_TAGS:
        return ScalarNode(_STR_TAG, node.value, node.start_mark, node.end_mark, node.style)
    return node


def read_text(path: str) -> str:
    """A whole file. Raises ConfigError with its name and why."""
    try:
        with open(path, "rb") as file:
            return file.read().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{one_line(path)}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{one_line(path)}: is not UTF-8 text (byte {error.start})") from error


def parse(text: str, file: str) -> Iterator[tuple[int, Any]]:
    """The documents of a text and their numbers, 1 for the first; empty ones are counted and left out.

    ``file`` names the text in errors; when it ends in ``.json`` the text is JSON. Raises ConfigError.
    """
    documents = _parse_json(text, file) if file.endswith(".json") else _parse_yaml(text, file)
    for number, document in enumerate(documents, start=1):
        if document is not None:
            yield number, document


def _parse_yaml(text: str, file: str) -> Iterator[Any]:
    where = one_line(file)
    try:
        yield from yaml.load_all(text, Loader=_Loader)
    except yaml.reader.ReaderError as error:
        line, column = _line_and_column(text, error.position)
        raise ConfigError(f"{where}: line {line}, column {column}: a character that YAML does not allow") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError(f"{where}: {at}{_yaml_problem(error)}") from None  # its text shows the line
    except RecursionError:
        raise ConfigError(f"{where}: is nested too deeply") from None


def _yaml_problem(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or "is not valid YAML"
    if isinstance(error, _ProblemError):
        return problem
    if any(word in f"{problem} {error.context}" for word in _QUOTING):
        return "an alias, anchor or tag that is not known (put text that begins with * & ! or % in quotes)"
    return one_line(problem)


def _parse_json(text: str, file: str) -> Iterator[Any]:
    where = one_line(file)
    decoder = json.JSONDecoder(object_pairs_hook=_object)
    position = 0
    try:
        while (position := len(text) - len(text[position:].lstrip(" \t\r\n"))) < len(text):
            document, position = decoder.raw_decode(text, position)
            yield document
    except json.JSONDecodeError as error:  # not chained: it holds the whole text
        raise ConfigError(f"{where}: line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise ConfigError(f"{where}: is nested too deeply") from None
    except ValueError as error:  # a key that stands twice, or a number of more digits than Python converts
        line, column = _line_and_column(text, position)
        why = str(error) if isinstance(error, _TwiceError) else "a number is too long"
        raise ConfigError(f"{where}: line {line}, column {column}: {why}") from None


class _TwiceError(ValueError):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _TwiceError(f"the key {one_line(twice, 60)} stands twice in a mapping of this document")
    return result


def _line_and_column(text: str, position: int) -> tuple[int, int]:
    before = text[:position]
    return before.count("\n") + 1, position - (before.rfind("\n") + 1) + 1
