"""Every objective against every kind of data: what a new entry must do the moment it is listed."""

from __future__ import annotations

import copy
import functools
import itertools
from typing import Any

import pytest
import torch
from fakes import ALL, CASES, Case, labels, noise, seeded

from mmdd import catalog
from mmdd.distiller import Distiller
from mmdd.experts import Experts
from mmdd.files import load_tree, save_tree
from mmdd.labels import HardLabels
from mmdd.learner import Learner
from mmdd.real import ResidentData
from mmdd.recipe import Leaf
from mmdd.representations import Direct
from mmdd.step import Objective, Step
from mmdd.synthetic import SyntheticSet
from mmdd.tasks.classification import Classification

FOREVER = 10**9

# Sets of options worth a run of their own; an objective without an entry runs with its defaults.
VARIANTS = {
    "distribution": {
        "mean": {},
        "layers": {"features": "all"},
        "moments": {"moments": 3, "moment_weights": [1.0, 0.5, 0.2]},
        "linear": {"kernel": "linear"},
        "polynomial": {"kernel": "polynomial"},
        "gaussian": {"kernel": "gaussian"},
        "gaussian-layers": {"kernel": "gaussian", "features": "all"},
        "covariance": {"statistic": "covariance"},
        "characteristic": {"statistic": "characteristic", "frequencies": 64},
    },
    "gradient": {
        "layerwise-cosine": {"distance": "layerwise-cosine"},
        "cosine": {"distance": "cosine"},
        "mse": {"distance": "mse"},
        "l1": {"distance": "l1"},
        "relative-mse": {"distance": "relative-mse"},
        "joint": {"per_group": False},
        "by-size": {"by_size": True},
    },
    "trajectory": {
        "exact": {"steps": 3, "memory": "exact"},
        "unrolled": {"steps": 3, "memory": "unrolled"},
        "tesla": {"steps": 3, "memory": "tesla"},
    },
    "cross-entropy": {
        "drawn": {"at": "drawn"},
        "trained": {"at": "trained"},
    },
    # looks at a representation of graphs alone, where it is tested
    "penalty": {},
}
OBJECTIVES = [
    pytest.param(kind, options, id=f"{kind}-{name}")
    for kind in catalog.OBJECTIVES
    for name, options in VARIANTS.get(kind, {"defaults": {}}).items()
]
# Options of the value alone draw no numbers and keep no state: runs are repeated without them.
PLAIN = {
    *("layers", "moments", "linear", "polynomial", "gaussian-layers", "covariance"),
    *("cosine", "mse", "relative-mse", "by-size", "l1", "unrolled", "tesla", "trained"),
}
RUNS = [param for param in OBJECTIVES if str(param.id).partition("-")[2] not in PLAIN]


@functools.cache
def digits() -> Case:
    """Real pictures and the field's ConvNet, beside the fakes."""
    from sklearn.datasets import load_digits

    from mmdd.modalities.images.convnet import ConvNet

    pixels, truth = load_digits(n_class=5, return_X_y=True)
    pixels = torch.tensor(pixels).float().view(-1, 1, 8, 8) / 8 - 1
    truth = torch.tensor(truth).long()

    def data(start: int, stop: int) -> ResidentData:
        return ResidentData(pixels[start:stop], truth[start:stop], truth[start:stop], 5)

    def start() -> SyntheticSet:
        classes = torch.arange(5)
        return SyntheticSet(Direct(noise(5, 1, 8, 8)), HardLabels(classes), classes, 5)

    return Case(
        name="digits",
        net=lambda: ConvNet(1, 8, 8, 5, width=8),
        task=Classification(),
        train=data(0, 80),
        test=data(80, 140),
        start=start,
        leaves=("inputs",),
        nbytes=5 * 64 * 4 + 5 * 8,
    )


ALL_CASES = {**CASES, "digits": digits}


