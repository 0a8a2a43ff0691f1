"""Options of the graph encoders: defaults, what tells nets apart, and mistakes."""

from __future__ import annotations

import itertools

import pytest
import torch

from mmdd.errors import UserError
from mmdd.modalities.graphs.encoder_options import ENCODERS as OPTIONS
from mmdd.modalities.graphs.encoders import ENCODERS

FEATURES, CLASSES = 5, 3
levels = pytest.mark.parametrize("level", ["node", "graph"])


@levels
def test_options_build_the_encoders(level):
    assert list(OPTIONS) == list(ENCODERS)
    for name, model in OPTIONS.items():
        chosen = model(encoder=name).model_dump()
        assert chosen.pop("encoder") == name
        # what a recipe leaves out is what Python leaves out
        torch.manual_seed(0)
        mine = ENCODERS[name](FEATURES, CLASSES, level)
        torch.manual_seed(0)
        theirs = ENCODERS[name](FEATURES, CLASSES, level, **chosen)
        assert repr(mine) == repr(theirs)
        assert all(map(torch.equal, mine.state_dict().values(), theirs.state_dict().values()))


def test_repr_tells_encoders_apart():
    # experts are kept by it
    made = [
        *((name, "node", {}) for name in ENCODERS),
        *((name, "graph", {}) for name in ENCODERS),
        *(("gcn", "node", {key: value}) for key, value in (("width", 8), ("layers", 3))),
        *(("gcn", "graph", {key: value}) for key, value in (("pool", "max"), ("dropout", 0.1))),
        *(("appnp", "node", {key: value}) for key, value in (("hops", 3), ("alpha", 0.2))),
        ("sgc", "node", {"hops": 3}),
        ("gat", "node", {"heads": 4}),
        ("cheby", "node", {"order": 3}),
        ("gin", "node", {"eps": 0.1}),
    ]
    nets = [ENCODERS[name](FEATURES, CLASSES, level, **options) for name, level, options in made]
    assert all(repr(a) != repr(b) for a, b in itertools.combinations(nets, 2))


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("gcn", {"width": 0}, "width is too small; got 0"),
        ("gcn", {"layers": 0}, "layers is too small"),
        ("gcn", {"dropout": 1.0}, "dropout is out of range"),
        ("gcn", {"pool": "meen"}, "Did you mean 'mean'"),
        ("gat", {"width": 10, "heads": 4}, "a multiple of heads, 4"),
        ("appnp", {"alpha": 1.5}, "alpha is out of range"),
        ("sgc", {"hops": 0}, "hops is too small"),
        ("cheby", {"order": 0}, "order is too small"),
    ],
)
def test_bad_options(name, options, expected):
    with pytest.raises(UserError, match=expected):
        ENCODERS[name](FEATURES, CLASSES, "graph", **options)
    with pytest.raises(ValueError):
        OPTIONS[name](encoder=name, **options)


def test_an_unknown_level():
    with pytest.raises(UserError, match="Did you mean 'node'"):
        ENCODERS["gcn"](FEATURES, CLASSES, "nodes")
