"""Names of sites as a configuration writes them: a list, or a mapping with options."""

from .config_types import check_choice, describe

SITES = (
    "embed",
    "resid_pre",
    "resid_post",
    "attn_out",
    "mlp_out",
    "lora_a",
    "lora_b",
    "base_out",
    "encoder_out",
    "attention",
    "lora_a_weight",
    "lora_b_weight",
)
"""Sites that can be recorded; those of `ADAPTER_SITES` also as ``lora_a.<module>``, and any module
as ``module.<path>``."""

ADAPTER_SITES = ("lora_a", "lora_b", "base_out", "lora_a_weight", "lora_b_weight")
"""Sites that only a capture with an adapter has."""
WEIGHT_SITES = ("lora_a_weight", "lora_b_weight")
"""Those that exist as gradients only."""


def check_site(value: str) -> str:
    """Return the name of a site that can be asked for; else raise ValueError."""
    kind, _, module = value.partition(".")
    if value == "logits":
        msg = "logits are written for every capture as it is; leave them out of the sites"
        raise ValueError(msg)
    if not (module and kind in (*ADAPTER_SITES, "module")):
        check_choice(value, SITES, what="site")
    return value


def sites_to_mapping(value: object) -> object:
    """Turn a list of sites, or a mapping with empty entries, into site -> options."""
    if isinstance(value, list):
        for i, item in enumerate(value):
            if not isinstance(item, str):
                msg = f"expected names of sites, got {describe(item)}"
                raise ValueError(msg)  # noqa: TRY004  (pydantic reports ValueError only)
            if item in value[:i]:
                msg = f"{item!r} is listed twice"
                raise ValueError(msg)
        return {item: {} for item in value}
    if isinstance(value, dict):
        return {key: {} if options is None else options for key, options in value.items()}
    if isinstance(value, str):
        msg = f"expected a list such as [resid_post], got {describe(value)}"
        raise ValueError(msg)  # noqa: TRY004
    return value