@pytest.fixture(params=ALL_CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return ALL_CASES[request.param]()


def build(kind: str, options: dict) -> Objective:
    return catalog.load("objective", kind, catalog.OBJECTIVES)(**options)


def begun(case: Case, kind: str) -> SyntheticSet:
    """The case's set; with a step size where the objective trains on it."""
    return case.begin(0.1 if kind == "trajectory" else None)


def needs_related(kind: str, options: dict) -> bool:
    """True for objectives that need a trained net or a target beside the net."""
    return kind == "trajectory" or options.get("at") == "trained"


def step_of(case: Case, learner: Learner, kind: str, options: dict) -> Step:
    return case.step(learner, begun(case, kind), related=needs_related(kind, options))


def run_of(case: Case, kind: str, options: dict, objective: Any = None, **more: Any) -> Distiller:
    """A run of the objective, at nets from a source that has what it needs."""
    more.setdefault("source", "taught" if needs_related(kind, options) else "fresh")
    objective = build(kind, options) if objective is None else objective
    return case.distiller(objective, synthetic=begun(case, kind), **more)


def snapshot(synthetic: SyntheticSet) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in synthetic.state_dict().items()}


def assert_same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


# -- every (objective, modality) cell --------------------------------------------------------------


@pytest.mark.parametrize(("kind", "options"), OBJECTIVES)
def test_a_finite_gradient_reaches_every_leaf(case, kind, options):
    step = step_of(case, case.learner(), kind, options)
    loss = build(kind, options)(step)
    assert loss.shape == ()
    assert torch.isfinite(loss)
    assert loss > 0
    loss.backward()
    leaves = step.synthetic.leaves()
    assert tuple(leaves) == case.leaves + (("step_size",) if kind == "trajectory" else ())
    for name, leaf in leaves.items():
        assert leaf.grad is not None, name
        assert torch.isfinite(leaf.grad).all(), name
        assert leaf.grad.abs().sum() > 0, name


@pytest.mark.parametrize(("kind", "options"), OBJECTIVES)
def test_the_loss_falls_at_a_fixed_net(case, kind, options):
    # a net at its start tells classes apart so little that its loss cannot fall far
    rate = 0.3 if kind == "cross-entropy" else 0.05
    run = run_of(
        case,
        kind,
        options,
        rates={"inputs": Leaf(optimiser="adam", lr=rate, momentum=0.9)},
        per_group=ALL,
        every=FOREVER,
    )
    losses = [run.step() for _ in range(12)]
    assert losses[-1] < 0.9 * losses[0], losses


@pytest.mark.parametrize(("kind", "options"), RUNS)
def test_the_same_seed_gives_the_same_bits(case, kind, options):
    def after(seed: int) -> dict[str, torch.Tensor]:
        run = run_of(case, kind, options, seed=seed)
        for _ in range(2):
            run.step()
        return snapshot(run.synthetic)

    first = after(seed=5)
    # nothing may depend on what the process drew before
    torch.rand(3)
    assert_same_bits(first, after(seed=5))
    other = after(seed=6)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(("kind", "options"), RUNS)
def test_a_resumed_run_ends_with_the_same_bits(case, kind, options):
    def fresh_run():
        # the net drawn at step 0 is used until step 3: it has to survive the break
        rates = {"inputs": Leaf(lr=0.1, momentum=0.9, schedule="cosine")}
        return run_of(case, kind, options, every=3, rates=rates)

    whole = fresh_run()
    losses = [whole.step() for _ in range(5)]
    early = fresh_run()
    for _ in range(2):
        early.step()
    state = copy.deepcopy(early.state_dict())
    # a state is a picture, not a window: what the old run does next must not reach it
    early.step()
    late = fresh_run()
    late.load_state_dict(state)
    assert late.number == 2
    assert [late.step() for _ in range(3)] == losses[2:]
    assert_same_bits(snapshot(late.synthetic), snapshot(whole.synthetic))
    assert late.number == whole.number


