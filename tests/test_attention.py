"""Labels of attention: their loss and its derivatives, nets that tell, runs, what is refused."""

from __future__ import annotations

import dataclasses

import datasets
import pytest
import torch
from text_sets import labels, save_bert, sentences

import mmdd
from mmdd.artifact import export
from mmdd.batch import Batch
from mmdd.errors import UserError
from mmdd.evaluate import Trainer
from mmdd.labels import AttentionLabels, HardLabels, SoftLabels
from mmdd.learner import Learner
from mmdd.modalities.text import nets
from mmdd.modalities.text.pretrained import Pretrained
from mmdd.objectives.inner import InnerTraining, reading
from mmdd.parts import _require_labels
from mmdd.protocols import PROTOCOLS
from mmdd.targets import label_kind, labelled, readable
from mmdd.tasks.classification import Classification
from mmdd.tasks.multilabel import MultiLabel
from mmdd.tasks.regression import Regression

LENGTH, HIDDEN, CLASSES = 6, 8, 3
SOURCE = {"train": (sentences(60), labels(60)), "test": (sentences(20, seed=1), labels(20))}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def items(count=3, dtype=torch.float64):
    values = torch.randn(count, LENGTH, HIDDEN, generator=seeded(), dtype=dtype)
    lengths = torch.tensor([5, 2, 4])[:count]  # nothing shows the last position
    return {"values": values, "mask": torch.arange(LENGTH) < lengths[:, None]}


def made(classes=None, heads=2, weight=1.0, dtype=torch.float32):
    logits = torch.randn(3, heads, LENGTH, generator=seeded(1), dtype=dtype)
    classes = HardLabels(torch.tensor([0, 2, 1])) if classes is None else classes
    return AttentionLabels(classes, logits, weight=weight)


def small(task=None):
    net = nets.Transformer((LENGTH, HIDDEN), CLASSES, width=8, depth=2, heads=2)
    return Learner(net, task or Classification(), precision="float64")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return save_bert(tmp_path_factory.mktemp("bert"), hidden=HIDDEN)


# -- labels ----------------------------------------------------------------------------------------


def test_the_label_is_a_softmax_over_the_shown_positions():
    labels, inputs = made(weight=0.5), items()
    back, targets = labels.attach(None, inputs, 1)
    assert back is inputs
    assert targets["classes"].tolist() == [0, 2, 1]
    assert targets["weight"].tolist() == [0.5, 0.5, 0.5]
    for item, shown in enumerate(inputs["mask"]):
        expected = labels.attention[item][:, shown].softmax(dim=1)
        torch.testing.assert_close(targets["attention"][item][:, shown], expected)
        assert (targets["attention"][item][:, ~shown] == 0).all()
    index = torch.tensor([2, 0])
    part = {name: value[index] for name, value in inputs.items()}
    _, chosen = labels.attach(index, part, 1)
    for name, value in targets.items():
        assert torch.equal(chosen[name], value[index]), name
    vectors = torch.zeros(3, HIDDEN)
    torch.testing.assert_close(
        labels.attach(None, vectors, 1)[1]["attention"], labels.attention.softmax(dim=2)
    )


def test_the_loss_is_the_divergence_beside_the_task_s_own():
    targets = _plain(made(weight=0.3, dtype=torch.float64).attach(None, items(), 1)[1])
    logits = torch.randn(3, CLASSES, generator=seeded(2), dtype=torch.float64)
    shown = items()["mask"][:, None, :].expand(-1, 2, -1)
    said = torch.rand(3, 2, LENGTH, generator=seeded(3), dtype=torch.float64) * shown
    said = said / said.sum(dim=2, keepdim=True)
    outputs = {"logits": logits, "attention": said}
    found = Classification().item_losses(outputs, targets)
    for item in range(3):
        own = -float(logits[item].log_softmax(0)[targets["classes"][item]])
        apart = [
            sum(float(p * (p / q).log()) for p, q in zip(label, told, strict=True) if p > 0)
            for label, told in zip(targets["attention"][item], said[item], strict=True)
        ]
        assert float(found[item]) == pytest.approx(own + 0.3 * sum(apart) / 2, rel=1e-9)
    several = {**targets, "classes": torch.eye(3, dtype=torch.bool)}
    plain = MultiLabel().item_losses(logits, several["classes"])
    more = MultiLabel().item_losses(outputs, several) - plain
    expected = found - Classification().item_losses(logits, targets["classes"])
    torch.testing.assert_close(more, expected)
    assert Classification().score(outputs, targets) == Classification().score(
        logits, targets["classes"]
    )


