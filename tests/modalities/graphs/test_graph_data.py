"""Opening graphs of every kind: what arrives, in which parts, with which numbers."""

import json

import numpy as np
import pytest
import torch
from graph_sets import KEEP_ALL, dense, opened, random_graph, random_graphs
from torch_geometric.data import Data
from torch_geometric.datasets import KarateClub

from mmdd.errors import UserError
from mmdd.modalities.graphs.local import save_graph

TRAIN_VAL_TEST = ("train", "val", "test")


# Sources ---------------------------------------------------------------------------------------


def test_karate_club_needs_no_download():
    splits = opened("pyg:KarateClub")
    info = splits.info
    assert (info.shape, info.classes, info.names) == ((34,), 4, ("0", "1", "2", "3"))
    assert dict(info.sizes) == {
        "train": 4,
        "validation": 3,
        "test": 27,
        "nodes": 34,
        "edges": 156,
    }
    assert info.normalisation["kind"] == "none"  # one-hot features
    assert (info.modality, info.task, info.source) == ("graphs", "classification", "pyg:KarateClub")
    data = KarateClub()[0]
    batch = splits.train.select(torch.arange(4))
    assert torch.equal(batch.inputs["x"], data.x)
    assert torch.equal(splits.train.index, torch.nonzero(data.train_mask).flatten())
    assert torch.equal(splits.train.codes, data.y[data.train_mask])
    expected = torch.zeros(34, 34, dtype=torch.float64)
    expected[data.edge_index[1], data.edge_index[0]] = 1
    assert torch.equal(dense(batch.inputs), expected)
    assert info == opened(KarateClub()[0]).info.__class__(
        **{**info.__dict__, "source": info.source}
    )
    assert opened(KarateClub()).info.fingerprint == info.fingerprint


def test_edges_are_sorted_by_target_then_source():
    edges = opened(random_graph()).train.select(torch.tensor([0])).inputs["edge_index"]
    keys = edges[1] * 1000 + edges[0]
    assert bool((keys.diff() > 0).all())


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
@pytest.mark.parametrize("sparse", [False, True])
def test_files_come_back_as_they_were(tmp_path, ending, sparse):
    made = random_graph()
    made["edge_weight"] = np.ones(made["edge_index"].shape[1], np.float32) * 0.5
    made["names"] = ["red", "green", "blue"]
    if sparse:
        made["x"] *= np.random.default_rng(1).random(made["x"].shape) < 0.1
    place = tmp_path / f"graph.{ending}"
    save_graph(place, made)
    found, expected = opened(place), opened(made)
    assert found.info.names == ("red", "green", "blue")
    assert found.info.source == str(place)
    assert found.info.fingerprint == expected.info.fingerprint
    for name, values in expected.train.graph.inputs.items():
        assert torch.equal(found.train.graph.inputs[name], values)
    names = set(np.load(place)) if ending == "npz" else set()
    assert ("x_indptr" in names) == (sparse and ending == "npz")


def test_whole_graphs_come_back_from_files_and_lists(tmp_path):
    made = random_graphs()
    starts = np.cumsum(made["sizes"]) - made["sizes"]
    listed = []
    for number, (size, start) in enumerate(zip(made["sizes"], starts, strict=True)):
        inside = (made["edge_index"][0] >= start) & (made["edge_index"][0] < start + size)
        edges = torch.from_numpy(made["edge_index"][:, inside] - start)
        x = torch.from_numpy(made["x"][start : start + size])
        listed.append(Data(x=x, edge_index=edges, y=torch.tensor([made["y"][number]])))
    save_graph(tmp_path / "set.npz", listed)
    prints = {opened(s).info.fingerprint for s in (made, listed, str(tmp_path / "set.npz"))}
    assert len(prints) == 1


def test_a_folder_of_arrays(tmp_path):
    made = random_graph()
    for name, values in made.items():
        np.save(tmp_path / f"{name}.npy", values)
    assert opened(tmp_path).info.fingerprint == opened(made).info.fingerprint


