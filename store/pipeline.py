"""A byte-bounded pipeline from the producer to the writer threads.

The bound is in bytes, not items. A full pipeline blocks the producer; an error in a thread reaches
the producer at its next call, and the threads then only drain, so nobody waits for ever.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

type Job = Callable[[], None]


class Pipeline:
    """Worker threads with one ordered queue each and a common bound on bytes in flight.

    Parameters
    ----------
    threads
        Number of threads; jobs sent to one lane keep their order.
    max_bytes
        Bound on the bytes of jobs that were sent and have not ended.
    """

    def __init__(self, threads: int, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._in_flight = 0
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._queues: list[queue.SimpleQueue[tuple[Job, int] | None]] = [
            queue.SimpleQueue() for _ in range(threads)
        ]
        self._threads = [
            threading.Thread(target=self._work, args=(lane,), name=f"writer-{n}", daemon=True)
            for n, lane in enumerate(self._queues)
        ]
        self._started = False

    @property
    def lanes(self) -> int:
        """Number of ordered queues."""
        return len(self._queues)

    def send(self, lane: int, job: Job, n_bytes: int = 0) -> None:
        """Queue a job, waiting while the pipeline is full.

        A job larger than the whole bound is let in once the pipeline is empty.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._error is not None
                    or self._in_flight == 0
                    or self._in_flight + n_bytes <= self._max_bytes
                )
            )
            self._raise_error()
            self._in_flight += n_bytes
            if not self._started:
                # A signal may come between two of them; who goes on then starts the rest.
                for thread in self._threads:
                    if not thread.is_alive():
                        thread.start()
                self._started = True
        self._queues[lane].put((job, n_bytes))

    def check(self) -> None:
        """Raise the first error of a worker, if there was one."""
        with self._changed:
            self._raise_error()

    def close(self) -> None:
        """Let the queued jobs end, stop the threads and raise the first error."""
        self.stop()
        self.check()

    def stop(self) -> None:
        """Let the queued jobs end and stop the threads; errors stay readable by `check`."""
        for lane in self._queues:
            lane.put(None)
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def abandon(self) -> None:
        """Skip what is still queued; the error of `check` says that the work was abandoned."""
        with self._changed:
            self._error = self._error or RuntimeError("abandoned")
            self._changed.notify_all()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self, lane: queue.SimpleQueue[tuple[Job, int] | None]) -> None:
        while (item := lane.get()) is not None:
            job, n_bytes = item
            try:
                if self._error is None:
                    job()
            except BaseException as error:
                with self._changed:
                    self._error = self._error or error
            finally:
                del job, item
                with self._changed:
                    self._in_flight -= n_bytes
                    self._changed.notify_all()
