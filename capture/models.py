"""Loading a model with a fresh, seeded classification head, its window cut to what is asked.

Weights load from safetensors only, never with code from a repository, and always in the dtype that
the configuration names (without one, transformers keeps the file's, float16 on a CPU too).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .batch import TORCH_DTYPES
from .errors import ModelError
from .families import SPEECH_FAMILIES, SpeechFamily, find_speech_family
from .pooling import final_norm
from .streams import find_streams, layer_modules

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from .config_models import ModelConfig

DEMO_SEED = 2509_08454
"""Seed of the embedded model's weights: they are the same whatever a run's own seed is."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to be adapted, trained and captured."""

    model: Any
    """The transformers model, in eval mode, every parameter frozen."""
    extractor: Any
    """Its feature extractor."""
    family: SpeechFamily
    """Its table."""
    frames: int
    """Rows of one window."""
    description: dict[str, Any]
    """What a capture's attributes say of it (JSON)."""

    @property
    def window_samples(self) -> int:
        """Audio samples of one window."""
        return self.family.window_samples(self.description["window_seconds"])

    def inputs(self, waveforms: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
        """Return the model's inputs of waveforms by name, on its device and in its dtype.

        Longer audio than the window is cut; shorter is padded as the family does it.
        """
        cut = [waveform[: self.window_samples] for waveform in waveforms]
        return self.move(self.family.inputs(self.extractor, cut))

    def move(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return inputs on the model's device, and in its dtype where they are no integers."""
        parameter = next(self.model.parameters())
        return {
            name: x.to(parameter.device, parameter.dtype if x.is_floating_point() else x.dtype)
            for name, x in inputs.items()
        }

    def features(self, waveforms: Sequence[np.ndarray]) -> torch.Tensor:
        """Return the first input alone: features, or waves, [sample, ...]."""
        return next(iter(self.inputs(waveforms).values()))


def load_model(spec: ModelConfig, n_labels: int, *, seed: int, device: str) -> LoadedModel:
    """Load (or build) the model of a configuration.

    Parameters
    ----------
    spec
        ``model`` of the configuration.
    n_labels
        Classes of the head.
    seed
        Seed of the head's initial weights.
    device
        Where to put it.

    Raises
    ------
    ModelError
        Missing directory, unreachable hub, a family without a table, a file without the encoder's
        weights, or a window that does not fit.
    """
    with _quiet_transformers():
        config, extractor, family = _configuration(spec, n_labels)
        frames = _window_frames(spec, family)
        if _is_demo(spec):
            model = _build_demo(config, family)
        else:
            model = _load_weights(spec, config, family)
    model = model.to(TORCH_DTYPES[spec.dtype]).eval().requires_grad_(requires_grad=False)
    family.shorten(model, extractor, spec.window_seconds)
    reset_head(model, family, seed=seed)
    return LoadedModel(
        model=model.to(device),
        extractor=extractor,
        family=family,
        frames=frames,
        description=_describe(spec, model, family, frames),
    )


def build_shape(spec: ModelConfig, n_labels: int) -> tuple[Any, SpeechFamily, int]:
    """Return (model without weights, family, frames of a window): all that a plan needs."""
    with _quiet_transformers():
        config, _, family = _configuration(spec, n_labels)
        with torch.device("meta"):
            model = family.model_class()(config)
    return model.eval(), family, _window_frames(spec, family)


def reset_head(model: nn.Module, family: SpeechFamily, *, seed: int) -> None:
    """Draw the head anew, in place: weights from N(0, init_std^2), biases 0."""
    generator = torch.Generator().manual_seed(seed)
    config: Any = model.config
    std = float(getattr(config, "init_std", getattr(config, "initializer_range", 0.02)))
    with torch.no_grad():
        for path in family.head.modules.values():
            for name, parameter in model.get_submodule(path).named_parameters():
                drawn = torch.randn(parameter.shape, generator=generator) * std
                parameter.copy_(drawn if name.endswith("weight") else torch.zeros_like(drawn))


def _is_demo(spec: ModelConfig) -> bool:
    return spec.base.startswith("demo:")


def _configuration(spec: ModelConfig, n_labels: int) -> tuple[Any, Any, SpeechFamily]:
    if _is_demo(spec):
        name = spec.base.partition(":")[2]
        if name not in SPEECH_FAMILIES:
            there = ", ".join(f"demo:{known}" for known in SPEECH_FAMILIES)
            msg = f"there is no embedded model {spec.base!r}. Embedded: {there}."
            raise ModelError(msg)
        family = SPEECH_FAMILIES[name]
        config, extractor = family.demo()
    else:
        config, extractor, family = _read_configuration(spec)
    config.num_labels = n_labels
    family = family.fit(family, config, extractor)
    # WavLM has its own attention and nothing to choose
    fused = spec.attention != "sdpa" or family.model_class()._supports_sdpa
    config._attn_implementation = spec.attention if fused else "eager"
    # logits must be a function of the last layer alone, or the lens would not end at them
    config.use_weighted_layer_sum = False
    return config, extractor, family


def _read_configuration(spec: ModelConfig) -> tuple[Any, Any, SpeechFamily]:
    from transformers import AutoConfig, AutoFeatureExtractor

    _check_directory(spec.base)
    try:
        config = AutoConfig.from_pretrained(
            spec.base, revision=spec.revision or "main", trust_remote_code=False
        )
        family = find_speech_family(str(config.model_type), base=spec.base)
        extractor = AutoFeatureExtractor.from_pretrained(
            spec.base, revision=spec.revision or "main", trust_remote_code=False
        )
    except ModelError:
        raise
    except (OSError, ValueError) as error:
        raise _cannot_load(spec, error) from error
    return config, extractor, family


def _check_directory(base: str) -> None:
    path = Path(base).expanduser()
    if path.is_absolute() and not path.is_dir():
        msg = f"the model directory {base} does not exist. Give a directory or a hub id."
        raise ModelError(msg)
    if path.is_dir() and not (path / "config.json").is_file():
        there = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
        msg = f"{base} is not a transformers model: it has no config.json. There: {there}."
        raise ModelError(msg)


def _cannot_load(spec: ModelConfig, error: Exception) -> ModelError:
    said = " ".join(str(error).split())
    said = said if len(said) <= 200 else f"{said[:200]}..."
    where = (
        "in that directory"
        if Path(spec.base).is_dir()
        else f"(no such directory here; asked the hub for revision {spec.revision or 'main'})"
    )
    return ModelError(f"the model {spec.base!r} cannot be loaded {where}: {said}")


def _load_weights(spec: ModelConfig, config: Any, family: SpeechFamily) -> Any:  # noqa: ANN401
    from safetensors import SafetensorError

    try:
        model, info = family.model_class().from_pretrained(
            spec.base,
            config=config,
            revision=spec.revision or "main",
            dtype=TORCH_DTYPES[spec.dtype],
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _cannot_load(spec, error) from error
    lost = [*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])]
    # a key that the file lacks is drawn at random without a word: only the head may be
    lost = sorted(key for key in lost if key.startswith(f"{family.encoder}."))
    if lost:
        msg = f"the weights of {spec.base!r} lack {len(lost)} of the encoder's, such as {lost[0]}."
        raise ModelError(msg)
    return model


def _build_demo(config: Any, family: SpeechFamily) -> Any:  # noqa: ANN401
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(DEMO_SEED)
        return family.model_class()(config)


def _window_frames(spec: ModelConfig, family: SpeechFamily) -> int:
    frames = family.window_frames(spec.window_seconds)
    if frames is None:
        msg = (
            f"model.window_seconds is {spec.window_seconds:g}; {family.name} sees "
            f"{family.window_rule}."
        )
        raise ModelError(msg)
    return frames


def _describe(
    spec: ModelConfig, model: nn.Module, family: SpeechFamily, frames: int
) -> dict[str, Any]:
    base = spec.base if not Path(spec.base).is_absolute() else Path(spec.base).name
    norm = final_norm(model, family)
    return {
        "base": base,
        "revision": spec.revision,
        "family": family.name,
        "dtype": spec.dtype,
        "n_layers": len(layer_modules(model, family)),
        "width": find_streams(model, family)[0].width(model.config),
        "window_seconds": spec.window_seconds,
        "frames": frames,
        "final_norm_eps": None if norm is None else norm.eps,
        "attention": str(getattr(model.config, "_attn_implementation", "")),
        "sha256": weights_sha256(model.get_submodule(family.encoder)),
    }


def weights_sha256(module: nn.Module) -> str:
    """Return the sha256 over names, shapes and values of a module's weights, as loaded."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name}:{tuple(value.shape)}:{value.dtype}".encode())
        digest.update(value.view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Hold back what transformers says of a head that is new on purpose, and of each retry."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    hub_level = hub_logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    hub_logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        hub_logging.set_verbosity(hub_level)
        if bar:
            logging.enable_progress_bar()
