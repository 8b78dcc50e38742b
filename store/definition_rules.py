"""The rules for a capture's definition: types and limits of every field of its `zarr.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .chunking import chunk_rows
from .guard import (
    ITEM_BYTES,
    MAX_ARRAYS,
    MAX_CHUNK_BYTES,
    MAX_CHUNKS,
    MAX_RANK,
    digest,
    items,
    name,
    no_twins,
    require,
    table,
    text,
    whole,
)
from .layout import SITE_DTYPES
from .products import MAX_PRODUCTS, check_product
from .profiles import PROFILES, WIDENED

if TYPE_CHECKING:
    from .definition import CaptureDefinition

INT32 = 2**31 - 1
MAX_SITES = 4096
MAX_LAYERS = 4096
"""Of one site."""
_SITE_KEYS = {"name", "layers", "width", "dtype", "kind", "stream"}
_OUTPUT_KEYS = {"name", "shape", "dtype"}
_OUTPUT_TYPES = {*SITE_DTYPES, "int32", "int64", "bool"}


def check_attributes(value: object) -> Mapping[str, Any]:
    """Return a capture's attributes if every field has the right type.

    Raises
    ------
    BrokenRule
        Names the field.
    """
    attributes = table(value, "attributes")
    require(attributes.get("element") == "capture", "element is not 'capture'")
    whole(attributes.get("version"), "version", 1, 1)
    for site in items(attributes.get("sites"), "sites", MAX_SITES):
        _check_site(site)
    for product in items(attributes.get("products", []), "products", MAX_PRODUCTS):
        check_product(product, attributes["sites"])
    for output in items(attributes.get("outputs"), "outputs", MAX_SITES):
        require(table(output, "an output").keys() == _OUTPUT_KEYS, "an output has other fields")
        name(output["name"], "an output")
        require(text(output["dtype"], "dtype") in _OUTPUT_TYPES, "an output has an unknown dtype")
        for size in items(output["shape"], "shape of an output", MAX_RANK - 1):
            whole(size, "a length of an output", 1)
    require(attributes["sites"] or attributes["outputs"], "there are no sites and no outputs")
    whole(attributes.get("segment_rows"), "segment_rows", 1, INT32)
    whole(attributes.get("segment_samples"), "segment_samples", 1, INT32)
    require(attributes.get("profile", "fast") in PROFILES, "profile is unknown")
    require("plan" in attributes, "plan is missing")
    if attributes["plan"] is not None:
        _check_plan(table(attributes["plan"], "plan"), attributes)
    table(attributes.get("config"), "config")
    digest(attributes.get("config_digest"), "config_digest")
    table(attributes.get("attrs"), "attrs")
    return attributes


def _check_site(value: object) -> None:
    site = table(value, "a site")
    require(site.keys() - {"source_dtype"} == _SITE_KEYS, "a site has other fields")
    known = name(site["name"], "a site")
    name(site["stream"], "a stream")
    whole(site["width"], f"width of {known}", 1, MAX_CHUNK_BYTES)
    require(text(site["dtype"], "dtype") in SITE_DTYPES, f"dtype of {known} is unknown")
    if "source_dtype" in site:
        widened = text(site["source_dtype"], "source_dtype") in WIDENED
        require(widened and site["dtype"] == "float32", f"{known} was not widened to float32")
    require(text(site["kind"], "kind") in ("row", "sample"), f"kind of {known} is unknown")
    if site["layers"] is not None:
        layers = items(site["layers"], f"layers of {known}", MAX_LAYERS)
        numbers = {whole(layer, f"a layer of {known}", -INT32, INT32) for layer in layers}
        require(layers and len(numbers) == len(layers), f"layers of {known} repeat, or are none")


def _check_plan(plan: Mapping[str, Any], attributes: Mapping[str, Any]) -> None:
    require(plan.keys() == {"sha256", "segments", "last"}, "plan has other fields")
    digest(plan["sha256"], "the digest of the plan")
    sizes = items(plan["segments"], "segments of the plan")
    require(sizes, "the plan has no segments")
    for size in sizes:
        whole(size, "a segment of the plan", 1, attributes["segment_samples"])
    last = table(plan["last"], "last of the plan")
    for slot, count in last.items():
        name(slot, "a stream")
        most = attributes["segment_samples" if slot == "sample" else "segment_rows"]
        whole(count, f"{slot} slots used in the last segment", 0, most)
    require(last.get("sample") == sizes[-1], "last of the plan differs from its segments")


def check_limits(definition: CaptureDefinition) -> None:
    """Refuse a definition whose arrays are beyond the limits; so do writers before they begin.

    Raises
    ------
    BrokenRule
        Names the array and the limit.
    """
    rows, samples = definition.shape.rows, definition.shape.samples
    made = [product.name for product in definition.products]
    for kind in ("row", "sample"):
        names = [s.name for s in definition.sites if s.kind == kind]
        no_twins(names + made if kind == "row" else names, "sites")
    no_twins([output.name for output in definition.outputs], "outputs")
    no_twins(definition.streams, "streams")
    segments = max(1, len(definition.planned_sizes))
    for site in definition.sites:
        inner = chunk_rows(site, rows) if site.kind == "row" else samples
        slots = rows if site.kind == "row" else samples
        _check_chunk(site.name, inner * site.row_bytes)
        count = len(site.layer_labels) * segments * (slots // inner)
        require(count <= MAX_CHUNKS, f"{site.name} has more than {MAX_CHUNKS} chunks")
    for output in definition.outputs:
        require(len(output.shape) < MAX_RANK, f"{output.name} has more than {MAX_RANK} axes")
        require(all(size > 0 for size in output.shape), f"{output.name} has an empty axis")
        size = samples * math.prod(output.shape) * ITEM_BYTES[output.dtype]
        _check_chunk(output.name, size)
    _check_chunk("position", rows * ITEM_BYTES["int32"])
    _check_chunk("id", samples * ITEM_BYTES["int64"])
    layers = max((len(site.layer_labels) for site in definition.sites), default=0)
    require(layers <= MAX_LAYERS, f"a site has more than {MAX_LAYERS} layers")
    arrays = 2 * (len(definition.sites) + len(definition.streams)) + len(definition.outputs)
    require(arrays <= min(MAX_ARRAYS, 4 * MAX_SITES), "it has too many arrays")


def _check_chunk(array: str, size: int) -> None:
    require(size <= MAX_CHUNK_BYTES, f"a chunk of {array} has more than {MAX_CHUNK_BYTES} bytes")
