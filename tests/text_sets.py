"""Small text sets and tiny encoders of transformers for the tests: made here, never downloaded."""

import datasets
import numpy as np
import torch

from mmdd.modalities.text.data import open_text
from mmdd.modalities.text.options import TextData

KEEP_ALL = {"validation": 0, "test": 0.0}  # training items in the order of the source
GOOD = ("good", "fine", "lovely", "bright", "warm")
BAD = ("bad", "poor", "awful", "dull", "cold")
PLAIN = ("the", "film", "day", "was", "a", "very", "it", "seemed", "rather", "and")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def sentences(count, seed=0):
    """Sentences of 3 to 12 words; every second one has good words, the others bad ones."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        words = list(rng.choice(PLAIN, rng.integers(2, 11)))
        place = rng.integers(0, len(words) + 1)
        words.insert(place, rng.choice(BAD if number % 2 else GOOD))
        found.append(" ".join(words))
    return found


def labels(count):
    return [number % 2 for number in range(count)]


def table(texts, codes, **columns):
    data = {"text": texts, "label": codes, **columns}
    made = datasets.Dataset.from_dict(data)
    if not isinstance(codes[0], str):
        made = made.cast_column("label", datasets.ClassLabel(names=["good", "bad"]))
    return made


def opened(source, **options):
    return open_text(source, TextData(**options), torch.device("cpu"))


def word_tokenizer(words=(*GOOD, *BAD, *PLAIN)):
    """One token per word; anything else is unknown."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate((*SPECIAL, *words))}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad", "unk", "cls", "sep", "mask"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(
        tokenizer_object=made, **{f"{kind}_token": name for kind, name in names.items()}
    )


def save_bert(folder, *, hidden=16, words=None, seed=0, **options):
    """A BERT of two layers with its tokenizer; its weights are random."""
    from transformers import BertConfig, BertModel

    tokenizer = word_tokenizer() if words is None else word_tokenizer(words)
    settings = {"max_position_embeddings": 24, "num_hidden_layers": 2, **options}
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        num_attention_heads=2,
        intermediate_size=2 * hidden,
        initializer_range=0.3,
        **settings,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
