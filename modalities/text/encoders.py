"""Text encoders by name.

Every encoder is built as ``build(options, info)`` and offers ``forward`` (logits [n, classes]),
``features`` ([n, D], the classifier's input), ``layers`` (a list of [n, D_l]) and ``classifier``.
Inputs are ``{"values": [n, L, h], "mask": [n, L]}`` in token space and [n, D] otherwise.

To add one: subclass `TextEncoder` of `nets.py`, multiply by the mask first, see that every
parameter belongs to a module with `reset_parameters`, and add a line below.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from mmdd.errors import UserError, unknown_name
from mmdd.modalities.text import nets
from mmdd.modality import DataInfo

ENCODERS: dict[str, type[nn.Module]] = {
    "textcnn": nets.TextCNN,
    "gru": nets.GRU,
    "transformer": nets.Transformer,
    "mlp": nets.MLP,
    "linear": nets.Linear,
}


def build(options: Any, info: DataInfo) -> nn.Module:
    """Build the encoder that the options name, for items of the set's shape."""
    chosen = options.model_dump()
    name = chosen.pop("encoder")
    if name == "auto":
        name = "textcnn" if len(info.shape) == 2 else "mlp"
    if name == "transformers":
        return _pretrained(chosen, info)
    if name not in ENCODERS:
        raise unknown_name("encoder", name, [*ENCODERS, "auto", "transformers"])
    return ENCODERS[name](tuple(info.shape), outputs_of(info), **chosen)


def outputs_of(info: DataInfo) -> int:
    """Logits of an encoder: one per class, or per label where a text has any number of them."""
    return int(info.normalisation.get("labels", info.classes))


def _pretrained(chosen: dict[str, Any], info: DataInfo) -> nn.Module:
    from mmdd.modalities.text.pretrained import Pretrained

    nets.require_tokens("transformers", tuple(info.shape))
    own = info.normalisation.get("model")
    model = chosen.pop("model") or own
    if model is None:
        raise UserError(
            "encoder transformers needs a model",
            hint="Set data.model (its tokenizer and embeddings are then used), or learner.model.",
        )
    if own is None and not chosen["fresh"]:
        raise UserError(
            f"the encoder {model!r} knows other token embeddings than these",
            got=f"a table made here ({info.normalisation.get('table')})",
            expected="its own",
            hint="Set data.model to it, or learner.fresh=true to train it from scratch.",
        )
    chosen["last"] = chosen.pop("layers")
    if model != own and own is not None and not chosen["fresh"]:
        _require_same_table(model, own, info)
    scale = float(info.normalisation.get("scale", 1.0))
    return Pretrained(tuple(info.shape), outputs_of(info), model=model, scale=scale, **chosen)


def _require_same_table(model: str, own: str, info: DataInfo) -> None:
    """Refuse a pretrained encoder whose token embeddings are not those of the data."""
    from mmdd.modalities.text import models

    values = models.token_embeddings(models.load_model(model), model)
    if models.table_digest(values) != info.normalisation.get("table"):
        raise UserError(
            f"the encoder {model!r} has other token embeddings than the data's, {own!r}",
            hint="Use one model for both: data.model and learner.model.",
        )
