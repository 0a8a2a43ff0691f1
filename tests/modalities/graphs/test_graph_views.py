"""Nodes and whole graphs as sets: what batches hold, and that cheaper views are exact."""

import itertools

import numpy as np
import pytest
import torch
from graph_sets import KEEP_ALL, dense, normalised, opened, random_graph, random_graphs
from torch import nn
from torch_geometric.nn import GCNConv, SAGEConv

from mmdd.errors import UserError
from mmdd.modalities.graphs.encoders import ENCODERS
from mmdd.modalities.graphs.nodes import Nodes, SampledNodes
from mmdd.modalities.graphs.sampling import distinct, sample
from mmdd.real import ResidentData

LARGE = {"nodes": 400, "edges": 420, "seed": 3}  # sparse, so that few hops reach a part only


class Net(nn.Module):
    """An encoder that is known by its reach alone."""

    def __init__(self, hops=None, linear_hops=None):
        super().__init__()
        self.hops, self.linear_hops = hops, linear_hops


class GCN(nn.Module):
    """A plain GCN in double precision that honours given degrees."""

    def __init__(self, features, layers):
        super().__init__()
        self.hops, self.linear_hops = layers, None
        generator = torch.Generator().manual_seed(0)
        width = [features] + [6] * layers
        self.weights = [
            torch.randn(a, b, generator=generator, dtype=torch.float64)
            for a, b in itertools.pairwise(width)
        ]

    def forward(self, inputs):
        operator, hidden = normalised(inputs), inputs["x"].double()
        for weight in self.weights[:-1]:
            hidden = torch.relu(operator @ hidden @ weight)
        return operator @ hidden @ self.weights[-1]


# Nodes -----------------------------------------------------------------------------------------


def test_a_batch_weighs_its_items_and_hides_other_labels():
    made = random_graph()
    data = opened(made).train
    chosen = torch.tensor([4, 1, 7])
    batch = data.select(chosen)
    rows = data.rows(chosen)
    assert batch.joint
    assert len(batch) == 40
    assert torch.nonzero(batch.weights).flatten().tolist() == sorted(rows.tolist())
    assert torch.equal(batch.targets[rows], data.targets[chosen])
    assert torch.equal(batch.groups, batch.targets)
    assert data.targets[chosen].tolist() == made["y"][rows].tolist()
    hidden = torch.ones(40, dtype=torch.bool)
    hidden[rows] = False
    assert not batch.targets[hidden].any()
    assert torch.equal(data.items(chosen)["x"], batch.inputs["x"][rows])
    fewer = data.subset(torch.tensor([7, 4]))
    assert torch.equal(fewer.rows(torch.tensor([0, 1])), data.rows(torch.tensor([7, 4])))
    assert torch.equal(fewer.targets, data.targets[[7, 4]])
    means = batch.group_means(batch.inputs["x"], 3)
    own = batch.inputs["x"][rows]
    for group in batch.targets[rows].unique():
        torch.testing.assert_close(means[group], own[data.targets[chosen] == group].mean(dim=0))


def test_structures_are_shared():
    splits = opened(random_graph())
    assert splits.train.graph is splits.test.graph
    inputs = splits.train.select(torch.tensor([0])).inputs
    assert inputs["x"] is splits.test.select(torch.tensor([0])).inputs["x"]
    apart = opened(random_graph(), setting="inductive")
    assert apart.train.graph is not apart.test.graph


@pytest.mark.parametrize("undirected", [True, False])
def test_propagation(undirected):
    made = random_graph()
    rng = np.random.default_rng(1)
    made["edge_weight"] = rng.random(made["edge_index"].shape[1])
    made["edge_index"] = made["edge_index"][:, rng.permutation(made["edge_index"].shape[1])]
    splits = opened(made, undirected=undirected)
    inputs = splits.train.graph.inputs
    operator, x = normalised(inputs), inputs["x"].double()
    for hops in (3, 0, 1, 2):
        seen = splits.test.seen_by(Net(hops, linear_hops=hops))
        assert isinstance(seen, ResidentData)
        expected = torch.linalg.matrix_power(operator, hops) @ x
        found = seen.select(torch.arange(len(seen))).inputs["x"]
        torch.testing.assert_close(
            found.double(), expected[splits.test.index], rtol=1e-4, atol=1e-5
        )
        assert torch.equal(seen.targets, splits.test.targets)
    assert splits.test.seen_by(Net(3, 3)) is splits.test.seen_by(Net(3, 3))
    few = splits.test.subset(torch.tensor([0]))
    assert 2 * int((few.graph.distances(few.index, 1) <= 1).sum()) < len(few.graph)
    near = few.seen_by(Net(1, linear_hops=1)).select(torch.tensor([0])).inputs["x"]
    torch.testing.assert_close(near, splits.train.graph.propagated(1)[few.index])
    shared = splits.train.graph.propagated(3)
    assert splits.validation.graph.propagated(3) is shared