def test_an_inner_step_is_differentiated_with_respect_to_the_labels():
    """d <w, theta - a grad L> / d(label logits, items), against finite differences in float64."""
    learner, inputs = small(), items()
    params = {name: value.double() for name, value in learner.init(seeded()).items()}
    labels = made(SoftLabels(torch.zeros(3, CLASSES))).double()
    leaves = [labels.attention, labels.classes.logits, inputs["values"].requires_grad_()]
    wanted = {
        name: torch.randn(p.shape, generator=seeded(4)).double() for name, p in params.items()
    }

    def after() -> torch.Tensor:
        decoded, targets = labels.attach(None, inputs, 1)
        batch = Batch(decoded, targets, torch.tensor([0, 2, 1]))
        inner = InnerTraining(learner, params, batch)
        theta, fixed = inner.split(params)
        rates = torch.tensor([0.5], dtype=torch.float64)
        with inner.around(0):
            end, _ = inner.step(theta, {}, rates, reading(batch, fixed, cut=False))
        return sum((wanted[name] * value).sum() for name, value in end.items())

    found = torch.autograd.grad(after(), leaves)
    mask = inputs["mask"]
    assert (found[0].transpose(1, 2)[~mask] == 0).all()
    assert (found[2][~mask] == 0).all()
    for leaf, slope in zip(leaves, found, strict=True):
        assert float(slope.abs().max()) > 1e-6
        place = int(slope.abs().argmax())
        flat, values = leaf.detach().view(-1), []
        for move in (1e-5, -2e-5, 1e-5):
            flat[place] += move
            values.append(float(after()))
        assert float(slope.view(-1)[place]) == pytest.approx(
            (values[0] - values[1]) / 2e-5, rel=1e-4
        )


# -- nets that tell --------------------------------------------------------------------------------


