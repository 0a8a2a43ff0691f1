"""What a recipe may say about graphs. Imports nothing heavy: recipes are checked with it."""

from __future__ import annotations

from mmdd.modalities.graphs.data_options import GraphData
from mmdd.modalities.graphs.encoder_options import AUGMENTATIONS, ENCODERS

DATA = GraphData
"""The model of the ``data:`` section, under the name that every modality gives it."""

HINTS = {"encoders": "gat,mlp", "export": "npz my_graph.npz"}
"""Words for the commands that are proposed after a run."""

__all__ = ["AUGMENTATIONS", "DATA", "ENCODERS", "HINTS", "GraphData"]
