"""TFRecord files of tf.train.Example messages, read without TensorFlow.

File (tensorflow.org/tutorials/load_data/tfrecord): records of  uint64 length | uint32 masked CRC of the 8 length bytes
| data | uint32 masked CRC of the data, all little-endian; CRC-32C (Castagnoli), masked = ((crc >> 15 | crc << 17) +
0xa282ead8) mod 2^32. Message (tensorflow/core/example/example.proto, feature.proto): Example{1: Features{1: map<string,
Feature>}}, Feature{1: BytesList | 2: FloatList | 3: Int64List}, each list {1: repeated}, numbers packed or not.
Checksums are computed in Python at 5.7 MB per CPU second (measured): half a minute for RichHF-18K, whose 995 dev
records are 9.2 MB.
Left out on purpose: compressed files, SequenceExample, writing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from zr_ray.errors import DataError

_LONGEST = 1 << 30
"""Bytes of a record; a longer one is taken for damage."""


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


_TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    """CRC-32C of bytes; 0xE3069283 for b"123456789"."""
    crc, table = 0xFFFFFFFF, _TABLE
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _masked(crc: int) -> int:
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def examples(file: Path) -> Iterator[tuple[str, dict[str, list]]]:
    """Every Example of a TFRecord file as ("FILE: record N", {feature: list of bytes, floats or ints}), streamed.

    Raises: DataError naming file and record if the file is cut off, damaged (CRC) or no TFRecord of Examples."""
    with open(file, "rb") as handle:
        number = 0
        while head := handle.read(12):
            number += 1
            where = f"{file}: record {number}"
            if head == b"version http":
                raise DataError(
                    f"{file}: wanted TFRecord data, got a Git LFS pointer; fetch the file itself (git lfs pull)"
                )
            length = struct.unpack("<Q", head[:8])[0] if len(head) == 12 else 0
            if len(head) < 12 or length > _LONGEST or _masked(crc32c(head[:8])) != struct.unpack("<I", head[8:])[0]:
                raise DataError(
                    f"{where}: wanted a TFRecord header, got {head!r}; is the file complete and uncompressed?"
                )
            body = handle.read(length + 4)
            if len(body) < length + 4:
                raise DataError(
                    f"{where}: wanted {length + 4} bytes, got {len(body)}; the file is cut off, download it again"
                )
            if _masked(crc32c(body[:length])) != struct.unpack("<I", body[length:])[0]:
                raise DataError(
                    f"{where}: wanted data that fits its checksum, got damaged data; download the file again"
                )
            try:
                features = _example(body[:length])
            except (ValueError, IndexError, struct.error, UnicodeDecodeError) as error:
                raise DataError(
                    f"{where}: wanted a tf.train.Example, got other data ({error}); is it this data set's file?"
                ) from error
            yield where, features


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(value, position behind it)."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("a varint has at most 10 bytes")


def _fields(data: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """(field number, wire type, value) of a protobuf message: an int for wire type 0, bytes for 1, 2 and 5."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, wire, value
            continue
        if wire not in (1, 2, 5):
            raise ValueError(f"wire type {wire} at byte {at}")
        size, at = _varint(data, at) if wire == 2 else ((8, at) if wire == 1 else (4, at))
        if at + size > len(data):
            raise ValueError(f"field {number} ends behind the message")
        yield number, wire, data[at : at + size]
        at += size


def _only(data: bytes, number: int) -> Iterator[bytes]:
    """The length-delimited values of one field."""
    for found, wire, value in _fields(data):
        if found == number and wire == 2:
            yield value


def _example(data: bytes) -> dict[str, list]:
    features: dict[str, list] = {}
    for group in _only(data, 1):
        for entry in _only(group, 1):
            name = b"".join(_only(entry, 1)).decode()
            features[name] = _feature(b"".join(_only(entry, 2)))
    if not features:
        raise ValueError("no features")
    return features


def _feature(data: bytes) -> list:
    values: list = []
    for kind, outer, entries in _fields(data):
        if outer != 2:
            raise ValueError(f"a feature holds lists, got wire type {outer}")
        for number, wire, value in _fields(entries):
            if number != 1:
                continue
            if kind == 1 and wire == 2:
                values.append(value)
            elif kind == 2 and wire in (2, 5):
                values.extend(struct.unpack(f"<{len(value) // 4}f", value))
            elif kind == 3 and wire in (0, 2):
                values.extend([_signed(value)] if wire == 0 else _packed(value))
    return values


def _packed(data: bytes) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        yield _signed(value)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
