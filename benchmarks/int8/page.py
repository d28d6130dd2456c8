"""docs/int8.md from benchmarks/results/int8.json."""

from __future__ import annotations

from typing import Any

from benchmarks.common.pages import bullets, code, heading, page_of, paragraph, write_page, written_by
from benchmarks.common.results import measured_on
from benchmarks.common.tables import markdown_table, significant
from benchmarks.study.estimates import Estimate, difference, estimate, unpacked
from fec_fast import Budget

NETWORKS = {
    "resnet20": "ResNet-20",
    "resnet56": "ResNet-56",
    "vgg16": "VGG-16-BN",
    "mobilenetv2": "MobileNetV2",
    "resnet-digits": "ResNet on digits",
    "vgg-digits": "VGG on digits",
}
# The options of `prune`; none: the dense network.
VARIANTS: dict[str, dict[str, Any]] = {
    "dense": {},
    "pruned": {"budget": Budget.remove(macs=0.5)},
    "pruned, round_to=8": {"budget": Budget.remove(macs=0.5), "round_to": 8},
}
PT2E, COMPILED = "PT2E", "float32, torch.compile"
FORMS = ("float32", "int8", "int8, percentile", "int8, first and last layer float32", PT2E)
TIMED = ("float32", "int8", COMPILED, PT2E)
AIM = 0.5  # percentage points that int8 may cost


def page(document: dict[str, Any]) -> str:
    """The whole page.

    Args:
        document: The content of the result file.
    """
    rows = Rows(document)
    return page_of(
        "Prune and quantise",
        *_method(document),
        *_use(),
        heading("What int8 costs after pruning"),
        *_aim(rows),
        measured_on(document, document["rows"]) if document.get("rows") else "",
        paragraph("The command of these measurements; `FOLDER` holds the images and weights of the [study](study.md):"),
        code(
            "pip install '.[bench,vision,train,onnx,torchao]'", "python -m benchmarks.int8 --data FOLDER", language="sh"
        ),
        heading("Accuracy and size"),
        paragraph(
            "Accuracy in %, with its 95 % interval over the test images. *Against float32*: the difference to the",
            "float32 network of the same line of work, image by image. *Same*: the share of the 512 calibration images",
            "for which the largest output is the same; `export_int8` and `export_pt2e` print it.",
        ),
        *(f"**{label}**\n\n{_accuracies(rows, name)}" for name, label in NETWORKS.items() if rows.variants(name)),
        heading("Latency"),
        *_latency(rows),
        heading("Limits"),
        _limits(),
    )