def test_the_small_transformer_tells_how_its_average_is_made():
    net, inputs = small().encoder.double(), items()
    said = net.attended(inputs)
    torch.testing.assert_close(said["logits"], net(inputs))
    assert net.attention_shape == (2, LENGTH) == tuple(said["attention"].shape[1:])
    torch.testing.assert_close(said["attention"].sum(dim=2), torch.ones(3, 2).double())
    assert (said["attention"].transpose(1, 2)[~inputs["mask"]] == 0).all()
    # the second text alone, at its own length: the mean of the rows of its two positions
    alone = {name: value[1:2, :2] for name, value in inputs.items()}
    x, mask = net.stem(alone["values"]) + net.positions[:2], alone["mask"]
    x = net.blocks[0](x, mask)
    query, key, _ = net.blocks[1].attend.project_in(net.blocks[1].before(x)).chunk(3, dim=2)
    for head in range(2):
        q, k = (part[0, :, 4 * head : 4 * head + 4] for part in (query, key))
        expected = (q @ k.T / 2).softmax(dim=1).mean(dim=0)
        torch.testing.assert_close(said["attention"][1, head, :2], expected)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_an_encoder_of_transformers_tells_its_last_layer(bert, pooling):
    from transformers import AutoModel

    net = Pretrained((LENGTH, HIDDEN), CLASSES, model=bert, pooling=pooling, scale=0.5).eval()
    inputs = items(dtype=torch.float32)
    body = AutoModel.from_pretrained(bert, attn_implementation="eager").eval()
    mask = inputs["mask"]
    theirs = body(
        inputs_embeds=0.5 * inputs["values"] * mask[..., None],
        attention_mask=mask.long(),
        output_attentions=True,
    ).attentions[-1]
    rows = mask[:, None, :, None] / mask.sum(dim=1)[:, None, None, None]
    expected = theirs[:, :, 0] if pooling == "cls" else (theirs * rows).sum(dim=2)
    said = net.attended(inputs)
    assert net.attention_shape == (2, LENGTH)
    torch.testing.assert_close(said["attention"], expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(said["logits"], net(inputs), rtol=1e-5, atol=1e-6)
    learner = Learner(net, Classification())
    params = [learner.init(seeded(seed)) for seed in (1, 2)]
    targets = made().attach(None, inputs, 1)[1]
    both = learner.stacked_outputs(
        {name: torch.stack([p[name] for p in params]) for name in params[0]},
        {name: torch.stack([value, value]) for name, value in inputs.items()},
        targets,
    )
    for place, own in enumerate(params):
        alone = learner.outputs(own, Batch(inputs, targets, torch.zeros(3).long()))
        torch.testing.assert_close(both["attention"][place], alone["attention"])
        torch.testing.assert_close(both["logits"][place], alone["logits"], rtol=1e-4, atol=1e-5)


# -- training on them ------------------------------------------------------------------------------


def batch_of(labels):
    inputs, targets = labels.attach(None, items(dtype=torch.float32), 1)
    return Batch(inputs, _plain(targets), torch.tensor([0, 2, 1]))


def _plain(targets):
    return {name: value.detach() for name, value in targets.items()}


def test_a_trained_net_looks_where_the_labels_say():
    batch = batch_of(made())
    learner = Learner(small().encoder.float(), Classification())
    protocol = PROTOCOLS["quick"].model_copy(update={"epochs": 30, "lr": 0.1, "batch_size": 2})

    def apart(data):
        trained = Trainer(learner, protocol, 0).train([data, data])
        said = [learner.attended(params, batch)["attention"] for params in trained]
        return max(float((own - batch.targets["attention"]).abs().mean()) for own in said)

    alone = dataclasses.replace(batch, targets=batch.targets["classes"])
    assert apart(batch) < 0.5 * apart(alone)


def test_a_net_that_cannot_read_them_has_the_classes():
    batch = batch_of(made())
    textcnn = Learner(nets.TextCNN((LENGTH, HIDDEN), CLASSES, width=4), Classification())
    four = Learner(nets.Transformer((LENGTH, HIDDEN), CLASSES, width=8, heads=4), Classification())
    own = Learner(small().encoder.float(), Classification())
    assert readable(batch, own) is batch
    for learner in (textcnn, four):
        assert readable(batch, learner).targets is batch.targets["classes"]
        plain = dataclasses.replace(batch, targets=batch.targets["classes"])
        protocol = PROTOCOLS["quick"].model_copy(update={"epochs": 2})
        found, expected = (Trainer(learner, protocol, 0).train([b])[0] for b in (batch, plain))
        assert all(torch.equal(found[name], expected[name]) for name in found)
    assert label_kind(batch, Classification()) == "attention"
    assert labelled(batch, Classification(), "hard").targets.tolist() == [0, 2, 1]
    soft = batch_of(made(SoftLabels(torch.zeros(3, CLASSES))))
    assert labelled(soft, Classification(), "hard").targets is soft.groups


# -- whole runs ------------------------------------------------------------------------------------

TINY = {
    "modality": "text", "data.validation": 0, "data.hidden": 8, "learner.width": 8,
    "experts.count": 1, "experts.epochs": 2, "experts.lr": 0.05, "objective.steps": 2,
    "source.length": 1, "evaluate.epochs": 2, "evaluate.full": False, "run.threads": 1,
    "run.checkpoint_seconds": 0,
}  # fmt: skip


def distilled(out=None, steps=4, **more):
    return mmdd.distill(
        SOURCE, method="attention-labels", per_class=1, steps=steps, options={**TINY, **more},
        device="cpu", out=out,
    )  # fmt: skip


class Broken(Exception):
    pass


def test_a_run_learns_stores_resumes_and_is_judged(tmp_path, monkeypatch, capsys):
    datasets.disable_progress_bars()
    whole = distilled(tmp_path / "whole")
    state = whole.synthetic.state_dict()
    length = whole.info.shape[0]
    assert state["labels.attention"].shape == (2, 4, length)
    assert whole.synthetic.nbytes == sum(t.numel() * t.element_size() for t in state.values())
    start = distilled(steps=1, **{"optimise.labels.lr": 1e-12}).synthetic.state_dict()
    for name in ("labels.attention", "labels.classes.logits", "representation.inputs/values"):
        assert not torch.equal(state[name], start[name]), name

    # broken off after two steps, and continued
    from mmdd.distiller import Distiller

    step = Distiller.step

    def breaks(self):
        if self.number == 2:
            raise Broken
        return step(self)

    monkeypatch.setattr(Distiller, "step", breaks)
    with pytest.raises(Broken):
        distilled(tmp_path / "late")
    monkeypatch.undo()
    late = mmdd.resume(tmp_path / "late", data=SOURCE).synthetic.state_dict()
    assert all(torch.equal(late[name], state[name]) for name in state)

    found = mmdd.load(tmp_path / "whole")
    assert all(torch.equal(found.synthetic.state_dict()[n], state[n]) for n in state)
    result = found.evaluate(
        data=SOURCE, encoders=["transformer", "textcnn"], learners=2, baselines=False
    )["results"]
    kinds = {name: rows["synthetic"]["labels"] for name, rows in result.items()}
    assert kinds == {"transformer": "attention", "textcnn": "soft"}
    assert export(tmp_path / "whole", "parquet", tmp_path / "made")
    table = datasets.load_dataset(str(tmp_path / "made"), split="train")
    assert {"label", "soft_label", "tokens", "nearest_text"} <= set(table.column_names)


@pytest.mark.parametrize(
    "more",
    [
        {"synthetic.labels.classes": "hard", "synthetic.labels.initialise": "noise"},
        {"objective": {"kind": "gradient"}, "source.kind": "fresh", "synthetic.step_size": None,
         "evaluate.lr": 0.01},
    ],
    ids=["noise", "gradient"],
)  # fmt: skip
def test_a_pretrained_encoder_reads_them(bert, more):
    options = {k: v for k, v in TINY.items() if k not in ("data.hidden", "learner.width")}
    if "objective" in more:
        options = {k: v for k, v in options.items() if not k.startswith(("objective", "source"))}
    options |= {"data.model": bert, "learner.encoder": "transformers", "learner.pooling": "cls"}
    options |= {"learner.tuning": "last", "learner.layers": 1, **more}

    def run(rate):
        return mmdd.distill(
            SOURCE, method="attention-labels", per_class=1, steps=2,
            options={**options, "optimise.labels.lr": rate}, device="cpu",
        ).synthetic.state_dict()["labels.attention"]  # fmt: skip

    moved, start = run(0.1), run(1e-12)
    assert torch.isfinite(moved).all()
    assert float((moved - start).abs().max()) > 0.01


def test_the_fall_back_is_said_once():
    told = []

    class Said(mmdd.progress.Progress):
        def say(self, text):
            told.append(text)

    made = distilled(steps=1)
    made.evaluate(encoders=["textcnn"], learners=2, progress=Said())
    assert len([text for text in told if "labels of attention" in text]) == 1


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"learner": {"encoder": "textcnn"}}, "TextCNN on items of shape"),
        ({"synthetic.labels.classes": "relation"}, "expected one of hard, soft"),
        ({"objective": {"kind": "distribution"}, "source": {"kind": "fresh"},
          "synthetic.step_size": None, "evaluate.lr": 0.1}, "reads no labels to learn them by"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path, more, what):
    kept = {k: v for k, v in TINY.items() if not k.startswith(tuple(more)) or k in more}
    with pytest.raises(UserError, match=what):
        mmdd.distill(
            SOURCE, method="attention-labels", per_class=1, steps=1, options={**kept, **more},
            device="cpu", out=tmp_path / "out",
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_a_task_without_classes_has_none():
    with pytest.raises(UserError, match="beside the classes of an item; got 'task regression'"):
        _require_labels(Regression(), "attention")


def test_vectors_have_no_positions(tmp_path):
    vectors = {
        split: (torch.randn(len(texts), 6, generator=seeded()).numpy(), codes)
        for split, (texts, codes) in SOURCE.items()
    }
    options = {"modality": "text", "data.space": "auto", "learner": {"encoder": "linear"}}
    with pytest.raises(UserError, match="Linear on items of shape"):
        mmdd.distill(
            vectors, method="attention-labels", per_class=1, options=options,
            device="cpu", out=tmp_path / "out",
        )  # fmt: skip
    assert not (tmp_path / "out").exists()
