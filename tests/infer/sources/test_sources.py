"""Finding images where a command line points, and naming what cannot be read."""

from __future__ import annotations

import gzip
import io
import os
import random
import re
import tarfile
import warnings

import pytest
from PIL import Image

from infer.errors import ImageError, InputError
from infer.sources import Skipped, count_records, iter_records, read_list
from infer.sources import tar as tar_source


def png(value=0):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def fill(root, *names):
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))


def write_tar(path, members, mode="w"):
    """``members``: (name, bytes) or ready TarInfo."""
    with tarfile.open(path, mode) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))


def members(*paths, **options):
    return [record.member for record in iter_records(paths, **options)]


def defects(*paths):
    return {record.name: record.defect for record in iter_records(paths) if record.defect is not None}


def test_folders_are_searched_in_a_fixed_order(tmp_path):
    names = ["z.png", "B.JPEG", "a/2.webp", "a/10.jpg", "a/b/c.BMP", "c/x.Png"]
    shuffled = names.copy()
    random.Random(0).shuffle(shuffled)
    fill(tmp_path, *shuffled)
    fill(tmp_path, "notes.txt", "a/labels.csv", ".hidden.png", "a/._10.jpg", ".cache/x.png")
    records = list(iter_records([tmp_path]))
    assert [r.member for r in records] == ["B.JPEG", "z.png", "a/10.jpg", "a/2.webp", "a/b/c.BMP", "c/x.Png"]
    assert [r.name for r in records] == [str(tmp_path / r.member) for r in records]
    assert all(r.source == tmp_path and not r.sequential for r in records)
    assert records[3].load() == (tmp_path / "a/2.webp").read_bytes()


def test_many_files_are_sorted(tmp_path):
    names = [f"{number:03d}.png" for number in range(60)]
    fill(tmp_path, *random.Random(1).sample(names, 60))
    assert members(tmp_path) == names


def test_arguments_keep_their_order_and_files_need_no_extension(tmp_path):
    fill(tmp_path, "photo", "f/1.png", "b.jpg")
    assert members(tmp_path / "photo", str(tmp_path / "f"), tmp_path / "b.jpg") == ["photo", "1.png", "b.jpg"]


def test_patterns(tmp_path):
    fill(tmp_path, "a/2.png", "a/1.PNG", "a/readme.md", "b/3.jpg", "b/deep/4.jpg", "odd[1].png")
    write_tar(tmp_path / "t.tar", [("m.png", png())])
    assert members(f"{tmp_path}/a/*") == ["1.PNG", "2.png"]
    assert members(f"{tmp_path}/*/[23].*") == ["2.png", "3.jpg"]
    assert members(f"{tmp_path}/**/4.jpg") == ["4.jpg"]
    assert members(f"{tmp_path}/[bt]*") == ["3.jpg", "deep/4.jpg", "m.png"]
    assert members(f"{tmp_path}/odd[1].png") == ["odd[1].png"], "a file that exists is no pattern"
    found = defects(f"{tmp_path}/a/1.PNG", f"{tmp_path}/*.gif", f"{tmp_path}/a/*.md")
    assert found == {
        f"{tmp_path}/*.gif": "nothing matches this pattern",
        f"{tmp_path}/a/*.md": "none of 1 matches is an image",
    }


