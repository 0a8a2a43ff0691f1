"""Free logits of edges, sampled or of low rank, against plainly written formulas."""

import math

import pytest
import torch

from mmdd.modalities.graphs.adjacency import FreeAdjacency, LowRank, factors_of, temperature
from mmdd.modalities.graphs.representations import cropped, mirrored, of_pairs
from mmdd.trees import tree_map

NODES, FEATURES = 6, 5


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed))


def edges(*shape, chance=0.4, seed=0):
    """Symmetric 0/1 adjacencies."""
    upper = (torch.rand(shape, generator=seeded(seed)) < chance).float().triu(1)
    return upper + upper.mT


def graphs(count=4, nodes=NODES, seed=0):
    sizes = torch.tensor([nodes, nodes - 2, nodes - 1, 2])[:count]
    mask = torch.arange(nodes)[None] < sizes[:, None]
    both = mask[:, :, None] & mask[:, None, :]
    return {
        "x": noise(count, nodes, FEATURES, seed=seed) * mask[..., None],
        "adjacency": edges(count, nodes, nodes, seed=seed) * both,
        "mask": mask,
    }


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


# -- Bernoulli edges -------------------------------------------------------------------------------


def test_samples_are_the_relaxation_written_out():
    made = FreeAdjacency.of_items({"x": noise(NODES, 2), "adjacency": edges(NODES, NODES)})
    logits = made.leaves()["inputs.adjacency"].data.copy_(noise(15, seed=2))
    made.resample(seeded(5), 60)
    u = torch.rand(15, generator=seeded(5))
    heat = 0.01 ** (60 / 200)
    found, place = made.decode(None)["adjacency"], 0
    for i in range(NODES):
        for j in range(i + 1, NODES):
            value = (logits[place] + torch.log(u[place]) - torch.log(1 - u[place])) / heat
            assert found[i, j].item() == pytest.approx(torch.sigmoid(value).item(), abs=1e-6)
            assert found[j, i] == found[i, j]
            place += 1
    made.resample(seeded(5), 60)
    assert torch.equal(made.decode(None)["adjacency"], found)
    made.resample(seeded(6), 60)
    assert not torch.equal(made.decode(None)["adjacency"], found)
    made.resample(None)
    expected = (logits.sigmoid() > 0.5).float()
    assert torch.equal(of_pairs(made.decode(None)["adjacency"]), expected)


def test_the_temperature_falls_to_a_hundredth():
    assert temperature(0) == 1
    assert temperature(100) == pytest.approx(0.1)
    assert temperature(200) == temperature(1000) == 0.01
    assert temperature(5, anneal=10) == pytest.approx(0.1)


def test_cold_samples_are_bernoulli_with_the_right_probability():
    made = FreeAdjacency.of_items({"x": noise(60, 2)})
    made.leaves()["inputs.adjacency"].data.fill_(math.log(0.3 / 0.7))
    made.resample(seeded(), 1000)
    sample = of_pairs(made.decode(None)["adjacency"])
    # |logit + noise| < 0.01 log 99 has the probability 0.02
    assert ((sample < 0.01) | (sample > 0.99)).float().mean() > 0.96
    assert sample.mean().item() == pytest.approx(0.3, abs=0.04)


def test_graphs_start_at_their_edges_and_masked_nodes_take_no_part():
    values = graphs()
    made = FreeAdjacency.of_items(values)
    decoded = made.decode(None)
    assert torch.equal(decoded["adjacency"], values["adjacency"])
    assert torch.equal(decoded["mask"], values["mask"])
    assert set(made.leaves()["inputs.adjacency"].unique().tolist()) == {-5.0, 5.0}
    made.leaves()["inputs.adjacency"].data.fill_(1.0)
    made.leaves()["inputs.x"].data.fill_(1.0)
    made.resample(seeded(), 3)
    decoded = made.decode(None)
    ((decoded["adjacency"] * 3).sum() + decoded["x"].sum()).backward()
    both = values["mask"][:, :, None] & values["mask"][:, None, :]
    assert not decoded["adjacency"][~both].any()
    assert not decoded["x"][~values["mask"]].any()
    assert not made.leaves()["inputs.x"].grad[~values["mask"]].any()
    slope = mirrored(made.leaves()["inputs.adjacency"].grad, NODES)
    assert not slope[~both].any()
    assert (of_pairs(slope)[of_pairs(both)] > 0).all()
    index = torch.tensor([3, 1])
    assert same(made.decode(index), tree_map(lambda leaf: leaf[index], decoded))


def test_directed_edges_start_in_both_directions():
    adjacency = torch.zeros(3, 3)
    adjacency[0, 2] = 1.0
    made = FreeAdjacency.of_items({"x": noise(3, 2), "adjacency": adjacency})
    assert torch.equal(made.decode(None)["adjacency"], adjacency + adjacency.T)


