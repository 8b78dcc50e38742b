"""A power cut on a real file system: a loop device whose ext4 is shut down without a flush.

The shutdown (the ioctl that the file system's own tests use) drops all that is in memory only, page
cache and journal; mounting again replays what reached the device. It needs root, loop devices and
ext4, and is skipped elsewhere.
"""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from lorascope.store import StoreError, open_store

from .disks import open_files
from .small_run import Run

EXT4_IOC_SHUTDOWN = 0x8004587D
NO_LOG_FLUSH = 2


class Device:
    """An ext4 file system in a file."""

    def __init__(self, folder: Path) -> None:
        self._image, self.mount = folder / "image", folder / "mount"
        self.mount.mkdir()
        with self._image.open("wb") as file:
            file.truncate(48 * 2**20)
        _run("mkfs.ext4", "-q", "-F", str(self._image))

    def plug_in(self) -> None:
        """Mount it; the journal is replayed."""
        _run("mount", "-o", "loop", str(self._image), str(self.mount))

    def cut_power(self) -> None:
        """Lose all that did not reach the device."""
        descriptor = os.open(self.mount, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, EXT4_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(descriptor)

    def unplug(self) -> None:
        """Unmount it; a descriptor that the store left open would keep it busy."""
        left = open_files(self.mount)
        assert not left, f"the store left open: {left}"
        _run("umount", str(self.mount))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    """A file system whose power can be cut."""
    lacking = [tool for tool in ("mkfs.ext4", "mount", "umount") if shutil.which(tool) is None]
    if os.geteuid() != 0 or lacking:
        pytest.skip("cutting the power of a loop device needs root, mkfs.ext4 and mount")
    device = Device(tmp_path)
    try:
        device.plug_in()
        device.cut_power()
        device.unplug()
    except (OSError, subprocess.CalledProcessError) as error:
        with suppress(subprocess.CalledProcessError):
            device.unplug()
        pytest.skip(f"this system has no loop device with ext4 to cut the power of: {error}")
    yield device
    with suppress(subprocess.CalledProcessError):
        device.unplug()


def test_power_cuts_at_random_moments(device, ram, seed, amount, note):
    """What the writer was told to be committed is there after every cut; the run can go on."""
    rng = random.Random(seed)
    cuts = amount("power_cuts", change=12, release=300)
    done = rounds = 0
    while done < cuts:
        run = replace(Run.draw(rng), n_samples=24)
        expected = run.digest(ram / f"undisturbed-{rounds}")
        name = f"store-{rounds}"
        committed: set[str] = set()
        while True:
            device.plug_in()
            ended = write_until_cut(device, run, name, committed, rng.uniform(0.005, 0.4))
            device.unplug()
            device.plug_in()
            run.check(device.mount / name, committed)
            if ended:
                assert open_store(device.mount / name).content_digest() == expected
            device.unplug()
            if ended:
                break
            done += 1
        rounds += 1
        device.plug_in()
        shutil.rmtree(device.mount / name)
        device.unplug()
    note("power cuts on a loop device with ext4: committed samples lost", cuts=done)


def write_until_cut(
    device: Device, run: Run, name: str, committed: set[str], seconds: float
) -> bool:
    """Write while the power is cut after some seconds; return whether the run had ended before."""
    over = threading.Event()
    cut = threading.Event()

    def cut_later() -> None:
        if not over.wait(seconds):
            cut.set()
            device.cut_power()

    switch = threading.Thread(target=cut_later)
    switch.start()
    told: set[str] = set()

    def tell(ids: set[str]) -> None:
        # A process that loses its power tells nothing any more.
        if not cut.is_set():
            told.update(ids)

    ended = False
    try:
        run.write(device.mount / name, committed=tell, pause=0.002)
        ended = True
    except (StoreError, OSError):
        assert cut.is_set()
    finally:
        over.set()
        switch.join()
        committed |= told
    return ended and not cut.is_set()


def test_without_fsync_the_same_cut_loses_everything(device, tmp_path):
    """The cut is real: files that were written and not synced are gone or empty."""
    device.plug_in()
    for number in range(8):
        (device.mount / f"{number}").write_bytes(b"x" * 10_000)
    device.cut_power()
    device.unplug()
    device.plug_in()
    kept = [p for p in device.mount.glob("[0-9]") if p.read_bytes() == b"x" * 10_000]
    assert not kept
    device.unplug()
