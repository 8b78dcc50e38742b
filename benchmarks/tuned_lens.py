"""Time of the tuned lens of one layer: nested penalties, one of ten speakers left out.

Run: `python benchmarks/tuned_lens.py [samples]`. 1,280 features of a falling spectrum, 4 classes, a
lens whose head is half wrong; float64, one process, seeded.
"""

import sys
import time

import numpy as np
from scipy.special import log_softmax

from lorascope.analyses.behaviour.translator import translate_left_out
from lorascope.analyses.statistics.divergence import kl_divergence


def main(n: int, width: int = 1280, groups: int = 10, classes: int = 4) -> None:
    """Print the time of a layer, and the divergences of the lens and the tuned lens."""
    rng = np.random.default_rng(0)
    spectrum = 3 / np.sqrt(np.arange(1, width + 1))
    last = rng.normal(size=(n, width)) * spectrum @ np.linalg.qr(rng.normal(size=(width, width)))[0]
    layer = last + 0.1 * rng.normal(size=(n, width)) * spectrum
    head = rng.normal(size=(width, classes)) * 5 / np.sqrt(width)
    model = log_softmax(last @ head, axis=1)
    lens = layer @ (head + rng.normal(size=head.shape) * 2.5 / np.sqrt(width))
    wall, processor = time.perf_counter(), time.process_time()
    tuned, penalties = translate_left_out(layer, lens, model, np.arange(n) % groups)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    bare = kl_divergence(model, log_softmax(lens, axis=1)).mean()
    print(f"tuned lens, one layer of {n:,} x {width:,}, {groups} speakers, {classes} classes:")
    print(f"  {wall:.1f} s, of processors {processor:.1f} s")
    print(f"  KL {bare:.3f} of the lens, {kl_divergence(model, tuned).mean():.3f} tuned")
    print(f"  penalties {sorted({float(p) for p in penalties})}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 500)