@pytest.mark.parametrize(("kind", "options"), OBJECTIVES)
def test_passes_over_some_groups_give_the_gradient_of_one_pass(case, kind, options):
    seen = []

    def gradient(pass_items: int) -> tuple[float, dict[str, torch.Tensor]]:
        objective = build(kind, options)

        def watched(step):
            seen.append(step.groups)
            return objective(step)

        watched.by_group = objective.by_group
        run = run_of(case, kind, options, watched, pass_items=pass_items, per_group=4)
        loss = run.step()
        return loss, {name: leaf.grad for name, leaf in run.synthetic.leaves().items()}

    whole_loss, whole = gradient(pass_items=8192)
    assert seen == [None]
    seen.clear()
    cut_loss, cut = gradient(pass_items=4)
    cuts = build(kind, options).by_group and not case.start().joint and case.train.num_groups > 1
    assert len(seen) == (case.train.num_groups if cuts else 1)
    assert cut_loss == pytest.approx(whole_loss, rel=1e-5)
    for name, value in whole.items():
        torch.testing.assert_close(
            cut[name], value, rtol=1e-4, atol=1e-5 * float(value.abs().max())
        )


@pytest.mark.parametrize(("kind", "options"), OBJECTIVES)
def test_masked_positions_get_exactly_no_gradient_and_stay(kind, options):
    run = run_of(CASES["masked"](), kind, options)
    before = snapshot(run.synthetic)
    mask = before["representation.inputs/mask"]
    for _ in range(3):
        run.step()
        gradient = run.synthetic.leaves()["inputs.values"].grad
        assert (gradient[~mask] == 0).all()
        assert (gradient[mask] != 0).any(dim=-1).all()
    after = snapshot(run.synthetic)
    assert torch.equal(after["representation.inputs/mask"], mask)
    values = [state["representation.inputs/values"] for state in (before, after)]
    assert torch.equal(values[0][~mask], values[1][~mask])
    assert not torch.equal(values[0][mask], values[1][mask])


@pytest.mark.parametrize(("kind", "options"), OBJECTIVES)
def test_what_a_mask_hides_is_not_read(kind, options):
    case = CASES["masked"]()
    learner = case.learner()
    losses = []
    for hidden in (0.0, 1e3):
        step = step_of(case, learner, kind, options)
        leaf = step.synthetic.leaves()["inputs.values"]
        leaf.data[~step.synthetic.state_dict()["representation.inputs/mask"]] = hidden
        losses.append(float(build(kind, options)(step).detach()))
    assert losses[0] == losses[1]


@pytest.mark.parametrize(("kind", "options"), OBJECTIVES)
def test_two_leaves_are_stepped_at_their_own_rates(kind, options):
    rates = {
        "inputs.image": Leaf(lr=0.5, momentum=0.0),
        "inputs.text": Leaf(lr=0.02, momentum=0.0),
        "step_size": Leaf(lr=0.3, momentum=0.0),
    }
    run = run_of(CASES["coupled"](), kind, options, rates=rates)
    before = {name: leaf.detach().clone() for name, leaf in run.synthetic.leaves().items()}
    run.step()
    for name, leaf in run.synthetic.leaves().items():
        assert leaf.grad.abs().sum() > 0
        assert torch.equal(leaf.detach(), before[name].add(leaf.grad, alpha=-rates[name].lr)), name


@pytest.mark.parametrize(("kind", "options"), RUNS)
def test_a_step_leaves_real_data_and_net_as_they_were(case, kind, options):
    run = run_of(case, kind, options, every=FOREVER)
    run.step()
    index = torch.arange(len(run.real))
    real = copy.deepcopy(run.real.select(index))
    net = copy.deepcopy(run.source.draw(1).params)
    encoder = copy.deepcopy(run.learner.encoder.state_dict())
    run.step()
    torch.testing.assert_close(run.real.select(index).inputs, real.inputs, rtol=0, atol=0)
    assert_same_bits(run.source.draw(2).params, net)
    assert_same_bits(run.learner.encoder.state_dict(), encoder)
    assert all(value.grad is None for value in run.source.draw(2).params.values())


# -- every modality --------------------------------------------------------------------------------


def test_bytes_add_up(case):
    synthetic = case.start()
    stored = synthetic.stored()
    assert synthetic.nbytes == sum(t.numel() * t.element_size() for t in stored.values())
    assert synthetic.nbytes == case.nbytes


