"""Training fresh learners: by hand, stacked, on every kind of data; and scores of them."""

from __future__ import annotations

import copy
import dataclasses
import statistics

import pytest
import torch
import torch.nn.functional as F
from fakes import CASES, labels, noise, seeded

from mmdd import evaluate
from mmdd.batch import Batch
from mmdd.errors import NonFiniteError, UserError
from mmdd.evaluate import Trainer, mixup, rate_factor, score
from mmdd.protocols import PROTOCOLS, Protocol
from mmdd.real import JointData, ResidentData
from mmdd.rng import generator
from mmdd.scores import Scores
from mmdd.targets import label_kind, labelled
from mmdd.tasks.classification import Classification
from mmdd.trees import tree_leaves


def protocol(**fields):
    values = {"epochs": 6, "batch_size": 5, "lr": 0.1, "schedule": "constant", "augment": False}
    return Protocol(**{**values, **fields})


def everything(data):
    return data.select(torch.arange(len(data)))


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]()


class Shift:
    """An augmentation: every item is moved by its own random number."""

    def draw(self, count, generator, *, shared_op=False):
        return torch.randn(count, 1, generator=generator)

    def __call__(self, inputs, draw, rows=None):
        return inputs + 0.5 * (draw if rows is None else draw[rows])


# -- one learner -----------------------------------------------------------------------------------


def plain_sgd(case, params, batch, epochs, lr, *, drop, forget=True):
    """DC's training, written out: full batches, and in epoch `drop` a lower rate."""
    net = case.net()
    net.load_state_dict(params)
    velocity = {}
    for epoch in range(epochs):
        if epoch == drop:
            lr = 0.1 * lr
            velocity = {} if forget else velocity
        loss = F.cross_entropy(net(batch.inputs), batch.targets)
        gradients = torch.autograd.grad(loss, list(net.parameters()))
        with torch.no_grad():
            for (name, value), raw in zip(net.named_parameters(), gradients, strict=True):
                gradient = raw + 5e-4 * value
                old = velocity.get(name)
                velocity[name] = gradient if old is None else 0.9 * old + gradient
                value -= lr * velocity[name]
    return {name: value.detach() for name, value in net.named_parameters()}


def distance(a, b):
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize("epochs", [8, 9])
def test_dc_lowers_the_rate_and_forgets_the_momentum_after_half(epochs):
    case = CASES["separable"]()
    learner, batch = case.learner(), everything(case.train)
    chosen = protocol(epochs=epochs, batch_size=100, schedule="dc")
    (trained,) = Trainer(learner, chosen, seed=3).train([batch])
    start = learner.init(generator(3, "learner/0/init"))

    def by_hand(drop, **more):
        return plain_sgd(case, start, batch, epochs, 0.1, drop=drop, **more)

    half = epochs // 2 + 1
    assert distance(trained, by_hand(half)) < 1e-5
    # the check is sharp enough to tell an epoch more or less, and kept momentum
    for other in (by_hand(half - 1), by_hand(half + 1), by_hand(half, forget=False)):
        assert distance(trained, other) > 1e-4


