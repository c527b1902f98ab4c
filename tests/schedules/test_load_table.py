"""Files that are no table, by accident or by intent: refused in a sentence that names them."""

import io
import json
import struct
import tracemalloc
import zipfile

import jax
import numpy as np
import pytest

import guidejax as gj
from guidejax.schedules.tables import LIMIT

NAME = "table-of-somebody"


def refused(path, match):
    with pytest.raises(ValueError, match=match) as error:
        gj.schedules.load_table(path)
    assert NAME in str(error.value)
    assert len(str(error.value)) < 1000
    assert type(error.value) is ValueError


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[1.0, 2.0]", "list"),
        ("3.0", "float"),
        ("null", "NoneType"),
        ('"omega"', "str"),
        ("true", "bool"),
        ("", "JSON"),
        ("{", "JSON"),
        ('{"omega": [1.0, 2.0]', "JSON"),
        ("[" * 100_000, "nested"),
        ('{"omega": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested"),
        ('{"omega": ' + "[" * 200 + "1" + "]" * 200 + "}", "omega"),
        ('{"omega": [[[1.0]]]}', "shape"),
        ("[" + "[]," * 2**20 + "[]]", "lists"),
        ("{}", "no entry"),
        (json.dumps({f"{i}" * 50: 0 for i in range(5000)}), "no entry"),
        ('{"omega": 2.0}', "float"),
        ('{"omega": null}', "NoneType"),
        ('{"omega": "1.0"}', "str"),
        ('{"omega": {"0": 1.0}}', "dict"),
        ('{"omega": []}', "shape"),
        ('{"omega": [[], []]}', "shape"),
        ('{"omega": ["a", "b"]}', "numbers"),
        ('{"omega": [1.0, "b"]}', "numbers"),
        ('{"omega": [1.0, null]}', "numbers"),
        ('{"omega": [true, false]}', "numbers"),
        ('{"omega": [{"a": 1}]}', "numbers"),
        ('{"omega": [[1.0], [1.0, 2.0]]}', "ragged"),
        ('{"omega": [1.0, [2.0]]}', "ragged"),
        ('{"omega": [1.0, NaN]}', "NaN"),
        ('{"omega": [1.0, -Infinity]}', "infinite"),
        ('{"omega": [1.0, 1e400]}', "infinite"),
        ('{"omega": [1.0, 1e200]}', "float32"),
        ('{"omega": [1' + "0" * 400 + "]}", "numbers"),
        ('{"omega": [1' + "0" * 5000 + "]}", "JSON"),
    ],
    ids=lambda value: value[:24],
)
def test_a_json_that_is_no_table(tmp_path, text, match):
    path = tmp_path / f"{NAME}.json"
    path.write_text(text)
    refused(path, match)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\x00" * 64, b"\x80\x04K\x01."])
def test_bytes_that_are_no_json(tmp_path, content):
    path = tmp_path / f"{NAME}.json"
    path.write_bytes(content)
    refused(path, "JSON")


def npy(value, **options):
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(value), **options)
    return file.getvalue()


def header(shape, dtype="<f8", data=b""):
    text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text.encode() + b"\n" + data


def archive(path, content, name="omega.npy", method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (npy([1 + 2j]), "complex"),
        (npy(["a", "b"]), "numbers"),
        (npy([b"a"]), "numbers"),
        (npy([True]), "numbers"),
        (npy(np.zeros(2, "V2")), "numbers"),
        (npy(np.zeros(2, "M8[s]")), "numbers"),
        (npy(np.zeros(2, [("a", "f4")])), "numbers"),
        (npy(np.array([1.0, None], object), allow_pickle=True), "object"),
        (npy([]), "shape"),
        (npy(np.zeros((4, 0))), "shape"),
        (npy(2.0), "shape"),
        (npy(np.zeros((2, 2, 2))), "shape"),
        (npy([1.0, np.nan]), "NaN"),
        (npy([np.inf]), "infinite"),
        (npy([1.0, 1e200]), "float32"),
        (npy([1.0, 2.0])[:-3], "bytes"),
        (npy([1.0, 2.0]) + b"more", "bytes"),
        (npy([1.0])[:20], "array"),
        (b"", "array"),
        (b"hello", "array"),
        (header((10**12,)), "bytes"),
        (header((10**30, 10**30)), "bytes"),
        (header((-1,), data=b"\x00" * 8), "bytes"),
        (header((-1, -1), data=b"\x00" * 8), "bytes"),
        (header("(" * 4000), "array"),
        (header("__import__('os')"), "array"),
        (header((1,), dtype="nonsense"), "array"),
        (b"\x93NUMPY\x09\x00" + npy([1.0])[8:], "array"),
    ],
)
def test_an_npz_whose_omega_is_no_table(tmp_path, content, match):
    refused(archive(tmp_path / f"{NAME}.npz", content), match)


