"""Where parameters come from: training by hand, life cycles, windows of trajectories."""

from __future__ import annotations

import copy
import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F
from fakes import CASES, Shift, everything, seeded

from mmdd import catalog
from mmdd.expert_sources import Interpolated, Segments
from mmdd.files import load_tree, save_tree
from mmdd.objectives.distribution import DistributionMatching
from mmdd.rng import Streams, generator
from mmdd.sources import Drawn, Fresh, Surroundings
from mmdd.trained_sources import (
    PUBLISHED_LOOPS,
    Pool,
    RealTrained,
    SyntheticTrained,
    loops,
    random_items,
)
from mmdd.training import Student
from mmdd.trees import tree_leaves

TRAINED = {
    "synthetic-trained": {"outer": 4, "inner": 1},
    "real-trained": {"life": 4, "updates": 2, "batch_size": 8},
    "pool": {"nets": 3, "push_every": 2, "updates": 2, "batch_size": 8},
}


def surroundings(case, seed=0, **more):
    return Surroundings(case.learner(), Streams(seed), case.start(), case.train, **more)


def separable(seed=0, **more):
    return surroundings(CASES["separable"](), seed, **more)


def made(name, around, **options):
    return catalog.load("source", name, catalog.SOURCES)(around, **{**TRAINED[name], **options})


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


def same(a, b):
    return all(torch.equal(value, b[name]) for name, value in a.items())


def copied(params):
    return {name: value.clone() for name, value in params.items()}


def plain_sgd(case, params, batches, lr, momentum=0.0, weight_decay=0.0):
    """A module and a loop: parameters after one step on each of `batches` (inputs, targets)."""
    net = case.net()
    net.load_state_dict(params)
    velocity = {name: torch.zeros_like(value) for name, value in net.named_parameters()}
    for inputs, targets in batches:
        net.zero_grad()
        F.cross_entropy(net(inputs), targets).backward()
        with torch.no_grad():
            for name, value in net.named_parameters():
                velocity[name] = momentum * velocity[name] + value.grad + weight_decay * value
                value -= lr * velocity[name]
    return dict(net.named_parameters())


@pytest.fixture
def lessons(monkeypatch):
    """Every batch that a student is trained on, and the outputs that it gave."""
    found = []
    original = Student.step

    def stepped(self, batch):
        outputs = original(self, batch)
        found.append((batch, outputs))
        return outputs

    monkeypatch.setattr(Student, "step", stepped)
    return found


# -- DC's loops ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pair", [(1, 1, 1), (10, 10, 50), (20, 20, 25), (30, 30, 20), (40, 40, 15), (50, 50, 10)]
)
def test_published_loops(pair):
    per_class, outer, inner = pair
    assert loops(per_class) == (outer, inner)


def test_loops_for_any_number_lie_between_the_published_ones():
    known = sorted(PUBLISHED_LOOPS)
    for low, high in itertools.pairwise(known):
        between = [loops(n)[1] for n in range(low, high + 1)]
        rising = PUBLISHED_LOOPS[high] > PUBLISHED_LOOPS[low]
        assert between == sorted(between, reverse=not rising)
        assert {between[0], between[-1]} == {PUBLISHED_LOOPS[low], PUBLISHED_LOOPS[high]}
    for per_class in range(1, 400):
        outer, inner = loops(per_class)
        assert outer == min(per_class, 100)
        assert inner >= 1
    assert loops(100) == loops(1000) == (100, 2)
    assert loops(2)[1] == 6  # 1 + 49 / 9


# -- trained on the synthetic set ------------------------------------------------------------------


