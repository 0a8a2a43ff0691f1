"""Lay a method, a recipe file, command-line flags and overrides over each other.

Imports no torch, so that every mistake is told at once.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mmdd import catalog
from mmdd.errors import UserError, nearest, unknown_name
from mmdd.recipe import Recipe, validate

BUDGETS = ("per_class", "items", "fraction")
DEFAULT_METHOD = "dm"
AS_MANY_AS_FIT = 1_000_000
"""Steps of a run that is bounded by time alone."""
Layer = tuple[str, dict[str, Any]]
"""Where values come from, and the values."""


class _NoTwins(yaml.SafeLoader):
    """Refuses a key given twice, of which YAML would quietly keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for place, (key, _) in enumerate(node.value):
            if key.value in keys[:place]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands there twice", key.start_mark
                )
        return super().construct_mapping(node, deep)


def shipped() -> dict[str, Path]:
    """Recipes that come with the package, by name: ``images/digits_dm`` and ``methods/dm``."""
    root = Path(str(importlib.resources.files("mmdd.configs")))
    return {
        path.relative_to(root).with_suffix("").as_posix(): path
        for path in sorted(root.rglob("*.yaml"))
    }


def methods() -> dict[str, Path]:
    """Methods by name: recipes without data."""
    prefix = "methods/"
    found = {k.removeprefix(prefix): v for k, v in shipped().items() if k.startswith(prefix)}
    return {name: path for name, path in found.items() if "/" not in name}


def variant(method: str, modality: str) -> Path | None:
    """What a method does otherwise in a modality: ``methods/<modality>/<method>.yaml``."""
    return shipped().get(f"methods/{modality}/{method}")


