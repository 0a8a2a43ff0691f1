"""Text encoders: masks, second derivatives, stacking, and encoders of transformers."""

import copy

import pytest
import torch
from text_sets import KEEP_ALL, labels, opened, save_bert, sentences
from torch.func import functional_call
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from mmdd.batch import Batch
from mmdd.errors import UserError
from mmdd.learner import Learner
from mmdd.modalities.text import nets
from mmdd.modalities.text.encoders import build
from mmdd.modalities.text.modality import TEXT
from mmdd.modalities.text.options import ENCODERS
from mmdd.modalities.text.pretrained import Pretrained
from mmdd.tasks.classification import Classification

LENGTH, HIDDEN, CLASSES = 7, 16, 3
SCRATCH = {
    "textcnn": lambda: nets.TextCNN((LENGTH, HIDDEN), CLASSES, width=5),
    "gru": lambda: nets.GRU((LENGTH, HIDDEN), CLASSES, width=4),
    "transformer": lambda: nets.Transformer((LENGTH, HIDDEN), CLASSES, width=8, heads=2),
    "mlp": lambda: nets.MLP((LENGTH, HIDDEN), CLASSES, width=6, depth=2),
    "linear": lambda: nets.Linear((LENGTH, HIDDEN), CLASSES),
}


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return save_bert(tmp_path_factory.mktemp("bert"), hidden=HIDDEN)


def pretrained(folder, **options):
    return Pretrained((LENGTH, HIDDEN), CLASSES, model=folder, scale=0.5, **options)


@pytest.fixture(params=[*SCRATCH, "all", "head", "last", "fresh"])
def net(request, bert):
    torch.manual_seed(0)
    if request.param in SCRATCH:
        return SCRATCH[request.param]()
    if request.param == "fresh":
        return pretrained(bert, fresh=True)
    return pretrained(bert, tuning=request.param, last=1)


def items(count=4, dtype=torch.float32, seed=0):
    values = torch.randn(
        count, LENGTH, HIDDEN, generator=torch.Generator().manual_seed(seed), dtype=dtype
    )
    lengths = torch.tensor([LENGTH, 4, 1, 2, 5][:count])
    return {"values": values, "mask": torch.arange(LENGTH) < lengths[:, None]}


def test_what_every_encoder_offers(net):
    inputs = items()
    layers = net.layers(inputs)
    assert torch.equal(layers[-1], net.features(inputs))
    assert net(inputs).shape == (4, CLASSES)
    torch.testing.assert_close(net(inputs), net.classifier(layers[-1]))
    assert all(layer.shape[0] == 4 and layer.ndim == 2 for layer in layers)


def test_masked_positions_change_nothing_and_get_no_gradient(net):
    inputs = items()
    hidden = ~inputs["mask"].unsqueeze(-1)
    other = {**inputs, "values": inputs["values"] + 100 * hidden}
    assert torch.equal(net(inputs), net(other))
    values = other["values"].requires_grad_()
    net({**other, "values": values}).square().sum().backward()
    assert torch.equal(
        values.grad[hidden.expand_as(values)], torch.zeros(int(hidden.sum()) * HIDDEN)
    )
    assert values.grad[inputs["mask"]].abs().sum() > 0


def test_padding_changes_nothing(net):
    inputs = {key: value[1:] for key, value in items().items()}  # at most 4 tokens
    short = {key: value[:, :4] for key, value in inputs.items()}
    torch.testing.assert_close(net(inputs), net(short), rtol=1e-5, atol=1e-6)


def test_padding_is_not_computed(net):
    short = {key: value[1:, :4] for key, value in items().items()}
    long = {
        "values": functional.pad(short["values"], (0, 0, 0, LENGTH - 4)),
        "mask": functional.pad(short["mask"], (0, LENGTH - 4)),
    }

    def work(inputs):
        with FlopCounterMode(display=False) as counter:
            net(inputs)
        return counter.get_total_flops()

    assert work(long) == work(short) > 0


