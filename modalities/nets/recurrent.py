"""Gated recurrent units with derivatives of every order.

Shape suffixes: n items, L places in time, D inputs, H hidden numbers.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GRU(nn.Module):
    """One layer of gated recurrent units (Cho et al. 2014), as ``nn.GRU`` has it.

    Written in plain operations, one step after the other: cuDNN's kernel has no second derivative,
    which gradient and trajectory matching need, and none runs under ``vmap``. Names, shapes and
    initialisation are those of ``nn.GRU``:

    r = s(W_r x + U_r h), z = s(W_z x + U_z h), c = tanh(W_c x + r U_c h), h' = (1 - z) c + z h,
    each product with a bias of its own.
    """

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.size, self.hidden = size, hidden
        self.weight_ih = nn.Parameter(torch.empty(3 * hidden, size))
        self.weight_hh = nn.Parameter(torch.empty(3 * hidden, hidden))
        self.bias_ih = nn.Parameter(torch.empty(3 * hidden))
        self.bias_hh = nn.Parameter(torch.empty(3 * hidden))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters uniformly within 1 / sqrt(H)."""
        bound = 1 / math.sqrt(self.hidden)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, backwards: bool = False) -> Tensor:
        """[n, L, D] -> [n, L, H], the state at every place; `backwards` the last one is read first.

        Where `mask` [n, L] is false the state is handed on as it is.
        """
        gates = F.linear(x, self.weight_ih, self.bias_ih)
        state = gates.new_zeros(x.shape[0], self.hidden)
        places = range(x.shape[1])
        states = []
        for place in reversed(places) if backwards else places:
            moved = self._moved(gates[:, place], state)
            state = moved if mask is None else torch.where(mask[:, place, None], moved, state)
            states.append(state)
        return torch.stack(states[::-1] if backwards else states, dim=1)

    def _moved(self, given: Tensor, state: Tensor) -> Tensor:
        own = F.linear(state, self.weight_hh, self.bias_hh)
        from_reset, from_update, from_new = given.chunk(3, dim=1)
        own_reset, own_update, own_new = own.chunk(3, dim=1)
        update = torch.sigmoid(from_update + own_update)
        new = torch.tanh(from_new + torch.sigmoid(from_reset + own_reset) * own_new)
        return new + update * (state - new)

    def extra_repr(self) -> str:
        """What tells this layer from others."""
        return f"{self.size}, {self.hidden}"
