"""Attacks by metadata: the root's, and a capture's definition that its record names rightly."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from .attack import Attacks
from .forge import Forge

ATTACKS = attack = Attacks()
HUGE = 2**62


def put(*path: str | int, value: object) -> Callable[[Forge], object]:
    """Return an attack that sets one value of the attributes, however deep."""

    def change(attributes: Any) -> None:
        for key in path[:-1]:
            attributes = attributes[key]
        attributes[path[-1]] = value

    return lambda forge: forge.definition(change)


def drop(*path: str | int) -> Callable[[Forge], object]:
    """Return an attack that removes one key of the attributes."""

    def change(attributes: Any) -> None:
        for key in path[:-1]:
            attributes = attributes[key]
        del attributes[path[-1]]

    return lambda forge: forge.definition(change)


def node(**values: object) -> Callable[[Forge], object]:
    """Return an attack that sets keys beside the attributes."""
    return lambda forge: forge.definition(lambda _: None, node=lambda body: body.update(values))


def root(**values: object) -> Callable[[Forge], object]:
    """Return an attack on the root's metadata."""
    return lambda forge: forge.metadata("zarr.json", lambda body: body.update(values))


def root_attribute(key: str, value: Any) -> Callable[[Forge], object]:
    """Return an attack on one attribute of the root."""
    return lambda f: f.metadata("zarr.json", lambda body: body["attributes"].update({key: value}))


def raw(content: bytes) -> Callable[[Forge], object]:
    """Return an attack that makes these bytes the definition."""
    return lambda forge: forge.commit_file("captures/base/zarr.json", content)


def spelled(change: Callable[[str], str]) -> Callable[[Forge], object]:
    """Return an attack that changes the spelling of the definition."""

    def spoil(forge: Forge) -> None:
        text = (forge.root / "captures/base/zarr.json").read_text()
        assert change(text) != text
        forge.commit_file("captures/base/zarr.json", change(text).encode())

    return spoil


def many_sites(attributes: dict[str, Any]) -> None:
    site = attributes["sites"][0]
    attributes["sites"] = [{**site, "name": f"s{n}"} for n in range(50_000)]


