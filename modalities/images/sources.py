"""From what the user named or handed over to splits of undecoded images and labels."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import torch
from datasets.exceptions import DatasetNotFoundError

from mmdd.errors import UserError, nearest
from mmdd.modalities.images.columns import find_columns
from mmdd.modalities.images.in_memory import RawSplit, digits, from_pair, from_torch, is_pair
from mmdd.modalities.images.options import ImageData
from mmdd.modalities.images.splits import require_split

BUILDERS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".tar": "webdataset",
    ".tgz": "webdataset",
    ".tar.gz": "webdataset",
    ".zip": "imagefolder",
}
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
PYTHON_SOURCES = (
    "a name or path, a datasets.Dataset or DatasetDict, a torch Dataset of (image, label), "
    "a pair (images, labels), or a dict of these by split"
)


@dataclasses.dataclass(frozen=True)
class Opened:
    """A source before anything is decoded.

    Attributes
    ----------
    name: what the user called it.
    splits: what it holds, by name.
    columns: where the images and labels come from, where the source has columns.
    """

    name: str
    splits: Mapping[str, RawSplit]
    columns: Mapping[str, str]


def open_source(source: Any, options: ImageData) -> Opened:
    """Find out what `source` is and open it; see `open_images` for what it may be.

    Errors: UserError for anything that cannot be opened.
    """
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    if isinstance(source, str):
        return _from_text(source, options)
    streams = (
        datasets.IterableDataset,
        datasets.IterableDatasetDict,
        torch.utils.data.IterableDataset,
    )
    if isinstance(source, streams):
        raise UserError(
            "a stream cannot be sampled by class",
            got=type(source).__name__,
            hint="Materialise it first: load it with streaming=False, or collect it into "
            "datasets.Dataset.from_generator",
        )
    name = f"{type(source).__name__} in memory"
    if isinstance(source, datasets.Dataset):
        source = {options.train_split: source}
    if isinstance(source, Mapping):
        return _from_mapping(source, options, name)
    return Opened(name, {options.train_split: _from_python(source, options)}, {})


def _from_mapping(source: Mapping[str, Any], options: ImageData, name: str) -> Opened:
    if not source:
        raise UserError("the data set has no splits", got=name)
    if all(isinstance(split, datasets.Dataset) for split in source.values()):
        return _from_tables({str(key): split for key, split in source.items()}, options, name)
    require_split(options.train_split, {str(key): 1 for key in source}, "train_split")
    splits = {str(key): _from_python(split, options) for key, split in source.items()}
    return Opened(name, splits, {})


def _from_python(source: Any, options: ImageData) -> RawSplit:
    if is_pair(source):
        return from_pair(*source)
    if hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        return from_torch(source, options)
    raise UserError("this cannot be opened as images", got=type(source), expected=PYTHON_SOURCES)


def _from_tables(
    tables: Mapping[str, datasets.Dataset], options: ImageData, name: str, root: str = ""
) -> Opened:
    """Find the columns in the training split and use them in every split that has them."""
    train = tables[require_split(options.train_split, dict.fromkeys(tables, 1), "train_split")]
    if not len(train):
        raise UserError(f"split {options.train_split!r} of {name} is empty")
    columns = find_columns(train, options.image, options.label)
    asked = (options.train_split, options.test_split, options.validation_split)
    splits = {
        key: RawSplit(columns.pixels(table, key, root), columns.labels(table))
        for key, table in tables.items()
        if key in asked or columns.image in table.column_names
    }
    return Opened(name, splits, {"image": columns.image, "label": columns.label})


def _from_text(text: str, options: ImageData) -> Opened:
    if text == "digits":
        return Opened(text, digits(), {})
    path = Path(text).expanduser()
    if text and path.exists():
        with _said_plainly(text):
            tables = _load_path(path, options)
        root = path if path.is_dir() else path.parent
        return _from_tables(_by_split(tables, options), options, text, str(root))
    if not text or _looks_like_path(text):
        raise UserError(f"no such file or folder: {text!r}", hint=_neighbour(path))
    with _said_plainly(text):
        tables = _load(options, text, revision=options.revision)
    return _from_tables(_by_split(tables, options), options, text)


def _by_split(tables: Any, options: ImageData) -> Mapping[str, datasets.Dataset]:
    return {options.train_split: tables} if isinstance(tables, datasets.Dataset) else tables


def _load(options: ImageData, *arguments: str, **named: Any) -> Any:
    return datasets.load_dataset(*arguments, name=options.config, **named)


def _load_path(path: Path, options: ImageData) -> Any:
    """Load a folder or file of any layout that the library reads."""
    if options.revision is not None:
        raise UserError("data.revision is for sets on the Hub", got=options.revision)
    if path.is_dir() and not _is_saved(path):
        return _load(options, str(path))
    if options.config is not None:
        raise UserError(f"{str(path)!r} has no configurations", got=options.config)
    if path.is_dir():
        return datasets.load_from_disk(str(path))
    suffix = ".tar.gz" if path.name.endswith(".tar.gz") else path.suffix.lower()
    if suffix not in BUILDERS:
        raise UserError(
            f"cannot tell what kind of data set {str(path)!r} is",
            expected=f"a folder, or a file ending in {', '.join(BUILDERS)}",
        )
    separator = {"sep": "\t"} if suffix == ".tsv" else {}
    return _load(options, BUILDERS[suffix], data_files=str(path), **separator)


def _is_saved(folder: Path) -> bool:
    """True for what `save_to_disk` wrote."""
    return (folder / "dataset_dict.json").exists() or (folder / "state.json").exists()


def _looks_like_path(text: str) -> bool:
    """Tell a mistyped path from a Hub name, which is ``name`` or ``owner/name``."""
    if text.startswith((".", "/", "~")) or not HUB_NAME.fullmatch(text):
        return True
    path = Path(text)
    parent_is_here = path.parent != Path() and path.parent.exists()
    return parent_is_here or path.suffix.lower() in BUILDERS


def _neighbour(path: Path) -> str | None:
    """Point to the entry most like the missing one, in the deepest folder that exists."""
    missing, folder = path.name, path.parent
    while not folder.exists() and folder != folder.parent:
        missing, folder = folder.name, folder.parent
    if not folder.is_dir():
        return None
    close = nearest(missing, [entry.name for entry in folder.iterdir()])
    if close:
        return f"Did you mean {str(folder / close)!r}?"
    return f"The folder {str(folder)!r} exists, but holds nothing like {missing!r}"


@contextlib.contextmanager
def _said_plainly(text: str) -> Iterator[None]:
    """Turn what the library raises about the source `text` into one line for people."""
    try:
        yield
    except UserError:
        raise
    except ConnectionError as error:
        raise UserError(
            f"{text!r} is not here, and the Hugging Face Hub cannot be reached",
            hint="Check the network (HF_HUB_OFFLINE must be unset), or pass the path of a local "
            "folder: parquet files, train/<class>/*.png, or what save_to_disk wrote",
        ) from error
    except DatasetNotFoundError as error:
        raise UserError(
            f"the Hugging Face Hub has no data set {text!r}, or it needs a login",
            hint=_neighbour(Path(text)),
        ) from error
    except Exception as error:  # builders raise what the files lead them to
        cause = error.__cause__ or error
        if any(words in str(error) for words in ("Config name is missing", "BuilderConfig")):
            raise _config_error(text) from error
        lines = str(cause).strip().splitlines() or [type(cause).__name__]
        raise UserError(f"{text!r} cannot be read as a data set: {lines[0]}") from error


def _config_error(text: str) -> UserError:
    """List the configurations, of which none or an unknown one was chosen."""
    try:
        known = ", ".join(datasets.get_dataset_config_names(text))
    except Exception:  # only the list is lost
        known = "one of those that its page lists"
    return UserError(
        f"{text!r} has several configurations, and none that fits was chosen",
        expected=known,
        hint="Choose with data.config=NAME",
    )
