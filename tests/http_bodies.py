"""Bodies of requests as the wire reads them, and the faults that it finds."""

from __future__ import annotations

import pytest

from danlu.serve.faults import ApiFault
from danlu.serve.wire.schema import read_chat, read_completion

HELLO = [{"role": "user", "content": "hello"}]


def chat(**more):
    return read_chat({"model": "tiny", "messages": HELLO, **more})


def text(**more):
    return read_completion({"model": "tiny", "prompt": "hello", **more})


def fault(make, **more):
    with pytest.raises(ApiFault) as caught:
        make(**more)
    assert caught.value.status == 400
    return caught.value
