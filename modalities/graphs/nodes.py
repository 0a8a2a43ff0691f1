"""The nodes of one graph as a large set: whole, in part, propagated, or sampled.

Shape suffixes: N nodes of the structure, k items of a split, n items of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmdd.batch import Batch
from mmdd.errors import UserError
from mmdd.modalities.graphs.aggregate import aggregate_nodes, guessed
from mmdd.modalities.graphs.sampling import distinct, sample
from mmdd.modalities.graphs.structure import Structure
from mmdd.real import RealData, ResidentData
from mmdd.trees import Tree

AGGREGATED_HOPS = 2  # as deep as the two-layer nets that the field evaluates with


class Nodes(RealData):
    """Labelled nodes of one split; the structure that holds them is forwarded whole.

    Parameters
    ----------
    graph: the structure that this split may see.
    index: [k] int64 the nodes that are items.
    codes: [k] int64 their classes. Other nodes are context: batches give them class 0 and weight 0,
        so that no label of another split is ever in a batch.
    """

    joint = True

    def __init__(
        self,
        graph: Structure,
        index: Tensor,
        codes: Tensor,
        num_groups: int,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(codes, codes, num_groups, device)
        self.graph, self.index, self.codes = graph, index, codes
        self._views: dict[tuple[str, int], RealData] = {}

    def read(self, index: Tensor) -> Tree:
        """Return the whole structure, as form 1: ``x``, ``edge_index``, ``edge_weight``."""
        return self.graph.inputs

    def rows(self, index: Tensor) -> Tensor:
        """Places of the items in the structure."""
        return self.index[index.cpu()]

    def items(self, index: Tensor) -> dict[str, Tensor]:
        """Features of the items alone: ``x`` [n, d]."""
        return {"x": self.graph.x[self.index[index.cpu()]].to(self.device)}

    def select(self, index: Tensor) -> Batch:
        """Return the whole structure with weight 1 on the items `index` and 0 elsewhere."""
        return self._batch(self.graph.inputs, len(self.graph), self.rows(index), index)

    def _batch(self, inputs: Tree, count: int, rows: Tensor, index: Tensor) -> Batch:
        """A batch of `count` nodes in which the items `index` stand at `rows`."""
        targets = torch.zeros(count, dtype=torch.int64)
        targets[rows] = self.codes[index.cpu()]
        weights = torch.zeros(count)
        weights[rows] = 1.0
        targets = targets.to(self.device)
        return Batch(inputs, targets, targets, weights.to(self.device), joint=True)

    def subset(self, index: Tensor) -> Nodes:
        """Return the same structure with fewer items."""
        index = index.cpu()
        return Nodes(
            self.graph, self.index[index], self.codes[index], self.num_groups, device=self.device
        )

    def coreset(self, index: Tensor) -> Batch:
        """The items `index` and the edges among them: a condensed set of real nodes.

        As the baselines of GCond do (Jin et al. 2022), the sub-graph is normalised on its own.
        """
        index = index.cpu()
        chosen, rows = distinct(self.index[index])
        return self._batch(self.graph.among(chosen), len(chosen), rows, index)

    def aggregate(self, counts: Tensor, generator: torch.Generator) -> Batch:
        """``counts[g]`` centres of every class's propagated features: see `aggregate_nodes`."""
        hops = [self.graph.propagated(hop) for hop in range(AGGREGATED_HOPS + 1)]
        values, codes = aggregate_nodes(hops, self.index, self.codes, counts, generator)
        codes = codes.to(self.device)
        return Batch({"x": values.to(self.device)}, codes, codes)

    def difficulty(self) -> Tensor:
        """[k] entropy of the classes around every item, itself included: mixed company is hard.

        As in CLNode (Wei et al. 2023), whose order GEOM's experts follow; classes of nodes that are
        no items are what a linear model of the propagated features says.
        """
        hops = [self.graph.propagated(hop) for hop in range(AGGREGATED_HOPS + 1)]
        known = guessed(hops, self.index, self.codes, self.num_groups)
        source, target = self.graph.inputs["edge_index"].cpu()
        counts = torch.nn.functional.one_hot(known, self.num_groups).float()
        around = counts.index_add(0, target, counts[source])[self.index]
        shares = around / around.sum(dim=1, keepdim=True)
        return torch.special.entr(shares).sum(dim=1)

    def seen_by(self, encoder: nn.Module) -> RealData:
        """The items as `encoder` needs them; exact, and made once for each reach.

        A net with ``linear_hops`` K gets the rows of A_hat^K X as separate items (see
        `Structure.propagated`), one with ``hops`` L the part of the graph within L steps, in which
        ``degree`` holds the degrees of the whole graph.
        """
        linear, hops = getattr(encoder, "linear_hops", None), getattr(encoder, "hops", None)
        if linear is not None:
            return self._view("linear", int(linear))
        return self if hops is None else self._view("hops", int(hops))

    def _view(self, kind: str, hops: int) -> RealData:
        if (kind, hops) not in self._views:
            made = self._propagated(hops) if kind == "linear" else self._reaching(hops)
            self._views[kind, hops] = made
        return self._views[kind, hops]

    def _propagated(self, hops: int) -> RealData:
        steps = self.graph.distances(self.index, hops)
        if 2 * int((steps <= hops).sum()) < len(self.graph):
            # few training nodes: most of the graph's features never come near them
            part, kept = self.graph.within(self.index, hops)
            values = part.propagated(hops)[torch.searchsorted(kept, self.index)]
        else:
            values = self.graph.propagated(hops)[self.index]
        return ResidentData(
            {"x": values}, self.codes, self.codes, self.num_groups, device=self.device
        )

    def _reaching(self, hops: int) -> RealData:
        part, kept = self.graph.within(self.index, hops)
        if len(part) == len(self.graph):
            return self
        return NodesWithin(self, part, torch.searchsorted(kept, self.index))


