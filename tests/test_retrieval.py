"""Retrieval: contrastive losses, recall over a gallery, and learned similarities of pairs."""

from __future__ import annotations

import math

import pytest
import torch
from fakes import CASES, Case, noise, seeded
from torch import Tensor

from mmdd import build
from mmdd.batch import Batch
from mmdd.compose import compose
from mmdd.errors import UserError
from mmdd.files import load_tree, save_tree
from mmdd.first_labels import first_relation
from mmdd.labels import RelationLabels
from mmdd.modality import DataInfo
from mmdd.objectives.trajectory import TrajectoryMatching
from mmdd.recipe import Leaf
from mmdd.representations import Direct
from mmdd.synthetic import StepSize, SyntheticSet
from mmdd.tasks.retrieval import Retrieval, WeightedRetrieval, recalls, relations

TASKS = [Retrieval(), WeightedRetrieval()]


def outputs_of(count: int, size: int = 5, seed: int = 3) -> dict[str, Tensor]:
    return {
        "image": noise(count, size, seed=seed).double(),
        "text": noise(count, size, seed=seed + 1).double(),
    }


def learned(count: int, whole: int, seed: int = 5) -> dict[str, Tensor]:
    """Similarities of `count` items of a set of `whole`, in an order of their own."""
    place = torch.randperm(whole, generator=seeded(seed))[:count]
    similarity = torch.eye(whole)[place] + 0.3 * noise(count, whole, seed=seed)
    return {"similarity": similarity.double(), "place": place}


# -- losses ----------------------------------------------------------------------------------------


def log_softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in row)
    return [value - math.log(total) for value in row]


def plain_infonce(outputs, shares_of_rows, shares_of_columns) -> list[float]:
    """Item by item, in plain loops: the definition."""
    logits = (outputs["image"] @ outputs["text"].T).tolist()
    n, found = len(logits), []
    for i in range(n):
        row, column = log_softmax(logits[i]), log_softmax([logits[j][i] for j in range(n)])
        there = sum(shares_of_rows[i][j] * row[j] for j in range(n))
        back = sum(shares_of_columns[j][i] * column[j] for j in range(n))
        found.append(-(there + back) / 2)
    return found


def test_infonce_is_its_formula():
    outputs = outputs_of(4)
    eye = torch.eye(4).tolist()
    found = Retrieval().item_losses(outputs, None)
    assert found.tolist() == pytest.approx(plain_infonce(outputs, eye, eye))
    numbered = Retrieval().item_losses(outputs, torch.tensor([7, 2, 9, 4]))
    assert torch.allclose(numbered, found)


