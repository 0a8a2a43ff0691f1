"""What a recipe may say about graph data. Imports nothing heavy: recipes are checked with it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from mmdd.modalities.nets.options import Positive
from mmdd.modalities.tables.options import GIB, Count, Share


class GraphData(BaseModel):
    """The ``data:`` section of a recipe whose modality is graphs."""

    model_config = ConfigDict(extra="forbid")

    source: str | None = Field(
        None,
        description="'pyg:Planetoid/Cora' and the like, or a local .npz or .safetensors file, or a "
        "folder that holds one, or one .npy file per array",
    )
    root: str | None = Field(
        None,
        description="folder that holds the raw files of a 'pyg:' set; it is only read. By default "
        "they are downloaded into the cache",
    )
    setting: Literal["transductive", "inductive"] = Field(
        "transductive",
        description="nodes: 'transductive' sees the whole graph while training; 'inductive' sees "
        "the sub-graph of the training nodes, and of the validation and test nodes in turn",
    )
    split: int = Field(0, ge=0, description="column of masks that hold several splits")
    normalise: Literal["auto", "none", "row", "standard"] = Field(
        "auto",
        description="'row': each node's features sum to 1; 'standard': mean 0 and deviation 1 over "
        "the training nodes; 'auto': 'row' for bags of words, 'none' for one-hot features, else "
        "'standard'",
    )
    undirected: Literal["auto"] | bool = Field(
        "auto",
        description="true or 'auto': edges without an opposite get one; false: directions are kept",
    )
    neighbours: list[Positive] | None = Field(
        None,
        min_length=1,
        description="neighbours sampled per node and hop in training, e.g. [10, 5], for graphs "
        "that do not fit; by default all",
    )
    validation: Count | Share = Field(
        0.1,
        description="fraction (below 1) or number of items held out, class by class, where no "
        "validation mask exists: of those in no mask, else of training; 0 for none",
    )
    test: Share = Field(
        0.1,
        description="fraction of the items held out, class by class, where no masks exist; 0 for "
        "none",
    )
    max_degree: int = Field(
        64,
        ge=1,
        description="without node features, nodes get their degree as one-hot features; nodes of "
        "this degree or more share one",
    )
    max_feature_bytes: int = Field(
        8 * GIB, ge=1, description="largest feature matrix, in bytes once dense, to read"
    )
    seed: int = Field(0, ge=0, description="seed of hold-outs and of neighbour sampling")