def recipes() -> dict[str, Path]:
    """Shipped recipes with data, by name."""
    return {k: v for k, v in shipped().items() if not k.startswith("methods/")}


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a recipe file. Raises `UserError` naming the file and the line."""
    try:
        values = yaml.load(path.read_text(encoding="utf8"), _NoTwins)
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}", expected=error.strerror) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not text"
        raise UserError(f"{str(path)!r}{where} is not valid YAML", expected=str(problem)) from None
    if not isinstance(values, dict):
        raise UserError(f"{str(path)!r} is not a recipe", expected="keys and values")
    return values


def is_recipe(name: str) -> bool:
    """True when `name` is meant as a recipe: a YAML file or a shipped name."""
    return name.endswith((".yaml", ".yml")) or name in recipes()


def find_recipe(name: str) -> Path:
    """Return the file of a recipe given by path or shipped name."""
    known = recipes()
    if name in known:
        return known[name]
    path = Path(name)
    if path.exists():
        return path
    beside = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    close = nearest(path.name, beside) or nearest(name, known)
    hint = f"Did you mean {close!r}?" if close else "`mmdd list recipes` names those that ship."
    raise UserError(f"no recipe {name!r}", expected="a YAML file or a shipped recipe", hint=hint)


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """``key=value`` words to a dict of dotted keys; values are read as YAML."""
    found = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise UserError(
                "unexpected argument", got=word, expected="key=value, e.g. optimise.steps=500"
            )
        try:
            found[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            found[key] = text
    return found


def compose(
    recipe: str | Path | None = None,
    *,
    method: str | None = None,
    flags: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Recipe:
    """Build the recipe: method < recipe file < flags < options.

    Parameters
    ----------
    flags, options: values by dotted key; flags of value None were not given.
    """
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    layers: list[Layer] = []
    if recipe is not None:
        path = recipe if isinstance(recipe, Path) else find_recipe(recipe)
        layers.append((str(recipe), read_yaml(path)))
    stated = layers[0][1].get("method") if layers else None
    name = method or stated or DEFAULT_METHOD
    if not isinstance(name, str) or name not in methods():
        error = unknown_name("method", name, methods())
        raise error if method else UserError(f"{recipe}: {error}")
    # a stored recipe names every value; the method is then only a label
    layers.insert(0, (f"method {name}", read_yaml(methods()[name])))
    layers.append(("command line", nested(given)))
    layers.append(("override", nested(dict(options or {}))))
    modality = next((v["modality"] for _, v in reversed(layers) if v.get("modality")), None)
    if modality is None:
        modality = _modality_of_source(layers) or Recipe.model_fields["modality"].default
        layers.insert(1, ("data", {"modality": modality}))
    layers[0] = (layers[0][0], _translated(layers[0][1], modality))
    other = variant(name, str(modality))
    if other is not None:
        layers.insert(1, (f"method {name} on {modality}", read_yaml(other)))
    values: dict[str, Any] = {}
    for origin, layer in layers:
        try:
            values = merge(values, layer)
        except UserError as error:
            raise UserError(f"{origin}: {error}") from None
    values["method"] = name
    return validate(values, lambda key: _origin(layers, key))


def _modality_of_source(layers: list[Layer]) -> str | None:
    """The modality that the data tell, where a recipe names them and leaves it out."""
    sections = [values.get("data") for _, values in reversed(layers)]
    named = (part for part in sections if isinstance(part, Mapping))
    source = next((part["source"] for part in named if "source" in part), None)
    # a name of a Hub tells nothing, and to ask would import what reads data
    here = isinstance(source, str) and (":" in source or Path(source).exists())
    return modality_of(source) if here else None


def _translated(method: dict[str, Any], modality: str | None) -> dict[str, Any]:
    """A method without the net and augmentation of another modality than the one asked for.

    The modality's own defaults then stand in their place.
    """
    own = method.get("modality", modality)
    if own != modality and modality in catalog.MODALITIES:
        raise UserError(
            f"the method is for {own}",
            got=f"data of modality {modality}",
            hint=f"Choose another method (`mmdd list methods`), or data that are {own}.",
        )
    if modality is None or modality not in catalog.MODALITIES or "modality" in method:
        return method
    known = catalog.options(modality)
    method = dict(method)
    if method.get("learner", {}).get("encoder") not in known.ENCODERS:
        method.pop("learner", None)
    augment = method.get("augment")
    kind = augment.get("kind") if isinstance(augment, dict) else augment
    if kind not in known.AUGMENTATIONS:
        method.pop("augment", None)
    judging = method.get("evaluate", {}).get("augment")
    kind = judging.get("kind") if isinstance(judging, dict) else judging
    if kind is not None and kind not in known.AUGMENTATIONS:
        method["evaluate"] = {k: v for k, v in method["evaluate"].items() if k != "augment"}
    return method


def from_flags(
    data: str | None,
    *,
    recipe: str | Path | None = None,
    method: str | None = None,
    per_class: int | None = None,
    items: int | None = None,
    fraction: float | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    seed: int | None = None,
    device: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Recipe:
    """Build the recipe of a command or call.

    `data` may itself be a recipe. Data with a shipped recipe of its own (``digits``) use it.
    """
    options = dict(options or {})
    if data is not None and recipe is None:
        own = [name for name in recipes() if name.endswith(f"/{data}_{method or DEFAULT_METHOD}")]
        if is_recipe(data):
            recipe, data = data, None
        elif own:
            recipe = own[0]
    if data is not None and recipe is None and "modality" not in options:
        known = modality_of(data)
        if known is not None:
            options["modality"] = known
    if minutes is not None and steps is None and "optimise.steps" not in options:
        steps = AS_MANY_AS_FIT
    flags = {
        "data.source": data,
        "synthetic.per_class": per_class,
        "synthetic.items": items,
        "synthetic.fraction": fraction,
        "optimise.steps": steps,
        "run.minutes": minutes,
        "run.seed": seed,
        "run.device": device,
    }
    return compose(recipe, method=method, flags=flags, options=options)


def modality_of(data: Any) -> str | None:
    """The modality that a source names by itself, or that its type, files and columns tell.

    None where nothing is clear: a Hub name is not downloaded.
    """
    found: str | None = catalog.GUESS.load()(data)
    return found


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """``{"a.b": 1}`` to ``{"a": {"b": 1}}``."""
    made: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, last = key.split(".")
        here = made
        for parent in parents:
            below = here.setdefault(parent, {})
            if not isinstance(below, dict):
                raise UserError(f"override {key!r}", expected=f"{parent!r} to hold keys")
            here = below
        here[last] = value
    return made


def merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """Write `high` over `low`. Another kind, encoder or budget replaces what it competes with."""
    low = dict(low)
    if any(high.get(name) is not None for name in BUDGETS):
        low = {key: value for key, value in low.items() if key not in BUDGETS}
    for tag in ("kind", "encoder"):
        if tag in high and tag in low and high[tag] != low[tag]:
            low = {}
    for key, value in high.items():
        low[key] = _laid_over(key, low.get(key), value)
    return low


def _laid_over(key: str, low: Any, high: Any) -> Any:
    """`high` over `low`; a few options of a section leave open what the section is."""
    if not isinstance(high, Mapping):
        return high
    names_options = "kind" not in high and key != "protocol"
    if isinstance(low, str) and key == "protocol" and "name" not in high:
        low = {"name": low}
    if isinstance(low, str) and names_options:
        low = {"kind": low}
    if isinstance(low, list) and names_options:
        raise UserError(
            f"{key!r} is a list of {len(low)} here, of which no part can be set",
            got=".".join([key, *map(str, list(high)[:1])]),
            expected=f"the whole list, as in {key}='[distribution, …]'",
        )
    return merge(low, high) if isinstance(low, Mapping) else high


def _origin(layers: Sequence[Layer], key: str) -> str:
    """Return the name of the last layer that sets `key` or a parent of it."""
    path = key.split(".")
    best, depth = "recipe", 0
    for name, values in layers:
        here: Any = values
        reached = 0
        for part in path:
            if not isinstance(here, Mapping) or part not in here:
                break
            here, reached = here[part], reached + 1
        replaces = reached > 0 and not isinstance(here, Mapping)
        if replaces or (reached >= depth and reached):
            best, depth = name, reached
    return best
