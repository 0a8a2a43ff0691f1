"""An encoder of transformers as a learner: fed with token embeddings, under a fresh head.

Shape suffixes: n items, L positions, h numbers per token, D features.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mmdd.errors import UserError
from mmdd.modalities.nets.pooling import masked_mean
from mmdd.modalities.text import models
from mmdd.modalities.text.nets import TextEncoder, looked_at, require_tokens, shown
from mmdd.trees import Tree

PROBE = 4  # positions of the item by which masks are chosen and unused parameters told


MARK = "_is_hf_initialized"


class Pretrained(TextEncoder):
    """A transformers encoder of which all, some or no weights are trained.

    The frozen body is no part of the module's state: learners are drawn, copied and matched by
    their trained parameters alone, ``tuned`` and ``classifier``, so that cost grows with what is
    matched. The body runs without dropout, and with attention that can be differentiated twice.

    Parameters
    ----------
    shape: (L, h), h being the size of the encoder's token embeddings.
    model: folder or Hub name.
    tuning: "all", "head", "last" (the last `last` layers and the head) or "lora" (updates of rank
        `rank` and the head).
    pooling: "mean" of the last layer over the shown positions, or its first position ("cls").
    fresh: draw all weights anew for every learner; otherwise every learner starts from the
        pretrained ones, and only its head is drawn.
    scale: inputs times this are the encoder's token embeddings.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int,
        *,
        model: str,
        tuning: str = "all",
        last: int = 2,
        rank: int = 8,
        pooling: str = "mean",
        fresh: bool = False,
        scale: float = 1.0,
    ) -> None:
        length, hidden = require_tokens("transformers", shape)
        body = models.load_model(model, fresh=fresh)
        _require_fit(body, model, length, hidden)
        super().__init__(shape, _feature_size(body, hidden), classes)
        self.fresh, self.pooling, self.scale = fresh, pooling, scale
        self._about = (
            f"{models.digest(body, weights=not fresh)[:16]}, {tuning}, {last}, {rank}, {scale:.6g}"
        )
        if tuning == "lora":
            _add_low_rank(body, rank)
        # in a tuple: neither parameters nor buffers of this module
        self._body: tuple[nn.Module] = (body,)
        self._mask_of = _choose_mask(body, hidden)
        names = self._names(tuning, last)
        start = dict(body.named_parameters())
        self.tuned = nn.ParameterDict(
            {name.replace(".", "/"): nn.Parameter(start[name].detach().clone()) for name in names}
        )

    def _names(self, tuning: str, last: int) -> list[str]:
        """Parameters of the body that are trained; those that no output depends on are not."""
        if tuning == "head":
            return []
        used = self._used()
        if tuning == "all":
            return used
        if tuning == "lora":
            return [name for name in used if ".lora_" in name]
        layers = _last_layers(self._body[0], last)
        return [name for name in used if name.startswith(layers)]

    def _used(self) -> list[str]:
        parameters = dict(self._body[0].named_parameters())
        leaves = {name: leaf.detach().requires_grad_() for name, leaf in parameters.items()}
        values, mask = _probe(self.shape[1])
        output = self._run(values, mask, leaves)[-1].square().sum()
        found = torch.autograd.grad(output, list(leaves.values()), allow_unused=True)
        return [name for name, gradient in zip(leaves, found, strict=True) if gradient is not None]

    def _run(self, values: Tensor, mask: Tensor, tuned: Mapping[str, Tensor]) -> list[Tensor]:
        """Hidden states [n, L, D] of every layer, the embeddings left out."""
        output = self._output(values, mask, tuned, output_hidden_states=True)
        return [*output.hidden_states[1:-1], output.last_hidden_state]

    def _output(
        self, values: Tensor, mask: Tensor, tuned: Mapping[str, Tensor], **asked: bool
    ) -> Any:
        arguments = {
            "inputs_embeds": values * self.scale,
            "attention_mask": self._mask_of(mask, values.dtype),
            "return_dict": True,
            **asked,
        }
        return functional_call(self._body[0], dict(tuned), (), arguments)

    @functools.cached_property
    def attention_shape(self) -> tuple[int, int] | None:  # type: ignore[override]
        """Heads of the last layer and positions; None for a body that tells no attention."""
        values, mask = _probe(self.shape[1])
        like = next(self._body[0].parameters())
        values, mask = values.to(like), mask.to(like.device)
        try:
            with torch.no_grad():
                output = self._output(values, mask, {}, output_attentions=True)
            weights = output.attentions[-1]
            return (weights.shape[1], self.shape[0]) if weights.ndim == 4 else None
        except (AttributeError, TypeError, IndexError, ValueError):
            return None

    def attended(self, inputs: Tree) -> dict[str, Tensor]:
        """``logits``, and the last layer's ``attention`` [n, H, L]; see `looked_at`."""
        values, mask = shown(inputs)
        own, tuned = self._weights(values)
        output = self._output(values.to(own), mask, tuned, output_attentions=True)
        features = self._pool(output.last_hidden_state, mask).to(values.dtype)
        attention = looked_at(
            output.attentions[-1],
            mask,
            inputs["mask"].shape[1],
            first=self.pooling == "cls",
        )
        return {"logits": self.classifier(features), "attention": attention.to(values.dtype)}

    def layers(self, inputs: Tree) -> list[Tensor]:
        """The pooled output of every layer."""
        values, mask = shown(inputs)
        own, tuned = self._weights(values)
        return [
            self._pool(states, mask).to(values.dtype)
            for states in self._run(values.to(own), mask, tuned)
        ]

    def _weights(self, values: Tensor) -> tuple[torch.dtype, dict[str, Tensor]]:
        """What the body computes in, and its weights by name, for inputs like `values`."""
        # a body of 32 bits reads rounded weights and inputs, but computes in its own precision
        own = torch.promote_types(values.dtype, next(self._body[0].parameters()).dtype)
        tuned = {name.replace("/", "."): leaf.to(own) for name, leaf in self.tuned.items()}
        if own == torch.float64:
            tuned = {n: v.double() for n, v in self._body[0].named_parameters()} | tuned
        return own, tuned

    def _pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return hidden[:, 0] if self.pooling == "cls" else masked_mean(hidden, mask)

    def reset_parameters(self) -> None:
        """Draw the head; bring the body back to its start, or draw it too when it is `fresh`."""
        self.classifier.reset_parameters()
        if self.fresh:
            _redraw(self._body[0])
        start = dict(self._body[0].named_parameters())
        with torch.no_grad():
            for name, leaf in self.tuned.items():
                leaf.copy_(_drawn(name, start[name.replace("/", ".")]))

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        if recurse:
            self._body[0]._apply(fn)
        return self

    def extra_repr(self) -> str:
        """What the weights and their use are, by which recorded experts are told apart."""
        return f"body={self._about}, pooling={self.pooling}, fresh={self.fresh}"


