"""LoRA adapters through PEFT: attaching them, and moving their weights in and out as numpy.

Weights leave under names that do not depend on PEFT: ``adapter.<layer>.<module>.lora_a`` [r, d_in]
and ``.lora_b`` [d_out, r]; the adapted module computes base(x) + s B(A(dropout(x))).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from .config_types import suggest
from .errors import ModelError
from .naming import layer_modules, short_names

if TYPE_CHECKING:
    from .config_models import AdapterConfig
    from .families import Family

ADAPTER = "default"
NORMAL_STD = 0.02


def attach_adapter(model: nn.Module, family: Family, spec: AdapterConfig, *, seed: int) -> None:
    """Put a seeded LoRA adapter into `model`, in place, and leave the model in eval mode.

    Parameters
    ----------
    model
        The bare transformers model.
    family
        Its table.
    spec
        What to attach.
    seed
        Seed of the initial A (and of B with ``init: normal``). The global random state of torch
        is left as it was.

    Raises
    ------
    ModelError
        A target matches nothing (the message lists what exists), or names a module that is not
        linear or belongs to the head.
    """
    from peft import LoraConfig, inject_adapter_in_model

    paths = _target_paths(model, family, spec)
    config = LoraConfig(
        r=spec.r,
        lora_alpha=spec.alpha,  # pyright: ignore[reportArgumentType]  # PEFT only divides it by r
        lora_dropout=spec.dropout,
        target_modules=paths,
        bias="none",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    if spec.init == "normal":
        _draw_normal(model, family, seed)
    # A fresh adapter is in training mode: its dropout would be active while capturing.
    model.eval()


def _target_paths(model: nn.Module, family: Family, spec: AdapterConfig) -> list[str]:
    layers = layer_modules(model, family)
    linear = {n for n, m in layers[0].named_modules() if isinstance(m, nn.Linear)}
    paths: list[str] = []
    for target in spec.target_modules:
        below = sorted(n for n in linear if n == target or n.endswith("." + target))
        if not below:
            raise ModelError(_no_target(model, family, target, linear))
        paths += [f"{family.layers}.{i}.{name}" for i in range(len(layers)) for name in below]
    return paths


def _no_target(model: nn.Module, family: Family, target: str, linear: set[str]) -> str:
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


def _draw_normal(model: nn.Module, family: Family, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in adapted_modules(model, family).values():
            for matrix in (module.lora_A[ADAPTER], module.lora_B[ADAPTER]):
                drawn = torch.randn(matrix.weight.shape, generator=generator) * NORMAL_STD
                matrix.weight.copy_(drawn.to(matrix.weight.dtype))


def adapted_modules(model: nn.Module, family: Family) -> dict[tuple[int, str], Any]:
    """Return the adapted modules by (layer, shortest unambiguous name), in order.

    Raises
    ------
    ModelError
        The adapter is of a kind whose A and B outputs this version cannot record; the message says
        which and why.
    """
    from peft.tuners.lora import Linear, LoraLayer

    found: dict[tuple[int, str], Any] = {}
    for index, layer in enumerate(layer_modules(model, family)):
        short = short_names(layer)
        for path, module in layer.named_modules():
            if not isinstance(module, LoraLayer):
                continue
            if not isinstance(module, Linear):
                kind = type(module).__name__
                msg = f"{path} in layer {index} has a LoRA {kind} adapter; only linear ones work."
                raise ModelError(msg)
            _refuse_variants(module, f"{path} in layer {index}")
            found[index, short[path]] = module
    return dict(sorted(found.items()))


def _refuse_variants(module: Any, where: str) -> None:  # noqa: ANN401
    adapters = list(module.lora_A)
    reason = ""
    if module.lora_variant:
        kinds = ", ".join(sorted({type(v).__name__ for v in module.lora_variant.values()}))
        reason = f"uses {kinds}, whose output is not base(x) + s B(A(x))"
    elif len(adapters) != 1:
        reason = f"has {len(adapters)} adapters ({', '.join(adapters)}), so A and B are ambiguous"
    elif module.merged:
        reason = "is merged into the base weight, so A and B are not run; unmerge it first"
    if reason:
        msg = f"the adapter of {where} {reason}. This version captures one unmerged plain LoRA."
        raise ModelError(msg)


def adapter_name(module: Any) -> str:  # noqa: ANN401
    """Name under which PEFT keeps the only adapter of `module`."""
    return next(iter(module.lora_A))


def adapter_scaling(model: nn.Module, family: Family) -> float | None:
    """Return the scaling s that PEFT applies, or None without an adapter."""
    for module in adapted_modules(model, family).values():
        return float(module.scaling[adapter_name(module)])
    return None


def named_weights(
    model: nn.Module, family: Family, *, adapter: bool = True
) -> dict[str, torch.Tensor]:
    """Return head, final norm and adapter weights by their stored names (views, not copies)."""
    weights: dict[str, torch.Tensor] = {}
    modules = {**family.head.modules, "norm": family.final_norm}
    for name, path in modules.items():
        for key, parameter in model.get_submodule(path).named_parameters():
            weights[f"{name}.{key}"] = parameter
    if adapter:
        for (layer, short), module in adapted_modules(model, family).items():
            key = adapter_name(module)
            weights[f"adapter.{layer}.{short}.lora_a"] = module.lora_A[key].weight
            weights[f"adapter.{layer}.{short}.lora_b"] = module.lora_B[key].weight
    return weights


def extract_weights(model: nn.Module, family: Family) -> dict[str, np.ndarray]:
    """Return head, final norm and adapter weights as float32 numpy copies, by stored name."""
    return {
        name: tensor.detach().to("cpu", torch.float32, copy=True).numpy()
        for name, tensor in named_weights(model, family).items()
    }


def restore_weights(
    model: nn.Module, family: Family, weights: Mapping[str, np.ndarray], *, prefix: str = ""
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
