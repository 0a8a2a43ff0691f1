"""Sets of PyG and OGB by name: which there are, where their raw files lie, where they are kept.

PyG writes ``processed`` beside ``raw``, and reads any it finds there. A folder of the user is
therefore never opened in place: its raw files are linked into the cache and processed there, once
per version of PyG.

How the raw files are read is PyG's business: those of Planetoid are pickles, so that a root must
come from a place that is trusted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from mmdd import files
from mmdd.cache import cache_folder
from mmdd.errors import UserError, nearest, unknown_name

PREFIX = "pyg:"


@dataclasses.dataclass(frozen=True)
class Known:
    """A class of ``torch_geometric.datasets``.

    Attributes
    ----------
    items: the sets it has; empty for a class that is one set, None for an open list.
    folder: from the name of a set to its folder in the root; None for a set in no folder.
    normalise: what the field does with the features, where `auto` would choose otherwise.
    more: arguments of the class.
    """

    items: tuple[str, ...] | None
    folder: Callable[[str], str] | None = str
    normalise: Literal["standard"] | None = None
    more: dict[str, Any] = dataclasses.field(default_factory=dict)


def _underscored(item: str) -> str:
    return item.lower().replace("-", "_")


def _geom(item: str) -> str:
    return f"{item}/geom_gcn"


SETS: dict[str, Known] = {
    "Planetoid": Known(("Cora", "CiteSeer", "PubMed")),
    "Actor": Known((), lambda item: ""),
    "Amazon": Known(("Computers", "Photo")),
    "CitationFull": Known(("Cora", "Cora_ML", "CiteSeer", "DBLP", "PubMed"), str.lower),
    "Coauthor": Known(("CS", "Physics")),
    "Flickr": Known((), lambda item: "", normalise="standard"),  # as GraphSAINT's code does
    "HeterophilousGraphDataset": Known(
        ("Roman-empire", "Amazon-ratings", "Minesweeper", "Tolokers", "Questions"), _underscored
    ),
    "KarateClub": Known((), None),
    "OGB": Known(("ogbn-arxiv", "ogbn-products", "ogbg-molhiv", "ogbg-ppa"), None),
    "Reddit": Known((), lambda item: ""),
    "TUDataset": Known(None),
    "WebKB": Known(("Cornell", "Texas", "Wisconsin"), str.lower),
    "WikiCS": Known((), lambda item: "", more={"is_undirected": True}),
    "WikipediaNetwork": Known(("chameleon", "squirrel"), _geom),
}


@dataclasses.dataclass(frozen=True)
class Chosen:
    """One set of the table: ``pyg:NAME/ITEM``, or ``pyg:NAME`` where there is but one."""

    name: str
    item: str

    @property
    def known(self) -> Known:
        """Its line in the table."""
        return SETS[self.name]

    @property
    def text(self) -> str:
        """What a user types."""
        return f"{PREFIX}{self.name}/{self.item}" if self.item else f"{PREFIX}{self.name}"

    @property
    def folder(self) -> str:
        """Its folder in the root; empty where the root is its folder."""
        return "" if self.known.folder is None else self.known.folder(self.item)


def choose(text: str) -> Chosen:
    """Find ``pyg:NAME/ITEM`` in the table, whatever the case of its letters.

    Errors: UserError for unknown names, with the nearest one.
    """
    name, _, item = text.removeprefix(PREFIX).partition("/")
    same = {known.lower(): known for known in SETS}
    if name.lower() not in same:
        owner = next((known for known, set_ in SETS.items() if _canonical(name, set_.items)), None)
        if owner is not None and not item:
            item_found = _canonical(name, SETS[owner].items)
            raise UserError(
                f"unknown set {text!r}", hint=f"Did you mean '{PREFIX}{owner}/{item_found}'?"
            )
        raise unknown_name("class of PyG's sets", name, SETS)
    name = same[name.lower()]
    items = SETS[name].items
    if items is None:
        if not re.fullmatch(r"[\w-]+", item, re.ASCII):
            raise UserError(f"{PREFIX}{name} needs the name of a set", hint="e.g. TUDataset/MUTAG")
        return Chosen(name, item)
    if bool(item) != bool(items):
        expected = f"{PREFIX}{name}/ITEM with one of {', '.join(items)}" if items else None
        raise UserError(
            f"{text!r} names no set" if items else f"{PREFIX}{name} is one set",
            got=item or None,
            expected=expected or f"{PREFIX}{name}",
        )
    found = _canonical(item, items)
    if items and found is None:
        raise unknown_name(f"set of {name}", item, items)
    return Chosen(name, found or "")


def _canonical(item: str, items: tuple[str, ...] | None) -> str | None:
    return next((known for known in items or () if _underscored(known) == _underscored(item)), None)


def suggestion(text: str) -> str | None:
    """The set that a user who forgot ``pyg:``, or mistyped a name, may have meant."""
    full = {
        f"{name}/{item}" if item else name: f"{PREFIX}{name}/{item}" if item else f"{PREFIX}{name}"
        for name, known in SETS.items()
        for item in known.items or ("",)
    }
    short = {name.partition("/")[2]: name for name in reversed(full) if "/" in name}
    close = nearest(text, full) or short.get(nearest(text, short) or "")
    return full[close] if close else None


def open_set(chosen: Chosen, root: str | None) -> Any:
    """Open a set: a ``torch_geometric`` data set.

    Parameters
    ----------
    root: folder in which the raw files of the set lie, directly as PyG lays them out
        (``ROOT/ITEM/raw``), or one deeper (``ROOT/NAME/ITEM/raw``); None to download them.

    Errors: UserError when the files are not there, cannot be downloaded, or cannot be read.
    """
    if chosen.name == "KarateClub":
        return _classes("torch_geometric.datasets").KarateClub()
    if chosen.name == "OGB":
        return _open_ogb(chosen, root)
    version = _classes("torch_geometric").__version__
    kept = cache_folder() / "pyg" / version / chosen.name
    if root is None:
        return _open_in(kept / (chosen.item or "set"), chosen, None)
    raw = _find_raw(chosen, Path(root).expanduser())
    return _open_in(kept / f"{chosen.item or 'set'}-{_digest(raw)}", chosen, raw)


def _classes(module: str) -> Any:
    """Import a library when it is needed: recipes are checked without it."""
    return importlib.import_module(module)


def _find_raw(chosen: Chosen, root: Path) -> Path:
    """The folder with the raw files."""
    tried = [base / chosen.folder / "raw" for base in (root, root / chosen.name)]
    if chosen.folder and root.name == chosen.folder:
        tried.append(root / "raw")
    for place in tried:
        if place.is_dir() and any(place.iterdir()):
            return place.resolve()
    near = _like(chosen.folder, [base for base in (root, root / chosen.name) if base.is_dir()])
    raise UserError(
        f"no raw files of {chosen.text} in {str(root)!r}",
        got="no such folder" if not root.is_dir() else None,
        expected=f"files in {' or '.join(repr(str(place)) for place in tried[:2])}",
        hint=f"There is {str(near)!r}" if near else "Leave --root out to download them",
    )


def _like(name: str, folders: list[Path]) -> Path | None:
    """The entry of one of `folders` whose name is most like `name`, whatever its case."""
    entries = {entry.name.lower(): entry for folder in folders for entry in folder.iterdir()}
    close = nearest(name.lower(), entries)
    return entries[close] if close else None


def _digest(raw: Path) -> str:
    """Changes when the folder or one of its files does."""
    hasher = hashlib.sha256(str(raw).encode())
    for path in sorted(raw.rglob("*")):
        facts = path.stat()
        hasher.update(f"{path.relative_to(raw)} {facts.st_size} {facts.st_mtime_ns}\n".encode())
    return hasher.hexdigest()[:16]


def _open_in(place: Path, chosen: Chosen, raw: Path | None) -> Any:
    """Open the set processed in `place`, which is made whole or not at all."""
    with _said_plainly(chosen, raw):
        if place.exists():
            return _construct(chosen, place)
        files.require_writable(place.parent)
        made = files.temporary_beside(place)
        try:
            if raw is not None:
                _link(raw, made / chosen.folder / "raw")
            _construct(chosen, made)
            with contextlib.suppress(OSError):  # another process may have been faster
                os.replace(made, place)
        finally:
            files.remove(made)
        return _construct(chosen, place)


def _link(raw: Path, place: Path) -> None:
    """Make the folder or file `raw` appear at `place`."""
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        place.symlink_to(raw, target_is_directory=raw.is_dir())
    except OSError:  # some systems and disks know no links
        (shutil.copytree if raw.is_dir() else shutil.copy2)(raw, place)


def _construct(chosen: Chosen, root: Path) -> Any:
    kind = getattr(_classes("torch_geometric.datasets"), chosen.name)
    arguments = (str(root), chosen.item) if chosen.item else (str(root),)
    opened = kind(*arguments, **chosen.known.more)
    # a set whose nodes have no labels but numbers: these are its features
    if chosen.name == "TUDataset" and not opened.num_node_labels and opened.num_node_attributes:
        return kind(*arguments, use_node_attr=True)
    return opened


@contextlib.contextmanager
def _said_plainly(chosen: Chosen, raw: Path | None) -> Iterator[None]:
    """Turn what the library raises into one line for people."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # downloads and raw files of any kind
        lines = str(error).strip().splitlines() or [""]
        got = f"{type(error).__name__}: {lines[0]}"
        if raw is not None:
            raise UserError(f"{str(raw)!r} cannot be read as {chosen.text}", got=got) from error
        folder = Path(chosen.folder or ".") / "raw"
        raise UserError(
            f"{chosen.text} is not in the cache and could not be downloaded",
            got=got,
            hint=f"Check the network, or give --root, a folder that holds {folder}",
        ) from error


