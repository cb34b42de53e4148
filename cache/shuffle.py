"""The order of training: which rows make up the batch of a step."""

import numpy as np
import numpy.typing as npt

__all__ = ["ShuffledRows"]

Int64 = npt.NDArray[np.int64]


class ShuffledRows:
    """Which rows make up the batch of a step: a pure function of (seed, step).

    Each epoch is a fresh permutation of all rows, cut into batches of exactly ``batch_size``.
    Where the last batch falls short it is filled up from the start of the same permutation, so
    that no row is dropped and all batches weigh the same; a batch larger than the set holds
    every row once before any row twice. A resumed run asks for its step and gets the same rows.

    With several ranks a step takes ``world_size`` such batches, one after the other, and each
    rank has its own: together they are the batches of one process with the larger batch.

    Args:
        rows: what to draw from: row numbers, or track numbers.
        batch_size: rows of a batch, of one rank.
        seed: of all permutations.
        rank: whose batches these are.
        world_size: how many ranks share an epoch.

    Raises:
        ValueError: no rows, a batch size below 1, or a rank outside the world.

    Attributes:
        steps_per_epoch: batches in which every row comes at least once, over all ranks.
    """

    def __init__(
        self,
        rows: npt.ArrayLike,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._rows = np.array(rows, dtype=np.int64).reshape(-1)
        if not len(self._rows):
            raise ValueError("there are no rows to draw from")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be 0 to {world_size - 1}, not {rank}")
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.steps_per_epoch = -(-len(self._rows) // (batch_size * world_size))
        self._latest: tuple[int, Int64] = (-1, self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, step: int) -> Int64:
        """Give the rows of a step, counted from 0 over all epochs, int64 (batch_size,)."""
        if step < 0:
            raise ValueError(f"steps are counted from 0, not {step}")
        epoch, position = divmod(step, self.steps_per_epoch)
        start = (position * self.world_size + self.rank) * self.batch_size
        places = start + np.arange(self.batch_size)
        return self._permutation(epoch).take(places, mode="wrap")

    def _permutation(self, epoch: int) -> Int64:
        known, permutation = self._latest
        if known != epoch:
            stream = np.random.PCG64(np.random.SeedSequence([self.seed, epoch]))
            permutation = np.random.Generator(stream).permutation(self._rows)
            self._latest = (epoch, permutation)
        return permutation
