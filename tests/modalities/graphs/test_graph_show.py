"""Condensed graphs leave as columns, as PyG's objects, as arrays and as a picture."""

import warnings

import datasets
import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from mmdd import artifact
from mmdd.errors import UserError
from mmdd.modalities.graphs import export, layout, show
from mmdd.modality import DataInfo


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed))


def make_info(names=("cat", "dog", "猫"), features=3):
    return DataInfo(
        modality="graphs",
        task="classification",
        source="/somewhere/cora",
        shape=(features,),
        classes=len(names),
        names=tuple(names),
        fingerprint="0" * 64,
        normalisation={"level": "node"},
        columns={},
        sizes={"train": 100},
    )


NODES = {
    "x": noise(4, 3).requires_grad_(),
    # not symmetric: [i, j] is the edge from j to i
    "adjacency": torch.tensor(
        [[0.0, 0.5, 0.0, 1.0], [0.25, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.75, 0.0]]
    ),
}
GRAPHS = {
    "x": noise(2, 3, 3, seed=1),
    "adjacency": torch.tensor(
        [
            [[0.0, 1.0, 0.5], [1.0, 0.0, 0.0], [0.5, 0.0, 0.0]],
            [[0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0]],
        ]
    ),
    "mask": torch.tensor([[True, True, True], [True, False, True]]),
}


def as_set(columns, features):
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


# -- columns ---------------------------------------------------------------------------------------


def test_every_node_is_a_row_with_those_whose_edges_lead_to_it():
    made = as_set(*export.to_columns(NODES, torch.tensor([2, 0, 0, 1]), make_info()))
    assert made.column_names == ["x", "neighbours", "weights", "label"]
    assert torch.equal(torch.tensor(made["x"][:]), NODES["x"])
    assert made["neighbours"][:] == [[1, 3], [0], [], [2]]
    assert made["weights"][:] == [[0.5, 1.0], [0.25], [], [0.75]]
    assert made["label"][:] == [2, 0, 0, 1]
    assert made.features["label"].names == ["cat", "dog", "猫"]
    assert made.features["neighbours"] == datasets.List(datasets.Value("int32"))
    assert made.features["x"] == datasets.List(datasets.Value("float32"), length=3)


def test_nodes_that_stand_alone_have_no_columns_of_edges():
    soft = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]])
    made = as_set(*export.to_columns({"x": noise(2, 3)}, soft, make_info()))
    assert made.column_names == ["x", "label", "soft_label"]
    assert made["label"][:] == [1, 0]
    assert torch.equal(torch.tensor(made["soft_label"][:]), soft)


def test_every_graph_is_a_row_without_its_masked_nodes():
    made = as_set(*export.to_columns(GRAPHS, torch.tensor([1, 0]), make_info()))
    assert made.column_names == ["x", "edge_index", "weights", "label"]
    assert torch.equal(torch.tensor(made[0]["x"]), GRAPHS["x"][0])
    assert torch.equal(torch.tensor(made[1]["x"]), GRAPHS["x"][1][[0, 2]])
    assert made["edge_index"][:] == [[[1, 2, 0, 0], [0, 0, 1, 2]], [[1, 0], [0, 1]]]
    assert made["weights"][:] == [[1.0, 0.5, 1.0, 0.5], [1.0, 1.0]]
    assert made["label"][:] == [1, 0]


# -- PyG -------------------------------------------------------------------------------------------


def test_messages_along_the_edges_are_those_of_the_dense_adjacency():
    made = export.to_pyg(NODES, torch.tensor([2, 0, 0, 1]))
    assert made.validate()
    assert made.is_coalesced() is False  # sorted by target, as messages arrive
    x = NODES["x"].detach()
    source, target = made.edge_index
    sums = torch.zeros(4, 3).index_add(0, target, made.edge_weight[:, None] * x[source])
    torch.testing.assert_close(sums, NODES["adjacency"] @ x)
    assert made.y.tolist() == [2, 0, 0, 1]
    assert not made.x.requires_grad
    keys = target * 4 + source
    assert torch.equal(keys, keys.sort().values)


def test_graphs_become_a_list_and_nodes_without_edges_one_graph():
    soft = torch.tensor([[0.2, 0.8], [0.6, 0.4]])
    first, second = export.to_pyg(GRAPHS, soft)
    assert first.num_nodes == 3
    assert second.num_nodes == 2
    assert second.edge_index.tolist() == [[1, 0], [0, 1]]
    assert (first.y.tolist(), second.y.tolist()) == ([1], [0])
    assert torch.equal(second.y_soft, soft[1:])
    alone = export.to_pyg({"x": noise(5, 3)}, torch.arange(5))
    assert alone.num_edges == 0
    assert alone.edge_index.shape == (2, 0)
    assert alone.validate()


