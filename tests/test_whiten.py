"""ZCA whitening against numpy, and what of it an artifact keeps."""

from __future__ import annotations

import dataclasses
import json
import pickle
import subprocess
import sys

import datasets
import numpy as np
import pytest
import torch
from image_sets import KEEP_ALL, all_inputs, folder_of, opened, stored, table
from pydantic import ValidationError

from mmdd import artifact, files
from mmdd.errors import UserError
from mmdd.modalities.images import data as data_module
from mmdd.modalities.images import show, space, whiten
from mmdd.modalities.images.modality import IMAGES
from mmdd.modalities.images.normalise import Normalise
from mmdd.modalities.images.options import ImageData
from mmdd.modalities.images.whiten import Covariance, Whiten, fit
from mmdd.modality import DataInfo
from mmdd.parquet import read_parquet

EPS = 0.1
ZCA = {"whiten": "zca", "zca_eps": EPS, **KEEP_ALL}


def smooth(count, shape=(3, 5, 4), seed=0):
    """Bytes [N, C, H, W] whose pixels are correlated and differ in variance."""
    random = np.random.default_rng(seed)
    size = int(np.prod(shape))
    mix = np.tril(np.ones((size, size))) * random.uniform(0, 4, size)
    values = 128 + random.normal(size=(count, size)) @ mix
    return values.clip(0, 255).round().astype(np.uint8).reshape(count, *shape)


def codes(count):
    return np.arange(count) % 2


def normalised(pixels):
    """[N, D] float64, by mean and std of every channel."""
    x = pixels.astype(np.float64) / (255 if pixels.dtype == np.uint8 else 1)
    mean, std = x.mean((0, 2, 3), keepdims=True), x.std((0, 2, 3), keepdims=True)
    return ((x - mean) / std).reshape(len(x), -1)


def zca_of(x, eps=EPS):
    """Mean, W and its inverse by the textbook: x [N, D]."""
    u, s, _ = np.linalg.svd(np.cov(x, rowvar=False))
    matrix = u @ np.diag(1 / np.sqrt(s + eps)) @ u.T
    return x.mean(0), matrix, np.linalg.inv(matrix)


def close(found, wanted, tolerance=1e-5):
    torch.testing.assert_close(
        found.double(), torch.as_tensor(np.asarray(wanted)), rtol=tolerance, atol=tolerance
    )


# -- the map ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("floats", [False, True])
def test_whitening_is_the_formula(floats):
    pixels = smooth(300)
    if floats:
        pixels = (pixels / 50 - 1).astype(np.float32)
    splits = opened({"train": (pixels, codes(300)), "test": (pixels[:7], codes(7))}, **ZCA)
    x = normalised(pixels)
    mean, matrix, inverse = zca_of(x)
    assert set(splits.info.tensors) == {"whiten.matrix", "whiten.inverse", "whiten.mean"}
    for name, wanted in (("matrix", matrix), ("inverse", inverse), ("mean", mean)):
        found = splits.info.tensors[f"whiten.{name}"]
        assert found.dtype == torch.float32
        assert found.is_contiguous()
        close(found, wanted)
    whitened = ((x - mean) @ matrix).reshape(pixels.shape)
    close(all_inputs(splits.train), whitened, 2e-5)
    close(all_inputs(splits.test), whitened[:7], 2e-5)  # by the training part's map
    assert all_inputs(splits.train).dtype == torch.float32
    assert stored(splits.train).dtype == (torch.float32 if floats else torch.uint8)
    facts = splits.info.normalisation
    assert (facts["whiten"], facts["zca_eps"], facts["zca_items"]) == ("zca", EPS, 300)
    assert any("ZCA, eps 0.1" in note and "300" in note for note in splits.info.notes)