MaskOf = Callable[[Tensor, torch.dtype], Tensor]
"""From a mask [n, L] bool to what an encoder reads."""


def _flat_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return mask.long()


def _whole_mask(mask: Tensor, dtype: torch.dtype, *, causal: bool = False) -> Tensor:
    """[n, 1, L, L] what is added to the attention of each position (rows) to each (columns)."""
    seen = mask[:, None, None, :].expand(-1, 1, mask.shape[1], -1)
    if causal:
        seen = seen & torch.ones_like(seen[0, 0]).tril()
    return (~seen).to(dtype) * torch.finfo(dtype).min


def _choose_mask(body: nn.Module, hidden: int) -> MaskOf:
    """The form of mask to give an encoder: the whole one where it does what the flat one does.

    From the flat one the library makes the whole one, looking at its values: that can neither be
    stacked by vmap nor compiled, and makes a GPU wait.
    """
    values, mask = _probe(hidden)

    def output(mask_of: MaskOf) -> Tensor:
        with torch.no_grad():
            read = body(inputs_embeds=values, attention_mask=mask_of(mask, values.dtype))
        found: Tensor = read.last_hidden_state[mask]
        return found

    expected = output(_flat_mask)
    for whole in (_whole_mask, functools.partial(_whole_mask, causal=True)):
        try:
            found = output(whole)
        except (ValueError, RuntimeError, IndexError):  # its shape is no form of mask there
            continue
        if torch.allclose(found, expected, rtol=1e-4, atol=1e-5):
            return whole
    return _flat_mask


