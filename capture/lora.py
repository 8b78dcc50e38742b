"""LoRA adapters through PEFT: attaching them, and moving their weights in and out as numpy.

Weights leave under names that do not depend on PEFT: ``adapter.<layer>.<module>.lora_a`` [r, d_in]
and ``.lora_b`` [d_out, r]; the adapted module computes base(x) + s B(A(dropout(x))), with
s = alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from .adapters import adapters_of
from .config_types import suggest
from .errors import ModelError
from .saved_adapter import WEIGHTS, weight_names
from .streams import find_streams, layer_modules

if TYPE_CHECKING:
    from .config_models import AdapterConfig
    from .families import SpeechFamily

ADAPTER = "default"
NORMAL_STD = 0.02
BASE = "base."
"""What the stored names of base weights begin with."""


def attach_adapter(
    model: nn.Module, family: SpeechFamily, spec: AdapterConfig, *, seed: int
) -> None:
    """Put a LoRA adapter into `model`, in place, and leave the model in eval mode.

    Parameters
    ----------
    model
        The bare transformers model.
    family
        Its table.
    spec
        What to attach.
    seed
        Seed of the initial A (and of B with ``init: normal``) of a fresh one. The global random
        state of torch is left as it was.

    Raises
    ------
    ModelError
        A target matches nothing (the message lists what exists), or names a module that is not
        linear or belongs to the head; a saved adapter is one of another model.
    """
    if spec.path is not None:
        attach_saved(model, family, Path(spec.path))
        return
    from peft import LoraConfig, inject_adapter_in_model

    paths = _target_paths(model, family, spec)
    config = LoraConfig(
        r=spec.r,
        lora_alpha=spec.alpha,  # pyright: ignore[reportArgumentType]  # PEFT only divides it by r
        lora_dropout=spec.dropout,
        target_modules=paths,
        bias="none",
        use_rslora=spec.rslora,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    if spec.init == "normal":
        _draw_normal(model, family, seed)
    # A fresh adapter is in training mode: its dropout would be active while capturing.
    model.eval()


def attach_saved(model: nn.Module, family: SpeechFamily, folder: Path) -> None:
    """Put an adapter that PEFT saved into `model`, in place, and its head where it has one.

    Parameters
    ----------
    model
        The bare transformers model; weights of the meta device have their names and shapes checked.
    family
        Its table.
    folder
        What `save_pretrained` wrote, as `read_saved_adapter` accepted it.

    Raises
    ------
    ModelError
        The model lacks a module of the adapter, or the other way round, or shapes differ.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from safetensors.torch import load_file

    config = cast("LoraConfig", LoraConfig.from_pretrained(str(folder)))
    base = config.base_model_name_or_path or "a base that it does not name"
    # the head is loaded into its place; A and B are drawn first, and drawn for nothing
    config.modules_to_save, config.init_lora_weights, config.inference_mode = None, True, False
    try:
        with torch.random.fork_rng(devices=[]):
            inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    except ValueError as error:
        msg = f"the adapter {folder} (for {base}) does not fit this model: {error}"
        raise ModelError(msg) from error
    _refuse_uncalled(model, family, [found.path for found in adapters_of(model, family)])
    places = {
        f"{found.path}.lora_{part}.weight": module.weight
        for found in adapters_of(model, family)
        for part, module in (("A", found.lora_a), ("B", found.lora_b))
    }
    heads = {
        f"{path}.{name}": parameter
        for path in family.head.modules.values()
        for name, parameter in model.get_submodule(path).named_parameters()
    }
    keys = weight_names(folder)
    if any(name in keys for name in heads):
        places |= heads
    _check_places(folder, base, places.keys(), keys.keys())
    values = load_file(folder / WEIGHTS)
    for name, parameter in places.items():
        value = values[keys[name]]
        if value.shape != parameter.shape:
            hint = "; has the head as many classes as data.labels?" if name in heads else ""
            msg = (
                f"the adapter {folder} (for {base}) does not fit this model: {name} has shape "
                f"{tuple(value.shape)}, the model's {tuple(parameter.shape)}{hint}"
            )
            raise ModelError(msg)
        with torch.no_grad():
            parameter.copy_(value.to(parameter.dtype))
    model.eval()


def _check_places(folder: Path, base: str, wanted: Set[str], there: Set[str]) -> None:
    lost, foreign = sorted(wanted - there), sorted(there - wanted)
    if not lost and not foreign:
        return
    what = []
    if foreign:
        what.append(f"this model has no {foreign[0]} ({len(foreign)} of {len(there)} weights)")
    if lost:
        what.append(f"the adapter has no {lost[0]} ({len(lost)} of {len(wanted)} weights)")
    msg = f"the adapter {folder} (for {base}) does not fit this model: {', and '.join(what)}"
    raise ModelError(msg)


