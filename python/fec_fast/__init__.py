"""Channel-similarity entropy pruning of convolutional networks."""

from .backends import backends
from .budget import Budget
from .checkpoint import load, save
from .compose import compose
from .couplings import Couplings, couplings
from .equivalence import verify_equivalence
from .errors import (
    ArgumentError,
    BackendError,
    BudgetError,
    CheckpointError,
    EquivalenceError,
    FecError,
    FormulaError,
    InputError,
    LayerError,
    MissingExtraError,
    PlanError,
    RatioError,
    TrainingError,
    TrainingInterrupted,
    WeightError,
)
from .explain import explain
from .finetune import evaluate, finetune
from .formula import Formula
from .iterative import prune_iteratively
from .ops import channel_distances
from .plan import Plan
from .pruning import PruneResult, prune
from .recalibrate import recalibrate
from .remap import remap_optimizer
from .report import Latency
from .scoring import ModelScores, score_model
from .sensitivity import Sensitivity, measure_sensitivity
from .settings import TrainingSettings
from .surgery import apply_plan

__all__ = [
    "ArgumentError",
    "BackendError",
    "Budget",
    "BudgetError",
    "CheckpointError",
    "Couplings",
    "EquivalenceError",
    "FecError",
    "Formula",
    "FormulaError",
    "InputError",
    "Latency",
    "LayerError",
    "MissingExtraError",
    "ModelScores",
    "Plan",
    "PlanError",
    "PruneResult",
    "RatioError",
    "Sensitivity",
    "TrainingError",
    "TrainingInterrupted",
    "TrainingSettings",
    "WeightError",
    "apply_plan",
    "backends",
    "channel_distances",
    "compose",
    "couplings",
    "evaluate",
    "explain",
    "finetune",
    "load",
    "measure_sensitivity",
    "prune",
    "prune_iteratively",
    "recalibrate",
    "remap_optimizer",
    "save",
    "score_model",
    "verify_equivalence",
]
