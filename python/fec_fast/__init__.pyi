"""The public names, and where each lies: ``__init__.py`` imports a name when it is used, type checkers read it here."""

import fec_fast.training.tasks.detection as detection
import fec_fast.vision.data as data
import fec_fast.vision.voc as voc
import fec_fast.vision.zoo as zoo

from .choosing.points import DenseNetwork, SweepPoint
from .choosing.result import Sweep
from .choosing.sweeping import sweep
from .deployment.int8 import Int8Export, export_int8
from .deployment.pt2e import Pt2eExport, export_pt2e
from .deployment.quantisation import Agreement
from .graph.counts import Counts, LayerCount
from .plan.checkpoint import load, save
from .plan.composition import compose
from .plan.equivalence import Proof, verify_equivalence
from .plan.model_card import ModelCard
from .plan.optimizer_state import remap_optimizer
from .plan.plan import Plan
from .plan.surgery import apply_plan
from .pruning.allocation.budget import Budget
from .pruning.allocation.measured import Sensitivity
from .pruning.allocation.sensitivity import measure_sensitivity
from .pruning.channel_sets import ChannelSet, Couplings, Pinned, couplings
from .pruning.during_training.schedule import PruningSchedule
from .pruning.during_training.stored_state import PruningRound
from .pruning.during_training.training_pruner import TrainingPruner
from .pruning.explanation import FilterExplanation, LayerExplanation, explain
from .pruning.iterative import prune_iteratively
from .pruning.pruner import PruneResult, prune
from .recovery.batch_norm import recalibrate
from .recovery.compensation import Compensation, compensate
from .recovery.layer_fits import LayerRecovery
from .scoring.backends.registry import BackendInfo, backends
from .scoring.distance_matrix import channel_distances
from .scoring.formula import Formula
from .scoring.layers import LayerInfo
from .scoring.model_scores import ModelScores, score_model
from .training.finetuning import finetune
from .training.history import Epoch, FinetuneResult
from .training.settings import TrainingSettings
from .training.sparsity import GroupLasso, GrowingPenalty
from .utils.errors import (
    ArgumentError,
    BackendError,
    BudgetError,
    CheckpointError,
    EquivalenceError,
    FecError,
    FecWarning,
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
from .utils.evaluation import evaluate
from .utils.onnx_files import OnnxExport, export_onnx
from .utils.timing import Latency

__version__: str

__all__ = [
    "Agreement",
    "ArgumentError",
    "BackendError",
    "BackendInfo",
    "Budget",
    "BudgetError",
    "ChannelSet",
    "CheckpointError",
    "Compensation",
    "Counts",
    "Couplings",
    "DenseNetwork",
    "Epoch",
    "EquivalenceError",
    "FecError",
    "FecWarning",
    "FilterExplanation",
    "FinetuneResult",
    "Formula",
    "FormulaError",
    "GroupLasso",
    "GrowingPenalty",
    "InputError",
    "Int8Export",
    "Latency",
    "LayerCount",
    "LayerError",
    "LayerExplanation",
    "LayerInfo",
    "LayerRecovery",
    "MissingExtraError",
    "ModelCard",
    "ModelScores",
    "OnnxExport",
    "Pinned",
    "Plan",
    "PlanError",
    "Proof",
    "PruneResult",
    "PruningRound",
    "PruningSchedule",
    "Pt2eExport",
    "RatioError",
    "Sensitivity",
    "Sweep",
    "SweepPoint",
    "TrainingError",
    "TrainingInterrupted",
    "TrainingPruner",
    "TrainingSettings",
    "WeightError",
    "apply_plan",
    "backends",
    "channel_distances",
    "compensate",
    "compose",
    "couplings",
    "data",
    "detection",
    "evaluate",
    "explain",
    "export_int8",
    "export_onnx",
    "export_pt2e",
    "finetune",
    "load",
    "measure_sensitivity",
    "prune",
    "prune_iteratively",
    "recalibrate",
    "remap_optimizer",
    "save",
    "score_model",
    "sweep",
    "verify_equivalence",
    "voc",
    "zoo",
]
