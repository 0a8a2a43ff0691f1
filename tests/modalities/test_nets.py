"""Nets that several modalities share, against PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from fakes import noise
from torch import nn

from mmdd.modalities.nets.attention import Attention, TransformerBlock
from mmdd.modalities.nets.recurrent import GRU

LENGTHS = torch.tensor([6, 2, 4])
MASK = torch.arange(6) < LENGTHS[:, None]


def gru() -> tuple[GRU, nn.GRU]:
    """Ours, and PyTorch's of both ways with the same numbers."""
    own = GRU(5, 7).double()
    theirs = nn.GRU(5, 7, batch_first=True, bidirectional=True).double()
    for name, values in own.named_parameters():
        for suffix in ("", "_reverse"):
            getattr(theirs, f"{name}_l0{suffix}").data = values.data
    return own, theirs


def test_gru_is_that_of_pytorch_both_ways():
    own, theirs = gru()
    x = noise(3, 6, 5).double()
    both = torch.cat([own(x), own(x, backwards=True)], dim=2)
    torch.testing.assert_close(both, theirs(x)[0])


def test_gru_hands_on_what_a_mask_hides():
    own, theirs = gru()
    x = noise(3, 6, 5).double()
    packed = nn.utils.rnn.pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False)
    last = theirs(packed)[1]
    torch.testing.assert_close(own(x, MASK)[:, -1], last[0])
    torch.testing.assert_close(own(x, MASK, backwards=True)[:, 0], last[1])


@pytest.mark.parametrize("mask", [None, MASK])
def test_attention_is_that_of_pytorch(mask):
    own, theirs = Attention(8, 2).double(), nn.MultiheadAttention(8, 2, batch_first=True).double()
    theirs.in_proj_weight.data, theirs.in_proj_bias.data = own.project_in.parameters()
    theirs.out_proj.weight.data, theirs.out_proj.bias.data = own.project_out.parameters()
    x = noise(3, 6, 8).double()
    hidden = None if mask is None else ~mask
    expected = theirs(x, x, x, key_padding_mask=hidden, average_attn_weights=False)
    for found, wanted in zip(own.attended(x, mask), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_a_block_is_that_of_pytorch_and_has_second_derivatives():
    own = TransformerBlock(8, 2, 12).double()
    theirs = nn.TransformerEncoderLayer(
        8, 2, 12, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    ).double()
    attention = theirs.self_attn
    attention.in_proj_weight.data, attention.in_proj_bias.data = own.attend.project_in.parameters()
    attention.out_proj.load_state_dict(own.attend.project_out.state_dict())
    theirs.norm1.load_state_dict(own.before.state_dict())
    norm, first, _, second = own.think
    theirs.norm2.load_state_dict(norm.state_dict())
    theirs.linear1.load_state_dict(first.state_dict())
    theirs.linear2.load_state_dict(second.state_dict())
    x = noise(3, 6, 8).double()
    torch.testing.assert_close(own(x), theirs.train()(x))
    assert torch.autograd.gradgradcheck(
        lambda at: own(at, MASK[:1]), noise(1, 6, 8).double().requires_grad_()
    )
