"""TensorBoard's event files, read by the format's own description."""

from __future__ import annotations

import struct

import pytest
from boards import events_of

from danlu.track.event_files import EventFile, crc32c, record


@pytest.mark.parametrize(
    ("data", "crc"),
    [(b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43), (bytes(range(32)), 0x46DD794E)],
)
def test_crc_of_rfc_3720(data, crc):
    assert crc32c(data) == crc


def test_a_record_is_length_and_message_each_with_its_masked_crc():
    # crc32c(b"123456789") = e3069283, rotated right by 15: 2507c60d, + a282ead8 = c78ab0e5
    assert record(b"123456789")[12:] == b"123456789" + struct.pack("<I", 0xC78AB0E5)
    assert record(b"123456789")[:8] == struct.pack("<Q", 9)


def test_scalars_and_texts(tmp_path):
    file = EventFile(tmp_path / "board")
    file.scalars({"train/loss": 2.5, "train/tokens": 300}, 1)
    file.text("events/plan", "丹炉", 1)
    file.scalars({"train/loss": 1e300}, 128)
    file.close()
    assert events_of(tmp_path / "board")[2:] == [
        (1, [("train/loss", 2.5), ("train/tokens", 300.0)]),
        (1, [("events/plan", "丹炉")]),
        (128, [("train/loss", float("inf"))]),
    ]


def test_a_file_begins_with_its_version_and_takes_the_place_of_an_earlier_one(tmp_path):
    EventFile(tmp_path).close()
    EventFile(tmp_path).close()
    (path,) = tmp_path.iterdir()
    assert b"brain.Event:2" in path.read_bytes()
    assert [step for step, _ in events_of(tmp_path)] == [0, 0]
