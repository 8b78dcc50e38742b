"""What the tables say about how something was recorded."""

from types import SimpleNamespace

import pytest

from lorascope.analyses.plan import mask_of


@pytest.mark.parametrize(
    ("site", "mask"),
    [
        ("resid_post", "every:4"),
        ("lora_a.v_proj", "all"),  # configurations name it by its first part
        ("lora_a.self_attn.v_proj", "all"),
        ("lora_ab", "valid"),
        ("grad.lora_a.v_proj", "every:2"),
        ("grad.resid_post", "valid"),
        ("mlp_out", "valid"),
    ],
)
def test_the_mask_of_a_site_is_that_of_its_options(site: str, mask: str) -> None:
    sites = {"resid_post": {"frames": "every:4"}, "lora_a": {"frames": "all"}, "mlp_out": {}}
    record = {"frames": "valid", "sites": sites, "gradients": {"lora_a": {"frames": "every:2"}}}
    view = SimpleNamespace(attrs={"record": record})
    assert mask_of(view, site) == mask  # pyright: ignore[reportArgumentType] - its attrs are enough


@pytest.mark.parametrize("attrs", [{}, {"record": "of another tool"}, {"record": {"sites": []}}])
def test_without_options_rows_are_valid_frames(attrs: dict[str, object]) -> None:
    view = SimpleNamespace(attrs=attrs)
    assert mask_of(view, "resid_post") == "valid"  # pyright: ignore[reportArgumentType]
