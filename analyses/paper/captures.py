"""Which captures play the roles of the paper: the trained adapter and the untrained one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..source import View


def has_adapter(view: View) -> bool:
    """Return whether a capture has an adapter."""
    return isinstance(view.attrs.get("adapter"), Mapping)


def is_trained_adapter(view: View) -> bool:
    """Return whether the adapter of a capture was trained; true where the capture does not say."""
    return has_adapter(view) and view.trained("adapter")


def baseline_of(views: Sequence[View], *, drawn: bool) -> View | None:
    """Return the untrained adapter: with A and B drawn at random, or in PEFT's initial state."""
    untrained = [view for view in views if has_adapter(view) and not view.trained("adapter")]
    kinds = [view for view in untrained if (view.attrs["adapter"].get("init") == "normal") == drawn]
    return kinds[0] if kinds else None