@pytest.mark.parametrize("undirected", [True, False])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_part_within_reach_is_exact(layers, undirected):
    made = random_graph(**LARGE)
    made["edge_index"] = made["edge_index"][:, ::2] if not undirected else made["edge_index"]
    splits = opened(made, undirected=undirected)
    net = GCN(5, layers)
    every = torch.arange(20)
    data = splits.train.subset(every)
    part = data.seen_by(net)
    assert len(part.graph) < len(data.graph)
    assert part is data.seen_by(net)
    whole = net(data.select(every).inputs)[data.rows(every)]
    found = net(part.select(every).inputs)[part.rows(every)]
    # degrees are single precision
    torch.testing.assert_close(found, whole, rtol=1e-6, atol=1e-6)
    assert torch.equal(part.targets, data.targets)
    assert torch.equal(part.items(every)["x"], data.items(every)["x"])
    again = part.subset(torch.tensor([3, 5]))
    assert torch.equal(again.items(torch.arange(2))["x"], data.items(torch.tensor([3, 5]))["x"])
    deeper = part.seen_by(GCN(5, layers + 1))
    assert torch.equal(deeper.index, data.seen_by(GCN(5, layers + 1)).index)
    keys = part.graph.edge_index[1] * 1000 + part.graph.edge_index[0]
    assert bool((keys.diff() > 0).all())


def test_the_plain_gcn_is_that_of_pyg():
    splits = opened(random_graph())
    net, inputs = GCN(5, 2), splits.train.graph.inputs
    convolutions = [GCNConv(a, b, bias=False).double() for a, b in [(5, 6), (6, 6)]]
    for convolution, weight in zip(convolutions, net.weights, strict=True):
        convolution.lin.weight.data = weight.T.contiguous()
    edges, weights = inputs["edge_index"], inputs["edge_weight"].double()
    hidden = torch.relu(convolutions[0](inputs["x"].double(), edges, weights))
    torch.testing.assert_close(net(inputs), convolutions[1](hidden, edges, weights))


def test_means_over_neighbours_are_exact_too():
    splits = opened(random_graph(**LARGE))
    every = torch.arange(len(splits.train))
    one, two = SAGEConv(5, 4), SAGEConv(4, 3)

    def run(data):
        inputs = data.select(every).inputs
        hidden = torch.relu(one(inputs["x"], inputs["edge_index"]))
        return two(hidden, inputs["edge_index"])[data.rows(every)]

    part = splits.train.seen_by(Net(2))
    assert len(part.graph) < 400
    torch.testing.assert_close(run(part), run(splits.train))


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_every_encoder_sees_the_same(name):
    splits = opened(random_graph(**LARGE))
    torch.manual_seed(0)
    net = ENCODERS[name](5, 3, "node").eval()
    data = splits.train.subset(torch.arange(6))
    every = torch.arange(6)
    part = data.seen_by(net)
    expected = net(data.select(every).inputs)[data.rows(every)] if name != "sgc" else None
    found = net(part.select(every).inputs)[part.rows(every)]
    if expected is not None:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    else:
        assert isinstance(part, ResidentData)


def test_a_reach_over_everything_is_the_set_itself():
    data = opened(random_graph(edges=300)).train
    assert data.seen_by(Net(40)) is data
    assert data.seen_by(Net()) is data


def test_coresets_are_induced():
    data = opened(random_graph(edges=300)).train
    chosen = torch.tensor([8, 2, 5, 0, 9, 4])
    batch = data.coreset(chosen)
    nodes = data.index[chosen]
    adjacency = dense(data.graph.inputs)
    assert adjacency[nodes][:, nodes].any()
    assert torch.equal(dense(batch.inputs), adjacency[nodes][:, nodes])
    assert torch.equal(batch.inputs["x"], data.graph.x[nodes])
    assert torch.equal(batch.targets, data.targets[chosen])
    assert batch.weights.tolist() == [1] * 6
    assert "degree" not in batch.inputs
    part = data.seen_by(Net(1))
    assert torch.equal(dense(part.coreset(chosen).inputs), dense(batch.inputs))


