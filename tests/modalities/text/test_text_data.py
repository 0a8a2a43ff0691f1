"""Opening text sets: every kind of source, the three spaces, tokenizers, the cache, bad input."""

import os
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from text_sets import (
    BAD,
    GOOD,
    KEEP_ALL,
    PLAIN,
    labels,
    opened,
    save_bert,
    sentences,
    table,
    word_tokenizer,
)

from mmdd.errors import UserError
from mmdd.modalities.text import embed
from mmdd.modalities.text.options import TextData
from mmdd.modalities.text.space import Lookup, Standardise
from mmdd.modalities.text.table import ppmi_table
from mmdd.modalities.text.tokenise import SentencePiece, train

TEXTS = sentences(60)
SHARED = Path(os.environ.get("MMDD_SHARED_DATA", Path(__file__).parents[4] / "shared" / "data"))


@pytest.fixture(autouse=True)
def _private_and_offline(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("MMDD_CACHE", str(tmp_path / "kept"))
    datasets.disable_progress_bars()


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return save_bert(tmp_path_factory.mktemp("bert"))


def refused(source, *parts, **options):
    """The one line of the error, which holds every one of `parts`."""
    with pytest.raises(UserError) as caught:
        opened(source, **options)
    line = str(caught.value)
    assert "\n" not in line
    for part in parts:
        assert part in line, line
    return line


def everything(part):
    return part.select(torch.arange(len(part)))


# Token space -----------------------------------------------------------------------------------


def test_tokens_are_looked_up_and_masked():
    splits = opened((TEXTS, labels(60)), **KEEP_ALL)
    batch = everything(splits.train)
    values, mask = batch.inputs["values"], batch.inputs["mask"]
    assert values.shape[1:] == splits.info.shape == (splits.info.normalisation["length"], 64)
    assert mask.dtype == torch.bool
    assert torch.equal(values[~mask], torch.zeros_like(values[~mask]))
    stored, pieces = splits.train.values, SentencePiece.of_tensor(splits.info.tensors["tokeniser"])
    assert stored["ids"].dtype == torch.int32
    row = 7
    count = int(stored["lengths"][row])
    assert mask[row].sum() == count
    assert (
        "".join(pieces.pieces(stored["ids"][row, :count])).replace("▁", " ").strip() == TEXTS[row]
    )
    expected = splits.info.tensors["table"][stored["ids"][row, :count].long()]
    assert torch.equal(values[row, :count], expected)
    shown = values[mask]
    assert abs(shown.square().mean() - 1) < 0.01
    assert shown.mean(dim=0).abs().max() < 0.05
    assert batch.targets.tolist() == labels(60)
    assert splits.train.words == TEXTS


def test_the_same_data_give_the_same_bits_and_fingerprint():
    first, again = (opened((TEXTS, labels(60))) for _ in range(2))
    assert first.info == again.info
    assert torch.equal(
        everything(first.train).inputs["values"], everything(again.train).inputs["values"]
    )
    others = [
        opened((TEXTS, labels(60)), table="random"),
        opened((TEXTS, labels(60)), hidden=32),
        opened((TEXTS, labels(60)), length=5),
        opened((TEXTS, labels(60)), seed=1),
        opened(([*TEXTS[:-1], "another day"], labels(60))),
        opened((TEXTS, [1 - code for code in labels(60)]), validation=0),
    ]
    digests = [first.info.fingerprint, *(one.info.fingerprint for one in others)]
    assert len(set(digests)) == len(digests)


def test_the_tokenizer_learns_from_training_texts_alone():
    unheard = ["zebra xylophone quiz"] * 20
    source = {"train": (TEXTS, labels(60)), "test": (unheard, labels(20))}
    info = opened(source, validation=0).info
    both = opened((TEXTS, labels(60)), **KEEP_ALL).info
    assert torch.equal(info.tensors["tokeniser"], both.tensors["tokeniser"])
    assert torch.equal(info.tensors["table"], both.tensors["table"])


def test_long_texts_are_cut_and_counted(bert):
    long = [*TEXTS[:-1], " ".join([*PLAIN, *PLAIN])]
    splits = opened((long, labels(60)), **KEEP_ALL)
    length = splits.info.normalisation["length"]
    lengths = splits.train.values["lengths"]
    assert int(lengths.max()) == length
    assert any(
        note.endswith(f"of 60 texts were cut to {length} tokens") for note in splits.info.notes
    )
    own = opened((long, labels(60)), space="tokens", model=bert, length=6, **KEEP_ALL)
    ids = own.train.values["ids"]
    assert ids.shape[1] == 6
    full = own.train.values["lengths"] == 6
    assert (ids[full, -1] == 3).all()  # the closing token stays
    refused((long, labels(60)), "more than the encoder reads", "at most 20", space="tokens",
            tokenizer=_short(bert), length=21)  # fmt: skip


def _short(folder):
    """The tokenizer of `folder`, which reads 20 tokens."""
    made = word_tokenizer()
    made.model_max_length = 20
    made.save_pretrained(f"{folder}/short")
    return f"{folder}/short"


def test_no_character_is_unknown_to_a_trained_tokenizer():
    strange = [*TEXTS, "naïve 漢字 🙂"]
    splits = opened({"train": (TEXTS, labels(60)), "test": (strange, labels(61))}, validation=0)
    assert not any("unknown" in note for note in splits.info.notes)
    pieces = SentencePiece.of_tensor(splits.info.tensors["tokeniser"])
    ids = pieces([("naïve 漢字 🙂",)])[0]
    assert pieces.unknown not in ids
    assert pieces.model.decode(ids) == "naïve 漢字 🙂"


def test_the_encoders_own_tokens(bert):
    from transformers import AutoModel

    splits = opened((TEXTS, labels(60)), space="tokens", model=bert, **KEEP_ALL)
    table = AutoModel.from_pretrained(bert).get_input_embeddings().weight
    scale = splits.info.normalisation["scale"]
    batch = everything(splits.train)
    values, mask = batch.inputs["values"], batch.inputs["mask"]
    ids = word_tokenizer()(TEXTS[3])["input_ids"]
    torch.testing.assert_close(values[3, : len(ids)] * scale, table[ids].detach())
    assert abs(values[mask].square().mean() - 1) < 1e-4
    assert "table" not in splits.info.tensors  # it is the model's
    unknown = ["what is this", *TEXTS[1:]]
    notes = opened((unknown, labels(60)), space="tokens", model=bert, **KEEP_ALL).info.notes
    assert any(note.startswith("3 of ") and "unknown to the tokenizer" in note for note in notes)


def test_fields_are_joined(bert):
    pairs = [(text, "it was") for text in TEXTS]
    splits = opened((pairs, labels(60)), space="tokens", model=bert, **KEEP_ALL)
    ids = splits.train.values["ids"][0]
    count = int(splits.train.values["lengths"][0])
    words = len(TEXTS[0].split())
    assert ids[words + 1] == 3  # the separator
    assert count == words + 2 + 3
    assert splits.train.words[0] == f"{TEXTS[0]} | it was"
    made = table(TEXTS, labels(60)).rename_column("text", "premise")
    made = made.add_column("hypothesis", ["it was"] * 60)
    info = opened(made, **KEEP_ALL).info
    assert info.columns == {"text 1": "premise", "text 2": "hypothesis", "label": "label"}
    own = SentencePiece.of_tensor(info.tensors["tokeniser"])
    assert own.pieces(own([("a", "b")])[0]).count("<sep>") == 1


def test_ppmi_by_hand():
    ids = np.array([[1, 2, 3, 0], [1, 2, 0, 0], [3, 1, 2, 3]])
    lengths = np.array([3, 2, 4])
    made = ppmi_table(ids, lengths, 5, 2).double().numpy()
    counts = np.zeros((5, 5))
    for row, length in zip(ids, lengths, strict=True):
        for i in range(length):
            for j in range(length):
                if i != j:
                    counts[row[i], row[j]] += 1
    word, context = counts.sum(1), counts.sum(0) ** 0.75
    with np.errstate(divide="ignore", invalid="ignore"):
        ppmi = np.log(counts / counts.sum() / np.outer(word / word.sum(), context / context.sum()))
    ppmi = np.nan_to_num(np.maximum(ppmi, 0), nan=0, posinf=0)
    left, values, _ = np.linalg.svd(ppmi)
    expected = (left[:, :2] * np.sqrt(values[:2]))[1:4]
    share = np.array([3, 3, 3]) / 9  # every token occurs three times
    expected -= share @ expected
    expected /= np.sqrt(share @ (expected**2).mean(1))
    seen = made[1:4]
    # singular vectors have no sign: compare inner products
    np.testing.assert_allclose(seen @ seen.T, expected @ expected.T, atol=1e-5)
    assert abs(made[0]).sum() > 0  # never seen: not all at one place
    assert not np.allclose(made[0], made[4])


def test_words_of_like_company_are_near():
    texts = [
        f"the {noun} {verb} here" for noun in ("cat", "dog") for verb in ("runs", "sleeps")
    ] * 9
    info = opened((texts, labels(36)), **KEEP_ALL, hidden=8).info
    pieces, table = SentencePiece.of_tensor(info.tensors["tokeniser"]), info.tensors["table"]
    by_word = {}
    for word in ("cat", "dog", "runs", "sleeps"):
        by_word[word] = table[pieces([(word,)])[0]].mean(0)
    near = torch.dist(by_word["runs"], by_word["sleeps"])
    assert near < torch.dist(by_word["runs"], by_word["cat"])


# Vectors ---------------------------------------------------------------------------------------


def test_ready_vectors_are_standardised():
    vectors = np.random.default_rng(0).normal(2, 3, (40, 6)).astype(np.float16)
    feature = datasets.List(datasets.Value("float16"), length=6)
    features = datasets.Features({"embedding": feature, "label": datasets.Value("int64")})
    made = datasets.Dataset.from_dict(
        {"embedding": list(vectors), "label": labels(40)}, features=features
    )
    for source in (made, (vectors, labels(40)), (torch.from_numpy(vectors), labels(40))):
        splits = opened(source, **KEEP_ALL)
        assert splits.train.values.dtype == torch.float16
        assert np.array_equal(splits.train.values.numpy(), vectors)
        inputs = everything(splits.train).inputs
        exact = vectors.astype(np.float64)
        centred = exact - exact.mean(0)
        expected = centred / np.sqrt((centred**2).mean())
        np.testing.assert_allclose(inputs.numpy(), expected, rtol=1e-4, atol=1e-5)
        assert splits.info.shape == (6,)
    space = Standardise(splits.info.tensors["mean"], splits.info.normalisation["std"])
    np.testing.assert_allclose(space.inverse(inputs).numpy(), exact, rtol=1e-4, atol=1e-4)


def test_sentence_vectors_are_those_of_a_plain_loop(bert, monkeypatch):
    from transformers import AutoModel

    model, tokenizer = AutoModel.from_pretrained(bert).eval(), word_tokenizer()
    monkeypatch.setattr(embed, "BATCH_TOKENS", 40)
    for pooling, unit in (("mean", True), ("cls", False)):
        splits = opened((TEXTS, labels(60)), model=bert, pooling=pooling, unit=unit, **KEEP_ALL)
        for row in (0, 13, 59):
            ids = torch.tensor([tokenizer(TEXTS[row])["input_ids"]])
            with torch.no_grad():
                hidden = model(input_ids=ids).last_hidden_state[0]
            expected = hidden.mean(0) if pooling == "mean" else hidden[0]
            expected = expected / expected.norm() if unit else expected
            torch.testing.assert_close(splits.train.values[row], expected, rtol=1e-4, atol=1e-5)
    assert splits.info.shape == (16,)


def test_sentence_vectors_are_computed_once(bert, monkeypatch, tmp_path, caplog):
    first = opened((TEXTS, labels(60)), model=bert)
    kept = sorted((tmp_path / "kept" / "text").iterdir())
    assert len(kept) == 3

    def never(*_):
        raise AssertionError("embedded again")

    with monkeypatch.context() as patch:
        patch.setattr(embed.SentenceEncoder, "embed", never)
        again = opened((TEXTS, labels(60)), model=bert)
    assert again.info == first.info
    assert torch.equal(again.train.values, first.train.values)
    kept[0].write_bytes(b"damaged")
    opened((TEXTS, labels(60)), model=bert)
    assert "made anew" in caplog.text
    assert len(sorted((tmp_path / "kept" / "text").iterdir())) == 3
    other = opened((TEXTS, labels(60)), model=bert, pooling="cls")
    assert other.info.fingerprint != first.info.fingerprint
    assert len(sorted((tmp_path / "kept" / "text").iterdir())) == 6


def test_the_fingerprint_of_sentence_vectors_is_that_of_their_tokens(bert, tmp_path, monkeypatch):
    first = opened((TEXTS, labels(60)), model=bert)
    turned = word_tokenizer([*reversed((*GOOD, *BAD, *PLAIN))])  # as many tokens, others
    turned.save_pretrained(tmp_path / "turned")
    other = opened((TEXTS, labels(60)), model=bert, tokenizer=str(tmp_path / "turned"))
    assert other.info.fingerprint != first.info.fingerprint
    assert not torch.equal(other.train.values, first.train.values)
    exact = embed.SentenceEncoder.embed
    rounded = lambda self, tokens, update: exact(self, tokens, update) + np.float32(1e-6)  # noqa: E731
    monkeypatch.setattr(embed.SentenceEncoder, "embed", rounded)
    monkeypatch.setenv("MMDD_CACHE", str(tmp_path / "elsewhere"))
    again = opened((TEXTS, labels(60)), model=bert)
    assert not torch.equal(again.train.values, first.train.values)
    assert again.info.fingerprint == first.info.fingerprint


def test_batches_are_of_like_lengths():
    lengths = np.random.default_rng(0).integers(1, 500, 1000).tolist()
    found = list(embed.batches(lengths))
    assert sorted(place for batch in found for place in batch) == list(range(1000))
    padded = sum(len(batch) * max(lengths[place] for place in batch) for batch in found)
    assert padded < 1.05 * sum(lengths)
    assert all(len(batch) * max(lengths[p] for p in batch) <= embed.BATCH_TOKENS for batch in found)


# Sources and columns ---------------------------------------------------------------------------


def test_files_folders_and_lists(tmp_path):
    made = table(TEXTS, labels(60))
    (tmp_path / "folder").mkdir()
    made.to_parquet(tmp_path / "folder" / "train.parquet")
    made.to_csv(tmp_path / "set.csv")
    made.save_to_disk(tmp_path / "saved")
    expected = opened(made, **KEEP_ALL).train.values["ids"]
    names = [("good", "bad"), ("0", "1")]
    for place in ("folder", "set.csv", "saved"):
        splits = opened(str(tmp_path / place), **KEEP_ALL)
        assert torch.equal(splits.train.values["ids"], expected), place
        assert splits.info.names in names
    items = list(zip(TEXTS, labels(60), strict=True))
    assert torch.equal(opened(items, **KEEP_ALL).train.values["ids"], expected)
    dicts = [{"body": text, "kind": code} for text, code in items]
    found = opened(dicts, text="body", label="kind", **KEEP_ALL)
    assert torch.equal(found.train.values["ids"], expected)
    both = [{"a": text, "b": "it was", "kind": code} for text, code in items]
    found = opened(both, text=["a", "b"], label="kind", **KEEP_ALL)
    assert found.train.words[0] == f"{TEXTS[0]} | it was"
    array = np.array(TEXTS)
    assert torch.equal(opened((array, labels(60)), **KEEP_ALL).train.values["ids"], expected)


def test_columns_are_found():
    made = table(TEXTS, labels(60), idx=list(range(60)))
    named = made.add_column("title", [f"film {n}" for n in range(60)])
    assert opened(named).info.columns["text"] == "text"
    words = made.rename_columns({"text": "words"}).add_column("genre", ["a", "b", "c"] * 20)
    assert opened(words).info.columns == {"text": "words", "label": "label"}
    intents = datasets.Dataset.from_dict({"said": TEXTS, "intent": ["x", "y"] * 30})
    assert opened(intents).info.columns == {"text": "said", "label": "intent"}
    both = made.add_column("vector", [[float(n), 1.0] for n in range(60)])
    found = opened(both)
    assert found.info.columns == {"text": "text", "embedding": "vector", "label": "label"}
    assert found.info.shape == (2,)
    assert found.train.words
    assert opened(both, space="tokens").info.columns == {"text": "text", "label": "label"}


def test_columns_that_do_not_fit():
    made = table(TEXTS, labels(60), number=list(range(60)), boxes=[[1.5] * 2] * 60)
    refused(made, "unknown text column 'txt'", "Did you mean 'text'?", text="txt")
    refused(made, "column 'number' holds no texts", text="number")
    refused(made, "column 'number' holds no vectors", embedding="number")
    refused(made, "unknown embedding column", embedding="boxen")
    refused(made, "is no label: ", "values differ", label="text", text="text")
    two = made.rename_columns({"text": "first"}).add_column("second", TEXTS[::-1])
    refused(two.remove_columns("boxes"), "several columns could be the text", "['first', 'second']",
            "data.text=NAME")  # fmt: skip
    refused(made.add_column("more", [[2.5]] * 60), "several columns could be the embedding")
    refused(made.remove_columns(["text", "boxes"]), "no column holds texts", "data.text=NAME")
    refused(made.remove_columns("boxes"), "no column holds vectors", space="column")
    free = datasets.Dataset.from_dict({"text": TEXTS, "label": [f"about {n}" for n in range(60)]})
    refused(free, "label column 'label' is no label: 60 of 60 values differ")
    ragged = made.remove_columns("boxes").add_column("v", [[1.0]] * 59 + [[1.0, 2.0]])
    refused(ragged, "not all of one length", "2 numbers in row 59", "1, as in row 0")


def test_what_python_hands_over():
    refused(([1, "a"], [0, 1]), "these values are no vectors")
    refused((["a", 1], [0, 1]), "these are no texts", "int")
    refused(([("a", "b"), ("a",)], [0, 1]), "more fields than others")
    refused(([{"a": 1}, {"b": 2}], [0, 1]), "no vectors")
    refused([("a", 0), (3, 1)], "item 1 of the data set cannot be read: this is no text")
    refused((np.zeros((4, 2, 2)), labels(4)), "are no vectors", "[N, D] floats")
    refused((np.full((4, 2), np.nan), labels(4)), "4 vectors are NaN or infinite", "row 0")
    refused((np.zeros((4, 2)), labels(4)), "vectors and no texts", space="tokens")
    refused((TEXTS, labels(60)), "texts and no vectors", space="column")
    refused((["a"], [0, 1]), "texts and labels differ in number")


def test_empty_texts_are_dropped_and_counted():
    texts = ["", "   ", None, *TEXTS[3:]]
    splits = opened((texts, labels(60)), **KEEP_ALL)
    assert splits.info.sizes["train"] == 57
    assert splits.train.targets.tolist() == labels(60)[3:]
    assert splits.train.words == TEXTS[3:]
    assert "3 empty texts dropped" in splits.info.notes
    refused((["", " "] * 2, labels(4)), "every text of split 'train' is empty")
    lone = opened((["", *TEXTS[1:]], ["lone", *["x", "y"] * 29, "x"]), **KEEP_ALL)
    assert lone.info.names == ("x", "y")
    assert any("1 of 3 classes have no training text" in note for note in lone.info.notes)


def test_models_that_do_not_fit(bert, tmp_path):
    source = (TEXTS, labels(60))
    large = word_tokenizer([f"w{n}" for n in range(50)])
    large.save_pretrained(tmp_path / "large")
    fits = {"tokenizer": str(tmp_path / "large"), "model": bert}
    for space in ("tokens", "sentence"):
        refused(source, "does not fit the encoder", "55 tokens", "at most 25", space=space, **fits)
    refused(source, "does not know these texts", space="tokens", tokenizer=str(tmp_path / "large"))
    refused(source, "no such folder", model=str(tmp_path / "none"))
    refused(source, "the tokenizer 'nobody/none' cannot be loaded", model="nobody/none")
    (tmp_path / "empty").mkdir()
    refused(source, "cannot be loaded", "save_pretrained", model=str(tmp_path / "empty"))


def test_an_encoder_that_cannot_be_fed_with_embeddings(tmp_path):
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=30,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    CLIPTextModel(config).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    refused((TEXTS, labels(60)), "cannot be fed with token embeddings", "CLIPTextModel",
            "data.space=sentence", space="tokens", model=str(tmp_path))  # fmt: skip


def test_a_set_too_small_for_a_tokenizer():
    refused((TEXTS, labels(60)), "no tokenizer can be trained on the 60", "data.tokenizer",
            vocabulary=260, **KEEP_ALL)  # fmt: skip


def test_options():
    with pytest.raises(ValidationError, match=r"needs data\.model"):
        TextData(space="sentence")
    with pytest.raises(ValidationError, match="gives ready vectors"):
        TextData(space="tokens", embedding="v")
    with pytest.raises(ValidationError, match="names no column"):
        TextData(text=[])
    with pytest.raises(ValidationError, match="must be different"):
        TextData(test_split="train")


def test_sentencepiece_is_trained_alike_twice():
    texts = [(text,) for text in TEXTS]
    assert train(texts, 400).stored == train(texts, 400).stored
    assert train(texts, 280).size <= 280
    assert train(texts, 8000).size < 500


def test_lookup_is_differentiable_nowhere_and_exact():
    found = Lookup(torch.arange(6.0).view(3, 2))(
        {"ids": torch.tensor([[2, 1, 0]], dtype=torch.int32), "lengths": torch.tensor([2])}
    )
    assert found["values"].tolist() == [[[4.0, 5.0], [2.0, 3.0], [0.0, 0.0]]]
    assert found["mask"].tolist() == [[True, True, False]]


@pytest.mark.parametrize(
    ("name", "shape", "classes", "train"),
    [("sst2", (32, 16), 2, 6920), ("banking77_minilm", (384,), 77, 9003)],
)
def test_shared_sets(name, shape, classes, train):
    if not (SHARED / "text" / name).is_dir():
        pytest.skip(f"shared/data/text/{name} is absent")
    info = opened(str(SHARED / "text" / name), vocabulary=500, hidden=16, length=32).info
    assert (info.shape, info.classes, info.sizes["train"]) == (shape, classes, train)