def test_the_task_loss_also_reaches_every_leaf(case):
    synthetic = case.start()
    learner = case.learner()
    learner.loss(learner.init(seeded(0)), synthetic.batch()).backward()
    for name, leaf in synthetic.leaves().items():
        assert torch.isfinite(leaf.grad).all(), name
        assert leaf.grad.abs().sum() > 0, name


def test_layers_end_with_the_features_and_outputs_are_per_item(case):
    learner = case.learner()
    params, batch = learner.init(seeded(0)), case.start().batch()
    features, layers = learner.features(params, batch), learner.layers(params, batch)
    assert features.shape[0] == len(batch)
    assert torch.equal(layers[-1], features)
    assert all(layer.ndim == 2 and layer.shape[0] == len(batch) for layer in layers)
    assert learner.item_losses(params, batch).shape == (len(batch),)


def test_parts_of_a_set_are_the_parts_of_the_whole(case):
    synthetic = case.start()
    whole = synthetic.batch()
    index = torch.tensor([4, 1])
    part = synthetic.batch(index)
    chosen = whole.select(index)
    torch.testing.assert_close(part.inputs, chosen.inputs, rtol=0, atol=0)
    assert torch.equal(part.groups, chosen.groups)
    assert torch.equal(part.item_weights, chosen.item_weights)
    of_first = synthetic.batch(groups=torch.tensor([0]))
    assert int(of_first.item_weights.sum()) == int((synthetic.groups == 0).sum())
    assert set(of_first.groups[of_first.item_weights != 0].tolist()) == {0}


def test_a_stored_set_comes_back_with_the_same_bits(case):
    first, second = case.start(), case.start()
    for leaf in first.leaves().values():
        leaf.data.add_(1.0)
    second.load_state_dict(first.state_dict())
    assert_same_bits(snapshot(second), snapshot(first))
    assert_same_bits(first.stored(), second.stored())


def test_forecast_gradients_come_through_inputs_and_through_targets():
    case = CASES["forecasting"]()
    learner = case.learner()
    params = learner.init(seeded(0))
    synthetic = case.start()
    leaf = synthetic.leaves()["inputs"]
    batch = synthetic.batch()

    def gradient(cut_inputs: bool, cut_targets: bool) -> torch.Tensor:
        outputs = learner.outputs(
            params, batch.with_inputs(batch.inputs.detach() if cut_inputs else batch.inputs)
        )
        targets = batch.targets.detach() if cut_targets else batch.targets
        loss = learner.task.item_losses(outputs, targets).mean()
        return torch.autograd.grad(loss, leaf, retain_graph=True)[0]

    through_inputs, through_targets = gradient(False, True), gradient(True, False)
    assert through_inputs.abs().sum() > 0
    assert through_targets.abs().sum() > 0
    torch.testing.assert_close(through_inputs + through_targets, gradient(False, False))
    # the last value is a target only, the first an input only
    assert (through_inputs[-1] == 0).all()
    assert (through_targets[0] == 0).all()


def test_towers_are_groups_of_parameters():
    learner = CASES["coupled"]().learner()
    groups = learner.groups_of_parameters
    assert set(groups) == {"image", "text"}
    together = [name for names in groups.values() for name in names]
    assert sorted(together) == sorted(name for name, _ in learner.encoder.named_parameters())
    plain = CASES["separable"]().learner()
    assert list(plain.groups_of_parameters) == ["all"]


# -- every source ----------------------------------------------------------------------------------


SHORT_LIVES = {
    "synthetic-trained": {"outer": 4, "inner": 2},
    "real-trained": {"life": 4, "updates": 2, "batch_size": 8},
    "pool": {"push_every": 2, "updates": 2, "batch_size": 8},
}


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Experts:
    return CASES["separable"]().record(tmp_path_factory.mktemp("experts"))