def test_gradients_of_gradients(net):
    """Second derivatives against finite differences of first ones, in float64."""
    net = copy.deepcopy(net).double()
    inputs = items(dtype=torch.float64)
    truth = torch.tensor([0, 1, 2, 0])
    params = dict(net.named_parameters())
    names = list(params)

    def matching(values):
        logits = functional_call(net, params, ({**inputs, "values": values},))
        loss = functional.cross_entropy(logits, truth)
        found = torch.autograd.grad(loss, [params[name] for name in names], create_graph=True)
        return sum((g * torch.arange(1.0, g.numel() + 1).view_as(g).sin()).sum() for g in found)

    values = inputs["values"].clone().requires_grad_()
    (exact,) = torch.autograd.grad(matching(values), values)
    direction = torch.randn(values.shape, dtype=torch.float64, generator=torch.Generator())
    step = 1e-6
    slope = (matching(values + step * direction) - matching(values - step * direction)) / (2 * step)
    torch.testing.assert_close((exact * direction).sum(), slope.detach(), rtol=1e-5, atol=1e-7)
    assert torch.equal(exact[~inputs["mask"]], torch.zeros_like(exact[~inputs["mask"]]))


def test_stacked_learners_are_the_single_ones(net):
    learner = Learner(net, Classification())
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    draws = [learner.init(one) for one in generators]
    stacked = {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}
    inputs = {key: torch.stack([value, value.flip(0)]) for key, value in items().items()}
    both = learner.stacked_outputs(stacked, inputs)
    for place, draw in enumerate(draws):
        one = {key: value[place] for key, value in inputs.items()}
        batch = Batch(one, None, torch.zeros(4, dtype=torch.int64))
        torch.testing.assert_close(both[place], learner.outputs(draw, batch), rtol=1e-4, atol=1e-5)


