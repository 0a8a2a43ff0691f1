"""Files that are written whole or not at all, and read with an error a person understands.

Nothing here pickles: tensors go through safetensors, everything else through JSON.
"""

from __future__ import annotations

import contextlib
import filecmp
import glob
import hashlib
import itertools
import json
import math
import os
import re
import secrets
import shutil
import tempfile
import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmdd.errors import UserError
from mmdd.trees import Tree

STALE_SECONDS = 3600.0
"""Age at which a temporary file is taken for the remains of a killed process."""

RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Names that Windows does not give to a file."""

Written = bytes | Callable[[Path], None]
"""Content of a file, or a function that writes it to the path it is given."""


# -- whole files -----------------------------------------------------------------------------------


def write_atomic(path: str | Path, data: Written) -> None:
    """Replace the file `path` by `data` as a whole; a crash leaves the old file or the new one.

    A function gets the path of a temporary file ``.NAME.….tmp`` in the same folder, whose ending
    says nothing of the format. Raises `OSError` as the system does; nothing is left behind then.
    """
    path = Path(path)
    temporary = temporary_beside(path)
    try:
        if callable(data):
            data(temporary)
        else:
            temporary.write_bytes(data)
        sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def temporary_beside(path: Path) -> Path:
    """Name a file or folder that does not exist yet, next to `path`; old remains are removed."""
    for remains in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - remains.stat().st_mtime > STALE_SECONDS:
                remove(remains)
    return path.parent / f".{path.name}.{secrets.token_hex(6)}.tmp"


def remove(path: Path) -> None:
    """Delete a file or a whole folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Bring a file's content, or a folder's entries, to the disk."""
    if path.is_dir():
        # not every system lets a folder be opened; its entries are then as safe as they can be
        with contextlib.suppress(OSError):
            _fsync(path, os.O_RDONLY)
    else:
        _fsync(path, os.O_RDWR)


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: str | Path) -> str:
    """Hex digest of a file's content."""
    with open(path, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


# -- places ----------------------------------------------------------------------------------------


def require_writable(folder: str | Path, need_bytes: int = 0) -> None:
    """Make sure, before long work, that `need_bytes` can be written into `folder`.

    Makes the folder and its parents. Raises `UserError` if one of them is a file, if writing is
    not permitted, or if the disk has less than `need_bytes` left; nothing is made in these cases
    as far as it can be known beforehand.
    """
    folder = Path(folder)
    standing = next(place for place in (folder, *folder.absolute().parents) if _exists(place))
    if not standing.is_dir():
        raise UserError(
            f"cannot write into {str(folder)!r}",
            got=f"{standing} is a file",
            expected="a folder",
            hint="Choose another folder.",
        )
    _require_space(folder, standing, need_bytes)
    if not os.access(standing, os.W_OK | os.X_OK):
        raise _not_permitted(folder, f"no permission to write into {standing}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # permission bits do not tell of read-only disks and quotas: trying does
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"0")
    except OSError as error:
        raise _not_permitted(folder, error.strerror or str(error)) from None


def _exists(place: Path) -> bool:
    try:
        return place.exists()
    except OSError:  # a parent that may not be looked into, or a name too long
        return False


def _require_space(folder: Path, standing: Path, need_bytes: int) -> None:
    free = shutil.disk_usage(standing).free
    if free < need_bytes:
        raise UserError(
            f"not enough space on the disk of {str(folder)!r}",
            got=f"{human_bytes(free)} free",
            expected=f"at least {human_bytes(need_bytes)}",
            hint="Free some space, or choose another folder.",
        )


def _not_permitted(folder: Path, reason: str) -> UserError:
    return UserError(
        f"cannot write into {str(folder)!r}", got=reason, hint="Choose another folder."
    )


def human_bytes(number: float) -> str:
    """Write a size as a person reads it: ``"1.5 MiB"``."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def move_once(made: Path, place: Path) -> bool:
    """Move the new file or folder `made` to `place`, if nothing or an empty folder is there.

    Returns False if the same content is there already. Raises `UserError` if other content is.
    """
    if place.is_dir() and made.is_dir() and not any(place.iterdir()):
        for child in made.iterdir():
            os.replace(child, place / child.name)
        return True
    if not os.path.lexists(place):
        os.replace(made, place)
        return True
    if not _same(made, place):
        raise UserError(
            f"there is something at {str(place)!r} already", hint="Choose another place for it."
        )
    return False


def _same(one: Path, two: Path) -> bool:
    if one.is_file() or two.is_file():
        return one.is_file() and two.is_file() and filecmp.cmp(one, two, shallow=False)
    names = [sorted(p.relative_to(top) for p in top.rglob("*")) for top in (one, two)]
    return names[0] == names[1] and all(
        _same(one / name, two / name) for name in names[0] if not (one / name).is_dir()
    )


def safe_names(names: Sequence[str]) -> list[str]:
    """Names of folders, one for each of `names`, that every file system takes and keeps apart.

    Spaces inside stay; slashes and other special characters become ``_``; hidden, reserved
    (``CON``), overlong and case-insensitively equal names are changed.
    """
    found: list[str] = []
    for name in names:
        base = _safe(name)
        tries = itertools.chain([base], (f"{base} ({n})" for n in itertools.count(2)))
        taken = {each.casefold() for each in found}
        found.append(next(each for each in tries if each.casefold() not in taken))
    return found


def _safe(name: str) -> str:
    text = unicodedata.normalize("NFC", name).encode(errors="replace").decode()
    text = re.sub(r'[<>:"/\\|?*\x00-\x1f\x7f]', "_", text)
    text = text.encode()[:180].decode(errors="ignore").strip().rstrip(". ")
    # a leading dot hides a folder, and `datasets` skips those that begin with two underscores
    text = re.sub(r"^(\.|__)+", "_", text)
    return f"{text}_" if RESERVED.fullmatch(text) else text or "_"


# -- JSON ------------------------------------------------------------------------------------------


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented ASCII JSON, atomically; NaN and infinities become null."""
    write_atomic(path, json_text(value).encode())


def json_text(value: Any) -> str:
    """Return `value` as JSON that every reader takes: JSON has no NaN, and tuples are lists."""
    return json.dumps(_finite(value), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def read_json(path: str | Path) -> Any:
    """Read a JSON file. Raises `UserError` if it is missing, unreadable or no JSON."""
    path = Path(path)
    try:
        return json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{str(path)!r} is not valid JSON: {error.msg} ({where})") from None
    except (ValueError, RecursionError):
        raise UserError(f"{str(path)!r} is not valid JSON") from None
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot read {str(path)!r}", got=error.strerror or str(error))


# -- tensors ---------------------------------------------------------------------------------------


def save_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write named tensors (any device, views allowed) into one safetensors file, atomically.

    With more than one entry of `metadata` equal content may give different bytes: the format
    leaves their order open.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain = _separate(tensors)

    def write(place: Path) -> None:
        place.touch()  # with the permissions of any new file, where the library gives its own
        mode = place.stat().st_mode & 0o777
        try:
            save_file(plain, place, metadata=dict(metadata or {}))
        except SafetensorError as error:  # how the library reports a full disk
            raise OSError(f"cannot write {path}: {error}") from None
        place.chmod(mode)

    write_atomic(path, write)


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU of which no two share memory, as the format wants them."""
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        flat = tensor.detach().cpu()
        memory = flat.untyped_storage().data_ptr()
        if memory in seen or not flat.is_contiguous():
            flat = flat.clone(memory_format=torch.contiguous_format)
        seen.add(memory)
        plain[name] = flat
    return plain


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a safetensors file, on the CPU in memory of their own, and metadata.

    Raises `UserError` naming the file if it is missing, truncated or no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no file {str(path)!r}")
    try:
        with safe_open(path, framework="pt") as opened:
            # cloned, because the library maps the file: its later fate is none of the tensor's
            found = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
            return found, dict(opened.metadata() or {})
    except OSError as error:
        raise _unreadable(path, error) from None
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise _damaged(path, str(error).splitlines()[0]) from None


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(
        f"{str(path)!r} is damaged or truncated", got=reason, expected="a complete safetensors file"
    )


# -- trees -----------------------------------------------------------------------------------------


def save_tree(path: str | Path, tree: Tree) -> None:
    """Write a tree of tensors and scalars into one safetensors file, atomically.

    Dicts (keys str, int, float, bool or None), lists, tuples, tensors, int, float (NaN and
    infinities too), str, bool and None come back exactly: optimiser states, generator states.
    Raises `TypeError` for anything else.
    """
    tensors: list[Tensor] = []
    structure = json.dumps(_encode(tree, tensors, "tree"))
    named = {str(place): tensor for place, tensor in enumerate(tensors)}
    save_tensors(path, named, {"tree": structure})


def _encode(tree: Tree, tensors: list[Tensor], name: str) -> Any:
    """JSON of the structure: a scalar is itself, every container is an object with one key."""
    if isinstance(tree, Tensor):
        tensors.append(tree)
        return {"tensor": len(tensors) - 1}
    if isinstance(tree, Mapping):
        # as pairs, because the keys of a JSON object can only be strings
        pairs = [[_scalar(k, name), _encode(v, tensors, f"{name}[{k!r}]")] for k, v in tree.items()]
        return {"dict": pairs}
    if isinstance(tree, (list, tuple)):
        kind = "list" if isinstance(tree, list) else "tuple"
        return {kind: [_encode(v, tensors, f"{name}[{n}]") for n, v in enumerate(tree)]}
    return _scalar(tree, name)


def _scalar(value: Any, name: str) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{name} is a {type(value).__name__}, which a tree file cannot hold")


def load_tree(path: str | Path) -> Tree:
    """Read what `save_tree` wrote; tensors are on the CPU. Raises `UserError` if it is damaged."""
    path = Path(path)
    tensors, metadata = load_tensors(path)
    if "tree" not in metadata:
        raise UserError(f"{str(path)!r} holds no saved state", got=sorted(metadata))
    try:
        return _decode(json.loads(metadata["tree"]), tensors)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _damaged(path, "a structure that does not fit its tensors") from None


def _decode(node: Any, tensors: Mapping[str, Tensor]) -> Tree:
    if isinstance(node, list):
        raise TypeError("a list stands inside an object that names its kind")
    if not isinstance(node, dict):
        return node
    ((kind, content),) = node.items()
    if kind == "tensor":
        return tensors[str(content)]
    if kind == "dict":
        return {key: _decode(value, tensors) for key, value in content}
    items = [_decode(value, tensors) for value in content]
    return {"list": items, "tuple": tuple(items)}[kind]