@pytest.mark.parametrize("source", catalog.SOURCES)
@pytest.mark.parametrize("age", [1, 4, 5])
def test_every_source_resumes_with_the_same_bits(source, age, experts, tmp_path):
    def fresh_run() -> Distiller:
        options = SHORT_LIVES.get(source, {})
        return CASES["separable"]().distiller(
            build("distribution", {}), source=source, experts=experts, **options
        )

    whole, early, late = fresh_run(), fresh_run(), fresh_run()
    losses = [whole.step() for _ in range(8)]
    for _ in range(age):
        early.step()
    # by way of the disk, as a run does it
    save_tree(tmp_path / "state", early.state_dict())
    late.load_state_dict(load_tree(tmp_path / "state"))
    assert [late.step() for _ in range(8 - age)] == losses[age:]
    assert_same_bits(snapshot(late.synthetic), snapshot(whole.synthetic))


def test_fresh_holds_a_net_for_as_long_as_asked():
    case = CASES["separable"]()
    run = case.distiller(build("distribution", {}), every=3)
    drawn = [run.source.draw(step).params for step in range(7)]
    same = [all(torch.equal(a[name], b[name]) for name in a) for a, b in itertools.pairwise(drawn)]
    assert same == [True, True, False, True, True, False]


# -- the loop --------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_leaves_the_set_as_it_was():
    from mmdd.errors import NonFiniteError

    case = CASES["separable"]()

    def broken(step):
        value = step.synthetic_batch().inputs.sum()
        return value * float("nan") if step.number == 1 else value

    broken.by_group = False
    run = case.distiller(broken)
    run.step()
    before = snapshot(run.synthetic)
    with pytest.raises(NonFiniteError, match="step 2: the loss is nan"):
        run.step()
    assert_same_bits(snapshot(run.synthetic), before)
    assert run.number == 1


def test_a_gradient_that_is_not_finite_is_named():
    from mmdd.errors import NonFiniteError

    case = CASES["coupled"]()

    def broken(step):
        inputs = step.synthetic_batch().inputs
        return inputs["image"].sum() + (0 * inputs["text"].sum()).sqrt()

    broken.by_group = False
    run = case.distiller(broken)
    before = snapshot(run.synthetic)
    with pytest.raises(NonFiniteError, match=r"gradient of 'inputs\.text'"):
        run.step()
    assert_same_bits(snapshot(run.synthetic), before)


def test_bounds_hold_after_every_step():
    case = CASES["separable"]()
    low, high = torch.full((6,), -0.25), torch.linspace(0.1, 0.6, 6)
    run = case.distiller(build("distribution", {}), rates={"inputs": Leaf(lr=5.0)})
    bounded = Direct(noise(6, 6), bounds=(low, high))
    run.synthetic.representation.load_state_dict(bounded.state_dict())
    run.synthetic.representation._bound(low, high)
    run.step()
    values = run.synthetic.leaves()["inputs"].detach()
    assert (values >= low).all()
    assert (values <= high).all()
    # bounds are the data's, not the set's: they cost nothing
    assert SyntheticSet(bounded, HardLabels(labels(6)), labels(6), 3).nbytes == case.nbytes


def test_every_field_has_its_own_bounds():
    values = {"image": 9 * noise(4, 6), "text": 9 * noise(4, 3)}
    low, high = {"image": torch.tensor(-1.0)}, {"image": torch.tensor(2.0)}
    pairs = Direct(values, bounds=(low, high))
    pairs.constrain_()
    decoded = pairs.decode(None)
    assert torch.equal(decoded["image"], values["image"].clamp(-1, 2))
    assert torch.equal(decoded["text"], values["text"])


@pytest.mark.parametrize("options", VARIANTS["distribution"].values(), ids=VARIANTS["distribution"])
def test_a_pass_over_groups_that_the_set_lacks_adds_nothing(options):
    case = CASES["separable"]()
    gradients = []
    for pass_items in (8192, 4):
        run = case.distiller(build("distribution", options), per_group=4, pass_items=pass_items)
        groups = torch.tensor([0, 0, 0, 1, 1, 1])
        run.synthetic = SyntheticSet(
            run.synthetic.representation, HardLabels(groups), groups, num_groups=3
        )
        run.step()
        gradients.append(run.synthetic.leaves()["inputs"].grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)
