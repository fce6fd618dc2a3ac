"""Verification end to end: real bundles, real images, the result in the manifest."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from PIL import Image
from small_models import CLASSIFIER, SPEC, classifier_constants, graph, pictures
from specs import sized

from infer import open_bundle
from infer.bundle import read_manifest, write_manifest
from infer.datasets.imagenet import imagenet1k, validation_targets
from infer.errors import BundleError, ImageError, InputError, UntrainedError
from infer.verify.run import verify_bundle


@pytest.fixture
def pair(own, shipped):
    """A copy of the fp16 bundle with its fp32 sibling beside it."""
    fp16 = own(shipped("fp16"))
    shutil.copytree(shipped("fp32"), fp16.parent / shipped("fp32").name)
    return fp16


def change(folder, **fields):
    manifest = read_manifest(folder)
    for name, value in fields.items():
        part, _, leaf = name.rpartition("__")
        setattr(getattr(manifest, part) if part else manifest, leaf, value)
    write_manifest(folder, manifest)


def stored(folder):
    """What the manifest keeps, in the form that ``verify`` prints."""
    return [measured.to_json() for measured in read_manifest(folder).accuracy]


def test_the_sibling_is_found_and_the_result_is_stored(pair, labelled):
    result = verify_bundle(pair, [str(labelled)])
    found = result.accuracy.to_json()
    assert (found["images"], found["labelled"]) == (80, 80)
    assert found["top1"] > 80
    assert found["agreement"] > 98
    assert 0 < found["max_logit_difference"] < 0.5
    assert found["reference"] == "iresnet50_fashion-fp32 on onnxruntime"
    assert (found["data"], found["target"], found["outcome"]) == ("photos", "openvino", "inconclusive")
    assert result.failures == []
    assert stored(pair) == [found]


def test_measuring_again_replaces_and_another_target_adds(pair, labelled):
    verify_bundle(pair, [str(labelled)], limit=20)
    second = verify_bundle(pair, [str(labelled)], limit=40).accuracy.to_json()
    assert stored(pair) == [second]
    other = verify_bundle(pair, [str(labelled)], limit=20, target="onnxruntime").accuracy.to_json()
    assert stored(pair) == [second, other]
    assert (second["images"], other["images"], other["target"]) == (40, 20, "onnxruntime")


def test_fp32_is_compared_with_the_reference_engine(own, shipped, labelled):
    found = verify_bundle(own(shipped("fp32")), [str(labelled)]).accuracy.to_json()
    assert (found["agreement"], found["disagreeing"]) == (100.0, 0)
    assert found["max_logit_difference"] < 1e-3
    assert found["outcome"] == "inconclusive"  # of 80 images


def test_a_reference_engine_can_be_chosen(pair, labelled):
    found = verify_bundle(pair, [str(labelled)], limit=20, reference_target="openvino").accuracy.to_json()
    assert found["reference"] == "iresnet50_fashion-fp32 on openvino"


def test_a_threshold_that_is_missed(pair, labelled, monkeypatch):
    from infer.runner import Runner

    original = Runner.stream_pairs

    def shifted(self, batches):
        for key, outputs in original(self, batches):
            yield key, outputs._replace(classes=(outputs.classes + 1) % 10)

    monkeypatch.setattr(Runner, "stream_pairs", shifted)
    found = verify_bundle(pair, [str(labelled)], limit=40).accuracy.to_json()
    assert found["outcome"] == "failed"
    assert found["agreement"] == 0
    assert stored(pair)[0]["outcome"] == "failed"


@pytest.fixture
def large(labelled, tmp_path):
    """The same images as JPEG files large enough to be decoded at reduced size, and one that is broken."""
    for path in sorted(labelled.rglob("*.png"))[::2]:
        target = tmp_path / "large" / path.parent.name / f"{path.stem}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).convert("RGB").resize((512, 512), Image.Resampling.BICUBIC).save(target, quality=90)
    target.with_stem("zzz").write_bytes(target.read_bytes()[:200])
    return tmp_path / "large"


def test_fast_decoding_is_compared_with_exact_pixels(pair, large):
    exact = verify_bundle(pair, [str(large)]).accuracy.to_json()
    result = verify_bundle(pair, [str(large)], fast_decode=True)
    fast = result.accuracy.to_json()
    assert (exact["fast_decode"], fast["fast_decode"]) == (False, True)
    assert fast["images"] == exact["images"] == 40 and len(result.failures) == fast["counts"]["unreadable"] == 1
    assert fast["reference_top1"] == exact["reference_top1"]
    assert fast["mean_logit_difference"] > 3 * exact["mean_logit_difference"]  # other pixels than FP32's
    assert fast["agreement"] > 90
    assert stored(pair) == [exact, fast]  # neither replaces the other


def test_no_reference_at_all(own, shipped, labelled):
    bundle = own(shipped("fp16"))
    found = verify_bundle(bundle, [str(labelled)], limit=20).accuracy.to_json()
    assert (found["reference"], found["outcome"]) == (None, "failed")
    assert "pass --reference" in found["verdict"]
    assert found["top1"] > 60


def test_a_reference_that_is_not_fp32(pair, labelled, shipped):
    with pytest.raises(InputError, match=r"is bf16; the reference must be an fp32 bundle"):
        verify_bundle(pair, [str(labelled)], reference=shipped("bf16"))


SQUASHED = sized(72, 64, (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model__weights_sha256": "0" * 64, "model__weights": "mine.pth"}, r"built from other weights \(mine.pth\)"),
        ({"model__weights_sha256": ""}, "was built from other weights"),
        ({"preprocessing": SQUASHED}, "differ in pre-processing"),
    ],
)
def test_a_reference_of_something_else(pair, labelled, fields, message):
    change(pair.parent / "iresnet50_fashion-fp32", **fields)
    with pytest.raises(InputError, match=message):
        verify_bundle(pair, [str(labelled)])
    assert read_manifest(pair).accuracy == []


def test_the_same_weights_under_another_name_are_the_same(pair, labelled):
    change(pair.parent / "iresnet50_fashion-fp32", model__weights="copy.safetensors")
    assert verify_bundle(pair, [str(labelled)], limit=20).accuracy.to_json()["agreement"] > 90


def test_a_reference_that_does_not_exist(pair, labelled, tmp_path):
    with pytest.raises(BundleError, match="is not a bundle"):
        verify_bundle(pair, [str(labelled)], reference=tmp_path / "none")


def test_random_weights_of_another_model_are_no_reference(own, untrained, labelled, tmp_path):
    bundle, data = own(untrained), with_classes(tmp_path / "data", labelled)
    other = shutil.copytree(untrained, bundle.parent / "other")
    change(other, model__name="narrow-iresnet34")
    with pytest.raises(InputError, match="was built from other weights"):
        verify_bundle(bundle, [str(data)], reference=other, allow_untrained=True)


def test_untrained_bundles_are_refused(own, untrained, labelled):
    bundle = own(untrained)
    with pytest.raises(UntrainedError, match="--allow-untrained"):
        verify_bundle(bundle, [str(labelled)])
    assert read_manifest(bundle).accuracy == []


def with_classes(folder, labelled, count=3):
    """Class folders for the untrained and tiny models, whose classes are numbers."""
    for number, source in enumerate(sorted(labelled.iterdir())[:count]):
        shutil.copytree(source, folder / str(number))
    return folder


def test_untrained_bundles_are_measured_when_told_to(own, untrained, labelled, tmp_path):
    data = with_classes(tmp_path / "data", labelled)
    found = verify_bundle(own(untrained), [str(data)], allow_untrained=True).accuracy.to_json()
    assert found["images"] == 24
    assert found["agreement"] == 100


def test_unreadable_images_are_named_and_counted(pair, labelled, tmp_path):
    data = shutil.copytree(labelled, tmp_path / "data")
    broken = next((data / "bag").iterdir())
    broken.write_bytes(broken.read_bytes()[:50])
    (data / "coat/none.jpg").write_bytes(b"")
    result = verify_bundle(pair, [str(data)])
    assert result.accuracy.to_json()["images"] == 79
    assert len(result.failures) == 2
    assert str(broken) in result.failures[0]
    assert "none.jpg" in result.failures[1]
    with pytest.raises(ImageError, match=broken.name):
        verify_bundle(pair, [str(data)], strict=True)


def test_no_readable_image_at_all(pair, tmp_path):
    (tmp_path / "data/bag").mkdir(parents=True)
    for number in range(3):
        (tmp_path / f"data/bag/{number}.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"not one of 3 images could be read; the first: .*0.png"):
        verify_bundle(pair, [str(tmp_path / "data")])
    assert read_manifest(pair).accuracy == []


def test_no_data(pair, tmp_path):
    with pytest.raises(InputError, match="none: no such file or folder"):
        verify_bundle(pair, [str(tmp_path / "none")])


def test_the_manifest_stays_plain_json(pair, labelled):
    verify_bundle(pair, [str(labelled)], limit=20)
    json.loads((pair / "manifest.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


# --- ImageNet ---------------------------------------------------------------------------------------------------------

NUMBERS = list(range(1, 61))


@pytest.fixture(scope="module")
def thousand(build_once, tmp_path_factory):
    """A bundle of the 1,000 classes of ImageNet, fp32. Read-only."""
    folder = tmp_path_factory.mktemp("thousand")
    outputs = [("y", TensorProto.FLOAT, ["N", 1000])]
    onnx.save(graph(CLASSIFIER, classifier_constants(classes=1000), outputs=outputs), folder / "net.onnx")
    (folder / "names.txt").write_text("\n".join(imagenet1k().names) + "\n")
    return build_once(
        "thousand-fp32", model="thousand", onnx=folder / "net.onnx", precision="fp32", preprocessing=SPEC,
        labels=folder / "names.txt",
    )  # fmt: skip


@pytest.fixture(scope="module")
def validation(tmp_path_factory):
    """60 images called like the first of the validation set, flat."""
    folder = tmp_path_factory.mktemp("imagenet") / "val"
    folder.mkdir()
    for number, image in zip(NUMBERS, pictures(len(NUMBERS)), strict=True):
        Image.fromarray(image).save(folder / f"ILSVRC2012_val_{number:08d}.png")
    return folder


def predicted(bundle, folder):
    with open_bundle(bundle) as runner:
        return np.array([p.top[0].index for p in runner.classify(sorted(folder.iterdir()))])


def test_real_labels(own, thousand, validation, tmp_path):
    found = predicted(thousand, validation)
    lists = [[] for _ in range(50_000)]
    for number in NUMBERS[:30]:  # right for every second of them; the other 30 have no label
        lists[number - 1] = [int((found[number - 1] + number % 2) % 1000), int((found[number - 1] + 5) % 1000)]
    (tmp_path / "real.json").write_text(json.dumps(lists))
    record = verify_bundle(own(thousand), [str(validation)], real=tmp_path / "real.json").accuracy.to_json()
    assert (record["real_images"], record["real_top1"], record["reference_real_top1"]) == (30, 50.0, 50.0)
    assert record["images"] == 60
    assert record["top1"] == pytest.approx(100 * np.mean(found == validation_targets()[:60]), abs=1e-3)


def test_the_published_accuracy_is_compared(own, thousand, validation):
    bundle = own(thousand)
    assert verify_bundle(bundle, [str(validation)]).accuracy.to_json()["diagnosis"]["kind"] == "unknown"
    change(bundle, model__top1=77.31, model__published="a paper")
    found = verify_bundle(bundle, [str(validation)]).accuracy.to_json()["diagnosis"]
    assert found["kind"] == "subset"
    assert "published are 77.31 %; with 60 images the standard error is" in found["text"]


def test_wrong_pre_processing_is_suspected(own, thousand, validation, monkeypatch):
    from infer.verify import diagnosis

    monkeypatch.setattr(diagnosis, "SUBSET", 50)
    bundle = own(thousand)
    change(bundle, model__top1=77.31)
    found = verify_bundle(bundle, [str(validation)]).accuracy.to_json()["diagnosis"]
    assert found["kind"] == "pre-processing"
    assert "built with resize 32 in place of 256; crop 32 in place of 224" in found["text"]
    shuffled = validation.parent / "truth.txt"
    names = sorted(path.name for path in validation.iterdir())
    shuffled.write_text(
        "".join(f"{name} {(t + 1) % 1000}\n" for name, t in zip(names, validation_targets(), strict=False))
    )
    found = verify_bundle(bundle, [str(validation)], ground_truth=shuffled).accuracy.to_json()["diagnosis"]
    assert found["kind"] == "labels"
    assert found["text"].startswith("60 of 60 images have another class")


def test_the_csv_names_every_image(own, thousand, validation, tmp_path):
    verify_bundle(own(thousand), [str(validation)], csv_file=tmp_path / "rows.csv")
    rows = list(csv.DictReader((tmp_path / "rows.csv").open(newline="")))
    assert [row["name"] for row in rows] == [str(path) for path in sorted(validation.iterdir())]
    assert [int(row["predicted"]) for row in rows] == predicted(thousand, validation).tolist()
    assert rows[0]["true_label"] == imagenet1k().names[65]
    assert {row["agrees"] for row in rows} == {"True"}
