"""A finished set on disk: one folder that is read with or without this package.

    mmdd.json                                the manifest; written last, it makes the set valid
    synthetic.safetensors                    the exact tensors
    data/train-00000-of-00001.parquet        what ``datasets.load_dataset(folder)`` reads
    README.md                                the dataset card, made from the manifest
    picture.png

The manifest lists size and SHA-256 of every file but the card, which people edit, and its own
``digest``. Other files of the folder (a run's state and log) are left alone. Nothing is pickled.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor

from mmdd import catalog, files
from mmdd.card import card
from mmdd.card_header import MARK
from mmdd.errors import UserError
from mmdd.parquet import Columns, write_parquet
from mmdd.provenance import commit, versions
from mmdd.trees import named_leaves, tree_bytes

FORMAT, FORMAT_VERSION = "mmdd", 1
MANIFEST = "mmdd.json"
TENSORS = "synthetic.safetensors"
PARQUET = "data/train-00000-of-00001.parquet"
CARD = "README.md"
PICTURE = "picture.png"
CHECKPOINT = "state/checkpoint.safetensors"


@dataclasses.dataclass
class Artifact:
    """What `load` returns: the exact tensors by name, the manifest, and ``DataInfo.tensors``."""

    tensors: dict[str, Tensor]
    manifest: dict[str, Any]
    info_tensors: dict[str, Tensor] = dataclasses.field(default_factory=dict)


def save(
    folder: str | Path,
    *,
    tensors: Mapping[str, Tensor],
    manifest: Mapping[str, Any],
    columns: Columns | None = None,
    picture: Callable[[Path], None] | None = None,
    info_tensors: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a finished set into `folder`, in place of the one that may be there.

    Parameters
    ----------
    tensors: ``SyntheticSet.state_dict()``.
    manifest: recipe, info, protocol, results, run and budget; format, files, versions, commit,
        tensors and data (features, examples, bytes) are filled in.
    columns: what plain ``datasets`` shall read (values: files would not be copied in).
    picture: draws a PNG to the path it is given.
    info_tensors: ``DataInfo.tensors``, which describe the space of the data. They stand in the same
        file under names of their own; the manifest lists them and their bytes apart from the
        set's budget.

    Everything is first written aside, so that an error leaves the folder as it was. The files then
    take their places between the removal of the old manifest and the arrival of the new one: after
    a crash `load` finds the old set, the new set, or none.
    """
    folder = Path(folder)
    require_place(folder)
    manifest, beside = dict(manifest), dict(info_tensors or {})
    assert not beside.keys() & tensors.keys(), "the set and its space name the same tensors"
    manifest.pop("info_tensors", None)
    if beside:
        manifest["info_tensors"] = {"names": sorted(beside), "bytes": tree_bytes(beside)}
    tensors = {**tensors, **beside}
    files.require_writable(folder, 3 * tree_bytes(tensors) + 2**20)
    aside = files.temporary_beside(folder / "saving")
    try:
        aside.mkdir()
        _write_aside(aside, tensors, manifest, columns, picture)
        _take_places(aside, folder)
    finally:
        files.remove(aside)


def require_place(folder: str | Path) -> None:
    """Raise `UserError` if saving into `folder` would write over a README that is not ours."""
    folder = Path(folder)
    readme = folder / CARD
    if (folder / MANIFEST).exists() or not readme.is_file():
        return
    if MARK not in readme.read_text(encoding="utf8", errors="replace"):
        raise UserError(
            f"{str(folder)!r} has a {CARD} of its own, which the set's card would replace",
            hint="Choose another folder.",
        )


def _write_aside(
    aside: Path,
    tensors: Mapping[str, Tensor],
    manifest: dict[str, Any],
    columns: Columns | None,
    picture: Callable[[Path], None] | None,
) -> None:
    files.save_tensors(aside / TENSORS, tensors, {"format": "pt"})
    names = [TENSORS]
    if columns is not None:
        manifest["data"] = write_parquet(aside / PARQUET, columns)
        names.append(PARQUET)
    if picture is not None:
        picture(aside / PICTURE)
        names.append(PICTURE)
    manifest["files"] = {
        name: {"sha256": files.sha256(aside / name), "bytes": (aside / name).stat().st_size}
        for name in names
    }
    manifest["tensors"] = {name: _kind_of(tensor) for name, tensor in tensors.items()}
    manifest.setdefault("versions", versions())
    manifest.setdefault("commit", commit())
    manifest.update(format=FORMAT, format_version=FORMAT_VERSION)
    manifest = _sealed(manifest)
    (aside / CARD).write_bytes(card_bytes(manifest))
    files.write_json(aside / MANIFEST, manifest)
    for name in (*names, CARD):
        files.sync(aside / name)