def test_links_are_followed_and_loops_end(tmp_path):
    fill(tmp_path / "real", "x.png")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/linked").symlink_to(tmp_path / "real")
    (tmp_path / "real/back").symlink_to(tmp_path / "root")
    (tmp_path / "root/broken.png").symlink_to(tmp_path / "nowhere.png")
    records = list(iter_records([tmp_path / "root"]))
    assert [r.member for r in records] == ["broken.png", "linked/x.png"]
    with pytest.raises(ImageError, match=r"broken\.png: no such file"):
        records[0].load()


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(tmp_path):
    fill(tmp_path, "ok.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.tar").write_bytes(b"not a tar file" * 100)
    (tmp_path / "empty.tar").write_bytes(b"")
    write_tar(tmp_path / "texts.tar", [("a.txt", b"a")])
    paths = [tmp_path / name for name in ("missing.png", "empty", "bad.tar", "empty.tar", "texts.tar", "ok.png")]
    records = list(iter_records([*paths, "", "nul\0"]))
    assert [r.name for r in records if r.defect is None] == [str(tmp_path / "ok.png")]
    reasons = {r.name: r.defect for r in records if r.defect is not None}
    assert reasons[str(tmp_path / "missing.png")] == "no such file or folder"
    assert reasons[str(tmp_path / "empty")] == "no image in this folder"
    assert "not a tar file" in reasons[str(tmp_path / "bad.tar")]
    assert "tar" in reasons[str(tmp_path / "empty.tar")]
    assert reasons[str(tmp_path / "texts.tar")] == "no image in this tar file (passed over: 1 .txt)"
    assert reasons["''"] == "an empty path" and "cannot be read" in reasons["nul\0"]
    for record in records:
        if record.defect is not None:
            with pytest.raises(ImageError, match="^" + re.escape(record.name)):
                record.load()


def test_no_image_at_all_is_an_error_that_says_why(tmp_path):
    with pytest.raises(InputError, match=r"no image found .*gone: no such file or folder.*and 2 more"):
        list(iter_records([tmp_path / "gone", *(tmp_path / f"gone{i}" for i in range(6))]))
    with pytest.raises(InputError, match="nothing given"):
        list(iter_records([]))
    write_tar(tmp_path / "t.tar", [("m.png", png())])
    with pytest.raises(InputError, match=rf"but 1 tar or Parquet files: name them, {tmp_path}/\*\.tar"):
        list(iter_records([tmp_path]))
    write_tar(tmp_path / "labels.tar", [("m.cls", b"1")])
    with pytest.raises(InputError, match="no image found"):
        list(iter_records([tmp_path / "labels.tar"], also=(".cls",)))


@pytest.mark.parametrize(
    ("suffix", "mode"), [("tar", "w"), ("tar.gz", "w:gz"), ("TGZ", "w:gz"), ("tar.xz", "w:xz"), ("tar.bz2", "w:bz2")]
)
def test_tar_members_in_their_order(tmp_path, monkeypatch, suffix, mode):
    path = tmp_path / f"shard.{suffix}"
    content = [
        ("./n2/b.PNG", png(1)), ("n1/a.png", png(2)), ("n1/notes.txt", b"x"), ("n1/._a.png", b"x"),
        ("/top.jpg", png(3)), (".hid/a.png", b"x"), ("../up.png", png(4)), ("a.cls", b"7"),
    ]  # fmt: skip
    directory = tarfile.TarInfo("n3.png")
    directory.type = tarfile.DIRTYPE
    write_tar(path, [*content, directory], mode)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    records = list(iter_records([path]))
    assert [r.member for r in records] == ["n2/b.PNG", "n1/a.png", "top.jpg", "../up.png"]
    assert [r.name for r in records] == [f"{path}:{r.member}" for r in records]
    assert all(r.sequential == (mode != "w") and r.source == path for r in records)
    for order in ([0, 1, 2, 3], [3, 2, 0, 1]):
        assert [records[i].load() for i in order] == [png((1, 2, 3, 4)[i]) for i in order]
    assert members(path, also=(".cls",))[-1] == "a.cls"
    assert sorted(tmp_path.rglob("*")) == before, "nothing is extracted"


def test_reading_while_listing_needs_one_pass(tmp_path, monkeypatch):
    rewinds = []
    rewind = gzip._GzipReader._rewind
    monkeypatch.setattr(gzip._GzipReader, "_rewind", lambda reader: (rewinds.append(reader), rewind(reader)))
    path = tmp_path / "t.tar.gz"
    rng = random.Random(0)
    contents = [(f"{i}.png", rng.randbytes(rng.choice([512, 1024, 100, 50000, 513]))) for i in range(60)]
    write_tar(path, contents, "w:gz")
    records = iter_records([path])
    for record, (name, data) in zip(records, contents, strict=True):
        assert record.member == name and record.load() == data
    assert len(rewinds) <= 1  # from the last block, to see that the end is one
    first = next(iter_records([path]))
    assert [first.load(), first.load()] == [contents[0][1]] * 2
    assert len(rewinds) >= 1, "or this test counts nothing"


