"""Adapters that were trained elsewhere, in the form in which PEFT saves them.

Light on purpose: what such an adapter is, and whether it can be captured at all, is read from its
JSON and the header of its weights, before anything heavy is loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_MOST_JSON_BYTES = 2**20
_OTHER_BASE = ("pissa", "olora", "corda", "loftq")
"""Ways to start an adapter that change the weights it is added to."""
_PLAIN: dict[str, tuple[object, ...]] = {
    "bias": (None, "none"),
    "use_dora": (None, False),
    "use_qalora": (None, False),
    "lora_bias": (None, False),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "layer_replication": (None, []),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, [], {}),
    "alora_invocation_tokens": (None, []),
    "arrow_config": (None, {}),
    "megatron_config": (None, {}),
}
"""Options of PEFT that must be absent: with them the adapter is not base(x) + s B(A(x)), with one
s and one rank, in modules that can be recorded."""


class SavedAdapterError(ValueError):
    """A folder that holds no adapter that can be captured; says why in one line."""


def read_saved_adapter(folder: Path) -> dict[str, Any]:
    """Return what ``captures.<name>.adapter`` says of an adapter that PEFT saved.

    Parameters
    ----------
    folder
        What `save_pretrained` wrote: `adapter_config.json` and `adapter_model.safetensors`.

    Returns
    -------
    dict
        Values of `AdapterConfig`: rank, alpha, targets, …, the sha256 of the weights, and whether
        they hold a head (`modules_to_save`).

    Raises
    ------
    SavedAdapterError
        No such folder, no LoRA, or a kind of it that cannot be recorded.
    """
    said = _read_json(folder)
    kind = said.get("peft_type")
    if kind != "LORA":
        msg = f"{folder} holds an adapter of type {kind!r}; what can be captured is LORA"
        raise SavedAdapterError(msg)
    for key, plain in _PLAIN.items():
        if said.get(key) not in plain:
            msg = f"{folder} uses {key} = {said[key]!r}, which cannot be recorded as plain LoRA"
            raise SavedAdapterError(msg)
    init = said.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_OTHER_BASE):
        msg = (
            f"{folder} was started by {init!r}, which changes the base weights too; convert it "
            "first: PEFT's save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
        raise SavedAdapterError(msg)
    targets = said.get("target_modules")
    targets = [targets] if isinstance(targets, str) else targets
    rank, alpha = said.get("r"), said.get("lora_alpha")
    if not (isinstance(targets, list) and targets and all(isinstance(t, str) for t in targets)):
        msg = f"{folder / CONFIG} names no target_modules"
        raise SavedAdapterError(msg)
    if not (isinstance(rank, int) and isinstance(alpha, int | float) and rank > 0 and alpha > 0):
        msg = f"{folder / CONFIG} says r = {rank!r} and lora_alpha = {alpha!r}"
        raise SavedAdapterError(msg)
    names = weight_names(folder)
    lost = sorted(set(said.get("modules_to_save") or ()) - {n.split(".")[-2] for n in names})
    if lost:
        msg = (
            f"{folder / CONFIG} says that {lost[0]} was saved, and {WEIGHTS} lacks it: its head "
            "could not be restored"
        )
        raise SavedAdapterError(msg)
    return {
        "r": rank,
        "alpha": alpha,
        "target_modules": sorted(targets),
        "dropout": said.get("lora_dropout") or 0.0,
        "rslora": bool(said.get("use_rslora")),
        "path": str(folder),
        "sha256": hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest(),
        "base": said.get("base_model_name_or_path") or None,
        "head": any(not is_lora(name) for name in names),
    }


def weight_names(folder: Path) -> Mapping[str, str]:
    """Return the tensors of an adapter: name in the model (``encoder.…lora_A.weight``) to key."""
    from safetensors import SafetensorError, safe_open

    path = folder / WEIGHTS
    if not path.is_file():
        there = ", ".join(sorted(p.name for p in folder.iterdir())[:8])
        pickled = (folder / "adapter_model.bin").is_file()
        hint = "; a pickle is never opened: save it again, as safetensors" if pickled else ""
        msg = f"{folder} has no {WEIGHTS}{hint}. There: {there}"
        raise SavedAdapterError(msg)
    try:
        with safe_open(path, framework="numpy") as file:
            keys = list(file.keys())
    except (OSError, SafetensorError) as error:
        msg = f"{path} cannot be read: {error}"
        raise SavedAdapterError(msg) from error
    return {_plain_name(key): key for key in keys}


def is_lora(name: str) -> bool:
    """Return whether a tensor is one of a LoRA pair, and not of a module that was saved whole."""
    return name.rpartition(".")[0].rpartition(".")[2] in ("lora_A", "lora_B")


def _plain_name(key: str) -> str:
    """Return the name that a key has in the model: without PEFT's wrappers around it."""
    parts = key.removeprefix(_PREFIX).split(".")
    if "modules_to_save" in parts:  # as older versions wrote it, with the adapter's name after it
        at = parts.index("modules_to_save")
        del parts[at : len(parts) - 1]
    return ".".join(parts)


def _read_json(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not folder.is_dir():
        msg = f"no folder {str(folder)!r}; give what PEFT's save_pretrained wrote"
        raise SavedAdapterError(msg)
    if not path.is_file():
        there = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        msg = f"{folder} has no {CONFIG}, so it is no adapter that PEFT saved. There: {there}"
        raise SavedAdapterError(msg)
    try:
        if path.stat().st_size > _MOST_JSON_BYTES:
            msg = f"{path} is larger than 1 MiB"
            raise SavedAdapterError(msg)
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        if isinstance(error, SavedAdapterError):
            raise
        msg = f"{path} cannot be read: {error}"
        raise SavedAdapterError(msg) from error
    if not isinstance(value, dict):
        msg = f"{path} holds no JSON object"
        raise SavedAdapterError(msg)
    return value
