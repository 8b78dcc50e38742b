"""The faults of the published code that a store can show, each with what is right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..errors import AnalysisInputError, suggest


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that the published code does and that changes a quantity."""

    name: str
    """What it is switched on by."""
    parts: tuple[str, ...]
    """Analyses that it affects, by their names in the catalogue."""
    published: str
    """What the published code does."""
    right: str
    """What is right, and what the corrected quantity does."""
    within: str = ""
    """Another fault without which it has no place, and which is switched on with it."""


FAULTS: tuple[Fault, ...] = (
    Fault(
        "padding",
        ("contribution", "svd", "cka"),
        "All frames of the 30 s window count, most of them padding.",
        "Only frames that hold audio count.",
    ),
    Fault(
        "micro-average",
        ("contribution",),
        "Frames of all utterances are averaged together, so long utterances count more.",
        "Each utterance is averaged first, then the utterances.",
    ),
    Fault(
        "mlp-denominator",
        ("contribution",),
        "The MLP's output is compared with the layer's input h.",
        "It is compared with the MLP's own input h + a.",
    ),
    Fault(
        "no-final-norm",
        ("lens",),
        "Intermediate layers reach the head without the final norm, the last layer with it.",
        "The final norm is applied to each frame of every layer before pooling.",
    ),
    Fault(
        "kl-direction",
        ("lens",),
        "KL(final || layer), though the code it derives from computes KL(layer || final).",
        "KL(layer || final); the table `lens` has both and the Jensen-Shannon divergence.",
    ),
    Fault(
        "softmax-log",
        ("lens",),
        "The logarithm is taken of a float32 softmax: where that underflows, KL is infinite.",
        "The logarithm of the softmax is computed as one function, in float64.",
    ),
    Fault(
        "uncentred",
        ("svd",),
        "The mean stays in the data, so that the first direction is largely the mean.",
        "The mean over the rows is taken out.",
    ),
    Fault(
        "swapped-gradients",
        ("svd",),
        "The panel of LoRA B gradients shows the gradients of LoRA A.",
        "Each panel shows its own gradients.",
    ),
    Fault(
        "random-baseline",
        ("svd",),
        "The untrained adapter has A and B drawn from N(0, 0.02^2).",
        "It is PEFT's initial state: A uniform, B = 0.",
    ),
    Fault(
        "flattened",
        ("cka",),
        "The frames of an utterance are its columns: frames x features of them, padding included.",
        "An utterance is the mean over its frames.",
    ),
    Fault(
        "biased",
        ("cka",),
        "Biased HSIC: with few samples and many columns CKA of independent data is near 1.",
        "Debiased HSIC.",
    ),
    Fault(
        "rbf-gamma",
        ("cka",),
        "Gradients are compared by an RBF kernel with gamma = 1 / columns, whatever their scale.",
        "The linear kernel, as for the outputs.",
    ),
    Fault(
        "mixed-kernels",
        ("cka",),
        "The trained curve has a linear kernel, the untrained one an RBF with gamma = 1 / columns.",
        "Both curves have the linear kernel.",
    ),
    Fault(
        "wrong-pair",
        ("cka",),
        "A (trained curve) or B (untrained curve) of the trained and the untrained adapter.",
        "A and B of the same adapter, as the text says.",
    ),
    Fault(
        "float32",
        ("cka",),
        "The Gram matrix is formed in float32 before it is centred.",
        "float64.",
    ),
    Fault(
        "mixed-units",
        ("erasure",),
        "The score adds accuracy, half of the confidence and a tenth of the loss in nats.",
        "The loss of UAR; the table `erasure` has each quantity in its own unit.",
    ),
    Fault(
        "loss-sign",
        ("erasure",),
        "A growing loss lowers the score of what was erased.",
        "It raises it.",
        within="mixed-units",
    ),
    Fault(
        "argmax-confidence",
        ("erasure",),
        "Confidence is that of whichever class is predicted.",
        "It is the probability of the true class.",
        within="mixed-units",
    ),
    Fault(
        "fifty-items",
        ("erasure",),
        "50 random test items, drawn without a seed.",
        "All items that no training saw.",
    ),
    Fault(
        "accuracy",
        ("outputs",),
        "Only accuracy is computed.",
        "UAR: the mean recall of the classes.",
    ),
    Fault(
        "std-ddof0",
        ("outputs",),
        "The standard deviation over folds divides by their number.",
        "It divides by one less.",
    ),
)
"""In the order in which they are listed everywhere."""
BY_NAME: dict[str, Fault] = {fault.name: fault for fault in FAULTS}
PARTS: tuple[str, ...] = tuple(dict.fromkeys(part for fault in FAULTS for part in fault.parts))
"""Analyses that have a published counterpart."""


def choose_faults(names: Iterable[str]) -> tuple[str, ...]:
    """Return the faults that were asked for, each once; none means all.

    Raises
    ------
    AnalysisInputError
        An unknown name; says which one is close and which there are.
    """
    chosen = tuple(dict.fromkeys(names))
    for name in chosen:
        if name not in BY_NAME:
            hint = suggest(name, BY_NAME, likeness=0.5)
            msg = f"no fault {name!r}.{hint} There are: {', '.join(BY_NAME)}."
            raise AnalysisInputError(msg)
    return chosen


def switched_on(names: Iterable[str]) -> frozenset[str]:
    """Return faults together with those that they need."""
    found = set(names)
    return frozenset(found | {BY_NAME[name].within for name in found if BY_NAME[name].within})


def switches(applicable: Sequence[str], chosen: Sequence[str]) -> list[tuple[str, frozenset[str]]]:
    """Return what is computed of one quantity: a name and the faults that are on.

    Parameters
    ----------
    applicable
        Faults of the quantity.
    chosen
        Faults that were asked for; none means all.

    Returns
    -------
    list
        `none`, `all`, each fault alone, and those asked for together where they are several.
    """
    singles = [name for name in applicable if not chosen or name in chosen]
    sets = [("none", frozenset()), ("all", switched_on(applicable))]
    sets += [(name, switched_on([name])) for name in singles]
    if chosen and len(singles) > 1:
        sets.append(("+".join(singles), switched_on(singles)))
    return sets
