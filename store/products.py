"""Row sites that are not stored because they follow from another one: a matrix times its rows.

The output of LoRA B is that of A times B'. With rank 32 and 1,280 features, storing A's rows and
the matrix is 40 times smaller than storing both; `Product` says which site and which parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from .guard import items, name, require, table, whole
from .layout import Site, check_name

MAX_PRODUCTS = 4096
_KEYS = {"name", "source", "width", "parameters"}


@dataclass(frozen=True, slots=True)
class Product:
    """A row site whose rows are those of another site times the transpose of a parameter."""

    name: str
    """Name of the site, as a reader asks for it (``lora_b.v_proj``)."""
    source: str
    """The stored row site (``lora_a.v_proj``); layers and stream are its own."""
    width: int
    """Features."""
    parameters: Sequence[str]
    """One parameter ``[width, width of the source]`` for each layer of the source."""

    def __post_init__(self) -> None:
        check_name("site", self.name)
        object.__setattr__(self, "parameters", tuple(self.parameters))

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "name": self.name,
            "source": self.source,
            "width": self.width,
            "parameters": list(self.parameters),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Self:
        """Return what `to_dict` gave."""
        return cls(value["name"], value["source"], value["width"], value["parameters"])


def check_product(value: object, sites: Sequence[Mapping[str, Any]]) -> None:
    """Check one entry of `products` in a capture's attributes.

    Raises
    ------
    BrokenRule
        Names the field.
    """
    product = table(value, "a product")
    require(product.keys() == _KEYS, "a product has other fields")
    known = name(product["name"], "a product")
    # a vector of it is made in memory, so its width is bounded as a stored one's is
    whole(product["width"], f"width of {known}", 1, 2**27)
    rows = {site["name"]: site for site in sites if site["kind"] == "row"}
    require(product["source"] in rows, f"the source of {known} is no row site")
    require(known not in rows, f"{known} is stored and a product")
    layers = rows[product["source"]]["layers"]
    parameters = items(product["parameters"], f"parameters of {known}", MAX_PRODUCTS)
    for parameter in parameters:
        name(parameter, f"a parameter of {known}")
    count = 1 if layers is None else len(layers)
    require(len(parameters) == count, f"{known} has not one parameter a layer")


def product_site(product: Product, source: Site) -> Site:
    """Return the site as a reader sees it: float32, on the layers and rows of its source."""
    return Site(product.name, source.layers, product.width, stream=source.stream)
