"""What all tests share: the folder of real weights and real speech, where there is one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_root() -> Path:
    """The folder of real weights and real speech that LORASCOPE_REAL names."""
    named = os.environ.get("LORASCOPE_REAL")
    if not named:
        pytest.skip("LORASCOPE_REAL names no folder with real weights and real speech")
    root = Path(named).resolve()
    if not (root / "whisper-tiny-en").is_dir():
        pytest.skip(f"LORASCOPE_REAL={named} holds no whisper-tiny-en")
    return root
