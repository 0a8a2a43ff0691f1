"""Whole runs on graphs: every method, resume, evaluation, export, mistakes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

import mmdd
from mmdd.compose import modality_of
from mmdd.errors import UserError

METHODS = ("gcond", "gcond-x", "doscond", "gcdm", "sfgc", "geom")
FEW = {
    "evaluate.epochs": 4,
    "evaluate.protocol.checks": 2,
    "evaluate.learners": 2,
    "evaluate.full_epochs": 4,
    "evaluate.learner.width": 8,
    "learner.width": 8,
}


def karate():
    from torch_geometric.datasets import KarateClub

    return KarateClub()[0]


def blocks(seed: int = 0, nodes: int = 90, classes: int = 3):
    """A graph whose classes are blocks, with features that hint at the class."""
    from torch_geometric.data import Data

    rng = np.random.default_rng(seed)
    labels = np.arange(nodes) % classes
    chance = np.where(labels[:, None] == labels[None], 0.2, 0.02)
    upper = np.triu(rng.random((nodes, nodes)) < chance, 1)
    x = rng.random((nodes, 12)) + 2 * np.eye(12)[labels]
    masks = rng.permutation(nodes)
    data = Data(
        x=torch.tensor(x, dtype=torch.float32),
        edge_index=torch.tensor(np.stack(np.nonzero(upper | upper.T))),
        y=torch.tensor(labels),
    )
    for place, name in enumerate(("train_mask", "val_mask", "test_mask")):
        mask = torch.zeros(nodes, dtype=torch.bool)
        mask[torch.from_numpy(masks[30 * place : 30 * place + 30].copy())] = True
        data[name] = mask
    return data


def few(method: str, **more):
    options = {**FEW, "optimise.steps": 3, **more}
    if method in ("gcond", "gcond-x"):
        # a net of one linear layer has no width to choose
        options |= {"source.outer": 2, "source.inner": 2}
    if method in ("sfgc", "geom"):
        options |= {
            "experts.count": 2,
            "experts.epochs": 4,
            "experts.epoch_steps": 1,
            "source.length": 1,
            "source.max_start": 2,
            "objective": [
                {"kind": "trajectory", "steps": 2, "root": method == "geom"},
                *([{"kind": "cross-entropy", "weight": 0.1}] if method == "geom" else []),
            ],
        }
    if method == "geom":
        options |= {"source.first_max_start": 1, "experts.curriculum_epochs": 2}
    return options


@pytest.mark.parametrize("setting", ["transductive", "inductive"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_condenses_nodes_and_beats_nothing(method, setting, tmp_path):
    options = few(method, **{"data.setting": setting})
    done = mmdd.distill(blocks(), method=method, per_class=3, options=options, out=tmp_path / "run")
    report = done.evaluate()
    row = report["results"]["gcn"]
    assert {"synthetic", "random", "herding", "k-center", "aggregate", "full"} <= set(row)
    again = mmdd.load(tmp_path / "run")
    first, second = done.to_torch(), again.to_torch()
    for name, value in first.inputs.items():
        assert torch.equal(value, second.inputs[name])
    assert again.budget == done.budget


def test_whole_graphs_are_condensed(tmp_path):
    from torch_geometric.data import Data

    def ring(count, label):
        edges = torch.stack([torch.arange(count), (torch.arange(count) + 1) % count])
        both = torch.cat([edges, edges.flip(0)], dim=1)
        return Data(x=torch.eye(3)[torch.arange(count) % (2 + label)], edge_index=both, y=label)

    graphs = [ring(4 + k % 3, k % 2) for k in range(40)]
    options = {**FEW, "optimise.steps": 3, "evaluate.learner": {"encoder": "gin", "width": 8}}
    options.pop("evaluate.learner.width")
    done = mmdd.distill(
        graphs, method="doscond-graphs", per_class=2, options=options, out=tmp_path / "run"
    )
    inputs = done.to_torch().inputs
    assert inputs["adjacency"].shape == (4, 5, 5)  # the mean number of nodes
    assert set(inputs["adjacency"].unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(inputs["adjacency"], inputs["adjacency"].transpose(1, 2))
    assert set(done.evaluate()["results"]) == {"gin"}
    assert len(done.to_pyg()) == 4


def test_a_net_is_settled_into_the_adjacency_that_it_makes(tmp_path):
    done = mmdd.distill(blocks(), method="gcond", per_class=3, options=few("gcond"))
    stored = done.synthetic.stored()
    assert not [name for name in stored if "first" in name]
    assert done.synthetic.nbytes == 4 * (9 * 12 + 9 * 9) + 9 * 8
    data = done.to_pyg()
    assert data.x.shape == (9, 12)
    assert int(data.y.max()) == 2


def test_a_stopped_run_continues_with_the_same_bits(tmp_path):
    from mmdd.modalities.graphs.local import save_graph

    save_graph(tmp_path / "g.npz", blocks())
    words = ["optimise.steps=60", "source.outer=3", "source.inner=2", "run.checkpoint_seconds=0"]
    words += ["evaluate.learners=1", "evaluate.epochs=2", "evaluate.full=false"]
    command = [sys.executable, "-m", "mmdd.cli", "distill", str(tmp_path / "g.npz"), *words]
    command += ["--method", "gcond", "--per-class", "3", "--no-evaluate"]
    process = subprocess.Popen([*command, "--out", str(tmp_path / "a")], stderr=subprocess.PIPE)
    checkpoint = tmp_path / "a" / "state" / "checkpoint.safetensors"
    while not checkpoint.exists():
        assert process.poll() is None, process.stderr.read()
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    resume = [sys.executable, "-m", "mmdd.cli", "resume", str(tmp_path / "a"), "--json"]
    stopped = json.loads(subprocess.run(resume, capture_output=True, check=True).stdout)
    assert stopped["results"]["gcn"]["synthetic"]["n"] == 1
    straight = mmdd.distill(
        str(tmp_path / "g.npz"),
        method="gcond",
        per_class=3,
        options={"optimise.steps": 60, "source.outer": 3, "source.inner": 2},
    )
    for name, value in straight.synthetic.state_dict().items():
        assert torch.equal(value, mmdd.load(tmp_path / "a").synthetic.state_dict()[name]), name


def test_a_condensed_graph_is_exported_and_opened_again(tmp_path):
    from typer.testing import CliRunner

    from mmdd.cli import app

    mmdd.distill(blocks(), method="gcond", per_class=3, options=few("gcond"), out=tmp_path / "run")
    run = CliRunner().invoke
    result = run(app, ["export", str(tmp_path / "run"), str(tmp_path / "g.npz"), "--to", "npz"])
    assert result.exit_code == 0, result.output
    arrays = np.load(tmp_path / "g.npz", allow_pickle=False)
    assert arrays["x"].shape == (9, 12)
    import datasets

    table = datasets.load_dataset(str(tmp_path / "run"), split="train")
    assert table.num_rows == 9
    assert table.features["label"].num_classes == 3
    assert (tmp_path / "run" / "picture.png").stat().st_size > 10_000


def test_the_karate_club_needs_no_masks():
    done = mmdd.distill(karate(), method="gcond-x", per_class=1, options=few("gcond-x"))
    assert len(done.synthetic) == 4
    assert done.evaluate()["results"]["gcn"]["synthetic"]["n"] == 2


def test_methods_of_other_modalities_take_the_graph_nets():
    done = mmdd.distill(
        blocks(), method="dm", per_class=2, options={"optimise.steps": 2, "evaluate.epochs": 2}
    )
    assert done.recipe.learner.encoder == "gcn"
    assert done.recipe.augment.kind == "none"


def test_the_source_tells_the_modality():
    assert modality_of("pyg:Planetoid/Cora") == "graphs"
    assert modality_of("graph.npz") == "graphs"
    assert modality_of("digits") is None
    assert modality_of(karate()) == "graphs"
    assert modality_of([karate()]) == "graphs"
    assert modality_of(([1], [2])) is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"synthetic.representation": "packed"}, "spatial axis"),
        ({"evaluate.baselines": ["agregate"]}, "aggregate"),
        ({"learner.encoder": "gnc"}, "gcn"),
        ({"data.setting": "semi"}, "transductive"),
    ],
)
def test_mistakes_are_told_before_any_work(options, words):
    with pytest.raises(UserError, match=words):
        mmdd.distill(blocks(), method="gcond-x", per_class=2, options={**few("gcond-x"), **options})


def test_more_nodes_than_labelled_ones_are_refused():
    with pytest.raises(UserError, match="fewer training items than asked for"):
        mmdd.distill(blocks(), method="gcond-x", per_class=40, options=few("gcond-x"))


def test_a_step_of_some_nodes_is_refused_before_a_folder_is_begun(tmp_path):
    with pytest.raises(UserError, match="these are one structure"):
        mmdd.distill(
            blocks(), method="gcdm", items=6, out=tmp_path / "r", options={"synthetic.per_step": 2}
        )
    assert not (tmp_path / "r").exists()


def test_nodes_alone_are_the_start_of_nodes_with_edges_and_not_the_other_way_round(tmp_path):
    before = mmdd.distill(
        blocks(), method="gcond-x", per_class=3, options=few("gcond-x"), out=tmp_path / "nodes"
    )
    begun = {"synthetic.initialise": str(tmp_path / "nodes"), "optimise.inputs.lr": 1e-12}
    after = mmdd.distill(
        blocks(), method="gcond", per_class=3, options=few("gcond", **begun), out=tmp_path / "both"
    )
    torch.testing.assert_close(
        after.to_torch().inputs["x"], before.to_torch().inputs["x"], rtol=0, atol=1e-5
    )
    options = few("gcond", **{"synthetic.initialise": str(tmp_path / "both")})
    with pytest.raises(UserError, match="what it was learned with is not kept in a finished set"):
        mmdd.distill(blocks(), method="gcond", per_class=3, options=options)
