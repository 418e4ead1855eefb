"""TensorBoard's event files, read by the description of their format. Knows nothing of who wrote them but `record`."""

from __future__ import annotations

import struct

from danlu.track.event_files import record


def varint(data, at):
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not data[at - 1] & 0x80:
            return value, at


def fields(data):
    """(number, value) of each field of a message: whole numbers, raw bytes."""
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = varint(data, at)
        else:
            size, at = varint(data, at) if wire == 2 else ({1: 8, 5: 4}[wire], at)
            value, at = data[at : at + size], at + size
        yield number, value


def events_of(folder):
    """Step, and the (tag, value or text) of each event of the one file in a folder; checks every CRC."""
    (path,) = folder.glob("events.out.tfevents.*")
    data, found = path.read_bytes(), []
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        message = data[12 : 12 + size]
        assert data[: 16 + size] == record(message)
        data = data[16 + size :]
        event = dict(fields(message))
        values = [dict(fields(value)) for _, value in fields(event.get(5, b""))]
        found.append((event[2], [(value[1].decode(), read(value)) for value in values]))
    return found


def read(value):
    if 2 in value:
        return struct.unpack("<f", value[2])[0]
    assert dict(fields(dict(fields(value[9]))[1])) == {1: b"text"}
    return dict(fields(value[8]))[8].decode()
