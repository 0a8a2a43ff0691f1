"""Trajectory matching against `torch.optim.SGD`, finite differences and its own plain reference."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fakes import CASES, CLASSES, Case, Chain, labels, noise, seeded
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmdd.errors import NonFiniteError, UserError
from mmdd.labels import HardLabels, SoftLabels
from mmdd.learner import Learner, can_compile
from mmdd.objectives.inner import InnerTraining
from mmdd.objectives.trajectory import Feed, TrajectoryMatching, passes
from mmdd.packed import Packed
from mmdd.recipe import Leaf
from mmdd.representations import Direct
from mmdd.sources import Drawn
from mmdd.step import Step
from mmdd.synthetic import StepSize, SyntheticSet
from mmdd.tasks.classification import Classification
from mmdd.trees import tree_leaves, tree_map

MEMORIES = ("exact", "unrolled", "tesla")
N = 4
RATES = {"inputs": 20.0, "labels": 20.0, "step_size": 0.1}


class Stretch:
    """An augmentation of any tree: every item is stretched by the number drawn for its row."""

    def __init__(self) -> None:
        self.drawn: list[tuple[int, bool]] = []

    def draw(self, count: int, generator: torch.Generator, *, shared_op: bool = False) -> Tensor:
        self.drawn.append((count, shared_op))
        return torch.rand(count, generator=generator)

    def __call__(self, inputs: Any, draw: Tensor, rows: Tensor | None = None) -> Any:
        factor = 0.5 + (draw if rows is None else draw[rows])

        def stretched(leaf: Tensor) -> Tensor:
            if not leaf.is_floating_point():
                return leaf
            return leaf * factor.to(leaf).view(-1, *[1] * (leaf.ndim - 1))

        return tree_map(stretched, inputs)


def soft(count: int = 6) -> SyntheticSet:
    """Vectors with learned labels."""
    logits = noise(count, CLASSES, seed=3)
    return SyntheticSet(Direct(noise(count, 6)), SoftLabels(logits), labels(count), CLASSES)


def packed() -> SyntheticSet:
    """Six stored series of two channels, of which two come out of each."""
    values = Packed.of_items(noise(12, 2, 8), factor=2)
    return SyntheticSet(values, SoftLabels(noise(6, CLASSES, seed=3)), labels(6), CLASSES)


class Flat(Chain):
    def read(self, inputs: Tensor) -> Tensor:
        return inputs.flatten(1)


def step_of(
    learner: Learner,
    synthetic: SyntheticSet,
    *,
    rate: float | None = 0.3,
    rates: int | None = None,
    seed: int = 0,
    **more: Any,
) -> Step:
    """A segment between two draws of the net, in float64; every group has a rate of its own."""
    if rate is not None:
        size = StepSize(rate, rates or len(learner.groups_of_parameters))
        with torch.no_grad():
            size.log.add_(0.4 * torch.arange(len(size.log)))
        synthetic.step_size = size
    wide = torch.float64 if learner.dtype == torch.float64 else torch.float32
    synthetic.to(wide)
    ends = [learner.init(seeded(seed)), learner.init(seeded(seed + 1))]
    start, target = ({name: value.to(wide) for name, value in end.items()} for end in ends)
    drawn = Drawn(start, target=target)
    case = CASES["separable"]()
    values = {"number": 3, "drawn": drawn, "real": case.train, "generator": seeded(9), "seed": 1}
    values |= {"learner": learner, "synthetic": synthetic, "per_group": 1}
    return Step(**{**values, **more})


def case_step(case: Case, **more: Any) -> Step:
    return step_of(case.learner(precision="float64"), case.start(), **more)


def learner_of(net: nn.Module) -> Learner:
    return Learner(net, Classification(), precision="float64")


def gradients(step: Step, **options: Any) -> tuple[float, dict[str, Tensor]]:
    """Value, and the gradient of every leaf of the set."""
    leaves = step.synthetic.leaves()
    for leaf in leaves.values():
        leaf.grad = None
    loss = TrajectoryMatching(**{"steps": N, **options})(step)
    loss.backward()
    found = {name: leaf.grad for name, leaf in leaves.items()}
    assert all(grad is not None for grad in found.values()), found
    return loss.item(), {name: grad.clone() for name, grad in found.items() if grad is not None}


def assert_same(step: Step, *, tolerance: float = 1e-9, **options: Any) -> None:
    """The gradient of all leaves is that of the plain reference."""
    value, plain = gradients(step, memory="unrolled", **options)
    exact_value, exact = gradients(step, memory="exact", **options)
    assert exact_value == pytest.approx(value, rel=tolerance)
    for name, grad in plain.items():
        assert grad.norm() > 0, name
        assert float((exact[name] - grad).norm() / grad.norm()) < tolerance, name


@pytest.fixture(params=CASES)
def case(request) -> Case:
    return CASES[request.param]()


# -- the value -------------------------------------------------------------------------------------


def trained_plainly(step: Step, momentum: float, size: int | None) -> float:
    """The ratio after `torch.optim.SGD` on a module, over batches in the stored order."""
    learner = step.learner
    net = copy.deepcopy(learner.encoder).double()
    net.load_state_dict(step.drawn.params)
    own = dict(net.named_parameters())
    rates = step.synthetic.step_size.values().tolist()
    groups = learner.groups_of_parameters.values()
    optimiser = torch.optim.SGD(
        [
            {"params": [own[name] for name in names], "lr": rate}
            for names, rate in zip(groups, rates, strict=True)
        ],
        momentum=momentum,
    )
    count = len(step.synthetic)
    size = count if size is None or step.synthetic.joint else size
    order = [torch.arange(start, min(start + size, count)) for start in range(0, count, size)] * N
    for index in order[:N]:
        batch = step.synthetic.batch(index)
        optimiser.zero_grad()
        learner.task.item_losses(net(batch.inputs), batch.targets).mean().backward()
        optimiser.step()
    target, start = step.drawn.target, step.drawn.params

    def distance(params: Any, names: list[str]) -> float:
        return sum(float((params[name] - target[name]).detach().square().sum()) for name in names)

    return sum(distance(own, names) / distance(start, names) for names in groups)


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("size", [None, 4])
def test_the_value_is_what_sgd_arrives_at(case, memory, size):
    for momentum in (0.0, 0.9) if memory != "tesla" else (0.0,):
        step = case_step(case)
        objective = TrajectoryMatching(N, memory, size, "fixed", momentum)
        expected = trained_plainly(step, momentum, size)
        assert objective(step).item() == pytest.approx(expected, rel=1e-10)


def test_one_step_size_serves_all_groups():
    case = CASES["coupled"]()
    one, two = case_step(case, rates=1), case_step(case, rates=2)
    with torch.no_grad():
        two.synthetic.step_size.log.fill_(float(one.synthetic.step_size.log))
    value, single = gradients(one)
    assert value == gradients(two)[0]
    assert single["step_size"].shape == (1,)
    both = gradients(two)[1]["step_size"]
    assert float(single["step_size"]) == pytest.approx(float(both.sum()), rel=1e-10)


def test_parameters_outside_the_groups_stay_and_do_not_count():
    net = Chain(6, 8, outputs=CLASSES)
    body = [name for name, _ in net.named_parameters() if not name.startswith("head")]
    net.parameter_groups = {"body": body}
    step = step_of(learner_of(net), soft())
    value, _ = gradients(step)
    far = {
        name: 9 + value if name not in body else value for name, value in step.drawn.target.items()
    }
    moved = dataclasses.replace(step, drawn=Drawn(step.drawn.params, target=far))
    assert gradients(moved)[0] == value
    assert_same(step, momentum=0.9)


# -- the gradient ----------------------------------------------------------------------------------


def slope_along(step: Step, leaf: Tensor, of: TrajectoryMatching) -> tuple[Tensor, float]:
    """Slope of `of` along a random direction of one leaf, by central differences."""
    direction = torch.randn(leaf.shape, generator=seeded(5)).to(leaf)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            leaf += sign * 1e-5 * direction
            values.append(of(step).item())
            leaf -= sign * 1e-5 * direction
    return direction, (values[0] - values[1]) / 2e-5


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_gradient_is_that_of_finite_differences(momentum):
    steps = [step_of(learner_of(Chain(6, 8, outputs=CLASSES)), soft(), augmentation=Stretch())]
    steps += [case_step(CASES[name]()) for name in ("coupled", "joint", "forecasting")]
    for step in steps:
        plain = TrajectoryMatching(3, "unrolled", 4, momentum=momentum)
        _, found = gradients(step, steps=3, batch_size=4, momentum=momentum)
        for name, leaf in step.synthetic.leaves().items():
            direction, expected = slope_along(step, leaf, plain)
            ours = float((found[name] * direction).sum())
            assert ours == pytest.approx(expected, rel=1e-5, abs=1e-9), name


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("size", [None, 4])
@pytest.mark.parametrize("augmented", [False, True])
def test_exact_is_unrolled_on_every_modality(case, momentum, size, augmented):
    step = case_step(case, augmentation=Stretch() if augmented else None)
    assert_same(step, momentum=momentum, batch_size=size)


@pytest.mark.parametrize("size", [None, 4])
def test_exact_is_unrolled_with_packed_items_and_soft_labels(size):
    augmentation = Stretch()
    step = step_of(learner_of(Flat(16, 8, outputs=CLASSES)), packed(), augmentation=augmentation)
    assert_same(step, batch_size=size, momentum=0.5)
    # two decoded items for a stored one, and one op for a batch
    assert set(augmentation.drawn) == ({(12, True)} if size is None else {(8, True), (4, True)})


def normed(*more: nn.Module) -> Chain:
    net = Chain(6, 8, 8, outputs=CLASSES)
    net.blocks.extend([nn.Sequential(*more)])
    return net


class Attentive(nn.Module):
    """Items of three positions that attend to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(2, 12), nn.Linear(4, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        query, key, value = self.embed(inputs.unflatten(1, (3, 2))).unsqueeze(1).chunk(3, dim=-1)
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.head(attended.squeeze(1).mean(dim=1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRU(2, 5, batch_first=True), nn.Linear(5, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.cell(inputs.unflatten(1, (3, 2)))[0][:, -1])


NETS = {
    "layer-norm": lambda: normed(nn.LayerNorm(8), nn.Tanh()),
    "group-norm": lambda: normed(nn.GroupNorm(2, 8), nn.Tanh()),
    "batch-norm": lambda: normed(nn.BatchNorm1d(8), nn.Tanh()),
    "dropout": lambda: normed(nn.Dropout(0.5)),
    "attention": Attentive,
    "recurrent": Recurrent,
}


@pytest.mark.parametrize("name", NETS)
def test_exact_is_unrolled_whatever_the_net_is_made_of(name):
    net = NETS[name]()
    net.mixes_items = name == "batch-norm"
    learner = learner_of(net)
    step = step_of(learner, soft(12))
    before = {name: value.clone() for name, value in step.drawn.params.items()}
    state = torch.get_rng_state()
    assert_same(step, momentum=0.9)
    assert_same(step, batch_size=5, order="random")
    # neither what was drawn nor the global generator was touched
    assert all(torch.equal(before[name], value) for name, value in step.drawn.params.items())
    assert torch.equal(state, torch.get_rng_state())
    inner = InnerTraining(learner, step.drawn.params, step.synthetic.batch())
    assert inner.noisy == (name == "dropout")


def test_batch_norm_and_layer_norm_against_finite_differences():
    for name in ("layer-norm", "batch-norm"):
        net = NETS[name]()
        net.mixes_items = name == "batch-norm"
        step = step_of(learner_of(net), soft())
        _, found = gradients(step)
        leaf = step.synthetic.leaves()["inputs"]
        direction, expected = slope_along(step, leaf, TrajectoryMatching(N, "unrolled"))
        assert float((found["inputs"] * direction).sum()) == pytest.approx(expected, rel=1e-5)


def test_hard_targets_and_fixed_fields_get_no_gradient():
    step = step_of(CASES["masked"]().learner(precision="float64"), CASES["masked"]().start())
    gradients(step)
    hidden = ~step.synthetic.batch().inputs["mask"]
    grad = step.synthetic.leaves()["inputs.values"].grad
    assert bool((grad[hidden] == 0).all())
    assert bool((grad[~hidden] != 0).any())


def test_the_step_size_alone_can_be_learned():
    for memory in MEMORIES:
        step = step_of(learner_of(Chain(6, 8, outputs=CLASSES)), soft())
        step.synthetic.representation.requires_grad_(False)
        step.synthetic.labels.requires_grad_(False)
        TrajectoryMatching(N, memory)(step).backward()
        assert step.synthetic.step_size.log.grad is not None
        assert step.synthetic.leaves()["inputs"].grad is None


def test_bfloat16_learners_are_trained_in_float32():
    case = CASES["separable"]()
    steps = [step_of(case.learner(precision=p), soft()) for p in ("float32", "bfloat16")]
    (value, plain), (half_value, half) = (gradients(step) for step in steps)
    assert value == half_value
    assert all(torch.equal(plain[name], half[name]) for name in plain)


# -- TESLA -----------------------------------------------------------------------------------------


def tesla_by_hand(step: Step) -> dict[str, Tensor]:
    """Cui et al. 2023: 2 d/dx [(a (theta* - theta_0) + a^2 G) g_i] / |theta_0 - theta*|^2."""
    learner, leaves = step.learner, step.synthetic.leaves()
    names = learner.trainable_names
    flat = lambda params: torch.cat([params[name].flatten() for name in names])  # noqa: E731
    start, target = flat(step.drawn.params), flat(step.drawn.target)
    rate = step.synthetic.step_size.values()
    theta, slopes = dict(step.drawn.params), []
    for _ in range(N):
        theta = {name: value.detach().requires_grad_() for name, value in theta.items()}
        loss = learner.loss(theta, step.synthetic.batch())
        grads = torch.autograd.grad(loss, [theta[name] for name in names], create_graph=True)
        slopes.append(torch.cat([grad.flatten() for grad in grads]))
        theta = {n: theta[n] - rate.detach() * g for n, g in zip(names, grads, strict=True)}
    total = torch.stack(slopes).sum(dim=0).detach()
    length = (start - target).square().sum()
    a = rate.detach()
    factor = 2 * (a * (target - start) + a**2 * total) / length
    items = sum((slope * factor).sum() for slope in slopes)
    rates = (start - rate * total - target).square().sum() / length
    grads = torch.autograd.grad(items, list(leaves.values()), allow_unused=True)
    found = dict(zip(leaves, grads, strict=True))
    found["step_size"] = torch.autograd.grad(rates, leaves["step_size"])[0]
    return found


def test_tesla_is_the_published_update():
    step = step_of(learner_of(Chain(6, 8, outputs=CLASSES)), soft())
    value, ours = gradients(step, memory="tesla")
    expected = tesla_by_hand(step)
    for name, grad in ours.items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-9, atol=1e-12)
    exact_value, exact = gradients(step)
    assert exact_value == value
    # it is not the gradient: that is what memory=exact is for
    assert all((exact[name] - grad).norm() > 0.01 * grad.norm() for name, grad in ours.items())


def test_tesla_is_exact_for_one_step(case):
    step = case_step(case, augmentation=Stretch())
    _, ours = gradients(step, memory="tesla", steps=1)
    _, exact = gradients(step, memory="exact", steps=1)
    for name, grad in exact.items():
        torch.testing.assert_close(ours[name], grad, rtol=1e-10, atol=1e-13)


# -- what the inner steps read ---------------------------------------------------------------------


def test_passes_are_permutations_or_the_stored_order():
    fixed = passes(5, 2, 5, None)
    assert [batch.tolist() for batch in fixed] == [[0, 1], [2, 3], [4], [0, 1], [2, 3]]
    shuffled = passes(5, 2, 6, seeded(1))
    first, second = (torch.cat(shuffled[start : start + 3]).tolist() for start in (0, 3))
    assert sorted(first) == sorted(second) == [0, 1, 2, 3, 4]
    assert first != second
    assert first != [0, 1, 2, 3, 4]


def read_by(step: Step, order: Any) -> list[Tensor]:
    feed = Feed(step, N, 4, order, cut=True)
    found = [feed.batch(number).inputs.detach() for number in range(N)]
    again = [feed.batch(number).inputs.detach() for number in reversed(range(N))]
    assert all(map(torch.equal, found, reversed(again)))
    return found


def test_random_and_fixed_order():
    step = step_of(learner_of(Chain(6, 8, outputs=CLASSES)), soft())
    stored = step.synthetic.batch().inputs
    fixed, shuffled = read_by(step, "fixed"), read_by(step, "random")
    assert all(map(torch.equal, fixed, [stored[:4], stored[4:], stored[:4], stored[4:]]))
    assert not torch.equal(shuffled[0], fixed[0])


def test_numbers_depend_on_seed_and_step_alone():
    base = step_of(learner_of(Chain(6, 8, outputs=CLASSES)), soft(), augmentation=Stretch())
    first, again = read_by(base, "random"), read_by(base, "random")
    assert all(map(torch.equal, first, again))
    for other in ({"seed": 2}, {"number": 4}):
        found = read_by(dataclasses.replace(base, **other), "random")
        assert not torch.equal(found[0], first[0])
    # a new draw at every inner step
    whole = Feed(base, N, None, "random", cut=False)
    assert not torch.equal(whole.batch(0).inputs, whole.batch(1).inputs)


def test_a_resumed_run_has_the_same_bits(tmp_path):
    case = CASES["separable"]()
    experts = case.record(tmp_path)

    def run() -> Any:
        made = soft()
        made.step_size = StepSize(0.1)
        objective = TrajectoryMatching(N, batch_size=4, momentum=0.5)
        how = {"synthetic": made, "experts": experts, "augmentation": Stretch()}
        return case.distiller(objective, source="experts", **how)

    straight = run()
    losses = [straight.step() for _ in range(4)]
    begun = run()
    for _ in range(2):
        begun.step()
    resumed = run()
    resumed.load_state_dict(copy.deepcopy(begun.state_dict()))
    assert [resumed.step() for _ in range(2)] == losses[2:]
    leaves = straight.synthetic.leaves(), resumed.synthetic.leaves()
    assert all(torch.equal(leaves[0][name], leaves[1][name]) for name in leaves[0])


def test_matching_brings_training_closer_to_the_expert(tmp_path):
    case = CASES["separable"]()
    made = soft()
    made.step_size = StepSize(0.1)
    rates = {name: Leaf(lr=lr, momentum=0.5) for name, lr in RATES.items()}
    how = {"synthetic": made, "experts": case.record(tmp_path), "length": 2, "rates": rates}
    run = case.distiller(TrajectoryMatching(N), source="experts", **how)
    losses = [run.step() for _ in range(30)]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert run.synthetic.step_size.values().item() > 0.1


# -- memory ----------------------------------------------------------------------------------------


class Peak(TorchDispatchMode):
    """The largest number of bytes in tensors that were made, and not freed, at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            storage = leaf.untyped_storage()
            key = storage._cdata
            if key not in self.live:
                self.live[key] = storage.nbytes()
                weakref.finalize(storage, self.live.pop, key, None)
        self.peak = max(self.peak, sum(self.live.values()))
        return out


@contextlib.contextmanager
def without_gc() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def peak_of(memory: str, steps: int) -> int:
    step = step_of(CASES["separable"]().learner(), soft(300))
    objective = TrajectoryMatching(steps, memory)
    objective(step)  # derivatives are tried out once
    with without_gc(), Peak() as measured:
        objective(step).backward()
    return measured.peak


@pytest.mark.parametrize("memory", ["exact", "tesla"])
def test_memory_grows_by_a_parameter_vector_for_a_step(memory):
    net = CASES["separable"]().net()
    vector = 4 * sum(parameter.numel() for parameter in net.parameters())
    growth = (peak_of(memory, 12) - peak_of(memory, 4)) / 8
    assert growth <= 1.05 * vector
    plain = (peak_of("unrolled", 12) - peak_of("unrolled", 4)) / 8
    assert plain > 20 * vector


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_loss_above_the_threshold_moves_nothing(memory):
    step = step_of(learner_of(Chain(6, 8, outputs=CLASSES)), soft())
    value, _ = gradients(step, memory=memory)
    skipped = TrajectoryMatching(N, memory, skip_above=value * 0.999)(step)
    assert skipped.item() == value
    assert not skipped.requires_grad
    assert TrajectoryMatching(N, memory, skip_above=value * 1.001)(step).requires_grad


def test_without_gradients_there_is_only_the_value():
    step = step_of(learner_of(Chain(6, 8, outputs=CLASSES)), soft(), augmentation=Stretch())
    value, _ = gradients(step)
    for memory in MEMORIES:
        with torch.no_grad():
            loss = TrajectoryMatching(N, memory)(step)
        assert loss.item() == pytest.approx(value, rel=1e-12)
        assert not loss.requires_grad


class LinearForecast(nn.Linear):
    """Under a squared loss, training at a large rate grows without bounds."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs.flatten(1)).unflatten(1, (2, 2))


@pytest.mark.parametrize("memory", MEMORIES)
def test_divergence_names_the_inner_step(memory):
    case = CASES["forecasting"]()
    step = step_of(Learner(LinearForecast(12, 4), case.task), case.start(), rate=1e12)
    with pytest.raises(NonFiniteError, match=r"^step 4: .* after inner step [34] of 4, .*e\+12"):
        TrajectoryMatching(N, memory)(step)
    # the parameters of one step are still numbers, their squares are not
    step = step_of(Learner(LinearForecast(12, 4), case.task), case.start(), rate=1e25)
    with pytest.raises(NonFiniteError, match="out of range"):
        TrajectoryMatching(1, memory)(step)


def test_a_set_without_step_size_is_refused():
    step = step_of(learner_of(Chain(6, 8, outputs=CLASSES)), soft(), rate=None)
    with pytest.raises(UserError, match=r"synthetic\.step_size"):
        TrajectoryMatching(N)(step)


def test_a_source_without_targets_is_refused():
    step = step_of(learner_of(Chain(6, 8, outputs=CLASSES)), soft())
    step = dataclasses.replace(step, drawn=Drawn(step.drawn.params))
    with pytest.raises(UserError, match=r"source\.kind=experts"):
        TrajectoryMatching(N)(step)


def test_a_segment_that_stands_still_is_refused():
    case = CASES["coupled"]()
    step = case_step(case)
    start, target = step.drawn.params, dict(step.drawn.target)
    target |= {name: value for name, value in start.items() if name.startswith("text")}
    step = dataclasses.replace(step, drawn=Drawn(start, target=target))
    with pytest.raises(UserError, match=r"step 4: .* 'text'"):
        TrajectoryMatching(N)(step)


def test_other_numbers_of_step_sizes_are_refused():
    step = case_step(CASES["coupled"](), rates=3)
    with pytest.raises(UserError, match="got 3; expected 1 or 2"):
        TrajectoryMatching(N)(step)


def test_tesla_with_momentum_is_refused():
    with pytest.raises(UserError, match="memory=exact takes momentum"):
        TrajectoryMatching(memory="tesla", momentum=0.5)


class OnceOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.tanh()

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError("no derivative")


def test_an_encoder_without_second_derivatives_is_refused():
    class Net(Chain):
        def read(self, inputs: Tensor) -> Tensor:
            return OnceOnly.apply(inputs)

    step = step_of(learner_of(Net(6, 8, outputs=CLASSES)), soft())
    with pytest.raises(UserError, match=r"cannot be differentiated.*got 'Net'"):
        TrajectoryMatching(N)(step)


# -- the learner's pure loss -----------------------------------------------------------------------


def test_the_pure_loss_is_the_loss_and_changes_nothing():
    net = normed(nn.BatchNorm1d(8))
    net.mixes_items = True
    learner = learner_of(net)
    params = learner.init(seeded())
    batch = soft().batch()
    weights = torch.tensor([1.0, 2, 0, 1, 1, 3])
    state = {name: value.clone() for name, value in [*params.items(), *net.state_dict().items()]}
    learner.encoder.train()
    pure = learner.pure_loss(params, batch.inputs, batch.targets, weights)
    now = {**params, **net.state_dict()}
    assert all(torch.equal(value, now[name]) for name, value in state.items())
    plain = learner.loss(params, dataclasses.replace(batch, weights=weights))
    torch.testing.assert_close(pure, plain)
    single = learner.pure_loss(params, batch.inputs, batch.targets, weights, dtype=torch.float32)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), plain, rtol=1e-5, atol=1e-6)


def test_only_a_compiled_learner_compiles_a_transform():
    def double(x: Tensor) -> Tensor:
        return 2 * x

    assert CASES["separable"]().learner().transform(double) is double


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(), reason="no compiler here")
def test_compiled_is_eager(case):
    found = []
    for compiled in (False, True):
        learner = case.learner(compiled=compiled)
        step = step_of(learner, case.start(), augmentation=Stretch())
        found.append(gradients(step, momentum=0.9, batch_size=3)[1])
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad, rtol=1e-3, atol=1e-5)


def test_fixed_labels_of_probabilities_are_no_leaf():
    targets = torch.softmax(noise(6, CLASSES, seed=3), dim=1)
    made = SyntheticSet(Direct(noise(6, 6)), HardLabels(targets), labels(6), CLASSES)
    assert_same(step_of(learner_of(Chain(6, 8, outputs=CLASSES)), made))
