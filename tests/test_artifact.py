"""A finished set on disk: read by others, checked by us, replaced safely, exported."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import mmdd
from mmdd import artifact, card, card_header, files, parquet
from mmdd.errors import UserError
from mmdd.modality import DataInfo

NAMES = ("T-shirt/top", "test", "no", "10")
ROW = {"mean": 0.7512, "std": 0.0123, "n": 3, "values": [0.75, 0.74, 0.76]}
RESULTS = {
    "metric": "accuracy",
    "direction": "max",
    "selection": "last",
    "protocol": {"name": "dc", "epochs": 1000, "optimiser": "sgd", "lr": 0.01, "augment": True},
    "results": {"convnet": {"synthetic": ROW, "random": ROW, "herding": ROW, "full": None}},
}
PNG = b"\x89PNG not really"


def info(**changes):
    facts = DataInfo(
        modality="images",
        task="classification",
        source="zalando-datasets/fashion_mnist",
        shape=(1, 6, 5),
        classes=len(NAMES),
        names=NAMES,
        fingerprint="ab" * 32,
        normalisation={"mean": [0.25], "std": [0.5], "range": [0.0, 1.0]},
        columns={"image": "image", "label": "label"},
        sizes={"train": 60_000, "validation": 0, "test": 10_000},
    )
    return dataclasses.replace(facts, **changes)


def make(seed=0, count=6):
    """What a run hands over: tensors, manifest, columns."""
    import datasets
    from PIL import Image

    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (count, 6, 5), dtype=np.uint8)
    labels = [place % 3 for place in range(count)]  # class 3 has no item
    tensors = {
        "groups": torch.tensor(labels),
        "representation.inputs": (torch.from_numpy(pixels)[:, None] / 255 - 0.25) / 0.5,
        "labels.targets": torch.tensor(labels),
    }
    manifest = {
        "recipe": {
            "method": "dm",
            "data": {"source": "zalando-datasets/fashion_mnist"},
            "synthetic": {"representation": {"kind": "direct"}},
        },
        "info": info().as_dict(),
        "protocol": RESULTS["protocol"],
        "results": {},
        "run": {"seconds": 12.5, "peak_memory_mb": 300.0, "steps": 100, "seed": seed},
        "budget": {"items": count, "bytes": 1000},
    }
    columns = {"image": [Image.fromarray(image) for image in pixels], "label": labels}
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))}
    return {"tensors": tensors, "manifest": manifest, "columns": (columns, features)}


def picture(path):
    path.write_bytes(PNG)


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    folder = tmp_path_factory.mktemp("artifact") / "set"
    artifact.save(folder, **make(), picture=picture)
    return folder


@pytest.fixture
def folder(ready, tmp_path):
    return Path(shutil.copytree(ready, tmp_path / "set"))


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    return text


def content(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


# -- there and back --------------------------------------------------------------------------------


def test_round_trip(ready):
    made, found = make(), artifact.load(ready)
    assert found.tensors.keys() == made["tensors"].keys()
    for name, tensor in made["tensors"].items():
        assert torch.equal(found.tensors[name], tensor)
        assert found.tensors[name].dtype == tensor.dtype
    manifest = found.manifest
    assert manifest["format"] == "mmdd"
    assert manifest["format_version"] == 1
    assert set(manifest["files"]) == {artifact.TENSORS, artifact.PARQUET, artifact.PICTURE}
    assert manifest["tensors"]["labels.targets"] == {"dtype": "int64", "shape": [6]}
    assert manifest["info"]["names"] == list(NAMES)
    assert manifest["data"]["examples"] == 6
    for key in ("recipe", "protocol", "results", "run", "budget"):
        assert manifest[key] == made["manifest"][key]
    assert set(content(ready)) == {*manifest["files"], "README.md", "mmdd.json"}


def test_same_set_gives_the_same_bytes(ready, tmp_path):
    artifact.save(tmp_path / "again", **make(), picture=picture)
    assert content(tmp_path / "again") == content(ready)


READER = """
import sys
sys.modules["mmdd"] = None
import datasets
found = datasets.load_dataset(sys.argv[1], cache_dir=sys.argv[2])
assert list(found) == ["train"], found
train = found["train"]
assert isinstance(train.features["image"], datasets.Image)
item = train[5]
print(train.features["label"].names, len(train), item["image"].mode, item["image"].size,
      item["label"], sum(item["image"].tobytes()))