def _take_places(aside: Path, folder: Path) -> None:
    """Put the files aside into `folder`; while they move there is no manifest."""
    had_one = (folder / MANIFEST).exists()
    (folder / MANIFEST).unlink(missing_ok=True)
    files.sync(folder)
    for name in (TENSORS, PARQUET, PICTURE, CARD):
        if (aside / name).exists():
            (folder / name).parent.mkdir(exist_ok=True)
            os.replace(aside / name, folder / name)
        elif had_one:  # of the old set: the new one has no such file
            (folder / name).unlink(missing_ok=True)
    files.sync(folder)
    os.replace(aside / MANIFEST, folder / MANIFEST)
    files.sync(folder)


def _kind_of(tensor: Tensor) -> dict[str, Any]:
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}


def card_bytes(manifest: Mapping[str, Any]) -> bytes:
    """The card of a set, encoded."""
    # names of files that are no valid Unicode may have become class names
    return card(manifest).encode(errors="backslashreplace")


def _sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Plain JSON values with the digest of all the others."""
    plain = json.loads(files.json_text({k: v for k, v in manifest.items() if k != "digest"}))
    return {**plain, "digest": _digest(plain)}


def _digest(manifest: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def update_results(folder: str | Path, results: Mapping[str, Any]) -> None:
    """Replace the scores of a saved set, in manifest and card; nothing else changes.

    The card is no listed file, so that each of the two is replaced whole and either may be the
    newer one after a crash. What a person added to the card is written over.
    """
    folder = Path(folder)
    manifest = _sealed({**_read_manifest(folder), "results": results})
    files.write_atomic(folder / CARD, card_bytes(manifest))
    files.write_json(folder / MANIFEST, manifest)


def load(folder: str | Path) -> Artifact:
    """Read a finished set and check all of it.

    Raises `UserError` if the folder holds none (and says how to go on with an unfinished run), if
    a newer version wrote it, or if a file is missing, truncated or altered.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    for name, facts in manifest["files"].items():
        _check_file(folder, name, facts)
    tensors, _ = files.load_tensors(folder / TENSORS)
    found = {name: _kind_of(tensor) for name, tensor in tensors.items()}
    if found != manifest["tensors"]:
        raise _altered(folder / TENSORS, "other tensors than the manifest lists")
    beside = set(manifest.get("info_tensors", {}).get("names", []))
    if not beside <= tensors.keys():
        raise _altered(folder / MANIFEST, f"names of tensors that are not there: {sorted(beside)}")
    own = {name: tensor for name, tensor in tensors.items() if name not in beside}
    return Artifact(own, manifest, {name: tensors[name] for name in sorted(beside)})


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise _not_an_artifact(folder)
    manifest = files.read_json(path)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{str(path)!r} is not the manifest of a distilled set")
    version = manifest.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise _altered(path, f"format_version {version!r}")
    if version > FORMAT_VERSION:
        raise UserError(
            f"{str(folder)!r} was written by a newer mmdd",
            got=f"format version {version}",
            expected=f"at most {FORMAT_VERSION}",
            hint="Upgrade: pip install --upgrade mmdd",
        )
    if manifest.get("digest") != _digest(manifest):
        raise _altered(path, "a content that does not fit its own digest")
    return manifest


def _not_an_artifact(folder: Path) -> UserError:
    if not folder.is_dir():
        return UserError(f"there is no folder {str(folder)!r}")
    if (folder / CHECKPOINT).is_file():
        return UserError(
            f"{str(folder)!r} holds an unfinished run, not yet a distilled set",
            hint=f"Finish it with `mmdd resume {shlex.quote(str(folder))}`",
        )
    return UserError(
        f"{str(folder)!r} holds no distilled set",
        got=f"no {MANIFEST}",
        expected="a folder that `mmdd distill --out` or save() has finished writing",
    )


