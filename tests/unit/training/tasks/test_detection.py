"""Detectors end to end: scored, pruned, proven, fine-tuned with their own losses, measured, saved and loaded."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

pytest.importorskip("torchvision")
pytest.importorskip("accelerate")
pytest.importorskip("pycocotools")
pytest.importorskip("defusedxml")

import fec_fast  # noqa: E402
from fec_fast.training.distillation import attention_distance  # noqa: E402
from fec_fast.training.tasks.detection import Detection, evaluate_detector, images_and_targets, num_classes_of  # noqa: E402
from fec_fast.utils.errors import ArgumentError, InputError  # noqa: E402
from fec_fast.vision import zoo  # noqa: E402
from fec_fast.vision.voc import load_voc  # noqa: E402
from helpers.detection import METRICS, assert_all_parts_are_cut, rectangles  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rectangles(tmp_path_factory.mktemp("data") / "voc")


@pytest.fixture
def loaders(folder: Path) -> tuple[DataLoader[Any], DataLoader[Any]]:
    return load_voc(folder, batch_size=4, image_size=96, augment="none")


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return zoo.build("zoo:ssd-small", num_classes=3, image_size=96)


@pytest.mark.slow
def test_a_detector_learns_and_its_metrics_rise(loaders: tuple[DataLoader[Any], DataLoader[Any]]) -> None:
    train, held_out = loaders
    model = small()
    options: dict[str, Any] = {"optimizer": "adamw", "lr": 3e-3, "weight_decay": 0.01, "progress": False}
    result = fec_fast.finetune(model, train, task=Detection(), epochs=15, **options)
    last = result.history[-1]
    assert set(last.metrics) == {"bbox_regression", "classification"}
    assert last.loss == pytest.approx(sum(last.metrics.values()), rel=1e-5)
    assert last.loss < 0.6 * result.history[0].loss
    metrics, found = Detection().evaluate(model, held_out), evaluate_detector(model, held_out)
    assert set(metrics) == METRICS
    assert metrics["map"] == found.coco and metrics["voc/red"] == found.by_class["red"]["voc"]
    assert found.voc > 0.5  # bright rectangles on dark noise: it found most of them
    assert set(found.by_class) == {"red", "blue"}


def test_pruned_detector_is_proven_tuned_saved_and_loaded(
    loaders: tuple[DataLoader[Any], DataLoader[Any]], tmp_path: Path
) -> None:
    train, held_out = loaders
    model = small().eval()
    _end_to_end(model, small(seed=1).eval(), [torch.rand(3, 96, 96)], train, held_out, tmp_path)


@pytest.mark.slow
def test_ssdlite_is_pruned_tuned_saved_and_loaded(folder: Path, tmp_path: Path) -> None:
    # At least two images per batch: it has batch norm on maps of one pixel.
    train, held_out = load_voc(folder, batch_size=2, augment="none", limit=4)
    torch.manual_seed(0)
    model, fresh = (zoo.build("torchvision:ssdlite320_mobilenet_v3_large", num_classes=3).eval() for _ in range(2))
    result = _end_to_end(model, fresh, [torch.rand(3, 128, 128)], train, held_out, tmp_path)
    assert_all_parts_are_cut(result.plan)


def _end_to_end(
    model: nn.Module, fresh: nn.Module, example: list[Tensor], train: Any, held_out: Any, tmp_path: Path
) -> fec_fast.PruneResult:
    scores = fec_fast.score_model(model)
    assert all(torch.isfinite(scores[layer]).all() for layer in scores)
    result = fec_fast.prune(
        model, example, budget=fec_fast.Budget(params=0.5572), criterion="l1", verify=False, recover=None
    )
    assert result.after.parameters <= (1 - 0.5572) * result.before.parameters
    assert fec_fast.verify_equivalence(model, result.model, result.plan, example) < 1e-5
    before = copy.deepcopy(result.model.state_dict())
    options: dict[str, Any] = {"epochs": 1, "lr": 1e-3, "clip_norm": 1.0, "progress": False}
    tuned = fec_fast.finetune(result.model, train, task=Detection("voc"), val_loader=held_out, **options)
    assert tuned.history[0].held_out is not None and 0 <= tuned.history[0].held_out["voc"] <= 1
    assert any(not torch.equal(before[key], value) for key, value in result.model.state_dict().items())
    fec_fast.save(result, tmp_path / "pruned")
    loaded = fec_fast.load(fresh, tmp_path / "pruned").eval()
    with torch.no_grad():
        for expected, got in zip(result.model.eval()(example), loaded(example), strict=True):
            assert all(torch.equal(expected[key], got[key]) for key in expected)
    return result


@pytest.mark.slow
def test_interrupted_training_resumes_to_the_same_bits(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(model: nn.Module, resume: bool) -> dict[str, Tensor]:
        train, _ = load_voc(folder, batch_size=4, image_size=96, augment="microscope", seed=3)
        options: dict[str, Any] = {"epochs": 3, "lr": 1e-3, "progress": False, "checkpoint": tmp_path / str(resume)}
        fec_fast.finetune(model, train, task=Detection(), resume=resume, **options)
        return model.state_dict()

    whole = run(small(), resume=False)
    stopped = small()
    original = fec_fast.training.engine.Trainer.train_epoch

    def stops(self: Any, *arguments: Any) -> Any:
        if len(self.history) == 2:
            raise MemoryError
        return original(self, *arguments)

    monkeypatch.setattr(fec_fast.training.engine.Trainer, "train_epoch", stops)
    with pytest.warns(UserWarning, match="nothing to resume"), pytest.raises(MemoryError):
        run(stopped, resume=True)
    monkeypatch.undo()
    resumed = run(small(seed=5), resume=True)
    assert all(torch.equal(whole[key], value) for key, value in resumed.items())


@pytest.mark.slow
def test_boxes_keep_full_precision_under_bfloat16(folder: Path) -> None:
    """Default boxes equal those of float32 to the bit; losses differ by the rounding of convolutions alone."""
    model = small()
    seen: list[Tensor] = []
    encode = model.box_coder.encode_single

    def watched(boxes: Tensor, anchors: Tensor) -> Tensor:
        seen.append(anchors)
        return encode(boxes, anchors)

    model.box_coder.encode_single = watched
    losses = []
    for precision in ("no", "bf16"):
        # A new loader each time: the random order of an old one would continue.
        train, _ = load_voc(folder, batch_size=4, image_size=96, augment="none")
        options: dict[str, Any] = {"epochs": 1, "lr": 1e-6, "progress": False, "mixed_precision": precision}
        losses.append(fec_fast.finetune(copy.deepcopy(model), train, task=Detection(), **options).history[0].loss)
    half = len(seen) // 2
    assert half and all(torch.equal(a, b) for a, b in zip(seen[:half], seen[half:], strict=True))
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert not model.anchor_generator._forward_pre_hooks and not model.head._forward_hooks


@pytest.mark.parametrize(
    ("options", "name"),
    [({"mixup": 0.2}, "mixup"), ({"label_smoothing": 0.1}, "label_smoothing")],
)
def test_what_has_no_meaning_is_refused_by_name(
    loaders: tuple[DataLoader[Any], DataLoader[Any]], options: dict[str, Any], name: str
) -> None:
    with pytest.raises(ArgumentError, match=f"{name} has no meaning for detection"):
        fec_fast.finetune(small(), loaders[0], task=Detection(), epochs=1, **options)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_features_are_imitated(folder: Path, precision: str) -> None:
    train = load_voc(folder, batch_size=12, image_size=96, augment="none")[0]  # all images in one step
    teacher, heads = small(seed=5), []
    images = teacher.transform(images_and_targets(next(iter(train)))[0])[0].tensors
    teacher.head.register_forward_hook(lambda *called: heads.append(1))
    with torch.no_grad():
        wanted = teacher.eval().backbone.features(images)
    teacher.train()
    loss, after = {}, {}
    for weight in (0.0, 5.0):
        student = small()
        options: dict[str, Any] = {"feature_layers": ["backbone.features"], "feature_weight": weight}
        options |= {"epochs": 1, "lr": 0.01, "momentum": 0.0, "mixed_precision": precision, "progress": False}
        result = fec_fast.finetune(student, train, task=Detection(), teacher=teacher, **options)
        loss[weight] = result.history[0].loss
        assert sum(result.history[0].metrics.values()) == pytest.approx(loss[0.0], rel=1e-5)  # the detector's own
        modules = (*student.modules(), *teacher.modules())
        assert teacher.training and sum(len(module._forward_hooks) for module in modules) == 1
        with torch.no_grad():
            after[weight] = float(attention_distance(student.train().backbone.features(images), wanted))
    with torch.no_grad():
        before = float(attention_distance(small().train().backbone.features(images), wanted))
    assert loss[5.0] - loss[0.0] == pytest.approx(5.0 * before, rel=0.05 if precision == "bf16" else 1e-3)
    assert after[5.0] < 0.99 * after[0.0]
    assert len(heads) == 2  # once per training, in the check: then it is stopped after the imitated layers


def test_teachers_that_cannot_be_imitated_are_refused(loaders: tuple[DataLoader[Any], DataLoader[Any]]) -> None:
    def tried(**options: Any) -> None:
        fec_fast.finetune(small(), loaders[0], task=Detection(), epochs=1, progress=False, **options)

    for options in ({"teacher": small()}, {"feature_layers": ["backbone.features"]}):
        with pytest.raises(ArgumentError, match="give both, teacher and feature_layers"):
            tried(**options)
    with pytest.raises(fec_fast.LayerError, match="no module 'backbone.feature'; nearest: 'backbone.features'"):
        tried(teacher=small(), feature_layers=["backbone.feature"])
    larger = zoo.build("zoo:ssd-small", num_classes=3, image_size=128)
    with pytest.raises(InputError, match=r"maps of \[12, 12\] and the teacher's 'backbone.features' of \[16, 16\]"):
        tried(teacher=larger, feature_layers=["backbone.features"])


def test_a_student_that_resizes_at_random_is_refused(loaders: tuple[DataLoader[Any], DataLoader[Any]]) -> None:
    student, teacher = small(), small()

    def halved(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        # Where gradients are computed: not in the check before training.
        return (nn.functional.avg_pool2d(inputs[0], 2),) if torch.is_grad_enabled() else inputs

    student.backbone.features.register_forward_pre_hook(halved)
    with pytest.raises(InputError, match="resize images alike, and not at random"):
        options = {"feature_layers": ["backbone.features"], "epochs": 1, "progress": False}
        fec_fast.finetune(student, loaders[0], task=Detection(), teacher=teacher, **options)


def _batch(**changed: Any) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    target = {"boxes": torch.tensor([[4.0, 4.0, 40.0, 40.0]]), "labels": torch.tensor([1]), **changed}
    return [torch.rand(3, 96, 96)], [target]


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (_batch(labels=torch.tensor([3])), "the data have 3 classes and the model 2 beside the background"),
        (_batch(labels=torch.tensor([0])), "label 0 in the first batch is not one of the model's classes"),
        (
            _batch(boxes=torch.tensor([[4.0, 4.0, 4.0, 40.0]])),
            r"image 0 of a batch has the box \[4.0, 4.0, 4.0, 40.0\]",
        ),
        (_batch(boxes=torch.tensor([[4.0, 4.0, float("nan"), 40.0]])), "no area"),
        (_batch(labels=torch.tensor([1.0])), "a batch must be a list of images"),
        ((torch.rand(2, 3, 96, 96), torch.tensor([1, 2])), "a batch must be a list of images"),
    ],
)
def test_wrong_data_are_named_before_training(batch: Any, words: str) -> None:
    model = small()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match=words):
        fec_fast.finetune(model, [batch], task=Detection(), epochs=1, progress=False)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_batch_that_the_model_cannot_train_on_is_named_before_training(folder: Path) -> None:
    model = zoo.build("torchvision:ssdlite320_mobilenet_v3_large", num_classes=3)
    train, _ = load_voc(folder, batch_size=1, augment="none")
    with pytest.raises(InputError, match="SSD cannot be run .*Expected more than 1 value per channel when training"):
        fec_fast.finetune(model, train, task=Detection(), epochs=1, progress=False)


def test_classifier_is_refused() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3)

        def forward(self, images: list[Tensor], targets: Any = None) -> Tensor:
            return self.conv(torch.stack(images)).mean((2, 3))

    with pytest.raises(InputError, match="Net in training mode returns float32"):
        fec_fast.finetune(Net(), [_batch()], task=Detection(), epochs=1, progress=False)


def test_measure_needs_images_and_boxes(loaders: tuple[DataLoader[Any], DataLoader[Any]]) -> None:
    with pytest.raises(InputError, match="the loader to evaluate on is empty"):
        evaluate_detector(small(), [])
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    with pytest.raises(InputError, match="no box to find"):
        evaluate_detector(small(), [([torch.rand(3, 96, 96)], [empty])])
    assert images_and_targets(([torch.rand(3, 9, 9)], [empty]))[1] == [empty]
    with pytest.raises(InputError, match="nearest: 'voc'"):
        Detection("vocc")


def _heads() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "ssdlite320_mobilenet_v3_large", {}
    yield "retinanet_resnet50_fpn", {}
    yield "fcos_resnet50_fpn", {}
    yield "fasterrcnn_mobilenet_v3_large_320_fpn", {}


@pytest.mark.parametrize(("name", "options"), list(_heads()))
def test_number_of_classes_is_found_in_torchvisions_detectors(name: str, options: dict[str, Any]) -> None:
    with torch.device("meta"):
        assert num_classes_of(zoo.build(f"torchvision:{name}", num_classes=7, **options)) == 7


def test_recalibration_accepts_lists_of_images(loaders: tuple[DataLoader[Any], DataLoader[Any]]) -> None:
    model = small().eval()
    batch = next(iter(loaders[0]))
    fec_fast.recalibrate(model, [batch])
    norm = model.backbone.features[0][1]
    with torch.no_grad():
        shown = model.backbone.features[0][0](model.transform(batch[0])[0].tensors)
    assert torch.allclose(norm.running_mean, shown.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(norm.running_var, shown.var((0, 2, 3)), rtol=1e-4)
