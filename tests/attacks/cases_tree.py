"""Attacks by what lies in the folder: links, pipes, devices of the file system, names."""

from __future__ import annotations

import os

from .attack import Attacks
from .forge import Forge

ATTACKS = attack = Attacks()
LINKS = "no symbolic link below the root is followed"
REGULAR = "only regular files and directories"
SHARD = "captures/base/sites/resid_post/values"


def link(forge: Forge, path: str, target: str) -> None:
    forge.clear(path).symlink_to(forge.outside / target)


def pipe(forge: Forge, path: str) -> None:
    os.mkfifo(forge.clear(path))


attack.table(
    "open",
    LINKS,
    {
        "commits_elsewhere": lambda f: f.move_out("__commits__"),
        "capture_elsewhere": lambda f: f.move_out("captures/base"),
        "captures_elsewhere": lambda f: f.move_out("captures"),
        "root_metadata_elsewhere": lambda f: f.move_out("zarr.json"),
        "definition_elsewhere": lambda f: f.move_out("captures/base/zarr.json"),
        "record_elsewhere": lambda f: f.move_out("__commits__/w0-000001.json"),
        "record_is_etc_passwd": lambda f: link(f, "__commits__/w0-000002.json", "secret.txt"),
        "definition_is_zero": lambda f: f.clear("captures/base/zarr.json").symlink_to("/dev/zero"),
        "metadata_loop": lambda f: f.clear("captures/base/zarr.json").symlink_to("zarr.json"),
    },
)
attack.table(
    "read",
    LINKS,
    {
        "site_elsewhere": lambda f: f.move_out("captures/base/sites/resid_post"),
        "sites_elsewhere": lambda f: f.move_out("captures/base/sites"),
        "values_elsewhere": lambda f: f.move_out(SHARD),
        "pooled_elsewhere": lambda f: f.move_out("captures/base/pooled"),
        "outputs_elsewhere": lambda f: f.move_out("captures/base/outputs"),
        "rows_elsewhere": lambda f: f.move_out("captures/base/rows"),
        "samples_elsewhere": lambda f: f.move_out("captures/base/samples"),
        "parameters_elsewhere": lambda f: f.move_out("captures/live/parameters"),
        "shard_elsewhere": lambda f: f.move_out(f"{SHARD}/c.0.0.0"),
        "shard_is_zero": lambda f: f.clear(f"{SHARD}/c.0.0.0").symlink_to("/dev/zero"),
        "shard_dangles": lambda f: link(f, f"{SHARD}/c.0.0.0", "nothing"),
        "shard_loop": lambda f: f.clear(f"{SHARD}/c.0.0.0").symlink_to("c.0.0.0"),
    },
)
attack.table(
    "write",
    LINKS,
    {
        "staging_elsewhere": lambda f: f.move_out("__commits__/staging"),
        "staging_is_a_full_folder": lambda f: link(f, "__commits__/staging", "folder"),
        "lock_is_a_link": lambda f: link(f, "__commits__/store.lock", "secret.txt"),
        "lock_dangles": lambda f: link(f, "__commits__/store.lock", "new.txt"),
        "lock_is_a_pipe": lambda f: pipe(f, "__commits__/store.lock"),
        "lock_is_a_folder": lambda f: f.clear("__commits__/store.lock").mkdir(),
        "a_capture_to_be": lambda f: link(f, "captures/extra", "folder"),
        "an_unknown_capture": lambda f: link(f, "captures/old", "folder"),
        "an_array_to_be": lambda f: link(f, "captures/live/parameters/new", "folder"),
        "a_foreign_link": lambda f: link(f, "notes.txt", "secret.txt"),
    },
)
attack.table(
    "verify",
    LINKS,
    {
        "foreign_link_is_reported": lambda f: link(f, "captures/base/extra", "folder"),
        "array_metadata_elsewhere": lambda f: f.move_out(f"{SHARD}/zarr.json"),
        "layer_elsewhere": lambda f: f.move_out("captures/base/sites/resid_post/layer"),
        "group_metadata_elsewhere": lambda f: f.move_out("captures/base/sites/zarr.json"),
        "shared_group_elsewhere": lambda f: f.move_out("captures/zarr.json"),
    },
)
attack.table(
    "open",
    REGULAR,
    {
        "root_metadata_is_a_pipe": lambda f: pipe(f, "zarr.json"),
        "definition_is_a_pipe": lambda f: pipe(f, "captures/base/zarr.json"),
        "definition_is_a_folder": lambda f: f.clear("captures/base/zarr.json").mkdir(),
        "record_is_a_pipe": lambda f: pipe(f, "__commits__/w0-000001.json"),
        "record_is_a_folder": lambda f: f.clear("__commits__/w0-000001.json").mkdir(),
        "commits_is_a_file": lambda f: f.put("__commits__", b""),
        "commits_is_a_pipe": lambda f: pipe(f, "__commits__"),
    },
)
attack.table(
    "read",
    REGULAR,
    {
        "shard_is_a_pipe": lambda f: pipe(f, f"{SHARD}/c.0.0.0"),
        "shard_is_a_folder": lambda f: f.clear(f"{SHARD}/c.0.0.0").mkdir(),
        "column_is_a_pipe": lambda f: pipe(f, "captures/live/samples/id/c.0"),
        "folder_is_a_file": lambda f: f.put("captures/base/outputs", b"x"),
    },
)
attack.table(
    "verify",
    REGULAR,
    {
        "array_metadata_is_a_pipe": lambda f: pipe(f, f"{SHARD}/zarr.json"),
        "a_foreign_pipe": lambda f: pipe(f, "captures/base/pipe"),
    },
)


@attack("write", "the lock is a file of its own")
def lock_is_a_hard_link(forge: Forge) -> None:
    os.link(forge.outside / "secret.txt", forge.clear("__commits__/store.lock"))


@attack("verify", "depth 16")
def deep_folders(forge: Forge) -> None:
    (forge.root / ("captures/base/" + "d/" * 40)).mkdir(parents=True)


@attack("ignored", "what no record names is ignored")
def foreign_files(forge: Forge) -> None:
    forge.put("README.md", b"\x1b[31m")
    forge.put("captures/old/zarr.json", b"{" * 1000)
    forge.put("captures/base/sites/evil/zarr.json", b'{"zarr_format": 2}')
    forge.put("__commits__/notes.json", b"[" * 10**6)
    forge.put("__commits__/W0-1.json", b"{}")


@attack("ignored", "what a crash left in staging is ignored and swept")
def full_staging(forge: Forge) -> None:
    forge.put("__commits__/staging/file-1-1", b"x")
    forge.put("__commits__/staging/capture/sites/zarr.json", b"x")