def test_aggregates_of_single_items_are_their_propagated_features():
    data = opened(random_graph()).train
    generator = torch.Generator().manual_seed(0)
    batch = data.aggregate(data.group_sizes, generator)
    rows = data.graph.propagated(2)[data.index]
    expected = torch.cat([rows[data.targets == group] for group in range(3)])
    torch.testing.assert_close(batch.inputs["x"], expected)
    assert batch.groups.tolist() == sorted(data.targets.tolist())


# Sampling --------------------------------------------------------------------------------------


def sampled(fanouts, **options):
    made = random_graph(nodes=120, edges=900, seed=5)
    return opened(made, neighbours=fanouts, **options), opened(made, **options)


def test_samples_hold_seeds_first_and_few_edges():
    splits, whole = sampled([3, 2])
    assert isinstance(splits.train, SampledNodes)
    assert type(splits.test) is Nodes
    chosen = torch.tensor([5, 0, 9])
    batch = splits.train.select(chosen)
    assert batch.joint
    assert batch.weights.tolist() == [1.0] * 3 + [0.0] * (len(batch) - 3)
    assert splits.train.rows(chosen).tolist() == [0, 1, 2]
    assert torch.equal(batch.inputs["x"][:3], splits.train.items(chosen)["x"])
    assert torch.equal(batch.targets[:3], splits.train.targets[chosen])
    assert not batch.targets[3:].any()
    degrees = torch.bincount(batch.inputs["edge_index"][1], minlength=len(batch))
    assert degrees[:3].tolist() == [3, 3, 3]  # every node has more neighbours
    assert degrees.max() == 3
    assert sorted(set(degrees[3:12].tolist())) in ([0, 2], [2])
    adjacency = whole.train.graph
    full = dense(adjacency.inputs)
    places = torch.cdist(batch.inputs["x"], adjacency.x).argmin(dim=1)
    assert len(places.unique()) == len(batch)
    source, target = batch.inputs["edge_index"]
    assert bool((full[places[target], places[source]] == 1).all())
    assert torch.equal(batch.inputs["degree"].double(), full.sum(dim=1)[places])
    keys = target * 1000 + source
    assert bool((keys.diff() > 0).all())


def test_samples_depend_on_seed_and_items_alone():
    splits, _ = sampled([3, 2])
    chosen = torch.tensor([5, 0, 9])
    first = splits.train.select(chosen)
    splits.train.select(torch.tensor([1]))
    again = sampled([3, 2])[0].train.select(chosen)
    for name in first.inputs:
        assert torch.equal(first.inputs[name], again.inputs[name])
    other = sampled([3, 2], seed=1)[0].train.select(chosen)
    assert not torch.equal(first.inputs["x"], other.inputs["x"])
    turned = splits.train.select(chosen.flip(0))
    assert torch.equal(turned.inputs["x"][:3], first.inputs["x"][:3].flip(0))


def test_wide_fan_outs_are_exact():
    splits, whole = sampled([200, 200])
    net, chosen = GCN(5, 2), torch.tensor([5, 0, 9])
    batch = splits.train.select(chosen)
    expected = net(whole.train.graph.inputs)[whole.train.rows(chosen)]
    torch.testing.assert_close(net(batch.inputs)[:3], expected, rtol=1e-6, atol=1e-6)


def test_sampled_propagation_is_unbiased():
    _, whole = sampled([4, 3])
    graph, seeds = whole.train.graph, torch.tensor([7, 31])
    operator = normalised(graph.inputs)
    expected = (operator @ operator @ graph.x.double())[seeds]
    draws = []
    for seed in range(600):
        inputs, count = sample(graph, seeds, [4, 3], seed)
        assert count == 2
        part = normalised(inputs)
        draws.append((part @ part @ inputs["x"].double())[:2])
    stacked = torch.stack(draws)
    error = (stacked.mean(dim=0) - expected) / (stacked.std(dim=0) / 600**0.5)
    # a seed may be its neighbour's neighbour: two uses of one draw then correlate slightly
    assert error.abs().mean() < 2
    assert (stacked.mean(dim=0) - expected).abs().max() < 0.15 * stacked.std(dim=0).max()


def test_repeated_items_share_a_row():
    splits, _ = sampled([2])
    chosen = torch.tensor([5, 0, 5, 9, 0])
    batch = splits.train.select(chosen)
    rows = splits.train.rows(chosen)
    assert rows.tolist() == [0, 1, 0, 2, 1]
    assert int(batch.weights.sum()) == 3
    assert torch.equal(batch.inputs["x"][rows], splits.train.items(chosen)["x"])
    values, row = distinct(torch.tensor([7, 3, 7, 1]))
    assert values.tolist() == [7, 3, 1]
    assert row.tolist() == [0, 1, 0, 2]


