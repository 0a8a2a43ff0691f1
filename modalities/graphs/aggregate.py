"""Propagated features clustered class by class: a condensed set without any training.

After Gao et al. 2025 (CGC-X, "Rethinking and Accelerating Graph Condensation"), with k-means in
place of its spectral clustering. It serves as a baseline and as a start for the other methods.

Shape suffixes: N nodes, n of them labelled for training, N_g rows of one class, D features, C
classes, M condensed nodes.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdd.errors import UserError

STARTS, ITERATIONS = 4, 100
"""Starts of k-means, of which the tightest is taken, and its longest run."""


def aggregate(
    features: Tensor,
    confidences: Tensor | None,
    count: int,
    generator: torch.Generator,
    *,
    temperature: float = 1.0,
) -> Tensor:
    """[count, D] centres of the k-means clusters of `features` [N_g, D], the rows of one class.

    A centre is the mean of its members weighted by softmax(confidence / temperature) over the
    cluster; all weigh alike without `confidences` [N_g]. Of as many rows as centres each is one.

    Raises `UserError` for more centres than rows.
    """
    rows = len(features)
    if count > rows:
        raise UserError(
            "a class has fewer rows than it is to be summed up in",
            got=count,
            expected=f"at most {rows}",
        )
    if count == 0 or count == rows:
        return features[:count].clone()
    cluster, centres = _clusters(features, count, generator)
    scores = torch.zeros(rows) if confidences is None else confidences.cpu() / temperature
    # [count, N_g]: the softmax of every cluster over its own members
    member = F.one_hot(cluster, count).T.bool()
    logits = torch.where(member, scores.double(), float("-inf"))
    present = member.any(dim=1, keepdim=True)
    weights = torch.where(present, logits, 0.0).softmax(dim=1).to(features)
    # identical rows may leave a cluster empty: its centre is one of them
    return torch.where(present.to(features.device), weights @ features, centres.to(features))


def _clusters(features: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """[N_g] the cluster of every row and [count, D] their centres, on the CPU."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    seed = int(torch.randint(2**31, (1,), generator=generator))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = KMeans(count, n_init=STARTS, max_iter=ITERATIONS, random_state=seed)
        found = model.fit(features.detach().cpu().numpy())
    return torch.from_numpy(found.labels_).long(), torch.from_numpy(found.cluster_centers_)


def aggregate_nodes(
    hops: Sequence[Tensor],
    train: Tensor,
    targets: Tensor,
    counts: Tensor,
    generator: torch.Generator,
    *,
    augmentation: float = 0.0,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Condense the training nodes of a graph: features [M, D] and labels [M], class by class.

    A linear classifier of the mean of all `hops` is fitted to the labels by least squares (of the
    smallest norm where there are several). Its softmax at the true class of a row is the row's
    confidence in `aggregate`; rows that it gets wrong have the lowest of all. The last hop is
    what is summed up.

    Parameters
    ----------
    hops: X, A_hat X, A_hat^2 X, ...: [N, D] each.
    train: [n] nodes that may be learned from. No label of any other node is read.
    targets: [n] their classes.
    counts: [C] condensed nodes of each class.
    augmentation: with r > 0, r n rows of the first hop join the last-hop ones: training nodes drawn
        without replacement with probabilities in proportion to 1 - F1 of their class.

    Raises `UserError` for a class with fewer rows than condensed nodes.
    """
    classes = len(counts)
    train, targets = train.cpu(), targets.cpu().long()
    seen = [hop[train.to(hop.device)].detach().cpu() for hop in hops]
    head = least_squares(torch.stack(seen).mean(dim=0), targets, classes)
    rows, owners = seen[-1], targets
    if augmentation > 0:
        first = seen[min(1, len(seen) - 1)]
        drawn = hard_nodes(first.double() @ head, targets, augmentation, generator)
        rows = torch.cat([rows, first[drawn]])
        owners = torch.cat([owners, targets[drawn]])
    sure = confidences(rows.double() @ head, owners)
    parts = []
    for group, count in enumerate(counts.tolist()):
        own = owners == group
        parts.append(aggregate(rows[own], sure[own], count, generator, temperature=temperature))
    labels = torch.repeat_interleave(torch.arange(classes), counts.cpu())
    return torch.cat(parts).to(hops[-1]), labels


def guessed(hops: Sequence[Tensor], train: Tensor, targets: Tensor, classes: int) -> Tensor:
    """[N] classes of all nodes: those given for `train` [n], for the others a linear model's."""
    features = torch.stack([hop.detach().cpu() for hop in hops]).mean(dim=0)
    train, targets = train.cpu(), targets.cpu().long()
    head = least_squares(features[train], targets, classes)
    found = (features.double() @ head).argmax(dim=1)
    found[train] = targets
    return found


def least_squares(features: Tensor, targets: Tensor, classes: int) -> Tensor:
    """[D, C] float64 W of least norm among those that minimise |features W - onehot(targets)|."""
    wanted = F.one_hot(targets, classes).double()
    # by singular values: features may be dependent, and more than rows
    solution: Tensor = torch.linalg.lstsq(features.double(), wanted, driver="gelsd").solution
    return solution


def confidences(scores: Tensor, targets: Tensor) -> Tensor:
    """[n] softmax of `scores` [n, C] at the true class; the lowest where another class wins."""
    chances = scores.softmax(dim=1)
    own = chances.gather(1, targets[:, None]).squeeze(1)
    return torch.where(chances.argmax(dim=1) == targets, own, own.min())


def hard_nodes(scores: Tensor, targets: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Up to round(share n) different rows, drawn more often from classes that are mistaken."""
    weight = (1 - class_f1(scores.argmax(dim=1), targets, scores.shape[1]))[targets]
    count = min(round(share * len(targets)), int((weight > 0).sum()))
    if count == 0:
        return torch.zeros(0, dtype=torch.int64)
    return torch.multinomial(weight, count, generator=generator)


def class_f1(found: Tensor, targets: Tensor, classes: int) -> Tensor:
    """[C] F1 = 2 hits / (found + true) of every class; 0 for one that is neither."""
    hits = torch.bincount(targets[found == targets], minlength=classes)
    total = torch.bincount(found, minlength=classes) + torch.bincount(targets, minlength=classes)
    return 2 * hits.double() / total.clamp_min(1)