def test_links_in_a_tar_file_are_named(tmp_path):
    link = tarfile.TarInfo("link.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    write_tar(tmp_path / "t.tar", [("a.png", png()), link])
    assert defects(tmp_path / "t.tar") == {f"{tmp_path}/t.tar:link.png": "a link or special file inside a tar file"}


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_truncated_tar_file_gives_what_is_there_and_says_so(tmp_path, mode):
    path = tmp_path / ("t.tar.gz" if mode == "w:gz" else "t.tar")
    noise = random.Random(0)
    write_tar(path, [(f"{i}.png", noise.randbytes(3000)) for i in range(20)], mode)
    whole = path.read_bytes()
    for cut in (len(whole) // 3, len(whole) // 2, len(whole) // 2 + 700):
        path.write_bytes(whole[:cut])
        readable, named = 0, 0
        for record in iter_records([path]):
            try:
                assert len(record.load()) == 3000
                readable += 1
            except ImageError as error:
                assert str(path) in str(error)
                named += 1
        assert 3 <= readable < 20 and named >= 1


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path):
    path = tmp_path / "t.tar"
    write_tar(path, [(f"{i}.png", png()) for i in range(4)])
    data = bytearray(path.read_bytes())
    data[2 * 1024 + 5] ^= 0xFF  # each member is a header and one block
    path.write_bytes(data)
    records = list(iter_records([path]))
    assert [r.member for r in records] == ["0.png", "1.png", ""]
    assert records[-1].name == str(path)
    assert records[-1].defect == "damaged after 2 images (damaged header at byte 2048)"


def test_a_damaged_compressed_stream_is_named(tmp_path):
    path = tmp_path / "t.tar.gz"
    noise = random.Random(0)
    write_tar(path, [(f"{i}.png", noise.randbytes(20000)) for i in range(6)], "w:gz")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 400] = bytes(400)
    path.write_bytes(data)
    good, named = 0, []
    for record in iter_records([path]):
        try:
            assert len(record.load()) == 20000
            good += 1
        except ImageError as error:
            named.append(str(error))
    assert named and all(str(path) in message for message in named)
    assert good < 6


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_cut_between_two_members_says_so(tmp_path, mode):
    path = tmp_path / f"t.tar{mode[1:].replace(':', '.')}"
    write_tar(path, [("a.png", png(1)), ("b.png", png(2)), ("c.png", png(3))], mode)
    data = gzip.decompress(path.read_bytes()) if mode == "w:gz" else path.read_bytes()
    path.write_bytes(gzip.compress(data[: 4 * 512]) if mode == "w:gz" else data[: 4 * 512])
    assert members(path) == ["a.png", "b.png", ""]
    assert [r.defect for r in iter_records([path]) if r.defect] == [
        "it ends without an end mark, so it may have been cut off, after 2 images"
    ]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("padding", [1024, 10240])
def test_tar_files_put_together_by_cat_say_so(tmp_path, mode, padding):
    parts = []
    for name in ("a.png", "b.png"):
        write_tar(tmp_path / "part.tar", [(name, png(1))], mode)
        data = (tmp_path / "part.tar").read_bytes()
        plain = gzip.decompress(data) if mode == "w:gz" else data
        plain = plain.rstrip(b"\0") + bytes(-len(plain.rstrip(b"\0")) % 512 + padding)
        parts.append(gzip.compress(plain) if mode == "w:gz" else plain)
    path = tmp_path / f"t.tar{mode[1:].replace(':', '.')}"
    path.write_bytes(b"".join(parts))
    assert members(path) == ["a.png", ""]
    assert "more data follows behind its end, as when tar files are put together with cat" in defects(path)[str(path)]
    path.write_bytes(parts[0])
    assert members(path) == ["a.png"]


