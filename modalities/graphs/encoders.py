"""Graph encoders by name.

Every encoder is built as ``ENCODERS[name](features, classes, level, **options)``, `features` per
node and `level` ``node`` or ``graph``, and offers ``forward`` (logits [n, classes]), ``features``
([n, D]), ``layers`` (a list of [n, D_l]), ``hops`` and ``linear_hops``. All of them read all forms
of inputs: see `propagate.read`.

To add one: subclass `ConvolutionNet` or `GraphEncoder`, see that every parameter belongs to a
module with `reset_parameters` and that what its results depend on shows in its `repr`, and add a
line below and a model in `encoder_options.py`.
"""

from __future__ import annotations

from mmdd.modalities.graphs.convolutions import GAT, GCN, GIN, SAGE, Cheby
from mmdd.modalities.graphs.linear_nets import APPNP, MLP, SGC
from mmdd.modalities.graphs.nets import GraphEncoder

ENCODERS: dict[str, type[GraphEncoder]] = {
    "gcn": GCN,
    "sgc": SGC,
    "sage": SAGE,
    "gat": GAT,
    "appnp": APPNP,
    "cheby": Cheby,
    "gin": GIN,
    "mlp": MLP,
}
