"""What a capture's certificate says, in one line."""

from collections.abc import Mapping
from typing import Any


def spell_certificate(certificate: Mapping[str, Any]) -> str:
    """Spell how faithful a recording is; see `lorascope.capture.fidelity.certify`."""
    if not certificate:
        return "not certified"
    said = ["logits with and without recording equal"]
    if "recomposed" in certificate:
        said.append(f"LoRA recomposed within {_figure(certificate['recomposed'])}")
    alone = certificate.get("alone")
    if isinstance(alone, dict):
        logits, residual, scale = map(alone.get, ("logits", "residual", "residual_scale"))
        said.append(
            f"alone or in a batch of {certificate.get('samples')}: logits within "
            f"{_figure(logits)}, last residual within {_figure(residual)} of {_figure(scale)}"
        )
    return "; ".join(said)


def _figure(value: object) -> str:
    return f"{value:.2g}" if isinstance(value, int | float) else "NaN"
