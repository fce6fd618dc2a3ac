"""Images in Parquet files: finding the column, reading a few rows at a time, naming what is wrong."""

from __future__ import annotations

import io
import random
import sys
import threading

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from infer.errors import ImageError, InputError
from infer.sources import count_records, iter_records
from infer.sources.parquet import count_rows


def png(value):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, columns, group=4, **options):
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=group, **options)
    return path


def found(path, **options):
    return [(record.member, record.load()) for record in iter_records([path], **options)]


DATA = [png(i) for i in range(10)]
STRUCT = [{"bytes": data, "path": f"n/{i}.jpg"} for i, data in enumerate(DATA)]
BY_ROW = [f"row {i}" for i in range(10)]
LAYOUTS = {
    "Hugging Face": ({"image": STRUCT, "label": range(10)}, [f"n/{i}.jpg" for i in range(10)]),
    "without paths": ({"image": [{"bytes": data} for data in DATA], "label": range(10)}, BY_ROW),
    "null paths": ({"image": [STRUCT[0], *({"bytes": d, "path": None} for d in DATA[1:])]}, ["n/0.jpg", *BY_ROW[1:]]),
    "WebDataset": ({"__key__": [f"k{i}" for i in range(10)], "jpg": DATA}, [f"k{i}" for i in range(10)]),
    "numbered": ({"id": range(100, 110), "blob": DATA}, [str(i) for i in range(100, 110)]),
    "a key of its own before the struct's": ({"image": STRUCT, "key": list("abcdefghij")}, list("abcdefghij")),
    "large binary": ({"img": pyarrow.array(DATA, pyarrow.large_binary()), "other": DATA}, BY_ROW),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, layout):
    columns, names = LAYOUTS[layout]
    path = write(tmp_path / "x.parquet", columns)
    assert found(path) == list(zip(names, DATA, strict=True))
    records = list(iter_records([path]))
    assert [r.name for r in records] == [f"{path}:{name}" for name in names]
    assert all(r.source == path and r.sequential for r in records)
    assert count_records([path]) == 10


def test_the_column_can_be_chosen(tmp_path):
    path = write(tmp_path / "x.pq", {"left": DATA, "right": DATA[::-1], "wide": STRUCT})
    with pytest.raises(InputError, match=r"one column of encoded images, found left, right, wide .*--column"):
        found(path)
    assert [data for _, data in found(path, column="right")] == DATA[::-1]
    assert [data for _, data in found(path, column="wide")] == [data for _, data in found(path, column="wide.bytes")]
    with pytest.raises(InputError, match=r"x\.pq: expected a binary column 'middle', found left, right, wide"):
        found(path, column="middle")
    write(path, {"text": ["a"], "number": [1]})
    with pytest.raises(InputError, match=r"found none among text, number"):
        found(path)


@pytest.mark.parametrize("group", [1, 3, 7, 100])
def test_rows_in_any_order_and_from_threads(tmp_path, group):
    path = write(tmp_path / "x.parquet", {"image": DATA * 5}, group)
    records = list(iter_records([path]))
    assert [r.load() for r in records[31:]] == (DATA * 5)[31:], "past whole row groups"
    order = list(range(50))
    random.Random(group).shuffle(order)
    assert all(records[i].load() == DATA[i % 10] for i in order)
    wrong = []
    threads = [
        threading.Thread(target=lambda s=s: wrong.extend(i for i in order[s::4] if records[i].load() != DATA[i % 10]))
        for s in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_big_row_group_is_read_page_by_page(tmp_path):
    noise = np.random.default_rng(0)
    rows = [noise.bytes(200_000) for _ in range(300)]  # 60 MB in one row group
    # Pages of 8 rows: one page is the least that Parquet can read.
    path = write(tmp_path / "x.parquet", {"image": rows}, 1000, compression="none", write_batch_size=8)
    del rows
    pool = pyarrow.default_memory_pool()
    before, most = pool.bytes_allocated(), 0
    for record in iter_records([path]):
        assert len(record.load()) == 200_000
        most = max(most, pool.bytes_allocated() - before)
    assert most < 12e6


def test_rows_without_bytes(tmp_path):
    path = write(tmp_path / "x.parquet", {"image": [STRUCT[0], None, {"bytes": None, "path": "p"}, STRUCT[3]]})
    records = list(iter_records([path]))
    assert [r.member for r in records] == ["n/0.jpg", "row 1", "p", "n/3.jpg"]
    for bad in records[1:3]:
        with pytest.raises(ImageError, match=rf"{bad.member}: no bytes in this row"):
            bad.load()
    assert records[3].load() == DATA[3]


def test_damaged_files_are_named(tmp_path):
    sound = write(tmp_path / "sound.parquet", {"image": DATA}).read_bytes()
    (tmp_path / "text.parquet").write_text("no")
    (tmp_path / "empty.parquet").write_bytes(b"")
    (tmp_path / "cut.parquet").write_bytes(sound[:-20])
    write(tmp_path / "rowless.parquet", {"image": pyarrow.array([], pyarrow.binary())})
    names = ["text", "empty", "cut", "rowless", "sound"]
    records = list(iter_records([tmp_path / f"{name}.parquet" for name in names]))
    assert [r.defect is not None for r in records] == [True] * 4 + [False] * 10
    assert all(records[i].name == f"{tmp_path}/{names[i]}.parquet" for i in range(4))
    assert "not a Parquet file" in records[0].defect and records[3].defect == "no row in this Parquet file"
    assert [count_rows(tmp_path / f"{name}.parquet") for name in names] == [1, 1, 1, 1, 10]


def test_a_damaged_page_costs_its_rows(tmp_path):
    noise = np.random.default_rng(0)
    path = write(tmp_path / "x.parquet", {"image": [noise.bytes(2000) for _ in range(20)]}, 4, compression="gzip")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
    path.write_bytes(data)
    good = []
    for row, record in enumerate(iter_records([path])):
        try:
            record.load()
            good.append(row)
        except ImageError as error:
            assert str(error).startswith(f"{path}:row {row}: the Parquet file cannot be read here")
    assert {0, 1, 18, 19} <= set(good) and len(good) < 20
    records = list(iter_records([path]))
    assert records[0].load() and records[19].load(), "row groups between are not read"


def test_without_pyarrow(tmp_path, monkeypatch):
    path = write(tmp_path / "x.parquet", {"image": DATA})
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(InputError, match="need pyarrow, which is not installed; pip install pyarrow"):
        found(path)
    with pytest.raises(InputError, match="pip install pyarrow"):
        count_records([path])