SITE = ("sites", 0)
attack.table(
    "open",
    "every field of a definition has its type and its limits",
    {
        "element_other": put("element", value="table"),
        "profile_unknown": put("profile", value="zip"),
        "profile_is_a_list": put("profile", value=["compact"]),
        "profile_of_other_files": put("profile", value="compact"),
        "source_dtype_unknown": put("sites", 1, "source_dtype", value="int8"),
        "source_dtype_null": put("sites", 1, "source_dtype", value=None),
        "source_dtype_of_what_was_not_widened": put(*SITE, "source_dtype", value="float16"),
        "version_other": put("version", value=2),
        "version_true": put("version", value=True),
        "no_sites": put("sites", value=[]),
        "sites_missing": drop("sites"),
        "sites_is_an_object": put("sites", value={}),
        "a_site_is_text": put("sites", 0, value="resid_post"),
        "a_site_has_more_fields": put(*SITE, "evil", value=1),
        "a_site_has_dunder_fields": put(*SITE, "__class__", value="os.system"),
        "a_site_lacks_its_name": drop(*SITE, "name"),
        "site_goes_up": put(*SITE, "name", value="../../../etc"),
        "site_is_hidden": put(*SITE, "name", value=".x"),
        "site_is_an_option": put(*SITE, "name", value="-rf"),
        "site_is_long": put(*SITE, "name", value="x" * 129),
        "site_has_an_escape": put(*SITE, "name", value="\x1b[2Jx"),
        "site_reads_backwards": put(*SITE, "name", value="a\u202eb"),
        "site_ends_its_line": put(*SITE, "name", value="resid_post\n"),
        "site_is_a_number": put(*SITE, "name", value=5),
        "site_is_a_list": put(*SITE, "name", value=["x"]),
        "site_twin": put("sites", 1, "name", value="RESID_POST"),
        "stream_goes_up": put(*SITE, "stream", value=".."),
        "stream_is_null": put(*SITE, "stream", value=None),
        "layers_are_text": put(*SITE, "layers", value="01"),
        "layers_are_half": put(*SITE, "layers", value=[0.5, 1]),
        "layers_are_true": put(*SITE, "layers", value=[False, True]),
        "layers_are_none": put(*SITE, "layers", value=[]),
        "layers_repeat": put(*SITE, "layers", value=[1, 1]),
        "layers_are_huge": put(*SITE, "layers", value=[0, HUGE]),
        "layers_are_many": put(*SITE, "layers", value=list(range(400_000))),
        "layers_are_others": put(*SITE, "layers", value=[5, 6]),
        "width_is_zero": put(*SITE, "width", value=0),
        "width_is_negative": put(*SITE, "width", value=-6),
        "width_is_huge": put(*SITE, "width", value=HUGE),
        "width_is_text": put(*SITE, "width", value="6"),
        "width_is_a_float": put(*SITE, "width", value=6.0),
        "width_is_true": put(*SITE, "width", value=True),
        "width_is_other": put(*SITE, "width", value=7),
        "dtype_object": put(*SITE, "dtype", value="object"),
        "dtype_numpy_object": put(*SITE, "dtype", value="|O"),
        "dtype_int64": put(*SITE, "dtype", value="int64"),
        "dtype_other": put(*SITE, "dtype", value="float64"),
        "dtype_is_an_object": put(*SITE, "dtype", value={"name": "numpy.object"}),
        "kind_other": put(*SITE, "kind", value="file"),
        "kind_swapped": put(*SITE, "kind", value="sample"),
        "outputs_missing": drop("outputs"),
        "outputs_is_text": put("outputs", value="logits"),
        "output_goes_up": put("outputs", 0, "name", value="../x"),
        "output_twin": put("outputs", 1, "name", value="LOGITS"),
        "output_shape_is_huge": put("outputs", 0, "shape", value=[2**40]),
        "output_shape_overflows": put("outputs", 0, "shape", value=[2**32, 2**32]),
        "output_shape_is_negative": put("outputs", 0, "shape", value=[-4]),
        "output_shape_is_zero": put("outputs", 0, "shape", value=[0]),
        "output_shape_is_text": put("outputs", 0, "shape", value="4"),
        "output_rank_9": put("outputs", 0, "shape", value=[1] * 8),
        "output_rank_1000": put("outputs", 0, "shape", value=[1] * 1000),
        "output_dtype_object": put("outputs", 0, "dtype", value="object"),
        "output_dtype_string": put("outputs", 0, "dtype", value="string"),
        "segment_rows_is_zero": put("segment_rows", value=0),
        "segment_rows_is_negative": put("segment_rows", value=-8),
        "segment_rows_is_huge": put("segment_rows", value=HUGE),
        "segment_rows_is_large": put("segment_rows", value=2**31 - 1),
        "segment_rows_is_odd": put("segment_rows", value=9),
        "segment_rows_is_a_float": put("segment_rows", value=8.0),
        "segment_rows_is_text": put("segment_rows", value="8"),
        "segment_samples_is_huge": put("segment_samples", value=HUGE),
        "segment_samples_is_large": put("segment_samples", value=2**31 - 1),
        "segment_samples_is_zero": put("segment_samples", value=0),
        "segment_samples_is_null": put("segment_samples", value=None),
        "plan_missing": drop("plan"),
        "plan_is_text": put("plan", value="plan"),
        "plan_is_a_list": put("plan", value=[1]),
        "plan_is_empty": put("plan", value={}),
        "plan_digest_is_a_number": put("plan", "sha256", value=5),
        "plan_segments_are_none": put("plan", "segments", value=[]),
        "plan_segments_are_text": put("plan", "segments", value="22"),
        "plan_segments_are_negative": put("plan", "segments", value=[-2, 2]),
        "plan_segments_are_large": put("plan", "segments", value=[10**6, 2]),
        "plan_segments_are_many": put("plan", "segments", value=[2] * 10**6),
        "plan_last_is_a_list": put("plan", "last", value=[2]),
        "plan_last_is_negative": put("plan", "last", "tokens", value=-6),
        "plan_last_is_huge": put("plan", "last", "tokens", value=HUGE),
        "plan_last_is_other": put("plan", "last", "sample", value=1),
        "config_missing": drop("config"),
        "config_is_a_list": put("config", value=[]),
        "config_is_other": put("config", value={"seed": 1}),
        "config_digest_other": put("config_digest", value="0" * 64),
        "config_digest_is_null": put("config_digest", value=None),
        "attrs_is_text": put("attrs", value="x"),
        "too_many_sites": lambda f: f.definition(many_sites),
    },
)
attack.table(
    "open",
    "zarr_format 3, a group, and known keys only",
    {
        "format_2": node(zarr_format=2),
        "format_text": node(zarr_format="3"),
        "format_true": node(zarr_format=True),
        "an_array": node(node_type="array"),
        "node_type_list": node(node_type=["group"]),
        "an_extension": node(must_understand_me={"name": "evil"}),
        "attributes_list": lambda f: f.definition(lambda _: None, node=no_attributes),
    },
)


def no_attributes(body: dict[str, Any]) -> None:
    body["attributes"] = []


