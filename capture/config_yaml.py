"""YAML read into plain values that remember where each of them was written.

ruamel.yaml only composes the node tree here (YAML 1.2: ``1e-4`` is a number, ``yes`` is text);
values are built below, so that no tag can run code, duplicate keys are reported instead of
dropped, and every problem of the file is found in one pass.
"""

import re
from dataclasses import dataclass, field

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

type Key = str | int
type Path = tuple[Key, ...]
type Value = bool | int | float | str | list["Value"] | dict[str, "Value"] | None

_TAG = "tag:yaml.org,2002:"
_MAX_NODES = 100_000


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, and where."""

    path: Path
    """Keys and list indices that lead to the value."""
    message: str
    """What is wrong, in one line, without the place."""
    at_key: bool = False
    """True where the key itself is wrong, not its value."""
    place: str | None = None
    """``file:line:column`` where it is known already; else looked up by `path`."""


@dataclass(slots=True)
class Document:
    """The plain values of one YAML text, and the place of each."""

    source: str
    """What messages call the text: a file name, or ``--set key.path=value``."""
    value: Value = None
    """The text as plain Python values."""
    keys: dict[Path, str] = field(default_factory=dict)
    """Place of each key of a mapping."""
    values: dict[Path, str] = field(default_factory=dict)
    """Place of each value."""
    texts: dict[Path, str] = field(default_factory=dict)
    """Each plain scalar as it was written (``01`` is read as 1, but was written 01)."""
    problems: list[Problem] = field(default_factory=list)
    """Duplicate keys, unknown tags, and the like."""

    def place(self, path: Path, *, at_key: bool = False) -> str:
        """Where `path` was written, or the nearest mapping that holds it.

        Parameters
        ----------
        path
            Keys and list indices from the top.
        at_key
            Point at the key instead of at its value.
        """
        path = self._through_lists(path)
        tables = (self.keys, self.values) if at_key else (self.values, self.keys)
        for table in tables:
            if path in table:
                return table[path]
        while path:
            path = path[:-1]
            # A missing key has no place of its own: the key of the section that lacks it has.
            found = self.keys.get(path) or self.values.get(path)
            if found:
                return found
        return f"{self.source}:1:1"

    def _through_lists(self, path: Path) -> Path:
        """Turn a name into its index where the file has a list (``sites: [embed]``)."""
        value = self.value
        found: Path = ()
        for key in path:
            if isinstance(value, list) and isinstance(key, str) and key in value:
                key = value.index(key)  # noqa: PLW2901
            found = (*found, key)
            if isinstance(value, dict) and isinstance(key, str):
                value = value.get(key)
            elif isinstance(value, list) and isinstance(key, int) and key < len(value):
                value = value[key]
            else:
                value = None
        return found


def read_yaml(text: str, source: str) -> Document:
    """Read one YAML document.

    Parameters
    ----------
    text
        The YAML text.
    source
        What messages call it.

    Returns
    -------
    Document
        Values and places. A text that is not YAML at all gives `Document.problems` with one entry.
    """
    document = Document(source)
    reader = YAML(typ="safe", pure=True)
    try:
        node = reader.compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else f"{source}:1:1"
        words = [part for part in (error.context, error.problem) if part]
        document.problems.append(Problem((), f"not YAML: {', '.join(words)}", place=place))
    except YAMLError as error:
        message = f"not YAML: {str(error).splitlines()[0]}"
        document.problems.append(Problem((), message, place=f"{source}:1:1"))
    except RecursionError:
        document.problems.append(
            Problem((), "not usable: nested too deeply", place=f"{source}:1:1")
        )
    else:
        if node is not None:
            document.value = _Builder(document).build(node, ())
    return document


@dataclass(slots=True)
class _Builder:
    """Turns composed nodes into plain values, noting places and problems on the way."""

    document: Document
    open_nodes: set[int] = field(default_factory=set)
    n_nodes: int = 0

    def build(self, node: Node, path: Path) -> Value:
        """Build the value of `node`, which lies at `path`."""
        self.n_nodes += 1
        # setdefault: an alias is met a second time under another path, with the anchor's place.
        self.document.values.setdefault(path, self._place(node))
        if id(node) in self.open_nodes or self.n_nodes > _MAX_NODES:
            self._problem(node, path, "an alias that contains itself, or grows without end")
            return None
        if isinstance(node, ScalarNode):
            return self._scalar(node, path)
        self.open_nodes.add(id(node))
        try:
            if isinstance(node, SequenceNode) and node.tag == _TAG + "seq":
                return [self.build(item, (*path, i)) for i, item in enumerate(node.value)]
            if isinstance(node, MappingNode) and node.tag == _TAG + "map":
                return self._mapping(node, path)
        finally:
            self.open_nodes.discard(id(node))
        self._problem(node, path, f"the tag {_short(str(node.tag))} is not supported")
        return None

    def _mapping(self, node: MappingNode, path: Path) -> Value:
        values: dict[str, Value] = {}
        first: dict[str, str] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                self._problem(key_node, path, "a key must be plain text")
                continue
            key = str(key_node.value)
            place = self._place(key_node)
            if key_node.tag == _TAG + "merge":
                message = "merge keys (<<) are not YAML 1.2; write `key: *anchor` instead"
                self.document.problems.append(Problem((*path, key), message, place=place))
                continue
            if key in first:
                line = first[key].split(":")[-2]
                message = f"duplicate key {key!r}, first used in line {line}"
                self.document.problems.append(Problem((*path, key), message, place=place))
                continue
            first[key] = place
            self.document.keys.setdefault((*path, key), place)
            values[key] = self.build(value_node, (*path, key))
        return values

    def _scalar(self, node: ScalarNode, path: Path) -> Value:
        text = str(node.value)
        if node.style is None:
            self.document.texts[path] = text
        match str(node.tag).removeprefix(_TAG):
            case "null":
                return None
            case "bool":
                return text.lower() == "true"
            case "int" | "float" as kind:
                try:
                    return _integer(text) if kind == "int" else _float(text)
                except ValueError:
                    self._problem(node, path, f"{_short(text)} is not a number")
                    return None
            case "str" | "timestamp":
                return text
            case other:
                self._problem(node, path, f"the tag {_short(other)} is not supported")
                return None

    def _place(self, node: Node) -> str:
        mark = node.start_mark
        return f"{self.document.source}:{mark.line + 1}:{mark.column + 1}"

    def _problem(self, node: Node, path: Path, message: str) -> None:
        self.document.problems.append(Problem(path, message, place=self._place(node)))


def _integer(text: str) -> int:
    plain = text.replace("_", "")
    # Base 0 reads 0x, 0o and 0b but refuses leading zeros, which YAML 1.2 allows.
    return int(plain, 0) if re.match(r"[-+]?0[xob]", plain) else int(plain)


def _float(text: str) -> float:
    plain = text.replace("_", "").lower()
    return float(re.sub(r"\.(inf|nan)$", r"\1", plain))


def _short(tag: str) -> str:
    return tag if len(tag) <= 60 else tag[:57] + "..."