def test_synthetic_training_is_plain_sgd_on_the_set_as_it_then_is():
    case = CASES["separable"]()
    around = surroundings(case)
    source = SyntheticTrained(around, outer=3, inner=4, lr=0.2, weight_decay=0.05)
    start = copied(source.draw(0).params)
    assert_same_bits(start, case.learner().init(generator(0, "source")))
    leaf, targets, seen = around.synthetic.leaves()["inputs"], around.synthetic.groups, []
    for step in range(2):
        leaf.data += 0.1 * (step + 1)  # as the distiller does before it moves the source on
        seen += 4 * [(leaf.detach().clone(), targets)]
        source.advance()
    expected = plain_sgd(case, start, seen, lr=0.2, weight_decay=0.05)
    torch.testing.assert_close(source.draw(2).params, expected, rtol=1e-5, atol=1e-6)
    assert leaf.grad is None


def test_an_epoch_meets_every_synthetic_item_once(lessons):
    around = separable()
    source = SyntheticTrained(around, outer=2, inner=3, batch_size=4)
    source.draw(0)
    source.advance()
    assert [len(batch) for batch, _ in lessons] == 3 * [4, 2]
    rows = around.synthetic.leaves()["inputs"].detach()
    orders = []
    for epoch in range(3):
        inputs = torch.cat([batch.inputs for batch, _ in lessons[2 * epoch : 2 * epoch + 2]])
        order = [int((rows == row).all(dim=1).nonzero()) for row in inputs]
        assert sorted(order) == list(range(6))
        targets = torch.cat([batch.targets for batch, _ in lessons[2 * epoch : 2 * epoch + 2]])
        assert torch.equal(targets, around.synthetic.groups[order])
        orders.append(order)
    assert orders[0] != orders[1]


def test_a_net_is_let_go_after_its_last_comparison(lessons):
    source = SyntheticTrained(separable(), outer=3, inner=2)
    nets, steps = [], []
    for step in range(7):
        nets.append(copied(source.draw(step).params))
        source.advance()
        steps.append(len(lessons))
    # two trainings in a life of three comparisons: none after the last
    assert steps == [2, 4, 4, 6, 8, 8, 10]
    learner, stream = CASES["separable"]().learner(), generator(0, "source")
    for step in (0, 3, 6):
        assert_same_bits(nets[step], learner.init(stream))
    assert not any(same(a, b) for a, b in itertools.combinations(nets, 2))


def test_loops_follow_the_items_per_class():
    around = separable()  # two items per class
    source = SyntheticTrained(around)
    assert (source.outer, source.inner) == loops(2)
    half = SyntheticTrained(around, inner=9)
    assert (half.outer, half.inner) == (loops(2)[0], 9)
    one = SyntheticTrained(around, outer=1, inner=50)
    nets = [copied(one.draw(step).params) for step in range(2) if one.advance() is None]
    assert not same(*nets)


# -- trained on real items -------------------------------------------------------------------------


def test_real_training_is_plain_sgd_with_momentum(lessons):
    case = CASES["separable"]()
    rates = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.02}
    source = RealTrained(surroundings(case), life=9, updates=3, batch_size=8, **rates)
    start = copied(source.draw(0).params)
    source.advance()
    source.advance()
    assert len(lessons) == 6
    rows = case.train.values
    for batch, _ in lessons:
        index = [int((rows == row).all(dim=1).nonzero()) for row in batch.inputs]
        assert len(set(index)) == 8
        assert torch.equal(batch.targets, case.train.targets[index])
    seen = [(batch.inputs, batch.targets) for batch, _ in lessons]
    torch.testing.assert_close(
        source.draw(2).params, plain_sgd(case, start, seen, **rates), rtol=1e-5, atol=1e-6
    )


def test_a_life_on_real_items(lessons):
    source = RealTrained(separable(), life=3, updates=2, batch_size=8)
    drawn, steps = [], []
    for step in range(5):
        found = source.draw(step)
        assert found.trained is found.params
        drawn.append(copied(found.params))
        source.advance()
        steps.append(len(lessons))
    assert steps == [2, 4, 4, 6, 8]
    learner, stream = CASES["separable"]().learner(), generator(0, "source")
    for step in (0, 3):
        assert_same_bits(drawn[step], learner.init(stream))