# -- arrays ----------------------------------------------------------------------------------------


def read(path):
    with np.load(path, allow_pickle=False) as opened:
        return {name: opened[name] for name in opened}


def test_arrays_of_graphs_are_their_union(tmp_path):
    path = tmp_path / "set.npz"
    export.write_npz(path, GRAPHS, torch.tensor([1, 0]))
    found = read(path)
    assert set(found) == {"x", "edge_index", "edge_weight", "y", "sizes"}
    assert found["sizes"].tolist() == [3, 2]
    assert found["edge_index"].tolist() == [[1, 2, 0, 0, 4, 3], [0, 0, 1, 2, 3, 4]]
    expected = torch.cat([GRAPHS["x"][0], GRAPHS["x"][1][[0, 2]]])
    assert np.array_equal(found["x"], expected.numpy())
    kinds = {name: str(array.dtype) for name, array in found.items()}
    assert kinds == {
        "x": "float32", "edge_index": "int64", "edge_weight": "float32", "y": "int64",
        "sizes": "int64",
    }  # fmt: skip
    assert [entry.name for entry in tmp_path.iterdir()] == ["set.npz"]


@pytest.mark.parametrize("kind", ["nodes", "alone", "graphs"])
@pytest.mark.parametrize("soft", [False, True])
def test_a_finished_set_is_exported_as_the_same_arrays(tmp_path, kind, soft):
    inputs = {"nodes": NODES, "alone": {"x": noise(4, 3)}, "graphs": GRAPHS}[kind]
    targets = torch.arange(len(inputs["x"])) % 3
    if soft:
        targets = torch.nn.functional.one_hot(targets, 3) * 0.7 + 0.1
    info = make_info()
    folder = tmp_path / "set"
    columns = export.to_columns(inputs, targets, info)
    artifact.save(
        folder, tensors={"a": torch.zeros(1)}, manifest={"info": info.as_dict()}, columns=columns
    )
    place = tmp_path / "out"
    place.mkdir()
    export.to_npz(artifact.load(folder), folder, place)
    found = read(place / "graph.npz")
    assert found.pop("names").tolist() == ["cat", "dog", "猫"]
    expected = export.to_arrays(inputs, targets)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert array.dtype == found[name].dtype
        assert np.array_equal(array, found[name])
    export.to_npz(artifact.load(folder), folder, tmp_path / "single.npz")
    assert read(tmp_path / "single.npz").keys() == {*expected, "names"}


