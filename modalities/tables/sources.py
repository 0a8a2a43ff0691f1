"""From what the user named or handed over to splits of items, not yet decoded, and labels."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Generic

import datasets
import torch
from datasets.exceptions import DatasetNotFoundError

from mmdd.errors import UserError, nearest
from mmdd.modalities.tables.columns import flat
from mmdd.modalities.tables.in_memory import from_pair, from_torch, is_pair
from mmdd.modalities.tables.items import I, Opened, RawSplit, Reader
from mmdd.modalities.tables.labels import CLASSES, Targets
from mmdd.modalities.tables.options import TableData
from mmdd.modalities.tables.splits import require_split

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
}
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


def open_source(
    source: Any, options: TableData, reader: Reader[I], targets: Targets = CLASSES
) -> Opened[I]:
    """Find out what `source` is and open it.

    Parameters
    ----------
    source: a name that the reader knows, a local folder or file, a Hub name; or from Python a
        ``datasets`` Dataset or DatasetDict, a pandas DataFrame, a map-style torch Dataset of
        (item, label), a pair (items, labels), or a dict of these by split. None for
        `options.source`.
    reader: the modality's; see `Reader`.
    targets: what is to be predicted.

    Errors: UserError for anything that cannot be opened.
    """
    source = options.source if source is None else source
    if source is None:
        raise UserError("no data source", hint=f"Set data.source to {reader.words.source}")
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    opener = _Opener(options, reader, targets)
    if isinstance(source, str):
        return opener.from_text(source)
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
    if type(source).__module__.partition(".")[0] == "pandas" and hasattr(source, "columns"):
        source = datasets.Dataset.from_pandas(source, preserve_index=False)
    if isinstance(source, datasets.Dataset):
        source = {options.train_split: source}
    if isinstance(source, Mapping):
        return opener.from_mapping(source, name)
    return Opened(name, {options.train_split: opener.from_python(source)}, {})


class _Opener(Generic[I]):
    """What one opening knows throughout."""

    def __init__(self, options: TableData, reader: Reader[I], targets: Targets) -> None:
        self.options, self.reader, self.targets = options, reader, targets
        self.builders = {**BUILDERS, **reader.builders}

    def from_mapping(self, source: Mapping[str, Any], name: str) -> Opened[I]:
        """Open a dict of splits: all of them tables, or anything from Python."""
        if not source:
            raise UserError("the data set has no splits", got=name)
        if all(isinstance(split, datasets.Dataset) for split in source.values()):
            return self.from_tables({str(key): split for key, split in source.items()}, name)
        require_split(self.options.train_split, {str(key): 1 for key in source}, "train_split")
        splits = {str(key): self.from_python(split) for key, split in source.items()}
        return Opened(name, splits, {})

    def from_python(self, source: Any) -> RawSplit[I]:
        """Open one split that is a pair or a data set of PyTorch."""
        if is_pair(source):
            items, labels = source
            return from_pair(items, labels, self.reader, self.targets)
        if hasattr(source, "__getitem__") and hasattr(source, "__len__"):
            return from_torch(source, self.reader, self.options.label, self.targets)
        one, many = self.reader.words.one, self.reader.words.many
        raise UserError(
            f"this cannot be opened as {many}",
            got=type(source),
            expected="a name or path, a datasets.Dataset or DatasetDict, a torch Dataset of "
            f"({one}, label), a pair ({many}, labels), or a dict of these by split",
        )

    def from_tables(
        self, tables: Mapping[str, datasets.Dataset], name: str, root: str = ""
    ) -> Opened[I]:
        """Find the columns in the training split and use them in every split that has them."""
        options = self.options
        train = tables[require_split(options.train_split, dict.fromkeys(tables, 1), "train_split")]
        if not len(train):
            raise UserError(f"split {options.train_split!r} of {name} is empty")
        columns = self.reader.find(train)
        fields = dict(columns.names)
        label = self.targets.find(train, options.label, fields.values(), self.reader.words)
        asked = (options.train_split, options.test_split, options.validation_split)
        splits = {
            key: RawSplit(columns.read(table, key, root), self.targets.read(table, label))
            for key, table in tables.items()
            if key in asked or set(fields.values()) <= set(flat(table.features))
        }
        return Opened(name, splits, {**fields, "label": label})

    def from_text(self, text: str) -> Opened[I]:
        """Open what the reader knows by this name, a folder or file, or a set on the Hub."""
        known = self.reader.known(text)
        if known is not None:
            return Opened(text, known, {})
        path = Path(text).expanduser()
        if text and path.exists():
            with self.said_plainly(text):
                tables = self.load_path(path)
            root = path if path.is_dir() else path.parent
            return self.from_tables(self.by_split(tables), text, str(root))
        if not text or self.looks_like_path(text):
            raise UserError(f"no such file or folder: {text!r}", hint=_neighbour(path))
        with self.said_plainly(text):
            tables = self.load(text, revision=self.options.revision)
        return self.from_tables(self.by_split(tables), text)

    def by_split(self, tables: Any) -> Mapping[str, datasets.Dataset]:
        """A table without splits is the training split."""
        single = isinstance(tables, datasets.Dataset)
        return {self.options.train_split: tables} if single else tables

    def load(self, *arguments: str, **named: Any) -> Any:
        """Ask the library, with the chosen configuration."""
        return datasets.load_dataset(*arguments, name=self.options.config, **named)

    def load_path(self, path: Path) -> Any:
        """Load a folder or file of any layout that the library reads."""
        if self.options.revision is not None:
            raise UserError("data.revision is for sets on the Hub", got=self.options.revision)
        if path.is_dir() and not _is_saved(path):
            return self.load(str(path))
        if self.options.config is not None:
            raise UserError(f"{str(path)!r} has no configurations", got=self.options.config)
        if path.is_dir():
            return datasets.load_from_disk(str(path))
        suffix = ".tar.gz" if path.name.endswith(".tar.gz") else path.suffix.lower()
        if suffix not in self.builders:
            raise UserError(
                f"cannot tell what kind of data set {str(path)!r} is",
                expected=f"a folder, or a file ending in {', '.join(self.builders)}",
            )
        separator = {"sep": "\t"} if suffix == ".tsv" else {}
        return self.load(self.builders[suffix], data_files=str(path), **separator)

    def looks_like_path(self, text: str) -> bool:
        """Tell a mistyped path from a Hub name, which is ``name`` or ``owner/name``."""
        if text.startswith((".", "/", "~")) or not HUB_NAME.fullmatch(text):
            return True
        path = Path(text)
        parent_is_here = path.parent != Path() and path.parent.exists()
        return parent_is_here or path.suffix.lower() in self.builders

    @contextlib.contextmanager
    def said_plainly(self, text: str) -> Iterator[None]:
        """Turn what the library raises about the source `text` into one line for people."""
        try:
            yield
        except UserError:
            raise
        except ConnectionError as error:
            here = [entry.name for entry in Path().iterdir()]
            close = nearest(text, [*self.reader.built_in, *here])
            raise UserError(
                f"{text!r} is not here, and the Hugging Face Hub cannot be reached",
                hint=(f"Did you mean {close!r}? Or check" if close else "Check")
                + " the network (HF_HUB_OFFLINE must be unset), or pass the path of a "
                f"local folder: {self.reader.words.folder}, or what save_to_disk wrote",
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


def _is_saved(folder: Path) -> bool:
    """True for what `save_to_disk` wrote."""
    return (folder / "dataset_dict.json").exists() or (folder / "state.json").exists()


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
