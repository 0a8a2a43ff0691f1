"""Small encoders of transformers for the benchmarks: made here, from a configuration and a seed.

A folder holds a BERT and a WordPiece tokenizer of the same texts. Its weights are random, or were
trained on a training split to tell a larger encoder's vectors of the texts, labels unseen. Equal
arguments give equal folders.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from common import DATA
from datasets import load_dataset
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from torch import Tensor
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
POSITIONS = 128


def texts_of(data: str, split: str = "train") -> tuple[list[str], list[int]]:
    """Texts and class numbers of a split of the shared data."""
    part = load_dataset(str(DATA / data), split=split)
    return list(part["text"]), list(part["label"])


def vectors_of(data: str, split: str = "train") -> Tensor:
    """[texts, D] ready embeddings of a split of the shared data."""
    part = load_dataset(str(DATA / data), split=split).with_format("torch")
    return part["embedding"][:].float()


def tokenizer_of(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """BERT's kind of tokenizer: lower case, words, WordPiece, [CLS] and [SEP] around."""
    made = Tokenizer(models.WordPiece(unk_token=SPECIAL["unk"]))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    names = list(SPECIAL.values())
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary, special_tokens=names, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    around = [(name, made.token_to_id(name)) for name in (SPECIAL["cls"], SPECIAL["sep"])]
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=around
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        model_max_length=POSITIONS,
        **{f"{kind}_token": name for kind, name in SPECIAL.items()},
    )


def make(
    folder: Path,
    texts: Sequence[str],
    *,
    vocabulary: int = 4000,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 2,
    vectors: Tensor | None = None,
    epochs: int = 8,
    seed: int = 0,
) -> str:
    """Write a BERT and its tokenizer into `folder`, unless they are there; returns the folder.

    With `vectors` [texts, D] it is trained for `epochs` until a linear map of the mean of its last
    layer points where they do (AdamW 1e-3, batches of 64). The map is not kept.
    """
    if (folder / "config.json").exists():
        return str(folder)
    tokenizer = tokenizer_of(texts, vocabulary)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        max_position_embeddings=POSITIONS,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertModel(config)
        if vectors is not None:
            train(model, tokenizer, texts, vectors, epochs)
    tokenizer.save_pretrained(folder)
    model.eval().save_pretrained(folder)
    return str(folder)


def train(
    model: BertModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    vectors: Tensor,
    epochs: int,
) -> None:
    """Train the model under a linear layer, in place: one minus the cosine to the vectors."""
    head = torch.nn.Linear(model.config.hidden_size, vectors.shape[1])
    optimiser = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=1e-3)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(texts)).split(64):
            batch = [texts[row] for row in rows.tolist()]
            given = tokenizer(batch, padding=True, truncation=True, return_tensors="pt")
            shown = given["attention_mask"].unsqueeze(-1)
            states = model(**given).last_hidden_state
            told = head((states * shown).sum(dim=1) / shown.sum(dim=1))
            optimiser.zero_grad()
            (1 - F.cosine_similarity(told, vectors[rows], dim=1)).mean().backward()
            optimiser.step()
