"""What a representation holds against itself, whatever the data and the net."""

from __future__ import annotations

from torch import Tensor

from mmdd.errors import UserError
from mmdd.step import Objective, Step


class Penalty(Objective):
    """`mmdd.representations.Representation.penalty` as a term of a sum.

    The sampled adjacency has one: the edges beyond those of its start, DosCond's sparsity term (Jin
    et al., KDD 2022).

    Raises `UserError` where the representation has none.
    """

    stacks = True

    def __call__(self, step: Step) -> Tensor:
        """Scalar; neither nets nor real items are looked at."""
        found = step.synthetic.representation.penalty()
        if found is None:
            raise UserError(
                "the objective penalty needs a representation that has one",
                got=type(step.synthetic.representation).__name__,
                expected="synthetic.representation=bernoulli",
            )
        return found
