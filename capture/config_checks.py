"""Checks across sections, made on plain values so that they run beside the checks of each value.

Each check yields problems and keeps quiet about values that are wrong in themselves: those are
reported where they stand.
"""

from collections.abc import Iterator
from typing import Any

from .config_interventions import ADAPTER_KINDS
from .config_sites import ADAPTER_SITES, WEIGHT_SITES
from .config_types import suggest
from .config_yaml import Problem


def cross_checks(config: dict[str, Any]) -> Iterator[Problem]:
    """Yield every contradiction between values of `config` (plain values, unchecked)."""
    yield from _check_head(config)
    yield from _check_split(config)
    yield from _check_corpus(config)
    yield from _check_sites(config)
    yield from _check_steps(config)
    yield from _check_interventions(config)


def _section(config: dict[str, Any], *path: str) -> dict[str, Any]:
    value: Any = config
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def _trained(config: dict[str, Any]) -> list[str]:
    captures = _section(config, "captures")
    return [name for name in captures if _section(captures, name).get("train") is not None]


def _loaded(config: dict[str, Any]) -> list[str]:
    """Return the captures whose adapter was trained elsewhere."""
    captures = _section(config, "captures")
    return [name for name in captures if "path" in _section(captures, name, "adapter")]


def _check_head(config: dict[str, Any]) -> Iterator[Problem]:
    name = _section(config, "head").get("from")
    captures = _section(config, "captures")
    if not isinstance(name, str) or not captures:
        return
    trained = _trained(config)
    if name not in captures:
        hint = suggest(name, captures) or f" (there: {', '.join(captures)})"
        yield Problem(("head", "from"), f"head.from: no capture {name!r}{hint}")
    elif name not in trained:
        there = f"trained are: {', '.join(trained)}" if trained else "no capture is trained"
        message = f"head.from: capture {name!r} has no `train`, so it has no head to give; {there}"
        yield Problem(("head", "from"), message)


def _check_split(config: dict[str, Any]) -> Iterator[Problem]:
    split = _section(config, "split")
    test, fold = split.get("test"), split.get("fold")
    trained = _trained(config)
    example = 'for example split: {by: speaker, test: ["11", "12"]}'
    if split and test is not None and fold is not None:
        yield Problem(("split", "fold"), "split: give either test or fold, not both", at_key=True)
    elif split and test is None and fold is None:
        yield Problem(("split",), f"split: says not what is held out; {example}")
    elif trained and config.get("split") is None:
        message = f"missing key 'split': {trained[0]!r} is trained, so say what it never sees; "
        yield Problem(("split",), message + example, at_key=True)
    elif _loaded(config) and config.get("split") is None:
        name = _loaded(config)[0]
        message = f"missing key 'split': {name!r} was trained, so say what it never saw (all "
        message += "speakers, if it was trained on another corpus); "
        yield Problem(("split",), message + example, at_key=True)
    for name in _loaded(config):
        if name in trained:
            message = f"captures.{name}.train: an adapter that is loaded is captured as it is; "
            yield Problem(("captures", name, "train"), message + "leave train out")


def _check_corpus(config: dict[str, Any]) -> Iterator[Problem]:
    data = _section(config, "data")
    corpus = data.get("corpus")
    if corpus == "manifest" and data.get("manifest") is None:
        message = "missing key 'data.manifest': the CSV file with the columns path, label, speaker"
        yield Problem(("data", "manifest"), message, at_key=True)
    if corpus == "ravdess" and data.get("root") is None:
        message = "missing key 'data.root': the folder that holds Actor_01, Actor_02, ..."
        yield Problem(("data", "root"), message, at_key=True)
    if corpus == "demo" and data.get("root") is not None:
        message = "data.root: the demo corpus is synthesised and has no folder; leave it out"
        yield Problem(("data", "root"), message, at_key=True)
    if corpus in ("demo", "ravdess") and data.get("manifest") is not None:
        message = f"data.manifest: belongs to corpus: manifest, but corpus is {corpus}"
        yield Problem(("data", "manifest"), message, at_key=True)


