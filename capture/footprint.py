"""About how much memory a run needs at once: an estimate from shapes, before a model is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .pooling import count_rows

if TYPE_CHECKING:
    from .config_models import CaptureConfig
    from .preparing import PreparedCondition, PreparedRun

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}
LIBRARIES_BYTES = 2**30
"""What a process takes once torch, transformers and peft are loaded (without a CUDA context)."""
FORWARD_WIDTHS = 12
"""Features of a frame that live at once in a layer: its input, its branches, the wide middle."""
SAVED_WIDTHS = 24
"""Features of a frame that a layer keeps for the backward pass."""


def estimate_memory(config: CaptureConfig, run: PreparedRun, prepared: PreparedCondition) -> int:
    """Return about how many bytes one condition needs at once.

    Libraries, weights (in float32 as well, where they are trained from a smaller type), activations
    of one batch (with all that is kept for the backward pass, where there is one), what is recorded
    of the batch, and `run.buffer`, as far as there is anything to wait in it.
    """
    size = DTYPE_BYTES[config.model.dtype]
    spec = prepared.condition.spec
    weights = prepared.model_parameters * size
    if spec.train is not None and size < DTYPE_BYTES["float32"]:
        weights += prepared.model_parameters * DTYPE_BYTES["float32"]
    frame = run.frames * prepared.width
    saved_layers = _layers_with_graph(prepared)
    per_sample = frame * size * (FORWARD_WIDTHS + SAVED_WIDTHS * saved_layers)
    batch = config.run.batch_size * (per_sample + _recorded_bytes(run, prepared))
    if spec.train is not None and spec.adapter is not None:
        kept = FORWARD_WIDTHS + SAVED_WIDTHS * prepared.layers
        trained = spec.train.batch_size * frame * kept * DTYPE_BYTES["float32"]
        batch = max(batch, trained)
    waiting = min(config.run.buffer, len(run.table.samples) * _recorded_bytes(run, prepared))
    return LIBRARIES_BYTES + weights + batch + waiting


def _layers_with_graph(prepared: PreparedCondition) -> int:
    """Return how many layers keep activations: those from the lowest with a gradient upwards."""
    lowest = [
        0 if site.layers is None else site.layers[0] for site in prepared.recorded if site.gradient
    ]
    return prepared.layers - min(lowest) if lowest else 0


def _recorded_bytes(run: PreparedRun, prepared: PreparedCondition) -> int:
    """Return the bytes that are recorded of the longest sample."""
    longest = max(sample.valid_frames for sample in run.table.samples)
    total = 0
    for site in prepared.recorded:
        rows = count_rows(longest, run.frames, site.frames)
        each = rows * DTYPE_BYTES[site.dtype] + len(site.pools) * DTYPE_BYTES["float32"]
        total += len(site.taps) * site.width * each
    return total
