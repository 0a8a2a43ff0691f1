"""Expert trajectories: their numbers, their files, and recording that stops and goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import os

import pytest
import torch
import torch.nn.functional as F
from fakes import CASES, CLASSES, Chain, labels, noise, points, seeded
from torch import nn

from mmdd import cohort, files, recording
from mmdd.cohort import Cohort, Schedule, climb, flatten, stack_size
from mmdd.errors import NonFiniteError, UserError
from mmdd.evaluate import STACKED_ELEMENTS
from mmdd.expert_options import Recording, key
from mmdd.experts import MANIFEST, Experts
from mmdd.learner import Learner
from mmdd.progress import Progress
from mmdd.real import ResidentData
from mmdd.recording import STATE, Stopped, expected_bytes, record
from mmdd.rng import generator
from mmdd.streamed import StreamedData
from mmdd.tasks.classification import Classification
from mmdd.trees import tree_map


class Shift:
    """An augmentation: every item is moved by its own random number."""

    def draw(self, count, generator, *, shared_op=False):
        return torch.randn(count, 1, generator=generator)

    def __call__(self, inputs, draw, rows=None):
        return inputs + 0.3 * (draw if rows is None else draw[rows])


TINY = Recording(count=3, epochs=4, batch_size=8, lr=0.1)


def make(folder, case, options=TINY, learner=None, **more):
    """Record experts of a fake case."""
    more = {"seed": 5, "fingerprint": "abc", "about": {"encoder": "chain"}, **more}
    return record(folder, learner or case.learner(), case.train, options, **more)


def separable():
    return CASES["separable"]()


def contents(folder):
    """Digest of every expert file."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.glob("expert-*"))
    }


def distance(a, b):
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def everything(data):
    return data.select(torch.arange(len(data)))


def chain_learner(*extra, **how):
    """A net like the separable case's, with other layers in front."""
    with torch.random.fork_rng(devices=[]):
        net = Chain(6, 16, 12, outputs=CLASSES)
        net.blocks[0] = nn.Sequential(*net.blocks[0], *extra)
        return Learner(net, Classification(), **how)


