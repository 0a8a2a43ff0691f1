"""Recording expert trajectories: nets trained on the real set, every epoch of them written down.

A recording is told beforehand how much it will write, continues after Ctrl-C or ``kill -9`` with
the same bits, and can be extended by more experts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmdd.cohort import Cohort, Schedule, stack_size
from mmdd.errors import NonFiniteError, UserError
from mmdd.expert_options import Recording
from mmdd.experts import (
    DTYPES,
    MANIFEST,
    Experts,
    Layout,
    Manifest,
    check_shard,
    layout_of,
    shard_name,
)
from mmdd.files import human_bytes, load_tree, require_writable, save_tree, sha256, sync
from mmdd.learner import Learner, Params
from mmdd.modality import Augmentation
from mmdd.progress import Progress, Update
from mmdd.provenance import versions
from mmdd.real import RealData
from mmdd.rng import derive, lent_generators

STATE = "state.safetensors"
STATE_SECONDS = 30.0
"""A kill loses at most one epoch, or this much time where epochs are shorter."""
LOCK = ".lock"


class Stopped(Exception):
    """The recording was asked to stop; what it has done is saved."""


# -- one expert's file -----------------------------------------------------------------------------


class Shard:
    """The file of one expert, filled snapshot by snapshot.

    It has its full size from the start, so that a long trajectory never lies in memory.

    Parameters
    ----------
    layout: of one snapshot; the file holds ``len(kept)`` of them, stacked along a first axis.
    """

    def __init__(self, path: Path, layout: Layout, kept: tuple[int, ...]) -> None:
        self.path = path
        count, end = len(kept), 0
        # the format: length of the header (8 bytes), the header in JSON, then the numbers
        header: dict[str, Any] = {"__metadata__": {"format": "pt", "epochs": json.dumps(kept)}}
        self._places: dict[str, tuple[int, int]] = {}
        for name, (kind, shape) in layout.items():
            each = math.prod(shape) * _item_bytes(kind)
            self._places[name] = (end, each)
            offsets = [end, end + count * each]
            header[name] = {"dtype": kind, "shape": [count, *shape], "data_offsets": offsets}
            end = offsets[1]
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._head = len(text).to_bytes(8, "little") + text
        self.nbytes = len(self._head) + end

    def create(self) -> None:
        """Begin the file anew, all zeros."""
        with self.path.open("wb") as file:
            file.write(self._head)
            file.truncate(self.nbytes)

    def is_begun(self) -> bool:
        """True when the file is there, of the right size and with the right header."""
        if not self.path.is_file() or self.path.stat().st_size != self.nbytes:
            return False
        with self.path.open("rb") as file:
            return file.read(len(self._head)) == self._head

    def write(self, place: int, params: Params) -> None:
        """Write the snapshot number `place`."""
        with self.path.open("r+b") as file:
            for name, (start, each) in self._places.items():
                file.seek(len(self._head) + start + place * each)
                file.write(_bytes_of(params[name]))


def _item_bytes(kind: str) -> int:
    return next(dtype.itemsize for dtype, name in DTYPES.items() if name == kind)


def _bytes_of(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


def expected_bytes(learner: Learner, recording: Recording) -> int:
    """Bytes that the experts will fill on the disk."""
    return recording.count * Shard(Path(), layout_of(learner), recording.kept).nbytes


# -- recording -------------------------------------------------------------------------------------


def record(
    folder: str | Path,
    learner: Learner,
    data: RealData,
    recording: Recording,
    *,
    seed: int,
    augmentation: Augmentation | None = None,
    fingerprint: str,
    about: dict[str, Any],
    progress: Progress | None = None,
    stopped: Callable[[], bool] = lambda: False,
    stacked: int | None = None,
) -> Experts:
    """Record experts into `folder`, or the missing ones of them, and open it.

    An expert's start, batches and augmentation depend on `seed` and its number alone: more experts
    recorded later extend the folder. Killed at any moment it continues where its state was saved,
    and ends with the same bits (on a CPU, with the same number of threads).

    Parameters
    ----------
    fingerprint: of the data.
    about: what else decides the experts (encoder, augmentation, precision), as JSON values; a
        folder recorded with other ones is refused.
    stopped: asked after every step; when it says so, the state is saved and `Stopped` raised.
    stacked: experts trained at once; None for as many as pay. Trained alone or stacked, an expert
        is the same within rounding.

    Raises `UserError` if the folder cannot be used, and `NonFiniteError` naming expert and epoch
    if a net diverges; finished experts are kept.
    """
    folder, progress = Path(folder), progress or Progress()
    if len(data) == 0:
        raise UserError("there are no training items to record experts on")
    example = data.select(torch.arange(1))
    size = stack_size(learner, example, recording.batch_size, stacked)
    wanted = Manifest(
        recording=recording.of_one(),
        seed=seed,
        fingerprint=fingerprint,
        about=about,
        layout=layout_of(learner),
        versions=[versions()],
        shards=[],
    )
    if missing := _missing(folder, wanted, learner, recording.count):
        need = expected_bytes(learner, dataclasses.replace(recording, count=len(missing)))
        # a state holds parameters and momentum, and the next is written beside it
        require_writable(folder, need + 4 * size * Shard(folder, wanted.layout, (0,)).nbytes)
        told = f"recording {len(missing)} experts of {recording.epochs} epochs"
        progress.say(f"{told}: {human_bytes(need)} in {folder}")
        schedule = Schedule(data, recording, seed, augmentation, example.joint)
        with _alone(folder, progress, stopped):
            # another process may have recorded some while this one waited
            missing = _missing(folder, wanted, learner, recording.count)
            parts = (folder, learner, recording, schedule, wanted, progress, stopped)
            _Recorder(*parts).go(missing, size)
    return Experts.open(folder, count=recording.count, fingerprint=fingerprint)


def _missing(folder: Path, wanted: Manifest, learner: Learner, count: int) -> list[int]:
    """Return the experts below `count` still to be recorded; `wanted` takes over the finished.

    Raises `UserError` if the folder's experts are other ones or damaged.
    """
    wanted.shards = []
    if (folder / MANIFEST).is_file():
        found = Manifest.read(folder)
        found.require_same(wanted, folder)
        found.require_net(learner, folder)
        # a file that a person deleted is to be made anew
        wanted.shards = [shard for shard in found.shards if (folder / shard["file"]).exists()]
        wanted.versions = [*(v for v in found.versions if v != versions()), versions()]
    for shard in wanted.shards:
        check_shard(folder, shard)
    finished = {shard["expert"] for shard in wanted.shards}
    return [expert for expert in range(count) if expert not in finished]


@contextlib.contextmanager
def _alone(folder: Path, progress: Progress, stopped: Callable[[], bool]) -> Iterator[None]:
    """Hold the folder's lock, which the system drops when this process ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # a system without such locks
        yield
        return
    with (folder / LOCK).open("w") as file:
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    progress.say(f"waiting for another process that records into {folder}")
                told = True
            except OSError:  # a file system without locks
                break
            if stopped():
                raise Stopped
            time.sleep(0.2)
        yield


