"""`Recorder`: records a running model, in anybody's loop, into a store.

Hooks sit only on the modules that are recorded. Each tensor is selected, cast and pooled where it
is computed, as soon as it exists; when the batch is over its samples go to the writer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import nn

from ..store import Output, Site, create_store
from .errors import CaptureError
from .families import Family, find_family
from .hooks import install_hooks
from .open_batch import OpenBatch, SampleInfo
from .places import OWN_STREAM
from .pooling import final_norms
from .sites import POOLS, RecordedSite, SiteRequest, resolve_sites, store_sites
from .streams import find_streams
from .transfer import HostCopies

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

type SiteChoice = Sequence[str] | Mapping[str, SiteRequest]
"""Names of sites, or names with what is asked of each."""
type Mask = np.ndarray | torch.Tensor
"""Which positions count, bool [sample, position]."""


class _AllRecordedError(BaseException):
    """Ends a forward of which nothing more is recorded; no code of a model catches it."""


def bare_model(model: nn.Module) -> nn.Module:
    """Return the transformers model inside a `PeftModel`; any other model as it is."""
    from peft import PeftModel

    return model.get_base_model() if isinstance(model, PeftModel) else model


def _family_of(model: nn.Module) -> Family:
    config = getattr(model, "config", None)
    return find_family(str(getattr(config, "model_type", "")))


def _requests(choice: SiteChoice, options: Mapping[str, Any]) -> dict[str, SiteRequest]:
    if isinstance(choice, Mapping):
        return dict(choice)
    return {name: SiteRequest(**options) for name in choice}


def find_sites(
    model: nn.Module,
    *,
    sites: SiteChoice,
    gradients: SiteChoice = (),
    **options: Any,  # noqa: ANN401
) -> list[Site]:
    """Return the store sites that a `Recorder` with the same arguments writes.

    Use it to open a writer yourself; `options` are the fields of `SiteRequest`.
    """
    bare = bare_model(model)
    family = _family_of(bare)
    chosen = _requests(sites, options), _requests(gradients, options)
    return store_sites(resolve_sites(bare, family, *chosen))


class Recorder:
    """Records the activations and gradients of a model into a store.

    ::

        with Recorder(model, writer, sites=["resid_post"], gradients=["lora_a"]) as recorder:
            with recorder.batch(ids=ids, labels=labels, mask=mask):
                output = model(**inputs)
                recorder.backward(per_sample_loss(output))

    Without `batch`, every forward is one batch: ids are running numbers and every position counts.
    Put the model into eval mode first, or dropout is recorded. Where only gradients of activations
    are wanted, freeze the parameters (`requires_grad_(False)`): the recorder starts the graph
    itself, at the first tensor whose gradient it records.

    Parameters
    ----------
    model
        A transformers model of a known family, also inside a `PeftModel`.
    target
        An open writer with the sites of `find_sites`, or a path: the recorder then opens the store
        itself and closes it at the end.
    sites, gradients
        What to record; see `resolve_sites`.
    layers, frames, pool, dtype
        Of sites that are given by name only; see `SiteRequest`.
    capture
        Name of the capture, where `target` is a path.
    outputs
        Per-sample outputs that `output` will be given, where `target` is a path.

    Raises
    ------
    CaptureError
        A site that does not exist, a second forward in one batch, a gradient that is not there.
    """

    def __init__(  # noqa: PLR0913  everything after the target is optional and named
        self,
        model: nn.Module,
        target: Any,  # noqa: ANN401  a store's writer, or anything that appends like one
        *,
        sites: SiteChoice,
        gradients: SiteChoice = (),
        layers: Sequence[int] | None = None,
        frames: str = "valid",
        pool: Sequence[str] = tuple(POOLS),
        dtype: str = "bfloat16",
        capture: str = "capture",
        outputs: Sequence[Output] = (),
    ) -> None:
        self._root, self._model = model, bare_model(model)
        self.family = _family_of(self._model)
        options = {
            "layers": None if layers is None else tuple(layers),
            "frames": frames,
            "pool": tuple(pool),
            "dtype": dtype,
        }
        self.recorded: tuple[RecordedSite, ...] = resolve_sites(
            self._model, self.family, _requests(sites, options), _requests(gradients, options)
        )
        self._gradients = any(site.gradient for site in self.recorded)
        self._target, self._capture, self._outputs = target, capture, tuple(outputs)
        self._norms = final_norms(self._model, self.family)
        self._stack = ExitStack()
        streams = find_streams(self._model, self.family)
        self._streams = [stream.name for stream in streams] or [OWN_STREAM]
        self._stops = False
        self._copies = HostCopies()
        self._writer: Any = None
        self._numbered = 0
        self._open: OpenBatch | None = None

    def __enter__(self) -> Self:
        """Open the store where a path was given, and install the hooks."""
        with ExitStack() as stack:
            self._writer = self._target
            if isinstance(self._target, str | PathLike):
                sites = store_sites(self.recorded)
                self._writer = stack.enter_context(
                    create_store(
                        Path(self._target),
                        capture=self._capture,
                        sites=sites,
                        outputs=self._outputs,
                    )
                )
            for handle in self._install():
                stack.callback(handle.remove)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> bool | None:  # noqa: ANN401
        """Remove the hooks; commit and close the store where the recorder opened it."""
        self._open = None
        return self._stack.__exit__(*error)

    def _install(self) -> list[RemovableHandle]:
        return [
            self._root.register_forward_pre_hook(self._before_forward),
            *install_hooks(self._model, self.recorded, self),
            self._root.register_forward_hook(self._after_forward),
        ]

    @contextmanager
    def batch(
        self,
        ids: Sequence[str],
        *,
        labels: Sequence[str] | None = None,
        groups: Mapping[str, Sequence[str]] | None = None,
        columns: Mapping[str, Sequence[Any]] | None = None,
        exposed: Sequence[bool] | None = None,
        mask: Mask | Mapping[str, Mask] | None = None,
    ) -> Iterator[Self]:
        """Name the samples of the one forward inside the block; they are written at its end.

        Parameters
        ----------
        ids
            One id a sample.
        labels, exposed
            One entry a sample.
        groups, columns
            Name to one entry a sample.
        mask
            Whether each frame (or token) of each sample counts, bool [sample, frame]; None: all do.
            Of a model with several streams, stream to mask; a bare one is that of the main stream.
        """
        if self._open is not None:
            msg = "a batch is still open: call recorder.backward after each forward."
            raise CaptureError(msg)
        masks = self._masks(mask)
        info = SampleInfo(list(ids), labels, groups or {}, columns or {}, exposed, masks)
        self._open = OpenBatch(
            self.recorded, self._norms, self._copies, info=info, skips=self._skips_layers
        )
        try:
            yield self
            self._open.finish(self._writer)
        finally:
            self._open = None

    def _masks(self, mask: Mask | Mapping[str, Mask] | None) -> dict[str, np.ndarray]:
        if mask is None:
            return {}
        named = dict(mask) if isinstance(mask, Mapping) else {self._streams[0]: mask}
        unknown = sorted(named.keys() - set(self._streams))
        if unknown:
            msg = f"mask names the stream {unknown[0]!r}; there are: {', '.join(self._streams)}."
            raise CaptureError(msg)
        return {
            stream: np.asarray(torch.as_tensor(values).cpu(), dtype=bool)
            for stream, values in named.items()
        }

    def forward(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  what the model takes
        """Run the model inside `batch`, only as far as the deepest recorded module.

        For passes of which nothing else is wanted: no gradients, and no output of the model.
        Everything above the deepest recorded module is spared.
        """
        if self._gradients:
            msg = "recorder.forward stops before the end of the model, so it records no gradients."
            raise CaptureError(msg)
        if self._open is None:
            msg = "recorder.forward was called outside recorder.batch(...)."
            raise CaptureError(msg)
        self._stops = True
        try:
            with torch.no_grad():
                self._root(*args, **kwargs)
        except _AllRecordedError:
            pass
        finally:
            self._stops = False

    def backward(self, losses: torch.Tensor) -> None:
        """Run the backward pass of the sum of `losses` and record the gradients.

        The sum makes the gradient of each sample what it is in a batch of one; a mean, or class
        weights, would rescale it.

        Parameters
        ----------
        losses
            One loss a sample, [sample].
        """
        batch = self._open
        if batch is None or not batch.forward_ran:
            msg = "recorder.backward was called before a forward of the model."
            raise CaptureError(msg)
        if losses.ndim != 1 or losses.shape[0] != batch.size:
            msg = (
                f"recorder.backward wants one loss a sample, [{batch.size}], and got "
                f"{list(losses.shape)}. Use reduction='none'; the recorder sums them itself."
            )
            raise CaptureError(msg)
        batch.backward_running = True
        try:
            losses.sum().backward()
        finally:
            batch.backward_running = False
        batch.backward_ran = True
        if not batch.explicit:
            self._finish_implicit(batch)

    def output(self, **values: torch.Tensor) -> None:
        """Store outputs of the open batch, such as ``logits=`` [sample, class_]."""
        if self._open is None:
            msg = "recorder.output was called outside recorder.batch(...)."
            raise CaptureError(msg)
        self._open.output(values)

    @property
    def _skips_layers(self) -> bool:
        config: Any = getattr(self._model, "config", None)
        return self._model.training and float(getattr(config, "layerdrop", 0.0) or 0.0) > 0

    def _before_forward(self, *_: object) -> None:
        batch = self._open
        if batch is None or not (batch.explicit or self._gradients):
            batch = self._open = OpenBatch(
                self.recorded,
                self._norms,
                self._copies,
                info=None,
                number_from=self._numbered,
                skips=self._skips_layers,
            )
        elif batch.forward_ran and not batch.backward_running:
            msg = (
                "the model ran twice in one batch: give every forward its own recorder.batch(...)"
                f"{' and call recorder.backward after it' if self._gradients else ''}."
            )
            raise CaptureError(msg)
        batch.forward_ran = True

    def _after_forward(self, *_: object) -> None:
        batch = self._open
        if batch is not None and not (batch.explicit or self._gradients):
            self._finish_implicit(batch)

    def _finish_implicit(self, batch: OpenBatch) -> None:
        self._open = None
        batch.finish(self._writer)
        self._numbered += batch.size or 0

    def receive(
        self, index: int, position: int, tensor: torch.Tensor, given: torch.Tensor | None
    ) -> None:
        """Take a tensor from a hook; not for users."""
        batch = self._open
        if batch is not None:
            batch.receive(index, position, tensor, given)
            if self._stops and batch.complete:
                raise _AllRecordedError