attack.table(
    "open",
    "the JSON of a definition is strict",
    {
        "nan_literal": spelled(lambda t: t.replace('"seed": 0', '"seed": NaN')),
        "infinity_literal": spelled(lambda t: t.replace('"seed": 0', '"seed": -Infinity')),
        "number_beyond_float64": spelled(lambda t: t.replace('"seed": 0', '"seed": 1e999')),
        "number_beyond_int64": spelled(lambda t: t.replace('"seed": 0', f'"seed": {2**63}')),
        "number_of_a_million_digits": spelled(
            lambda t: t.replace('"seed": 0', '"seed": 1' + "0" * 10**6)
        ),
        "half_a_surrogate_pair": spelled(lambda t: t.replace('"tiny"', '"\\ud800"')),
        "a_key_twice": spelled(lambda t: t.replace('"seed": 0', '"seed": 0, "seed": 0')),
        "a_comment": spelled(lambda t: t + "// evil"),
        "a_byte_order_mark": spelled(lambda t: "\ufeff" + t),
        "depth_65": put("attrs", value=json.loads('{"a":' * 65 + "1" + "}" * 65)),
        "depth_1e6": raw(b"[" * 10**6),
        "depth_1e5_objects": raw(b'{"a":' * 10**5 + b"1" + b"}" * 10**5),
        "many_empty_lists": raw(b"[" + b"[]," * 5_000_000 + b"1]"),
        "seventeen_mib": spelled(lambda t: t + " " * 17 * 2**20),
        "no_json": raw(b"\x80\x04cos\nsystem\n"),
        "a_number": raw(b"5"),
        "nothing": raw(b""),
    },
)
attack.table(
    "open",
    "the root says what it is",
    {
        "root_format_2": root(zarr_format=2),
        "root_is_an_array": root(node_type="array"),
        "root_has_an_extension": root(evil=1),
        "root_attributes_is_a_list": root(attributes=[]),
        "root_of_another_format": root_attribute("format", "other"),
        "root_of_a_newer_version": root_attribute("version", 10**9),
        "root_version_is_true": root_attribute("version", True),  # noqa: FBT003
        "root_version_is_an_escape": root_attribute("version", "\x1b]0;x\x07"),
        "root_uuid_is_a_number": root_attribute("uuid", 5),
        "root_state_is_a_list": root_attribute("state", ["open"]),
        "root_is_empty": lambda f: f.put("zarr.json", b""),
        "root_is_nested": lambda f: f.put("zarr.json", b"[" * 10**6),
        "root_is_large": lambda f: f.put("zarr.json", b" " * 17 * 2**20),
        "root_says_a_key_twice": lambda f: f.put(
            "zarr.json", b'{"attributes": {}, "attributes": {}}'
        ),
    },
)
attack.table(
    "verify",
    "metadata of arrays and groups are those of the definition",
    {
        "array_with_pickle": lambda f: f.metadata(VALUES, codecs(["numcodecs.pickle"])),
        "array_of_objects": lambda f: f.metadata(VALUES, lambda n: n.update(data_type="object")),
        "array_shape_lies": lambda f: f.metadata(VALUES, lambda n: n.update(shape=[2, HUGE, 6])),
        "array_of_format_2": lambda f: f.metadata(VALUES, lambda n: n.update(zarr_format=2)),
        "array_nested": lambda f: f.put(VALUES, b"[" * 10**6),
        "array_large": lambda f: f.put(VALUES, b" " * 17 * 2**20),
        "published_length_is_huge": lambda f: f.metadata(LIVE, lambda n: n.update(shape=[HUGE])),
        "published_length_is_true": lambda f: f.metadata(LIVE, lambda n: n.update(shape=[True])),
        "published_shape_is_empty": lambda f: f.metadata(LIVE, lambda n: n.update(shape=[])),
        "published_metadata_is_a_list": lambda f: f.put(LIVE, b"[]"),
        "published_metadata_is_text": lambda f: f.put(LIVE, b'"shape"'),
        "group_with_attributes": lambda f: f.metadata(
            "captures/base/sites/zarr.json", lambda n: n.update(attributes={"x": 1})
        ),
        "shared_group_is_an_array": lambda f: f.metadata(
            "captures/zarr.json", lambda n: n.update(node_type="array")
        ),
        "shared_group_is_nested": lambda f: f.put("captures/zarr.json", b'{"a":' * 10**5),
    },
)
VALUES = "captures/base/sites/resid_post/values/zarr.json"
LIVE = "captures/live/samples/take/zarr.json"


def codecs(names: list[str]) -> Callable[[dict[str, Any]], None]:
    return lambda body: body.update(codecs=[{"name": name} for name in names])


attack.table(
    "ignored",
    "what is within the limits takes little memory",
    {
        "a_quarter_million_lists": put("attrs", value={"x": [[]] * 250_000}),
        "fifteen_mib_of_text": put("attrs", value={"x": "x" * 15 * 2**20}),
        "depth_50": put("attrs", value=json.loads('{"a":' * 50 + "1" + "}" * 50)),
    },
)


@attack("ignored", "control: a definition that is spelled otherwise is the same")
def definition_spelled_otherwise(forge: Forge) -> None:
    forge.definition(lambda _: None)