class _Group:
    """Experts that are trained together, with the files of what they have done so far."""

    def __init__(
        self,
        folder: Path,
        learner: Learner,
        recording: Recording,
        schedule: Schedule,
        members: list[int],
    ) -> None:
        self.folder, self.schedule, self.members = folder, schedule, members
        self.places = {epoch: place for place, epoch in enumerate(recording.kept)}
        layout = layout_of(learner)
        paths = [folder / f"{shard_name(expert)}.part" for expert in members]
        self.shards = [Shard(path, layout, recording.kept) for path in paths]
        draws = [learner.init(schedule.stream(expert, "init", 0)) for expert in members]
        self.cohort = Cohort(learner, recording, draws, recording.epochs * schedule.steps)
        self.epoch = self.saved = 0
        self.saved_at = time.monotonic()
        self.losses: list[list[float]] = []
        if not self._resume():
            for shard in self.shards:
                shard.create()
            self._write()

    def advance(self, stopped: Callable[[], bool]) -> None:
        """Train for one epoch and write the snapshots.

        Raises `Stopped` in the middle of it if its start is safe on the disk, and
        `NonFiniteError`.
        """
        total = torch.zeros(len(self.members), device=self.cohort.learner.device)
        noise = f"expert/{self.members[0]}/noise/{self.epoch}"
        seed = derive(self.schedule.seed, noise)
        with lent_generators(seed, self.cohort.learner.device):
            for batch in self.schedule.epoch(self.members, self.epoch):
                if self.saved == self.epoch and stopped():
                    raise Stopped
                self.cohort.step(batch)
                total += self.cohort.losses
        self.epoch += 1
        self._require_finite()
        self.losses.append((total / self.schedule.steps).tolist())
        self._write()

    def _require_finite(self) -> None:
        for expert, params in zip(self.members, self._params(), strict=True):
            if not all(bool(torch.isfinite(value).all()) for value in params.values()):
                raise NonFiniteError(
                    f"expert {expert} has non-finite parameters after epoch {self.epoch};"
                    " lower experts.lr"
                )

    def _params(self) -> list[Params]:
        params = self.cohort.kept
        if not self.cohort.stacked:
            return [params]
        return [{n: value[k] for n, value in params.items()} for k in range(len(self.members))]

    def _write(self) -> None:
        if self.epoch in self.places:
            for shard, params in zip(self.shards, self._params(), strict=True):
                shard.write(self.places[self.epoch], params)

    # -- files -----------------------------------------------------------------------------------

    def save(self) -> None:
        """Make the end of this epoch the place to resume from."""
        for shard in self.shards:
            sync(shard.path)
        state = {
            "experts": self.members,
            "epoch": self.epoch,
            "losses": self.losses,
            "cohort": self.cohort.state_dict(),
        }
        save_tree(self.folder / STATE, state)
        self.saved, self.saved_at = self.epoch, time.monotonic()

    def _resume(self) -> bool:
        """Continue these experts, if the folder holds a state of them."""
        try:
            state = load_tree(self.folder / STATE)
        except UserError:  # none, or not to be read: they begin anew
            return False
        if state["experts"] != self.members:
            return False
        for expert, shard in zip(self.members, self.shards, strict=True):
            finished = self.folder / shard_name(expert)
            if finished.exists() and not shard.path.exists():  # killed before the manifest told
                os.replace(finished, shard.path)
        if not all(shard.is_begun() for shard in self.shards):
            return False
        self.cohort.load_state_dict(state["cohort"])
        self.epoch = self.saved = state["epoch"]
        self.losses = state["losses"]
        return True

    def finish(self) -> list[dict[str, Any]]:
        """Give the files their names and return their entries in the manifest."""
        entries = []
        for place, (expert, shard) in enumerate(zip(self.members, self.shards, strict=True)):
            sync(shard.path)
            name, digest = shard_name(expert), sha256(shard.path)
            os.replace(shard.path, self.folder / name)
            losses = [row[place] for row in self.losses]
            entry = {"expert": expert, "file": name, "bytes": shard.nbytes}
            entries.append({**entry, "sha256": digest, "losses": losses})
        sync(self.folder)
        return entries

    def discard(self) -> None:
        """Remove what cannot be continued."""
        for path in [*(shard.path for shard in self.shards), self.folder / STATE]:
            path.unlink(missing_ok=True)


