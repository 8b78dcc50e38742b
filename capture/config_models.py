"""The configuration of a capture as frozen models: one class per section of the YAML file."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    Strict,
    model_serializer,
)

from .config_interventions import Interventions
from .config_section import Section
from .config_sites import ADAPTER_SITES, check_site, sites_to_mapping
from .config_steps import check_moments
from .config_types import (
    AutoCount,
    Count,
    Frames,
    Index,
    Layers,
    Name,
    Number,
    Positive,
    Size,
    Text,
    Texts,
    as_tuple,
    at_least,
    choice,
)

__all__ = [
    "ADAPTER_SITES",
    "CORPORA",
    "LATER_CORPORA",
    "AdapterConfig",
    "CaptureConfig",
    "CaptureSpec",
    "DataConfig",
    "HeadConfig",
    "ModelConfig",
    "RecordConfig",
    "RunConfig",
    "Section",
    "SiteOptions",
    "SplitConfig",
    "StepSamplesConfig",
    "TrainConfig",
]

CORPORA = ("demo", "manifest", "ravdess")
LATER_CORPORA = ("hf", "crema-d", "emodb", "iemocap", "msp-improv")

_Site = Annotated[str, Strict(), AfterValidator(check_site)]
_Pool = Annotated[str, Strict(), choice("mean_valid", "mean_all_normed", what="pool")]
_Pools = Annotated[tuple[_Pool, ...], Strict(), BeforeValidator(as_tuple)]
_RowDtype = Annotated[str, Strict(), choice("bfloat16", "float16", "float32", what="storage dtype")]


class ModelConfig(Section):
    """``model``: what is run."""

    base: Text
    """Hub id, local directory (absolute after loading), ``demo:whisper`` or ``demo:wav2vec2``."""
    revision: Text | None = None
    """Commit, branch or tag of a hub id."""
    dtype: Annotated[
        str, Strict(), choice("float32", "bfloat16", "float16", what="compute dtype")
    ] = "float32"
    """Dtype of weights and computation."""
    attention: Annotated[str, Strict(), choice("sdpa", "eager", what="attention")] = "sdpa"
    """How attention is computed; its weights exist, and can be recorded, with ``eager`` only."""
    window_seconds: Annotated[Positive, Field(le=30)] = 30.0
    """Length of audio that the encoder sees, in seconds; longer utterances are cut. Whisper pads
    shorter ones to it, wav2vec 2.0 and its kin never."""


class DataConfig(Section):
    """``data``: what it is run on."""

    corpus: Annotated[str, Strict(), choice(*CORPORA, what="corpus", later=LATER_CORPORA)]
    """Name of the corpus."""
    root: Text | None = None
    """Folder of the corpus (absolute after loading)."""
    manifest: Text | None = None
    """CSV file of the corpus ``manifest`` (absolute after loading)."""
    labels: Annotated[Texts, at_least(2)] | None = None
    """Labels to keep; None: all that the corpus has."""
    per_class: Count | None = None
    """Size of a balanced, seeded subset, in utterances per label; None: everything."""


class SplitConfig(Section):
    """``split``: which groups of samples no training sees."""

    by: Annotated[str, Strict(), choice("speaker", what="group", later=("session",))] = "speaker"
    """Kind of group."""
    test: Annotated[Texts, at_least(1)] | None = None
    """Groups held out, by name."""
    fold: Count | None = None
    """Leave one group out: the fold-th in sorted order, counted from 1."""


class AdapterConfig(Section):
    """``captures.<name>.adapter``: a fresh adapter, or one that was trained elsewhere (`path`)."""

    type: Annotated[str, Strict(), choice("lora", what="adapter type")] = "lora"
    """Kind of adapter."""
    r: Count
    """Rank."""
    alpha: Positive
    """Scale of the update: the adapter adds alpha / r times B A x."""
    target_modules: Annotated[Texts, at_least(1)]
    """Modules that get an adapter, by the end of their path."""
    dropout: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Dropout before A while training."""
    rslora: Annotated[bool, Strict()] = False
    """Rank-stabilised: scale by alpha / sqrt(r) instead of alpha / r."""
    init: Annotated[str, Strict(), choice("peft", "normal", what="initial state")] = "peft"
    """``peft``: PEFT's own, B = 0; ``normal``: A and B drawn from N(0, 0.02^2)."""
    path: Text | None = None
    """Folder that PEFT's `save_pretrained` wrote (absolute after loading). All the rest is read
    from there."""
    sha256: Text | None = None
    """Of its weights; filled in."""
    base: Text | None = None
    """The model that it was trained on, as it says; filled in."""
    head: Annotated[bool, Strict()] = False
    """Whether it brings a head of its own; filled in."""

    @model_serializer(mode="wrap")
    def _only_given(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        later = ("path", "sha256", "base", "head")
        return {key: value for key, value in dump(self).items() if value or key not in later}

    def describe(self) -> dict[str, Any]:
        """Return what a store says of it (JSON): not where it lies on this machine."""
        described = self.model_dump(mode="json")
        path, base = described.pop("path", None), described.pop("base", None)
        if base is not None:
            described["base"] = Path(base).name if Path(base).is_absolute() else base
        return described if path is None else {**described, "saved_as": Path(path).name}


class TrainConfig(Section):
    """``captures.<name>.train``: how head (and adapter) of this capture are trained."""

    epochs: Count = 5
    """Passes over the training part."""
    learning_rate: Positive = 1e-3
    """Peak learning rate of AdamW."""
    schedule: Annotated[str, Strict(), choice("linear", "constant", "cosine", what="schedule")] = (
        "linear"
    )
    """After warm-up: ``linear`` or ``cosine`` decay to 0 at the last step, or ``constant``."""
    warmup_ratio: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Part of all steps, rounded up, in which the learning rate rises linearly from 0."""
    batch_size: Count = 8
    """Samples per step."""
    weight_decay: Annotated[Number, Field(ge=0)] = 0.0
    """Weight decay of AdamW."""


class StepSamplesConfig(Section):
    """``captures.<name>.step_samples``: a fixed, seeded subset for the captures during training."""

    per_class: Count | None = None
    """Samples of each label, spread evenly over its speakers."""
    total: Count | None = None
    """Samples in all, drawn from all of them alike."""
    part: Annotated[str, Strict(), choice("all", "train", "test", what="part")] = "all"
    """Which samples to choose from: all, those that training sees, or the held-out ones."""


class CaptureSpec(Section):
    """``captures.<name>``: one condition."""

    adapter: AdapterConfig | None = None
    """The adapter; None: the base model alone."""
    train: TrainConfig | None = None
    """How it is trained; None: not at all."""
    at_steps: Annotated[tuple[int | str, ...], BeforeValidator(check_moments)] = ("final",)
    """Moments of its training that are captured as well, as ``<name>.step<N>``: numbers of steps
    (0: before the first update), ``every:N``, ``epochs``. ``final`` is the capture itself, which
    is always made."""
    step_samples: StepSamplesConfig | None = None
    """Samples of those captures; None: all. The final capture always has all."""


class HeadConfig(Section):
    """``head``: where conditions without training take their head from."""

    from_: Text | None = Field(default=None, alias="from")
    """A trained capture; None: ``frozen`` if it is trained, else the first trained capture."""


class RunConfig(Section):
    """``run``: how the capture is executed."""

    batch_size: Count = 8
    """Samples per forward pass."""
    buffer: Size = 2**30
    """Bytes of recorded data that may wait for the disk."""
    segment_rows: AutoCount = None
    """Rows per segment of the store; None: chosen from the sizes."""
    segment_samples: AutoCount = None
    """Samples per segment of the store; None: chosen from the sizes."""
    profile: Annotated[
        str, Strict(), choice("fast", "compact", what="profile", later=("archive",))
    ] = "fast"
    """Trade between speed and size of the store."""


class SiteOptions(Section):
    """``record.sites.<site>``: what differs from `record` for one site."""

    layers: Layers | None = None
    frames: Frames | None = None
    pool: _Pools | None = None
    dtype: _RowDtype | None = None
    width: Count | None = None
    """Features of ``module.<path>``, where the module does not tell."""
    keys: Count | None = None
    """Keys of ``attention``, where fewer are enough than the model could see."""

    @model_serializer(mode="wrap")
    def _only_given(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in dump(self).items() if value is not None}


_SiteTable = Annotated[dict[_Site, SiteOptions], BeforeValidator(sites_to_mapping)]


class RecordConfig(Section):
    """``record``: what is written for every sample."""

    sites: _SiteTable = Field(default_factory=lambda: {"resid_post": SiteOptions()})
    """Activations, site -> options; a list in the file is a mapping without options."""
    gradients: _SiteTable = Field(default_factory=dict)
    """Gradients of the loss, site -> options."""
    layers: Layers = "all"
    """Layers of each site: ``all`` or their numbers."""
    frames: Frames = "valid"
    """``valid`` | ``all`` | ``every:K`` (each K-th valid frame) | ``none`` (pooled only)."""
    pool: _Pools = ("mean_valid", "mean_all_normed")
    """Means over frames written beside the rows, in float32."""
    dtype: _RowDtype = "bfloat16"
    """Storage dtype of rows."""
    lora_b: Annotated[str, Strict(), choice("dense", "factored", what="storage of lora_b")] = (
        "dense"
    )
    """How rows of B outputs are stored: ``dense``, or ``factored`` as those of A and the matrix."""
    base_weights: Annotated[bool, Strict()] = False
    """Store the frozen weights under the adapters, in float32, with every capture but steps."""

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # absent at its default, so that captures from before the option are the same captures
        return {k: v for k, v in dump(self).items() if (k, v) != ("base_weights", False)}

    def options(self, site: str, *, gradient: bool = False) -> SiteOptions:
        """Options of one site with the gaps filled from the section.

        Parameters
        ----------
        site
            Name as in `SITES`.
        gradient
            Look among the gradients instead of the activations.
        """
        own = (self.gradients if gradient else self.sites)[site]
        return SiteOptions(
            layers=self.layers if own.layers is None else own.layers,
            frames=self.frames if own.frames is None else own.frames,
            pool=self.pool if own.pool is None else own.pool,
            dtype=self.dtype if own.dtype is None else own.dtype,
            width=own.width,
            keys=own.keys,
        )


class CaptureConfig(Section):
    """The whole configuration of ``capture-run``."""

    store: Text | None = None
    """Path of the store, relative to the current folder (outputs go where the user is)."""
    seed: Index = 0
    """Seed of everything random."""
    model: ModelConfig
    data: DataConfig
    split: SplitConfig | None = None
    """Needed as soon as one capture is trained."""
    captures: Annotated[dict[Name, CaptureSpec], at_least(1)]
    """Conditions by name, in the order in which they are captured."""
    head: HeadConfig = HeadConfig()
    run: RunConfig = RunConfig()
    interventions: Interventions = ()
    """Changes made to the model while it runs, each a capture beside the unchanged one."""
    record: RecordConfig = RecordConfig()

    def resolved(self) -> dict[str, Any]:
        """Return the configuration as plain JSON values, every default filled in.

        Keys are those of the file; the same configuration gives the same dictionary.
        """
        return self.model_dump(mode="json", by_alias=True)
