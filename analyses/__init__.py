"""Analyses of stores, out of core: CKA, spectra, probes, the lens, contributions.

Suffixes of arrays in the kernels: N rows or samples, D features, L arrays (layer, site, capture),
G groups, K classes, S label sets, B bootstrap replicates, R rank, P pairs, M statistics.
"""

from .behaviour.contribution import Contribution as Contribution
from .behaviour.erasure import Erasure as Erasure
from .behaviour.lens import Lens as Lens
from .behaviour.scores import Scores as Scores
from .behaviour.tuned_lens import TunedLens as TunedLens
from .catalogue import ANALYSES as ANALYSES
from .catalogue import analyze as analyze
from .embedding.embedding import Embedding as Embedding
from .errors import AnalysisError as AnalysisError
from .errors import AnalysisInputError as AnalysisInputError
from .errors import MemoryBudgetError as MemoryBudgetError
from .errors import MissingSitesError as MissingSitesError
from .fold import ArrayKey as ArrayKey
from .fold import Block as Block
from .fold import Fold as Fold
from .fold import Piece as Piece
from .gradients.gradients import Gradients as Gradients
from .lora.alignment import Alignment as Alignment
from .lora.weights import Weights as Weights
from .outputs import write_outputs as write_outputs
from .probes.code_length import CodeLength as CodeLength
from .probes.layer_weights import LayerWeights as LayerWeights
from .probes.probe import Probe as Probe
from .probes.row_probe import RowProbe as RowProbe
from .similarity.cka import CKA as CKA
from .similarity.cka_estimate import linear_cka as linear_cka
from .similarity.matrices import kernel_cka as kernel_cka
from .spectra.svd import SVD as SVD
from .tables import to_tables as to_tables