def _target_paths(model: nn.Module, family: SpeechFamily, spec: AdapterConfig) -> list[str]:
    layers, path = layer_modules(model, family), find_streams(model, family)[0].layers
    linear = {n for n, m in layers[0].named_modules() if isinstance(m, nn.Linear)}
    paths: list[str] = []
    for target in spec.target_modules:
        below = sorted(n for n in linear if n == target or n.endswith("." + target))
        if not below:
            raise ModelError(_no_target(model, family, target, linear))
        _refuse_uncalled(model, family, below)
        paths += [f"{path}.{i}.{name}" for i in range(len(layers)) for name in below]
    return paths


def _refuse_uncalled(model: nn.Module, family: SpeechFamily, names: Sequence[str]) -> None:
    config: Any = model.config
    uncalled = family.uncalled(config)
    found = [name for name in names if name.rpartition(".")[2] in uncalled]
    if found:
        msg = (
            f"target module {found[0]!r} cannot have an adapter: {config.model_type} hands the "
            f"weights of {', '.join(uncalled)} to torch's attention without calling these modules, "
            "so it would never run. Take modules of the feed-forward part "
            "(intermediate_dense, output_dense)."
        )
        raise ModelError(msg)


def _no_target(model: nn.Module, family: SpeechFamily, target: str, linear: set[str]) -> str:
    there = sorted({name.rpartition(".")[2] for name in linear})
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    head = {path.rpartition(".")[2] for path in family.head.modules.values()}
    what = f"target module {target!r} matches no linear module in a layer of this model"
    if target in head:
        what = f"target module {target!r} belongs to the head, which is trained as a whole"
    elif target in names:
        what = f"target module {target!r} exists, but is no linear module inside a layer"
    hint = suggest(target, there) or "."
    return f"{what}{hint} Linear modules in a layer: {', '.join(there)}."


def _draw_normal(model: nn.Module, family: SpeechFamily, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for adapter in adapters_of(model, family):
            for matrix in (adapter.lora_a, adapter.lora_b):
                drawn = torch.randn(matrix.weight.shape, generator=generator) * NORMAL_STD
                matrix.weight.copy_(drawn.to(matrix.weight.dtype))


def adapter_scaling(model: nn.Module, family: SpeechFamily) -> float | None:
    """Return the scaling s that PEFT applies, or None without an adapter."""
    for adapter in adapters_of(model, family):
        return adapter.scaling
    return None


def named_weights(
    model: nn.Module, family: SpeechFamily, *, adapter: bool = True
) -> dict[str, torch.Tensor]:
    """Return head, final norm and adapter weights by their stored names (views, not copies)."""
    weights: dict[str, torch.Tensor] = {}
    norm = find_streams(model, family)[0].final_norm(model.config)
    modules = dict(family.head.modules)
    if norm is not None:
        modules["norm"] = norm
    for name, path in modules.items():
        for key, parameter in model.get_submodule(path).named_parameters():
            weights[f"{name}.{key}"] = parameter
    if adapter:
        for found in adapters_of(model, family):
            weights[f"{found.parameter}.lora_a"] = found.lora_a.weight
            weights[f"{found.parameter}.lora_b"] = found.lora_b.weight
    return weights


def extract_weights(model: nn.Module, family: SpeechFamily) -> dict[str, np.ndarray]:
    """Return head, final norm and adapter weights as float32 numpy copies, by stored name."""
    return {name: _copy(tensor) for name, tensor in named_weights(model, family).items()}


def _copy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().to("cpu", torch.float32, copy=True).numpy()


def base_weights(model: nn.Module, family: SpeechFamily) -> dict[str, np.ndarray]:
    """Return the frozen weights under the adapters as float32 copies: ``base.<layer>.<module>``.

    Each is [d_out, d_in], as B A is.
    """
    weights = {found.place: found.base.weight for found in adapters_of(model, family)}
    return {BASE + place: _copy(weight) for place, weight in weights.items()}


def restore_weights(
    model: nn.Module, family: SpeechFamily, weights: Mapping[str, np.ndarray], *, prefix: str = ""
) -> None:
    """Put stored weights back into `model`, in place.

    Parameters
    ----------
    model, family
        The model and its table.
    weights
        Stored name to array; names that the model does not have are ignored.
    prefix
        Restore only the names that begin so (``head.``: only the head).

    Raises
    ------
    ModelError
        A weight that the model needs is missing, or has another shape.
    """
    for name, tensor in named_weights(model, family).items():
        if not name.startswith(prefix):
            continue
        if name not in weights:
            msg = f"the stored weights lack {name!r}. There: {', '.join(sorted(weights))}."
            raise ModelError(msg)
        value = np.asarray(weights[name])
        if value.shape != tuple(tensor.shape):
            msg = f"stored {name!r} has shape {value.shape}, the model's {tuple(tensor.shape)}."
            raise ModelError(msg)
        with torch.no_grad():
            tensor.copy_(torch.from_numpy(value.copy()).to(tensor.dtype))
