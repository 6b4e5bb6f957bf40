"""The wire format of protobuf messages, read strictly."""

from collections.abc import Iterator
from typing import Any

from mesh_local.machinery.errors import ApiError, bad_request

VARINT, I64, LEN, I32 = 0, 1, 2, 5


class Malformed(Exception):
    """What is wrong with the bytes; becomes an ApiError that also says where."""


def lengths(data: bytes, where: str) -> Iterator[tuple[int, bytes]]:
    """The fields of a message that has length-delimited ones only."""
    for number, wire, value in fields(data, where):
        if wire != LEN:
            raise error(where, f"field {number} has wire type {wire}, expected {LEN}")
        yield number, value


def error(where: str, text: str) -> ApiError:
    return bad_request(f"unable to decode protobuf: {where}: {text}")


def fields(data: bytes, where: str) -> Iterator[tuple[int, int, Any]]:
    """Field number, wire type and raw value of each field, in order."""
    at = 0
    try:
        while at < len(data):
            key, at = varint(data, at)
            number, wire = key >> 3, key & 7
            if not 1 <= number < 1 << 29:
                raise Malformed(f"field number {number} is out of range")
            match wire:
                case 0:
                    value: Any
                    value, at = varint(data, at)
                case 1:
                    value, at = _take(data, at, 8)
                case 2:
                    size, at = varint(data, at)
                    value, at = _take(data, at, size)
                case 5:
                    value, at = _take(data, at, 4)
                case _:
                    raise Malformed(f"field {number} has wire type {wire}, which is not supported")
            yield number, wire, value
    except Malformed as problem:
        raise error(where, str(problem)) from None


def varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for index in range(10):
        if at + index >= len(data):
            raise Malformed("unexpected end of data")
        byte = data[at + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            if value >= 1 << 64:
                break
            return value, at + index + 1
    raise Malformed("a varint is longer than 64 bits")


def _take(data: bytes, at: int, size: int) -> tuple[bytes, int]:
    if size > len(data) - at:
        raise Malformed("unexpected end of data")
    return data[at : at + size], at + size


def text(value: bytes, where: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise error(where, "a string is not UTF-8") from None
