"""Sets of PyG by name: found, read from a root that stays untouched, and the published parts."""

import builtins
import os
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from graph_sets import KEEP_ALL, dense, opened, random_graph
from torch_geometric.data import Data

from mmdd.errors import UserError
from mmdd.modalities.graphs import pyg

SHARED = Path(os.environ.get("MMDD_SHARED_DATA", Path(__file__).parents[4] / "shared" / "data"))
SETS = SHARED / "graphs"


def needs(folder):
    return pytest.mark.skipif(not (SETS / folder).is_dir(), reason=f"no {folder} in the data")


def test_names_of_sets():
    assert pyg.choose("pyg:planetoid/citeseer").text == "pyg:Planetoid/CiteSeer"
    assert pyg.choose("pyg:HeterophilousGraphDataset/roman_empire").folder == "roman_empire"
    assert pyg.choose("pyg:TUDataset/MUTAG").folder == "MUTAG"
    for wrong, right in [
        ("pyg:Planetoid/Cor", "'Cora'"),
        ("pyg:Planetod/Cora", "'Planetoid'"),
        ("pyg:cora", "pyg:Planetoid/Cora"),
        ("pyg:Planetoid", "Cora, CiteSeer, PubMed"),
        ("pyg:Actor/x", "pyg:Actor"),
        ("pyg:TUDataset/../x", "the name of a set"),
    ]:
        with pytest.raises(UserError, match=right):
            pyg.choose(wrong)
    with pytest.raises(UserError, match="Did you mean 'pyg:Planetoid/Cora'"):
        opened("Planetoid/Cora")


def test_ogb_that_is_not_installed(monkeypatch):
    load = builtins.__import__

    def no_ogb(module):
        if module.startswith("ogb"):
            raise ImportError(module)
        return load(module)

    monkeypatch.setattr(pyg, "_classes", no_ogb)
    with pytest.raises(UserError, match="pip install ogb"):
        opened("pyg:OGB/ogbn-arxiv")


def test_ogb_leaves_a_root_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("MMDD_CACHE", str(tmp_path / "cache"))
    raw = tmp_path / "mine" / "ogbn_arxiv" / "raw"
    raw.mkdir(parents=True)
    (raw / "edge.csv").write_text("0,1\n")
    (raw.parent / "processed").mkdir()
    made = random_graph()

    class OfOGB(torch.utils.data.Dataset):
        def __init__(self, name, root):
            assert name == "ogbn-arxiv"
            place = Path(root) / "ogbn_arxiv"
            assert (place / "raw" / "edge.csv").read_text() == "0,1\n"
            (place / "processed").mkdir()
            (place / "processed" / "data.pt").write_bytes(b"")

        def __len__(self):
            return 1

        def __getitem__(self, number):
            x, y = torch.from_numpy(made["x"]), torch.from_numpy(made["y"])[:, None]
            return Data(x=x, edge_index=torch.from_numpy(made["edge_index"]), y=y)

        def get_idx_split(self):
            parts = ("train", "valid", "test")
            masks = (made[f"{name}_mask"] for name in ("train", "val", "test"))
            return {
                part: torch.from_numpy(np.flatnonzero(mask))
                for part, mask in zip(parts, masks, strict=True)
            }

    module = types.SimpleNamespace(PygNodePropPredDataset=OfOGB)
    monkeypatch.setattr(pyg, "_classes", lambda name: module)
    found = opened("pyg:OGB/ogbn-arxiv", root=str(tmp_path / "mine"))
    assert found.info.fingerprint == opened(made).info.fingerprint
    assert not any((raw.parent / "processed").iterdir())
    with pytest.raises(UserError, match=r"no files of pyg:OGB/ogbn-products"):
        opened("pyg:OGB/ogbn-products", root=str(tmp_path / "mine"))


def test_a_set_that_cannot_be_downloaded(monkeypatch, tmp_path):
    def offline(chosen, root):
        (root / "half").mkdir(parents=True)
        raise ConnectionError("no network\nlong story")

    monkeypatch.setenv("MMDD_CACHE", str(tmp_path))
    monkeypatch.setattr(pyg, "_construct", offline)
    with pytest.raises(UserError, match=r"no network'\. Check the network.*--root"):
        opened("pyg:Planetoid/PubMed")
    assert not [path for path in tmp_path.rglob("*") if path.name == "half"]


def test_root_without_the_set(tmp_path):
    (tmp_path / "TUDataset" / "MUTAG" / "raw").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no raw files.*There is .*TUDataset/MUTAG"):
        opened("pyg:TUDataset/mutag", root=str(tmp_path))
    with pytest.raises(UserError, match="no such folder"):
        opened("pyg:TUDataset/MUTAG", root=str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"data\.root is for sets of PyG"):
        opened(random_graph(), root=str(tmp_path))


def write_tiny_tu(folder):
    """Three molecules in the layout of TU Dortmund, without node labels."""
    raw = folder / "TINY" / "raw"
    raw.mkdir(parents=True)
    edges = [(1, 2), (2, 1), (3, 4), (4, 3), (4, 5), (5, 4), (6, 7), (7, 6)]
    (raw / "TINY_A.txt").write_text("".join(f"{a}, {b}\n" for a, b in edges))
    (raw / "TINY_graph_indicator.txt").write_text("1\n1\n2\n2\n2\n3\n3\n")
    (raw / "TINY_graph_labels.txt").write_text("-1\n1\n1\n")
    return raw