class NodesWithin(Nodes):
    """The same items in the part of the structure that a net of few hops reads.

    Parameters
    ----------
    whole: the items in their structure.
    graph: the part of it.
    index: [k] int64 where the items are in the part.
    """

    def __init__(self, whole: Nodes, graph: Structure, index: Tensor) -> None:
        super().__init__(graph, index, whole.codes, whole.num_groups, device=whole.device)
        self.whole = whole

    def seen_by(self, encoder: nn.Module) -> RealData:
        """What the whole structure gives: another net may reach farther."""
        return self.whole.seen_by(encoder)

    def coreset(self, index: Tensor) -> Batch:
        """The items and all edges among them, some of which the part may not hold."""
        return self.whole.coreset(index)

    def aggregate(self, counts: Tensor, generator: torch.Generator) -> Batch:
        """Centres of the features propagated through the whole structure."""
        return self.whole.aggregate(counts, generator)

    def difficulty(self) -> Tensor:
        """What the whole structure tells."""
        return self.whole.difficulty()

    def subset(self, index: Tensor) -> NodesWithin:
        """Return the same part with fewer items."""
        return NodesWithin(self.whole.subset(index), self.graph, self.index[index.cpu()])


class SampledNodes(Nodes):
    """Nodes whose batches hold a sampled neighbourhood in place of the whole structure.

    Parameters
    ----------
    fanouts: neighbours drawn per node, hop by hop.
    seed: of the draws; see `sample`.
    """

    def __init__(
        self,
        graph: Structure,
        index: Tensor,
        codes: Tensor,
        num_groups: int,
        *,
        fanouts: Sequence[int],
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(graph, index, codes, num_groups, device=device)
        self.fanouts, self.seed = tuple(fanouts), seed

    def read(self, index: Tensor) -> Tree:
        """Return the sampled neighbourhood of the items."""
        return self.select(index).inputs

    def rows(self, index: Tensor) -> Tensor:
        """Places of the items in their sample: its first nodes."""
        return distinct(self.index[index.cpu()])[1]

    def select(self, index: Tensor) -> Batch:
        """Return the items, then their sampled neighbours with weight 0."""
        seeds, rows = distinct(self.index[index.cpu()])
        inputs, _ = sample(self.graph, seeds, self.fanouts, self.seed)
        on_device = {name: values.to(self.device) for name, values in inputs.items()}
        return self._batch(on_device, len(inputs["x"]), rows, index)

    def subset(self, index: Tensor) -> SampledNodes:
        """Return the same structure with fewer items."""
        index = index.cpu()
        return self._with(self.index[index], self.codes[index], self.fanouts)

    def _with(self, index: Tensor, codes: Tensor, fanouts: Sequence[int]) -> SampledNodes:
        return SampledNodes(
            self.graph,
            index,
            codes,
            self.num_groups,
            fanouts=fanouts,
            seed=self.seed,
            device=self.device,
        )

    def _reaching(self, hops: int) -> RealData:
        """The same sampling, as deep as the net reaches.

        Errors: UserError when there are fewer fan-outs than hops.
        """
        if hops > len(self.fanouts):
            raise UserError(
                f"the encoder reads {hops} hops, and data.neighbours has fewer fan-outs",
                got=list(self.fanouts),
                expected=f"{hops} numbers",
                hint="Leave data.neighbours out to read all neighbours",
            )
        if hops == len(self.fanouts):
            return self
        return self._with(self.index, self.codes, self.fanouts[:hops])
