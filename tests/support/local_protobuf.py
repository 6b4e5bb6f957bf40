"""Encodes protobuf for tests: a message is a list of (field number, value)."""

from typing import Any


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def message(*fields: tuple[int, Any]) -> bytes:
    """Integers and booleans become varints; strings, bytes and nested lists length-delimited fields."""
    encoded = b""
    for number, value in fields:
        if isinstance(value, int):
            encoded += varint(number << 3) + varint(value)
            continue
        raw = (
            value.encode()
            if isinstance(value, str)
            else value
            if isinstance(value, bytes)
            else message(*value)
        )
        encoded += varint(number << 3 | 2) + varint(len(raw)) + raw
    return encoded


def body(api_version: str, kind: str, *fields: tuple[int, Any]) -> bytes:
    """What a client sends for an object."""
    return b"k8s\x00" + message((1, [(1, api_version), (2, kind)]), (2, message(*fields)), (3, ""), (4, ""))
