"""Methods on images as they are usually written: references for `curves` and `gradient_step`.

Float32, PyTorch's own layers and optimisers, one class after the other, graphs of whole inner
trainings; only augmentation, start images and experts are the package's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from mmdd.batch import Batch
from mmdd.build import Parts
from mmdd.distiller import Distiller
from mmdd.learner import Params
from mmdd.optimise import schedule_factor
from mmdd.recipe import Leaf
from mmdd.results import detached


class PlainNet(nn.Module):
    """The field's ConvNet as it is usually written."""

    def __init__(self, channels: int, side: int, classes: int, width: int, depth: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for place in range(depth):
            padding = 3 if place == 0 and side == 28 else 1
            layers.append(nn.Conv2d(channels, width, 3, padding=padding))
            layers += [nn.GroupNorm(width, width), nn.ReLU(), nn.AvgPool2d(2)]
            channels = width
        self.body = nn.Sequential(*layers)
        side = (32 if side == 28 else side) // 2**depth
        self.head = nn.Linear(width * side**2, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, classes]."""
        return self.head(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """[n, D]."""
        return self.body(x).flatten(1)

    def holding(self, params: Params) -> PlainNet:
        """The same net with the parameters of `ConvNet`, which come in the same order."""
        with torch.no_grad():
            for own, value in zip(self.parameters(), params.values(), strict=True):
                own.copy_(value)
        return self


def plain_loss(net: nn.Module, real: list[Tensor], synthetic: list[Tensor]) -> Tensor:
    """Layer-wise cosine (Zhao et al. 2021) between the gradients of every class."""
    loss = torch.zeros((), device=real[0].device)
    for target, made in slopes(net, list(net.parameters()), real, synthetic):
        for g, h in zip(target, made, strict=True):
            if g.ndim > 1:
                g, h = g.flatten(1), h.flatten(1)
                lengths = g.norm(dim=1) * h.norm(dim=1)
                loss = loss + (1 - (g * h).sum(dim=1) / (lengths + 1e-6)).sum()
    return loss


def slopes(
    net: nn.Module, weights: list[Tensor], real: list[Tensor], synthetic: list[Tensor]
) -> Iterator[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]:
    """Gradients of the mean losses of every class; the synthetic ones have a graph."""
    for label, pair in enumerate(zip(real, synthetic, strict=True)):
        a, b = (F.cross_entropy(net(x), x.new_full((len(x),), label).long()) for x in pair)
        target = torch.autograd.grad(a, weights)
        yield target, torch.autograd.grad(b, weights, create_graph=True)


class Plain:
    """A distillation on images of its own; `step` updates them once.

    Parameters
    ----------
    ours: gives the start images, the real ones and, where the method has such, the experts.
    """

    def __init__(self, ours: Distiller, parts: Parts) -> None:
        self.ours, self.recipe, self.info = ours, parts.recipe, parts.info
        self.start = detached(ours.synthetic)
        self.stored = ours.synthetic.leaves()["inputs"].detach().clone().requires_grad_()
        self.classes = parts.info.classes
        stored = ours.synthetic.groups.to(self.stored.device)
        self.places = [torch.nonzero(stored == group).flatten() for group in range(self.classes)]
        groups = range(self.classes)
        self.members = [ours.real.select(ours.real.members(group)).inputs for group in groups]
        self.augment = parts.augmentation()
        self.stream = torch.Generator().manual_seed(0)
        bounds = parts.modality.bounds(parts.info)
        self.low, self.high = (bound.to(self.stored.device) for bound in bounds)
        leaves = {"inputs": self.stored, **self.more_leaves()}
        rates = self.recipe.optimise.by_leaf()
        self.optimisers = [
            (leaf, rates[name], made(leaf, rates[name])) for name, leaf in leaves.items()
        ]

    def more_leaves(self) -> dict[str, Tensor]:
        """What is learned beside the images."""
        return {}

    def loss(self, number: int) -> Tensor:
        """What step `number` is to lower."""
        raise AssertionError("a plain method defines its loss")

    def step(self, number: int, steps: int) -> None:
        """Update the images once."""
        for _, _, optimiser in self.optimisers:
            optimiser.zero_grad()
        self.loss(number).backward()
        for leaf, options, optimiser in self.optimisers:
            if options.clip is not None:
                nn.utils.clip_grad_norm_([leaf], options.clip)
            factor = schedule_factor(options, number, steps)
            each = len(self.stored) / self.classes if options.by_items else 1.0
            for group in optimiser.param_groups:
                group["lr"] = options.lr * each * factor
            optimiser.step()
        with torch.no_grad():
            self.stored.copy_(torch.minimum(torch.maximum(self.stored, self.low), self.high))

    def result(self) -> tuple[Batch, float | None]:
        """The set, decoded, and its step size if it has learned one."""
        with torch.no_grad():
            return dataclasses.replace(self.start, inputs=self.decoded(self.stored)), None

    # -- pieces ----------------------------------------------------------------------------------

    def net(self) -> PlainNet:
        """A new one."""
        channels, side, _ = self.info.shape
        made = PlainNet(channels, side, self.classes, self.recipe.learner.width, 3)
        return made.to(self.stored.device)

    def in_order(self, params: Params) -> Params:
        """Parameters in the order of the net: those of experts come in that of their names."""
        return {name: params[name] for name in self.ours.learner.trainable_names}

    def decoded(self, stored: Tensor) -> Tensor:
        """What the learner sees of stored images."""
        return stored

    def pairs(self) -> tuple[list[Tensor], list[Tensor]]:
        """Real and synthetic images of every class under one augmentation."""
        real, synthetic = [], []
        for members, places in zip(self.members, self.places, strict=True):
            order = torch.randperm(len(members), generator=self.stream)
            sides = [
                members[order[: self.recipe.real.per_group].to(members.device)],
                self.decoded(self.stored[places]),
            ]
            if self.augment is not None:
                draw = self.augment.draw(1, self.stream)
                sides = [
                    self.augment(x, draw, torch.zeros(len(x), dtype=torch.long)) for x in sides
                ]
            real.append(sides[0])
            synthetic.append(sides[1])
        return real, synthetic

    def each_augmented(self, x: Tensor) -> Tensor:
        """One operation for the batch, numbers of their own for its images."""
        if self.augment is None:
            return x
        return self.augment(x, self.augment.draw(len(x), self.stream, shared_op=True))


def made(leaf: Tensor, options: Leaf) -> torch.optim.Optimizer:
    if options.optimiser == "adam":
        return torch.optim.Adam([leaf], options.lr, betas=(options.momentum, 0.999))
    return torch.optim.SGD([leaf], options.lr, options.momentum)


class PlainDSA(Plain):
    """Zhao & Bilen 2021, at a new net every step (one image per class)."""

    def loss(self, number: int) -> Tensor:
        """Layer-wise cosine."""
        return plain_loss(self.net(), *self.pairs())


class PlainDM(Plain):
    """Zhao & Bilen 2023."""

    def loss(self, number: int) -> Tensor:
        """Squared distances of class means at a new net."""
        return apart(self.net(), *self.pairs())


def apart(net: PlainNet, real: list[Tensor], synthetic: list[Tensor]) -> Tensor:
    """Sum over classes of squared distances between mean features."""
    total = torch.zeros((), device=real[0].device)
    for a, b in zip(real, synthetic, strict=True):
        with torch.no_grad():
            target = net.features(a).mean(dim=0)
        total = total + (target - net.features(b).mean(dim=0)).square().sum()
    return total


class Quarters(Plain):
    """Four images in one (Kim et al. 2022)."""

    def decoded(self, stored: Tensor) -> Tensor:
        """[n, C, 2s, 2s] -> [4n, C, 2s, 2s]."""
        side = stored.shape[-1] // 2
        parts = [stored[..., y : y + side, x : x + side] for y in (0, side) for x in (0, side)]
        size = stored.shape[-2:]
        large = [F.interpolate(part, size=size, mode="bilinear") for part in parts]
        return torch.stack(large, dim=1).flatten(0, 1)


class PlainDANCE(Quarters):
    """Zhang et al. 2024."""

    def loss(self, number: int) -> Tensor:
        """Class means between the ends of a training, cross-entropy at its end."""
        drawn = self.ours.source.draw(number)
        assert drawn.trained is not None
        real, synthetic = self.pairs()
        loss = apart(self.net().holding(self.in_order(drawn.params)), real, synthetic)
        end = self.net().holding(self.in_order(drawn.trained))
        for label, x in enumerate(synthetic):
            loss = loss + F.cross_entropy(end(x), x.new_full((len(x),), label).long())
        return loss


class PlainIDC(Quarters):
    """Kim et al. 2022: at a net in training on real images."""

    trained: PlainNet | None = None

    def loss(self, number: int) -> Tensor:
        """Absolute differences of the gradients of convolutions."""
        options = self.recipe.source
        if number % options.life == 0 or self.trained is None:
            self.trained = self.net()
            self.training = torch.optim.SGD(
                self.trained.parameters(),
                options.lr,
                options.momentum,
                weight_decay=options.weight_decay,
            )
        else:
            for _ in range(options.updates):
                self.train(self.trained, options.batch_size)
        net = self.trained
        weights: list[Tensor] = [weight for weight in net.parameters() if weight.ndim == 4]
        loss = torch.zeros((), device=self.stored.device)
        for target, made in slopes(net, weights, *self.pairs()):
            loss = loss + sum((g - h).abs().sum() for g, h in zip(target, made, strict=True))
        return loss

    def train(self, net: PlainNet, size: int) -> None:
        """One step on real images of any class."""
        lengths = torch.tensor([len(members) for members in self.members])
        labels = torch.multinomial(lengths.double(), size, replacement=True, generator=self.stream)
        rows = [int(torch.randint(int(lengths[k]), (1,), generator=self.stream)) for k in labels]
        x = torch.stack(
            [self.members[k][row] for k, row in zip(labels.tolist(), rows, strict=True)]
        )
        self.training.zero_grad()
        F.cross_entropy(net(self.each_augmented(x)), labels.to(x.device)).backward()
        self.training.step()


class PlainMTT(Plain):
    """Cazenavette et al. 2022: the graph of all inner steps is held."""

    def more_leaves(self) -> dict[str, Tensor]:
        """The logarithm of the step size, so that it stays positive."""
        begun = self.recipe.synthetic.step_size
        self.log_rate = torch.tensor([begun], device=self.stored.device).log().requires_grad_()
        return {"step_size": self.log_rate}

    def loss(self, number: int) -> Tensor:
        """Squared distance to the expert's later parameters over the way that it went."""
        drawn, net = self.ours.source.draw(number), self.net()
        names = [name for name, _ in net.named_parameters()]
        assert drawn.target is not None
        begun, target = (list(self.in_order(p).values()) for p in (drawn.params, drawn.target))
        theta = [value.clone().requires_grad_() for value in begun]
        labels = self.start.targets
        for _ in range(self.recipe.terms[0].steps):
            x = self.each_augmented(self.stored)
            params = dict(zip(names, theta, strict=True))
            loss = F.cross_entropy(functional_call(net, params, (x,)), labels)
            grads = torch.autograd.grad(loss, theta, create_graph=True)
            rate = self.log_rate.exp()
            theta = [w - rate * g for w, g in zip(theta, grads, strict=True)]
        ends = zip(theta, target, strict=True)
        way = sum((a - b).square().sum() for a, b in zip(begun, target, strict=True))
        return sum((w - t).square().sum() for w, t in ends) / way

    def result(self) -> tuple[Batch, float | None]:
        """With the step size."""
        return super().result()[0], float(self.log_rate.exp())


PLAIN: dict[str, type[Plain]] = {
    "dsa": PlainDSA,
    "dm": PlainDM,
    "dance": PlainDANCE,
    "idc": PlainIDC,
    "mtt": PlainMTT,
}