def _check_file(folder: Path, name: str, facts: Mapping[str, Any]) -> None:
    inside = PurePosixPath(name)
    if inside.is_absolute() or ".." in inside.parts:
        raise _altered(folder / MANIFEST, f"a file outside its folder, {name!r}")
    path = folder / name
    if not path.is_file():
        raise _altered(path, "no such file", "removed")
    size = path.stat().st_size
    if size < facts["bytes"]:
        raise _altered(path, f"{size} of {facts['bytes']} bytes", "truncated")
    if size > facts["bytes"] or files.sha256(path) != facts["sha256"]:
        raise _altered(path, "a content that does not fit the manifest")


def _altered(path: Path, got: str, how: str = "altered") -> UserError:
    hint = "Copy the whole folder again, or distil anew."
    return UserError(f"{str(path)!r} was {how}", got=got, hint=hint)


SINGLE_FILES = {"safetensors": ".safetensors", "npz": ".npz"}
"""Forms that are one file, where the user's name for it ends so."""


def export(folder: str | Path, to: str, out: str | Path) -> bool:
    """Write the set of `folder` in the form `to`, for other programs.

    ``parquet``: a folder for ``datasets.load_dataset``. ``imagefolder``: ``train/CLASS/00001.png``
    (readers number classes by sorted name; ``classes.json`` has the set's own numbers).
    ``safetensors``: one file with the normalised ``inputs`` and the ``targets`` (decoded, where the
    set stores them in fewer numbers), and JSON about them in its metadata; `out` is that file if it
    ends in .safetensors, else a folder to hold it. What describes their space goes with them
    (``whiten.*``: flattened inputs times ``whiten.inverse`` plus ``whiten.mean`` are the items
    before they were whitened).

    Returns False, and writes nothing, if `out` already is exactly this export. Raises `UserError`
    if `out` holds anything else, or if the set cannot take this form.
    """
    write = catalog.load("export format", to, catalog.EXPORTS)
    found, place = load(folder), Path(os.path.abspath(out))
    listed = sum(facts["bytes"] for facts in found.manifest["files"].values())
    files.require_writable(place.parent, 2 * listed)
    if to != "safetensors" and PARQUET not in found.manifest["files"]:
        raise UserError("this set was saved without columns", hint="Export it --to safetensors.")
    made = files.temporary_beside(place)
    try:
        if place.suffix != SINGLE_FILES.get(to):
            made.mkdir()
        write(found, Path(folder), made)
        return files.move_once(made, place)
    finally:
        files.remove(made)


def to_safetensors(found: Artifact, folder: Path, made: Path) -> None:
    """Write normalised inputs and targets, decoded where the set stores its items otherwise."""
    tensors = _stored(found) or _decoded(folder)
    tensors |= found.info_tensors
    info = found.manifest.get("info", {})
    about = {k: info.get(k) for k in ("source", "names", "normalisation", "shape", "fingerprint")}
    place = made / "distilled.safetensors" if made.is_dir() else made
    files.save_tensors(place, tensors, {"mmdd": files.json_text(about)})


def _stored(found: Artifact) -> dict[str, Tensor]:
    """The tensors of a set that stores items and classes as they are; else none."""
    kind = found.manifest.get("recipe", {}).get("synthetic", {}).get("representation", "direct")
    kind = kind.get("kind") if isinstance(kind, dict) else kind
    targets = found.tensors.get("labels.targets")
    inputs = {
        name.removeprefix("representation.").replace("/", "."): tensor
        for name, tensor in found.tensors.items()
        if name.startswith("representation.inputs")
    }
    if kind != "direct" or targets is None or not inputs:
        return {}
    return {**inputs, "targets": targets}


def _decoded(folder: Path) -> dict[str, Tensor]:
    """What a learner trains on: decoded inputs, and targets in the form of its labels."""
    from mmdd import api

    made = api.load(folder).to_torch()
    trees = {"inputs": made.inputs, "targets": made.targets}
    return named_leaves({name: tree for name, tree in trees.items() if tree is not None})


def to_parquet(found: Artifact, folder: Path, made: Path) -> None:
    """Copy what ``datasets`` reads, with the card."""
    (made / PARQUET).parent.mkdir()
    shutil.copyfile(folder / PARQUET, made / PARQUET)
    listed = {PARQUET: found.manifest["files"][PARQUET]}
    (made / CARD).write_bytes(card_bytes({**found.manifest, "files": listed}))
