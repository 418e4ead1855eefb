"""llama.cpp's side of benchmarks/quantize.py: weights on the disk -> what its own quantization leaves of them.

ggml_quantize_chunk is what llama-quantize calls for each tensor, and is called here from the library that xllamacpp
ships. Standard input: {"weights": file of float32, "importance": file of float32 or none, "out": directory, "shapes":
[[rows, columns], ...], "types": {name: number}}. Rows of a width that a type does not divide get the type that
llama-quantize falls back to.
"""

import ctypes
import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy

# Type of ggml.h -> numbers of a block, its bytes (ggml-common.h), the type to take where that does not divide a row.
TYPES = {2: (32, 18, 2), 3: (32, 20, 3), 6: (32, 22, 6), 8: (32, 34, 8), 11: (256, 110, 20), 12: (256, 144, 6),
         14: (256, 210, 8), 20: (32, 18, 20)}  # fmt: skip
NAMES = {2: b"q4_0", 3: b"q4_1", 6: b"q5_0", 8: b"q8_0", 11: b"q3_K", 12: b"q4_K", 14: b"q6_K", 20: b"iq4_nl"}


def pointer(array):
    return array.ctypes.data_as(ctypes.c_void_p)


def main():
    job = json.load(sys.stdin)
    (place,) = Path(find_spec("xllamacpp").origin).parent.glob("*.so")
    library = ctypes.CDLL(str(place))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p
    ]  # fmt: skip
    weights = numpy.memmap(job["weights"], numpy.float32, "r")
    importance = numpy.memmap(job["importance"], numpy.float32, "r") if job["importance"] else None
    sizes = {}
    for name, wanted in job["types"].items():
        sizes[name], at, column = 0, 0, 0
        with (Path(job["out"]) / f"{name}.f32").open("wb") as file:
            for rows, columns in job["shapes"]:
                kind = wanted if columns % TYPES[wanted][0] == 0 else TYPES[wanted][2]
                own = numpy.ascontiguousarray(weights[at : at + rows * columns])
                packed = numpy.zeros(rows * columns // TYPES[kind][0] * TYPES[kind][1], numpy.uint8)
                given = None
                if importance is not None:
                    given = numpy.ascontiguousarray(importance[column : column + columns])
                taken = library.ggml_quantize_chunk(
                    kind, pointer(own), pointer(packed), 0, rows, columns, None if given is None else pointer(given)
                )
                assert taken == packed.nbytes, (name, taken, packed.nbytes)
                back = numpy.empty(rows * columns, numpy.float32)
                function = getattr(library, f"dequantize_row_{NAMES[kind].decode()}")
                function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
                function(pointer(packed), pointer(back), rows * columns)
                back.tofile(file)
                sizes[name] += taken
                at, column = at + rows * columns, column + columns
    from importlib.metadata import version

    print("SIZES" + json.dumps({"version": version("xllamacpp"), "sizes": sizes}))


if __name__ == "__main__":
    main()
