"""What the proofs of whole captures share: a warm parent of commands, and one undisturbed run."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lorascope.store import open_store

from .commands import Command, Commands, Kill

CONFIG = """
seed: 0
model: {base: "demo:whisper", window_seconds: 1}
data: {corpus: demo, labels: [anger, happiness, neutral, sadness], per_class: 6}
split: {by: speaker, test: ["07", "08"]}
captures:
  lora: {adapter: {type: lora, r: 4, alpha: 8, target_modules: [v_proj]}, train: {epochs: 4}}
  frozen: {adapter: null, train: {epochs: 3}}
run: {batch_size: 2, segment_samples: 4}
record: {sites: [embed, lora_a, lora_b], gradients: [resid_post, lora_a], layers: [1]}
"""
"""24 samples in 6 segments, two conditions that train: small, but long enough to be killed in."""


@dataclass(frozen=True)
class Captures:
    """Carries out `CONFIG` by processes that may be killed."""

    commands: Commands
    config: Path
    half: Path
    """A store that holds the first capture, `frozen`, and nothing of the second, `lora`."""
    digest: str
    """`content_digest` of a run that nobody disturbed."""
    seconds: float
    """How long `lora` took, seconds."""

    def command(
        self, store: Path, *, kill: Kill | None = None, rank: int = 0, ranks: int = 1
    ) -> Command:
        """Return the process of one rank."""
        place = {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank)}
        return Command(
            [str(self.config), "--store", str(store)],
            str(self.log(store, rank)),
            kill,
            place if ranks > 1 else {},
        )

    def log(self, store: Path, rank: int = 0) -> Path:
        """Return where the process of one rank says what it does."""
        return store.parent / f"{store.name}-{rank}.log"

    def finish(self, store: Path, ranks: int = 1) -> None:
        """Run the same command again; what the store then holds is what it should."""
        again = [self.command(store, rank=rank, ranks=ranks) for rank in range(ranks)]
        codes = self.commands.run(*again)
        assert codes == [0] * ranks, self.log(store).read_text()
        assert open_store(store).content_digest() == self.digest


@pytest.fixture(scope="session")
def captures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Captures]:
    """A warm parent, and the digest and duration of an undisturbed run."""
    folder = tmp_path_factory.mktemp("captures")
    config = folder / "config.yaml"
    config.write_text(CONFIG)
    commands = Commands()
    try:
        log, store, half = folder / "log", folder / "s.zarr", folder / "half.zarr"
        ran = [str(config), "--store", str(store), "--json"]
        early = Kill(signal.SIGKILL, str(log), "lora: training", 0.0)
        assert commands.run(Command(ran, str(log), early)) == [-signal.SIGKILL], log.read_text()
        shutil.copytree(store, half)
        assert commands.run(Command([*ran, "-q"], str(log))) == [0], log.read_text()
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        seconds = next(line["seconds"] for line in lines if line.get("capture") == "lora")
        yield Captures(commands, config, half, open_store(store).content_digest(), seconds)
    finally:
        commands.close()
