"""Training-free condensation against plainly written formulas."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from mmdd.errors import UserError
from mmdd.modalities.graphs import aggregate as module
from mmdd.modalities.graphs.aggregate import aggregate, aggregate_nodes


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed))


def blobs(centres=((0.0, 0.0), (9.0, 0.0), (0.0, 9.0)), each=7):
    points = torch.tensor(centres).repeat_interleave(each, dim=0)
    return points + 0.3 * noise(*points.shape)


def by_rows(rows):
    return torch.tensor(sorted(rows.tolist()))


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_a_centre_is_the_softmax_weighted_mean_of_its_cluster(temperature):
    rows = blobs()
    sure = torch.rand(21, generator=seeded(3))
    expected = []
    for first in (0, 7, 14):
        weights = [np.exp(sure[i].item() / temperature) for i in range(first, first + 7)]
        mean = sum(w * rows[first + i].double() for i, w in enumerate(weights)) / sum(weights)
        expected.append(mean.float())
    found = aggregate(rows, sure, 3, seeded(), temperature=temperature)
    torch.testing.assert_close(by_rows(found), by_rows(torch.stack(expected)))
    plain = torch.stack([rows[first : first + 7].mean(dim=0) for first in (0, 7, 14)])
    torch.testing.assert_close(by_rows(aggregate(rows, None, 3, seeded())), by_rows(plain))
    assert not torch.allclose(by_rows(found), by_rows(plain), atol=1e-3)


def test_one_centre_is_the_mean_and_as_many_as_rows_are_the_rows():
    rows = noise(6, 4)
    torch.testing.assert_close(aggregate(rows, None, 1, seeded()), rows.mean(dim=0, keepdim=True))
    assert torch.equal(aggregate(rows, None, 6, seeded()), rows)
    assert aggregate(rows, None, 0, seeded()).shape == (0, 4)
    with pytest.raises(UserError, match="got 7; expected at most 6"):
        aggregate(rows, None, 7, seeded())


def test_identical_rows_fill_all_centres_without_a_word():
    rows = torch.cat([torch.zeros(5, 3), torch.ones(2, 3)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = aggregate(rows, torch.rand(7, generator=seeded()), 4, seeded())
    assert torch.isfinite(found).all()
    assert {tuple(row) for row in found.tolist()} == {(0.0, 0.0, 0.0), (1.0, 1.0, 1.0)}


def test_the_outcome_follows_the_generator_alone():
    rows, state = noise(40, 5), torch.get_rng_state()
    np.random.seed(0)
    first = aggregate(rows, None, 6, seeded(1))
    np.random.seed(1)
    assert torch.equal(first, aggregate(rows, None, 6, seeded(1)))
    assert torch.equal(torch.get_rng_state(), state)


def graph(nodes=90, classes=3, features=12, inside=0.2):
    """Hops of a graph with noisy features and mostly edges inside a class."""
    labels = torch.arange(nodes) % classes
    same = labels[:, None] == labels[None]
    upper = (torch.rand(nodes, nodes, generator=seeded(8)) < torch.where(same, inside, 0.02)).triu(
        1
    )
    linked = (upper + upper.T).float() + torch.eye(nodes)
    root = linked.sum(dim=1).rsqrt()
    operator = root[:, None] * linked * root
    x = 2.0 * noise(nodes, features, seed=2)
    x[:, :classes] += torch.nn.functional.one_hot(labels, classes)
    return [x, operator @ x, operator @ operator @ x], labels


def test_the_head_is_the_least_squares_solution_of_least_norm():
    for rows, columns in ((30, 6), (8, 20)):
        features, targets = noise(rows, columns), torch.arange(rows) % 3
        features[:, 1] = features[:, 0]  # dependent columns
        wanted = np.eye(3)[targets.numpy()]
        expected = np.linalg.pinv(features.double().numpy()) @ wanted
        found = module.least_squares(features, targets, 3)
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-8)


def test_mistaken_rows_have_the_lowest_confidence():
    scores = torch.tensor([[2.0, 0.0], [0.5, 0.0], [1.0, 0.0], [0.0, 3.0]]).double()
    found = module.confidences(scores, torch.tensor([0, 0, 1, 1]))
    chances = [1 / (1 + np.exp(-s)) for s in (2.0, 0.5, -1.0, 3.0)]
    assert found.tolist() == pytest.approx([chances[0], chances[1], min(chances), chances[3]])
    # not the chance that a mistaken row has by itself, where that is no minimum
    scores = torch.tensor([[0.4, 0.1, 0.0], [0.1, 0.0, 2.0]]).double()
    found = module.confidences(scores, torch.tensor([1, 0]))
    assert found[0] == found[1] == scores.softmax(dim=1)[1, 0]


def test_f1_is_that_of_scikit_learn():
    found = torch.randint(4, (50,), generator=seeded())
    targets = torch.randint(3, (50,), generator=seeded(1))
    expected = f1_score(targets, found, average=None, labels=range(5), zero_division=0)
    assert module.class_f1(found, targets, 5).tolist() == pytest.approx(expected.tolist())


def test_augmentation_draws_from_mistaken_classes_alone():
    targets = torch.arange(30) % 3
    scores = torch.nn.functional.one_hot(targets, 3).double()
    scores[targets == 2] = torch.tensor([0.0, 0.0, 1.0]).double()
    scores[5] = torch.tensor([0.0, 1.0, 0.0]).double()  # one of class 2, taken for class 1
    drawn = module.hard_nodes(scores, targets, 0.5, seeded())
    assert len(drawn) == len(set(drawn.tolist())) == 15
    assert set(targets[drawn].tolist()) == {1, 2}
    assert len(module.hard_nodes(scores, targets, 5.0, seeded())) == 20
    right = torch.nn.functional.one_hot(targets, 3).double()
    assert len(module.hard_nodes(right, targets, 0.5, seeded())) == 0


@pytest.mark.parametrize("augmentation", [0.0, 0.6])
def test_the_whole_recipe_written_out(augmentation):
    hops, labels = graph()
    train = torch.arange(0, 60)[torch.randperm(60, generator=seeded(4))][:36]
    targets, counts = labels[train], torch.tensor([1, 1, 1])
    found, owners = aggregate_nodes(
        hops, train, targets, counts, seeded(6), augmentation=augmentation, temperature=0.2
    )
    assert owners.tolist() == [0, 1, 2]
    mean = (sum(hops) / 3)[train].double().numpy()
    head = np.linalg.pinv(mean) @ np.eye(3)[targets.numpy()]
    rows, classes = hops[2][train].double().numpy(), targets.numpy()
    if augmentation:
        near = hops[1][train].double().numpy()
        score = 1 - f1_score(classes, (near @ head).argmax(1), average=None)
        weight = torch.from_numpy(score[classes])
        size = min(round(augmentation * 36), int((weight > 0).sum()))
        assert size > 0
        drawn = torch.multinomial(weight, size, generator=seeded(6)).numpy()
        rows, classes = np.concatenate([rows, near[drawn]]), np.append(classes, classes[drawn])
    chances = np.exp(rows @ head)
    chances /= chances.sum(axis=1, keepdims=True)
    sure = chances[np.arange(len(rows)), classes]
    sure = np.where(chances.argmax(axis=1) == classes, sure, sure.min())
    for group in range(3):
        own = classes == group
        weights = np.exp(sure[own] / 0.2)
        expected = (weights[:, None] * rows[own]).sum(axis=0) / weights.sum()
        np.testing.assert_allclose(found[group].numpy(), expected, atol=1e-5)


def test_labels_outside_training_are_not_read_and_counts_may_differ():
    hops, labels = graph()
    train, counts = torch.arange(40), torch.tensor([2, 0, 5])
    first, owners = aggregate_nodes(hops, train, labels[:40], counts, seeded())
    assert owners.tolist() == [0, 0, 2, 2, 2, 2, 2]
    assert first.shape == (7, 12)
    changed = [hop.clone() for hop in hops]
    for hop in changed:
        hop[40:] = 100.0
    second, _ = aggregate_nodes(changed, train, labels[:40], counts, seeded())
    assert torch.equal(first, second)


def test_the_summary_is_better_than_random_nodes():
    hops, labels = graph(nodes=150, inside=0.06)
    train, test = torch.arange(75), torch.arange(75, 150)
    counts = torch.tensor([2, 2, 2])

    def accuracy(x, y):
        nearest = torch.cdist(hops[2][test], x).argmin(dim=1)
        return (y[nearest] == labels[test]).float().mean().item()

    made = accuracy(*aggregate_nodes(hops, train, labels[train], counts, seeded()))
    others = []
    for seed in range(20):
        order = torch.randperm(75, generator=seeded(seed))
        chosen = torch.cat([order[labels[order] == group][:2] for group in range(3)])
        others.append(accuracy(hops[2][chosen], labels[chosen]))
    assert made > np.mean(others) + 0.05
