"""Which images are in a batch: B / k classes without repetition, and k images of each, next to each other."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vptsp_core.errors import DataError


class ClassBalancedSampler:
    """The sampler of training batches. A batch depends only on the seed, the epoch, and its number in the epoch.

    Args:
        labels: (N,), the class of every training image.
        batch: B, images per batch.
        samples_per_class: k. If a class has fewer images, some are repeated.
        seed: the run's seed.
        steps: batches per epoch; None for N // B.
        in_turn: draw an image of a class again only after all images of this class, also across epochs. The paper's
            sampler draws independently for every batch, so it can miss images of a small data set.

    Raises:
        DataError: a batch needs more classes than the training set has or, without ``steps``, more images.
    """

    def __init__(
        self, labels: np.ndarray, batch: int, samples_per_class: int, seed: int, steps: int | None,
        in_turn: bool = False,
    ) -> None:  # fmt: skip
        order = np.argsort(labels, kind="stable")
        self.members = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
        self.classes_per_batch, self.k, self.seed = batch // samples_per_class, samples_per_class, seed
        self.steps, self.in_turn = len(labels) // batch if steps is None else steps, in_turn
        self.shuffles: dict[int, list[np.ndarray]] = {}  # of each class, for `_turn`
        if self.classes_per_batch > len(self.members):
            raise DataError(
                f"a batch draws {self.classes_per_batch} classes, the training set has {len(self.members)}; "
                "lower batch or raise samples_per_class"
            )
        if self.steps < 1:
            raise DataError(f"batch = {batch} is larger than the training set of {len(labels)} images; lower batch")

    def __len__(self) -> int:
        return self.steps

    def epoch(self, epoch: int) -> Iterator[np.ndarray]:
        """Yield the image indices of each batch of an epoch, (B,) int64. Epochs are counted from 0."""
        if self.in_turn:
            yield from self._epoch_in_turn(epoch)
            return
        rng = np.random.default_rng([self.seed, epoch])
        for _ in range(self.steps):
            chosen = rng.choice(len(self.members), self.classes_per_batch, replace=False)
            yield np.concatenate([self._draw(rng, self.members[c]) for c in chosen])

    def _epoch_in_turn(self, epoch: int) -> Iterator[np.ndarray]:
        drawn = np.zeros(len(self.members), np.int64)  # images drawn of each class so far
        for past in range(epoch):
            for chosen in self._draw_classes(past):
                drawn[chosen] += self.k
        for chosen in self._draw_classes(epoch):
            yield np.concatenate([self._turn(c, drawn[c]) for c in chosen])
            drawn[chosen] += self.k

    def _draw_classes(self, epoch: int) -> Iterator[np.ndarray]:
        """Yield the classes of each batch of an epoch, (B / k,), for `_epoch_in_turn`."""
        rng = np.random.default_rng([self.seed, epoch, 0])
        for _ in range(self.steps):
            yield rng.choice(len(self.members), self.classes_per_batch, replace=False)

    def _turn(self, c: int, start: int) -> np.ndarray:
        """Return k images (k,) of class ``c`` from position ``start`` on in the sequence of the class's shuffles."""
        shuffles, count = self.shuffles.setdefault(c, []), len(self.members[c])
        rounds = range(start // count, (start + self.k - 1) // count + 1)
        while len(shuffles) < rounds.stop:
            order = np.random.default_rng([self.seed, c, len(shuffles), 1]).permutation(self.members[c])
            if shuffles and count >= self.k:
                # Some images of the last shuffle may be in one draw with the first ones of this shuffle, so they come
                # last here. A draw then has no image twice.
                unfinished = (len(shuffles) * count) % self.k
                again = np.isin(order, shuffles[-1][count - unfinished :])
                order = np.concatenate([order[~again], order[again]])
            shuffles.append(order)
        first = start % count
        return np.concatenate(shuffles[rounds.start : rounds.stop])[first : first + self.k]

    def _draw(self, rng: np.random.Generator, members: np.ndarray) -> np.ndarray:
        """Return k members (k,) in random order. Each occurs as often as any other, or once more."""
        rounds, rest = divmod(self.k, len(members))
        drawn = np.concatenate([np.tile(members, rounds), rng.choice(members, rest, replace=False)])
        return rng.permutation(drawn)
