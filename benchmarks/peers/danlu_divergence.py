"""How far each number format moves the next token's distribution from float32's; for benchmarks/generate.py.

Reads {"model", "dtypes", "prompts"} from standard input, prints {dtype: divergence}.
"""

import json
import sys
from dataclasses import asdict

from danlu import Engine
from danlu.quantize.divergence import divergence, own_text

NEW_TOKENS, SEED = 64, 42


def main():
    job = json.load(sys.stdin)
    reference = Engine(job["model"], dtype="float32")
    text = own_text(reference, job["prompts"], new_tokens=NEW_TOKENS, seed=SEED)
    found = {}
    for dtype in job["dtypes"]:
        other = Engine(job["model"], dtype=dtype)
        found[dtype] = asdict(divergence(reference, other, text))
        other.close()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
