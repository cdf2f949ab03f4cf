"""Where a stream stands: counted where the trainer receives batches, and moved by one iterator at a time."""

from __future__ import annotations

from typing import Any

from vidbrain.errors import ResumeError


class Position:
    """An epoch and a batch of it, however batches come: from this process's threads, or from worker processes.

    Parameters
    ----------
    n_batches
        In an epoch.

    Attributes
    ----------
    epoch
        That the trainer is in.
    batches
        Of this epoch that the trainer has received.
    """

    def __init__(self, n_batches: int) -> None:
        self._n_batches = n_batches
        self.epoch, self.batches = 0, 0
        # What batches that came through worker processes say of themselves when they arrive.
        self._arrived, self._is_told = set[int](), False
        # Of the iterators: an older one must not move a position that is no longer its own.
        self._iterator, self._is_counted = 0, False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_is_counted": False}  # a copy's batches are counted by nobody yet

    @property
    def is_known(self) -> bool:
        """False if batches came through worker processes, and nobody said which of them the trainer received."""
        return not self._arrived

    def go_to(self, epoch: int, batches: int) -> None:
        """Stand somewhere else."""
        self.epoch, self.batches = epoch, batches
        self._arrived.clear()

    def begin(self, *, counts: bool) -> int:
        """Hear that an iterator begins, in the next epoch if this one is over; earlier ones end.

        Parameters
        ----------
        counts
            Whether the trainer receives its batches here, and not in another process.

        Returns
        -------
        int
            Names the iterator.
        """
        if self.batches + len(self._arrived) >= self._n_batches:
            self.go_to(self.epoch + 1, 0)
        self._is_counted = counts
        return self.supersede()

    def supersede(self) -> int:
        """End all iterators that there are, and name the next."""
        self._iterator += 1
        return self._iterator

    def is_current(self, iterator: int) -> bool:
        """Whether no other iterator began since, and nothing else ended this one."""
        return iterator == self._iterator

    def check_current(self, iterator: int) -> None:
        """Refuse to go on with an iterator that is over.

        Raises
        ------
        ResumeError
            If it is.
        """
        if not self.is_current(iterator):
            raise ResumeError(
                "this iterator is over: the loader was iterated anew, went on from a state, or was closed since",
                hint="take one iterator at a time, or make a loader for each",
            )

    def count(self, epoch: int, number: int) -> None:
        """Hear that the trainer has a batch."""
        if epoch != self.epoch:
            self.go_to(epoch, 0)
        self.batches = number + 1

    def finish(self) -> None:
        """Hear, in a worker process, that its part of the epoch is over."""
        self.batches = self._n_batches

    def arrival(self, epoch: int, number: int) -> None:
        """Hear that a batch came from a worker process; where nobody calls `received`, the last ends the epoch."""
        self._is_counted = False
        if self._is_told:
            return
        if epoch > self.epoch:
            self.go_to(epoch, 0)
        self._arrived.add(number)

    def received(self, epoch: int, number: int) -> None:
        """Hear that the trainer has a batch that came from a worker process.

        Raises
        ------
        ResumeError
            If another one is due.
        """
        if self._is_counted:
            return
        self._is_told = True
        self._arrived.clear()
        due = (self.epoch, self.batches) if self.batches < self._n_batches else (self.epoch + 1, 0)
        if (epoch, number) != due:
            raise ResumeError(
                f"batch {number} of epoch {epoch} came, batch {due[1]} of epoch {due[0]} is due",
                likely="worker processes outlived a pass that was left, or a state that was loaded, and do not hear of "
                "it; or `received` was not called for every batch",
                hint="give the DataLoader persistent_workers=False, and call loader.received(batch) for every batch",
            )
        self.count(epoch, number)

    def load(self, epoch: int, batches: int) -> None:
        """Go on from a state; iterators end."""
        self.supersede()
        self._is_counted = False
        self.go_to(epoch, batches)