def test_a_graph_teaches_by_its_training_nodes_alone(lessons):
    case = CASES["joint"]()
    source = RealTrained(surroundings(case), life=5, updates=2, batch_size=4, lr=0.1, momentum=0.0)
    start = copied(source.draw(0).params)
    source.advance()
    net, data = case.net(), case.train
    net.load_state_dict(start)
    for _ in range(2):
        net.zero_grad()
        logits = net(data.structure)[data.index]
        F.cross_entropy(logits, data.all_targets[data.index]).backward()
        with torch.no_grad():
            for value in net.parameters():
                value -= 0.1 * (value.grad + 5e-4 * value)
    torch.testing.assert_close(source.draw(1).params, dict(net.named_parameters()))
    assert len(lessons) == 2


def test_random_items_are_all_different_and_reach_every_item():
    data, stream = CASES["separable"]().train, seeded(0)
    rows, reached = data.values, set()
    for _ in range(30):
        batch = random_items(data, 20, stream)
        index = [int((rows == row).all(dim=1).nonzero()) for row in batch.inputs]
        assert len(set(index)) == 20
        reached |= set(index)
    assert reached == set(range(36))
    for size in (36, 50):
        assert torch.equal(random_items(data, size, stream).inputs, rows)
    graph = CASES["joint"]().train
    assert torch.equal(random_items(graph, 2, stream).item_weights, everything(graph).item_weights)


# -- a pool ----------------------------------------------------------------------------------------


def ages(pool):
    return [net["steps"] for net in pool.state_dict()["pool"]]


def starts(pool):
    return [net["params"] for net in pool.state_dict()["pool"]]