@pytest.mark.parametrize("eps", [1e-3, EPS])
def test_whitened_images_are_uncorrelated_but_for_eps(eps):
    x = torch.from_numpy(normalised(smooth(400)))
    covariance = x.T.cov()
    whitening = fit(x.mean(0), covariance, eps)
    z = whitening.apply(x.view(-1, 3, 5, 4)).flatten(1)
    assert z.mean(0).abs().max() < 1e-12
    s, u = torch.linalg.eigh(covariance)
    torch.testing.assert_close(z.T.cov(), (u * (s / (s + eps))) @ u.T, rtol=1e-9, atol=1e-9)
    # of all whitening maps this one moves the images least: it is symmetric and positive
    torch.testing.assert_close(whitening.matrix, whitening.matrix.T, rtol=1e-12, atol=1e-12)
    assert torch.linalg.eigvalsh(whitening.matrix).min() > 0


def test_the_inverse_is_exact():
    x = torch.from_numpy(normalised(smooth(50)))  # fewer images than numbers: singular covariance
    x[:, 7] = 0.25  # and a pixel that never changes
    whitening = fit(x.mean(0), x.T.cov(), EPS)
    one = torch.eye(60, dtype=torch.float64)
    torch.testing.assert_close(whitening.matrix @ whitening.inverse, one, rtol=0, atol=1e-12)
    items = x.view(-1, 3, 5, 4)
    torch.testing.assert_close(whitening.undo(whitening.apply(items)), items, rtol=0, atol=1e-11)
    assert whitening.matrix[7, 7] == pytest.approx(EPS**-0.5)


def test_prepare_there_and_back():
    pixels = smooth(40)
    splits = opened((pixels, codes(40)), **ZCA)
    prepare = splits.train.prepare
    again = pickle.loads(pickle.dumps(prepare))
    kept = torch.from_numpy(pixels.copy())
    inputs = again(kept)
    assert torch.equal(inputs, prepare(kept))
    assert torch.equal(kept, torch.from_numpy(pixels))
    torch.testing.assert_close(prepare.inverse(inputs), kept / 255, rtol=0, atol=1e-5)
    assert prepare(kept[:0]).shape == (0, 3, 5, 4)
    last = kept.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(prepare(last), inputs)


def test_gradients_flow_both_ways():
    x = torch.from_numpy(normalised(smooth(60, (1, 3, 2))))
    whitening = fit(x.mean(0), x.T.cov(), EPS)
    items = x[:3].view(-1, 1, 3, 2).clone().requires_grad_()
    assert torch.autograd.gradcheck(whitening.apply, (items,))
    assert torch.autograd.gradcheck(whitening.undo, (items,))
    prepare = Whiten(Normalise([0.5], [0.25]), whitening)
    values = torch.rand(2, 1, 3, 2, requires_grad=True)
    weights = torch.rand(2, 1, 3, 2)
    (prepare(values) * weights).sum().backward()
    wanted = weights.flatten(1) @ whitening.matrix.float().T / 0.25
    torch.testing.assert_close(values.grad.flatten(1), wanted)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("store", ["device", "disk"])
def test_the_same_on_the_gpu(store):
    source = table(list(smooth(90).transpose(0, 2, 3, 1)), codes(90))
    options = ImageData(**ZCA, store=store, workers=0)
    near, far = (data_module.open_images(source, options, place) for place in ("cpu", "cuda"))
    assert near.info.fingerprint == far.info.fingerprint
    for name, tensor in near.info.tensors.items():
        assert far.info.tensors[name].device.type == "cpu"
        torch.testing.assert_close(far.info.tensors[name], tensor, rtol=1e-5, atol=1e-6)
    assert all_inputs(far.train).device.type == "cuda"
    torch.testing.assert_close(
        all_inputs(far.train).cpu(), all_inputs(near.train), rtol=1e-4, atol=1e-4
    )


# -- the covariance --------------------------------------------------------------------------------


