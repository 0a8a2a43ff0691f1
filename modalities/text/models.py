"""Encoders and tokenizers of transformers, from a local folder or the Hub, with plain errors.

Weights are read from safetensors alone: nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmdd.errors import UserError


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the library's own progress bars and warnings from the terminal."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _said_plainly(what: str, name: str) -> Iterator[None]:
    try:
        with quiet():
            yield
    except UserError:
        raise
    except Exception as error:  # files and configurations raise what they lead the library to
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = (lines or [type(error).__name__])[0].rstrip(".")
        raise UserError(
            f"{what} {name!r} cannot be loaded: {said}",
            hint="Give a folder that save_pretrained wrote (weights as safetensors), or a Hub name "
            "(HF_HUB_OFFLINE must be unset)",
        ) from error


def _place(name: str) -> str:
    """The folder that a person means by `name`, or the Hub name."""
    path = Path(name).expanduser()
    if not path.exists() and name.startswith((".", "/", "~")):
        raise UserError(f"no such folder: {name!r}", expected="a transformers model")
    return str(path) if path.exists() else name


def load_tokenizer(name: str) -> Any:
    """Load a tokenizer."""
    from transformers import AutoTokenizer

    with _said_plainly("the tokenizer", name):
        return AutoTokenizer.from_pretrained(_place(name))


def load_model(name: str, *, fresh: bool = False, attention: str | None = "eager") -> nn.Module:
    """Load an encoder in evaluation mode, its parameters frozen.

    Parameters
    ----------
    fresh: draw its weights (from the global generator) and read the configuration alone.
    attention: "eager" can be differentiated twice on every device; None is the
        library's choice, which is faster.
    """
    from transformers import AutoConfig, AutoModel

    with _said_plainly("the encoder", name):
        place, how = _place(name), {} if attention is None else {"attn_implementation": attention}
        if fresh:
            model = AutoModel.from_config(AutoConfig.from_pretrained(place), **how)
        else:
            model = AutoModel.from_pretrained(place, use_safetensors=True, **how)
    model = model.float().eval().requires_grad_(False)
    assert isinstance(model, nn.Module)
    return model


def token_embeddings(model: nn.Module, name: str) -> Tensor:
    """[V, h] the input embeddings of an encoder that can be fed with them.

    Errors: UserError for an encoder whose forward takes no ``inputs_embeds``.
    """
    weight = input_embeddings(model)
    takes = "inputs_embeds" in inspect.signature(model.forward).parameters
    if not takes or weight is None:
        raise UserError(
            f"the encoder {name!r} cannot be fed with token embeddings",
            got=type(model).__name__,
            expected="an encoder whose forward takes inputs_embeds",
            hint="Use it for sentence vectors: data.space=sentence.",
        )
    return weight


def input_embeddings(model: nn.Module) -> Tensor | None:
    """[V, h] the input embeddings of a model, or None where it has none."""
    read = getattr(model, "get_input_embeddings", None)
    weight = getattr(read(), "weight", None) if callable(read) else None
    return weight.detach() if isinstance(weight, Tensor) else None


def table_digest(values: Tensor) -> str:
    """Fingerprint of token embeddings."""
    return hashlib.sha256(values.cpu().contiguous().numpy().data).hexdigest()[:16]


def digest(model: nn.Module, *, weights: bool = True) -> str:
    """Fingerprint of a model's kind, configuration and weights (or without these)."""
    config = getattr(model, "config", None)
    about = config.to_json_string(use_diff=False) if config is not None else ""
    # where it was loaded from and by which version is no part of what it computes
    about = re.sub(r'"(_name_or_path|transformers_version)": [^\n]*\n', "", about)
    hasher = hashlib.sha256(f"{type(model).__name__}{about}".encode())
    if not weights:
        return hasher.hexdigest()
    for name, value in model.state_dict().items():
        hasher.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        hasher.update(value.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return hasher.hexdigest()
