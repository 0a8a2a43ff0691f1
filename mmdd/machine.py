"""How the work is run on this machine: device, precision, compilation, memory."""

from __future__ import annotations

import ctypes
import functools
import os
import resource
import sys
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmdd.errors import UserError
from mmdd.learner import can_compile, native_bfloat16
from mmdd.recipe import Run
from mmdd.trees import Tree, tree_leaves

EAGER_FLOPS = 2e10
"""Multiply-adds x 2 per second that ordinary cores reach without compilation; only used to guess
whether compiling pays. Measured on one core, training a ConvNet-D3 of width 32 on 28x28 pixels:
1.2e10 in float32 and 1.8e10 in bfloat16, compiled 4e10 and 9e10: norms and poolings cost."""
COMPILE_SECONDS = 60.0
KEPT_BLOCK, KEPT_FREE = 2**28, 2**30
"""Bytes: largest block, and free bytes in all, that a process keeps for its next step."""
CHUNK = 32
"""Items per forward on a CPU: small enough for the maps to stay in its cache."""


def device(name: str) -> torch.device:
    """Return the device called `name`; ``auto`` is a GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
    except RuntimeError:
        raise UserError("unknown device", got=name, expected="auto, cpu, cuda or cuda:N") from None
    if found.type not in ("cpu", "cuda"):
        raise UserError("unsupported device", got=name, expected="auto, cpu, cuda or cuda:N")
    if found.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (found.index or 0) >= count:
            raise UserError(
                "this CUDA device is not there",
                got=name,
                expected=f"one of {count} devices" if count else "cpu: torch sees no CUDA device",
                hint="Use --device cpu, or leave the option out.",
            )
    return found


def flops_per_item(encoder: nn.Module, example: Tree) -> float:
    """Arithmetic of one forward pass of one item (`example` leads with an axis of length 1)."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder.eval()(example)
    return float(counter.get_total_flops())


def keeps_gradients_in_half(encoder: nn.Module) -> bool:
    """True for nets of at most six weight layers.

    With bfloat16 the input gradient of a ConvNet-D3 keeps a cosine of 0.995 with float32, that of
    VGG11 or ResNet18 with instance norm falls to 0.8 and less.
    """
    return sum(parameter.ndim > 1 for parameter in encoder.parameters()) <= 6


def execution(
    run: Run,
    where: torch.device,
    encoder: nn.Module,
    example: Tree,
    items: float,
    *,
    eager: bool = False,
    minutes: float | None = None,
) -> dict[str, Any]:
    """Choose precision, compilation and chunk for `items` forward passes of one item in all.

    A backward pass counts as two forward passes. `eager`: what is left open is neither compiled
    nor rounded (nets whose shapes change at every step, or that have few operations), but for large
    products on the way to real gradients (``rounds`` of `Learner`). `minutes`: no more than these
    are there, however many passes are asked for.

    The choice depends on the recipe and the kind of machine, never on a clock, so that the same
    recipe gives the same bits again.
    """
    item_flops = flops_per_item(encoder, example)
    compiled = run.compile
    if eager and compiled == "auto":
        compiled = False
    if compiled == "auto":
        rate = EAGER_FLOPS if where.type == "cpu" else 1e13
        seconds = items * item_flops / rate
        if minutes is not None:
            seconds = min(seconds, 60 * minutes)
        compiled = seconds > 2 * COMPILE_SECONDS and can_compile()
    precision = run.precision
    shallow = native_bfloat16(where) and keeps_gradients_in_half(encoder)
    rounds = precision == "auto" and shallow
    if eager and precision == "auto":
        precision = "float32"
    if precision == "auto":
        # Below a few MFLOP an item the calls dominate, and bfloat16 only adds casts.
        fast = shallow and item_flops > 2e6
        # the last norm of a tiny item sees four numbers, too few to round them
        fast = fast and sum(leaf.numel() for leaf in tree_leaves(example)) >= 512
        precision = "bfloat16" if fast else "float32"
    return {
        "compiled": bool(compiled),
        "precision": precision,
        "chunk": CHUNK if where.type == "cpu" else None,
        "rounds": rounds,
    }


@functools.cache
def keep_memory() -> bool:
    """Keep freed blocks for the next step, where the C library is glibc; True if it does now.

    Left alone, it hands blocks of 32 MiB and more back to the system at once and gets them anew,
    page by page: an eighth of a training step (ConvNet-D3-W128, 64 images). What gaps between kept
    blocks cost in memory is measured in ``benchmarks/NOTES.md``: nothing there, up to a quarter in
    long trajectories. What the environment says (``MALLOC_TRIM_THRESHOLD_``) stays.
    """
    own = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
    if any(name in os.environ for name in own):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another library, another system
        return False
    mmap_threshold, trim_threshold = -3, -1  # malloc.h
    return bool(mallopt(mmap_threshold, KEPT_BLOCK) and mallopt(trim_threshold, KEPT_FREE))


def settle(run: Run) -> None:
    """Set threads and determinism as the recipe asks, and keep memory."""
    keep_memory()
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    if run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)


def peak_memory_mb(where: torch.device) -> float:
    """Largest memory so far: of the process, or of the GPU when one is used. In MiB."""
    if where.type == "cuda":
        return torch.cuda.max_memory_allocated(where) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