def test_layout_of_shchur_with_objects_beside(tmp_path):
    place = tmp_path / "shchur.npz"
    np.savez(
        place,
        adj_data=np.ones(4, np.float32),
        adj_indices=np.array([1, 0, 2, 1], np.int32),
        adj_indptr=np.array([0, 1, 3, 4, 4], np.int32),
        adj_shape=np.array([4, 4]),
        attr_data=np.array([1.0, 2.0], np.float32),
        attr_indices=np.array([1, 0], np.int32),
        attr_indptr=np.array([0, 1, 1, 2, 2], np.int32),
        attr_shape=np.array([4, 2]),
        labels=np.array([0, 1, 0, 1]),
        metadata=np.array({"made": "by pickle"}, dtype=object),
    )
    splits = opened(place, **KEEP_ALL)
    inputs = splits.train.graph.inputs
    assert inputs["x"].tolist() == [[0, 1], [0, 0], [2, 0], [0, 0]]
    assert inputs["edge_index"].tolist() == [[1, 0, 2, 1], [0, 1, 1, 2]]
    assert any("1 of 4 nodes are isolated" in note for note in splits.info.notes)


def test_layout_of_platonov(tmp_path):
    place = tmp_path / "minefield.npz"
    masks = np.array([[1, 0, 0, 0, 0, 1], [1, 1, 0, 0, 0, 0]], bool)
    np.savez(
        place,
        node_features=np.eye(6, dtype=np.float32),
        node_labels=np.array([0, 1, 0, 1, 0, 1]),
        edges=np.array([[0, 1], [1, 2], [3, 4]]),
        train_masks=masks,
        val_masks=np.roll(masks, 2, axis=1),
        test_masks=np.roll(masks, 4, axis=1) & ~np.roll(masks, 2, axis=1) & ~masks,
    )
    splits = opened(place, split=1)
    assert splits.train.index.tolist() == [0, 1]
    assert splits.validation.index.tolist() == [2, 3]
    assert splits.test.index.tolist() == [4, 5]
    assert "split 1 of 2 (data.split)" in splits.info.notes
    assert splits.info.sizes["edges"] == 6


def test_sparse_matrices_from_python():
    import scipy.sparse

    made = random_graph()
    ends = made["edge_index"]
    shape = (len(made["y"]), len(made["y"]))
    matrix = scipy.sparse.coo_matrix((np.ones(ends.shape[1]), tuple(ends)), shape)
    other = {**made, "adjacency": matrix, "x": scipy.sparse.csr_matrix(made["x"])}
    del other["edge_index"]
    assert opened(other).info.fingerprint == opened(made).info.fingerprint
    torch_sparse = Data(
        x=torch.from_numpy(made["x"]).to_sparse(),
        edge_index=torch.from_numpy(ends),
        y=torch.from_numpy(made["y"]),
        **{n: torch.from_numpy(made[n]) for n in made if n.endswith("mask")},
    )
    assert opened(torch_sparse).info.fingerprint == opened(made).info.fingerprint


# Parts -----------------------------------------------------------------------------------------


def parts(splits):
    found = (splits.train, splits.validation, splits.test)
    return [set() if part is None else set(part.index.tolist()) for part in found]


def test_masks_are_the_parts():
    made = random_graph()
    splits = opened(made)
    for found, name in zip(parts(splits), ("train", "val", "test"), strict=True):
        assert found == set(np.flatnonzero(made[f"{name}_mask"]))
    as_index = {name: made[name] for name in ("edge_index", "x", "y")}
    for name in ("train", "val", "test"):
        as_index[f"{name}_index"] = np.flatnonzero(made[f"{name}_mask"])
    assert opened(as_index).info.fingerprint == splits.info.fingerprint


def test_without_masks_parts_are_held_out_class_by_class():
    made = random_graph(nodes=90, masks=False)
    splits = opened(made, test=0.2, validation=0.25)
    train, validation, test = parts(splits)
    assert train | validation | test == set(range(90))
    assert (len(train), len(validation), len(test)) == (54, 18, 18)
    assert splits.test.group_sizes.tolist() == [6, 6, 6]
    assert parts(opened(made, test=0.2, validation=0.25)) == [train, validation, test]
    assert parts(opened(made, test=0.2, validation=0.25, seed=1))[2] != test
    assert opened(made, validation=7).info.sizes["validation"] == 7
    assert opened(made, **KEEP_ALL).info.sizes["train"] == 90
    with pytest.raises(UserError, match="at most 78"):
        opened(made, validation=79)