def test_a_member_of_many_gigabytes_is_not_read(tmp_path):
    path = tmp_path / "t.tar"
    info = tarfile.TarInfo("huge.png")
    info.size = 1 << 40
    with path.open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate((1 << 40) + 2048)
    (record,) = iter_records([path])
    with pytest.raises(ImageError, match=r"huge\.png: 1099511627776 bytes"):
        record.load()


def test_tar_files_are_closed(tmp_path):
    path = tmp_path / "t.tar"
    write_tar(path, [("a.png", png())])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        records = list(iter_records([path]))
        tar = records[0].read.func.__self__._tar
        assert not tar.closed and not tar.members
        del records
        assert tar.closed


def test_pipes_do_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    fill(tmp_path, "ok.png")
    records = list(iter_records([tmp_path]))
    assert [r.member for r in records] == ["ok.png", "pipe.png"]
    with pytest.raises(ImageError, match="not a regular file"):
        records[1].load()


def test_names_are_those_of_the_files(tmp_path):
    names = [
        os.fsdecode(b"\xff\n\x1b[31m.png"),
        "Straße 東京.png",
        "Screenshot 2026-01-01 at 9.41.00\u202fAM.png",
        "a\u200db\u3000c.png",
    ]
    fill(tmp_path, *names)
    assert {record.name for record in iter_records([tmp_path])} == {f"{tmp_path}/{name}" for name in names}
    assert all(record.load() for record in iter_records([tmp_path]))
    tar = write_tar(tmp_path / "t.tar", [(name, png()) for name in names])
    assert [record.name for record in iter_records([tmp_path / "t.tar"])] == [f"{tmp_path}/t.tar:{n}" for n in names], (
        tar
    )


def test_what_is_passed_over_is_counted_by_kind(tmp_path):
    fill(
        tmp_path,
        "a.png",
        "b.HEIC",
        "sub/c.heif",
        "d.jxl",
        "noext",
        "e.xml",
        "f.xml",
        ".hidden",
        "g.tar.zst",
        "h.jpg.zip",
    )
    write_tar(tmp_path / "inner.tar", [("x.png", png())])
    write_tar(tmp_path / "t.tar.gz", [("y.png", png()), ("inner.tar", b"1"), ("z.jxl", b"2"), ("w.json", b"3")], "w:gz")
    skipped = Skipped()
    found = list(iter_records([tmp_path, tmp_path / "t.tar.gz"], also=(".json",), skipped=skipped))
    assert [r.member for r in found] == ["a.png", "y.png", "w.json"]
    assert skipped.total == 12
    assert skipped.to_json() == {
        ".jxl": 2, ".xml": 2, "archive in a folder": 2, ".heic": 1, ".heif": 1, "": 1, ".tar.zst": 1, ".zip": 1,
        "archive in a tar file": 1,
    }  # fmt: skip
    assert str(skipped) == (
        "passed over: 2 HEIC (convert with heif-convert or ImageMagick), 2 JPEG XL (convert with djxl), "
        "2 tar or Parquet in folders (name them themselves), 1 ZIP (unpack with unzip), 1 Zstandard tar (unpack with "
        "zstd -d), 1 tar or Parquet inside tar files (unpack with tar -xf), 1 without extension (rename them, or name "
        "them one by one), 2 .xml"
    )
    more = Skipped()
    for n in range(11):
        more.add(f"x.kind{n:02}")
    assert str(more).endswith("1 .kind07, 3 of other kinds")
    matched = Skipped()
    list(iter_records([f"{tmp_path}/*"], skipped=matched))
    assert matched.to_json()[".jxl"] == 2 and "" in matched.to_json()  # the tar file's own too


def test_a_tar_of_tars_says_what_to_do(tmp_path):
    write_tar(tmp_path / "t.tar", [("train/n01.tar", b"x"), ("train/n02.tar", b"y")])
    with pytest.raises(InputError, match=r"no image in this tar file \(passed over: 2 tar or Parquet inside tar files"):
        list(iter_records([tmp_path / "t.tar"]))