def _probe(hidden: int) -> tuple[Tensor, Tensor]:
    """An item [1, PROBE, h] of small numbers that shows all positions but the last."""
    values = 0.1 * torch.randn(1, PROBE, hidden, generator=torch.Generator().manual_seed(0))
    return values, torch.arange(PROBE)[None] < PROBE - 1


def _drawn(name: str, start: Tensor) -> Tensor:
    """The value that a trained parameter begins with; updates of low rank are drawn as by peft."""
    if ".lora_" not in name.replace("/", "."):
        return start
    if "lora_A" in name:
        return nn.init.kaiming_uniform_(torch.empty_like(start), a=math.sqrt(5))
    return torch.zeros_like(start)


def _require_fit(body: nn.Module, name: str, length: int, hidden: int) -> None:
    size = models.token_embeddings(body, name).shape[1]
    if size != hidden:
        raise UserError(
            f"the encoder {name!r} does not read these token embeddings",
            got=f"{hidden} numbers per token",
            expected=f"{size}",
            hint=f"Set data.model to this encoder, or data.hidden={size} with fresh weights.",
        )
    most = getattr(getattr(body, "config", None), "max_position_embeddings", None)
    if isinstance(most, int) and length > most > 0:
        raise UserError(
            f"the encoder {name!r} reads shorter texts",
            got=f"{length} tokens",
            expected=f"at most {most}",
            hint=f"Set data.length={most} or less.",
        )


def _feature_size(body: nn.Module, hidden: int) -> int:
    size = getattr(getattr(body, "config", None), "hidden_size", None)
    return size if isinstance(size, int) else hidden


def _last_layers(body: nn.Module, last: int) -> tuple[str, ...]:
    """Prefixes of the names of the last layers: of the longest list of modules.

    Errors: UserError when there are fewer, or no list of layers.
    """
    lists = [(len(m), name) for name, m in body.named_modules() if isinstance(m, nn.ModuleList)]
    count, name = max(lists, default=(0, ""))
    if last > count:
        raise UserError(
            "learner.layers is more than the encoder has", got=last, expected=f"at most {count}"
        )
    return tuple(f"{name}.{number}." for number in range(count - last, count))


def _add_low_rank(body: nn.Module, rank: int) -> None:
    """Put trainable updates of low rank beside the linear layers (Hu et al. 2022), in place."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError(
            "tuning=lora needs the package peft", hint="Install it: pip install 'mmdd[peft]'"
        ) from None
    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=_linear(body))
    inject_adapter_in_model(config, body)
    body.eval()


def _linear(body: nn.Module) -> list[str]:
    """Names of the linear layers inside the encoder's layers."""
    return [
        name
        for name, part in body.named_modules()
        if isinstance(part, nn.Linear) and any(piece.isdigit() for piece in name.split("."))
    ]


def _redraw(body: nn.Module) -> None:
    """Draw every weight by the encoder's own rule, from the global generator."""
    draw = getattr(body, "_init_weights", None)
    assert callable(draw), "transformers encoders know how they begin"
    for part in body.modules():
        for leaf in (part, *part.parameters(recurse=False), *part.buffers(recurse=False)):
            # the library marks what is not to be drawn again
            if getattr(leaf, MARK, False):
                setattr(leaf, MARK, False)
        draw(part)
