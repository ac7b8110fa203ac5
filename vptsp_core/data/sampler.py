"""Which images make a batch: classes without replacement, k images of each, next to each other (method.md)."""

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

    Raises:
        DataError: fewer classes than a batch draws, or fewer images than a batch.
    """

    def __init__(self, labels: np.ndarray, batch: int, samples_per_class: int, seed: int, steps: int | None) -> None:
        order = np.argsort(labels, kind="stable")
        self.members = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
        self.classes, self.k, self.seed = batch // samples_per_class, samples_per_class, seed
        self.steps = len(labels) // batch if steps is None else steps
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
        rng = np.random.default_rng([self.seed, epoch])
        for _ in range(self.steps):
            chosen = rng.choice(len(self.members), self.classes, replace=False)
            yield np.concatenate([self._draw(rng, self.members[c]) for c in chosen])

    def _draw(self, rng: np.random.Generator, members: np.ndarray) -> np.ndarray:
        """k members, each as often as any other give or take one, in random order."""
        rounds, rest = divmod(self.k, len(members))
        drawn = np.concatenate([np.tile(members, rounds), rng.choice(members, rest, replace=False)])
        return rng.permutation(drawn)
