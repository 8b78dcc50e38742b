"""A corpus listed in a CSV file: the way to bring any audio of one's own."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..config_types import suggest
from ..errors import DataError
from .audio import raise_problems, read_waveform
from .table import Corpus, Utterance

if TYPE_CHECKING:
    from _csv import Reader

    import numpy as np
    from numpy.typing import NDArray

_REQUIRED = ("path", "label", "speaker")
_OWN = (*_REQUIRED, "id", "session")
_RESERVED = ("capture", "exposed", "segment", "raw_label", "valid_frames", "duration_seconds")
"""Columns that a store has already, with another meaning."""


def load_manifest(root: Path | None, manifest: Path | None = None) -> Corpus:
    """List the utterances of a CSV file.

    Parameters
    ----------
    root
        Folder that relative paths start from; None: the folder of the CSV file.
    manifest
        CSV file with the columns path, label and speaker; id (default: the path as written) and
        session are optional; further columns are kept.

    Raises
    ------
    DataError
        With the line of every problem, the first ten in words.
    """
    if manifest is None:
        msg = (
            "corpus manifest needs data.manifest: a CSV file with the columns path, label, speaker"
        )
        raise DataError(msg)
    if not manifest.is_file():
        msg = f"corpus manifest: no file {str(manifest)!r}"
        raise DataError(msg)
    reading = _Reading(manifest, root if root is not None else manifest.absolute().parent)
    try:
        with manifest.open(encoding="utf-8-sig", newline="") as file:
            reading.read(csv.reader(file, strict=True))
    except UnicodeDecodeError as error:
        msg = f"{manifest}: not UTF-8 text (byte {error.start}); save the file as UTF-8"
        raise DataError(msg) from error
    except csv.Error as error:
        msg = f"{manifest}: not CSV: {error}"
        raise DataError(msg) from error
    raise_problems(str(manifest), reading.problems)
    if not reading.utterances:
        msg = f"{manifest}: lists no utterance"
        raise DataError(msg)
    labels = tuple(sorted({item.label for item in reading.utterances}))
    return Corpus("manifest", tuple(reading.utterances), labels, (), _read)


@dataclass(slots=True)
class _Reading:
    """One pass over the file."""

    manifest: Path
    root: Path
    utterances: list[Utterance] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    lines: dict[str, int] = field(default_factory=dict)

    def read(self, rows: "Reader") -> None:
        """Read header and rows, noting problems."""
        header = [name.strip() for name in next(rows, [])]
        self._check_header(header)
        if self.problems:
            return
        for row in rows:
            if row:
                self._read_row(header, row, rows.line_num)

    def _check_header(self, header: list[str]) -> None:
        there = ", ".join(header) or "nothing"
        for name in _REQUIRED:
            if name not in header:
                hint = suggest(name, [key for key in header if key not in _OWN])
                self._problem(1, f"no column {name!r}{hint} (columns: {there})")
        for name in sorted(set(header)):
            if header.count(name) > 1:
                self._problem(1, f"two columns are called {name!r}")
            if not name or name in _RESERVED or name.startswith(("start_row.", "n_rows.")):
                self._problem(1, f"a column cannot be called {name!r}; rename it")

    def _read_row(self, header: list[str], row: list[str], line: int) -> None:
        if len(row) != len(header):
            self._problem(line, f"{len(row)} fields, but the header has {len(header)}")
            return
        cells = {name: cell.strip() for name, cell in zip(header, row, strict=True)}
        path = self.root / Path(cells["path"]).expanduser()
        key = cells.get("id") or cells["path"]
        found = list(self._row_problems(cells, path, key))
        for message in found:
            self._problem(line, message)
        self.lines.setdefault(key, line)
        if not found:
            label = cells["label"]
            columns = {name: cell for name, cell in cells.items() if name not in _OWN}
            session = cells.get("session", "")
            utterance = Utterance(
                key, path, label, label, cells["speaker"], session, columns=columns
            )
            self.utterances.append(utterance)

    def _row_problems(self, cells: dict[str, str], path: Path, key: str) -> Iterator[str]:
        for name in _REQUIRED:
            if not cells[name]:
                yield f"empty {name}"
        if cells["path"] and not path.is_file():
            yield f"no audio file {str(path)!r}"
        if key and key in self.lines:
            yield f"id {key!r} is used in line {self.lines[key]} already"

    def _problem(self, line: int, message: str) -> None:
        self.problems.append(f"{self.manifest}:{line}: {message}")


def _read(utterance: Utterance) -> "NDArray[np.float32]":
    assert utterance.path is not None
    return read_waveform(utterance.path)
