"""From the device to the host, beside the computation.

Rows are selected and cast on the stream that computes, and copied on a stream of their own into
pinned memory: the forward goes on meanwhile. torch's own allocator of pinned memory keeps freed
blocks and knows which copies still use them, so after the first batches none is allocated; the
bytes in flight are bounded by the writer, which takes a batch only when its buffer has room.
"""

from __future__ import annotations

import torch


class HostCopies:
    """The copies of one recorder; nothing on a CPU."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def start(self, rows: torch.Tensor, out: torch.Tensor) -> None:
        """Start the copy of `rows`, which nobody writes to any more, into pinned `out`."""
        side = self._streams.get(rows.device)
        if side is None:
            side = self._streams[rows.device] = torch.cuda.Stream(rows.device)
        side.wait_stream(torch.cuda.current_stream(rows.device))
        with torch.cuda.stream(side):
            out.copy_(rows, non_blocking=True)
        # the allocator must not give its memory to the forward before the copy has read it
        rows.record_stream(side)

    def wait(self) -> None:
        """Wait until every copy that was started has arrived: only then may a writer look."""
        for stream in self._streams.values():
            stream.synchronize()
