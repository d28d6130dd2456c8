"""Benchmarks: one subpackage per subject, run as ``python -m benchmarks.SUBJECT`` from the repository root.

- ``scoring``: CPU cost of scoring filters (docs/performance.md).
- ``surgery``: CPU cost of tracing and surgery, compared with Torch-Pruning (docs/surgery.md).
- ``coverage``: networks of torchvision and timm that can be pruned (docs/coverage.md).
- ``sparse_training``: training before, between and after the cuts (docs/sparse_training.md).
- ``study``: accuracy by criterion, policy and budget (docs/study.md, docs/trials.md, the table of docs/formula.md).
- ``defaults``: the defaults of ``prune`` compared with uniform ratios and the L1 norm (docs/defaults.md).
- ``detection``: average precision of a pruned detector (docs/ssd.md).
- ``recovery``: accuracy without training, its cost, and the start that it gives to training (docs/recovery.md).
- ``proof``: whether the proof finds planted faults (docs/couplings.md).
- ``recipes``: results of the recipes (docs/results.md).
- ``gpu``: the kernels on a GPU, their resources and costs (the table of docs/gpu.md, docs/gpu_resources.md,
  docs/gpu_cost.md).
- ``large``: memory and time of every step on large models (the tables of docs/reliability.md).
- ``pictures``: the pictures of README.md and docs/how-it-works.md.
- ``imports``: the time that ``import fec_fast`` takes.

``run.py`` measures and writes ``results/*.json``; ``page.py`` writes the page from it, which ``--page-only`` repeats.
``common`` has the parts that all share: measuring, parity, results with the machine and versions, tables and pages.
"""
