"""How a run tells what it is doing; the command line draws it, a library user may ignore it."""

from typing import Protocol


class Reporter(Protocol):
    """Listens to a run."""

    def stage(self, text: str) -> None:
        """Tell that a new stage begins."""
        ...

    def progress(self, done: int, total: int, text: str) -> None:
        """Tell how far the current stage is, in steps."""
        ...

    def note(self, text: str) -> None:
        """Tell something that the user should know, once."""
        ...


class SilentReporter:
    """A reporter that says nothing."""

    def stage(self, text: str) -> None:
        """Ignore the stage."""

    def progress(self, done: int, total: int, text: str) -> None:
        """Ignore the progress."""

    def note(self, text: str) -> None:
        """Ignore the note."""