def test_an_archive_that_unpacks_to_gigabytes(tmp_path):
    path, piece = tmp_path / f"{NAME}.npz", bytes(2**20)
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file,
        file.open("omega.npy", "w", force_zip64=True) as member,
    ):
        member.write(header((2**25,)))
        for _ in range(256):
            member.write(piece)
    assert path.stat().st_size < 2**20
    tracemalloc.start()
    refused(path, "unpacks")
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


def test_an_archive_whose_directory_lies(tmp_path):
    """It says less than there is: no more is unpacked than it says."""
    path = archive(tmp_path / f"{NAME}.npz", header((2**24,), data=bytes(2**27)))
    content = bytearray(path.read_bytes())
    at = content.rfind(b"PK\x01\x02")
    content[at + 24 : at + 28] = struct.pack("<I", 1000)
    path.write_bytes(content)
    tracemalloc.start()
    refused(path, "npz|bytes")
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_packing_without_a_bound(tmp_path, method):
    refused(archive(tmp_path / f"{NAME}.npz", npy([1.0]), method=method), "unpacks")


def test_files_that_are_no_archive(tmp_path):
    whole = archive(tmp_path / "whole.npz", npy(np.random.default_rng(0).normal(size=1000)))
    content = whole.read_bytes()
    flipped = bytearray(content)
    flipped[200] ^= 0xFF
    locked = bytearray(content)
    locked[locked.rfind(b"PK\x01\x02") + 8] |= 1
    for broken in (
        b"", b"PK", b"PK\x05\x06" + bytes(18), npy([1.0]), b"\x80\x04K\x01.",
        content[:-30], content[: len(content) // 2], content[60:], bytes(flipped), bytes(locked),
    ):  # fmt: skip
        path = tmp_path / f"{NAME}.npz"
        path.write_bytes(broken)
        refused(path, "npz|omega")
    np.savez(path, scale=np.ones(2), t=np.ones(2))
    refused(path, "no entry 'omega'; it has scale, t")


@pytest.mark.parametrize("ending", [".json", ".npz"])
def test_a_huge_file(tmp_path, ending):
    path = tmp_path / f"{NAME}{ending}"
    with open(path, "wb") as file:  # with nothing in it but its length
        file.truncate(LIMIT + 1)
    refused(path, str(LIMIT))


def test_tables_as_others_write_them(tmp_path):
    """Integers, columns first, packed, with less or more precision than here, and by hand."""
    path, want = tmp_path / f"{NAME}.npz", np.arange(6.0).reshape(3, 2)
    for dtype in ("f2", "<f4", ">f4", "f8", "i1", ">i8", "u2"):
        for save in (np.savez, np.savez_compressed):
            for order in "CF":
                save(path, omega=np.asarray(want, dtype, order=order), other=np.array(["a"]))
                values = gj.schedules.load_table(path).params["values"]
                np.testing.assert_array_equal(values, want)
                assert values.dtype == np.float32
    path = tmp_path / f"{NAME}.json"
    path.write_text('{"omega": [[0, 1], [2, 3.0], [4, 5]], "note": ["a", {"b": null}]}')
    np.testing.assert_array_equal(gj.schedules.load_table(path).params["values"], want)
    path.write_text('{"omega": [1.0, 1e200]}')
    with jax.enable_x64(True):
        assert gj.schedules.load_table(path).params["values"][1] == 1e200
    with pytest.raises(FileNotFoundError):
        gj.schedules.load_table(tmp_path / "none.json")