def test_penalty_is_what_the_mean_probability_has_gained():
    values = graphs()
    made = FreeAdjacency.of_items(values)
    assert made.penalty().item() == 0
    logits = made.leaves()["inputs.adjacency"]
    both = values["mask"][:, :, None] & values["mask"][:, None, :]

    def mean():
        pairs = [
            torch.sigmoid(mirrored(logits, NODES)[g, i, j])
            for g in range(4)
            for i in range(NODES)
            for j in range(i)
            if both[g, i, j]
        ]
        return torch.stack(pairs).mean()

    first = mean().detach()
    logits.data.add_(1.0)
    assert made.penalty().item() == pytest.approx((mean() - first).item(), abs=1e-6)
    made.penalty().backward()
    assert (logits.grad[of_pairs(both)] > 0).all()
    logits.data.sub_(2.0)
    assert made.penalty().item() == 0


def test_larger_graphs_keep_their_nodes_of_highest_degree():
    adjacency = torch.zeros(1, 5, 5)
    for i, j in ((0, 1), (1, 3), (3, 4), (1, 4)):
        adjacency[0, i, j] = adjacency[0, j, i] = 1
    mask = torch.tensor([[True, True, True, True, True]])
    values = {"x": torch.arange(5.0).view(1, 5, 1), "adjacency": adjacency, "mask": mask}
    small = cropped(values, 3)
    assert small["x"].flatten().tolist() == [1.0, 3.0, 4.0]
    assert torch.equal(small["adjacency"][0], 1 - torch.eye(3))
    assert cropped(values, 4)["x"].flatten().tolist() == [0.0, 1.0, 3.0, 4.0]
    made = FreeAdjacency.of_items(values, nodes=3)
    assert same(made.decode(None), small)
    large = cropped(values, 7)
    assert large["mask"].tolist() == [[True] * 5 + [False] * 2]
    assert torch.equal(large["adjacency"][:, :5, :5], adjacency)
    assert large["adjacency"].sum() == adjacency.sum()
    masked = {**values, "mask": torch.tensor([[False, True, True, False, False]])}
    assert cropped(masked, 2)["x"].flatten().tolist() == [1.0, 2.0]


def test_pairs_and_matrices_are_inverse():
    square = edges(3, 5, 5) * noise(5, 5).abs()
    square = square.triu(1) + square.triu(1).mT
    assert torch.equal(mirrored(of_pairs(square), 5), square)


# -- low rank --------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
def test_low_rank_is_its_formula(tied):
    made = LowRank.of_items({"x": noise(NODES, 2)}, generator=seeded(), rank=2, tied=tied)
    leaves = {k.removeprefix("inputs.adjacency."): v for k, v in made.leaves().items()}
    left, right = leaves["left"], leaves["left" if tied else "right"]
    found = made.decode(None)["adjacency"]
    for i in range(NODES):
        for j in range(NODES):
            score = (left[i] @ right[j] + left[j] @ right[i]) / 2 + leaves["bias"]
            assert found[i, j].item() == pytest.approx(0 if i == j else score.sigmoid().item())
    assert 0.02 < of_pairs(found).median() < 0.3


def test_low_rank_starts_near_the_real_edges():
    values = graphs()
    errors = []
    for rank in (1, 3, NODES):
        made = LowRank.of_items(values, rank=rank)
        errors.append((made.decode(None)["adjacency"] - values["adjacency"]).square().sum())
    assert errors[2] < errors[1] < errors[0]
    # of full rank: the logits themselves, 5 and -5
    assert errors[2] <= 4 * 30 * 0.0067**2
    square = LowRank.of_items({"x": noise(4, 2), "adjacency": edges(4, 4)}, rank=9)
    assert square.leaves()["inputs.adjacency.left"].shape == (4, 4)


def test_tied_factors_are_the_best_positive_ones():
    values = {"x": noise(8, 2), "adjacency": edges(8, 8, seed=2)}
    left, right, bias = factors_of(values, 2, tied=True)
    assert torch.equal(left, right)
    logits = 10 * values["adjacency"].double() - 5
    off = 1 - torch.eye(8, dtype=torch.float64)
    assert bias.item() == pytest.approx((logits * off).sum().item() / 56)
    rest = (logits - bias) * off
    spectrum = torch.linalg.eigvalsh(rest)
    kept = spectrum[spectrum > 0].flip(0)[:2]
    missed = (rest - left @ left.T).square().sum()
    expected = spectrum.square().sum() - kept.square().sum()
    assert missed.item() == pytest.approx(expected.item())
