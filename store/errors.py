"""Every error that lorascope expects, grouped by what the person who sees it would do.

- `LorascopeError` — root of all rooms; a command prints its message, never its traceback.
  - `StoreError` — something about a store.
    - `InvalidStoreError` — no lorascope store that this version reads: name another path.
    - `RecordVersionError` — a newer lorascope wrote it: upgrade.
    - `SealedStoreError` — the store is sealed and never changes: write to another one.
    - `UnsealedStoreError` — what was asked needs a sealed store: `lorascope seal`.
    - `IncompleteCaptureError` — planned samples are missing: finish the capture first.
    - `DamagedStoreError` — bytes differ from what was committed: `lorascope verify`, then `repair`.
    - `MissingCaptureError`, `MissingSiteError` — the store does not hold it: choose one it does.
    - `ConfigMismatchError` — the store holds another run: use another path or another capture name.
    - `SampleError` — a sample that does not fit what was declared: mend the caller.
    - `LockedStoreError` — another process writes: wait for it, or stop it.
    - `StoreSpaceError` — no space, no file handles: free some.
    - `StoreWriteError` — the disk refused a write; committed data are safe: look at the disk.
"""

from __future__ import annotations


class LorascopeError(Exception):
    """An expected error: its message says what was asked, what is there and what to do."""

    def __str__(self) -> str:
        """Return the message as written (`KeyError` would quote it)."""
        return str(self.args[0]) if self.args else ""


class StoreError(LorascopeError):
    """Something about a store."""


class InvalidStoreError(StoreError, ValueError):
    """The path holds no lorascope store that this version reads."""


class RecordVersionError(InvalidStoreError):
    """A commit record has a version that this lorascope does not read."""


class SealedStoreError(StoreError, PermissionError):
    """The store is sealed: nothing in it may change."""


class UnsealedStoreError(StoreError, ValueError):
    """The store is open, and what was asked is only defined for a sealed one."""


class IncompleteCaptureError(StoreError, ValueError):
    """A planned capture has samples that are not recorded yet."""


class DamagedStoreError(StoreError, OSError):
    """Bytes on disk differ from what the commit records say."""


class MissingCaptureError(StoreError, KeyError):
    """The store holds no capture of this name."""


class MissingSiteError(StoreError, KeyError):
    """The capture holds no site, pool, output, layer or parameter of this name."""


class ConfigMismatchError(StoreError, ValueError):
    """The capture in the store was made with another configuration."""


class SampleError(StoreError, ValueError):
    """A sample does not fit what was declared for the capture."""


class LockedStoreError(StoreError, BlockingIOError):
    """Another process is writing to the store."""


class StoreSpaceError(StoreError, OSError):
    """The disk is full, or a limit on open files is too low."""


class StoreWriteError(StoreError, OSError):
    """The operating system refused a write; what was committed is safe."""
