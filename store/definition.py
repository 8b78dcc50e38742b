"""The definition of a capture: what determines every array's metadata, and its JSON form."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from .chunking import SegmentShape, chunk_rows
from .definition_rules import check_attributes, check_limits
from .errors import DamagedStoreError, SampleError
from .guard import BrokenRule, require
from .layout import (
    ArraySpec,
    Output,
    SampleRows,
    Site,
    canonical,
    group_metadata,
    numpy_dtype,
)
from .products import Product
from .profiles import ChunkCodec, ProfileName, check_profile, chunk_codec


def plan_digest(plan: Sequence[SampleRows]) -> str:
    """Return the SHA-256 of a plan: ids in order with their rows per stream."""
    return hashlib.sha256(canonical([[s.id, dict(s.rows)] for s in plan])).hexdigest()


@dataclass(frozen=True, slots=True)
class CaptureDefinition:
    """What a capture's `zarr.json` says."""

    name: str
    """Name of the capture."""
    sites: tuple[Site, ...]
    """Row sites and pooled sites."""
    outputs: tuple[Output, ...]
    """Outputs per sample."""
    shape: SegmentShape
    """Slots of a segment."""
    config: Mapping[str, Any]
    """Everything that determines the values."""
    attrs: Mapping[str, Any]
    """Provenance that does not."""
    plan: str | None = None
    """Digest of the plan; None for a capture whose samples were not known beforehand."""
    planned_sizes: tuple[int, ...] = ()
    """Samples of each planned segment."""
    planned_last: Mapping[str, int] | None = None
    """Slots used in the last planned segment: `{"sample": n, <stream>: rows}`."""
    profile: ProfileName = "fast"
    """How the values of sites are stored."""
    products: tuple[Product, ...] = ()
    """Row sites that follow from stored ones."""

    @property
    def root(self) -> str:
        """Path of the capture below the store's root."""
        return f"captures/{self.name}"

    @property
    def config_digest(self) -> str:
        """SHA-256 of the configuration."""
        return hashlib.sha256(canonical(self.config)).hexdigest()

    @property
    def streams(self) -> tuple[str, ...]:
        """Row spaces of the row sites."""
        return tuple(dict.fromkeys(s.stream for s in self.sites if s.kind == "row"))

    def attributes(self) -> dict[str, Any]:
        """Return the attributes of the capture's Zarr group."""
        # absent where it is the default, so that stores without the attribute mean the same
        profile = {} if self.profile == "fast" else {"profile": self.profile}
        products = {"products": [p.to_dict() for p in self.products]} if self.products else {}
        return (
            profile
            | products
            | {
                "element": "capture",
                "version": 1,
                "sites": [site.to_dict() for site in self.sites],
                "outputs": [output.to_dict() for output in self.outputs],
                "segment_rows": self.shape.rows,
                "segment_samples": self.shape.samples,
                "plan": None
                if self.plan is None
                else {
                    "sha256": self.plan,
                    "segments": list(self.planned_sizes),
                    "last": dict(self.planned_last or {}),
                },
                "config": dict(self.config),
                "config_digest": self.config_digest,
                "attrs": dict(self.attrs),
            }
        )

    def metadata(self) -> bytes:
        """Return the bytes of the capture's `zarr.json`."""
        return group_metadata(self.attributes())

    @classmethod
    def from_attributes(cls, name: str, attributes: Mapping[str, Any]) -> Self:
        """Return the definition in a capture's attributes.

        Raises
        ------
        DamagedStoreError
            If they are not what a writer made.
        """
        try:
            check_attributes(attributes)
            plan = attributes["plan"] or {}
            definition = cls(
                name=name,
                sites=tuple(Site(**site) for site in attributes["sites"]),
                outputs=tuple(
                    Output(o["name"], tuple(o["shape"]), o["dtype"]) for o in attributes["outputs"]
                ),
                shape=SegmentShape(attributes["segment_rows"], attributes["segment_samples"]),
                config=attributes["config"],
                attrs=attributes["attrs"],
                plan=plan.get("sha256"),
                planned_sizes=tuple(plan.get("segments", ())),
                planned_last=plan.get("last"),
                profile=check_profile(attributes.get("profile", "fast")),
                products=tuple(map(Product.from_dict, attributes.get("products", ()))),
            )
            check_limits(definition)
            same = definition.config_digest == attributes["config_digest"]
            require(same, "config_digest is not that of config")
            return definition
        except (BrokenRule, SampleError) as error:
            msg = f"captures/{name}/zarr.json does not describe a capture: {error}"
            raise DamagedStoreError(msg) from error

    def groups(self) -> list[str]:
        """Return the paths of all Zarr groups of the capture, parents first."""
        below = ["", "sites", "pooled", "outputs", "rows", "samples", "parameters"]
        below += [site.group for site in self.sites]
        below += [f"rows/{stream}" for stream in self.streams]
        return [self.root + (f"/{path}" if path else "") for path in below]

    def slots(self, site: Site) -> tuple[int, int]:
        """Return the slots of a site's shard and those of its inner chunks."""
        if site.kind == "sample":
            return self.shape.samples, self.shape.samples
        return self.shape.rows, chunk_rows(site, self.shape.rows)

    def chunk_codec(self, site: Site) -> ChunkCodec | None:
        """Return how the inner chunks of a site are compressed; None where they are raw."""
        rows = self.slots(site)[1]
        itemsize = numpy_dtype(site.dtype).itemsize
        return chunk_codec(self.profile, rows=rows, width=site.width, itemsize=itemsize)

    def values_spec(self, site: Site) -> ArraySpec:
        """Return the spec of a site's values."""
        slots, inner = self.slots(site)
        return ArraySpec(
            path=f"{self.root}/{site.group}/values",
            dims=("layer", site.kind, "feature"),
            shape=(len(site.layer_labels), 0, site.width),
            dtype=site.dtype,
            chunk=(1, slots, site.width),
            inner=(1, inner, site.width),
            cut_axis=1,
            codec=self.chunk_codec(site),
        )

    def layer_spec(self, site: Site) -> ArraySpec:
        """Return the spec of a site's layer coordinate."""
        size = len(site.layer_labels)
        path = f"{self.root}/{site.group}/layer"
        return ArraySpec(path, ("layer",), (size,), "int64", (size,))

    def output_spec(self, output: Output) -> ArraySpec:
        """Return the spec of an output."""
        axes = (
            ("class_",)
            if len(output.shape) == 1
            else tuple(f"{output.name}_{axis}" for axis in range(len(output.shape)))
        )
        return ArraySpec(
            path=f"{self.root}/outputs/{output.name}",
            dims=("sample", *axes),
            shape=(0, *output.shape),
            dtype=output.dtype,
            chunk=(self.shape.samples, *output.shape),
            cut_axis=0,
        )

    def row_column_spec(self, stream: str, column: str) -> ArraySpec:
        """Return the spec of a row column (`sample`, `position`)."""
        path = f"{self.root}/rows/{stream}/{column}"
        return ArraySpec(path, ("row",), (0,), "int32", (self.shape.rows,), cut_axis=0)

    def column_spec(self, column: str, dtype: str) -> ArraySpec:
        """Return the spec of a sample column."""
        path = f"{self.root}/samples/{column}"
        return ArraySpec(path, ("sample",), (0,), dtype, (self.shape.samples,), cut_axis=0)

    def parameter_spec(self, name: str, shape: Sequence[int], dtype: str) -> ArraySpec:
        """Return the spec of a parameter: one chunk."""
        axes = tuple(f"axis_{axis}" for axis in range(len(shape)))
        chunk = tuple(max(1, int(size)) for size in shape)
        return ArraySpec(
            f"{self.root}/parameters/{name}", axes, tuple(map(int, shape)), dtype, chunk
        )

    def fixed_columns(self) -> dict[str, str]:
        """Return name and data type of the sample columns that every segment has."""
        columns: dict[str, str] = {
            "id": "string",
            "label": "string",
            "exposed": "bool",
            "segment": "int32",
        }
        for stream in self.streams:
            columns |= {f"start_row.{stream}": "int64", f"n_rows.{stream}": "int64"}
        return columns

    def segmented_arrays(self, columns: Mapping[str, str]) -> list[ArraySpec]:
        """Return the specs of all arrays that are cut into segments.

        Parameters
        ----------
        columns
            Sample columns beyond the fixed ones, with their data types.
        """
        specs = [self.values_spec(site) for site in self.sites]
        specs += [self.output_spec(output) for output in self.outputs]
        specs += [
            self.row_column_spec(stream, column)
            for stream in self.streams
            for column in ("sample", "position")
        ]
        every = self.fixed_columns() | dict(columns)
        return specs + [self.column_spec(name, dtype) for name, dtype in every.items()]

    def cut_size(self, spec: ArraySpec, segments: int, last: Mapping[str, int]) -> int:
        """Return the length of an array's cut axis when `segments` exist.

        The last segment counts only with the slots that it uses, so a plain reader sees no unused
        tail: `last` has them under `sample` and under the names of the streams.
        """
        if segments == 0:
            return 0
        if spec.path.startswith((f"{self.root}/sites/", f"{self.root}/rows/")):
            stream = self._stream_of(spec.path)
            return (segments - 1) * self.shape.rows + last.get(stream, 0)
        return (segments - 1) * self.shape.samples + last.get("sample", 0)

    def planned_size(self, spec: ArraySpec) -> int:
        """Return the length of an array's cut axis when the plan is carried out."""
        return self.cut_size(spec, len(self.planned_sizes), self.planned_last or {})

    def _stream_of(self, path: str) -> str:
        kind, name = path.removeprefix(f"{self.root}/").split("/")[:2]
        if kind == "rows":
            return name
        return next(s.stream for s in self.sites if s.kind == "row" and s.name == name)
