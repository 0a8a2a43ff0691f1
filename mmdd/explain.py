"""What is wrong with a recipe, in one line: file, key, what came and what was expected."""

from __future__ import annotations

import contextlib
import types
import typing
from collections.abc import Callable, Iterator
from typing import Annotated, Any

from pydantic import BaseModel, ValidationError

from mmdd.errors import UserError, nearest

Origin = str | Callable[[str], str]
"""Where values came from: one name, or a function from a dotted key to a name."""


class PlacedError(Exception):
    """A mistake in a recipe and the key where it stands; `validate` adds where that came from."""

    def __init__(self, key: str, error: UserError) -> None:
        super().__init__(str(error))
        self.key = key


@contextlib.contextmanager
def at(key: str) -> Iterator[None]:
    """Say that a mistake made inside stands at `key`."""
    try:
        yield
    except UserError as error:
        raise PlacedError(key, error) from None


class SectionError(Exception):
    """A modality's section did not validate; carries where it stands in the recipe."""

    def __init__(self, error: ValidationError, prefix: tuple[str, ...], model: type) -> None:
        super().__init__(str(error))
        self.error, self.prefix, self.model = error, prefix, model


def explain(
    error: ValidationError, model: type, origin: Origin, prefix: tuple[str, ...] = ()
) -> UserError:
    """Turn pydantic's report into one line about its first finding."""
    findings = error.errors(include_url=False)
    first = findings[0]
    key = ".".join([*prefix, *_path(model, first["loc"], first["type"])])
    more = f" ({len(findings) - 1} more like this)" if len(findings) > 1 else ""
    origin = origin if isinstance(origin, str) else origin(key)
    if first["type"] == "extra_forbidden":
        siblings = _fields_at(model, first["loc"][:-1])
        close = nearest(str(first["loc"][-1]), siblings)
        hint = f"Did you mean {close!r}?" if close else None
        return UserError(
            f"{origin}: unknown key '{key}'{more}",
            expected=f"one of {', '.join(sorted(siblings))}",
            hint=hint,
        )
    message = str(first["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    if first["type"] == "value_error":
        # one of our own checks: the sentence says all
        return UserError(f"{origin}: {key + ': ' if key else ''}{message}{more}")
    got = None if first["type"] == "missing" else first["input"]
    got = got if isinstance(got, (str, int, float, bool, list, type(None))) else None
    where = f"{origin}: key '{key}'" if key else origin
    return UserError(f"{where}{more}", got=got, expected=message)


def _path(model: Any, location: tuple[Any, ...], kind: str) -> list[str]:
    """Keys of `location` as the user wrote them: pydantic's names of union branches left out."""
    keys = []
    models = [model]
    for place, part in enumerate(location):
        known = _fields(models)
        is_key = not known or part in known or place == 0
        is_key = is_key or (kind == "extra_forbidden" and place == len(location) - 1)
        if isinstance(part, int) or (is_key and models):
            keys.append(str(part))
        models = _below(models, part)
    return keys


def _fields_at(model: Any, location: tuple[Any, ...]) -> list[str]:
    """Names of the fields of the nested model at `location`."""
    models = [model]
    for part in location:
        models = _below(models, part) or models
    return list(_fields(models))


def _fields(models: list[Any]) -> dict[str, Any]:
    return {
        name: field
        for model in models
        for name, field in getattr(model, "model_fields", {}).items()
    }


def _below(models: list[Any], part: Any) -> list[Any]:
    """The models one step further down: those of a field, or the branch of a union by its kind."""
    fields = _fields(models)
    if part in fields:
        return list(_models(fields[part].annotation))
    branches = [model for model in models if _kind_of(model) == part]
    return branches or models


def _kind_of(model: Any) -> Any:
    field = getattr(model, "model_fields", {}).get("kind")
    return None if field is None else field.default


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif typing.get_origin(annotation) in (Annotated, typing.Union, types.UnionType, list):
        for part in typing.get_args(annotation):
            yield from _models(part)