"""


@pytest.mark.parametrize("how", ["whole folder", "parquet export"])
def test_plain_datasets_reads_it_without_this_package(folder, tmp_path, how):
    (folder / "state").mkdir()  # what a run leaves beside
    (folder / "log.jsonl").write_text('{"step": 1}\n')
    if how == "parquet export":
        assert artifact.export(folder, "parquet", tmp_path / "out")
    place = tmp_path / "out" if how == "parquet export" else folder
    done = subprocess.run(
        [sys.executable, "-c", READER, place, tmp_path / "cache"],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 5), dtype=np.uint8)
    assert done.stdout.split("\n")[0] == f"{list(NAMES)} 6 L (5, 6) 2 {pixels[5].sum()}"


def test_without_columns_and_picture(tmp_path):
    made = make()
    artifact.save(tmp_path, tensors=made["tensors"], manifest={})
    assert set(artifact.load(tmp_path).tensors) == set(made["tensors"])
    assert set(content(tmp_path)) == {"mmdd.json", "README.md", artifact.TENSORS}
    for to in ("parquet", "imagefolder"):
        with pytest.raises(UserError, match="without columns"):
            artifact.export(tmp_path, to, tmp_path / "out")


def test_numbers_that_json_lacks_do_not_stop_a_save(tmp_path):
    made = make()
    made["manifest"]["results"] = {"results": {"mlp": {"synthetic": {**ROW, "std": float("nan")}}}}
    artifact.save(tmp_path, tensors=made["tensors"], manifest=made["manifest"])
    rows = artifact.load(tmp_path).manifest["results"]["results"]["mlp"]
    assert rows["synthetic"]["std"] is None


def test_provenance():
    assert set(artifact.versions()) == {
        "mmdd", "python", "torch", "datasets", "numpy", "platform"
    }  # fmt: skip
    found = artifact.commit()
    assert found is None or (len(found) in (40, 64) and int(found, 16))


@pytest.mark.parametrize("why", ["no git", "no repository", "another project"])
def test_no_commit_is_no_failure(tmp_path, monkeypatch, why):
    package = tmp_path / "mmdd"
    package.mkdir()
    name = "other" if why == "another project" else "mmdd"
    (tmp_path / "pyproject.toml").write_text(f'[project]\nname = "{name}"\n')
    monkeypatch.setattr(mmdd, "__file__", str(package / "__init__.py"))
    if why == "no git":
        monkeypatch.setenv("PATH", str(tmp_path))
    assert artifact.commit() is None


# -- what is wrong with it -------------------------------------------------------------------------


def change(folder, name, damage):
    path = folder / name
    path.write_bytes(damage(path.read_bytes()))


def flipped(data):
    middle = len(data) * 2 // 3
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


LISTED = [artifact.TENSORS, artifact.PARQUET, artifact.PICTURE]


@pytest.mark.parametrize("name", LISTED)
@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda data: data[:-1], "truncated"),
        (lambda data: b"", "truncated"),
        (flipped, "altered"),
        (lambda data: data + b"x", "altered"),
    ],
)
def test_a_damaged_file_is_named(folder, name, damage, word):
    change(folder, name, damage)
    with pytest.raises(UserError) as error:
        artifact.load(folder)
    assert word in one_line(error)
    assert str(folder / name) in str(error.value)


@pytest.mark.parametrize("name", LISTED)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(UserError) as error:
        artifact.load(folder)
    assert "removed" in one_line(error)
    assert str(folder / name) in str(error.value)


def rewritten(**changes):
    return lambda data: json.dumps({**json.loads(data), **changes}).encode()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[: len(data) // 2], "not valid JSON"),
        (lambda data: b"", "not valid JSON"),
        (lambda data: data.replace(b'"seed": 0', b'"seed": 1'), "was altered"),
        (rewritten(results=RESULTS), "was altered"),
        (rewritten(format_version=2), "newer mmdd"),
        (rewritten(format_version="1"), "format_version '1'"),
        (rewritten(format="other"), "not the manifest"),
        (lambda data: b"[]", "not the manifest"),
    ],
)
def test_a_damaged_manifest(folder, damage, words):
    change(folder, "mmdd.json", damage)
    with pytest.raises(UserError) as error:
        artifact.load(folder)
    assert words in one_line(error)
    assert str(folder) in str(error.value)


def test_the_newer_version_says_how_to_go_on(folder):
    change(folder, "mmdd.json", rewritten(format_version=7))
    with pytest.raises(UserError, match=r"got 'format version 7'.*pip install --upgrade mmdd"):
        artifact.load(folder)


def reseal(folder, **changes):
    """A manifest made up by somebody who knows how."""
    manifest = {**json.loads((folder / "mmdd.json").read_bytes()), **changes}
    files.write_json(folder / "mmdd.json", artifact._sealed(manifest))


def test_other_tensors_than_listed(folder):
    tensors = artifact.load(folder).manifest["tensors"]
    reseal(folder, tensors={**tensors, "groups": {"dtype": "int32", "shape": [6]}})
    with pytest.raises(UserError, match="other tensors than the manifest lists"):
        artifact.load(folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "data/../../secret"])
def test_files_outside_the_folder_are_not_read(folder, name):
    (folder.parent / "secret").write_text("x")
    reseal(folder, files={name: {"bytes": 1, "sha256": files.sha256(folder.parent / "secret")}})
    with pytest.raises(UserError, match="outside its folder"):
        artifact.load(folder)


def test_not_an_artifact(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        artifact.load(tmp_path / "nowhere")
    with pytest.raises(UserError) as error:
        artifact.load(tmp_path)
    assert "holds no distilled set" in one_line(error)


def test_an_unfinished_run_says_how_to_finish_it(tmp_path):
    folder = tmp_path / "my run"
    (folder / "state").mkdir(parents=True)
    (folder / "state" / "checkpoint.safetensors").write_bytes(b"x")
    with pytest.raises(UserError) as error:
        artifact.load(folder)
    assert f"mmdd resume '{folder}'" in one_line(error)


# -- writing over it -------------------------------------------------------------------------------


def test_saving_again_replaces_it_and_leaves_other_files(folder):
    others = {"recipe.yaml": b"a: 1", "state/checkpoint.safetensors": b"x", "data/mine.txt": b"y"}
    for name, data in others.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    new = make(seed=1)
    artifact.save(folder, tensors=new["tensors"], manifest=new["manifest"])
    assert artifact.load(folder).manifest["run"]["seed"] == 1
    kept = content(folder)
    assert {name: kept[name] for name in others} == others
    assert set(kept) == {*others, "mmdd.json", "README.md", artifact.TENSORS}  # old ones are gone


def test_a_foreign_readme_is_not_written_over(tmp_path):
    (tmp_path / "README.md").write_text("# My project\n")
    with pytest.raises(UserError) as error:
        artifact.save(tmp_path, **make())
    assert "README.md of its own" in one_line(error)
    assert content(tmp_path) == {"README.md": b"# My project\n"}


@pytest.mark.parametrize("before", ["old set", "nothing"])
def test_a_kill_at_any_moment_leaves_the_old_set_the_new_set_or_none(
    ready, tmp_path, monkeypatch, before
):
    """The folder is copied before every change of it: each copy is what a kill would leave."""
    folder = tmp_path / "set"
    if before == "old set":
        shutil.copytree(ready, folder)
    copies = []

    def watched(original):
        def change(*args, **kwargs):
            if folder.exists():
                copies.append(tmp_path / f"copy{len(copies)}")
                shutil.copytree(folder, copies[-1])
            return original(*args, **kwargs)

        return change

    with monkeypatch.context() as patch:
        for name in ("replace", "unlink", "fsync"):
            patch.setattr(os, name, watched(getattr(os, name)))
        artifact.save(folder, **make(seed=1), picture=picture)
    assert len(copies) > 15
    seen = [_seed_or_error(copy) for copy in [*copies, folder]]
    assert set(seen) == ({0, 1, None} if before == "old set" else {1, None})
    assert sorted(seen, key=[0, None, 1].index) == seen  # old, then none, then new
    # and whatever was left can be saved over
    artifact.save(copies[seen.index(None)], **make(seed=2), picture=picture)
    assert _seed_or_error(copies[seen.index(None)]) == 2


def _seed_or_error(folder):
    if not (folder / "mmdd.json").exists():
        with pytest.raises(UserError, match="holds no distilled set"):
            artifact.load(folder)
        return None
    found = artifact.load(folder)
    seed = found.manifest["run"]["seed"]
    assert torch.equal(
        found.tensors["representation.inputs"], make(seed)["tensors"]["representation.inputs"]
    )
    return seed


class Boom(Exception):
    pass


@pytest.mark.parametrize("at", ["tensors", "parquet", "picture", "card", "manifest", "full disk"])
def test_an_error_while_writing_leaves_the_old_set(folder, monkeypatch, at):
    old = content(folder)

    def boom(*args, **kwargs):
        raise Boom

    targets = {
        "tensors": (files, "save_tensors"),
        "parquet": (artifact, "write_parquet"),
        "card": (artifact, "card"),
        "manifest": (files, "write_json"),
        "full disk": (os, "fsync"),
    }
    if at in targets:
        monkeypatch.setattr(*targets[at], boom)
    draw = boom if at == "picture" else picture
    with pytest.raises(Boom):
        artifact.save(folder, **make(seed=1), picture=draw)
    assert content(folder) == old
    assert artifact.load(folder).manifest["run"]["seed"] == 0


def test_no_space_is_told_before_anything_is_written(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    with pytest.raises(UserError) as error:
        artifact.save(tmp_path / "set", **make())
    assert "not enough space" in one_line(error)
    assert not list(tmp_path.iterdir())


def test_results_are_replaced_and_nothing_else(folder, monkeypatch):
    before, old = content(folder), artifact.load(folder)
    assert "Not scored yet" in (folder / "README.md").read_text()
    artifact.update_results(folder, RESULTS)
    found, after = artifact.load(folder), content(folder)
    assert found.manifest["results"]["results"]["convnet"]["synthetic"] == ROW
    same = set(old.manifest) - {"results", "digest"}
    assert {k: old.manifest[k] for k in same} == {k: found.manifest[k] for k in same}
    assert {k for k in after if after[k] != before[k]} == {"mmdd.json", "README.md"}
    assert "75.1 ± 1.2 (n = 3)" in (folder / "README.md").read_text()
    for failing in ("replace", "fsync"):  # a crash leaves a set that loads
        with monkeypatch.context() as patch:
            patch.setattr(os, failing, lambda *args: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                artifact.update_results(folder, {})
        assert artifact.load(folder).manifest["results"]["metric"] == "accuracy"
    with pytest.raises(UserError, match="no folder"):
        artifact.update_results(folder / "none", RESULTS)


# -- exports ---------------------------------------------------------------------------------------


def test_export_to_safetensors(folder, tmp_path):
    assert artifact.export(folder, "safetensors", tmp_path / "set.safetensors")
    assert artifact.export(folder, "safetensors", tmp_path / "out")
    for path in (tmp_path / "set.safetensors", tmp_path / "out" / "distilled.safetensors"):
        tensors, metadata = files.load_tensors(path)
        assert set(tensors) == {"inputs", "targets"}
        assert torch.equal(tensors["inputs"], make()["tensors"]["representation.inputs"])
        about = json.loads(metadata["mmdd"])
        assert about["names"] == list(NAMES)
        assert about["normalisation"] == info().normalisation


def test_export_to_imagefolder_is_read_by_datasets_and_torchvision(folder, tmp_path):
    import datasets

    out = tmp_path / "out"
    assert artifact.export(folder, "imagefolder", out)
    assert (out / "train" / "T-shirt_top" / "00002.png").is_file()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 5), dtype=np.uint8)
    with parquet.quiet():
        found = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert set(found) == {"train"}  # though a class is called "test"
    train = found["train"]
    assert train.features["label"].names == ["T-shirt_top", "no", "test"]
    numbers = json.loads((out / "classes.json").read_text())
    read = {}
    for item in train:
        name = train.features["label"].names[item["label"]]
        read.setdefault(numbers[name]["label"], []).append(np.asarray(item["image"]))
    for label in range(3):
        assert numbers[artifact.files.safe_names(NAMES)[label]]["name"] == NAMES[label]
        assert np.array_equal(np.stack(read[label]), pixels[label::3])
    torchvision = pytest.importorskip("torchvision")
    other = torchvision.datasets.ImageFolder(out / "train")
    assert other.classes == ["T-shirt_top", "no", "test"]
    assert np.array_equal(np.asarray(other[0][0])[..., 0], pixels[0])


def test_imagefolder_keeps_soft_labels_and_other_encodings(tmp_path):
    import datasets
    from PIL import Image

    made = make()
    columns, features = made["columns"]
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, format="JPEG")
    columns["image"] = [Image.open(buffer)] * 6  # stored as the JPEG that it is
    columns["soft_label"] = torch.eye(4)[torch.arange(6) % 3].tolist()
    features["soft_label"] = datasets.List(datasets.Value("float32"), length=4)
    artifact.save(tmp_path / "set", **made)
    artifact.export(tmp_path / "set", "imagefolder", tmp_path / "out")
    assert Image.open(tmp_path / "out" / "train" / "test" / "00001.png").format == "PNG"
    tensors, metadata = files.load_tensors(tmp_path / "out" / "soft_labels.safetensors")
    assert torch.equal(tensors["soft_labels"], torch.eye(4)[torch.arange(6) % 3])
    assert json.loads(metadata["files"])[1] == "train/test/00001.png"


@pytest.mark.parametrize("to", ["parquet", "imagefolder", "safetensors"])
def test_exporting_twice_and_over_something_else(folder, tmp_path, to):
    out = tmp_path / "out"
    out.mkdir()  # an empty folder is as good as none
    assert artifact.export(folder, to, out)
    first = content(out)
    assert not artifact.export(folder, to, out)
    assert content(out) == first
    (out / "mine").write_text("x")
    with pytest.raises(UserError) as error:
        artifact.export(folder, to, out)
    assert "already" in one_line(error)
    assert content(out) == {**first, "mine": b"x"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "set"]


def test_exports_that_cannot_be(folder, tmp_path):
    with pytest.raises(UserError, match="Did you mean 'imagefolder'"):
        artifact.export(folder, "imagefolders", tmp_path / "out")
    change(folder, artifact.PICTURE, flipped)
    with pytest.raises(UserError, match="altered"):
        artifact.export(folder, "parquet", tmp_path / "out")
    made = make()
    del made["columns"][0]["image"], made["columns"][1]["image"]
    made["manifest"]["recipe"]["synthetic"]["representation"] = {"kind": "latent"}
    artifact.save(tmp_path / "other", **made)
    with pytest.raises(UserError, match="a column of type Image"):
        artifact.export(tmp_path / "other", "imagefolder", tmp_path / "out")
    with pytest.raises(UserError, match="latent"):
        artifact.export(tmp_path / "other", "safetensors", tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "set"]


# -- the card --------------------------------------------------------------------------------------


def front(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_card_front_matter(folder):
    header = front((folder / "README.md").read_text())
    assert header["configs"] == [
        {
            "config_name": "default",
            "data_files": [{"split": "train", "path": "data/train-*.parquet"}],
        }
    ]
    assert "dataset-distillation" in header["tags"]
    assert header["license"] == "unknown"
    assert header["source_datasets"] == ["zalando-datasets/fashion_mnist"]
    assert header["size_categories"] == ["n<1K"]
    assert header["task_categories"] == ["image-classification"]
    features = header["dataset_info"]["features"]
    assert features[0] == {"name": "image", "dtype": "image"}
    assert features[1]["dtype"]["class_label"]["names"] == dict(zip("0123", NAMES, strict=True))


def test_card_tells_the_nets_that_made_and_judged():
    recipe = {"learner": {"encoder": "convnet", "width": 32}}
    assert "| encoder | convnet, width 32 |" in card.card({"recipe": recipe})
    assert "judged by" not in card.card({"recipe": recipe})
    recipe["evaluate"] = {"learner": {"encoder": "convnet", "width": 128}}
    assert "| judged by | convnet, width 128 |" in card.card({"recipe": recipe})
    assert "| encoder | mlp |" in card.card({"recipe": {"learner": {"encoder": "mlp"}}})


def test_card_tells_what_a_reader_needs(folder):
    artifact.update_results(folder, RESULTS)
    text = (folder / "README.md").read_text()
    for words in (
        "`zalando-datasets/fashion_mnist` (60,000 training items)",
        "ab" * 32,
        "| method | dm |",
        "| steps | 100 |",
        "6 items, 1,000 bytes",
        "mean (0.25); std (0.5)",
        "| convnet | 75.1 ± 1.2 (n = 3) | 75.1 ± 1.2 (n = 3) | 75.1 ± 1.2 (n = 3) | - |",
        "protocol `dc`, 1,000 epochs, sgd 0.01, with augmentation, last epoch",
        "datasets.load_dataset(",
        "mmdd distill recipe.yaml",
        "8-bit PNG",
        "`synthetic.safetensors`",
        "(picture.png)",
    ):
        assert words in text, words


def test_card_of_any_part_of_a_manifest():
    whole = {**make()["manifest"], "results": RESULTS, "commit": "c" * 40, "files": {}}
    for key in whole:
        for value in ({}, None, [], "x"):
            assert card.card({**whole, key: value}).startswith("---\n")
        assert card.card({key: whole[key]}).startswith("---\n")
    assert front(card.card({}))["tags"][0] == "dataset-distillation"
    assert "picture.png" not in card.card(whole)


def test_card_metrics_in_their_own_unit():
    report = {"metric": "mse", "direction": "min", "results": {"linear": {"synthetic": ROW}}}
    text = card.card({"results": report})
    assert "0.7512 ± 0.0123 (n = 3)" in text
    assert "lower is better" in text


def test_card_hides_the_folders_of_the_machine():
    for source in ("/home/me/photos", "~/photos", "../photos", "./photos", r"C:\me\photos"):
        manifest = {"info": {"source": source}, "recipe": {"data": {"source": source}}}
        text = card.card(manifest)
        assert "photos" in text
        assert "me/" not in text
        assert "C:" not in text


@pytest.mark.parametrize(
    ("items", "category"),
    [(1, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (9999, "1K<n<10K"), (10_000, "10K<n<100K")],
)
def test_size_categories(items, category):
    assert card_header.size_category(items) == category


def test_card_features_are_those_that_datasets_writes():
    import datasets

    features = datasets.Features(
        {
            "image": datasets.Image(),
            "sound": datasets.Audio(),
            "label": datasets.ClassLabel(names=["yes", "1", "null"]),
            "soft": datasets.List(datasets.Value("float32"), length=3),
            "text": datasets.Value("string"),
            "free": datasets.List(datasets.Value("int64")),
            "labels": datasets.List(datasets.ClassLabel(names=["yes", "no"])),
            "nested": datasets.List(datasets.List(datasets.Value("float32")), length=2),
        }
    )
    written = yaml.safe_load(
        yaml.safe_dump(card_header.yaml_features(features.to_dict()), sort_keys=False)
    )
    assert datasets.Features._from_yaml_list(written)["label"] == features["label"]
    known = {k: v for k, v in features.items() if k != "sound"}
    assert datasets.Features._from_yaml_list(
        [entry for entry in written if entry["name"] != "sound"]
    ) == datasets.Features(known)
    odd = datasets.Features({"deep": {"a": datasets.Value("int64")}})
    assert card_header.yaml_features(odd.to_dict()) is None