def test_captions_of_one_image_share_its_weight():
    outputs, same = outputs_of(4), [[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]
    rows = [[value / sum(row) for value in row] for row in same]
    found = Retrieval().item_losses(outputs, torch.tensor([5, 1, 5, 2]))
    assert found.tolist() == pytest.approx(plain_infonce(outputs, rows, rows))


def test_infonce_takes_learned_similarities_as_they_are():
    outputs, targets = outputs_of(3), learned(3, 6)
    chosen = targets["similarity"][:, targets["place"]].tolist()
    found = Retrieval().item_losses(outputs, targets)
    assert found.tolist() == pytest.approx(plain_infonce(outputs, chosen, chosen))


@pytest.mark.parametrize("targets", [None, torch.tensor([1, 1, 2, 3]), learned(4, 6)])
def test_weighted_cross_entropy_is_its_formula(targets):
    outputs = outputs_of(4)
    logits = (outputs["image"] @ outputs["text"].T).tolist()
    truth = relations(targets, outputs["image"] @ outputs["text"].T).tolist()
    alike, others = [], []
    for i in range(4):
        for j in range(4):
            chance = 1 / (1 + math.exp(-logits[i][j]))
            s = truth[i][j]
            term = -s * math.log(chance) - (1 - s) * math.log(1 - chance)
            (alike if s > 0.5 else others).append(term)
    expected = (sum(alike) / len(alike) + sum(others) / len(others)) / 2
    found = WeightedRetrieval().item_losses(outputs, targets)
    assert found.shape == (4,)
    assert float(found.mean()) == pytest.approx(expected)


@pytest.mark.parametrize("task", TASKS)
def test_losses_are_differentiable_twice_in_outputs_and_similarities(task):
    targets = learned(3, 5)

    def loss(image: Tensor, text: Tensor, similarity: Tensor) -> Tensor:
        made = {"similarity": similarity, "place": targets["place"]}
        return task.item_losses({"image": image, "text": text}, made)

    leaves = [*outputs_of(3).values(), targets["similarity"]]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    assert torch.autograd.gradcheck(loss, leaves)
    assert torch.autograd.gradgradcheck(loss, leaves)


@pytest.mark.parametrize("task", TASKS)
def test_one_pair_alone_has_a_finite_loss(task):
    assert torch.isfinite(task.item_losses(outputs_of(1), None)).all()


# -- recall ----------------------------------------------------------------------------------------


def plain_recalls(outputs, owner: list[int]) -> dict[str, float]:
    """By sorting whole galleries, query by query."""
    first, second = outputs["image"], outputs["text"]
    images = sorted(set(owner))
    vectors = {image: first[owner.index(image)] for image in images}
    found = {}
    for depth in (1, 5, 10):
        hits = []
        for image in images:
            order = sorted(range(len(owner)), key=lambda c: -float(vectors[image] @ second[c]))
            hits.append(any(owner[c] == image for c in order[:depth]))
        found[f"TR@{depth}"] = sum(hits) / len(hits)
        hits = []
        for caption, own in enumerate(owner):
            order = sorted(images, key=lambda image: -float(vectors[image] @ second[caption]))
            hits.append(own in order[:depth])
        found[f"IR@{depth}"] = sum(hits) / len(hits)
    return found


@pytest.mark.parametrize("captions", [1, 3])
def test_recall_equals_sorting(captions):
    # captions of an image are not neighbours, and numbers have gaps, as in the order of a set
    owner = [3 * image for image in range(13)] * captions
    outputs = outputs_of(len(owner), size=3)
    outputs["image"] = outputs["image"][:13].repeat(captions, 1)
    outputs["text"] += outputs["image"]
    found = recalls(outputs, torch.tensor(owner))
    assert found == pytest.approx(plain_recalls(outputs, owner))
    assert 0 < found["TR@1"] < 1
    task = Retrieval()
    assert task.score(outputs, torch.tensor(owner)) == pytest.approx(sum(found.values()) / 6)
    extras = task.extras(outputs, torch.tensor(owner))
    assert extras["R@10"] == pytest.approx((found["TR@10"] + found["IR@10"]) / 2)
    assert extras["gallery_images"] == 13
    assert extras["gallery_texts"] == 13 * captions


def test_any_caption_of_an_image_counts_by_hand():
    owner = torch.tensor([0, 0, 1, 1, 1, 2, 2])
    # cosine of every caption (rows) with the images 0, 1, 2
    texts = torch.tensor(
        [
            [0.5, 1.0, 6.0],  # of image 0: third
            [0.8, 0.2, 0.3],  # of image 0: first
            [7.0, 4.0, 1.0],  # of image 1: second
            [8.0, 3.0, 2.0],  # second
            [9.0, 5.0, 0.0],  # second
            [1.0, 6.0, 7.0],  # of image 2: first
            [6.0, 7.0, 8.0],  # first
        ]
    )
    found = recalls({"image": torch.eye(3)[owner], "text": texts}, owner)
    # image 0: its best caption, 0.8, is behind all five others; image 1: its best, 5, behind 6 and
    # 7; image 2: 8 is the best of all
    assert found == pytest.approx(
        {"TR@1": 1 / 3, "TR@5": 2 / 3, "TR@10": 1, "IR@1": 3 / 7, "IR@5": 1, "IR@10": 1}
    )
    # were they seven images of one caption each, equal ones would be wrong answers
    apart = recalls({"image": torch.eye(3)[owner], "text": texts}, None)
    assert (apart["IR@1"], apart["TR@1"]) == (0, pytest.approx(1 / 7))


def test_ties_count_against():
    same = {"image": torch.ones(20, 2), "text": torch.ones(20, 2)}
    assert set(recalls(same, torch.arange(20)).values()) == {0.0}


def test_a_perfect_model_and_a_small_gallery():
    outputs = {"image": torch.eye(4), "text": torch.eye(4)}
    assert Retrieval().score(outputs, None) == 1.0
    wrong = {"image": torch.eye(4), "text": torch.eye(4).roll(1, 0)}
    found = recalls(wrong, None)
    assert (found["TR@1"], found["TR@5"], found["IR@10"]) == (0.0, 1.0, 1.0)


# -- learned similarities --------------------------------------------------------------------------


def low_rank(count: int = 6, rank: int = 2) -> RelationLabels:
    made = RelationLabels.start(count, rank, seeded(), alpha=3.0)
    with torch.no_grad():
        made.right.copy_(noise(count, rank, seed=9))
        made.diagonal.add_(noise(count, seed=10))
    return made


def test_similarities_start_as_the_identity():
    for rank in (None, 3):
        made = RelationLabels.start(5, rank, seeded(), alpha=2.0)
        assert torch.equal(made.similarity(), torch.eye(5))


def test_low_rank_is_its_formula():
    made = low_rank()
    own = {name: value.detach() for name, value in made.named_parameters()}
    diagonal, left, right = own["diagonal"], own["left"], own["right"]
    expected = torch.zeros(6, 6)
    for i in range(6):
        for j in range(6):
            product = sum(float(left[i, r] * right[j, r]) for r in range(2))
            expected[i, j] = 3.0 / 2 * product + (float(diagonal[i]) if i == j else 0.0)
    assert torch.allclose(made.similarity(), expected, atol=1e-6)


@pytest.mark.parametrize("rank", [None, 2])
def test_a_choice_of_items_has_their_similarities(rank):
    made = RelationLabels({"matrix": noise(6, 6)}) if rank is None else low_rank()
    index = torch.tensor([4, 0, 5])
    whole = made.similarity()
    _, targets = made.attach(index, None, 1)
    logits = torch.zeros(3, 3)
    expected = torch.stack([torch.stack([whole[i, j] for j in index]) for i in index])
    assert torch.allclose(relations(targets, logits), expected)
    # the same by choosing rows of a batch of all of them, twice over
    _, targets = made.attach(None, None, 1)
    batch = Batch(noise(6, 2), targets, torch.zeros(6, dtype=torch.int64))
    chosen = batch.select(torch.tensor([1, 4, 0, 5])).select(torch.tensor([1, 2, 3]))
    assert torch.allclose(relations(chosen.targets, logits), expected)


def with_relation(case: Case, rank: int | None) -> SyntheticSet:
    values = {"image": noise(6, 6, seed=13), "text": noise(6, 8, seed=14)}
    labels = RelationLabels.start(6, rank, seeded(), alpha=3.0)
    made = SyntheticSet(Direct(values), labels, torch.zeros(6), 1)
    made.step_size = StepSize(0.1, len(case.learner().groups_of_parameters))
    return made


@pytest.mark.parametrize(("rank", "numbers"), [(None, 36), (2, 6 + 2 * 12)])
def test_similarities_are_leaves_and_count(rank, numbers):
    made = with_relation(CASES["coupled"](), rank)
    items = 6 * (6 + 8) * 4 + 6 * 8 + 2 * 4
    assert made.nbytes == items + 4 * numbers
    own = {name for name in made.leaves() if name.startswith("labels.")}
    names = {"matrix"} if rank is None else {"diagonal", "left", "right"}
    assert own == {f"labels.{name}" for name in names}


def retrieving(task: Retrieval) -> Case:
    import dataclasses

    return dataclasses.replace(CASES["coupled"](), task=task)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("batch_size", [None, 4])
def test_trajectories_have_the_same_gradient_by_either_memory(task, batch_size):
    case = retrieving(task)
    learner = case.learner(precision="float64")
    found = []
    for memory in ("unrolled", "exact"):
        made = with_relation(case, 2).double()
        with torch.no_grad():
            made.labels.right.copy_(noise(6, 2, seed=9))
        step = case.step(learner, made, related=True)
        objective = TrajectoryMatching(steps=3, memory=memory, batch_size=batch_size)
        objective(step).backward()
        found.append({name: leaf.grad for name, leaf in made.leaves().items()})
    for name, expected in found[0].items():
        assert expected.abs().sum() > 0, name
        assert torch.allclose(found[1][name], expected, rtol=1e-6, atol=1e-9), name


def test_similarities_make_a_trajectory_easier_to_follow():
    """With learned similarities the same items come closer to the target."""
    case = retrieving(WeightedRetrieval())
    ends = {}
    for lr in (1e-9, 0.05):
        made = with_relation(case, 4)
        rates = {"labels": Leaf(optimiser="adam", lr=lr, momentum=0.9)}
        objective = TrajectoryMatching(steps=3)
        run = case.distiller(
            objective, source="taught", synthetic=made, rates=rates, every=10**9, per_group=48
        )
        ends[lr] = [run.step() for _ in range(30)][-1]
    assert ends[0.05] < ends[1e-9]


@pytest.mark.parametrize("rank", [None, 2])
def test_a_resumed_run_ends_with_the_same_bits(rank, tmp_path):
    case = retrieving(WeightedRetrieval())

    def fresh():
        made = with_relation(case, rank)
        return case.distiller(
            TrajectoryMatching(steps=2, batch_size=3), source="taught", synthetic=made
        )

    whole = fresh()
    for _ in range(4):
        whole.step()
    first = fresh()
    first.step()
    first.step()
    save_tree(tmp_path / "state.safetensors", first.state_dict())
    second = fresh()
    second.load_state_dict(load_tree(tmp_path / "state.safetensors"))
    second.step()
    second.step()
    for name, value in whole.synthetic.state_dict().items():
        assert torch.equal(second.synthetic.state_dict()[name], value), name


# -- mistakes --------------------------------------------------------------------------------------


def info(task: str, modality: str = "pairs") -> DataInfo:
    return DataInfo(modality, task, "x", (2, 2), 1, ("all",), "0", {}, {}, {"train": 20})


def test_labels_that_the_loss_cannot_read():
    device = torch.device("cpu")
    for kind in ("soft", "teacher"):
        recipe = compose(method="mtt-vl", options={"synthetic.labels": kind})
        with pytest.raises(UserError, match=f"{kind} are per item, and this task compares pairs"):
            build.parts(recipe, info("retrieval"), device)
    recipe = compose(method="mtt", options={"synthetic.labels": "relation"})
    with pytest.raises(UserError, match="relation labels are similarities between pairs"):
        build.parts(recipe, info("classification", "images"), device)
    with pytest.raises(UserError, match="relation labels: objective distribution reads no labels"):
        compose(method="dm-vl", options={"synthetic.labels": "relation"})


def test_a_rank_above_the_number_of_pairs():
    recipe = compose(method="lors", options={"synthetic.items": 5})
    parts = build.parts(recipe, info("retrieval"), torch.device("cpu"))
    with pytest.raises(UserError, match="rank of the similarities is above the number of pairs"):
        first_relation(parts, with_relation(CASES["coupled"](), 2))


def test_pairs_are_retrieved_where_no_task_is_named():
    assert compose(options={"modality": "pairs"}).task == "retrieval"
    assert compose(options={"modality": "pairs", "task": "retrieval-wbce"}).task == "retrieval-wbce"
    assert compose().task == "classification"


def test_the_joint_and_cross_terms_of_avdd_are_those_of_the_means():
    """|a|^2 + |v|^2 + 10 |a + v|^2 + 10 |a - v|^2 = 21 (|a|^2 + |v|^2), a and v gaps of means."""
    real = {side: noise(7, 4, seed=seed).mean(dim=0) for side, seed in (("a", 1), ("v", 2))}
    made = {side: noise(3, 4, seed=seed).mean(dim=0) for side, seed in (("a", 3), ("v", 4))}
    own = sum(float((real[side] - made[side]).square().sum()) for side in "av")
    joint = (real["a"] + real["v"]) - (made["a"] + made["v"])
    cross = (real["a"] + made["v"]) - (real["v"] + made["a"])
    both = float(joint.square().sum()) + float(cross.square().sum())
    assert own + 10 * both == pytest.approx(21 * own, rel=1e-5)
