"""``--set key.path=value``: changes to a configuration from the command line."""

from typing import cast

from pydantic import BaseModel

from .config_problems import dotted, field_type, known_keys, section_of
from .config_types import suggest
from .config_yaml import Document, Path, Problem, Value, read_yaml


def apply_override(document: Document, override: str, root: type[BaseModel]) -> None:
    """Change one value of `document` in place; what is wrong is added to its problems.

    Parameters
    ----------
    document
        The configuration as read from its file.
    override
        ``key.path=value``; the value is read as YAML.
    root
        Model of the whole configuration, which says what paths exist.
    """
    source = f"--set {override}"
    target, equals, text = override.partition("=")
    target = target.strip()
    if not equals or not target:
        message = "expected key.path=value, for example seed=1"
        document.problems.append(Problem((), message, place=source))
        return
    read = read_yaml(text, source)
    problems = [Problem(p.path, p.message, place=source) for p in read.problems]
    path, message = _resolve(target, document.value, root)
    if message:
        problems.append(Problem((), message, place=source))
    document.problems += problems
    if not problems:
        _assign(document, path, read)


def _resolve(target: str, value: Value, root: type[BaseModel]) -> tuple[Path, str | None]:
    """Split `target` into keys along the configuration's sections; or say what does not exist."""
    parts = target.split(".")
    path: Path = ()
    section: type[BaseModel] | None = root
    while parts:
        if section is None:
            return path, f"{dotted(path)} has no keys below it"
        key = parts.pop(0)
        known = known_keys(section)
        if key not in known:
            where = f" in {dotted(path)}" if path else ""
            hint = suggest(key, known) or f" (known: {', '.join(known)})"
            return path, f"unknown key {key!r}{where}{hint}"
        path = (*path, key)
        value = value.get(key) if isinstance(value, dict) else None
        section, named = section_of(field_type(section, key))
        if named and parts and isinstance(value, list):
            return path, f"{dotted(path)} is a list here; set it as a whole"
        if named and parts:
            name, parts = _take_name(parts, value)
            if name is None:
                names = list(value) if isinstance(value, dict) else []
                hint = suggest(parts[0], names) or f" (there: {', '.join(names) or 'none'})"
                return path, f"no {parts[0]!r} in {dotted(path)}{hint}"
            path = (*path, name)
            value = value[name] if isinstance(value, dict) else None
    return path, None


def _take_name(parts: list[str], value: Value) -> tuple[str | None, list[str]]:
    """Take the longest name of a mapping off `parts`: names may hold dots themselves."""
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        if isinstance(value, dict) and name in value:
            return name, parts[length:]
    return None, parts


def _assign(document: Document, path: Path, read: Document) -> None:
    if not isinstance(document.value, dict):
        document.value = {}
    node = document.value
    for depth, key in enumerate(path[:-1]):
        below = node.get(cast("str", key))
        if not isinstance(below, dict):
            below = {}
            node[cast("str", key)] = below
            document.values.setdefault(path[: depth + 1], read.source)
        node = below
    node[cast("str", path[-1])] = read.value
    # Places below the old value would point into the file, so they go with it.
    for table in (document.keys, document.values, document.texts):
        for old in [place for place in table if place[: len(path)] == path]:
            del table[old]
    document.keys[path] = read.source
    for below_path in read.values:
        document.values[(*path, *below_path)] = read.source
    for below_path, text in read.texts.items():
        document.texts[(*path, *below_path)] = text
    for below_path in read.keys:
        document.keys[(*path, *below_path)] = read.source
