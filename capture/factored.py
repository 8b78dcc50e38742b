"""Storing the outputs of LoRA B as factors: A's rows, and the matrix that is stored anyway."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..store import Product
from .adapters import adapters_of
from .errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from .families import Family
    from .sites import RecordedSite, SiteRequest


def stored_part(sites: Mapping[str, SiteRequest]) -> dict[str, SiteRequest]:
    """Return what is left to store of the requested sites: of B outputs, only their pools."""
    kept: dict[str, SiteRequest] = {}
    for name, request in sites.items():
        if name.split(".")[0] != "lora_b":
            kept[name] = request
        elif request.pool:
            kept[name] = replace(request, frames="none")
    return kept


def find_products(
    model: nn.Module, family: Family, names: Sequence[str], recorded: Sequence[RecordedSite]
) -> list[Product]:
    """Return the products that stand for the rows of the B outputs `names`.

    Parameters
    ----------
    model, family
        The model with its adapters, and its table.
    names
        ``lora_b``, or ``lora_b.<module>``.
    recorded
        The recorded sites, among which the rows of A must be.

    Raises
    ------
    ConfigError
        The rows of A are not recorded at one of these modules.
    """
    adapters = adapters_of(model, family)
    rows = {site.name: site for site in recorded if site.has_rows}
    products: list[Product] = []
    for module in dict.fromkeys(adapter.name for adapter in adapters):
        wanted = f"lora_b.{module}"
        if not any(wanted == name or wanted.startswith(f"{name}.") for name in names):
            continue
        source = rows.get(f"lora_a.{module}")
        if source is None:
            msg = (
                f"lora_b: factored stores {wanted} as the rows of lora_a.{module} and B, and those "
                "rows are not recorded. Add lora_a to record.sites, or store lora_b: dense."
            )
            raise ConfigError(msg)
        own = {a.layer: a for a in adapters if a.name == module}
        chosen = [None] if source.layers is None else list(source.layers)
        parameters = [f"{own[layer].parameter}.lora_b" for layer in chosen]
        width = int(own[chosen[0]].lora_b.out_features)
        products.append(Product(wanted, source.name, width, parameters))
    return products
