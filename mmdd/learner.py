"""A learner: an encoder and a task as pure functions of a parameter dictionary.

Shape suffixes: n items, C outputs, D features, K stacked learners.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from mmdd.batch import Batch
from mmdd.errors import UserError
from mmdd.task import Task, guided, weighted_mean
from mmdd.trees import Tree, tree_cat, tree_leaves, tree_map, tree_take

Params = dict[str, Tensor]
"""Parameters and floating-point buffers of an encoder by name; stacked ones lead with [K]."""

Method = Literal["forward", "features", "layers", "attended"]
Precision = Literal["float32", "bfloat16", "float64"]


_WIDE = {"float32": torch.float32, "float64": torch.float64}


class _Dispatch(nn.Module):
    """Lets `functional_call` reach any method of the encoder, not only its forward."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, method: str, inputs: Tree) -> Any:
        return getattr(self.encoder, method)(inputs)


class Learner:
    """Encoder with head, task, precision and execution mode. Holds no parameters of its own.

    Parameters
    ----------
    encoder: module with ``forward(inputs) -> outputs``, ``features(inputs) -> [n, D]`` and
        ``layers(inputs) -> list[[n, D_l]]``. It may set ``mixes_items = True`` (batch norm: items
        of a batch see each other, so batches are never cut) and ``parameter_groups``, a dict from
        a group's name to parameter names (image encoder / text projection). One that tells where
        it looks sets ``attention_shape`` (heads H and positions L) and has ``attended(inputs) ->
        {"logits": outputs, "attention": [n, H, L]}``.
    precision: arithmetic of the encoder; parameters stay float32 and are cast on the way in.
    compiled: run the encoder through ``torch.compile``.
    chunk: largest number of items of one forward where no gradient is needed; small chunks stay
        in the processor's cache. None: never cut.
    rounds: products on the way to real gradients may be in bfloat16 where `precision` is float32:
        what is compared with them keeps its own.
    """

    def __init__(
        self,
        encoder: nn.Module,
        task: Task,
        *,
        device: torch.device | str = "cpu",
        precision: Precision = "float32",
        compiled: bool = False,
        chunk: int | None = None,
        rounds: bool = False,
    ) -> None:
        self.device = torch.device(device)
        # Draws are made on the CPU: the same numbers on every device, and no GPU stream touched.
        self._template = encoder.cpu()
        on_cpu = self.device.type == "cpu"
        self.encoder = encoder if on_cpu else copy.deepcopy(encoder).to(self.device)
        self.task = task
        self.compiled = compiled
        self.mixes_items = bool(getattr(encoder, "mixes_items", False))
        # Running statistics are updated in place: a cast copy would lose them.
        half = precision == "bfloat16" and not self.mixes_items
        self.dtype = torch.bfloat16 if half else _WIDE.get(precision, torch.float32)
        self.chunk = None if self.mixes_items else chunk
        self.rounds = rounds and self.dtype == torch.float32
        self._module = _Dispatch(self.encoder)
        self._names = [name for name, _ in encoder.named_parameters()]
        self._run: Callable[..., Any] = self._call
        if compiled:
            # All learners share the code of `_call`, and each shape and mode is a specialisation:
            # the default limit of eight would quietly send the ninth back to eager.
            torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
            self._run = torch.compile(self._call, dynamic=False)

    # -- parameters ---------------------------------------------------------------------------

    def init(self, generator: torch.Generator, stacked: int | None = None) -> Params:
        """Draw fresh parameters; `stacked` = K draws K of them, with a leading axis K."""
        if stacked is not None:
            draws = [self.init(generator) for _ in range(stacked)]
            return {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}
        seed = int(torch.randint(2**62, (1,), generator=generator))
        with _reseeded(seed):
            redraw(self._template)
        state = [*self._template.named_parameters(), *self._template.named_buffers()]
        return {
            name: value.detach().to(self.device, copy=True)
            for name, value in state
            if value.is_floating_point() or value.is_complex()
        }

    @property
    def trainable_names(self) -> list[str]:
        """Names of the parameters, buffers left out."""
        return list(self._names)

    @property
    def groups_of_parameters(self) -> dict[str, list[str]]:
        """Parameter names by group: matched, normalised and stepped separately."""
        return getattr(self.encoder, "parameter_groups", None) or {"all": list(self._names)}

    def trainable(self, params: Params) -> Params:
        """The entries of `params` that are parameters, not buffers."""
        return {name: params[name] for name in self._names}

    @property
    def attention_shape(self) -> tuple[int, int] | None:
        """Heads and positions of the attention that the encoder tells; None where it tells none."""
        return getattr(self.encoder, "attention_shape", None)

    # -- pure functions of the parameters --------------------------------------------------------

    def outputs(self, params: Params, batch: Batch, *, train: bool = True) -> Any:
        """What the task's loss reads, e.g. logits [n, C], in float32 (float64 if so asked).

        Where the targets are `guided`: logits and attention.
        """
        return self._forward(_method(batch.targets), params, batch, train)

    def attended(self, params: Params, batch: Batch, *, train: bool = True) -> Any:
        """``{"logits", "attention" [n, H, L]}`` of any batch, by an encoder that tells."""
        return self._forward("attended", params, batch, train)

    def features(self, params: Params, batch: Batch, *, train: bool = True) -> Tensor:
        """[n, D] penultimate features."""
        return self._forward("features", params, batch, train)

    def layers(self, params: Params, batch: Batch, *, train: bool = True) -> list[Tensor]:
        """Outputs of every block, each [n, D_l]; the last one equals `features`."""
        return self._forward("layers", params, batch, train)

    def item_losses(self, params: Params, batch: Batch, *, train: bool = True) -> Tensor:
        """[n] loss of every item."""
        return self.task.item_losses(self.outputs(params, batch, train=train), batch.targets)

    def loss(self, params: Params, batch: Batch, *, train: bool = True) -> Tensor:
        """Weighted mean of the item losses."""
        return weighted_mean(self.item_losses(params, batch, train=train), batch.weights)

    def pure_loss(
        self,
        params: Params,
        inputs: Tree,
        targets: Tree,
        weights: Tensor | None = None,
        *,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Mean loss that has no effect but its value: to be transformed by `torch.func`.

        Runs uncompiled, in the mode that the encoder is in, and in `dtype` (the learner's own if
        not given). Running statistics are updated in copies, so that batch norm is pure too.
        """
        dtype = self.dtype if dtype is None else dtype
        if self.mixes_items:
            buffers = {name: params.get(name, own) for name, own in self.encoder.named_buffers()}
            params = {**params, **{name: value.clone() for name, value in buffers.items()}}
        outputs = self._call(_method(targets), params, inputs, dtype)
        wide = _wide(dtype)
        targets = tree_map(lambda leaf: _to(leaf, wide), targets)
        return weighted_mean(self.task.item_losses(outputs, targets), weights)

    def transform(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """`fn`, compiled if this learner is: for transforms of `pure_loss`."""
        return torch.compile(fn, dynamic=False) if self.compiled else fn

    def stacked_outputs(
        self, params: Params, inputs: Tree, targets: Tree = None, *, train: bool = True
    ) -> Any:
        """K learners at once: params [K, ...] and inputs [K, n, ...] -> outputs [K, n, C].

        Of `targets` only their kind is read.
        """
        self.encoder.train(train)
        method = _method(targets)
        run = vmap(lambda p, x: self._call(method, p, x), randomness="different")
        return run(params, inputs)

    # -- how it runs ---------------------------------------------------------------------------

    def _forward(self, method: Method, params: Params, batch: Batch, train: bool) -> Any:
        self.encoder.train(train)
        needs_grad = torch.is_grad_enabled() and any(
            leaf.requires_grad for leaf in [*params.values(), *tree_leaves(batch.inputs)]
        )
        cut = self.chunk if not (batch.joint or needs_grad) else None
        if cut is None or len(batch) <= cut:
            return self._run(method, params, batch.inputs)
        return self._forward_chunks(method, params, batch.inputs, len(batch), cut)

    def _forward_chunks(
        self, method: Method, params: Params, inputs: Tree, n: int, size: int
    ) -> Any:
        # Every chunk has the same shape (the last one is padded and cut back), so that a compiled
        # function is specialised once.
        parts = []
        for start in range(0, n, size):
            stop = min(start + size, n)
            rows = torch.arange(start, start + size, device=self.device).clamp_max(n - 1)
            part = self._run(method, params, tree_take(inputs, rows))
            parts.append(tree_take(part, slice(stop - start)))
        return tree_cat(parts)

    def _call(
        self, method: Method, params: Params, inputs: Tree, dtype: torch.dtype | None = None
    ) -> Any:
        dtype = self.dtype if dtype is None else dtype
        cast = {f"encoder.{name}": _to(value, dtype) for name, value in params.items()}
        inputs = tree_map(lambda leaf: _to(leaf, dtype), inputs)
        result = functional_call(self._module, cast, (method, inputs))
        wide = _wide(dtype)
        return tree_map(lambda leaf: _to(leaf, wide), result)


def _method(targets: Tree) -> Method:
    """The encoder's method whose outputs are compared with `targets`."""
    return "attended" if guided(targets) else "forward"


def _wide(dtype: torch.dtype) -> torch.dtype:
    """What results of arithmetic in `dtype` are handed over in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _to(leaf: Tensor, dtype: torch.dtype) -> Tensor:
    return leaf.to(dtype) if leaf.is_floating_point() else leaf


def redraw(module: nn.Module) -> None:
    """Re-initialise every layer by its own rule, or by the module's own `reset_parameters`."""
    own = getattr(module, "reset_parameters", None)
    if callable(own):
        own()
        return
    forgotten = [name for name, _ in module.named_parameters(recurse=False)]
    if forgotten:
        raise UserError(
            f"{type(module).__name__} holds the parameters {', '.join(forgotten)} but no"
            " reset_parameters",
            hint="Give it one: every draw of a learner calls it.",
        )
    for child in module.children():
        redraw(child)


@contextlib.contextmanager
def _reseeded(seed: int) -> Iterator[None]:
    # PyTorch's initialisers read the global generator: lend it to them and give it back.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@functools.cache
def can_compile() -> bool:
    """True when ``torch.compile`` works here: tried, since a compiler alone is no proof."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.compile(_one_more)(torch.zeros(8))
    except Exception:
        return False
    return True


def _one_more(x: Tensor) -> Tensor:
    return x * 2 + 1


def native_bfloat16(device: torch.device) -> bool:
    """True when bfloat16 convolutions and products are fast on `device`."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()) or bool(
        getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    )
