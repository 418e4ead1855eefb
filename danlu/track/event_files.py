"""TensorBoard's event files: one a run, of scalars and texts. Writes them; TensorBoard reads them.

A file is a row of records (TFRecord), each an `Event` of tensorflow/core/util/event.proto: the length of the message,
its masked CRC-32C, the message, and that of the message. The few fields that are written are encoded here: the package
`tensorboard` would bring eleven others.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path

_POLYNOMIAL = 0x82F63B78  # Castagnoli's, reflected
_MASK = 0xA282EAD8  # of TFRecord: a CRC of data that holds CRCs is a weak one


@cache
def _table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (_POLYNOMIAL if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


def crc32c(data: bytes) -> int:
    """The CRC-32C of some bytes (RFC 3720, B.4)."""
    table, crc = _table(), 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def record(message: bytes) -> bytes:
    """A message as it stands in the file."""
    length = struct.pack("<Q", len(message))
    return length + _masked(length) + message + _masked(message)


def _masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF)


# -- protocol buffers: fields by their numbers in the .proto files ----------------------------------------


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _whole(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _bytes(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _event(step: int, body: bytes) -> bytes:
    """`Event`: wall_time 1, step 2; file_version 3, summary 5 or session_log 7 in the body."""
    return _varint(1 << 3 | 1) + struct.pack("<d", time.time()) + _whole(2, step) + body


def _scalar(tag: str, value: float) -> bytes:
    """`Summary.Value`: tag 1, simple_value 2."""
    return _bytes(1, _bytes(1, tag.encode()) + _varint(2 << 3 | 5) + struct.pack("<f", value))


def _text(tag: str, text: str) -> bytes:
    """`Summary.Value`: tag 1, tensor 8 (dtype 1 is string, shape 2, string_val 8), metadata 9 of the text plugin."""
    tensor = _whole(1, 7) + _bytes(2, _bytes(2, _whole(1, 1))) + _bytes(8, text.encode())
    metadata = _bytes(1, _bytes(1, b"text"))
    return _bytes(1, _bytes(1, tag.encode()) + _bytes(8, tensor) + _bytes(9, metadata))


class EventFile:
    """The event file of a run in `folder`; what another half of the run left there is taken away.

    It begins with what tells a TensorBoard that is looking to forget the steps that it has seen.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink(missing_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("wb")
        self._write(_event(0, _bytes(3, b"brain.Event:2")))
        self._write(_event(0, _bytes(7, _whole(1, 1))))  # SessionLog.START

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """The figures of a step."""
        self._write(_event(step, _bytes(5, b"".join(_scalar(tag, _single(value)) for tag, value in values.items()))))

    def text(self, tag: str, text: str, step: int) -> None:
        """A text, which is read as Markdown."""
        self._write(_event(step, _bytes(5, _text(tag, text))))

    def close(self) -> None:
        self._file.close()

    def _write(self, message: bytes) -> None:
        self._file.write(record(message))
        self._file.flush()


def _single(value: float) -> float:
    """What is too large for four bytes is infinite, as they have it."""
    return value if abs(value) <= 3.4028234663852886e38 or value != value else float("inf") * (1 if value > 0 else -1)