class Rows:
    """The rows of the result file by network, variant and form."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.by_key = {tuple(row["key"]): row for row in document.get("rows", [])}

    def variants(self, name: str) -> list[str]:
        """The variants of a network that were measured in float32 and int8."""
        return [variant for variant in VARIANTS if {(name, variant, form) for form in FORMS[:2]} <= self.by_key.keys()]

    def get(self, name: str, variant: str, form: str) -> dict[str, Any] | None:
        """A row, if it was measured."""
        return self.by_key.get((name, variant, form))

    def accuracy(self, name: str, variant: str, form: str) -> Estimate:
        """The accuracy of a row that was measured."""
        return estimate(self._correct(name, variant, form))

    def loss(self, name: str, variant: str, form: str) -> Estimate:
        """The difference of a form to the float32 network, on the same images."""
        return difference(self._correct(name, variant, form), self._correct(name, variant, "float32"))

    def milliseconds(self, name: str) -> dict[str, dict[str, float]] | None:
        """Latencies by images per call, and by variant and form."""
        row = self.by_key.get((name, "latency"))
        return None if row is None else dict(row["milliseconds"])

    def _correct(self, name: str, variant: str, form: str) -> dict[int, Any]:
        row = self.by_key[name, variant, form]
        return {0: unpacked(row["right"], row["images"])}


def _method(document: dict[str, Any]) -> list[str]:
    return [
        written_by("python -m benchmarks.int8 --page-only", "int8.json"),
        paragraph(
            "Pruning removes channels, int8 makes the remaining numbers smaller: they multiply. The order is: prune,",
            "recover or train, quantise. Quantised weights cannot be pruned.",
        ),
        paragraph(
            "Here networks trained on CIFAR-10 lose half of their multiply-accumulates by",
            "`prune(..., budget=Budget.remove(macs=0.5), recover=images)` with 1,000 training images and no training",
            "afterwards. The first 512 of these images calibrate the int8 networks. The accuracy is that of 4,000 test",
            "images (450 of the digits), on which nothing was chosen.",
        ),
    ]


def _use() -> list[str]:
    return [
        heading("How to"),
        code(
            "import torch",
            "",
            "import fec_fast",
            "",
            "torch.manual_seed(0)",
            'model = fec_fast.zoo.build("zoo:resnet-digits").eval()  # yours: a trained network',
            "images = torch.randn(128, 1, 8, 8)  # yours: a loader of training images, prepared as for the network",
            "result = fec_fast.prune(model, images[:1], budget=fec_fast.Budget.remove(macs=0.5), recover=images)",
            "",
            'int8 = fec_fast.export_int8(result.model, "pruned-int8.onnx", images)',
            "print(int8)",
            "assert int8.bytes < 0.4 * int8.float_bytes and int8.agreement.images == 128",
            'fec_fast.save(result, "digits-pruned")',
            language="python",
        ),
        paragraph(
            "`export_int8` writes the float network as ONNX and compares it with torch; quantises it by ONNX Runtime",
            "(quantise and dequantise operators, QDQ; one scale per output channel of a weight); runs both in ONNX",
            "Runtime on the calibration images; and prints how near they are. Only then the file appears. The command:",
        ),
        code(
            "fec-fast export int8 zoo:resnet-digits digits-pruned --calibrate sklearn:digits --out digits-int8.onnx",
        ),
        paragraph(
            'For `torch.compile` on an x86 CPU, `fec_fast.export_pt2e(result.model, "pruned-int8.pt2", images)` and',
            "`fec-fast export pt2e` (`pip install '.[torchao]'`) write a program of `torch.export`. With the",
            "environment variable `TORCHINDUCTOR_FREEZING=1` it runs in int8 so:",
        ),
        "<!-- not run: needs an environment variable -->\n",
        code(
            "import torch",
            "import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer  # the file's operators, int8 kernels",
            "",
            'network = torch.compile(torch.export.load("pruned-int8.pt2").module(), dynamic=False)',
            "with torch.no_grad():",
            "    outputs = network(images)",
            language="python",
        ),
        paragraph(
            "Without the variable, the import or `no_grad`, torch computes in float32 what the integers stand for, and",
            "says nothing. Each number of images per call is compiled once. After eight of them torch warns of its",
            "`recompile_limit` and computes others in float32: give batches of one size.",
        ),
    ]


def _aim(rows: Rows) -> list[str]:
    lines = []
    for name, label in NETWORKS.items():
        for variant in rows.variants(name):
            if variant == "dense":
                continue
            loss = rows.loss(name, variant, "int8")
            verdict = "met" if loss.mean >= -AIM else "missed"
            repaired = [
                f"{form.removeprefix('int8, ')}: {rows.loss(name, variant, form).text('+')}"
                for form in FORMS[2:4]
                if rows.get(name, variant, form)
            ]
            more = f"; {'; '.join(repaired)}" if verdict == "missed" else ""
            lines.append(f"{label}, {variant}: {loss.text('+')} points, {verdict}{more}.")
    aim = f"The aim: after pruning, int8 costs at most {AIM} percentage points."
    return [paragraph(aim), bullets(lines)]


def _accuracies(rows: Rows, name: str) -> str:
    table = []
    dense = rows.get(name, "dense", "float32")
    for variant in rows.variants(name):
        for form in FORMS:
            row = rows.get(name, variant, form)
            if row is not None:
                against = "" if form == "float32" else rows.loss(name, variant, form).text("+")
                same = "" if row.get("same") is None else f"{100 * row['same']:.1f} %"
                smaller = f"{dense['bytes'] / row['bytes']:.1f}" if dense else ""
                accuracy = rows.accuracy(name, variant, form).text()
                table.append((variant, form, f"{row['bytes'] / 1e6:.2f}", smaller, accuracy, against, same))
    header = ("network", "numbers", "MB", "times smaller", "accuracy", "against float32", "same")
    return markdown_table(header, table)


def _latency(rows: Rows) -> list[str]:
    table = []
    for name, label in NETWORKS.items():
        milliseconds = rows.milliseconds(name)
        if milliseconds is None:
            continue
        for variant in VARIANTS:
            for form in TIMED:
                cells = []
                for by_form in milliseconds.values():
                    value, dense = by_form.get(f"{variant} {form}"), by_form["dense float32"]
                    cells += ["", ""] if value is None else [significant(value), f"{dense / value:.2f}"]
                if any(cells):
                    table.append((label, variant, form, *cells))
    header = ("network", "", "numbers", "ms, 1 image", "times faster", "ms, 64 images", "times faster")
    return [
        paragraph(
            "CPU milliseconds per call on one thread, the median of 30 calls, all files of a network in turns.",
            f"*float32* and *int8* run in ONNX Runtime; *{COMPILED}* and *{PT2E}* are compiled by torch, weights",
            "frozen.",
            "*Times faster*: than the dense float32 network in ONNX Runtime.",
        ),
        markdown_table(header, table),
        bullets([*_speed_of_pruning(rows), *_speed_of_pt2e(rows)]),
        paragraph("Measure on the machine that will run the network: [tutorials/onnx.md](tutorials/onnx.md)."),
    ]


def _speed_of_pruning(rows: Rows) -> list[str]:
    """How much faster pruning makes the int8 networks, which like widths that are multiples of the kernels' blocks."""
    lines = []
    for name, label in NETWORKS.items():
        milliseconds = rows.milliseconds(name)
        if milliseconds is not None:
            parts = []
            for variant in list(VARIANTS)[1:]:
                times = [by["dense int8"] / by[f"{variant} int8"] for by in milliseconds.values()]
                slower = ", slower" if min(times) < 1 else ""
                parts.append(f"{variant}: {' and '.join(f'{time:.2f}' for time in times)} times as fast{slower}")
            lines.append(f"{label} in int8, against dense in int8, 1 image and 64; {'; '.join(parts)}.")
    return lines