def test_draws_are_by_the_generator_alone(net):
    learner = Learner(net, Classification())
    first = learner.init(torch.Generator().manual_seed(3))
    torch.rand(5)
    again = learner.init(torch.Generator().manual_seed(3))
    other = learner.init(torch.Generator().manual_seed(4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_every_trained_weight_is_used(net):
    learner = Learner(net, Classification())
    params = learner.init(torch.Generator().manual_seed(3))
    batch = Batch(items(), torch.tensor([0, 1, 2, 0]), torch.tensor([0, 1, 2, 0]))
    leaves = {name: leaf.requires_grad_() for name, leaf in learner.trainable(params).items()}
    gradients = torch.autograd.grad(learner.loss({**params, **leaves}, batch), [*leaves.values()])
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_float64_is_float64_throughout(net):
    params = Learner(net, Classification()).init(torch.Generator().manual_seed(0))
    batch = Batch(items(dtype=torch.float64), None, torch.zeros(4, dtype=torch.int64))
    wide = Learner(net, Classification(), precision="float64").outputs(params, batch)
    double = copy.deepcopy(net).double()
    expected = Learner(double, Classification(), precision="float64").outputs(
        {name: value.double() for name, value in params.items()}, batch
    )
    torch.testing.assert_close(wide, expected, rtol=1e-12, atol=1e-12)


def test_bfloat16(net):
    learner = Learner(net, Classification(), precision="bfloat16")
    params = learner.init(torch.Generator().manual_seed(0))
    batch = Batch(items(), None, torch.zeros(4, dtype=torch.int64))
    rough = learner.outputs(params, batch)
    exact = Learner(net, Classification()).outputs(params, batch)
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().max() < 0.1 * exact.abs().max() + 0.1


def test_gru_is_the_gru_of_torch():
    net = nets.GRU((LENGTH, HIDDEN), CLASSES, width=4)
    theirs = torch.nn.GRU(HIDDEN, 4, batch_first=True, bidirectional=True)
    for way, suffix in enumerate(("", "_reverse")):
        for name, values in net.ways[way].named_parameters():
            getattr(theirs, f"{name}_l0{suffix}").data = values.data
    inputs = items()
    lengths = inputs["mask"].sum(dim=1)
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        inputs["values"], lengths, batch_first=True, enforce_sorted=False
    )
    states, _ = torch.nn.utils.rnn.pad_packed_sequence(theirs(packed)[0], batch_first=True)
    torch.testing.assert_close(net.features(inputs), states.sum(dim=1) / lengths[:, None])


def test_textcnn_by_hand():
    net = nets.TextCNN((LENGTH, HIDDEN), CLASSES, width=2, kernels=[3])
    inputs = items()
    kernel, bias = net.blocks[0].weight, net.blocks[0].bias
    for row, length in enumerate((7, 4, 1, 2)):
        text = torch.zeros(length + 2, HIDDEN)
        text[1:-1] = inputs["values"][row, :length]
        windows = [text[at : at + 3].T for at in range(length)]
        found = torch.stack([(kernel * window).sum(dim=(1, 2)) + bias for window in windows])
        expected = found.relu().amax(dim=0)
        torch.testing.assert_close(net.features(inputs)[row], expected, rtol=1e-5, atol=1e-6)


def test_pretrained_is_the_model_itself(bert):
    from transformers import AutoModel

    theirs = AutoModel.from_pretrained(bert).eval()
    net, inputs = pretrained(bert), items()
    net.reset_parameters()
    shown = inputs["values"] * inputs["mask"].unsqueeze(-1)
    states = theirs(inputs_embeds=shown * 0.5, attention_mask=inputs["mask"].long())
    hidden, mask = states.last_hidden_state, inputs["mask"].unsqueeze(-1)
    expected = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
    torch.testing.assert_close(net.features(inputs), expected, rtol=1e-4, atol=1e-5)
    first = pretrained(bert, pooling="cls").features(inputs)
    torch.testing.assert_close(first, hidden[:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "distilbert", "roberta", "albert"])
def test_other_kinds(kind, tmp_path):
    from transformers import AutoConfig, AutoModel

    sizes = {
        "gpt2": {"n_embd": HIDDEN, "n_layer": 2, "n_head": 2, "n_positions": 16},
        "distilbert": {"dim": HIDDEN, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
    }
    usual = {"hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 32, "embedding_size": HIDDEN}  # fmt: skip
    config = AutoConfig.for_model(kind, vocab_size=20, **sizes.get(kind, usual))
    theirs = AutoModel.from_config(config, attn_implementation="eager").eval()
    theirs.save_pretrained(tmp_path)
    net = pretrained(str(tmp_path))
    inputs = items()
    shown = inputs["values"] * inputs["mask"].unsqueeze(-1) * 0.5
    hidden = theirs(inputs_embeds=shown, attention_mask=inputs["mask"].long()).last_hidden_state
    mask = inputs["mask"].unsqueeze(-1)
    expected = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
    torch.testing.assert_close(net.features(inputs), expected, rtol=1e-4, atol=1e-5)
    values = inputs["values"].requires_grad_()
    loss = net({**inputs, "values": values}).square().sum()
    found = torch.autograd.grad(loss, [*net.parameters()], create_graph=True)
    (second,) = torch.autograd.grad(sum(g.square().sum() for g in found), values)
    assert torch.isfinite(second).all()
    assert second[~inputs["mask"]].abs().max() == 0


def test_what_is_tuned(bert):
    names = {
        how: [n.replace("/", ".") for n in pretrained(bert, tuning=how, last=1).tuned]
        for how in ("all", "head", "last")
    }
    assert names["head"] == []
    assert all(name.startswith("encoder.layer.1.") for name in names["last"])
    # a query-key product does not change by a shift of all keys: biases of keys stay without use
    assert {"encoder.layer.0.output.dense.weight", *names["last"]} <= set(names["all"])
    # fed with embeddings, the table of words is never looked at; mean pooling needs no pooler
    assert not any("word_embeddings" in name or "pooler" in name for name in names["all"])
    net = pretrained(bert, tuning="head")
    assert [name for name, _ in net.named_parameters()] == ["classifier.weight", "classifier.bias"]
    assert [*net.buffers()] == []


def test_low_rank_updates(bert):
    pytest.importorskip("peft", reason="the optional package peft is not installed")
    net = pretrained(bert, tuning="lora", rank=2)
    names = [name for name, _ in net.named_parameters() if not name.startswith("classifier")]
    assert names
    assert all("/lora_A/" in name or "/lora_B/" in name for name in names)
    learner = Learner(net, Classification())
    first, other = (learner.init(torch.Generator().manual_seed(seed)) for seed in (1, 2))
    downs = [name for name in names if "/lora_A/" in name]
    assert all(not torch.equal(first[name], other[name]) for name in downs)
    assert all(first[name].abs().sum() == 0 for name in set(names) - set(downs))
    batch = Batch(items(), torch.tensor([0, 1, 2, 0]), torch.tensor([0, 1, 2, 0]))
    plain = pretrained(bert)
    plain.reset_parameters()
    # updates begin at zero: the features are those of the pretrained encoder
    expected = plain.features(batch.inputs)
    torch.testing.assert_close(learner.features(first, batch), expected, rtol=1e-4, atol=1e-5)
    leaves = {name: leaf.requires_grad_() for name, leaf in learner.trainable(first).items()}
    found = torch.autograd.grad(learner.loss({**first, **leaves}, batch), [*leaves.values()])
    ups = [g for name, g in zip(leaves, found, strict=True) if "/lora_B/" in name]
    assert any(gradient.abs().sum() > 0 for gradient in ups)


def test_a_learner_starts_from_the_pretrained_weights_or_from_none(bert):
    def body(net, seed):
        params = Learner(net, Classification()).init(torch.Generator().manual_seed(seed))
        return params["tuned.encoder/layer/0/output/dense/weight"]

    kept = pretrained(bert)
    assert torch.equal(body(kept, 1), body(kept, 2))
    drawn = pretrained(bert, fresh=True)
    assert not torch.equal(body(drawn, 1), body(drawn, 2))
    assert abs(body(drawn, 1).std() - 0.3) < 0.05  # the configuration's initializer_range
    # recorded experts are kept under what a net says of itself
    assert repr(kept) == repr(pretrained(bert))
    assert repr(drawn) == repr(pretrained(bert, fresh=True))
    assert repr(kept) != repr(pretrained(bert, pooling="cls"))


def test_a_double_encoder_leaves_the_float_one_alone(bert):
    net = pretrained(bert, tuning="last", last=1)
    wide = copy.deepcopy(net).double()
    assert next(wide._body[0].parameters()).dtype == torch.float64
    assert next(net._body[0].parameters()).dtype == torch.float32


def test_refusals(bert, tmp_path):
    def refused(make, *parts):
        with pytest.raises(UserError) as caught:
            make()
        line = str(caught.value)
        assert "\n" not in line
        for part in parts:
            assert part in line, line

    refused(lambda: Pretrained((7, 12), 2, model=bert), "does not read these", "got '12", "16")
    refused(lambda: Pretrained((30, 16), 2, model=bert), "reads shorter texts", "at most 24")
    refused(
        lambda: pretrained(bert, tuning="last", last=3), "more than the encoder has", "at most 2"
    )
    refused(lambda: pretrained(str(tmp_path / "no")), "no such folder")
    refused(lambda: pretrained("nobody/none"), "cannot be loaded", "HF_HUB_OFFLINE")
    refused(lambda: nets.GRU((5,), 2), "'gru' reads tokens", "data.space=tokens")
    try:
        import peft  # noqa: F401
    except ImportError:
        refused(lambda: pretrained(bert, tuning="lora"), "needs the package peft", "mmdd[peft]")


def test_encoders_by_name(bert, tmp_path):
    texts = (sentences(40), labels(40))
    scratch = opened(texts, hidden=8, **KEEP_ALL).info
    own = opened(texts, space="tokens", model=bert, **KEEP_ALL).info
    vectors = opened((torch.randn(40, 5), labels(40)), **KEEP_ALL).info

    def made(name, info, **options):
        return build(ENCODERS[name](encoder=name, **options), info)

    assert type(made("auto", scratch)).__name__ == "TextCNN"
    assert type(made("auto", vectors)).__name__ == "MLP"
    assert made("transformers", own, tuning="head").scale == own.normalisation["scale"]
    for info in (scratch, own, vectors):
        encoder = made("linear", info)
        assert encoder(TEXT.example(info)).shape == (1, 2)
    with pytest.raises(UserError, match=r"needs a model.*data\.model"):
        made("transformers", scratch)
    with pytest.raises(UserError, match=r"knows other token embeddings.*learner\.fresh=true"):
        made("transformers", scratch, model=bert)
    small = save_bert(tmp_path / "small", hidden=8)
    assert made("transformers", scratch, model=small, fresh=True).fresh
    other = save_bert(tmp_path / "other", hidden=16, seed=1)
    with pytest.raises(UserError, match="has other token embeddings than the data's"):
        made("transformers", own, model=other)
    with pytest.raises(UserError, match="'transformers' reads tokens"):
        made("transformers", vectors, model=bert)
