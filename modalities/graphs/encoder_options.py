"""Options of the graph encoders and augmentations, as recipes write them. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mmdd.modalities.nets.options import NoAugmentation, Positive

Share = Annotated[float, Field(ge=0, lt=1)]
Pool = Literal["mean", "sum", "max"]


class EncoderOptions(BaseModel):
    """Options are the keyword arguments of the encoder's class.

    Nets without options of their own have the sizes of the field's evaluation: two layers, 256
    hidden features, half of them dropped while training.
    """

    model_config = ConfigDict(extra="forbid", validate_default=True)

    width: Positive = Field(256, description="features of a hidden layer")
    layers: Positive = Field(
        2, description="layers; for whole graphs a linear one follows the convolutions"
    )
    dropout: Share = Field(0.5, description="share of hidden features dropped while training")
    pool: Pool = Field("mean", description="how the nodes of a whole graph become one vector")


class GCN(EncoderOptions):
    """Graph convolutions (Kipf & Welling 2017); the field's evaluation net."""

    encoder: Literal["gcn"] = "gcn"


class SGC(EncoderOptions):
    """Propagation of the features, then a linear layer (Wu et al. 2019)."""

    encoder: Literal["sgc"] = "sgc"
    hops: Positive = Field(2, description="propagations")
    layers: Positive = Field(1, description="linear layers behind them, with ReLU in between")
    dropout: Share = Field(0.0, description="share of hidden features dropped while training")


class SAGE(EncoderOptions):
    """GraphSAGE with the weighted mean of all neighbours (Hamilton et al. 2017)."""

    encoder: Literal["sage"] = "sage"


class GAT(EncoderOptions):
    """Attention over neighbours (Velickovic et al. 2018): 8 heads of 8 features.

    GCond's tables have 16 of 16.
    """

    encoder: Literal["gat"] = "gat"
    width: Positive = Field(64, description="features of a hidden layer, all heads together")
    heads: Positive = Field(8, description="heads of a hidden layer")

    @model_validator(mode="after")
    def _shared_out(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads, {self.heads}")
        return self


class APPNP(EncoderOptions):
    """An MLP whose outputs spread by personalised PageRank (Gasteiger et al. 2019)."""

    encoder: Literal["appnp"] = "appnp"
    hops: Positive = Field(10, description="steps of the spread")
    alpha: float = Field(0.1, ge=0, le=1, description="probability of a jump back")


class Cheby(EncoderOptions):
    """Chebyshev polynomials of the Laplacian (Defferrard et al. 2016)."""

    encoder: Literal["cheby"] = "cheby"
    order: Positive = Field(2, description="number of polynomials: a layer reaches order - 1 hops")


class GIN(EncoderOptions):
    """Sums of neighbours through MLPs (Xu et al. 2019), for whole graphs first of all."""

    encoder: Literal["gin"] = "gin"
    width: Positive = Field(64, description="features of a hidden layer")
    layers: Positive = Field(
        3, description="layers; for whole graphs a linear one follows the convolutions"
    )
    eps: float = Field(
        0.0, allow_inf_nan=False, description="weight of a node's own state, less 1; not learned"
    )
    pool: Pool = Field("sum", description="how the nodes of a whole graph become one vector")


class MLP(EncoderOptions):
    """Linear layers on each node's own features."""

    encoder: Literal["mlp"] = "mlp"


class GraphDropout(BaseModel):
    """Whole features and edges are left out at random; the same features of real and synthetic."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["graph-dropout"] = "graph-dropout"
    features: Share = Field(
        0.2, description="share of features set to 0, for all nodes; the others are scaled up"
    )
    edges: Share = Field(0.2, description="share of edges left out, both directions together")


ENCODERS: dict[str, type[BaseModel]] = {
    "gcn": GCN,
    "sgc": SGC,
    "sage": SAGE,
    "gat": GAT,
    "appnp": APPNP,
    "cheby": Cheby,
    "gin": GIN,
    "mlp": MLP,
}
AUGMENTATIONS: dict[str, type[BaseModel]] = {
    "none": NoAugmentation,
    "graph-dropout": GraphDropout,
}
