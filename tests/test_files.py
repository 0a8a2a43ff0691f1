"""Files are whole or absent, trees come back exactly, mistakes are one line."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
import time

import pytest
import torch

from mmdd import files
from mmdd.errors import UserError


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    return text


def everything(folder):
    return sorted(p.name for p in folder.rglob("*"))


# -- whole files -----------------------------------------------------------------------------------


def test_bytes_or_a_function_replace_a_file(tmp_path):
    path, second = tmp_path / "a.txt", tmp_path / "b.txt"
    second.write_text("two")
    files.write_atomic(path, b"one")
    files.write_atomic(path, lambda place: shutil.copy(second, place))
    assert path.read_text() == "two"
    assert everything(tmp_path) == ["a.txt", "b.txt"]
    assert oct(path.stat().st_mode & 0o777) == oct(0o666 & ~_umask())


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("broken", ["write", "fsync", "replace"])
def test_a_failure_keeps_the_old_file_and_leaves_nothing(tmp_path, monkeypatch, broken):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    def half(place):
        place.write_text("ne")
        fail()

    if broken != "write":
        monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="No space"):
        files.write_atomic(path, half if broken == "write" else b"new")
    assert path.read_text() == "old"
    assert everything(tmp_path) == ["a.txt"]


def test_remains_of_killed_processes_are_swept_and_others_left(tmp_path):
    old, fresh, foreign = (
        tmp_path / name for name in (".a.txt.1.tmp", ".a.txt.2.tmp", ".b.txt.3.tmp")
    )
    for place in (old, fresh, foreign):
        place.write_text("half")
    hours_ago = time.time() - 3 * files.STALE_SECONDS
    for place in (old, foreign):
        os.utime(place, (hours_ago, hours_ago))
    files.write_atomic(tmp_path / "a.txt", b"new")
    assert everything(tmp_path) == sorted([fresh.name, foreign.name, "a.txt"])


# -- places ----------------------------------------------------------------------------------------


def test_parents_are_made(tmp_path):
    files.require_writable(tmp_path / "a" / "b", 1000)
    assert (tmp_path / "a" / "b").is_dir()
    assert everything(tmp_path) == ["a", "b"]
    files.require_writable(tmp_path / "a" / "b")


@pytest.mark.parametrize("below", ["", "x", "x/y"])
def test_a_file_in_the_way(tmp_path, below):
    blocker = tmp_path / "file"
    blocker.write_text("x")
    with pytest.raises(UserError) as error:
        files.require_writable(blocker / below)
    assert "is a file" in one_line(error)
    assert str(blocker) in str(error.value)


def test_no_space(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=3 * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    files.require_writable(tmp_path / "small", 2**20)
    with pytest.raises(UserError) as error:
        files.require_writable(tmp_path / "large", 5 * 2**30)
    assert "3.0 MiB free" in one_line(error)
    assert "at least 5.0 GiB" in str(error.value)
    assert not (tmp_path / "large").exists()


def test_no_permission(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    with pytest.raises(UserError) as error:
        files.require_writable(tmp_path / "sub")
    assert "permission" in one_line(error)
    assert not (tmp_path / "sub").exists()


def test_a_read_only_disk(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(files.tempfile, "TemporaryFile", fail)
    with pytest.raises(UserError) as error:
        files.require_writable(tmp_path)
    assert "Read-only file system" in one_line(error)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (2**41, "2.0 TiB")],
)
def test_sizes_for_people(number, text):
    assert files.human_bytes(number) == text


def test_moving_once(tmp_path):
    def make(name, content="x"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "file").write_text(content)
        return tmp_path / name

    place = tmp_path / "place"
    assert files.move_once(make("one"), place)
    assert not files.move_once(make("two"), place)
    for other in (make("three", "y"), tmp_path / "two" / "sub"):
        with pytest.raises(UserError, match="already"):
            files.move_once(other, place)
    (tmp_path / "empty").mkdir()
    assert files.move_once(make("four"), tmp_path / "empty")
    assert (tmp_path / "empty" / "sub" / "file").read_text() == "x"


def test_safe_names():
    names = [
        "a b", "a/b", "a\\b", "T-shirt/top", "con", "NUL.txt", "..", ".hidden", "__cache__", "",
        "  x. ", "A B", "a_b", "n" * 400, "é", "e\u0301", "\ud800", "a\nb", "été|?*", "Ü" * 200,
    ]  # fmt: skip
    safe = files.safe_names(names)
    assert safe[:5] == ["a b", "a_b", "a_b (2)", "T-shirt_top", "con_"]
    assert len({name.casefold() for name in safe}) == len(names)
    for name in safe:
        assert name.strip()
        assert len(name.encode()) <= 200
        assert not name.startswith((".", "__"))
        assert not set(name) & set('<>:"/\\|?*\n\0')
        assert name == name.rstrip(". ")
    plain = [str(n) for n in range(12)] + ["cat", "Hund", "猫"]
    assert files.safe_names(plain) == plain


# -- JSON ------------------------------------------------------------------------------------------


def test_json_round_trip_and_strictness(tmp_path):
    path = tmp_path / "a.json"
    value = {"a": (1, 2.5, None, True), "nan": float("nan"), "inf": [-math.inf], "name": "猫\ud800"}
    files.write_json(path, value)
    assert files.read_json(path) == {
        "a": [1, 2.5, None, True], "nan": None, "inf": [None], "name": "猫\ud800"
    }  # fmt: skip
    json.loads(path.read_bytes(), parse_constant=lambda name: pytest.fail(name))


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe\x00", b"[" * 100_000, b"{'a': 1}"])
def test_invalid_json(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        files.read_json(path)
    assert "not valid JSON" in one_line(error)
    assert str(path) in str(error.value)


def test_missing_json(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*none\.json"):
        files.read_json(tmp_path / "none.json")


# -- tensors ---------------------------------------------------------------------------------------


def test_tensors_of_every_kind_and_layout(tmp_path):
    whole = torch.arange(24.0).view(2, 3, 4)
    tensors = {
        "whole": whole,
        "view of the same memory": whole[1],
        "transposed": whole.transpose(0, 2),
        "channels last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "learned": torch.nn.Parameter(torch.rand(3)),
        "expanded": torch.ones(1, 3).expand(4, 3),
        "half": torch.rand(3).bfloat16(),
        "bool": torch.tensor([True, False]),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "long": torch.tensor([2**62, -1]),
    }
    path = tmp_path / "a.safetensors"
    files.save_tensors(path, tensors, {"note": "x"})
    found, metadata = files.load_tensors(path)
    assert metadata == {"note": "x"}
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor.detach()), name
    assert everything(tmp_path) == [path.name]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()
    path.write_bytes(b"")  # the loaded tensors do not live in the file
    assert torch.equal(found["whole"], whole)


def test_same_tensors_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        files.save_tensors(tmp_path / name, {"y": torch.ones(3), "x": torch.zeros(2)}, {"k": "v"})
    assert files.sha256(tmp_path / "a") == files.sha256(tmp_path / "b")


@pytest.mark.parametrize("keep", [0, 3, 8, 40, -1])
def test_truncated_tensors(tmp_path, keep):
    path = tmp_path / "a.safetensors"
    files.save_tensors(path, {"x": torch.rand(50)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError) as error:
        files.load_tensors(path)
    assert "damaged or truncated" in one_line(error)
    assert str(path) in str(error.value)


def test_other_files_are_not_tensors(tmp_path):
    path = tmp_path / "a.safetensors"
    torch.save({"x": torch.rand(3)}, path)
    with pytest.raises(UserError, match="damaged"):
        files.load_tensors(path)
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(UserError, match="damaged"):
        files.load_tensors(path)
    for missing in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="no file"):
            files.load_tensors(missing)


# -- trees -----------------------------------------------------------------------------------------


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        assert [type(k) for k in a] == [type(k) for k in b]
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, float):
        assert struct.pack("<d", a) == struct.pack("<d", b)
    else:
        assert a == b


def test_a_tree_comes_back_exactly(tmp_path):
    shared = torch.rand(3, 2, dtype=torch.float64)
    tree = {
        "scalars": [
            0.1 + 0.2,
            1e-320,
            math.inf,
            -math.inf,
            math.nan,
            -0.0,
            2**80,
            True,
            None,
            "猫",
        ],
        1: {"1": shared, 2: (shared.T, ()), -5: [], None: {}},
        2.5: ({"a.b": 1, "a": {"b": torch.tensor(7)}}, [[[]]]),
        "dict": {"dict": [], "tensor": 0, "list": {"tensor": "x"}},
    }
    path = tmp_path / "state.safetensors"
    files.save_tree(path, tree)
    assert_same(files.load_tree(path), tree)
    for bare in (torch.rand(2), 3, "x", None, []):
        files.save_tree(path, bare)
        assert_same(files.load_tree(path), bare)


OPTIMISERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "sgd before its first step": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=1 / 3, betas=(0.9, 0.95), amsgrad=True),
    "adamw, two groups": lambda p: torch.optim.AdamW(
        [{"params": p[:1], "lr": 0.01}, {"params": p[1:]}], lr=math.pi
    ),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_optimiser_state_continues_with_the_same_bits(tmp_path, name):
    def build():
        leaves = [
            torch.nn.Parameter(torch.linspace(0, 1, 6).view(2, 3)),
            torch.nn.Parameter(torch.ones(4, dtype=torch.float64)),
        ]
        return leaves, OPTIMISERS[name](leaves)

    def step(leaves, optimiser):
        optimiser.zero_grad()
        sum((leaf.double() ** 3).sum() for leaf in leaves).backward()
        optimiser.step()

    leaves, optimiser = build()
    for _ in range(0 if "before" in name else 3):
        step(leaves, optimiser)
    path = tmp_path / "state.safetensors"
    files.save_tree(path, {"optimiser": optimiser.state_dict(), "leaves": leaves})
    state = files.load_tree(path)
    assert_same(state["optimiser"], optimiser.state_dict())
    again, other = build()
    other.load_state_dict(state["optimiser"])
    with torch.no_grad():
        for leaf, value in zip(again, state["leaves"], strict=True):
            leaf.copy_(value)
    for _ in range(2):
        step(leaves, optimiser)
        step(again, other)
    assert all(torch.equal(a, b) for a, b in zip(leaves, again, strict=True))


def test_generator_state_continues(tmp_path):
    generator = torch.Generator().manual_seed(3)
    torch.randn(7, generator=generator)
    path = tmp_path / "state.safetensors"
    files.save_tree(path, {"streams": {"a": generator.get_state()}})
    wanted = torch.randn(9, generator=generator)
    other = torch.Generator()
    other.set_state(files.load_tree(path)["streams"]["a"])
    assert torch.equal(torch.randn(9, generator=other), wanted)


def test_what_a_tree_cannot_hold_is_named_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "state.safetensors"
    files.save_tree(path, {"a": 1})
    for bad in ({"a": [{1, 2}]}, {("a", "b"): 1}, {"a": torch.float32}):
        with pytest.raises(TypeError, match="tree"):
            files.save_tree(path, bad)
    assert files.load_tree(path) == {"a": 1}
    assert everything(tmp_path) == [path.name]


def test_files_that_hold_no_tree(tmp_path):
    path = tmp_path / "state.safetensors"
    files.save_tensors(path, {"0": torch.ones(1)})
    with pytest.raises(UserError, match="no saved state"):
        files.load_tree(path)
    for structure in ("{", '{"tensor": 5}', '{"dict": 3}', "[1]", '{"other": []}', "{}"):
        files.save_tensors(path, {"0": torch.ones(1)}, {"tree": structure})
        with pytest.raises(UserError) as error:
            files.load_tree(path)
        assert "damaged" in one_line(error)