# -- the numbers of a trajectory -------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_snapshots_differ_and_the_loss_falls_along_them(tmp_path, name):
    case = CASES[name]()
    learner = case.learner()
    experts = make(tmp_path, case, dataclasses.replace(TINY, count=2, lr=0.05, epochs=8))
    batch = everything(case.train)
    for expert in range(2):
        line = [experts.params(expert, epoch) for epoch in range(9)]
        assert all(distance(a, b) > 1e-4 for a, b in itertools.pairwise(line))
        losses = [float(learner.loss(params, batch)) for params in line]
        assert losses[8] < losses[4] < losses[0]
        told = experts.losses(expert)
        assert len(told) == 8
        assert told[-1] < told[0]
    assert distance(experts.first(0), experts.first(1)) > 0.01
    assert distance(experts.first(1), experts.params(1, 0)) == 0
    assert distance(experts.last(1), experts.params(1, 8)) == 0


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("epoch_steps", [None, 3, 7])
def test_a_trajectory_is_plain_sgd_over_shuffled_passes(tmp_path, epoch_steps, schedule):
    case = separable()
    options = Recording(
        count=2, epochs=3, epoch_steps=epoch_steps, batch_size=8, lr=0.1, momentum=0.9,
        weight_decay=0.01, schedule=schedule,
    )  # fmt: skip
    experts = make(tmp_path, case, options, stacked=1)
    params = case.learner().init(generator(5, "expert/1/init/0"))
    assert distance(params, experts.first(1)) == 0
    leaves = {name: value.double() for name, value in params.items()}
    net, velocity = case.net().double(), {name: 0.0 for name in leaves}
    whole = everything(case.train)
    steps, order = epoch_steps or 5, []  # 36 items make five batches, the last of four
    for step in range(3 * steps):
        if step % 5 == 0:
            order = torch.randperm(36, generator=generator(5, f"expert/1/order/{step // 5}"))
        chosen = order[8 * (step % 5) : 8 * (step % 5) + 8]

        def loss(values, chosen=chosen):
            outputs = torch.func.functional_call(net, values, (whole.inputs[chosen].double(),))
            return F.cross_entropy(outputs, whole.targets[chosen])

        for name, grad in torch.func.grad(loss)(leaves).items():
            velocity[name] = 0.9 * velocity[name] + grad + 0.01 * leaves[name]
            falling = 0.05 * (1 + math.cos(math.pi * step / (3 * steps)))
            rate = falling if schedule == "cosine" else 0.1
            leaves[name] = leaves[name] - rate * velocity[name]
        if (step + 1) % steps == 0:
            assert distance(experts.params(1, (step + 1) // steps), leaves) < 1e-5


def test_averaged_snapshots_are_means_of_the_way_with_growing_weights(tmp_path):
    options = Recording(count=1, epochs=12, epoch_steps=1, batch_size=8, lr=0.1)
    case = separable()
    way = make(tmp_path / "way", case, options)
    seldom = dataclasses.replace(options, epochs=4, epoch_steps=3, average=0.0)
    means = make(tmp_path / "means", case, seldom)
    for epoch in (1, 2, 4):
        # with no growth the mean of all steps, the start left out
        steps = [way.params(0, step) for step in range(1, 3 * epoch + 1)]
        mean = {name: torch.stack([step[name] for step in steps]).mean(dim=0) for name in steps[0]}
        assert distance(means.params(0, epoch), mean) < 1e-5
    late = make(tmp_path / "late", case, dataclasses.replace(seldom, average=3.0))
    assert distance(late.first(0), way.first(0)) == 0
    ends = [distance(way.last(0), experts.last(0)) for experts in (late, means)]
    assert 0 < ends[0] < ends[1]
    # the recursion of Shamir and Zhang 2013, section 4, written out
    kept = dict(way.first(0))
    for step in range(1, 13):
        share = min(1.0, 4.0 / (step + 3.0))
        now = way.params(0, step)
        kept = {name: (1 - share) * kept[name] + share * now[name] for name in kept}
    assert distance(late.last(0), kept) < 1e-5


def test_joint_data_is_shown_whole_at_every_step(monkeypatch):
    case = CASES["joint"]()
    for steps in (None, 3):
        options = dataclasses.replace(TINY, batch_size=2, epoch_steps=steps)
        batches = list(Schedule(case.train, options, 0, None, joint=True).epoch([0], 1))
        assert len(batches) == (steps or 1)
        assert all(batch.item_weights.sum() == len(case.train) == 15 for batch in batches)
        assert all(len(batch) == 24 for batch in batches)


@pytest.mark.parametrize("sharpness", [False, True])
def test_stacked_experts_are_what_they_are_alone(tmp_path, sharpness):
    options = dataclasses.replace(TINY, momentum=0.5, sharpness=sharpness, rho=0.5)
    how = {"options": options, "augmentation": Shift()}
    alone = make(tmp_path / "alone", separable(), stacked=1, **how)
    stacked = make(tmp_path / "stacked", separable(), stacked=3, **how)
    other = make(tmp_path / "other", separable(), stacked=1, options=options)
    for expert in range(3):
        assert distance(alone.first(expert), stacked.first(expert)) == 0
        assert distance(alone.last(expert), stacked.last(expert)) < 1e-5
        assert alone.losses(expert) == pytest.approx(stacked.losses(expert), abs=1e-5)
        # the check can tell: without augmentation the ends are elsewhere
        assert distance(alone.last(expert), other.last(expert)) > 1e-3


def test_augment_false_leaves_the_augmentation_out(tmp_path):
    options = dataclasses.replace(TINY, augment=False)
    make(tmp_path / "a", separable(), options, augmentation=Shift())
    make(tmp_path / "b", separable(), options)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_stacking_is_automatic_where_items_are_small_and_independent():
    def size(learner, case, asked=None, batch=8):
        return stack_size(learner, case.train.select(torch.arange(1)), batch, asked)

    case = separable()
    assert size(case.learner(), case) == cohort.STACK > 1
    # one item takes 2 * (6 * 16 + 16 * 12 + 12 * 3) = 648 operations
    assert size(case.learner(), case, batch=int(cohort.STACKED_FLOPS // 648)) == cohort.STACK
    assert size(case.learner(), case, batch=int(cohort.STACKED_FLOPS // 648) + 1) == 1
    compiled = case.learner()
    compiled.compiled = True
    assert size(compiled, case) == 1
    assert size(chain_learner(nn.Dropout(0.1)), case) == 1
    for name in ("joint", "coupled"):
        other = CASES[name]()
        assert size(other.learner(), other) == 1
        with pytest.raises(UserError, match="stacked"):
            size(other.learner(), other, 2)
    large = torch.zeros(4, STACKED_ELEMENTS + 1)
    wide = ResidentData(large, labels(4), labels(4), CLASSES)
    assert size(case.learner(), dataclasses.replace(case, train=wide)) == 1


def test_data_on_disk_gives_the_same_bits(tmp_path):
    case = separable()
    whole = everything(case.train)
    streamed = StreamedData(lambda rows: whole.inputs[rows], whole.targets, whole.groups, CLASSES)
    options = dataclasses.replace(TINY, epoch_steps=7)
    for stacked in (1, 2):
        one, two = tmp_path / f"one{stacked}", tmp_path / f"two{stacked}"
        make(one, case, options, stacked=stacked)
        make(two, dataclasses.replace(case, train=streamed), options, stacked=stacked)
        assert contents(one) == contents(two)


def test_batch_statistics_move_once_a_step_even_for_flat_trajectories():
    learner = chain_learner(nn.BatchNorm1d(16))
    batch = everything(separable().train)
    name = "blocks.0.2.running_mean"
    found = []
    for sharpness in (False, True):
        made = Cohort(
            learner, dataclasses.replace(TINY, sharpness=sharpness), [learner.init(seeded())]
        )
        made.step(batch)
        found.append(made.snapshot()[name])
    assert found[0].abs().max() > 0.001
    assert torch.equal(found[0], found[1])


# -- flat trajectories -----------------------------------------------------------------------------


def gsam_by_hand(weights, gradient, rho, alpha):
    """GSAM's gradient of a flat float64 vector, after Zhuang et al. 2022, algorithm 1."""
    old = gradient(weights)
    radius = rho / (weights.abs() * old).norm()
    new = gradient(weights + radius * weights**2 * old)
    unit = new / new.norm()
    orthogonal = old - (old @ unit) * unit
    return new - alpha * orthogonal


@pytest.mark.parametrize("count", [1, 3])
def test_one_flat_step_is_the_formula(count):
    case = separable()
    learner = case.learner(precision="float64")
    data = everything(case.train)
    draws = [tree_map(torch.Tensor.double, learner.init(seeded(k))) for k in range(count)]
    options = dataclasses.replace(TINY, lr=0.5, sharpness=True, rho=0.3, alpha=0.4)
    made = Cohort(learner, options, draws)
    index = torch.arange(12 * count)
    batch = data.select(index % 36).with_inputs(noise(12 * count, 6).double())
    made.step(batch)
    after = made.snapshot()
    for k, draw in enumerate(draws):
        shapes = {name: value.shape for name, value in draw.items()}

        def net_at(vector, shapes=shapes):
            parts = vector.split([shape.numel() for shape in shapes.values()])
            return {n: p.view(s) for (n, s), p in zip(shapes.items(), parts, strict=True)}

        own = batch.select(index[12 * k : 12 * k + 12])

        def gradient(vector, own=own, net_at=net_at):
            vector = vector.clone().requires_grad_()
            outputs = torch.func.functional_call(case.net().double(), net_at(vector), (own.inputs,))
            return torch.autograd.grad(F.cross_entropy(outputs, own.targets), vector)[0]

        start = torch.cat([value.flatten() for value in draw.values()])
        expected = net_at(start - 0.5 * gsam_by_hand(start, gradient, 0.3, 0.4))
        found = {name: value[k] if count > 1 else value for name, value in after.items()}
        assert distance(found, expected) < 1e-10
        plain = net_at(start - 0.5 * gradient(start))
        assert distance(found, plain) > 1e-4


def test_flat_gradients_survive_zero_gradients():
    zero = {"w": torch.zeros(4), "b": torch.zeros(())}
    weights = {"w": torch.ones(4), "b": torch.ones(())}
    assert distance(climb(weights, zero, 0.1), zero) == 0
    assert distance(flatten(zero, zero, 0.3), zero) == 0


def test_the_parts_of_the_flat_gradient():
    old, new = {"w": noise(2, 5)}, {"w": noise(2, 5, seed=8)}
    changed = flatten(old, new, 0.3, stacked=True)["w"] - new["w"]
    # what is taken off is orthogonal to the new gradient of each expert
    assert (changed * new["w"]).sum(dim=1).abs().max() < 1e-5
    assert changed.norm(dim=1).min() > 0.1
    steps = climb({"w": noise(2, 5, seed=9)}, old, 0.2, stacked=True)["w"] / noise(2, 5, seed=9)
    assert torch.allclose(steps.norm(dim=1), torch.full((2,), 0.2), atol=1e-5)


# -- stopping and going on -------------------------------------------------------------------------


def after(calls, answer):
    """A `stopped` that says no `calls` times; then it answers True, or raises."""
    count = itertools.count(1)

    def stopped():
        if next(count) <= calls:
            return False
        if isinstance(answer, BaseException):
            raise answer
        return answer

    return stopped


class Dead(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("more", [{}, {"schedule": "cosine"}, {"average": 3.0}])
@pytest.mark.parametrize("stacked", [1, 2])
@pytest.mark.parametrize("answer", [True, Dead()])
def test_an_interrupted_recording_ends_with_the_same_bits(
    tmp_path, monkeypatch, stacked, answer, more
):
    monkeypatch.setattr(recording, "STATE_SECONDS", 0.0)
    options = dataclasses.replace(TINY, momentum=0.9, epoch_steps=3, **more)
    case = separable()
    how = {"options": options, "stacked": stacked, "augmentation": Shift()}
    whole = make(tmp_path / "whole", case, **how)
    folder = tmp_path / "parts"
    interruptions = 0
    for calls in itertools.cycle((0, 5, 9, 2, 7)):
        try:
            make(folder, case, stopped=after(calls, answer), **how)
            break
        except (Stopped, Dead):
            torch.rand(3)
            interruptions += 1
    assert interruptions > 4
    assert contents(folder) == contents(tmp_path / "whole")
    assert Experts.open(folder, verify=True).losses(2) == whole.losses(2)
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        p.name for p in (tmp_path / "whole").iterdir()
    )


def test_stopping_saves_short_epochs_too(tmp_path):
    case = separable()
    with pytest.raises(Stopped):
        # five steps and the end of the first epoch, then the ends of the second and the third
        make(tmp_path, case, stacked=1, stopped=after(7, True))
    assert files.load_tree(tmp_path / STATE)["epoch"] == 3
    seen = []
    made = make(tmp_path, case, stacked=1, progress=Recorded(seen))
    done = [entry for entry in seen if isinstance(entry, int)]
    assert done == [3, 4, 4, 5, 6, 7, 8, 8, 9, 10, 11, 12]
    assert made.count == 3


class Recorded(Progress):
    """Writes down what a person would see."""

    def __init__(self, seen):
        self.seen = seen

    def say(self, sentence):
        self.seen.append(sentence)

    def task(self, name, total):
        return contextlib.nullcontext(lambda done, **facts: self.seen.append(done))


def dying(original, writes, last, before):
    """Wrap a function that writes: the process ends before or after write number `last`."""

    def wrapped(*args, **more):
        writes[0] += 1
        if before and writes[0] >= last:
            raise Dead
        result = original(*args, **more)
        if writes[0] >= last:
            raise Dead
        return result

    return wrapped


WRITES = [
    (recording.Shard, "write"), (recording.Shard, "create"), (recording, "save_tree"),
    (os, "replace"), (recording.Manifest, "write"), (recording._Group, "discard"),
]  # fmt: skip


@pytest.mark.parametrize("before", [True, False])
def test_death_at_any_write_costs_nothing_but_time(tmp_path, monkeypatch, before):
    monkeypatch.setattr(recording, "STATE_SECONDS", 0.0)
    for module in (files, recording):
        monkeypatch.setattr(module, "sync", lambda path: None)
    options = dataclasses.replace(TINY, epochs=2, epoch_steps=1, momentum=0.5)
    make(tmp_path / "whole", separable(), options, stacked=2)
    for last in itertools.count(1):
        folder, writes = tmp_path / str(last), [0]
        with monkeypatch.context() as patch:
            for owner, name in WRITES:
                patch.setattr(owner, name, dying(getattr(owner, name), writes, last, before))
            try:
                make(folder, separable(), options, stacked=2)
                break
            except Dead:
                pass
        make(folder, separable(), options, stacked=2)
        assert contents(folder) == contents(tmp_path / "whole"), last
        assert not list(folder.glob("*.part"))
    assert last > 25


def test_dropout_draws_the_same_numbers_after_an_interruption(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "STATE_SECONDS", 0.0)
    case = separable()
    learner = chain_learner(nn.Dropout(0.5))
    make(tmp_path / "whole", case, learner=learner)
    state = torch.get_rng_state()
    with pytest.raises(Stopped):
        make(tmp_path / "parts", case, learner=learner, stopped=after(13, True))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    make(tmp_path / "parts", case, learner=learner)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_more_experts_extend_the_folder(tmp_path):
    case = separable()
    make(tmp_path / "all", case, stacked=1)
    make(tmp_path / "grown", case, dataclasses.replace(TINY, count=1), stacked=1)
    first = tmp_path / "grown" / "expert-0000.safetensors"
    stamp = first.stat().st_mtime_ns
    seen = []
    make(tmp_path / "grown", case, stacked=1, progress=Recorded(seen))
    assert seen[0].startswith("recording 2 experts of 4 epochs")
    assert first.stat().st_mtime_ns == stamp
    assert contents(tmp_path / "grown") == contents(tmp_path / "all")
    # fewer are the first of them, without any training
    two = dataclasses.replace(TINY, count=2)
    fewer = make(tmp_path / "grown", case, two, stopped=after(0, True))
    assert fewer.count == 2
    assert Experts.open(tmp_path / "grown").count == 3
    with pytest.raises(UserError, match="no such expert"):
        fewer.params(2, 0)


def test_a_second_process_waits_for_the_first(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    seen = []
    make(tmp_path, separable(), dataclasses.replace(TINY, count=1))
    with (tmp_path / recording.LOCK).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(Stopped):
            make(tmp_path, separable(), progress=Recorded(seen), stopped=after(0, True))
        # finished experts are read without the lock
        assert make(tmp_path, separable(), dataclasses.replace(TINY, count=1)).count == 1
    assert "waiting for another process" in seen[-1]
    assert make(tmp_path, separable()).count == 3


# -- what is refused -------------------------------------------------------------------------------


def test_a_diverging_expert_is_named_and_the_finished_ones_stay(tmp_path, monkeypatch):
    original = Schedule.epoch

    def poisoned(self, members, epoch):
        for batch in original(self, members, epoch):
            bad = members == [1] and epoch == 2
            yield batch.with_inputs(batch.inputs * float("nan")) if bad else batch

    monkeypatch.setattr(Schedule, "epoch", poisoned)
    with pytest.raises(NonFiniteError, match=r"expert 1 .* epoch 3; lower experts\.lr"):
        make(tmp_path, separable(), stacked=1)
    assert Experts.open(tmp_path, verify=True).count == 1
    assert not list(tmp_path.glob("*.part"))
    monkeypatch.undo()
    assert make(tmp_path, separable(), stacked=1).count == 3


def test_a_full_disk_is_told_before_the_work(tmp_path, monkeypatch):
    case = separable()
    need = expected_bytes(case.learner(), TINY)
    usage = files.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage._replace(free=need))
    with pytest.raises(UserError, match="not enough space"):
        make(tmp_path / "new", case)
    assert not (tmp_path / "new").exists()


def test_the_expected_bytes_are_written(tmp_path):
    for keep in ("epochs", "ends"):
        options = dataclasses.replace(TINY, keep=keep)
        experts = make(tmp_path / keep, separable(), options)
        on_disk = sum(path.stat().st_size for path in (tmp_path / keep).glob("expert-*"))
        assert experts.nbytes == on_disk == expected_bytes(separable().learner(), options)


def test_ends_are_the_first_and_last_of_all_snapshots(tmp_path):
    every = make(tmp_path / "all", separable())
    ends = make(tmp_path / "ends", separable(), dataclasses.replace(TINY, keep="ends"))
    assert (ends.kept, ends.epochs) == ((0, 4), 4)
    for epoch in (0, 4):
        assert distance(every.params(1, epoch), ends.params(1, epoch)) == 0
    for experts, epoch in ((ends, 2), (every, 5), (every, -1)):
        with pytest.raises(UserError, match="was not kept"):
            experts.params(0, epoch)


def test_what_is_read_is_a_copy_in_the_net_s_own_shapes(tmp_path):
    learner = separable().learner()
    experts = make(tmp_path, separable())
    before = contents(tmp_path)
    read = experts.params(1, 2)
    assert {n: (v.shape, v.dtype) for n, v in read.items()} == {
        n: (v.shape, v.dtype) for n, v in learner.init(seeded()).items()
    }
    for value in read.values():
        value.zero_()
    assert distance(experts.params(1, 2), read) > 0.1
    assert contents(tmp_path) == before
    # the files are plain safetensors, for anybody to read
    tensors, _ = files.load_tensors(tmp_path / "expert-0001.safetensors")
    assert distance({name: value[2] for name, value in tensors.items()}, experts.params(1, 2)) == 0
    assert all(len(value) == 5 for value in tensors.values())


class Odd(Chain):
    """A net with a scalar parameter and a half-precision one."""

    def __init__(self):
        super().__init__(6, 16, 12, outputs=CLASSES)
        self.scale = nn.Parameter(torch.ones(()))
        self.shift = nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))

    def reset_parameters(self):
        for name, value in self.named_parameters():
            nn.init.normal_(value, std=0.3 if name != "scale" else 1.0)

    def forward(self, inputs):
        return super().forward(inputs) * self.scale + self.shift


@pytest.mark.parametrize("stacked", [1, 2])
def test_scalars_and_other_types_are_stored_as_they_are(tmp_path, stacked):
    learner = Learner(Odd(), Classification())
    options = dataclasses.replace(TINY, sharpness=True)
    experts = make(tmp_path, separable(), options, learner, stacked=stacked)
    start = learner.init(generator(5, "expert/2/init/0"))
    assert distance(experts.first(2), start) == 0
    assert experts.last(2)["scale"].shape == ()
    assert experts.last(2)["shift"].dtype == torch.bfloat16
    assert experts.last(2)["scale"] != start["scale"]


def test_damaged_files_are_refused_and_made_anew_when_deleted(tmp_path):
    make(tmp_path, separable(), stacked=1)
    whole, path = contents(tmp_path), tmp_path / "expert-0001.safetensors"
    good = path.read_bytes()
    flipped = bytearray(good)
    flipped[-5] ^= 1
    path.write_bytes(flipped)
    Experts.open(tmp_path)
    with pytest.raises(UserError, match=r"expert-0001.*digest.*Delete it"):
        Experts.open(tmp_path, verify=True)
    path.write_bytes(good[:-7])
    for act in (lambda: Experts.open(tmp_path), lambda: make(tmp_path, separable())):
        with pytest.raises(UserError, match=r"expert-0001.*instead of"):
            act()
    path.write_bytes(b"x" * len(good))
    with pytest.raises(UserError, match="expert-0001"):
        Experts.open(tmp_path).params(1, 0)
    path.unlink()
    with pytest.raises(UserError, match=r"expert-0001.*nothing there"):
        Experts.open(tmp_path)
    make(tmp_path, separable(), stacked=1)
    assert contents(tmp_path) == whole
    Experts.open(tmp_path, verify=True)


def test_other_data_nets_and_recordings_are_refused(tmp_path):
    case = separable()
    make(tmp_path, case)
    with pytest.raises(UserError, match="other data"):
        Experts.open(tmp_path, fingerprint="xyz")
    with pytest.raises(UserError, match="another net's"):
        Experts.open(tmp_path, learner=CASES["masked"]().learner())
    assert Experts.open(tmp_path, fingerprint="abc", learner=case.learner()).count == 3
    slower = dataclasses.replace(TINY, lr=0.05)
    refused = {
        "fingerprint differs": {"fingerprint": "xyz"},
        "seed differs": {"seed": 6},
        "lr differs; got 0.05; expected 0.1": {"options": slower},
        r"about\.encoder differs": {"about": {"encoder": "other"}},
        r"about\.encoder differs; got 'nothing'": {"about": {}},
        "another net's": {"learner": chain_learner(nn.BatchNorm1d(16))},
    }
    before = contents(tmp_path)
    for words, more in refused.items():
        with pytest.raises(UserError, match=words):
            make(tmp_path, case, **more)
    assert contents(tmp_path) == before


def test_a_folder_without_experts_is_refused(tmp_path):
    with pytest.raises(UserError, match="no expert trajectories"):
        Experts.open(tmp_path / "nowhere")
    (tmp_path / MANIFEST).write_text("{}")
    with pytest.raises(UserError, match="unknown format"):
        Experts.open(tmp_path)
    (tmp_path / MANIFEST).write_text('{"format": 1, "shards": []}')
    with pytest.raises(UserError, match="damaged"):
        Experts.open(tmp_path)
    with pytest.raises(Stopped):
        make(tmp_path / "begun", separable(), stopped=after(0, True))
    with pytest.raises(UserError, match="too few experts"):
        Experts.open(tmp_path / "begun")


def test_a_manifest_tells_where_experts_come_from(tmp_path):
    make(tmp_path, separable())
    told = json.loads((tmp_path / MANIFEST).read_text())
    assert told["about"] == {"encoder": "chain"}
    assert told["seed"] == 5
    assert told["fingerprint"] == "abc"
    assert told["recording"]["lr"] == 0.1
    assert told["versions"][0]["torch"] == torch.__version__
    assert [shard["sha256"] for shard in told["shards"]] == list(contents(tmp_path).values())


def test_the_key_tells_everything_but_the_count():
    base = ("abc", "net", Recording(), {"ops": ["flip"]}, 0)
    other = {
        "count": 11, "epochs": 21, "epoch_steps": 5, "batch_size": 9, "lr": 0.1, "momentum": 0.5,
        "weight_decay": 0.1, "augment": False, "sharpness": True, "rho": 0.1, "alpha": 0.1,
        "keep": "ends", "optimiser": "adam", "curriculum": 0.5, "curriculum_epochs": 3,
        "schedule": "cosine", "average": 0.0,
    }  # fmt: skip
    assert other.keys() == {field.name for field in dataclasses.fields(Recording)}
    keys = {name: key(*base[:2], Recording(**{name: v}), *base[3:]) for name, v in other.items()}
    assert keys.pop("count") == key(*base)
    keys |= {
        "same": key(*base),
        "data": key("abd", *base[1:]),
        "net": key("abc", "other", *base[2:]),
        "ops": key(*base[:3], {"ops": []}, 0),
        "seed": key(*base[:4], 1),
        "precision": key(*base, precision="bfloat16"),
    }
    assert len(set(keys.values())) == len(keys) == 22


@pytest.mark.parametrize(
    ("name", "value"),
    [("count", 0), ("epochs", 0), ("epoch_steps", 0), ("batch_size", -1), ("epochs", 2.5),
     ("lr", 0.0), ("lr", float("nan")), ("lr", -1), ("momentum", 1.0), ("weight_decay", -0.1),
     ("rho", float("inf")), ("keep", "some"), ("schedule", "linear"),
     ("average", -1.0)],
)  # fmt: skip
def test_impossible_recordings_are_refused(name, value):
    with pytest.raises(UserError, match=rf"experts\.{name} cannot be used"):
        Recording(**{name: value})


def test_no_items_are_refused(tmp_path):
    empty = ResidentData(points(0, 1), labels(0), labels(0), CLASSES)
    with pytest.raises(UserError, match="no training items"):
        make(tmp_path, dataclasses.replace(separable(), train=empty))


# -- real images -----------------------------------------------------------------------------------


def test_digits_with_their_augmentation_stacked_and_alone(tmp_path):
    from mmdd import build, compose

    options = {"learner.width": 8, "learner.depth": 2, "run.threads": 1}
    recipe = compose.compose(flags={"data.source": "digits"}, options=options)
    splits = build.open_data(recipe, None, torch.device("cpu"))
    parts = build.parts(recipe, splits.info, torch.device("cpu"))
    learner, augmentation = parts.learner(1.0), parts.augmentation()
    assert augmentation is not None
    more = {"seed": 0, "augmentation": augmentation, "fingerprint": "f", "about": {}}
    plan = Recording(count=2, epochs=3, epoch_steps=6, batch_size=64, lr=0.05, momentum=0.9)
    made = [
        record(tmp_path / str(k), learner, splits.train, plan, stacked=k, **more) for k in (1, 2)
    ]
    test = everything(splits.test)
    for expert in range(2):
        assert distance(made[0].last(expert), made[1].last(expert)) < 1e-3
        first, last = (
            float(learner.loss(params, test))
            for params in (made[0].first(expert), made[0].last(expert))
        )
        assert last < 0.8 * first
