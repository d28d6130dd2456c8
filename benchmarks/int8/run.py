"""Pruning and quantising: size, accuracy and latency of networks dense, pruned, in int8, and both.

    pip install '.[bench,vision,train,onnx,torchao]' && python -m benchmarks.int8 --data FOLDER

The folder is that of ``python -m benchmarks.recovery``, and so are the networks. Each is pruned and recovered without
training on 1,000 training images; the first 512 of them calibrate the int8 networks. The accuracy is that of 4,000 test
images (450 of the digits) that nothing was chosen on, in ONNX Runtime (PT2E: in torch). Every form that is measured is
in benchmarks/results/int8.json at once: an interrupted run continues. ``torch.compile`` takes minutes for a network.
At the end docs/int8.md is written; with ``--page-only``, nothing else. Without torchao the rows of PT2E are left out.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._inductor.config
from torch import Tensor, nn

import fec_fast
from benchmarks.common.environment import ROOT
from benchmarks.common.measuring import median_cpu_seconds
from benchmarks.common.results import RESULTS, read_result, run_number, write_result
from benchmarks.int8.page import COMPILED, FORMS, NETWORKS, PT2E, TIMED, VARIANTS, write
from benchmarks.recovery.networks import Bench
from benchmarks.study.run import packed
from fec_fast.utils.onnx_files import OnnxRun

RESULT = RESULTS / "int8.json"
RECOVERED_ON, CALIBRATED_ON = 1000, 512
BATCHES = (1, 64)  # images per call that is timed
CALLS = 30


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder of images and weights")
    parser.add_argument("--output", default=RESULT, type=Path)
    parser.add_argument("--work", default=ROOT / "runs" / "study", type=Path, help="a folder for decoded images")
    parser.add_argument("--files", default=ROOT / "runs" / "int8", type=Path, help="a folder for the networks")
    parser.add_argument("--test-images", default=4000, type=int, help="at most 4,000")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--page-only", action="store_true", help="measure nothing, write the page from the results")
    arguments = parser.parse_args()
    if not arguments.page_only:
        if arguments.data is None:
            parser.error("--data is needed, except with --page-only")
        warnings.filterwarnings("ignore")
        torch.set_num_threads(1)
        measurement = Measurement(Bench(arguments.data, arguments.work, arguments.test_images), arguments)
        for name in arguments.networks:
            measurement.network(name)
    write(read_result(arguments.output))


class Measurement:
    """The result file, and the networks and images that its rows need.

    Attributes:
        bench: The networks and images.
        output: The result file.
        files: The folder of the written networks, which are kept for the latencies.
    """

    def __init__(self, bench: Bench, arguments: argparse.Namespace) -> None:
        self.bench, self.output, self.files = bench, arguments.output, arguments.files
        self.files.mkdir(parents=True, exist_ok=True)

    def network(self, name: str) -> None:
        """Measures all rows of a network that the result file lacks."""
        timed = self._has([name, "latency"])
        for variant in VARIANTS:
            forms = [form for form in (*FORMS, COMPILED) if form != PT2E or _has_torchao()]
            missing = [form for form in forms if form != COMPILED and not self._has([name, variant, form])]
            unwritten = [form for form in TIMED if form in forms and not self._file(name, variant, form).is_file()]
            if missing or (unwritten and not timed):
                self._forms(name, variant, [form for form in forms if form in {*missing, *unwritten}])
        if not timed:
            self._add([name, "latency"], {"milliseconds": self._latencies(name)})

    def _forms(self, name: str, variant: str, forms: list[str]) -> None:
        dense, test = self.bench.dense(name), self.bench.test(name)
        batches = self.bench.calibration(name, RECOVERED_ON, 0)
        model, sizes = dense, {}
        if VARIANTS[variant]:
            result = fec_fast.prune(dense, test[0][0][:1], recover=batches, verify=False, **VARIANTS[variant])
            model, sizes = result.model, {"parameters": result.after.parameters, "macs": result.after.macs}
        for form in forms:
            file = self._file(name, variant, form)
            run, values = _written(model, form, file, batches)
            if form == COMPILED or self._has([name, variant, form]):
                continue
            correct = [bit for x, y in test for bit in (run(x).argmax(1) == y.numpy()).tolist()]
            accuracy = {"accuracy": round(100 * sum(correct) / len(correct), 2), "images": len(correct)}
            size = {"bytes": file.stat().st_size}
            self._add([name, variant, form], {**sizes, **size, **values, **accuracy, "right": packed(correct)})

    def _latencies(self, name: str) -> dict[str, dict[str, float]]:
        """CPU milliseconds per call on one thread, all files in turns; by images per call, variant and form.

        Raises:
            RuntimeError: A compiled network computes something else than its file.
        """
        (image, _), *_ = self.bench.test(name)
        files = {
            f"{variant} {form}": self._file(name, variant, form)
            for variant in VARIANTS
            for form in TIMED
            if form != PT2E or _has_torchao()
        }
        milliseconds = {}
        for batch in BATCHES:
            calls = {key: _timed_call(file, image[:batch]) for key, file in files.items()}
            # Weights are frozen, and there are int8 kernels, only under these two settings.
            with torch.no_grad(), torch._inductor.config.patch(freezing=True):
                seconds = median_cpu_seconds(calls, CALLS)
            milliseconds[str(batch)] = {key: round(1e3 * value, 4) for key, value in seconds.items()}
        return milliseconds

    def _file(self, name: str, variant: str, form: str) -> Path:
        plain = "".join(letter if letter.isalnum() else "-" for letter in f"{name} {variant} {form}")
        return self.files / f"{plain}.{'pt2' if form in (PT2E, COMPILED) else 'onnx'}"

    def _has(self, key: list[Any]) -> bool:
        return any(row["key"] == key for row in read_result(self.output).get("rows", []))

    def _add(self, key: list[Any], values: dict[str, Any]) -> None:
        document = read_result(self.output) or {"rows": []}
        run = run_number(document, "onnx", "onnxruntime", "onnxscript", "torchao")
        document["rows"].append({"key": key, **values, "run": run})
        write_result(self.output, document)
        print(key, {name: value for name, value in values.items() if name not in ("right", "layers")}, flush=True)


def _written(
    model: nn.Module, form: str, file: Path, batches: list[Tensor]
) -> tuple[Callable[[Tensor], Any], dict[str, Any]]:
    """Writes a network in one of the forms; returns how it is run, and what is known of it."""
    if form == "float32":
        exported = fec_fast.export_onnx(model, batches[0][:2], file, any_batch=True)
        run = OnnxRun(file, threads=1)
        return lambda x: run(x)[0], {"difference": exported.difference}
    if form == COMPILED:
        shapes = ({0: torch.export.Dim("batch")},)
        torch.export.save(torch.export.export(model, (batches[0][:2],), dynamic_shapes=shapes), file)
        return lambda x: np.asarray(model(x).detach()), {}
    if form == PT2E:
        program = fec_fast.export_pt2e(model, file, batches, images=CALIBRATED_ON)
        module = torch.export.load(file).module()
        return lambda x: np.asarray(module(x).detach()), _agreement(program.agreement)
    ends = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    options: dict[str, Any] = {
        "int8": {},
        "int8, percentile": {"method": "percentile"},
        "int8, first and last layer float32": {"float_layers": [ends[0], ends[-1]]},
    }[form]
    quantised = fec_fast.export_int8(model, file, batches, images=CALIBRATED_ON, **options)
    run = OnnxRun(file, threads=1)
    return lambda x: run(x)[0], _agreement(quantised.agreement)


def _agreement(agreement: fec_fast.Agreement) -> dict[str, Any]:
    same = None if agreement.same is None else round(agreement.same, 4)
    return {"same": same, "error": round(agreement.error, 4)}


def _timed_call(file: Path, images: Tensor) -> Callable[[], object]:
    """A call of the network in a file: by ONNX Runtime, or compiled by torch and compared with what it stands for."""
    if file.suffix == ".onnx":
        run = OnnxRun(file, threads=1)
        return lambda: run(images)
    program = torch.export.load(file).module()
    compiled = torch.compile(program, dynamic=False)
    with torch.no_grad(), torch._inductor.config.patch(freezing=True):
        found, expected = compiled(images), program(images)
        if float((found - expected).norm()) > 0.05 * float(expected.norm()):
            raise RuntimeError(f"{file.name}: the compiled network computes something else than the file")
    return lambda: compiled(images)


def _has_torchao() -> bool:
    """Whether torchao is installed. The import registers the operators of its files, and their int8 kernels."""
    try:
        import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer  # noqa: F401
    except ImportError:
        return False
    return True


if __name__ == "__main__":
    main()