def test_a_root_is_only_read(tmp_path, monkeypatch):
    monkeypatch.setenv("MMDD_CACHE", str(tmp_path / "cache"))
    raw = write_tiny_tu(tmp_path / "mine")
    stale = raw.parent / "processed"
    stale.mkdir()
    (stale / "data.pt").write_bytes(b"of another version")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "mine").rglob("*")}
    splits = opened("pyg:TUDataset/TINY", root=str(tmp_path / "mine"), **KEEP_ALL)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "mine").rglob("*")} == before
    assert splits.info.sizes["graphs"] == 3
    assert splits.train.codes.tolist() == [0, 1, 1]
    # degrees 1 1 | 1 2 1 | 1 1
    assert splits.info.shape == (3,)
    assert splits.train.union.x.argmax(dim=1).tolist() == [1, 1, 1, 2, 1, 1, 1]
    assert any("one-hot degrees, 0 to 1 and 2 or more" in note for note in splits.info.notes)
    again = opened("pyg:TUDataset/TINY", root=str(tmp_path / "mine"), **KEEP_ALL)
    assert again.info == splits.info
    (raw / "TINY_graph_labels.txt").write_text("1\n-1\n1\n")
    changed = opened("pyg:TUDataset/TINY", root=str(tmp_path / "mine"), **KEEP_ALL)
    assert changed.train.codes.tolist() == [1, 0, 1]


def test_damaged_raw_files(tmp_path, monkeypatch):
    monkeypatch.setenv("MMDD_CACHE", str(tmp_path / "cache"))
    raw = write_tiny_tu(tmp_path)
    (raw / "TINY_A.txt").write_text("nonsense\n")
    with pytest.raises(UserError, match="cannot be read as pyg:TUDataset/TINY"):
        opened("pyg:TUDataset/TINY", root=str(tmp_path))


@needs("Planetoid/Cora/raw")
@pytest.mark.parametrize("root", [SETS, SETS / "Planetoid", SETS / "Planetoid" / "Cora"])
def test_cora(root):
    splits = opened("pyg:Planetoid/Cora", root=str(root))
    assert dict(splits.info.sizes) == {
        "train": 140,
        "validation": 500,
        "test": 1000,
        "nodes": 2708,
        "edges": 10556,
    }
    assert (splits.info.shape, splits.info.classes) == ((1433,), 7)
    assert splits.info.normalisation["kind"] == "row"
    assert splits.train.group_sizes.tolist() == [20] * 7
    assert splits.train.index.tolist() == list(range(140))
    sums = splits.train.graph.x.sum(dim=1)
    assert torch.allclose(sums, torch.ones(2708))
    assert not (SETS / "Planetoid" / "Cora" / "processed").exists()


@needs("Planetoid/Cora/raw")
def test_inductive_cora():
    whole = opened("pyg:Planetoid/Cora", root=str(SETS))
    splits = opened("pyg:Planetoid/Cora", root=str(SETS), setting="inductive")
    assert splits.info.fingerprint != whole.info.fingerprint
    adjacency = dense(whole.test.graph.inputs)
    for one, other in zip(
        (splits.train, splits.validation, splits.test),
        (whole.train, whole.validation, whole.test),
        strict=True,
    ):
        nodes = other.index
        assert len(one.graph) == len(one) == len(nodes)
        assert torch.equal(dense(one.graph.inputs), adjacency[nodes][:, nodes])
        assert torch.equal(one.graph.x, other.graph.x[nodes])
        assert torch.equal(one.codes, other.codes)
    assert any("1068 nodes are in no part" in note for note in splits.info.notes)


@needs("Planetoid/CiteSeer/raw")
def test_citeseer_has_isolated_nodes():
    splits = opened("pyg:Planetoid/CiteSeer", root=str(SETS))
    assert splits.info.sizes["train"] == 120
    assert any("48 of 3327 nodes are isolated" in note for note in splits.info.notes)


@needs("heterophilous/minesweeper/raw")
def test_minesweeper_has_ten_splits():
    name, root = "pyg:HeterophilousGraphDataset/Minesweeper", str(SETS / "heterophilous")
    one, two = opened(name, root=root), opened(name, root=root, split=9)
    assert one.info.sizes["train"] == two.info.sizes["train"] == 5000
    assert one.info.sizes["nodes"] == 10_000
    assert not torch.equal(one.train.index, two.train.index)
    assert one.info.fingerprint != two.info.fingerprint
    with pytest.raises(UserError, match="0 to 9"):
        opened(name, root=root, split=10)


@needs("TUDataset/MUTAG/raw")
def test_mutag():
    splits = opened("pyg:TUDataset/MUTAG", root=str(SETS))
    sizes = splits.info.sizes
    assert (sizes["graphs"], sizes["train"], sizes["validation"], sizes["test"]) == (
        188,
        152,
        17,
        19,
    )
    assert (sizes["nodes"], sizes["edges"], splits.info.shape) == (3371, 7442, (7,))
    mean = splits.train.union.sizes[splits.train.index].double().mean().item()
    assert splits.info.normalisation["mean_nodes"] == round(mean)
    assert splits.info.normalisation["level"] == "graph"
    batch = splits.test.select(torch.arange(19))
    assert batch.inputs["sizes"].sum() == len(batch.inputs["x"])
    shares = splits.test.group_sizes / 19
    assert abs(float(shares[1]) - 125 / 188) < 0.05
    assert any("edge_attr is not used" in note for note in splits.info.notes)