def test_a_set_of_another_kind_is_not_exported(tmp_path):
    columns = ({"x": [[1.0]], "label": [0]}, {
        "x": datasets.List(datasets.Value("float32")), "label": datasets.ClassLabel(names=["a"]),
    })  # fmt: skip
    manifest = {"info": {"modality": "tables"}}
    artifact.save(tmp_path / "a", tensors={"a": torch.zeros(1)}, manifest=manifest, columns=columns)
    artifact.save(tmp_path / "b", tensors={"a": torch.zeros(1)}, manifest={"info": {}})
    for name in ("a", "b"):
        with pytest.raises(UserError, match="no nodes to export"):
            export.to_npz(artifact.load(tmp_path / name), tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -- layout ----------------------------------------------------------------------------------------


def test_a_path_is_drawn_as_a_line_with_even_steps():
    edges = np.array([[i, i + 1] for i in range(7)])
    places = layout.layout(8, edges)
    steps = np.linalg.norm(np.diff(places, axis=0), axis=1)
    assert np.allclose(steps, 1, atol=0.02)
    assert np.linalg.norm(places[0] - places[-1]) == pytest.approx(7, abs=0.05)


def test_stress_is_lower_than_where_it_starts_and_nodes_stand_apart():
    generator = np.random.default_rng(0)
    edges = np.array([[i, generator.integers(i)] for i in range(1, 30)] + [[3, 20], [5, 28]])
    places = layout.layout(30, edges)
    linked = np.zeros((30, 30))
    linked[edges[:, 0], edges[:, 1]] = linked[edges[:, 1], edges[:, 0]] = 1
    hops = np.where(linked > 0, 1, np.inf)
    np.fill_diagonal(hops, 0)
    for k in range(30):
        hops = np.minimum(hops, hops[:, k, None] + hops[None, k])
    upper = np.triu_indices(30, 1)

    def stress(points):
        found = np.linalg.norm(points[:, None] - points, axis=2)[upper]
        return ((found / hops[upper] - 1) ** 2).sum()

    centring = np.eye(30) - 1 / 30
    values, vectors = np.linalg.eigh(-centring @ hops**2 @ centring / 2)
    classical = vectors[:, -2:] * np.sqrt(values[-2:])
    assert stress(places) < 0.7 * stress(classical)
    apart = np.linalg.norm(places[:, None] - places, axis=2)[upper]
    assert apart.min() > 0.1
    assert np.array_equal(places, layout.layout(30, edges))


def test_parts_stand_in_boxes_of_their_own():
    edges = np.array([[0, 1], [1, 2], [2, 0], [3, 4], [5, 6]])
    places = layout.layout(12, edges)
    parts = [[0, 1, 2], [3, 4], [5, 6], *([node] for node in range(7, 12))]
    boxes = [(places[own].min(axis=0), places[own].max(axis=0)) for own in parts]
    for i, (low, high) in enumerate(boxes):
        for other_low, other_high in boxes[:i]:
            assert ((low > other_high + 0.5) | (other_low > high + 0.5)).any()
    assert layout.layout(1, np.zeros((0, 2), dtype=int)).tolist() == [[0.0, 0.0]]


# -- the picture -----------------------------------------------------------------------------------


def test_the_plane_is_that_of_the_largest_singular_values():
    x = noise(40, 6) * torch.tensor([5.0, 3.0, 1.0, 1.0, 0.5, 0.1])
    centre, plane, shares = show.principal_plane(x)
    spread = (x - x.mean(dim=0)).numpy()
    _, values, rows = np.linalg.svd(spread, full_matrices=False)
    assert np.allclose(centre, x.mean(dim=0))
    for own, row in zip(plane.numpy(), rows, strict=False):
        assert np.allclose(own, row * np.sign(row[np.abs(row).argmax()]), atol=1e-4)
    assert shares == pytest.approx((values**2 / (values**2).sum())[:2].tolist(), rel=1e-4)
    _, plane, shares = show.principal_plane(noise(5, 1))
    assert (plane.tolist(), shares) == ([[1.0], [0.0]], pytest.approx([1.0, 0.0]))


def test_strong_edges_are_drawn_and_of_many_the_strongest():
    weights = torch.zeros(4, 4)
    weights[0, 1], weights[2, 1], weights[3, 0], weights[1, 0] = 0.6, 0.9, 0.5, 0.7
    every = torch.arange(4)
    pairs, said = show._drawn_edges(weights, every)
    assert pairs.tolist() == [[1, 2], [0, 1]]
    assert said == ["2 edges of weight above 0.5"]
    pairs, said = show._drawn_edges(weights / 2, every)
    assert pairs.tolist() == [[1, 2], [0, 1], [0, 3]]
    assert said == ["0 edges of weight above 0.5", "the 3 strongest are drawn"]
    pairs, said = show._drawn_edges(weights, torch.tensor([1, 2]))
    assert pairs.tolist() == [[0, 1]]
    assert said == ["2 edges of weight above 0.5"]
    full = 0.6 + torch.rand(20, 20, generator=seeded()) / 3
    full = full.triu(1) + full.triu(1).T
    pairs, said = show._drawn_edges(full, torch.arange(20))
    assert len(pairs) == 60
    assert full[pairs[:, 0], pairs[:, 1]].min() >= full.triu(1).flatten().sort().values[-60]
    assert said == ["190 edges of weight above 0.5", "the 60 strongest are drawn"]
    pairs, said = show._drawn_edges(torch.zeros(3, 3), torch.arange(3))
    assert (len(pairs), said) == (0, ["0 edges of weight above 0.5"])


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Draws, and returns the figure, whose file is checked."""
    figures = []
    real_savefig = Figure.savefig

    def keep(self, *args, **kwargs):
        figures.append(self)
        return real_savefig(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)

    def draw(*args, **kwargs):
        path, before = tmp_path / "picture.png", dict(matplotlib.rcParams)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            show.picture(*args, path, **kwargs)
        assert dict(matplotlib.rcParams) == before
        assert [entry.name for entry in tmp_path.iterdir()] == ["picture.png"]
        with Image.open(path) as opened:
            assert opened.format == "PNG"
            assert opened.size == tuple(
                pytest.approx(110 * inches, abs=1) for inches in figures[-1].get_size_inches()
            )
        return figures[-1]

    return draw


def overlap(figure):
    """Pairs of texts, legends and panels that cover each other, and what leaves the page."""
    figure.set_dpi(110)
    canvas = FigureCanvasAgg(figure).get_renderer()
    texts = [text for text in figure.texts if text.get_text()]
    parts = [(t.get_text(), t.get_window_extent(canvas)) for t in [*texts]]
    parts += [("legend", own.get_window_extent(canvas)) for own in figure.legends]
    parts += [("panel", axes.get_tightbbox(canvas)) for axes in figure.axes if axes.axison]
    found = [
        (one, other)
        for place, (one, box) in enumerate(parts)
        for other, second in parts[:place]
        if box.overlaps(second)
    ]
    return found + [name for name, box in parts if not inside(box, figure.bbox)]


def inside(box, page):
    return box.x0 >= 0 and box.y0 >= 0 and box.x1 <= page.x1 and box.y1 <= page.y1


@pytest.mark.parametrize(
    "names", [("a", "b", "c"), ("$x_1$", "_under", "猫" * 40)], ids=["plain", "odd"]
)
@pytest.mark.parametrize("edges", [False, True])
@pytest.mark.parametrize("real", [False, True])
def test_nodes_are_drawn_without_overlap(drawn, names, edges, real):
    x, labels = noise(30, 5), torch.arange(30) % 3
    inputs = {"x": x.requires_grad_()}
    if edges:
        inputs["adjacency"] = torch.rand(30, 30, generator=seeded())
    behind = (noise(200, 5, seed=4), torch.arange(200) % 3) if real else None
    figure = drawn(inputs, labels, make_info(names, 5), real=behind)
    assert overlap(figure) == []
    assert len(figure.axes) == 1 + edges
    points = figure.axes[-1].collections
    assert [len(own.get_offsets()) for own in points] == ([200] if real else []) + [30]
    entries = [text.get_text().strip("\u200b") for text in figure.legends[0].get_texts()]
    assert len(entries) == 3 + 2 * real
    assert entries[0] == names[0]
    colours = {tuple(row) for row in points[-1].get_facecolors()}
    assert colours == {tuple(row) for row in show.palette(3)}


def test_large_sets_are_thinned_and_it_is_said(drawn):
    names = [f"class number {number} of a long list" for number in range(25)]
    inputs = {
        "x": noise(520, 4),
        "adjacency": (torch.rand(520, 520, generator=seeded()) < 0.002).float(),
    }
    figure = drawn(inputs, torch.arange(520) % 25, make_info(names, 4))
    assert overlap(figure) == []
    said = " ".join(text.get_text() for text in figure.texts)
    assert "520 nodes of 4 features; 25 classes, 20 to 21 per class" in said
    assert "Shown: 500 of the nodes" in said
    assert figure.legends[0].get_texts()[-1].get_text() == "and 5 more"
    assert len(figure.axes[0].collections[-1].get_offsets()) == 500


@pytest.mark.parametrize(
    "inputs", [{"x": noise(1, 3)}, {"x": torch.zeros(4, 1)}], ids=["one", "alike"]
)
def test_sets_without_variance_are_drawn(drawn, inputs):
    for more in ({}, {"adjacency": torch.zeros(len(inputs["x"]), len(inputs["x"]))}):
        labels = torch.zeros(len(inputs["x"]), dtype=torch.int64)
        assert overlap(drawn({**inputs, **more}, labels, make_info())) == []


def test_whole_graphs_stand_in_the_row_of_their_class(drawn):
    count = 25
    mask = torch.arange(9)[None] < (torch.arange(count) % 8 + 2)[:, None]
    edges = (torch.rand(count, 9, 9, generator=seeded()) < 0.3).float()
    inputs = {"x": noise(count, 9, 3), "adjacency": edges, "mask": mask}
    labels = (torch.arange(count) > 2).long() * 2  # none of class 1
    figure = drawn(inputs, labels, make_info(("a" * 60, "none", "$c$")))
    assert overlap(figure) == []
    assert len(figure.axes) == 3 + 10
    counts = [len(axes.collections[-1].get_offsets()) for axes in figure.axes]
    assert counts == mask.sum(dim=1).tolist()[:13]
    rows = {round(axes.get_position().y0, 3) for axes in figure.axes}
    assert len(rows) == 2
    said = [text.get_text() for text in figure.texts]
    assert any("25 graphs of 2 to 9 nodes; 2 classes, 3 to 22 per class" in text for text in said)
    assert any("the first 10 graphs of each class" in text for text in said)
    assert "$c$\n22 graphs" in said