def _speed_of_pt2e(rows: Rows) -> list[str]:
    """How fast the int8 programs of torch are beside those of ONNX Runtime."""
    ratios: dict[str, list[float]] = {}
    for milliseconds in filter(None, map(rows.milliseconds, NETWORKS)):
        for images, by_form in milliseconds.items():
            present = [variant for variant in VARIANTS if f"{variant} {PT2E}" in by_form]
            found = [by_form[f"{variant} int8"] / by_form[f"{variant} {PT2E}"] for variant in present]
            ratios.setdefault(images, []).extend(found)
    spans = [
        f"{min(found):.2f} to {max(found):.2f} with {images} {'image' if images == '1' else 'images'}"
        for images, found in ratios.items()
        if found
    ]
    return [f"{PT2E} against int8 in ONNX Runtime, times as fast: {'; '.join(spans)}."] if spans else []


def _limits() -> str:
    return bullets(
        [
            "One input tensor `[B, ...]`, weights in float32; other networks are refused.",
            "The agreement is that of the machine that writes the file. On x86 CPUs without VNNI, sums of int8 "
            "products may saturate: compare there before you use the file.",
            "ONNX Runtime's calibration by entropy is not offered: with its 128 bins it found the same ranges as "
            "`minmax` on ResNet-20, to the last bit of accuracy and error.",
            "The file of PT2E describes every operator in JSON; for small networks that is more than their weights.",
            'Where the agreement is poor, a warning says so. Then: more images; `method="percentile"`; the first and '
            "the last layer in `float_layers`.",
        ]
    )


def write(document: dict[str, Any]) -> None:
    """Writes the page.

    Args:
        document: The content of the result file.
    """
    write_page("int8.md", page(document))
