"""What is wrong with a text, in one line: where it stands, which field, why, what to do. Values are never shown."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from dsfs.errors import ConfigError, one_line

_TYPE_SENTENCES = {
    "missing": "is missing",
    "string_type": "must be text (put it in quotes)",
    "string_unicode": "is not valid Unicode text",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "bool_type": "must be true or false",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "list_type": "must be a list",
    "invalid_key": "has a key that is not text (put it in quotes)",
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where an object stands: the file, the document in it (1 is the first), and the item if the document is a List."""

    file: str
    document: int
    item: int | None = None

    def __str__(self) -> str:
        where = f"{one_line(self.file)}: document {self.document}"
        return where if self.item is None else f"{where}: item {self.item}"

    def problem(self, field: str, why: str) -> ConfigError:
        """The error to raise; an empty field means the whole document. ``why`` must be free of values from the text."""
        return ConfigError(f"{self}: field {one_line(field)}: {why}" if field else f"{self}: {why}")

    def rejected(self, error: ValidationError, model: type[BaseModel], root: str) -> ConfigError:
        """What pydantic found, in our words; ``root`` is the path of the field that ``model`` describes."""
        found = error.errors(include_url=False, include_input=False)
        loc = found[0]["loc"]
        why = _sentence(found[0]["type"], found[0].get("ctx", {}), model, loc)
        if len(found) > 1:
            why += f" [and {len(found) - 1} more]"
        return self.problem(field_path(root, loc), why)


def field_path(root: str, loc: Sequence[str | int]) -> str:
    """``spec``, ("a", 0, "b") → ``spec.a[0].b``."""
    path = root
    for part in loc:
        if part == "[key]":
            continue  # pydantic's mark for "the key itself"
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path.lstrip(".")


def _sentence(kind: str, context: dict[str, Any], model: type[BaseModel], loc: Sequence[str | int]) -> str:
    if kind in _TYPE_SENTENCES:
        return _TYPE_SENTENCES[kind]
    if kind == "value_error":  # one of our own validators: its sentences hold no values
        return str(context["error"])
    if kind in ("enum", "literal_error"):
        allowed = str(context["expected"]).replace("'", "").replace(" or ", ", ")
        return f"must be one of {allowed}"
    if kind == "extra_forbidden":
        return _unknown_field(model, loc)
    if kind == "greater_than_equal":
        return f"must be at least {context['ge']}"
    if kind == "less_than_equal":
        return f"must be at most {context['le']}"
    return "is not valid"


def _unknown_field(model: type[BaseModel], loc: Sequence[str | int]) -> str:
    known = sorted(_known_fields(model, loc))
    near = difflib.get_close_matches(str(loc[-1]), known, n=1)
    if near:
        return f"is not a known field (did you mean {near[0]}?)"
    return f"is not a known field (known: {', '.join(known)})"


def _known_fields(model: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    """The fields of the model in which the last name of ``loc`` was found."""
    for part in loc[:-1]:
        field = next((f for name, f in model.model_fields.items() if part in (name, f.alias)), None)
        if field is None:
            continue  # an index of a list
        inside = [field.annotation, *get_args(field.annotation)]
        inside += [inner for outer in inside for inner in get_args(outer)]
        model = next((t for t in inside if isinstance(t, type) and issubclass(t, BaseModel)), model)
    return [field.alias or name for name, field in model.model_fields.items()]
