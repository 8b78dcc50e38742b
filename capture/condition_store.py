"""How the captures of a condition stand in the store: what identifies and what describes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..store import Output, create_store
from .conditions import condition_products, fingerprint
from .lora import adapter_scaling
from .pooling import final_norm
from .sites import POOLS, row_frames, store_sites
from .statistics import FIGURES, places, statistics_output
from .steps import count_steps

if TYPE_CHECKING:
    from ..store import Site
    from .config_models import CaptureConfig
    from .models import LoadedModel
    from .preparing import PreparedCondition
    from .ranks import Crew
    from .reporting import Reporter
    from .samples import SampleTable
    from .split import Split
    from .steps import CaptureState


@dataclass(frozen=True, slots=True)
class RunContext:
    """What all conditions of a run share."""

    config: CaptureConfig
    """The configuration."""
    store_path: Path
    """Where the store is."""
    device: str
    """Device to compute on."""
    table: SampleTable
    """The samples."""
    split: Split
    """Which of them training may see."""
    data: Mapping[str, Any]
    """What identifies the corpus."""
    provenance: Mapping[str, Any]
    """Versions and the command."""
    reporter: Reporter
    """Hears of everything."""
    crew: Crew
    """The processes that carry out the run."""


def is_settled(parameters: Mapping[str, Any]) -> bool:
    """Whether the parameters of a capture hold the weights that it is recorded with."""
    return "head.classifier.weight" in parameters


def capture_outputs(n_labels: int, sites: Sequence[Site]) -> list[Output]:
    """Return the outputs that every sample of a capture has."""
    return [Output("logits", (n_labels,)), Output("loss"), statistics_output(sites)]


def open_writer(
    context: RunContext,
    prepared: PreparedCondition,
    state: CaptureState,
    loaded: LoadedModel,
    *,
    alone: bool = False,
) -> Any:  # noqa: ANN401
    """Open the writer of one capture; it is made, or goes on where it was.

    Parameters
    ----------
    context, prepared, state, loaded
        The run, the condition, its moment and its model.
    alone
        Open it as the only process, and not together with the other ranks.

    Raises
    ------
    ConfigMismatchError
        The store holds a capture of that name whose values come from something else.
    """
    config, recorded, place = context.config, prepared.recorded, context.crew.place
    stream = loaded.family.stream
    sites = store_sites(recorded)
    return create_store(
        context.store_path,
        capture=state.name,
        sites=sites,
        products=condition_products(loaded.model, loaded.family, config, recorded),
        outputs=capture_outputs(len(context.table.corpus.labels), sites),
        config=_identity(context, state, loaded),
        attrs=capture_attributes(context, state, loaded)
        | {"statistics": {"places": places(sites), "figures": FIGURES}},
        plan=state.table.rows(stream, row_frames(recorded, stream)),
        segment_rows=config.run.segment_rows,
        segment_samples=config.run.segment_samples,
        batch_size=config.run.batch_size,
        buffer_bytes=config.run.buffer,
        profile=config.run.profile,
        rank=0 if alone else place.rank,
        ranks=1 if alone else place.of,
        wait_seconds=place.wait_seconds,
    )


def _identity(context: RunContext, state: CaptureState, loaded: LoadedModel) -> dict[str, Any]:
    """Return everything that determines the values of one capture (JSON).

    The step belongs to it where it is not the last: the final capture is the same whatever was
    captured on the way to it.
    """
    identity = fingerprint(
        context.config,
        state.condition,
        context.split,
        model=loaded.description,
        data=context.data,
        device=context.device,
    )
    if state.final:
        return identity
    chosen = state.condition.spec.step_samples
    samples = "all" if chosen is None else chosen.model_dump(mode="json")
    return {**identity, "step": state.step, "step_samples": samples}


def capture_attributes(
    context: RunContext, state: CaptureState, loaded: LoadedModel
) -> dict[str, Any]:
    """Return what a capture says of itself beside its values (JSON)."""
    adapter = state.condition.spec.adapter
    split = context.split
    described = None
    if adapter is not None:
        scaling = adapter_scaling(loaded.model, loaded.family)
        described = {**adapter.describe(), "scaling": scaling}
    norm = final_norm(loaded.model, loaded.family)
    return {
        "model": loaded.description,
        "corpus": context.config.data.corpus,
        "adapter": described,
        "trained": list(state.trained),
        "head": {"from": state.head_from},
        **_moment(context, state),
        "labels": list(context.table.corpus.labels),
        "seed": context.config.seed,
        "pools": dict(POOLS),
        "final_norm": None if norm is None else {"kind": norm.kind, "eps": norm.eps},
        "split": {"by": split.by, "test": list(split.test)} if state.trained else None,
        "record": context.config.resolved()["record"],
        **context.provenance,
    }


def _moment(context: RunContext, state: CaptureState) -> dict[str, Any]:
    steps = count_steps(state.condition.spec, len(context.split.train_ids))
    if steps is None or state.step is None:
        return {}
    return {
        "of": state.condition.name,
        "step": state.step,
        "steps": steps.total,
        "epoch": steps.epoch(state.step),
    }