@dataclasses.dataclass
class _Recorder:
    """Trains the missing experts, some at a time, and keeps the folder's manifest."""

    folder: Path
    learner: Learner
    recording: Recording
    schedule: Schedule
    manifest: Manifest
    progress: Progress
    stopped: Callable[[], bool]

    def go(self, missing: list[int], size: int) -> None:
        """Record the experts `missing`, `size` of them at once."""
        self.manifest.write(self.folder)
        each, total = self.recording.epochs, self.recording.count * self.recording.epochs
        done = total - len(missing) * each
        with self.progress.task("recording experts", total) as update:
            for start in range(0, len(missing), size):
                members = missing[start : start + size]
                group = _Group(self.folder, self.learner, self.recording, self.schedule, members)
                self._train(group, done, update)
                self.manifest.shards += group.finish()
                self.manifest.write(self.folder)
                group.discard()
                done += len(members) * each
        for remains in self.folder.glob("*.part"):  # of groups that were cut otherwise
            remains.unlink()

    def _train(self, group: _Group, done: int, update: Update) -> None:
        """Take a group to its last epoch, saving its state on the way."""
        update(done + group.epoch * len(group.members))
        while group.epoch < self.recording.epochs:
            try:
                group.advance(self.stopped)
            except NonFiniteError:
                group.discard()
                raise
            loss = sum(group.losses[-1]) / len(group.members)
            update(done + group.epoch * len(group.members), loss=loss)
            if group.epoch == self.recording.epochs:
                return
            asked = self.stopped()
            if asked or time.monotonic() - group.saved_at >= STATE_SECONDS:
                group.save()
            if asked:
                raise Stopped