def test_missing_masks():
    made = random_graph()
    train, validation, test = (set(np.flatnonzero(made[f"{n}_mask"])) for n in TRAIN_VAL_TEST)

    def without(*names):
        return {k: v for k, v in made.items() if k not in {f"{n}_mask" for n in names}}

    assert parts(opened(without("train"))) == [train, validation, test]
    assert parts(opened(without("test"))) == [train, validation, test]
    found = parts(opened(without("val"), validation=0.5))
    assert (found[0], found[2]) == (train, test)  # official parts stay whole
    assert len(found[1]) == 5
    assert found[1] < validation
    found = parts(opened(without("val", "test"), validation=0.2))
    assert found[0] == train
    assert found[1] | found[2] == validation | test
    assert len(found[1]) == 6
    everything = {**without("val"), "train_mask": ~made["test_mask"]}
    found = parts(opened(everything, validation=0.5))
    assert found[0] | found[1] == train | validation
    assert not found[0] & found[1]


def test_one_test_mask_serves_all_splits():
    made = random_graph()
    fewer = made["train_mask"].copy()
    fewer[np.flatnonzero(fewer)[-1]] = False
    made["train_mask"] = np.stack([made["train_mask"], fewer], axis=1)
    one, two = opened(made), opened(made, split=1)
    assert torch.equal(one.test.index, two.test.index)
    assert not torch.equal(one.train.index, two.train.index)


def test_classes_without_training_nodes_are_left_out():
    made = random_graph()
    made["y"] = np.where(made["train_mask"] & (made["y"] == 1), 2, made["y"]) * 10
    splits = opened(made)
    assert splits.info.names == ("0", "20")
    assert splits.info.classes == 2
    kept = np.flatnonzero(made["test_mask"] & (made["y"] != 10))
    assert splits.test.index.tolist() == kept.tolist()
    assert splits.test.codes.tolist() == (made["y"][kept] // 20).tolist()
    assert any("1 of 3 classes have no training node" in note for note in splits.info.notes)
    assert len(splits.test.graph) == 40  # the others are context


def test_unlabelled_nodes_are_context():
    made = random_graph()
    made["y"] = made["y"].astype(float)
    made["y"][:10] = np.nan
    splits = opened(made)
    assert min(min(part) for part in parts(splits)) >= 10
    assert any("10 of 40 nodes have no label" in note for note in splits.info.notes)
    whole = random_graph()
    whole["y"][:10] = -1
    assert opened(whole).info.fingerprint == splits.info.fingerprint


# Structure and features ------------------------------------------------------------------------


def test_edges_are_cleaned_and_said():
    made = random_graph(masks=False)
    ends = made["edge_index"]
    expected = dense(opened(made, **KEEP_ALL).train.graph.inputs)
    half = ends[:, ends[0] < ends[1]]
    loops = np.array([[3, 5], [3, 5]])
    dirty = np.concatenate([half, loops, half[:, :4]], axis=1)
    splits = opened({**made, "edge_index": dirty}, **KEEP_ALL)
    assert torch.equal(dense(splits.train.graph.inputs), expected)
    said = " ".join(splits.info.notes)
    assert "2 self-loops removed" in said
    assert "4 repeated edges removed" in said
    assert f"{half.shape[1]} opposites added to {half.shape[1]} edges" in said
    directed = opened({**made, "edge_index": half}, **KEEP_ALL, undirected=False)
    assert torch.equal(dense(directed.train.graph.inputs), expected.tril())
    assert any("the graph is directed" in note for note in directed.info.notes)


def test_weights():
    made = {
        "edge_index": [[0, 1, 1, 2, 2, 0], [1, 0, 2, 1, 1, 3]],
        "edge_weight": [2.0, 3.0, 1.0, 0.5, 0.25, 0.0],
        "x": np.ones((4, 2)),
        "y": [0, 1, 0, 1],
    }
    splits = opened(made, **KEEP_ALL)
    found = dense(splits.train.graph.inputs)
    expected = torch.zeros(4, 4, dtype=torch.float64)
    expected[0, 1] = expected[1, 0] = 3.0  # the larger of two directions
    expected[1, 2] = expected[2, 1] = 1.0  # 0.5 + 0.25 one way, 1 the other
    assert torch.equal(found, expected)
    said = " ".join(splits.info.notes)
    assert "merged: their weights add up" in said
    assert "1 edges of weight 0 removed" in said
    assert "different weights" in said


def test_normalisation():
    made = random_graph()
    splits = opened(made)
    assert splits.info.normalisation["kind"] == "standard"
    rows = made["x"][made["train_mask"]].astype(np.float64)
    expected = (made["x"] - rows.mean(axis=0)) / rows.std(axis=0)
    found = splits.test.graph.x
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)
    tensors = splits.info.tensors
    undone = found * tensors["feature_std"] + tensors["feature_mean"]
    np.testing.assert_allclose(undone.numpy(), made["x"], rtol=1e-4, atol=1e-5)
    made["x"][:, 2] = 0.1  # a constant feature is not blown up
    assert opened(made).train.graph.x[:, 2].abs().max() < 1e-5
    raw = opened(made, normalise="none")
    assert torch.equal(raw.train.graph.x, torch.from_numpy(made["x"]))
    assert not raw.info.tensors
    made["x"] = (np.random.default_rng(0).random((40, 30)) < 0.2).astype(np.float32)
    made["x"][7] = 0
    words = opened(made)
    assert words.info.normalisation["kind"] == "row"
    total = made["x"].sum(axis=1, keepdims=True)
    np.testing.assert_allclose(words.train.graph.x, made["x"] / np.maximum(total, 1), rtol=1e-6)


