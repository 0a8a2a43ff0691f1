"""From Python: any source in, an ordinary data set out."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

import mmdd
from mmdd import artifact, files
from mmdd.errors import UserError

QUICK = {
    "learner.width": 8,
    "real.per_group": 8,
    "run.threads": 1,
    "optimise.steps": 2,
    "evaluate.protocol": "quick",
    "evaluate.epochs": 2,
    "evaluate.learners": 2,
    "evaluate.full": False,
}
NAMES = ["cat", "dog", "owl"]


def coloured(count, seed=0):
    """Pictures whose class is their strongest channel."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    pixels = rng.integers(0, 120, (count, 12, 12, 3), dtype=np.uint8)
    pixels[np.arange(count), :, :, labels] += 100
    return pixels, labels


def hugging_face(count, seed=0):
    pixels, labels = coloured(count, seed)
    features = datasets.Features(
        {"img": datasets.Image(), "kind": datasets.ClassLabel(names=NAMES)}
    )
    columns = {"img": [Image.fromarray(p) for p in pixels], "kind": labels.tolist()}
    return datasets.Dataset.from_dict(columns, features=features)


SOURCES = {
    "DatasetDict": lambda: datasets.DatasetDict(
        {"train": hugging_face(60), "test": hugging_face(30, seed=1)}
    ),
    "Dataset": lambda: hugging_face(60),
    "torch": lambda: TensorDataset(
        torch.from_numpy(coloured(60)[0]).permute(0, 3, 1, 2) / 255,
        torch.from_numpy(coloured(60)[1]),
    ),
    "pair": lambda: (torch.from_numpy(coloured(60)[0]), torch.from_numpy(coloured(60)[1])),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_python_source_is_distilled_scored_saved_and_handed_back(kind, tmp_path):
    data = SOURCES[kind]()
    done = mmdd.distill(data, per_class=2, options=QUICK)
    report = done.evaluate()
    rows = report["results"]["convnet"]
    assert {"synthetic", "random", "herding"} == set(rows)
    assert all(len(row["values"]) == 2 for row in rows.values())
    done.save(tmp_path / "set")

    back = mmdd.load(tmp_path / "set")
    assert torch.equal(back.to_torch().inputs, done.to_torch().inputs)
    assert back.results == report | {"results": back.results["results"]}
    with pytest.raises(UserError, match="no data named"):
        back.evaluate()
    again = back.evaluate(data=data)["results"]["convnet"]["synthetic"]
    assert list(again["values"]) == list(rows["synthetic"]["values"])

    table = back.to_dataset()["train"]
    assert table.features["image"] == datasets.Image()
    assert table["label"] == [0, 0, 1, 1, 2, 2]
    if kind.startswith("Dataset"):
        assert table.features["label"].names == NAMES
    read = datasets.load_dataset(str(tmp_path / "set"), split="train")
    assert np.array_equal(np.asarray(read[3]["image"]), np.asarray(table[3]["image"]))


def test_a_torch_loader_reads_the_exact_tensors():
    done = mmdd.distill(SOURCES["pair"](), per_class=2, options=QUICK)
    inputs, targets = next(iter(DataLoader(done.to_torch(), batch_size=6)))
    assert inputs.shape == (6, 3, 12, 12)
    assert torch.equal(inputs, done.synthetic.batch().inputs.detach())
    assert targets.tolist() == [0, 0, 1, 1, 2, 2]
    item, target = done.to_torch()[-1]
    assert item.shape == (3, 12, 12)
    assert target == 2
    with pytest.raises(IndexError):
        done.to_torch()[6]


def test_eight_bit_export_differs_by_rounding_alone():
    done = mmdd.distill(
        SOURCES["pair"](), per_class=1, options=QUICK | {"optimise.inputs.lr": 50.0}
    )
    mean = torch.tensor(done.info.normalisation["mean"]).view(3, 1, 1)
    std = torch.tensor(done.info.normalisation["std"]).view(3, 1, 1)
    exact = done.to_torch().inputs * std + mean
    images = np.stack([np.asarray(image) for image in done.to_dataset()["train"]["image"]])
    stored = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    # nothing is clipped away: the set was kept inside the range of real pixels
    assert (stored - exact).abs().max() <= 0.5 / 255 + 1e-6


def test_what_is_stored_in_fewer_numbers_is_exported_decoded(tmp_path):
    options = {"synthetic.representation": {"kind": "packed", "factor": 2}, "learner.width": 8}
    options["synthetic.labels"] = {"kind": "soft", "initialise": "classes"}
    options["objective.kind"] = "gradient"
    done = mmdd.distill("digits", per_class=2, steps=1, options=options)
    done.save(tmp_path / "set")
    assert artifact.export(tmp_path / "set", "safetensors", tmp_path / "set.safetensors")
    found, _ = files.load_tensors(tmp_path / "set.safetensors")
    expected = done.to_torch()
    assert len(found["inputs"]) == 4 * 20
    assert torch.equal(found["inputs"], expected.inputs)
    assert torch.equal(found["targets"], expected.targets)


def test_a_set_is_scored_under_other_options_than_its_own():
    done = mmdd.distill("digits", per_class=1, options=QUICK)
    own = done.evaluate(baselines=False)
    other = done.evaluate(
        baselines=False, options={"evaluate.protocol": "idc", "evaluate.encoders": ["mlp"]}
    )
    assert other["protocol"]["name"] == "idc"
    assert other["protocol"]["epochs"] == 2
    assert set(other["results"]) == {"convnet", "mlp"}
    assert done.results == own
    assert done.recipe.evaluate.protocol.name == "quick"
    assert done.evaluate(baselines=False)["results"] == own["results"]
    with pytest.raises(UserError, match="scored otherwise, not made otherwise"):
        done.evaluate(options={"optimise.steps": 3})


def test_same_seed_same_bits_and_another_seed_another_set():
    data = SOURCES["pair"]()
    first, again, other = (
        mmdd.distill(data, per_class=1, seed=seed, options=QUICK).to_torch().inputs
        for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_budgets():
    data = SOURCES["pair"]()
    assert len(mmdd.distill(data, items=7, options=QUICK).synthetic) == 7
    assert len(mmdd.distill(data, fraction=0.1, options=QUICK).synthetic) == 4
    for budget, words in (
        ({"per_class": 30}, "class '0' has fewer training items"),
        ({"items": 2}, "fewer synthetic items than classes"),
        ({"items": 10_000}, "not be smaller"),
    ):
        with pytest.raises(UserError, match=words):
            mmdd.distill(data, options=QUICK, **budget)


def test_many_groups_are_compared_some_at_a_time():
    pixels = torch.randint(0, 255, (600, 1, 8, 8), dtype=torch.uint8)
    labels = torch.arange(600) % 150
    options = QUICK | {"data.validation": 0, "real.pass_items": 32, "learner.norm": "instance"}
    few = mmdd.distill((pixels, labels), per_class=1, options=options).to_torch().inputs
    whole = mmdd.distill(
        (pixels, labels), per_class=1, options=options | {"real.pass_items": 10_000}
    ).to_torch()
    assert len(whole) == 150
    # the same draws and gradients up to rounding; the real items of a step differ by nothing
    assert torch.allclose(few, whole.inputs, atol=1e-4)


def test_plain_datasets_tells_two_sets_of_one_folder_name_apart(tmp_path):
    """``load_dataset`` caches a local folder under its name and card: the card must differ."""
    read = []
    for place, seed in (("a", 1), ("b", 2)):
        done = mmdd.distill(SOURCES["pair"](), per_class=1, seed=seed, options=QUICK)
        folder = done.save(tmp_path / place / "set")
        first = datasets.load_dataset(str(folder), split="train")[0]["image"]
        assert np.array_equal(first, done.to_dataset()["train"][0]["image"])
        read.append(np.asarray(first))
    assert not np.array_equal(*read)