def test_sets_of_names_in_braces(tmp_path):
    for name in ("s-08.tar", "s-09.tar", "s-10.tar"):
        write_tar(tmp_path / name, [(f"{name[:4]}.png", png())])
    fill(tmp_path, "odd{1,2}.png", "a.png", "b.png", "9.png", "10.png")
    assert members(f"{tmp_path}/s-{{08..10}}.tar") == ["s-08.png", "s-09.png", "s-10.png"]
    assert members(f"{tmp_path}/{{9..10}}.png", f"{tmp_path}/{{b,a}}.png") == ["9.png", "10.png", "b.png", "a.png"]
    assert members(f"{tmp_path}/{{s,t}}-{{09..10}}.tar") == ["s-09.png", "s-10.png", "t-09.tar", "t-10.tar"]
    assert members(f"{tmp_path}/{{a,[b]}}.png") == ["a.png", "b.png"], "patterns in braces"
    assert members(f"{tmp_path}/odd{{1,2}}.png") == ["odd{1,2}.png"], "a file that exists is no pattern"


def test_lists(tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_bytes(b"a.png\r\n\n b c.png \n\xff.png")
    assert list(read_list(str(listed))) == ["a.png", " b c.png ", os.fsdecode(b"\xff.png")]
    for path in (tmp_path / "none", tmp_path, "nul\0"):
        with pytest.raises(InputError, match=r"list of inputs .*: cannot be read"):
            list(read_list(str(path)))


def test_lists_are_read_as_they_come(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = os.open(tmp_path / "pipe", os.O_RDWR)  # of both ends, so that opening does not wait
    os.write(writer, b"one.png\ntwo.png\n")
    lines = read_list(str(tmp_path / "pipe"))
    assert [next(lines), next(lines)] == ["one.png", "two.png"]
    os.close(writer)


def test_counting_opens_no_image(tmp_path):
    fill(tmp_path, "f/a.png", "f/sub/b.jpg", "c.png")
    (tmp_path / "empty").mkdir()
    write_tar(tmp_path / "t.tar", [("m.png", png())])
    inputs = [tmp_path / "f", f"{tmp_path}/*.png", tmp_path / "gone.png", tmp_path / "empty", f"{tmp_path}/*.gif", ""]
    assert count_records(inputs) == len(list(iter_records(inputs))) == 7
    assert count_records([*inputs, tmp_path / "t.tar"]) is None, "a tar file has no list of its members"
    asked = iter([False, False, True])
    assert count_records([tmp_path / "f"] * 2, lambda: next(asked)) is None


def test_reading_a_compressed_tar_file_along_the_listing_is_one_pass(tmp_path, monkeypatch):
    path = tmp_path / "t.tar.gz"
    noise = random.Random(0)
    content = [(f"{i}.png", noise.randbytes(3000)) for i in range(60)]
    write_tar(path, content, "w:gz")
    rewinds = []
    monkeypatch.setattr(
        gzip._GzipReader, "_rewind", lambda self, f=gzip._GzipReader._rewind: (rewinds.append(1), f(self))
    )
    read = []
    ahead = []
    for record in iter_records([path]):  # eight are listed ahead of the one that is read, as decoders do
        ahead.append(record)
        if len(ahead) == 8:
            read += [r.load() for r in ahead]
            ahead = []
    read += [r.load() for r in ahead]
    assert read == [data for _, data in content]
    assert not rewinds
    assert [r.load() for r in iter_records([path])] == read, "and in any other order too"


def test_what_is_held_of_a_compressed_tar_file_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_source, "_PASSED_BYTES", 10_000)
    path = tmp_path / "t.tar.gz"
    content = [(f"{i}.png", bytes([i]) * 1000) for i in range(40)]
    write_tar(path, content, "w:gz")
    records = list(iter_records([path]))
    reader = records[0].read.func.__self__
    assert sum(len(data) for _, data in reader._passed) <= 10_000
    assert [r.load() for r in records] == [data for _, data in content]
    assert not reader._passed