def _check_sites(config: dict[str, Any]) -> Iterator[Problem]:
    record = _section(config, "record")
    captures = _section(config, "captures")
    has_adapter = any(_section(captures, name).get("adapter") is not None for name in captures)
    if captures and not has_adapter:
        for key in ("sites", "gradients"):
            if key == "sites":
                among = tuple(site for site in ADAPTER_SITES if site not in WEIGHT_SITES)
            else:
                among = ADAPTER_SITES
            for site in _wanted(record, key, among):
                message = f"record.{key}: {site!r} exists only with an adapter; no capture has one"
                yield Problem(("record", key, site), message)
    for site in _wanted(record, "sites", WEIGHT_SITES):
        message = f"record.sites: {site!r} is a gradient, sample by sample; name it in gradients"
        yield Problem(("record", "sites", site), message)
    asked = [
        *_wanted(record, "sites", ("attention",)),
        *_wanted(record, "gradients", ("attention",)),
    ]
    if asked and _section(config, "model").get("attention") != "eager":
        message = "record: attention weights exist only with `attention: eager` under `model`"
        yield Problem(("model", "attention"), message)
    if record.get("frames") == "none" and record.get("pool") == []:
        message = "record.pool: frames is none and pool is empty, so nothing would be recorded"
        yield Problem(("record", "pool"), message)


def _wanted(record: dict[str, Any], key: str, among: tuple[str, ...]) -> list[str]:
    value = record.get(key)
    names = value if isinstance(value, list | dict) else ()
    return [name for name in names if isinstance(name, str) and name.split(".")[0] in among]


def _check_steps(config: dict[str, Any]) -> Iterator[Problem]:
    captures = _section(config, "captures")
    trained = _trained(config)
    for name in captures:
        moments = _section(captures, name).get("at_steps")
        chosen = _section(captures, name).get("step_samples")
        during = isinstance(moments, list) and any(moment != "final" for moment in moments)
        place = ("captures", name, "at_steps")
        if during and name not in trained:
            message = f"captures.{name}.at_steps: the capture has no `train`, so it has no steps; "
            yield Problem(place, message + "leave at_steps out, or say how it is trained")
        place = ("captures", name, "step_samples")
        if chosen is not None and not during:
            message = f"captures.{name}.step_samples: at_steps names no step before the final one, "
            yield Problem(place, message + "and the final capture always has all samples")
        if isinstance(chosen, dict) and ("per_class" in chosen) == ("total" in chosen):
            message = f"captures.{name}.step_samples: give either per_class or total"
            yield Problem(place, message)


def _check_interventions(config: dict[str, Any]) -> Iterator[Problem]:
    """Check the captures that interventions name."""
    captures = _section(config, "captures")
    listed = config.get("interventions")
    for i, entry in enumerate(listed if isinstance(listed, list) and captures else ()):
        if not isinstance(entry, dict):
            continue
        place = ("interventions", i)
        source = _section(entry, "patch").get("from")
        if isinstance(source, str) and source not in captures:
            hint = suggest(source, captures) or f" (there: {', '.join(captures)})"
            message = f"interventions[{i}].patch.from: no capture {source!r}{hint}"
            yield Problem((*place, "patch", "from"), message)
        named = entry.get("captures")
        for j, name in enumerate(named if isinstance(named, list) else ()):
            yield from _check_changed((*place, "captures", j), entry, name, captures)


def _check_changed(
    place: tuple[str | int, ...], entry: dict[str, Any], name: object, captures: dict[str, Any]
) -> Iterator[Problem]:
    """Check one capture that an intervention is to change."""
    where = f"interventions[{place[1]}].captures[{place[3]}]"
    kind = next((kind for kind in ADAPTER_KINDS if kind in entry), None)
    if isinstance(name, str) and name not in captures:
        hint = suggest(name, captures) or f" (there: {', '.join(captures)})"
        yield Problem(place, f"{where}: no capture {name!r}{hint}")
    elif isinstance(name, str) and kind and _section(captures, name).get("adapter") is None:
        message = f"{where}: capture {name!r} has no adapter, so {kind} changes nothing there"
        yield Problem(place, message)
