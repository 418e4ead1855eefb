import os

# Keys, values and activations in huge pages, where the system gives them to who asks: a decoding step of many rows is
# a tenth faster. torch looks at this when it first allocates memory.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
