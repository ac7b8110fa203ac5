"""Which images make a batch: classes without replacement, k images of each, next to each other."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vptsp_core.errors import DataError


class ClassBalancedSampler:
    """Batches of ``batch // k`` classes with k images each, the same for the same seed and epoch.

    Args:
        labels: (N,) class of every training image.
        batch: images a batch.
        samples_per_class: k; a class with fewer images repeats some.
        seed: of the run.
        steps: batches an epoch, None for ``N // batch``.
        in_turn: across epochs, no image of a class comes again before all have come. The paper's sampler draws anew
            each time; in small sets it may never draw some.

    Raises:
        DataError: fewer classes than a batch draws, or fewer images than a batch.
    """

    def __init__(
        self, labels: np.ndarray, batch: int, samples_per_class: int, seed: int, steps: int | None,
        in_turn: bool = False,
    ) -> None:  # fmt: skip
        order = np.argsort(labels, kind="stable")
        self.members = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
        self.classes, self.k, self.seed = batch // samples_per_class, samples_per_class, seed
        self.steps, self.in_turn = len(labels) // batch if steps is None else steps, in_turn
        if self.classes > len(self.members):
            raise DataError(
                f"a batch draws {self.classes} classes, the training set has {len(self.members)}; "
                "lower batch or raise samples_per_class"
            )
        if self.steps < 1:
            raise DataError(f"batch = {batch} is larger than the training set of {len(labels)} images; lower batch")

    def __len__(self) -> int:
        return self.steps

    def epoch(self, epoch: int) -> Iterator[np.ndarray]:
        """Indices of each batch of an epoch, (batch,) int64."""
        if self.in_turn:
            yield from self._in_turn(epoch)
            return
        rng = np.random.default_rng([self.seed, epoch])
        for _ in range(self.steps):
            chosen = rng.choice(len(self.members), self.classes, replace=False)
            yield np.concatenate([self._draw(rng, self.members[c]) for c in chosen])

    def _in_turn(self, epoch: int) -> Iterator[np.ndarray]:
        drawn = np.zeros(len(self.members), np.int64)  # images of each class so far
        for past in range(epoch):
            for chosen in self._classes(past):
                drawn[chosen] += self.k
        for chosen in self._classes(epoch):
            yield np.concatenate([self._turn(c, drawn[c]) for c in chosen])
            drawn[chosen] += self.k

    def _classes(self, epoch: int) -> Iterator[np.ndarray]:
        rng = np.random.default_rng([self.seed, epoch, 0])
        for _ in range(self.steps):
            yield rng.choice(len(self.members), self.classes, replace=False)

    def _turn(self, c: int, start: int) -> np.ndarray:
        """The k images of class ``c`` from place ``start`` of its order, a chain of shuffles."""
        members = self.members[c]
        rounds = range(start // len(members), (start + self.k - 1) // len(members) + 1)
        order = np.concatenate([np.random.default_rng([self.seed, c, i, 1]).permutation(members) for i in rounds])
        first = start % len(members)
        return order[first : first + self.k]

    def _draw(self, rng: np.random.Generator, members: np.ndarray) -> np.ndarray:
        """k members in random order, their counts at most one apart."""
        rounds, rest = divmod(self.k, len(members))
        drawn = np.concatenate([np.tile(members, rounds), rng.choice(members, rest, replace=False)])
        return rng.permutation(drawn)
