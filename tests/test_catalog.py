"""The dictionaries, and the packages that are shipped."""

from __future__ import annotations

import fnmatch
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from mmdd import catalog
from mmdd.errors import UserError, nearest, unknown_name

ROOT = Path(__file__).parents[1]
# how a folder of the repository is called when it is installed
FOLDERS = {
    "mmdd": "mmdd",
    "modalities": "mmdd.modalities",
    "tasks": "mmdd.tasks",
    "configs": "mmdd.configs",
}
ENTRIES = [
    pytest.param(entry, id=f"{family}-{name}")
    for family, entries in catalog.FAMILIES.items()
    for name, entry in entries.items()
]

in_a_checkout = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").is_file(), reason="needs the repository, not the wheel alone"
)


# -- entries ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_imports_and_is_described(entry):
    part = entry.load()
    described = part if inspect.isclass(part) or inspect.isfunction(part) else type(part)
    assert described.__module__ == entry.target.partition(":")[0]
    assert inspect.getdoc(described)
    assert described.__doc__, "an inherited docstring describes another part"
    assert entry.about
    assert "\n" not in entry.about


def test_every_family_has_an_entry_and_plain_names():
    for family, entries in catalog.FAMILIES.items():
        assert entries, family
        for name in entries:
            assert re.fullmatch(r"[a-z0-9]+([-_][a-z0-9]+)*", name), name


def test_families_are_the_dictionaries_of_the_module():
    written = {
        name.lower(): value
        for name, value in vars(catalog).items()
        if name.isupper() and name != "FAMILIES" and isinstance(value, dict)
    }
    assert written == dict(catalog.FAMILIES)


@pytest.mark.parametrize("family", catalog.FAMILIES)
def test_an_unknown_name_lists_the_names_and_the_nearest(family):
    entries = catalog.FAMILIES[family]
    name = next(iter(entries))
    with pytest.raises(UserError) as caught:
        catalog.load("part", name + "x", entries)
    message = str(caught.value)
    assert f"unknown part '{name}x'" in message
    assert all(known in message for known in entries)
    assert f"Did you mean {name!r}?" in message


def test_nothing_is_suggested_where_nothing_is_near():
    assert nearest("zzzz", ["fresh", "direct"]) is None
    assert "Did you mean" not in str(unknown_name("source", "zzzz", ["fresh"]))


def test_names_may_be_a_plain_list():
    assert catalog.require("column", "a", ["a", "b"]) == "a"
    with pytest.raises(UserError, match="unknown column 'c'; expected one of a, b"):
        catalog.require("column", "c", ["b", "a"])


@pytest.mark.parametrize("modality", catalog.MODALITIES)
def test_every_modality_has_option_models(modality):
    options = catalog.options(modality)
    assert options.DATA().model_dump()
    for family in (options.ENCODERS, options.AUGMENTATIONS):
        assert family
        for name, model in family.items():
            tag = "encoder" if family is options.ENCODERS else "kind"
            assert getattr(model(), tag) == name
            assert model.__doc__
            assert model.model_config["extra"] == "forbid"


@pytest.mark.parametrize("modality", catalog.MODALITIES)
def test_every_modality_carries_its_name(modality):
    assert catalog.load("modality", modality, catalog.MODALITIES).name == modality


@pytest.mark.parametrize("task", catalog.TASKS)
def test_every_task_keeps_the_contract(task):
    made = catalog.load("task", task, catalog.TASKS)()
    assert made.name == task
    assert made.direction in ("max", "min")
    assert isinstance(made.coupled, bool)
    assert made.metric
    assert made.label_kinds


def test_models_of_a_recipe_name_the_entries_of_the_catalog():
    from typing import get_args

    from mmdd import method_sections, sections

    def kinds(*models):
        return {name for m in models for name in get_args(m.model_fields["kind"].annotation)}

    assert kinds(*_members(method_sections.Term)) == set(catalog.OBJECTIVES)
    assert kinds(*_members(method_sections.Objective)) == {*catalog.OBJECTIVES, "sum"}
    assert kinds(*_members(method_sections.Source)) == set(catalog.SOURCES)
    assert kinds(*_members(sections.Selector)) == set(catalog.SELECTORS)
    synthetic = sections.Synthetic.model_fields
    representation = _members(synthetic["representation"].annotation)
    assert kinds(*representation) == set(catalog.REPRESENTATIONS)
    assert kinds(*_members(synthetic["labels"].annotation)) == set(catalog.LABELS)


def _members(annotation):
    """The models of a union, or the one model."""
    import types
    import typing

    if inspect.isclass(annotation):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        parts = typing.get_args(annotation)
        return [m for part in parts for m in _members(part)]
    return []


# -- packages --------------------------------------------------------------------------------------


def setuptools_table():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


@in_a_checkout
def test_every_folder_of_code_is_a_listed_package():
    found = set()
    for folder, package in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            inside = path.parent.relative_to(ROOT / folder).parts
            found.add(".".join([package, *inside]))
    listed = setuptools_table()["packages"]
    assert sorted(listed) == sorted(found)
    assert len(listed) == len(set(listed))


@in_a_checkout
def test_every_package_has_an_init_with_a_docstring():
    for folder in FOLDERS:
        for directory in {path.parent for path in (ROOT / folder).rglob("*.py")}:
            text = (directory / "__init__.py").read_text()
            assert text.startswith('"""'), directory


@in_a_checkout
def test_package_folders_are_mapped_to_their_import_names():
    expected = {package: folder for folder, package in FOLDERS.items() if package != folder}
    assert setuptools_table()["package-dir"] == expected


@in_a_checkout
def test_every_recipe_file_is_shipped():
    patterns = setuptools_table()["package-data"]["mmdd.configs"]
    for path in (ROOT / "configs").rglob("*"):
        if path.suffix not in (".yaml", ".yml"):
            continue
        inside = path.relative_to(ROOT / "configs").as_posix()
        assert path.suffix == ".yaml", "recipes end in .yaml"
        assert any(fnmatch.fnmatch(inside, pattern) for pattern in patterns), inside


@in_a_checkout
@pytest.mark.parametrize("name", ["modalities", "tasks", "configs"])
def test_a_folder_is_not_imported_from_the_root_by_its_bare_name(name):
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode != 0
    assert f"ImportError: import mmdd.{name} instead" in done.stderr
    assert "pip install -e ." in done.stderr


@in_a_checkout
def test_the_core_imports_no_modality_and_no_task():
    pattern = re.compile(r"^\s*(?:from|import) mmdd\.(?:modalities|tasks)\b", re.MULTILINE)
    for path in (ROOT / "mmdd").rglob("*.py"):
        assert not pattern.search(path.read_text()), path


@in_a_checkout
def test_the_version_is_the_same_everywhere():
    import mmdd

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == mmdd.__version__
