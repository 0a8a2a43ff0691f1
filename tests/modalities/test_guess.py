"""The modality of a set by its files and columns."""

import os
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from text_sets import labels, sentences, table

from mmdd.modalities.guess import modality_of, of_features

SHARED = Path(os.environ.get("MMDD_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
V = datasets.Value


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"text": V("string"), "label": V("int64")}, "text"),
        ({"said": V("string"), "intent": datasets.ClassLabel(names=["a"])}, "text"),
        ({"premise": V("string"), "hypothesis": V("string"), "label": V("int64")}, "text"),
        ({"embedding": datasets.List(V("float16"), length=8), "label": V("int64")}, "text"),
        ({"img": datasets.Image(), "text": V("string")}, "images"),
        ({"pixels": datasets.Array3D((3, 8, 8), "uint8"), "label": V("int64")}, "images"),
        ({"frame": datasets.List(datasets.List(V("uint8")))}, "images"),
        ({"audio": datasets.Audio(), "speaker": V("string")}, "audio"),
        ({"frames": datasets.Array4D((2, 4, 4, 1), "uint8"), "audio": datasets.Audio()}, "video"),
        ({"values": datasets.Array2D((20, 3), "float32"), "label": V("int64")}, "timeseries"),
        ({"age": V("int64"), "job": V("string"), "race": V("string"), "label": V("int64")}, None),
        ({"a": V("int64"), "label": V("string")}, None),
    ],
)
def test_columns(columns, expected):
    assert of_features(datasets.Features(columns)) == expected


def test_files_and_folders(tmp_path):
    made = table(sentences(20), labels(20))
    (tmp_path / "set").mkdir()
    made.to_parquet(tmp_path / "set" / "train-00000-of-00001.parquet")
    made.to_csv(tmp_path / "t.csv")
    made.to_json(tmp_path / "t.jsonl")
    made.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict(train=made).save_to_disk(tmp_path / "dict")
    for name in ("set", "t.csv", "t.jsonl", "saved", "dict"):
        assert modality_of(str(tmp_path / name)) == "text", name
    folder = tmp_path / "photos" / "train" / "cat"
    folder.mkdir(parents=True)
    Image.new("L", (4, 4)).save(folder / "0.png")
    assert modality_of(tmp_path / "photos") == "images"
    sound = {"bytes": b"RIFF", "path": "a.wav"}
    datasets.Dataset.from_dict({"sound": [sound]}).to_parquet(tmp_path / "s.parquet")
    assert modality_of(tmp_path / "s.parquet") == "audio"
    (tmp_path / "broken.parquet").write_bytes(b"no parquet")
    (tmp_path / "none").mkdir()
    for name in ("broken.parquet", "none", "missing"):
        assert modality_of(tmp_path / name) is None
    assert modality_of("owner/name") is None


def test_objects():
    texts = sentences(4)
    assert modality_of((texts, labels(4))) == "text"
    assert modality_of([(t, 0) for t in texts]) == "text"
    assert modality_of({"train": (texts, labels(4))}) == "text"
    assert modality_of([(("a", "b"), 0)]) == "text"
    assert modality_of(table(texts, labels(4))) == "text"
    for other in ((np.zeros((4, 8, 8)), labels(4)), [], None, 3, ([Image.new("L", (2, 2))], [0])):
        assert modality_of(other) is None


SETS = {
    "text/sst2": "text",
    "text/banking77_minilm": "text",
    "images/fashion_mnist": "images",
    "audio/fsdd": "audio",
    "video/grid_digit": "video",
    "timeseries/gunpoint": "timeseries",
    "tabular/adult": None,
}


@pytest.mark.parametrize("name", SETS)
def test_shared_sets(name):
    if not (SHARED / name).is_dir():
        pytest.skip(f"shared/data/{name} is absent")
    assert modality_of(SHARED / name) == SETS[name]
