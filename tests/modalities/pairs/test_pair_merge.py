"""Rows that repeat an image: one item with several captions, and when they stay apart."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch

from mmdd.errors import UserError
from mmdd.modalities.images.in_memory import from_values
from mmdd.modalities.pairs.data import open_pairs
from mmdd.modalities.pairs.fields import PairItems, Texts, Vectors
from mmdd.modalities.pairs.merge import keys_of, merged
from mmdd.modalities.pairs.options import PairData

from .conftest import pictures, vectors

SMALL = {"size": 16, "filters": 8, "image_width": 6, "text_width": 8}


def opened(source, **options):
    return open_pairs(source, PairData(**{**SMALL, **options}))


def in_lists(count, seed=0):
    """One row for each image, with the list of its captions."""
    images, captions = pictures(count, seed)
    kinds = {"photo": datasets.Image(), "caption": datasets.List(datasets.Value("string"))}
    columns = {"photo": images, "caption": captions}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))


def in_rows(count, seed=0, order=None, **columns):
    """One row for each caption of the same images; `columns` are given by image."""
    images, captions = pictures(count, seed)
    rows = [(n, place) for place in range(2) for n in range(count)]
    rows = rows if order is None else [rows[place] for place in order]
    found = {
        "photo": [images[n] for n, _ in rows],
        "caption": [captions[n][place] for n, place in rows],
        **{name: [values[n] for n, _ in rows] for name, values in columns.items()},
    }
    kinds = {"photo": datasets.Image(), "caption": datasets.Value("string")}
    for name, values in columns.items():
        kinds[name] = datasets.Value("string" if isinstance(values[0], str) else "int64")
    return datasets.Dataset.from_dict(found, features=datasets.Features(kinds))


def test_rows_of_one_image_are_the_item_with_the_list_of_its_captions():
    lists = datasets.DatasetDict(train=in_lists(30), validation=in_lists(8, 1), test=in_lists(9, 2))
    rows = datasets.DatasetDict(train=in_rows(30), validation=in_rows(8, 1), test=in_rows(9, 2))
    expected, found = opened(lists), opened(rows)
    assert found.info.fingerprint == expected.info.fingerprint
    for role in ("train", "validation", "test"):
        ours, theirs = getattr(found, role), getattr(expected, role)
        assert (len(ours), ours.pairs) == (len(theirs), 2 * len(theirs))
        assert torch.equal(ours.first.values, theirs.first.values)
        assert torch.equal(ours.second.values, theirs.second.values)
        assert torch.equal(ours.owner, theirs.owner)
        assert ours.words == theirs.words
    said = [note for note in found.info.notes if "merged" in note]
    assert said == [
        "rows with the same image are merged into one item with every text of theirs: train 60 to"
        " 30, validation 16 to 8, test 18 to 9 (data.merge=false keeps rows apart)"
    ]
    assert not any("merged" in note for note in expected.info.notes)
    assert "test gallery: 9 of image, 18 of text" in found.info.notes


def test_rows_kept_apart():
    rows = datasets.DatasetDict(train=in_rows(30), validation=in_rows(8, 1), test=in_rows(9, 2))
    splits = opened(rows, merge=False)
    assert (len(splits.train), splits.train.pairs) == (60, 60)
    assert splits.info.normalisation["gallery"]["test"] == [18, 18]
    assert not any("merged" in note for note in splits.info.notes)


def test_a_hold_out_takes_an_image_with_all_of_its_captions():
    splits = opened(in_rows(30), validation=0.2, test=0.2)
    parts = [splits.train, splits.validation, splits.test]
    assert sum(map(len, parts)) == 30
    for part in parts:
        assert part.pairs == 2 * len(part)
    # every image is in one part alone
    images = torch.cat([part.first.values for part in parts])
    assert torch.cdist(images, images).fill_diagonal_(1.0).min() > 1e-3


def test_a_column_tells_where_images_do_not():
    # the same place stored twice, as other bytes: only the column knows
    images, captions = pictures(20)
    number = [row // 2 for row in range(20)]
    kinds = {"photo": datasets.Image(), "caption": datasets.Value("string")}
    columns = {"photo": images, "caption": [texts[0] for texts in captions]}
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
    for values in (number, [f"{n}.jpg" for n in number]):
        named = table.add_column("file", values)
        splits = opened(named, group="file", text="caption", test=0, validation=0)
        assert (len(splits.train), splits.train.pairs) == (10, 20)
        assert any(
            "10 items by 'file' have rows whose image differs: the first one stands for all" in n
            for n in splits.info.notes
        )
        assert any("rows with one 'file' are merged" in n for n in splits.info.notes)
        assert len(opened(named, text="caption", test=0, validation=0).train) == 20
        first = opened(table.select(range(0, 20, 2)), test=0, validation=0)
        assert torch.allclose(splits.train.first.values, first.train.first.values, atol=1e-4)


def test_captions_keep_the_order_of_their_rows_and_items_that_of_their_first():
    items = PairItems(
        Vectors(np.eye(3, dtype=np.float32)[[2, 0, 2, 1, 0]], np.ones(5, np.int64)),
        Texts([["a"], ["b", "c"], None, ["d"], ["e"]]),
    )
    found, unlike = merged(items)
    assert isinstance(found.first, Vectors)
    assert isinstance(found.second, Texts)
    assert found.first.values.tolist() == np.eye(3)[[2, 0, 1]].tolist()
    assert found.second.values == [["a"], ["b", "c", "e"], ["d"]]
    assert unlike == 0
    several = Vectors(np.arange(12, dtype=np.float32).reshape(6, 2), np.array([1, 2, 1, 1, 1]))
    second = merged(PairItems(items.first, several))[0].second
    assert isinstance(second, Vectors)
    assert second.counts.tolist() == [2, 3, 1]
    assert second.values[:, 0].tolist() == [0, 6, 2, 4, 10, 8]


def test_rows_that_lack_what_tells_them_stay_apart():
    first = Texts([["x"], None, None, [""], ["x"]])
    found, _ = merged(PairItems(first, Texts([["a"], ["b"], ["c"], ["d"], ["e"]])))
    assert found.second.values == [["a", "e"], ["b"], ["c"], ["d"]]
    # by a column: the first row that has an image gives it, a missing key is nobody's
    first = Texts([None, ["x"], ["y"], ["z"]])
    texts = Texts([["a"], ["b"], ["c"], ["d"]])
    for nobody in (None, ""):
        found, unlike = merged(PairItems(first, texts, ["n", "n", nobody, nobody]))
        assert found.first.values == [["x"], ["y"], ["z"]]
        assert found.second.values == [["a", "b"], ["c"], ["d"]]
        assert unlike == 0
    found, unlike = merged(PairItems(Texts([None, None]), Texts([["a"], ["b"]]), [7, 7]))
    assert (found.first.values, found.second.values, unlike) == ([None], [["a", "b"]], 0)


def test_images_in_memory_and_vectors_are_told_by_their_values():
    images, captions = pictures(10)
    twice = (images * 2, [t[0] for t in captions] + [t[1] for t in captions])
    splits = opened(twice, test=0, validation=0)
    assert (len(splits.train), splits.train.pairs) == (10, 20)
    whole = opened((images, captions), test=0, validation=0)
    assert splits.info.fingerprint == whole.info.fingerprint
    first, second = vectors(12)
    splits = opened((torch.cat([first, first]), torch.cat([second, second + 1])), validation=0)
    assert len(splits.train) + len(splits.test) == 12
    # equal bytes of another shape are another image
    square = np.zeros((1, 4, 9), np.uint8)
    keys = list(keys_of(from_values([square[0], square[0].reshape(6, 6), square[0]])))
    assert keys[0] == keys[2] != keys[1]


def test_a_folder_whose_metadata_repeats_a_file(tmp_path):
    images, captions = pictures(8)
    rows = ["file_name,text"]
    for number, (image, texts) in enumerate(zip(images, captions, strict=True)):
        image.save(tmp_path / f"{number:02}.png")
        rows += [f"{number:02}.png,{text}" for text in texts]
    (tmp_path / "metadata.csv").write_text("\n".join(rows))
    splits = opened(str(tmp_path), test=0, validation=0)
    assert (len(splits.train), splits.train.pairs) == (8, 16)


def test_an_unreadable_image_is_named_by_its_row():
    table = in_rows(10).cast_column("photo", datasets.Image(decode=False))
    broken = [
        value if row % 10 != 3 else {"bytes": b"broken", "path": None}
        for row, value in enumerate(table["photo"])
    ]
    kinds = datasets.Features({"photo": datasets.Image(), "caption": datasets.Value("string")})
    made = datasets.Dataset.from_dict({"photo": broken, "caption": table["caption"][:]}, kinds)
    with pytest.raises(UserError, match=r"1 of 10 images cannot be read: train row 3: not an"):
        opened(made, test=0, validation=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group": "fil"}, "unknown column 'fil'.*Did you mean 'file'"),
        ({"group": "score"}, "column 'score' cannot tell which rows are one item.*float64"),
    ],
)
def test_columns_that_cannot_tell(options, message):
    table = in_rows(6, file=[f"{n}.jpg" for n in range(6)]).add_column("score", [0.5] * 12)
    with pytest.raises(UserError, match=message):
        opened(table, text="caption", **options)


def test_a_group_that_contradicts():
    with pytest.raises(UserError, match="names a column, and these data have none"):
        opened(vectors(8), group="id")
    for options in ({"merge": False, "group": "id"}, {"text": "a", "group": "a"}):
        with pytest.raises(ValueError, match=r"data\.group"):
            PairData(**options)
    train, test = in_rows(8, number=list(range(8))), in_rows(4, 1)
    with pytest.raises(UserError, match="unknown group column in split 'test' 'number'"):
        opened(datasets.DatasetDict(train=train, test=test), group="number")
