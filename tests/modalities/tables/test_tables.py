"""The opening of labelled tables, with items that are single numbers: no pixels, no words."""

import dataclasses
from types import MappingProxyType

import datasets
import numpy as np
import pytest

from mmdd.errors import UserError
from mmdd.modalities.tables.columns import require_column, stored
from mmdd.modalities.tables.items import Reader
from mmdd.modalities.tables.labels import Labels
from mmdd.modalities.tables.options import TableData
from mmdd.modalities.tables.parts import make_parts
from mmdd.modalities.tables.sources import open_source
from mmdd.modalities.tables.words import Words

WORDS = Words(
    one="number", many="numbers", source="a name", folder="csv files", unlabelled="Add a column"
)


class Numbers(list):
    """Items of the toy modality."""


@dataclasses.dataclass(frozen=True)
class Column:
    name: str

    @property
    def names(self):
        return MappingProxyType({"number": self.name})

    def read(self, dataset, split, root):
        require_column(self.name, dataset.column_names, f"number column in split {split!r}")
        return Numbers(stored(dataset, self.name).to_pylist())


class ReadNumbers(Reader):
    words = WORDS
    field = "x"

    def known(self, name):
        return {"train": self.pair([1.0, 2.0], "ab")} if name == "two" else None

    def pair(self, values, labels):
        from mmdd.modalities.tables.in_memory import from_pair

        return from_pair(values, list(labels), self)

    def find(self, dataset):
        return Column("x")

    def of_values(self, values):
        return Numbers(values)

    def convert(self, item):
        return float(item)

    def collect(self, items):
        return Numbers(items)


def parts_of(source, **options):
    chosen = TableData(**options)
    opened = open_source(source, chosen, ReadNumbers())
    parts, names, notes = make_parts(opened, chosen, "number")
    items = {role: [part.items[row] for row in part.rows] for role, part in parts.items()}
    codes = {role: part.codes.tolist() for role, part in parts.items()}
    return opened, items, codes, names, notes


def table(values, labels, **more):
    return datasets.Dataset.from_dict({"x": values, "label": labels, **more})


def test_a_table_keeps_values_and_labels_together():
    values = [float(v) for v in range(40)]
    opened, items, codes, names, notes = parts_of(table(values, ["b", "a"] * 20))
    assert names == ("a", "b")
    assert opened.columns == {"number": "x", "label": "label"}
    assert {role: len(part) for role, part in items.items()} == {
        "train": 29, "test": 8, "validation": 3,
    }  # fmt: skip
    assert sorted(value for part in items.values() for value in part) == values
    for role, found in items.items():
        assert codes[role] == [1 - int(value) % 2 for value in found]
    assert len(notes) == 2


def test_unlabelled_rows_and_classes_without_training_items_go():
    train = table([0.0, 1.0, 2.0, 3.0, 4.0], ["a", "b", None, "a", "b"])
    test = table([5.0, 6.0, 7.0], ["b", "z", "a"])
    both = datasets.DatasetDict(train=train, test=test)
    _, items, codes, names, notes = parts_of(both, validation=0)
    assert items == {"train": [0.0, 1.0, 3.0, 4.0], "test": [5.0, 7.0]}
    assert codes["test"] == [1, 0]
    assert names == ("a", "b")
    assert notes == [
        "1 items of 'train' without label dropped",
        "1 items of 'test' dropped, as their classes do not occur in training (z)",
    ]
    declared = datasets.ClassLabel(names=["a", "never", "b"])
    cast = table([0.0, 1.0, 2.0], [0, 2, 0]).cast_column("label", declared)
    _, _, codes, names, notes = parts_of(cast, validation=0, test=0.0)
    assert (codes["train"], names) == ([0, 1, 0], ("a", "b"))
    assert notes == ["1 of 3 classes have no training number and are left out (never)"]


def test_strata_alone_may_be_a_single_one():
    source = ([1.0, 2.0, 3.0], ["all"] * 3)
    opened = open_source(source, TableData(), ReadNumbers())
    parts, names, _ = make_parts(opened, TableData(validation=0, test=0.0), fewest=1)
    assert names == ("all",)
    assert len(parts["train"]) == 3
    with pytest.raises(UserError, match="single class, 'all'"):
        make_parts(opened, TableData())


class Thirds:
    """Another kind of target: numbers, whose strata are thirds."""

    def find(self, dataset, given, taken, words):
        assert list(taken) == ["x"]
        return given or "y"

    def read(self, dataset, name):
        if name not in dataset.column_names:
            return None
        return self.of_values(stored(dataset, name).to_numpy(), WORDS)

    def of_values(self, values, words):
        values = np.asarray(values, float)
        codes = np.where(np.isnan(values), -1, np.clip(values * 3, 0, 2)).astype(int)
        return Valued(codes, ("low", "middle", "high"), values)


@dataclasses.dataclass(frozen=True)
class Valued(Labels):
    values: np.ndarray


def test_other_targets_bring_their_values():
    made = datasets.Dataset.from_dict({"x": [0.0, 1.0, 2.0, 3.0], "y": [0.1, np.nan, 0.9, 0.5]})
    chosen = TableData(validation=0, test=0.0)
    parts, names, _ = make_parts(open_source(made, chosen, ReadNumbers(), Thirds()), chosen)
    part = parts["train"]
    assert part.labels.values[part.rows].tolist() == [0.1, 0.9, 0.5]
    assert part.codes.tolist() == [0, 2, 1]
    assert names == ("low", "middle", "high")


def test_a_data_frame_is_a_table():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"x": [1.0, 2.0, 3.0], "label": ["a", "b", "a"]})[1:]
    opened, items, codes, *_ = parts_of(frame, validation=0, test=0.0)
    assert items == {"train": [2.0, 3.0]}
    assert codes == {"train": [1, 0]}
    assert opened.name == "DataFrame in memory"
    assert opened.columns == {"number": "x", "label": "label"}


def test_from_python_and_by_known_name():
    assert parts_of("two", validation=0, test=0.0)[1] == {"train": [1.0, 2.0]}
    samples = [{"x": 3, "y": "a"}, {"x": 4, "y": "b"}]
    assert parts_of(samples, label="y", validation=0, test=0.0)[1] == {"train": [3.0, 4.0]}
    assert parts_of(([1.0, 2.0], [0, 1]), validation=0, test=0.0)[2] == {"train": [0, 1]}


def test_messages_name_the_items(tmp_path):
    def refused(source, **options):
        with pytest.raises(UserError) as caught:
            parts_of(source, **options)
        return str(caught.value)

    assert "cannot be opened as numbers" in refused(3)
    assert "numbers and labels differ in number" in refused(([1.0], [0, 1]))
    assert "expected (number, label), got float" in refused([1.0, 2.0, 3.0])
    assert "labels are not one class per number" in refused(([1.0, 2.0], np.eye(2)))
    assert "Set data.source to a name" in refused(None)
    assert "Add a column" in refused(datasets.Dataset.from_dict({"x": [1.0, 2.0]}))
    (tmp_path / "t.csv").write_text("y,label\n1,a\n2,b\n")
    assert "unknown number column in split 'train' 'x'" in refused(str(tmp_path / "t.csv"))
    assert "csv files, or what save_to_disk wrote" in refused("owner/set")