def _open_ogb(chosen: Chosen, root: str | None) -> Any:
    """Open a set of the Open Graph Benchmark by its own package, which downloads it."""
    level = "nodeproppred" if chosen.item.startswith("ogbn") else "graphproppred"
    try:
        module = _classes(f"ogb.{level}")
    except ImportError:
        raise UserError(
            f"{chosen.text} needs the package 'ogb', which is not installed",
            hint="pip install ogb",
        ) from None
    kind = module.PygNodePropPredDataset if level[0] == "n" else module.PygGraphPropPredDataset
    kept = cache_folder() / "ogb"
    place = kept if root is None else _linked_ogb(chosen, Path(root).expanduser(), kept)
    with _said_plainly(chosen, None if root is None else Path(root)):
        return kind(chosen.item, root=str(place))


def _linked_ogb(chosen: Chosen, root: Path, kept: Path) -> Path:
    """A root in the cache whose folder of the set holds links to what the user's holds."""
    folder = chosen.item.replace("-", "_")
    given = root / folder
    if not (given / "raw").is_dir():
        raise UserError(
            f"no files of {chosen.text} in {str(root)!r}",
            expected=f"a folder {str(given / 'raw')!r}",
            hint="Leave --root out to download them",
        )
    place = kept / _digest((given / "raw").resolve())
    files.require_writable(place / folder)
    for entry in given.resolve().iterdir():
        if entry.name != "processed" and not (place / folder / entry.name).exists():
            _link(entry, place / folder / entry.name)
    return place
