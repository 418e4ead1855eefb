"""Weights in few bits as files hold them, one file a format.

    format.py         what a format can do; how a model's files are said to hold their weights
    packing.py        codes -> words of 32 bits
    awq.py            AWQ's "gemm"
    gptq.py           GPTQ, version 1 and 2
    compressed.py     what the two of compressed-tensors share
    pack_quantized.py compressed-tensors, codes in words
    int_quantized.py  compressed-tensors, a code a byte
    table.py          all of them; config.json -> which

Finding codes is quantize's; multiplying with them, that of the layers that read them.
"""
