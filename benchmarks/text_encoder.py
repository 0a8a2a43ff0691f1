"""Small encoders of transformers for the benchmarks: made here, from a configuration and a seed.

A folder holds a BERT with random weights, or weights that were trained on a training split as a
classifier, and a WordPiece tokenizer of the same texts. Equal arguments give equal folders.
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
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
POSITIONS = 128


def texts_of(data: str, split: str = "train") -> tuple[list[str], list[int]]:
    """Texts and class numbers of a split of the shared data."""
    part = load_dataset(str(DATA / data), split=split)
    return list(part["text"]), list(part["label"])


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
    labels: Sequence[int] | None = None,
    epochs: int = 3,
    seed: int = 0,
) -> str:
    """Write a BERT and its tokenizer into `folder`, unless they are there; returns the folder.

    With `labels` its weights are trained for `epochs` to classify the texts by the mean of the last
    layer (AdamW 1e-3, batches of 64); the classifier itself is not kept.
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
        if labels is not None:
            train(model, tokenizer, texts, labels, epochs)
    tokenizer.save_pretrained(folder)
    model.eval().save_pretrained(folder)
    return str(folder)


def train(
    model: BertModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    labels: Sequence[int],
    epochs: int,
) -> None:
    """Train the model under a linear classifier, in place."""
    head = torch.nn.Linear(model.config.hidden_size, max(labels) + 1)
    optimiser = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=1e-3)
    targets = torch.tensor(list(labels))
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(texts)).split(64):
            batch = [texts[row] for row in rows.tolist()]
            given = tokenizer(batch, padding=True, truncation=True, return_tensors="pt")
            shown = given["attention_mask"].unsqueeze(-1)
            states = model(**given).last_hidden_state
            features = (states * shown).sum(dim=1) / shown.sum(dim=1)
            loss = F.cross_entropy(head(features), targets[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