def measured(pixels, blocks, monkeypatch):
    monkeypatch.setattr(whiten, "BLOCK_NUMBERS", blocks * int(np.prod(pixels.shape[1:])))
    covariance = Covariance(pixels.shape[1:])
    covariance.add(pixels[: len(pixels) // 3])
    covariance.add(pixels, np.arange(len(pixels) // 3, len(pixels)))
    return covariance


def test_bytes_are_measured_exactly_whatever_the_blocks(monkeypatch):
    pixels = smooth(101)
    normalise = Normalise([0.4, 0.5, 0.6], [0.2, 0.25, 0.3])
    mean, covariance = measured(pixels, 7, monkeypatch).normalised(normalise)
    for blocks in (1, 1000):
        other = measured(pixels, blocks, monkeypatch).normalised(normalise)
        assert torch.equal(other[0], mean)
        assert torch.equal(other[1], covariance)
    x = (pixels / 255.0 - np.array([0.4, 0.5, 0.6]).reshape(3, 1, 1)) / np.array(
        [0.2, 0.25, 0.3]
    ).reshape(3, 1, 1)
    close(mean, x.reshape(101, -1).mean(0), 1e-12)
    close(covariance, np.cov(x.reshape(101, -1), rowvar=False), 1e-12)


def test_floats_far_from_zero_keep_their_digits(monkeypatch):
    pixels = (smooth(80) / 255 + 4096).astype(np.float32)
    exact = np.cov(pixels.reshape(80, -1).astype(np.float64), rowvar=False)
    for blocks in (3, 1000):
        found = measured(pixels, blocks, monkeypatch).normalised(Normalise([4096] * 3, [1] * 3))
        close(found[1], exact, 1e-11)


def test_an_image_alone_has_no_covariance():
    covariance = Covariance((1, 2, 2))
    covariance.add(smooth(1, (1, 2, 2)))
    assert not covariance.normalised(Normalise([0.0], [1.0]))[1].any()


# -- stores ----------------------------------------------------------------------------------------


def test_streamed_and_resident_sets_are_whitened_alike(tmp_path):
    images = list(smooth(60, (3, 8, 8)).transpose(0, 2, 3, 1))
    folder_of(tmp_path, images, codes(60), split="train")
    folder_of(tmp_path, images[:10], codes(10), split="test")
    both = [opened(str(tmp_path), store=store, workers=0, **ZCA) for store in ("device", "disk")]
    for name, tensor in both[0].info.tensors.items():
        assert torch.equal(both[1].info.tensors[name], tensor)
    for part in ("train", "test"):
        pair = [all_inputs(getattr(splits, part)) for splits in both]
        torch.testing.assert_close(*pair, rtol=0, atol=1e-5)
    index = torch.tensor([5, 0, 33])
    pair = [splits.train.select(index).inputs for splits in both]
    torch.testing.assert_close(*pair, rtol=0, atol=1e-5)
    assert both[0].info.normalisation == both[1].info.normalisation
    for splits in both:
        splits.close()


@pytest.mark.parametrize("store", ["device", "disk"])
def test_a_large_set_is_measured_on_a_random_part(monkeypatch, store):
    monkeypatch.setattr(space, "MOST_WHITENED", 40)
    monkeypatch.setattr(data_module, "MOST_WHITENED", 40)
    monkeypatch.setattr(data_module, "SAMPLE_DISK", 10)  # else that few would be measured
    pixels = smooth(90)
    splits = opened((pixels, codes(90)), store=store, **ZCA)
    chosen = np.sort(np.random.default_rng(0).choice(90, 40, replace=False))
    facts = splits.info.normalisation
    assert facts["zca_items"] == 40
    mean, std = (np.array(facts[name]).reshape(3, 1, 1) for name in ("mean", "std"))
    x = ((pixels[chosen] / 255 - mean) / std).reshape(40, -1)
    close(splits.info.tensors["whiten.matrix"], zca_of(x)[1])
    of = pixels if store == "device" else pixels[chosen]
    assert facts["mean"] == pytest.approx((of / 255).mean((0, 2, 3)))


# -- what is known of the set ----------------------------------------------------------------------


def test_the_fingerprint_follows_the_options():
    source = (smooth(30), codes(30))
    plain = opened(source, **KEEP_ALL).info
    assert plain.tensors == {}
    assert "whiten" not in plain.normalisation
    prints = [
        opened(source, **{**ZCA, **more}).info.fingerprint
        for more in ({}, {}, {"zca_eps": 0.2}, {"store": "disk"}, {"store": "disk", "zca_eps": 0.2})
    ]
    assert prints[0] == prints[1]
    assert len({plain.fingerprint, *prints}) == 5
    # and without whitening eps means nothing
    assert opened(source, **KEEP_ALL, zca_eps=0.2).info.fingerprint == plain.fingerprint


def test_facts_of_a_set_are_compared_with_their_tensors():
    info = opened((smooth(30), codes(30)), **ZCA).info
    text = json.dumps(info.as_dict())
    assert "tensors" not in json.loads(text)
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(text).items()}
    assert DataInfo(**values, tensors=info.tensors) == info
    copied = {name: tensor.clone() for name, tensor in info.tensors.items()}
    assert dataclasses.replace(info, tensors=copied) == info
    copied["whiten.mean"][0] += 1e-3
    assert dataclasses.replace(info, tensors=copied) != info
    assert DataInfo(**values) != info
    assert dataclasses.replace(info, source="other") != info
    assert info != "info"
    assert "tensor(" not in repr(info)
    with pytest.raises(dataclasses.FrozenInstanceError):
        info.tensors = {}


def test_whitened_space_has_no_bounds():
    source = (smooth(30), codes(30))
    assert IMAGES.bounds(opened(source, **KEEP_ALL).info) is not None
    assert IMAGES.bounds(opened(source, **ZCA).info) is None


# -- refusals --------------------------------------------------------------------------------------


def test_large_images_are_refused_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr(data_module, "read_all", None)
    source = (np.zeros((4, 65, 64, 3), np.uint8), codes(4))
    for store in ("device", "disk"):
        with pytest.raises(UserError, match=r"3x65x64.*D = 12480.*at most 12288.*data\.size") as e:
            opened(source, store=store, **ZCA)
        assert "\n" not in str(e.value)
    whiten.require_small((3, 64, 64))


@pytest.mark.parametrize(
    "options", [{"whiten": "pca"}, {"zca_eps": 0.0}, {"zca_eps": -1}, {"zca_eps": float("nan")}]
)
def test_options_that_mean_nothing(options):
    with pytest.raises(ValidationError):
        ImageData(**options)


def test_a_set_without_its_matrices_says_so():
    info = dataclasses.replace(opened((smooth(30), codes(30)), **ZCA).info, tensors={})
    with pytest.raises(UserError, match=r"whitened.*whiten\.inverse"):
        show.denormalise(torch.zeros(1, 3, 5, 4), info)


# -- the artifact ----------------------------------------------------------------------------------


COUNT = 12
READER = """
import sys
import numpy as np
from pathlib import Path
from mmdd import artifact
from mmdd.modalities.images import show
from mmdd.modality import DataInfo
found = artifact.load(sys.argv[1])
values = {k: tuple(v) if isinstance(v, list) else v for k, v in found.manifest["info"].items()}
info = DataInfo(**values, tensors=found.info_tensors)
inputs, targets = found.tensors["representation.inputs"], found.tensors["labels.targets"]
columns, _ = show.to_columns(inputs, targets, info)
np.save(sys.argv[2], np.stack([np.asarray(image) for image in columns["image"]]))
show.picture(inputs, targets, info, Path(sys.argv[3]))
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Some real digits as the set; returns the folder, their bytes and the facts."""
    splits = opened("digits", whiten="zca")
    index = torch.arange(COUNT)
    batch = splits.train.select(index)
    folder = tmp_path_factory.mktemp("whiten") / "set"
    info = splits.info
    artifact.save(
        folder,
        tensors={
            "groups": batch.groups,
            "representation.inputs": batch.inputs,
            "labels.targets": batch.targets,
        },
        manifest={
            "recipe": {"data": {"source": "digits", "whiten": "zca"}},
            "info": info.as_dict(),
            "budget": {"items": COUNT, "bytes": COUNT * 64 * 4 + COUNT * 8},
        },
        columns=show.to_columns(batch.inputs, batch.targets, info),
        picture=lambda path: show.picture(batch.inputs, batch.targets, info, path),
        info_tensors=info.tensors,
    )
    return folder, stored(splits.train)[index], info


def test_the_artifact_keeps_the_map(saved):
    folder, _, info = saved
    found = artifact.load(folder)
    assert set(found.tensors) == {"groups", "representation.inputs", "labels.targets"}
    assert found.info_tensors.keys() == info.tensors.keys()
    for name, tensor in info.tensors.items():
        assert torch.equal(found.info_tensors[name], tensor)
    manifest = found.manifest
    assert manifest["info_tensors"] == {
        "names": ["whiten.inverse", "whiten.matrix", "whiten.mean"],
        "bytes": 4 * (2 * 64 * 64 + 64),
    }
    assert manifest["budget"]["bytes"] == COUNT * 64 * 4 + COUNT * 8
    assert manifest["info"]["normalisation"]["whiten"] == "zca"
    assert "tensors" not in manifest["info"]
    text = (folder / "README.md").read_text()
    for words in ("whiten zca", "33,024 bytes", "`whiten.inverse` plus `whiten.mean`"):
        assert words in text


def test_columns_are_the_pixels_again(saved):
    folder, pixels, _ = saved
    read = read_parquet(folder / artifact.PARQUET).cast_column("image", datasets.Image())
    found = np.stack([np.asarray(image) for image in read["image"][:]])
    assert np.array_equal(found, pixels[:, 0].numpy())  # every byte, after whitening and back


def test_another_process_without_the_data_reads_it(saved, tmp_path):
    folder, pixels, _ = saved
    out, drawn = tmp_path / "columns.npy", tmp_path / "picture.png"
    done = subprocess.run(
        [sys.executable, "-c", READER, str(folder), str(out), str(drawn)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.load(out), pixels[:, 0].numpy())
    assert drawn.read_bytes() == (folder / artifact.PICTURE).read_bytes()


def test_exports_can_be_undone_without_this_package(saved, tmp_path):
    folder, pixels, info = saved
    assert artifact.export(folder, "safetensors", tmp_path / "set.safetensors")
    tensors, metadata = files.load_tensors(tmp_path / "set.safetensors")
    assert set(tensors) == {"inputs", "targets", *info.tensors}
    facts = json.loads(metadata["mmdd"])["normalisation"]
    flat = tensors["inputs"].flatten(1).numpy()
    x = flat @ tensors["whiten.inverse"].numpy() + tensors["whiten.mean"].numpy()
    units = x * facts["std"][0] + facts["mean"][0]
    assert np.abs(units * 255 - pixels.flatten(1).numpy()).max() < 0.01
    assert artifact.export(folder, "imagefolder", tmp_path / "folder")
    from PIL import Image

    first = sorted((tmp_path / "folder" / "train").rglob("00001.png"))
    found = {np.asarray(Image.open(path)).tobytes() for path in first}
    assert found <= {image.numpy().tobytes() for image in pixels[:, 0]}


def test_saving_again_without_whitening_leaves_no_trace(saved, tmp_path):
    folder, _, _ = saved
    found = artifact.load(folder)
    artifact.save(tmp_path / "set", tensors=found.tensors, manifest=found.manifest)
    again = artifact.load(tmp_path / "set")
    assert again.info_tensors == {}
    assert "info_tensors" not in again.manifest
    assert set(again.tensors) == set(found.tensors)


def test_a_manifest_that_lists_absent_matrices(saved, tmp_path):
    folder, _, _ = saved
    found = artifact.load(folder)
    artifact.save(tmp_path / "set", tensors=found.tensors, manifest={})
    path = tmp_path / "set" / artifact.MANIFEST
    manifest = {**json.loads(path.read_bytes()), "info_tensors": {"names": ["whiten.mean"]}}
    files.write_json(path, artifact._sealed(manifest))
    with pytest.raises(UserError, match=r"altered.*whiten\.mean"):
        artifact.load(tmp_path / "set")
