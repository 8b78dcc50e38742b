"""What a hostile store says reaches a terminal without escape sequences or reversed text."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorascope.cli.errors import message_of
from lorascope.cli.lorascope import lorascope
from lorascope.store import StoreError, create_store, open_store, verify_store

from .forge import SITES, Forge, make_sound

EVIL = "\x1b]0;owned\x07\u202ecod.exe\x9b2J"


@pytest.fixture(scope="module")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Forge:
    """A sound store whose configuration has an evil key and an evil value."""
    folder = tmp_path_factory.mktemp("evil")
    make_sound(folder)
    made = Forge(folder / "s.zarr", folder / "r.zarr", folder)
    with create_store(made.root, capture="evil", sites=SITES, config={EVIL: EVIL}):
        pass
    return made


def is_clean(text: str) -> bool:
    return text.isprintable() or all(c.isprintable() or c in "\n\t" for c in text)


def test_errors_lose_escapes(forge: Forge) -> None:
    with pytest.raises(StoreError) as caught:
        create_store(forge.root, capture="evil", sites=SITES, config={})
    assert EVIL in str(caught.value), "the test proves nothing without the evil key in the message"
    assert is_clean(message_of(caught.value))
    assert "owned" in message_of(caught.value)


def test_reports_of_damage_lose_escapes(forge: Forge, capsys: pytest.CaptureFixture[str]) -> None:
    link: Path = forge.root / f"captures/base/{EVIL}"
    link.symlink_to("/etc")
    try:
        assert EVIL in verify_store(forge.root).damages[0].message
        for arguments in (["verify", str(forge.root)], ["verify", "--json", str(forge.root)]):
            assert lorascope.main(arguments, standalone_mode=False) == 3
            output = capsys.readouterr()
            assert "owned" in output.out
            assert is_clean(output.out)
    finally:
        link.unlink()
    assert open_store(forge.root).captures == ["base", "live", "packed", "evil"]