def test_sampling_is_as_deep_as_the_net():
    splits, whole = sampled([3, 2])
    assert splits.train.seen_by(Net(2)) is splits.train
    assert splits.train.seen_by(Net(1)).fanouts == (3,)
    linear = splits.train.seen_by(Net(2, linear_hops=2))
    assert torch.equal(linear.values["x"], whole.train.seen_by(Net(2, 2)).values["x"])
    with pytest.raises(UserError, match=r"reads 3 hops.*got \[3, 2\]"):
        splits.train.seen_by(Net(3))
    batches = list(splits.train.batches(8, torch.Generator().manual_seed(0)))
    assert sum(int(batch.weights.sum()) for batch in batches) == len(splits.train)
    assert len(splits.train.subset(torch.tensor([1, 2])).select(torch.tensor([1]))) > 1


# Whole graphs ----------------------------------------------------------------------------------


def test_batches_are_unions():
    made = random_graphs()
    data = opened(made, **KEEP_ALL).train
    starts = np.cumsum(made["sizes"]) - made["sizes"]
    chosen = torch.tensor([7, 2, 7, 11])
    batch = data.select(chosen)
    assert batch.joint
    assert batch.weights is None
    assert batch.targets.tolist() == [1, 0, 1, 1]
    assert batch.inputs["sizes"].tolist() == made["sizes"][chosen].tolist()
    adjacency = dense(batch.inputs)
    whole = np.zeros((len(made["x"]),) * 2)
    whole[made["edge_index"][1], made["edge_index"][0]] = 1
    offset = 0
    expected = torch.zeros_like(adjacency)
    for number in chosen.tolist():
        size, start = int(made["sizes"][number]), int(starts[number])
        block = slice(start, start + size)
        assert torch.equal(
            batch.inputs["x"][offset : offset + size], torch.from_numpy(made["x"][block])
        )
        expected[offset : offset + size, offset : offset + size] = torch.from_numpy(
            whole[block, block]
        )
        offset += size
    assert torch.equal(adjacency, expected)


def test_items_are_padded():
    made = random_graphs()
    made["edge_weight"] = np.random.default_rng(0).random(made["edge_index"].shape[1])
    data = opened(made, **KEEP_ALL, undirected=False).train
    chosen = torch.tensor([3, 10, 0])
    items, batch = data.items(chosen), data.select(chosen)
    most = int(batch.inputs["sizes"].max())
    assert items["x"].shape == (3, most, 4)
    assert items["adjacency"].shape == (3, most, most)
    assert items["mask"].sum(dim=1).tolist() == batch.inputs["sizes"].tolist()
    whole, start = dense(batch.inputs).float(), 0
    for number, size in enumerate(batch.inputs["sizes"].tolist()):
        block = slice(start, start + size)
        assert torch.equal(items["x"][number, :size], batch.inputs["x"][block])
        assert torch.equal(items["adjacency"][number, :size, :size], whole[block, block])
        assert not items["x"][number, size:].any()
        assert not items["adjacency"][number, size:].any()
        assert not items["adjacency"][number, :, size:].any()
        assert bool(items["mask"][number, :size].all())
        start += size


@pytest.mark.parametrize("name", ["gcn", "gin"])
def test_unions_and_padded_items_give_the_same_outputs(name):
    data = opened(random_graphs(), **KEEP_ALL).train
    torch.manual_seed(0)
    net = ENCODERS[name](4, 2, "graph").eval()
    chosen = torch.tensor([3, 10, 0, 5])
    one, two = net(data.select(chosen).inputs), net(data.items(chosen))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    assert data.seen_by(net) is data


def test_graphs_in_batches_and_subsets():
    data = opened(random_graphs(), **KEEP_ALL).train
    seen = torch.cat([batch.targets for batch in data.batches(5)])
    assert torch.equal(seen, data.targets)
    assert data.rows(torch.tensor([4, 1])).tolist() == [0, 1]
    fewer = data.subset(torch.tensor([9, 4]))
    assert torch.equal(
        fewer.select(torch.tensor([1])).inputs["x"], data.select(torch.tensor([4])).inputs["x"]
    )
    drawn = data.sample(2, torch.Generator().manual_seed(0))
    assert drawn.targets.tolist() == [0, 0, 1, 1]