def test_a_pool_grows_and_the_oldest_leaves():
    pool = Pool(separable(), nets=4, start=2, push_every=2, students=1, updates=1, batch_size=8)
    pool.draw(0)
    assert len(starts(pool)) == 2
    for step in range(1, 11):
        before = starts(pool)
        pool.advance()
        pool.draw(step)
        after = starts(pool)
        assert len(after) == min(4, 2 + step // 2)
        pushed = step % 2 == 0
        # a student of the one step aside, nets keep their places but for what the push moves
        stay = before[1:] if pushed and len(before) == 4 else before
        kept = after[:-1] if pushed else after
        assert len(stay) == len(kept)
        assert sum(not same(a, b) for a, b in zip(stay, kept, strict=True)) <= 1
        if pushed:
            assert ages(pool)[-1] == 0
            assert not any(same(after[-1], net) for net in before)


def test_students_are_different_nets_and_do_their_updates(lessons):
    pool = Pool(separable(), start=4, push_every=99, students=3, updates=2, batch_size=8)
    pool.draw(0)
    taught = set()
    for _ in range(8):
        before = ages(pool)
        pool.advance()
        grown = [a - b for a, b in zip(ages(pool), before, strict=True)]
        assert sorted(grown) == [0, 2, 2, 2]
        taught |= {place for place, steps in enumerate(grown) if steps}
    assert taught == {0, 1, 2, 3}
    assert len(lessons) == 8 * 3 * 2


def test_every_net_of_a_pool_is_drawn():
    pool = Pool(separable(), start=3, students=1, updates=1, batch_size=8)
    places = set()
    for step in range(40):
        drawn = pool.draw(step)
        assert drawn.trained is drawn.params
        places |= {n for n, net in enumerate(starts(pool)) if same(drawn.params, net)}
    assert places == {0, 1, 2}


def test_a_net_is_drawn_anew_at_the_end_of_its_life(lessons):
    pool = Pool(
        separable(), start=1, push_every=99, life=4, students=1, updates=2, batch_size=8
    )  # fmt: skip
    first = copied(pool.draw(0).params)
    seen, accuracies = [], []
    for step in range(1, 7):
        pool.advance()
        seen.append(ages(pool)[0])
        accuracies.append(pool.draw(step).accuracy)
        if step == 3:
            reborn = copied(pool.draw(step).params)
    assert seen == [2, 4, 0, 2, 4, 0]
    assert [value == 0.0 for value in accuracies][2::3] == [True, True]
    stream = generator(0, "source")
    assert_same_bits(first, CASES["separable"]().learner().init(stream))
    assert_same_bits(reborn, CASES["separable"]().learner().init(stream))
    assert len(lessons) == 8


@pytest.mark.parametrize("name", ["separable", "joint"])
def test_the_accuracy_is_that_of_the_latest_lessons(name, lessons):
    case = CASES[name]()
    pool = Pool(surroundings(case), start=1, push_every=99, students=1, updates=3, batch_size=12)
    assert pool.draw(0).accuracy == 0.0
    for step in range(1, 6):
        lessons.clear()
        pool.advance()
        shares = []
        for batch, outputs in lessons:
            rows = torch.nonzero(batch.item_weights).flatten().tolist()
            right = sum(int(outputs[row].argmax()) == int(batch.targets[row]) for row in rows)
            shares.append(right / len(rows))
            assert len(rows) == (12 if name == "separable" else len(case.train))
        assert pool.draw(step).accuracy == pytest.approx(sum(shares) / 3)
    assert pool.draw(6).accuracy > 0.5


def test_a_pool_is_trained_on_the_synthetic_set_where_asked(lessons):
    around = separable()
    pool = Pool(around, start=1, push_every=99, train_on="synthetic", students=1, updates=5)
    pool.draw(0)
    around.synthetic.leaves()["inputs"].data += 1.0
    pool.advance()
    assert len(lessons) == 5
    for batch, _ in lessons:
        assert torch.equal(batch.inputs, around.synthetic.leaves()["inputs"])
        assert not batch.inputs.requires_grad
    lessons.clear()
    cut = Pool(around, start=1, train_on="synthetic", students=1, updates=5, batch_size=4)
    cut.draw(0)
    cut.advance()
    # two batches make a pass; the fifth update is the first half of the third one
    assert [len(batch) for batch, _ in lessons] == [4, 2, 4, 2, 4]


# -- what all that train share ---------------------------------------------------------------------


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("augment", [True, False])
def test_training_is_augmented_where_asked(name, augment, lessons):
    around = separable(augmentation=Shift())
    if name == "synthetic-trained":
        rows = around.synthetic.leaves()["inputs"].detach()
    else:
        rows = around.real.values
    source = made(name, around, augment=augment)
    source.draw(0)
    source.advance()
    moved = []
    for batch, _ in lessons:
        # the row that an item was made from: the one that it differs from by a constant
        spread = (batch.inputs[:, None] - rows[None]).std(dim=2)
        nearest = spread.argmin(dim=1)
        difference = batch.inputs - rows[nearest]
        assert float(spread.min(dim=1).values.max()) < 1e-5
        moved.append(difference.mean(dim=1))
    shifts = torch.cat(moved)
    if augment:
        assert len(torch.unique((shifts * 1e4).round())) == len(shifts)
    else:
        assert (shifts == 0).all()
    # the draws that the comparison shares are another stream's
    assert torch.equal(
        torch.rand(3, generator=around.streams["augment"]),
        torch.rand(3, generator=generator(0, "augment")),
    )


@pytest.mark.parametrize("name", TRAINED)
def test_draws_are_the_net_in_training(name):
    source = made(name, separable())
    drawn = source.draw(0).params
    before = copied(drawn)
    assert not any(value.requires_grad for value in drawn.values())
    source.advance()
    # a draw holds until the source moves on, not longer: nothing is copied at every step
    if name != "pool":
        assert_same_bits(drawn, source.draw(1).params)
        assert not same(before, drawn)


@pytest.mark.parametrize("name", TRAINED)
def test_a_run_reads_a_draw_only_while_it_holds(name):
    case = CASES["separable"]()

    def after(alias):
        run = case.distiller(DistributionMatching(), source=name, **TRAINED[name])
        if not alias:
            draw = run.source.draw
            run.source.draw = lambda step: copy.deepcopy(draw(step))
        losses = [run.step() for _ in range(5)]
        return losses, run.synthetic.leaves()["inputs"].detach().clone()

    (losses, inputs), (again, others) = after(alias=True), after(alias=False)
    assert losses == again
    assert torch.equal(inputs, others)


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("age", [0, 1, 3, 4, 5])
def test_a_state_on_the_disk_is_the_source(name, age, tmp_path):
    around = separable()
    source = made(name, around)
    for step in range(age):
        source.draw(step)
        source.advance()
    save_tree(tmp_path / "state", {"own": source.state_dict(), "s": around.streams.state_dict()})
    other = separable()
    revived = made(name, other)
    for step in range(2):  # an older source, whose nets and streams are to be forgotten
        revived.draw(step)
        revived.advance()
    state = load_tree(tmp_path / "state")
    other.streams.load_state_dict(state["s"])
    revived.load_state_dict(state["own"])
    for step in range(age, age + 6):
        ours, theirs = source.draw(step), revived.draw(step)
        assert_same_bits(ours.params, theirs.params)
        assert ours.accuracy == theirs.accuracy
        source.advance()
        revived.advance()


@pytest.mark.parametrize("name", TRAINED)
def test_a_state_is_a_picture(name):
    source = made(name, separable())
    source.draw(0)
    source.advance()
    source.draw(1)
    state = source.state_dict()
    kept = copy.deepcopy(state)
    for step in range(2, 5):
        source.advance()
        source.draw(step)
    for ours, theirs in zip(tree_leaves(state), tree_leaves(kept), strict=True):
        assert torch.equal(ours, theirs)


# -- fresh nets ------------------------------------------------------------------------------------


def test_stacked_draws_are_single_ones_side_by_side():
    around = separable()
    drawn = Fresh(around, nets=3).draw(0)
    assert drawn.stacked == 3
    stream = generator(0, "source")
    singles = [around.learner.init(stream) for _ in range(3)]
    each = drawn.each()
    assert len(each) == 3
    for net, single in zip(each, singles, strict=True):
        assert net.stacked is None
        assert_same_bits(net.params, single)


def test_a_single_draw_is_its_only_net():
    drawn = Drawn({"a": torch.ones(2)}, trained={"a": torch.zeros(2)}, accuracy=0.5)
    assert drawn.each() == [drawn]
    assert Fresh(separable()).draw(0).stacked is None


# -- recorded experts ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    return CASES["separable"]().record(tmp_path_factory.mktemp("experts"))


@pytest.fixture(scope="module")
def pair_experts(tmp_path_factory):
    return CASES["coupled"]().record(tmp_path_factory.mktemp("pairs"))


def snapshots(experts):
    """Parameters by (expert, epoch)."""
    places = itertools.product(range(experts.count), range(experts.epochs + 1))
    return {place: experts.params(*place) for place in places}


def place_of(params, known):
    """The one (expert, epoch) that the parameters named are of."""
    found = [
        p for p, whole in known.items() if all(torch.equal(v, whole[n]) for n, v in params.items())
    ]
    assert len(found) == 1
    return found[0]


def test_interpolated_nets_lie_between_start_and_end(experts):
    source = Interpolated(separable(experts=experts))
    known, seen, shares = snapshots(experts), set(), []
    for step in range(40):
        drawn = source.draw(step)
        expert, epoch = place_of(drawn.trained, known)
        assert epoch == experts.epochs
        first = known[expert, 0]
        top = sum(float(((v - drawn.trained[n]) * (first[n] - drawn.trained[n])).sum())
                  for n, v in drawn.params.items())  # fmt: skip
        share = top / sum(float((first[n] - v).square().sum()) for n, v in drawn.trained.items())
        expected = {n: share * first[n] + (1 - share) * v for n, v in drawn.trained.items()}
        torch.testing.assert_close(drawn.params, expected, rtol=1e-4, atol=1e-5)
        assert -1e-5 <= share <= 1 + 1e-5
        seen.add(expert)
        shares.append(share)
    assert seen == {0, 1, 2}
    assert min(shares) < 0.1
    assert max(shares) > 0.9
    assert 0.35 < sum(shares) / len(shares) < 0.65


def starts_of(source, experts, steps=range(60)):
    known, found = snapshots(experts), []
    for step in steps:
        drawn = source.draw(step)
        expert, epoch = place_of(drawn.params, known)
        assert place_of(drawn.target, known) == (expert, epoch + source.length)
        found.append((expert, epoch))
    return found


@pytest.mark.parametrize("length", [1, 2, 4])
def test_segments_start_wherever_they_fit(experts, length):
    found = starts_of(Segments(separable(experts=experts), length=length), experts)
    assert {epoch for _, epoch in found} == set(range(4 - length + 1))
    assert {expert for expert, _ in found} == {0, 1, 2}


def test_segments_start_inside_their_window(experts):
    source = Segments(separable(experts=experts), length=1, min_start=1, max_start=3)
    assert {epoch for _, epoch in starts_of(source, experts)} == {1, 2}


def test_the_window_widens(experts):
    source = Segments(
        separable(experts=experts), length=1, first_max_start=1, max_start=4, widen_steps=30
    )
    tops = [source.top(step) for step in range(60)]
    assert tops == [min(4, 1 + 3 * step // 30) for step in range(60)]
    found = starts_of(source, experts, range(200))
    assert all(epoch < source.top(step) for step, (_, epoch) in enumerate(found))
    assert {epoch for _, epoch in found[:10]} == {0}
    assert {epoch for _, epoch in found[30:]} == {0, 1, 2, 3}


def test_a_window_that_widens_to_wherever_it_fits(experts):
    source = Segments(separable(experts=experts), length=2, first_max_start=1, widen_steps=10)
    assert (source.top(0), source.top(10), source.top(99)) == (1, 3, 3)


def test_groups_of_parameters_start_together_or_each_on_its_own(pair_experts):
    case = CASES["coupled"]()
    known = snapshots(pair_experts)
    groups = case.learner().groups_of_parameters
    for independent in (False, True):
        around = surroundings(case, experts=pair_experts)
        source = Segments(around, length=1, independent=independent)
        pairs = set()
        for step in range(40):
            drawn = source.draw(step)
            assert drawn.params.keys() == drawn.target.keys() == known[0, 0].keys()
            places = []
            for names in groups.values():
                expert, epoch = place_of({n: drawn.params[n] for n in names}, known)
                target = place_of({n: drawn.target[n] for n in names}, known)
                assert target == (expert, epoch + 1)
                places.append((expert, epoch))
            assert places[0][0] == places[1][0]
            pairs.add((places[0][1], places[1][1]))
        apart = {pair for pair in pairs if pair[0] != pair[1]}
        assert bool(apart) == independent
        assert {epoch for pair in pairs for epoch in pair} == {0, 1, 2, 3}


@pytest.mark.parametrize("kind", [Interpolated, Segments])
def test_what_experts_give_depends_on_the_streams_alone(kind, experts):
    drawn = [kind(separable(seed, experts=experts)).draw(0) for seed in (3, 3, 4)]
    assert_same_bits(drawn[0].params, drawn[1].params)
    assert not same(drawn[0].params, drawn[2].params)
    assert kind(separable(experts=experts)).state_dict() == {}


def test_draws_of_experts_are_tensors_of_their_own(experts):
    source = Segments(separable(experts=experts), length=1, max_start=1)
    expert = [source.draw(step) for step in range(3)]
    before = [copied(drawn.params) for drawn in expert]
    for drawn in expert:
        for value in drawn.params.values():
            value.add_(1.0)
    later = Segments(separable(experts=experts), length=1, max_start=1)
    for step, params in enumerate(before):
        assert_same_bits(later.draw(step).params, params)


def test_a_draw_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Drawn({}).accuracy = 1.0
