"""Graph encoders: PyTorch Geometric's layers as oracles, one result for every form, derivatives."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
import torch_geometric.nn as pyg
from torch.func import functional_call, grad, jacrev, vmap

from mmdd.batch import Batch
from mmdd.learner import Learner
from mmdd.machine import flops_per_item
from mmdd.modalities.graphs.attention import attend
from mmdd.modalities.graphs.encoders import ENCODERS
from mmdd.modalities.graphs.propagate import Dense, read
from mmdd.tasks.classification import Classification

FEATURES, CLASSES, NODES = 5, 3, 9
# Hidden layers that are wider and narrower than what they read: both orders of the products.
VARIANTS = [
    *((name, {"width": width}) for name in ENCODERS for width in (4, 8)),
    ("gcn", {"layers": 1}),
    ("gcn", {"layers": 3, "width": 4}),
    ("sgc", {"layers": 2, "width": 8, "hops": 3}),
    ("gat", {"width": 6, "heads": 3, "layers": 3}),
    ("appnp", {"width": 4, "hops": 3, "alpha": 0.3, "layers": 1}),
    ("cheby", {"width": 4, "order": 1}),
    ("cheby", {"width": 4, "order": 4}),
    ("gin", {"width": 4, "eps": 0.5, "layers": 1}),
    ("mlp", {"layers": 1}),
]
VARIANTS = [(n, {"heads": 2, **o} if n == "gat" else o) for n, o in VARIANTS]
IDS = ["-".join([name, *map(str, options.values())]) for name, options in VARIANTS]
PLAIN = [(name, options) for name, options in VARIANTS[: 2 * len(ENCODERS) : 2]]
PLAIN_IDS = [name for name, _ in PLAIN]
every = pytest.mark.parametrize(("name", "options"), VARIANTS, ids=IDS)
plain = pytest.mark.parametrize(("name", "options"), PLAIN, ids=PLAIN_IDS)
levels = pytest.mark.parametrize("level", ["node", "graph"])


def build(name, level="node", seed=0, **options):
    torch.manual_seed(seed)
    net = ENCODERS[name](FEATURES, CLASSES, level, **options).double().eval()
    for parameter in net.parameters():  # biases that are 0 would hide where they are added
        with torch.no_grad():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


def normal(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def adjacency_of(seed=0, nodes=NODES, binary=False, dense=False):
    """Symmetric weights without loops; the last node is isolated unless `dense`."""
    generator = torch.Generator().manual_seed(seed)
    upper = torch.rand(nodes, nodes, generator=generator, dtype=torch.float64)
    upper = upper if dense else upper * (torch.rand(nodes, nodes, generator=generator) < 0.4)
    made = upper.triu(1) + upper.triu(1).T
    if not dense:
        made[-1] = made[:, -1] = 0
    return (made > 0).double() if binary else made


def sparse(x, adjacency):
    target, source = adjacency.nonzero().T
    edge_index = torch.stack([source, target])
    return {"x": x, "edge_index": edge_index, "edge_weight": adjacency[target, source]}


def everything(net, inputs):
    return {"logits": net(inputs), "features": net.features(inputs), "layers": net.layers(inputs)}


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


# -- PyTorch Geometric as it is --------------------------------------------------------------------


def by_pyg(name, net, x, edge_index, weight):
    """Logits of nodes by the message passing of PyTorch Geometric, with its own normalisation."""
    if name in ("sgc", "mlp", "appnp"):
        if name == "sgc":
            conv = pyg.SGConv(FEATURES, FEATURES, net.hops, bias=False).double()
            conv.lin.weight.data = torch.eye(FEATURES, dtype=torch.float64)
            x = conv(x, edge_index, weight)
        for linear in net.hidden:
            x = F.relu(F.linear(x, linear.weight, linear.bias))
        x = F.linear(x, net.last.weight, net.last.bias)
        return pyg.APPNP(net.hops, net.alpha)(x, edge_index, weight) if name == "appnp" else x
    weighted = (weight,) if name in ("gcn", "cheby") else ()
    for place, conv in enumerate(net.convolutions):
        if place:
            x = F.elu(x) if name == "gat" else F.relu(x)
        x = conv(x, edge_index, *weighted)
    return x


@every
def test_equals_pyg(name, options):
    binary = name in ("sage", "gat", "gin")  # whose layers of PyTorch Geometric know no weights
    net, x, adjacency = build(name, **options), normal(NODES, FEATURES), adjacency_of(binary=binary)
    inputs = sparse(x, adjacency)
    expected = by_pyg(name, net, x, inputs["edge_index"], inputs["edge_weight"])
    close(net(inputs), expected)
    close(net({"x": x, "adjacency": adjacency}), expected)


def test_weighted_mean_of_sage():
    net, x, adjacency = build("sage", layers=1), normal(NODES, FEATURES), adjacency_of()
    (conv,) = net.convolutions
    degree = adjacency.sum(1, keepdim=True)
    mean = torch.where(degree > 0, adjacency @ x / degree, 0)
    close(net({"x": x, "adjacency": adjacency}), conv.lin_l(mean) + conv.lin_r(x))


def test_weighted_attention_is_a_softmax_of_score_and_log_weight():
    net, x, adjacency = build("gat", layers=1), normal(NODES, FEATURES), adjacency_of()
    (conv,) = net.convolutions
    h = conv.lin(x)
    a, b = h @ conv.att_dst.flatten(), h @ conv.att_src.flatten()
    log_weight = (adjacency + torch.eye(NODES)).log()
    alpha = (F.leaky_relu(a[:, None] + b[None, :], 0.2) + log_weight).softmax(dim=1)
    close(net({"x": x, "adjacency": adjacency}), alpha @ h + conv.bias)


@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_attention_survives_extreme_scores(form):
    # node 0 scores 1e4 as a source; nothing joins it to nodes 2 and 3
    adjacency = torch.zeros(4, 4, dtype=torch.float64)
    adjacency[0, 1] = adjacency[1, 0] = adjacency[2, 3] = adjacency[3, 2] = 0.5
    b = torch.tensor([1e4, 0.0, 0.0, 1.0], dtype=torch.float64)[:, None]
    h, a = normal(4, 1, 2).requires_grad_(), torch.zeros_like(b)
    adjacency.requires_grad_()
    edges = Dense(adjacency)
    if form == "sparse":
        edges = read(sparse(h.detach(), adjacency.detach()))[1]
    found = attend(edges, h, a, b, 0.2, lambda alpha: alpha)
    close(found[1], h[0])
    share = 0.5 * torch.exp(b[3]) / (1 + 0.5 * torch.exp(b[3]))
    close(found[2], share * h[3] + (1 - share) * h[2])
    wanted = [h, adjacency] if form == "dense" else [h]
    assert all(slope.isfinite().all() for slope in torch.autograd.grad(found.sum(), wanted))


# -- one result for every form ---------------------------------------------------------------------


@every
def test_dense_equals_sparse(name, options):
    net, x, adjacency = build(name, **options), normal(NODES, FEATURES), adjacency_of()
    forms = [{"x": x, "adjacency": adjacency}, sparse(x, adjacency)]
    close(*(everything(net, inputs) for inputs in forms))
    parameters = list(net.parameters())
    close(*(torch.autograd.grad(net(form).square().sum(), parameters) for form in forms))


@every
def test_alone_equals_an_adjacency_of_zeros(name, options):
    net, x = build(name, **options), normal(NODES, FEATURES)
    forms = [{"x": x}, {"x": x, "adjacency": torch.zeros(NODES, NODES).double()}]
    close(*(everything(net, inputs) for inputs in forms))
    parameters = list(net.parameters())  # one without effect has a gradient of 0, not none
    close(*(torch.autograd.grad(net(form).square().sum(), parameters) for form in forms))


@every
def test_padded_graphs_equal_their_union(name, options):
    sizes = [4, 2, 3]
    net = build(name, "graph", **options)
    x, adjacency = normal(3, 4, FEATURES), torch.stack([adjacency_of(s, 4) for s in range(3)])
    mask = torch.arange(4) < torch.tensor(sizes)[:, None]
    padded = {"x": x, "adjacency": adjacency, "mask": mask}
    parts = [g[:size, :size] for g, size in zip(adjacency, sizes, strict=True)]
    union = {**sparse(x[mask], torch.block_diag(*parts)), "sizes": torch.tensor(sizes)}
    found = everything(net, padded)
    close(found, everything(net, union))
    first = {key: leaf[1:2] for key, leaf in padded.items()}
    close(net(first), found["logits"][1:2])


@levels
@every
def test_contract(name, options, level):
    net = build(name, level, **options)
    inputs = {"x": normal(4, FEATURES), "adjacency": adjacency_of(nodes=4)}
    if level == "graph":
        inputs = {key: leaf[None].repeat(2, *[1] * leaf.ndim) for key, leaf in inputs.items()}
        assert net.linear_hops is None
    items = len(inputs["x"])
    layers, features = net.layers(inputs), net.features(inputs)
    assert torch.equal(layers[-1], features)
    assert all(len(layer) == items and layer.ndim == 2 for layer in layers)
    assert net(inputs).shape == (items, CLASSES)
    depth = len(getattr(net, "convolutions", [])) or len(net.hidden) + 1
    joint = hasattr(net, "convolutions") and level == "graph"
    assert len(layers) == max(1, depth if joint else depth - 1)
    if net.classifier is not None:
        close(net.classifier(features), net(inputs))


@every
def test_parts_of_a_graph_give_what_the_whole_does(name, options):
    # a long cycle with weights and a few chords: receptive fields do not cover it
    nodes, items = 40, torch.tensor([0, 7])
    adjacency = torch.diag(normal(nodes - 1).sigmoid(), 1)
    adjacency[3, 9] = adjacency[0, 5] = 0.7
    adjacency = adjacency + adjacency.T
    net, x = build(name, **options), normal(nodes, FEATURES)
    near = torch.zeros(nodes, dtype=torch.bool)
    near[items] = True
    for _ in range(net.hops):
        near = near | (adjacency[near] > 0).any(dim=0)
    assert near.sum() < nodes
    part = sparse(x[near], adjacency[near][:, near])
    place = near.cumsum(0) - 1
    got = net({**part, "degree": adjacency.sum(1)[near]})[place[items]]
    close(got, net(sparse(x, adjacency))[items])


@pytest.mark.parametrize("layers", [1, 2])
def test_propagated_features_stand_for_the_graph(layers):
    x, adjacency = normal(NODES, FEATURES), adjacency_of()
    for net in (build("sgc", layers=layers, hops=3, width=4), build("mlp", layers=layers)):
        inputs = sparse(x, adjacency)
        spread, edges = read(inputs)[0], read(inputs)[1].symmetric(loops=True)
        for _ in range(net.linear_hops):
            spread = edges.add(spread)
        close(everything(net, {"x": spread}), everything(net, inputs))
    assert [build(name).linear_hops for name in ("gcn", "gat", "appnp")] == [None] * 3


@pytest.mark.parametrize("pool", ["mean", "sum", "max"])
@plain
def test_padding_has_no_influence_and_no_gradient(name, options, pool):
    net = build(name, "graph", **{**options, "pool": pool})
    x, adjacency = normal(2, 4, FEATURES), adjacency_of(nodes=4, dense=True).repeat(2, 1, 1)
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 0]]).bool()
    x.requires_grad_()
    adjacency.requires_grad_()
    logits = net({"x": x, "adjacency": adjacency, "mask": mask})
    loss, wanted = logits.square().sum(), [x, adjacency]
    slopes = torch.autograd.grad(loss, wanted, materialize_grads=True)
    pairs = mask[:, :, None] & mask[:, None, :]
    assert not slopes[0][~mask].any()
    assert not slopes[1][~pairs].any()
    assert slopes[0][mask].any()
    assert name in ("mlp",) or slopes[1][pairs].any()
    with torch.no_grad():
        other = x.masked_fill(~mask[..., None], torch.nan)
        moved = adjacency.masked_fill(~pairs, torch.nan)
        assert torch.equal(net({"x": other, "adjacency": moved, "mask": mask}), logits)


# -- derivatives -----------------------------------------------------------------------------------


def matching(net, x, adjacency, target):
    """Squared distance of the gradients of three groups from `target`, as in GradientMatching."""
    params = dict(net.named_parameters())
    rows, labels = torch.eye(3, dtype=x.dtype).repeat(1, 2), torch.arange(6) % 3

    def losses(params):
        def loss(row):
            logits = functional_call(net, params, ({"x": x, "adjacency": adjacency},))
            return (row * F.cross_entropy(logits, labels, reduction="none")).sum()

        return vmap(loss, randomness="same")(rows)

    slopes = jacrev(losses)(params)
    return sum((slope - target).square().sum() for slope in slopes.values())


@every
def test_second_derivatives_by_finite_differences(name, options):
    net, x, adjacency = build(name, **options), normal(6, FEATURES), adjacency_of(2, 6, dense=True)
    slopes = grad(matching, argnums=(1, 2))(net, x, adjacency, 0.1)
    assert slopes[0].any()
    for place, values in enumerate((x, adjacency)):
        direction, step = normal(*values.shape, seed=7 + place), 1e-6
        ends = []
        for sign in (1, -1):
            moved = [x, adjacency]
            moved[place] = values + sign * step * direction
            ends.append(matching(net, *moved, 0.1))
        expected = (ends[0] - ends[1]) / (2 * step)
        got = (slopes[place] * direction).sum()
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)


@plain
def test_second_derivatives_at_an_adjacency_of_zeros(name, options):
    net, x, adjacency = build(name, **options), normal(6, FEATURES), torch.zeros(6, 6).double()
    slopes = grad(matching, argnums=(1, 2))(net, x, adjacency, 0.1)
    assert all(slope.isfinite().all() for slope in slopes)


@levels
@plain
def test_slopes_of_groups_on_a_sparse_graph(name, options, level):
    net = build(name, level, **options)
    inputs = sparse(normal(NODES, FEATURES), adjacency_of())
    if level == "graph":
        inputs["sizes"] = torch.tensor([NODES - 1, 1])
    items = len(net(inputs))
    rows, labels = normal(2, items).abs(), torch.arange(items) % CLASSES
    learner = Learner(net, Classification(), precision="float64")
    params = {name: value.detach() for name, value in net.named_parameters()}
    net.train()
    net.dropout.p = 0.0

    def losses(params):
        return vmap(lambda row: learner.pure_loss(params, inputs, labels, row))(rows)

    for chunk in (1, None):
        got = jacrev(losses, chunk_size=chunk)(params)
        for place, row in enumerate(rows):
            loss = learner.pure_loss(dict(net.named_parameters()), inputs, labels, row)
            expected = torch.autograd.grad(loss, list(net.parameters()))
            close([slope[place] for slope in got.values()], list(expected))


# -- inside a learner ------------------------------------------------------------------------------


@levels
@plain
def test_in_a_learner(name, options, level):
    net = ENCODERS[name](FEATURES, CLASSES, level, **options)
    learner = Learner(net, Classification())
    draws = [learner.init(torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert all(torch.equal(draws[0][key], draws[1][key]) for key in draws[0])
    for key in learner.trainable_names:  # biases of 0 are drawn, too
        assert draws[0][key].ndim == 1 or not torch.equal(draws[0][key], draws[2][key])
        torch.nn.init.constant_(net.get_parameter(key), 7.0)
    assert all((draw != 7).all() for draw in learner.init(torch.Generator()).values())
    inputs = {"x": torch.randn(4, FEATURES), "adjacency": torch.rand(4, 4)}
    if level == "graph":
        inputs = {key: leaf[None] for key, leaf in inputs.items()}
    example = {"x": torch.zeros(1, FEATURES)}
    if level == "graph":
        mask = torch.ones(1, 4, dtype=torch.bool)
        example = {**{key: torch.zeros_like(leaf) for key, leaf in inputs.items()}, "mask": mask}
    batch = Batch(inputs, None, torch.zeros(len(inputs["x"]), dtype=torch.int64), joint=True)
    assert learner.outputs(draws[0], batch).shape == (len(batch), CLASSES)
    assert torch.equal(
        learner.layers(draws[0], batch, train=False)[-1],
        learner.features(draws[0], batch, train=False),
    )
    assert flops_per_item(net, example) > 0
    assert sorted(copy.deepcopy(net).state_dict()) == sorted(net.state_dict())


@levels
@plain
def test_stacked_learners(name, options, level):
    net = ENCODERS[name](FEATURES, CLASSES, level, **options)
    learner = Learner(net, Classification())
    params = learner.init(torch.Generator().manual_seed(0), stacked=2)
    inputs = {"x": torch.randn(2, 3, FEATURES)}
    if level == "graph":
        mask = torch.tensor([True, True, False]).repeat(2, 3, 1)
        inputs = {"x": torch.randn(2, 3, 3, FEATURES), "adjacency": torch.rand(2, 3, 3, 3)}
        inputs["mask"] = mask
    got = learner.stacked_outputs(params, inputs, train=False)
    groups = torch.zeros(3, dtype=torch.int64)
    for place in range(2):
        own = {key: value[place] for key, value in params.items()}
        batch = Batch({key: leaf[place] for key, leaf in inputs.items()}, None, groups)
        torch.testing.assert_close(got[place], learner.outputs(own, batch, train=False))
    learner.stacked_outputs(params, inputs, train=True)  # dropout under vmap