def test_every_epoch_shows_every_item_once_in_a_new_order(monkeypatch):
    case = CASES["separable"]()
    learner = case.learner()
    places = torch.arange(12.0)
    batch = Batch(noise(12, 6) * 0 + places[:, None], labels(12), labels(12))
    seen = []
    original = learner.loss

    def watched(params, part, **more):
        seen.append(part.inputs[:, 0].int().tolist())
        assert part.targets.tolist() == [place % 3 for place in seen[-1]]
        return original(params, part, **more)

    monkeypatch.setattr(learner, "loss", watched)
    Trainer(learner, protocol(epochs=3), seed=0).train([batch])
    assert [len(part) for part in seen] == [5, 5, 2] * 3
    epochs = [[*seen[start], *seen[start + 1], *seen[start + 2]] for start in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_training_teaches_every_kind_of_data(case):
    chosen = protocol(epochs=40, batch_size=12, lr=0.02, momentum=0.9, optimiser="adam")
    learner = case.learner()
    (trained,) = Trainer(learner, chosen, seed=0).train([case.train])
    before = score(learner, learner.init(generator(0, "learner/0/init")), case.test)
    after = score(learner, trained, case.test)
    if case.task.direction == "min":
        assert after < 0.3 * before
    else:
        assert after > before + 0.2
        assert after > 0.5


def test_a_synthetic_set_can_be_trained_on(case):
    with torch.no_grad():
        batch = case.start().batch()
    learner = case.learner()
    trained = Trainer(learner, protocol(), seed=0).train([batch])
    start = learner.init(generator(0, "learner/0/init"))
    assert all(torch.isfinite(value).all() for value in trained[0].values())
    assert any(not torch.equal(trained[0][name], start[name]) for name in start)
    assert not any(value.requires_grad for value in trained[0].values())


def test_the_same_seed_gives_the_same_bits(case):
    sets = [everything(case.train)] * 2
    first = Trainer(case.learner(), protocol(), seed=1).train(sets)
    torch.rand(5)
    again = Trainer(case.learner(), protocol(), seed=1).train(sets)
    other = Trainer(case.learner(), protocol(), seed=2).train(sets)
    for a, b, c in zip(first, again, other, strict=True):
        assert_same_bits(a, b)
        assert any(not torch.equal(a[name], c[name]) for name in a)
    # learners differ by their initial parameters and order, although the set is the same
    assert any(not torch.equal(first[0][name], first[1][name]) for name in first[0])


def test_a_set_and_a_batch_of_the_same_items_are_the_same_to_a_learner():
    case = CASES["separable"]()
    whole = protocol(batch_size=100)
    of_set = Trainer(case.learner(), whole, seed=0).train([case.train])[0]
    of_batch = Trainer(case.learner(), whole, seed=0).train([everything(case.train)])[0]
    assert distance(of_set, of_batch) < 1e-5


def test_progress_counts_epochs_of_all_learners():
    case = CASES["separable"]()
    for sets in ([case.train] * 2, [everything(case.train)] * 2):
        told = []
        trainer = Trainer(
            case.learner(), protocol(), seed=0, on_epoch=lambda *t, into=told: into.append(t)
        )
        trainer.train(sets)
        assert told[-1] == (12, 12)
        assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_the_order_of_items_in_a_whole_batch_is_nothing_to_a_learner():
    case = CASES["separable"]()
    batch = everything(case.train)
    turned = batch.select(torch.arange(len(batch)).flip(0))
    trainer = Trainer(case.learner(), protocol(batch_size=len(batch)), seed=0)
    assert distance(*trainer.train([batch]), *trainer.train([turned])) < 1e-5


def test_nothing_to_train_is_nothing_trained():
    assert Trainer(CASES["separable"]().learner(), protocol(), seed=0).train([]) == []


# -- several learners at once ----------------------------------------------------------------------


def both_ways(case, sets, monkeypatch, chosen=None, **more):
    """The learners trained stacked, and the same ones trained one after the other."""
    trainer = Trainer(case.learner(), chosen or protocol(), seed=0, **more)
    assert trainer._stackable(sets)
    stacked = trainer.train(sets)
    monkeypatch.setattr(evaluate, "STACKED_ELEMENTS", 0)
    assert not trainer._stackable(sets)
    return stacked, trainer.train(sets)


@pytest.mark.parametrize("schedule", ["dc", "idc", "cosine", "onecycle", "constant"])
@pytest.mark.parametrize("name", ["separable", "masked", "forecasting"])
def test_stacked_learners_are_those_trained_alone(name, schedule, monkeypatch):
    case = CASES[name]()
    whole = everything(case.train)
    sets = [whole.select(torch.arange(start, start + 12)) for start in (0, 7, 14)]
    chosen = protocol(schedule=schedule)
    stacked, alone = both_ways(case, sets, monkeypatch, chosen)
    for a, b in zip(stacked, alone, strict=True):
        assert distance(a, b) < 1e-5


def test_stacked_learners_see_their_own_augmentation(monkeypatch):
    case = CASES["separable"]()
    sets = [everything(case.train).select(torch.arange(start, start + 12)) for start in (0, 12)]
    augmented = protocol(augment=True)
    stacked, alone = both_ways(case, sets, monkeypatch, augmented, augmentation=Shift())
    plain = Trainer(case.learner(), protocol(), seed=0, augmentation=Shift()).train(sets)
    for a, b, c in zip(stacked, alone, plain, strict=True):
        assert distance(a, b) < 1e-5
        assert distance(a, c) > 1e-3


@pytest.mark.parametrize("size", [12, 2])
def test_stacked_learners_with_weights_are_those_trained_alone(size, monkeypatch):
    case = CASES["separable"]()
    whole = everything(case.train)
    batches = []
    # mini-batches of two leave some learner without any item that counts
    for start, kept in ((0, 12), (12, 4)):
        part = whole.select(torch.arange(start, start + 12))
        batches.append(dataclasses.replace(part, weights=(torch.arange(12) < kept).float()))
    stacked, alone = both_ways(case, batches, monkeypatch, protocol(batch_size=size))
    for a, b in zip(stacked, alone, strict=True):
        assert distance(a, b) < 1e-5


def test_what_cannot_be_stacked_is_not():
    separable, coupled, joint = (CASES[name]() for name in ("separable", "coupled", "joint"))
    batch = everything(separable.train)
    trainer = Trainer(separable.learner(), protocol(), seed=0)
    assert trainer._stackable([batch, batch])
    assert not trainer._stackable([batch])
    assert not trainer._stackable([batch, separable.train])
    assert not trainer._stackable([batch, batch.select(torch.arange(5))])
    assert not Trainer(joint.learner(), protocol(), 0)._stackable([everything(joint.train)] * 2)
    # items of one contrastive batch are each other's counter-examples
    assert not Trainer(coupled.learner(), protocol(), 0)._stackable([everything(coupled.train)] * 2)
    by_validation = protocol(selection="validation")
    assert not Trainer(separable.learner(), by_validation, 0)._stackable([batch, batch])
    mixing = separable.learner()
    mixing.mixes_items = True
    assert not Trainer(mixing, protocol(), 0)._stackable([batch, batch])
    # every learner has its own pairs
    assert not Trainer(separable.learner(), protocol(mix="mixup"), 0)._stackable([batch, batch])


# -- which state is handed back --------------------------------------------------------------------


class Watched(ResidentData):
    """Counts how often it is read."""

    reads = 0

    def read(self, index):
        type(self).reads += 1
        return super().read(index)


def misleading(case):
    """A validation split whose labels are wrong, so that training makes its score worse."""
    whole = everything(case.test)
    Watched.reads = 0
    return Watched(whole.inputs, (whole.targets + 1) % 3, whole.groups, 3)


def test_validation_selects_the_best_check():
    case = CASES["separable"]()
    validation = misleading(case)
    chosen = protocol(epochs=12, batch_size=36, lr=0.02, selection="validation", checks=4)
    learner = case.learner()
    batch = everything(case.train)
    (trained,) = Trainer(learner, chosen, seed=0, validation=validation).train([batch])
    assert Watched.reads > 0
    # a constant rate makes a shorter training the beginning of a longer one
    checks = [
        Trainer(learner, chosen.model_copy(update=update), seed=0).train([batch])[0]
        for update in ({"epochs": epochs, "selection": "last"} for epochs in (3, 6, 9, 12))
    ]
    scores = [score(learner, params, validation) for params in checks]
    best = scores.index(max(scores))
    assert best < 3, "the test needs a validation split that prefers an early check"
    assert max(scores) > scores[-1]
    assert_same_bits(trained, checks[best])


def test_validation_selects_downwards_for_an_error():
    case = CASES["forecasting"]()
    whole = everything(case.train)
    validation = ResidentData(whole.inputs, -whole.targets, whole.groups, 1)
    chosen = protocol(epochs=12, batch_size=100, lr=0.3, selection="validation", checks=12)
    learner = case.learner()
    (trained,) = Trainer(learner, chosen, seed=0, validation=validation).train([whole])
    last = Trainer(learner, chosen.model_copy(update={"selection": "last"}), seed=0).train([whole])
    assert score(learner, trained, validation) < score(learner, last[0], validation)


def test_the_last_state_needs_no_validation():
    case = CASES["separable"]()
    validation = misleading(case)
    Trainer(case.learner(), protocol(), seed=0, validation=validation).train([case.train])
    assert Watched.reads == 0


@pytest.mark.parametrize(
    ("epochs", "checks", "expected"),
    [(12, 4, [3, 6, 9, 12]), (5, 2, [3, 5]), (2, 10, [1, 2]), (7, 1, [7])],
)
def test_checks_are_spread_over_the_training(epochs, checks, expected, monkeypatch):
    case = CASES["separable"]()
    done, checked = [], []
    monkeypatch.setattr(evaluate, "score", lambda *_: checked.append(len(done) + 1) or 0.5)
    chosen = protocol(epochs=epochs, selection="validation", checks=checks)
    trainer = Trainer(
        case.learner(),
        chosen,
        seed=0,
        validation=case.test,
        on_epoch=lambda *_: done.append(1),
    )
    trainer.train([case.train])
    assert checked == expected


# -- mixing ----------------------------------------------------------------------------------------


def first_features(inputs, partner, generator):
    """A mixer of vectors: the first features are the partner's, at least one and not all."""
    count = int(torch.randint(1, inputs.shape[1], (), generator=generator))
    mixed = inputs.clone()
    mixed[:, :count] = partner[:, :count]
    return mixed, 1 - count / inputs.shape[1]


def cross_entropies(logits, targets):
    """-sum_c p_c log softmax(logits)_c, for class numbers too."""
    if targets.ndim == 1:
        targets = F.one_hot(targets, logits.shape[1]).to(logits)
    return -(targets * logits.log_softmax(dim=1)).sum(dim=1)


def mixed_by_hand(case, params, batch, mixer, *, epochs, size, probability, lr):
    """Plain SGD on mixed pairs and mixed losses, with the numbers of a learner's own stream."""
    net, stream = case.net(), generator(0, "learner/0/data")
    net.load_state_dict(params)
    optimiser = torch.optim.SGD(net.parameters(), lr, 0.9, weight_decay=5e-4)
    mixed = 0
    for _ in range(epochs):
        index = torch.arange(len(batch))
        if size < len(batch):
            index = torch.randperm(len(batch), generator=stream)
        for rows in index.split(size):
            x, y, kept, other = batch.inputs[rows], batch.targets[rows], 1.0, batch.targets[rows]
            if float(torch.rand((), generator=stream)) < probability:
                order = torch.randperm(len(rows), generator=stream)
                other = y[order]
                x, kept = mixer(x, x[order], stream)
                mixed += 1
            logits = net(x)
            losses = kept * cross_entropies(logits, y) + (1 - kept) * cross_entropies(logits, other)
            optimiser.zero_grad()
            losses.mean().backward()
            optimiser.step()
    return dict(net.named_parameters()), mixed


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("size", [100, 5])
@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_pairs_and_their_losses_are_mixed(name, size, soft):
    case = CASES["separable"]()
    batch = everything(case.train)
    if soft:
        probabilities = (3 * noise(len(batch), 3)).softmax(dim=1)
        batch = dataclasses.replace(batch, targets=probabilities)
    chosen = protocol(epochs=4, batch_size=size, mix=name, mix_probability=0.7)
    learner = case.learner()
    trainer = Trainer(learner, chosen, seed=0, mixers={"cutmix": first_features})
    (trained,) = trainer.train([batch])
    expected, mixed = mixed_by_hand(
        case,
        learner.init(generator(0, "learner/0/init")),
        batch,
        {"mixup": mixup, "cutmix": first_features}[name],
        epochs=4,
        size=size,
        probability=0.7,
        lr=0.1,
    )
    assert 0 < mixed < 4 * -(-len(batch) // size)
    assert distance(trained, {key: value.detach() for key, value in expected.items()}) < 1e-5


def test_weights_follow_the_labels_of_a_pair():
    case = CASES["separable"]()
    whole = everything(case.train).select(torch.arange(6))
    weighted = dataclasses.replace(whole, weights=torch.tensor([1.0, 0, 2, 1, 0, 3]))
    chosen = protocol(epochs=1, batch_size=6, mix="mixup", mix_probability=1.0)
    learner = case.learner()
    run = evaluate._Run(Trainer(learner, chosen, seed=0), ["learner/0"], [weighted])
    found = float(run._loss(weighted).detach())
    stream = generator(0, "learner/0/data")
    torch.rand((), generator=stream)
    order = torch.randperm(6, generator=stream)
    kept = float(torch.rand((), generator=stream))
    logits = learner.outputs(
        run.params, whole.with_inputs(kept * whole.inputs + (1 - kept) * whole.inputs[order])
    )
    own, other = weighted.weights, weighted.weights[order]
    first = (own * cross_entropies(logits, whole.targets)).sum() / own.sum()
    second = (other * cross_entropies(logits, whole.targets[order])).sum() / other.sum()
    assert found == pytest.approx(float((kept * first + (1 - kept) * second).detach()), abs=1e-6)


@pytest.mark.parametrize(("probability", "expected"), [(0.0, 0), (1.0, 48)])
def test_the_probability_is_that_of_a_mini_batch(probability, expected):
    case, seen = CASES["separable"](), []

    def watched(inputs, partner, generator):
        seen.append(inputs)
        return first_features(inputs, partner, generator)

    chosen = protocol(mix="cutmix", mix_probability=probability)
    Trainer(case.learner(), chosen, seed=0, mixers={"cutmix": watched}).train([case.train])
    assert len(seen) == expected == probability * 6 * -(-len(case.train) // 5)


def test_items_are_mixed_after_augmentation():
    case, seen = CASES["separable"](), []

    def watched(inputs, partner, generator):
        seen.append((inputs, partner))
        return inputs, 1.0

    class Far(Shift):
        def __call__(self, inputs, draw, rows=None):
            return inputs + 1000 + draw

    chosen = protocol(augment=True, mix="cutmix", mix_probability=1.0, epochs=1, lr=1e-9)
    mixers = {"cutmix": watched}
    Trainer(case.learner(), chosen, 0, Far(), mixers=mixers).train([everything(case.train)])
    for inputs, partner in seen:
        assert inputs.min() > 900
        # the very items of the batch, with their own augmentation, in another order
        assert torch.equal(inputs.sort(dim=0).values, partner.sort(dim=0).values)


def test_mixup_leaves_what_is_no_number_alone():
    x = {"values": noise(4, 5, 2), "mask": torch.arange(20).view(4, 5) % 3 == 0}
    partner = {"values": noise(4, 5, 2, seed=3), "mask": ~x["mask"]}
    mixed, kept = mixup(x, partner, seeded(1))
    assert 0 <= kept <= 1
    expected = kept * x["values"].double() + (1 - kept) * partner["values"].double()
    assert torch.allclose(mixed["values"].double(), expected, atol=1e-6)
    assert torch.equal(mixed["mask"], x["mask"])


def test_the_shares_of_mixup_are_uniform():
    stream = seeded(0)
    shares = torch.tensor([mixup(noise(1, 1), noise(1, 1), stream)[1] for _ in range(2000)])
    # Beta(1, 1): mean 1/2, variance 1/12
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(shares.var()) == pytest.approx(1 / 12, abs=0.01)


def test_mixing_gives_the_same_bits_again_and_in_any_company():
    case = CASES["separable"]()
    batch = everything(case.train)
    trainer = Trainer(case.learner(), protocol(mix="mixup"), seed=1)
    first = trainer.train([batch, batch])
    torch.rand(3)
    assert_same_bits(first[0], trainer.train([batch])[0])
    assert_same_bits(first[1], trainer.train([batch, batch])[1])
    assert distance(first[0], Trainer(case.learner(), protocol(), seed=1).train([batch])[0]) > 1e-3


def test_a_modality_may_bring_its_own_mixup():
    case, seen = CASES["separable"](), []

    def own(inputs, partner, generator):
        seen.append(1)
        return inputs, 1.0

    chosen = protocol(mix="mixup", mix_probability=1.0)
    Trainer(case.learner(), chosen, seed=0, mixers={"mixup": own}).train([case.train])
    assert seen


def test_what_cannot_be_mixed_is_refused_before_training():
    separable, coupled, joint = (CASES[name]() for name in ("separable", "coupled", "joint"))
    with pytest.raises(
        UserError, match=r"got 'cutmix'; expected one of mixup, none\..*evaluate\.mix"
    ):
        Trainer(separable.learner(), protocol(mix="cutmix"), 0)
    with pytest.raises(UserError, match="expected one of mixup, turn, none"):
        Trainer(separable.learner(), protocol(mix="cutmix"), 0, mixers={"turn": first_features})
    with pytest.raises(UserError, match="'pairs' compares them"):
        Trainer(coupled.learner(), protocol(mix="mixup"), 0)
    trainer = Trainer(joint.learner(), protocol(mix="mixup"), 0, on_epoch=pytest.fail)
    for data in (joint.train, everything(joint.train)):
        with pytest.raises(UserError, match="one structure"):
            trainer.train([data])
    whole = everything(separable.train)
    numbers = whole.with_inputs(whole.inputs.long())
    trainer = Trainer(separable.learner(), protocol(mix="mixup"), 0, on_epoch=pytest.fail)
    with pytest.raises(UserError, match="these have none"):
        trainer.train([whole, numbers])


# -- labels ----------------------------------------------------------------------------------------


def test_labels_are_the_sets_own_or_its_classes():
    case = CASES["separable"]()
    hard = everything(case.train)
    soft = dataclasses.replace(hard, targets=noise(len(hard), 3).softmax(dim=1))
    assert label_kind(hard, case.task) == "hard"
    assert label_kind(soft, case.task) == "soft"
    assert labelled(soft, case.task, "own") is soft
    assert labelled(hard, case.task, "hard") is hard
    found = labelled(soft, case.task, "hard")
    assert torch.equal(found.targets, hard.groups)
    assert torch.equal(found.inputs, soft.inputs)


@pytest.mark.parametrize("name", ["coupled", "forecasting"])
def test_targets_that_are_no_classes_stay(name):
    case = CASES[name]()
    batch = everything(case.train)
    assert label_kind(batch, case.task) == "own"
    assert labelled(batch, case.task, "hard") is batch


@pytest.mark.parametrize("count", [1, 2])
def test_probabilities_are_learned_from(count):
    case = CASES["separable"]()
    batch = everything(case.train)
    sharp = dataclasses.replace(batch, targets=F.one_hot(batch.targets, 3).float())
    trainer = Trainer(case.learner(), protocol(), seed=0)
    for a, b in zip(trainer.train([batch] * count), trainer.train([sharp] * count), strict=True):
        assert distance(a, b) < 1e-5
    wrong = dataclasses.replace(batch, targets=torch.full((len(batch), 3), 1 / 3))
    assert distance(trainer.train([wrong])[0], trainer.train([sharp])[0]) > 1e-2


# -- rates and numbers that are not finite ---------------------------------------------------------


def two_groups(case):
    """The learner with a group of parameters per half of the net."""
    learner = case.learner()
    learner.encoder.parameter_groups = {
        "head": [name for name in learner.trainable_names if name.startswith("head")],
        "body": [name for name in learner.trainable_names if not name.startswith("head")],
    }
    return learner


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("schedule", ["constant", "idc", "dc"])
def test_every_group_of_parameters_has_its_rate(schedule, optimiser):
    case, rates = CASES["separable"](), {"head": 0.3, "body": 0.02}
    learner, batch = two_groups(case), everything(case.train)
    chosen = protocol(
        epochs=9, batch_size=100, schedule=schedule, momentum=0, optimiser=optimiser, lr=7.0
    )
    (trained,) = Trainer(learner, chosen, seed=0, rates=[*rates.values()]).train([batch])
    net = case.net()
    net.load_state_dict(learner.init(generator(0, "learner/0/init")))

    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimiser]
    parts = {"head": net.head, "body": net.blocks}

    def fresh(factor):
        groups = [
            {"params": parts[name].parameters(), "lr": factor * rate}
            for name, rate in rates.items()
        ]
        return kind(groups, weight_decay=5e-4)

    optimiser_by_hand = fresh(1.0)
    for epoch in range(9):
        if schedule == "dc" and epoch == 5:
            optimiser_by_hand = fresh(0.1)
        factor = 0.2 ** ((epoch >= 6) + (epoch >= 7)) if schedule == "idc" else 1.0
        for group, rate in zip(optimiser_by_hand.param_groups, rates.values(), strict=True):
            if schedule == "idc":
                group["lr"] = factor * rate
        optimiser_by_hand.zero_grad()
        F.cross_entropy(net(batch.inputs), batch.targets).backward()
        optimiser_by_hand.step()
    assert distance(trained, {key: value.detach() for key, value in net.named_parameters()}) < 1e-5


def test_stacked_learners_have_rates_by_group_too(monkeypatch):
    case = CASES["separable"]()
    whole = everything(case.train)
    sets = [whole.select(torch.arange(start, start + 12)) for start in (0, 12)]
    trainer = Trainer(two_groups(case), protocol(), seed=0, rates=[0.3, 0.02])
    stacked = trainer.train(sets)
    monkeypatch.setattr(evaluate, "STACKED_ELEMENTS", 0)
    for a, b in zip(stacked, trainer.train(sets), strict=True):
        assert distance(a, b) < 1e-5


def test_a_learned_step_size_that_nobody_resolved_is_refused():
    with pytest.raises(
        UserError, match=r"the set has none\. Give a rate, e\.g\. evaluate\.lr=0\.01"
    ):
        Trainer(CASES["separable"]().learner(), protocol(lr="learned"), seed=0)


@pytest.mark.parametrize("epochs", [1, 2, 6, 7, 100, 1000])
def test_idc_drops_the_rate_as_its_code_does(epochs):
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
    drops = [2 * epochs // 3, 5 * epochs // 6]
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimiser, drops, gamma=0.2)
    chosen = protocol(epochs=epochs, schedule="idc")
    for epoch in range(epochs):
        (expected,) = scheduler.get_last_lr()
        for part in (0.0, 0.5, 0.99):
            assert rate_factor(chosen, epoch + part) == pytest.approx(expected)
        optimiser.step()
        scheduler.step()


def test_idc_keeps_the_momentum():
    case = CASES["separable"]()
    learner, batch = case.learner(), everything(case.train)
    chosen = protocol(epochs=12, batch_size=100, schedule="idc")
    (trained,) = Trainer(learner, chosen, seed=0).train([batch])
    net = case.net()
    net.load_state_dict(learner.init(generator(0, "learner/0/init")))
    optimiser = torch.optim.SGD(net.parameters(), 0.1, 0.9, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimiser, [8, 10], gamma=0.2)
    for _ in range(12):
        optimiser.zero_grad()
        F.cross_entropy(net(batch.inputs), batch.targets).backward()
        optimiser.step()
        scheduler.step()
    assert distance(trained, {key: value.detach() for key, value in net.named_parameters()}) < 1e-5


def test_published_protocols_are_those_of_their_papers():
    idc, mtt = PROTOCOLS["idc"], PROTOCOLS["mtt"]
    assert (idc.epochs, idc.batch_size, idc.lr, idc.momentum) == (1000, 64, 0.01, 0.9)
    assert (idc.mix, idc.mix_probability, idc.weight_decay) == ("cutmix", 0.5, 5e-4)
    assert (mtt.epochs, mtt.batch_size, mtt.lr, mtt.schedule) == (1000, 256, "learned", "dc")
    assert mtt.momentum == 0.9


def test_rates_over_the_epochs():
    cosine = protocol(epochs=10, schedule="cosine")
    assert rate_factor(cosine, 0) == pytest.approx(1.0)
    assert rate_factor(cosine, 5) == pytest.approx(0.5)
    assert rate_factor(cosine, 10) == pytest.approx(0.0)
    onecycle = protocol(epochs=8, schedule="onecycle")
    found = [rate_factor(onecycle, epoch) for epoch in range(9)]
    assert max(found) == found[2] == pytest.approx(1.0)
    assert found[0] == pytest.approx(0.02)
    assert found[8] == pytest.approx(0.0)
    assert rate_factor(protocol(schedule="constant"), 3) is None
    assert rate_factor(protocol(schedule="dc"), 3) is None


def test_one_cycle_never_exceeds_its_peak():
    onecycle = protocol(epochs=8, schedule="onecycle")
    assert max(rate_factor(onecycle, epoch / 100) for epoch in range(800)) <= 1.0 + 1e-9


@pytest.mark.parametrize("stacked", [False, True])
def test_a_loss_that_is_not_finite_is_an_error(stacked):
    case = CASES["separable"]()
    sets = [everything(case.train)] * (2 if stacked else 1)
    trainer = Trainer(case.learner(), protocol(lr=1e30), seed=0)
    with pytest.raises(NonFiniteError, match=r"epoch \d+ of its training; lower evaluate\.lr"):
        trainer.train(sets)


def test_the_last_update_is_looked_at_too():
    case = CASES["forecasting"]()
    batch = everything(case.train)
    far = dataclasses.replace(batch, targets=1e3 * batch.targets)
    trainer = Trainer(case.learner(), protocol(epochs=1, batch_size=100, lr=3e38), seed=0)
    with pytest.raises(NonFiniteError):
        trainer.train([far])


# -- scores ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [(0.5,), (0.25, 0.75), (0.1, 0.5, 0.3, 0.9)])
def test_scores_have_a_sample_standard_deviation(values):
    found = Scores(values)
    assert found.mean == pytest.approx(statistics.mean(values))
    expected = statistics.stdev(values) if len(values) > 1 else 0.0
    assert found.std == pytest.approx(expected)
    assert found.as_dict() == {
        "mean": found.mean,
        "std": found.std,
        "n": len(values),
        "values": list(values),
    }


def test_a_score_does_not_depend_on_how_the_set_is_cut(case):
    learner = case.learner()
    params = learner.init(seeded(0))
    whole = score(learner, params, case.test)
    assert score(learner, params, case.test, size=3) == pytest.approx(whole)


def test_a_learner_without_finite_outputs_has_no_score(case):
    learner = case.learner()
    params = learner.init(seeded(0))
    for name in [name for name in params if name.endswith("head.bias")]:
        params[name] = torch.full_like(params[name], float("inf"))
    with pytest.raises(NonFiniteError, match="non-finite outputs"):
        score(learner, params, case.test)


def test_a_score_by_hand():
    case = CASES["separable"]()
    learner = case.learner()
    params = learner.init(seeded(0))
    batch = everything(case.test)
    guesses = learner.outputs(params, batch).argmax(dim=1).tolist()
    right = sum(a == b for a, b in zip(guesses, batch.targets.tolist(), strict=True))
    assert score(learner, params, case.test) == pytest.approx(right / len(guesses))


def test_a_graph_is_scored_on_its_chosen_nodes_alone():
    case = CASES["joint"]()
    learner = case.learner()
    params = learner.init(seeded(0))
    rows = case.test.index
    outputs = learner.outputs(params, everything(case.test))
    truth = case.test.all_targets
    expected = float((outputs[rows].argmax(dim=1) == truth[rows]).double().mean())
    assert score(learner, params, case.test) == pytest.approx(expected)
    # other labels outside the chosen nodes change nothing
    changed = truth.clone()
    changed[: rows.min()] = (changed[: rows.min()] + 1) % 3
    other = JointData(case.test.structure, changed, case.test.all_groups, 3, index=rows)
    assert score(learner, params, other) == pytest.approx(expected)


def test_scoring_runs_in_evaluation_mode_and_changes_nothing(case):
    learner = case.learner()
    params = learner.init(seeded(0))
    kept = copy.deepcopy(params)
    score(learner, params, case.test)
    assert not learner.encoder.training
    assert_same_bits(params, kept)


def test_recall_of_pairs_is_taken_over_the_whole_set():
    case = CASES["coupled"]()
    learner = case.learner()
    params = learner.init(seeded(0))
    outputs = learner.outputs(params, everything(case.test))
    near = outputs["image"] @ outputs["text"].T
    expected = sum(int(row.argmax()) == place for place, row in enumerate(near)) / len(near)
    # cut into batches of two, recall within a batch would be far higher
    assert score(learner, params, case.test, size=2) == pytest.approx(expected)


def test_fakes_can_be_stacked():
    for name in ("separable", "masked", "forecasting"):
        batch = everything(CASES[name]().train)
        numbers = sum(leaf[0].numel() for leaf in tree_leaves(batch.inputs))
        assert numbers < evaluate.STACKED_ELEMENTS


def test_two_classes_are_also_told_by_the_area_under_their_curve():
    """By hand: the share of pairs of which the item of the second class is ranked above."""
    logits, truth = noise(40, 2, seed=3), torch.arange(40) % 5 // 4
    margin = logits[:, 1] - logits[:, 0]
    pairs = margin[truth == 1][:, None] > margin[truth == 0][None]
    task = Classification()
    assert task.extras(logits, truth)["ROC-AUC"] == pytest.approx(pairs.double().mean().item())
    assert task.extras(logits, torch.zeros(40).long()) == {}
    assert task.extras(noise(40, 3), truth) == {}
