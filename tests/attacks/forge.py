"""A sound store, and the tools of a stranger who spoils it: forged records carry right checksums."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from lorascope.store import Output, SampleRows, Site, create_store, write_results
from lorascope.store.creation import chunk_entry, file_entry, with_checksum
from lorascope.store.layout import canonical, to_json

SITES = (
    Site("resid_post", layers=(0, 1), width=6, dtype="bfloat16"),
    Site("embed", layers=None, width=5),
    Site("resid_post.mean_valid", layers=(0, 1), width=6, kind="sample"),
)
OUTPUTS = (Output("logits", (4,)), Output("loss"))
ROWS = (3, 5, 2, 4)


def sample(number: int) -> dict[str, Any]:
    """Return the arguments of `append` for one sample."""
    rng = np.random.default_rng(number)
    rows = ROWS[number % len(ROWS)]
    return {
        "id": f"utt-{number}",
        "values": {
            "resid_post": rng.standard_normal((2, rows, 6)).astype(np.float32),
            "embed": rng.standard_normal((rows, 5)).astype(np.float32),
            "resid_post.mean_valid": rng.standard_normal((2, 6)).astype(np.float32),
        },
        "label": "anger",
        "groups": {"speaker": f"{number % 2:02d}"},
        "outputs": {"logits": np.arange(4.0), "loss": 1.0},
        "columns": {"take": number, "note": "wütend"},
    }


def make_sound(folder: Path) -> None:
    """Make `s.zarr` (planned, unplanned and compressed captures) and `r.zarr` (results) in a folder."""
    make_store(folder / "s.zarr", "base", "live")
    make_results(folder / "r.zarr")


def make_store(path: Path, *captures: str) -> None:
    """Make a store of `base` (planned), `live` (unplanned) or both, and `packed` (compressed)."""
    plan = [SampleRows(f"utt-{n}", {"tokens": ROWS[n]}) for n in range(4)]
    every: dict[str, dict[str, Any]] = {
        "base": {"plan": plan, "segment_samples": 2},
        "live": {"segment_samples": 2, "segment_rows": 16},
    }
    for capture in captures:
        with create_store(
            path,
            capture=capture,
            sites=SITES,
            outputs=OUTPUTS,
            config={"seed": 0, "model": {"base": "tiny"}},
            **every[capture],
        ) as writer:
            writer.write_parameters({"head.weight": np.arange(12.0).reshape(3, 4)}, attrs={"a": 1})
            for number in range(4):
                writer.append(**sample(number))
    with create_store(
        path, capture="packed", sites=SITES[:1], profile="compact", segment_rows=16
    ) as writer:
        for number in range(2):
            values = sample(number)["values"]
            writer.append(f"utt-{number}", {"resid_post": values["resid_post"]})


def make_results(path: Path) -> None:
    """Make a store of results with every type of column."""
    entry = xr.Dataset(
        {
            "value": ("entry", np.linspace(0, 1, 3)),
            "ok": ("entry", [True, False, True]),
            "site": ("entry", ["é"] * 3),
            "word": ("entry", np.array(["one", "two", "x" * 9], dtype=object)),
        },
        coords={"entry": np.arange(3)},
    )
    write_results(path, {"cka": entry, "svd": entry}, attrs={"command": "analyze"})


class Forge:
    """One copy of the sound store; `root` and `results` are its folders, `outside` is not its.

    Attributes
    ----------
    touched
        Files that were written or removed.
    """

    def __init__(self, root: Path, results: Path, outside: Path) -> None:
        self.root = root
        self.results = results
        self.outside = outside
        self.touched: set[Path] = set()

    def put(self, path: str, content: bytes) -> None:
        """Write a file, whatever was there."""
        target = self.root / path
        self.clear(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)

    def clear(self, path: str) -> Path:
        """Remove what is at a path."""
        target = self.root / path
        self.touched.add(target)
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)
        return target

    def move_out(self, path: str) -> Path:
        """Move something to the outside and leave a link to it."""
        source = self.root / path
        away = self.outside / "moved"
        shutil.move(source, away)
        source.symlink_to(away)
        return away

    def metadata(self, path: str, change: Callable[[dict[str, Any]], object]) -> None:
        """Change one `zarr.json` without telling any record."""
        target = self.root / path
        node = json.loads(target.read_text())
        change(node)
        target.write_text(json.dumps(node))

    def bodies(self) -> list[dict[str, Any]]:
        """Return the bodies of all records, in order."""
        paths = sorted((self.root / "__commits__").glob("w*.json"))
        return [json.loads(path.read_bytes())["body"] for path in paths]

    def sign(self, bodies: list[dict[str, Any]], *, name: str | None = None) -> None:
        """Replace all records by bodies with right checksums and a right chain.

        `name` is the file name of the last one, where it is not the usual one.
        """
        for path in (self.root / "__commits__").glob("*.json"):
            path.unlink()
            self.touched.add(path)
        previous: str | None = None
        for number, body in enumerate(bodies):
            body.setdefault("number", number)
            if "previous" in body and body["previous"] != "keep":
                body["previous"] = previous
            data = sealed(body)
            previous = hashlib.sha256(data).hexdigest()
            usual = f"w0-{number:06d}.json"
            last = number == len(bodies) - 1
            path = self.root / "__commits__" / (name if name and last else usual)
            path.write_bytes(data)
            self.touched.add(path)

    def record(
        self,
        kind: str,
        change: Callable[[dict[str, Any]], object],
        *,
        capture: str = "base",
        nth: int = 0,
    ) -> None:
        """Change the body of one record and sign all again."""
        bodies = self.bodies()
        found = [b for b in bodies if b["kind"] == kind and b["capture"] == capture]
        change(found[nth])
        self.sign(bodies)

    def raw_record(self, change: Callable[[bytes], bytes], number: int = -1) -> None:
        """Change the bytes of a record and sign nothing."""
        path = sorted((self.root / "__commits__").glob("w*.json"))[number]
        path.write_bytes(change(path.read_bytes()))

    def definition(
        self,
        change: Callable[[dict[str, Any]], object],
        *,
        capture: str = "base",
        node: Callable[[dict[str, Any]], object] | None = None,
    ) -> None:
        """Change a capture's attributes and let its record name the new file."""
        path = f"captures/{capture}/zarr.json"
        body = json.loads((self.root / path).read_bytes())
        change(body["attributes"])
        if node is not None:
            node(body)
        self.commit_file(path, json.dumps(body).encode(), capture)

    def commit_file(self, path: str, content: bytes, capture: str = "base") -> None:
        """Replace a file of metadata and let its record name the new one."""
        self.put(path, content)
        entry = file_entry(path, content).to_dict()
        self._name(path, entry)

    def chunk(self, path: str, payload: bytes, **lie: Any) -> None:
        """Replace a file of one chunk and let its record name the new one, or lie about it."""
        content = with_checksum(payload)
        self.put(path, content)
        self._name(path, chunk_entry(path, content).to_dict() | lie)

    def _name(self, path: str, entry: dict[str, Any]) -> None:
        bodies = self.bodies()
        for body in bodies:
            body["files"] = [entry if f["path"] == path else f for f in body["files"]]
        self.sign(bodies)


def sealed(body: object) -> bytes:
    """Return the bytes of a record with a right checksum."""
    return to_json({"body": body, "sha256": hashlib.sha256(canonical(body)).hexdigest()})
