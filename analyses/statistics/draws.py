"""Draws that depend on what is said about them: a seed and an id, never on the order of samples."""

from __future__ import annotations

import hashlib

import numpy as np


def hash_text(text: str) -> int:
    """Return 64 bits that depend on a text alone, on every machine."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def seeded(text: str) -> np.random.Generator:
    """Return a generator whose draws depend on a text alone: `seeded(f"{seed}/rows/{id}")`."""
    return np.random.default_rng(hash_text(text))