def test_inductive_standardises_by_training_rows():
    made = random_graph()
    splits = opened(made, setting="inductive")
    train = splits.train.graph.x
    assert len(train) == made["train_mask"].sum()
    assert train.mean(dim=0).abs().max() < 1e-5
    assert (train.std(dim=0, correction=0) - 1).abs().max() < 1e-4
    assert torch.equal(splits.test.graph.x, opened(made).test.graph.x[made["test_mask"]])


def test_degrees_stand_for_missing_features():
    made = random_graph()
    del made["x"]
    splits = opened(made, max_degree=3)
    assert splits.info.shape == (4,)
    degree = np.bincount(made["edge_index"][1], minlength=40).clip(max=3)
    assert splits.train.graph.x.argmax(dim=1).tolist() == degree.tolist()
    assert splits.info.normalisation["features"] == "degree"
    parts_of_it = opened(made, max_degree=3, setting="inductive")
    inner = dense(parts_of_it.test.graph.inputs).sum(dim=1).clamp_max(len(parts_of_it.train) - 1)
    width = parts_of_it.info.shape[0]
    found = parts_of_it.test.graph.x.argmax(dim=1)
    assert found.tolist() == inner.clamp_max(width - 1).long().tolist()


def test_fingerprints_and_info_are_plain():
    made = random_graph()
    first = opened(made).info
    json.dumps(first.as_dict())
    prints = {first.fingerprint}
    for name in ("x", "y", "edge_index"):
        other = {key: value.copy() for key, value in made.items()}
        if name == "edge_index":
            other[name] = np.delete(other[name], [0, other[name].shape[1] // 2], axis=1)
        else:
            other[name][-1] = other[name][-2]
        prints.add(opened(other).info.fingerprint)
    other = {**made, "test_mask": made["test_mask"] & (np.arange(40) != 39)}
    other["test_mask"][np.flatnonzero(made["test_mask"])[0]] = False
    prints.add(opened(other).info.fingerprint)
    prints.add(opened(made, normalise="none").info.fingerprint)
    prints.add(opened(made, setting="inductive").info.fingerprint)
    prints.add(opened(made, neighbours=[2, 2]).info.fingerprint)
    assert len(prints) == 8
    shuffled = np.random.default_rng(3).permutation(made["edge_index"].shape[1])
    same = {**made, "edge_index": made["edge_index"][:, shuffled]}
    assert opened(same).info.fingerprint == first.fingerprint
    assert opened(made, seed=5).info.fingerprint == first.fingerprint
