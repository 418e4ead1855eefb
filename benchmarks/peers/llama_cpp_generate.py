"""llama.cpp's side of benchmarks/generate.py, through its C interface: all rows in one batch, a prompt read once.

Runs in its own environment. Its tokens are chosen by its own samplers. It has no beam search.
"""

import os
import tempfile

import llama_cpp as llama
from timing import run

READ_AT_ONCE = 2048  # tokens of a batch: its default, and as many as its example of parallel decoding takes
ROWS, ROW_TOKENS = 32, 640


class Loop:
    """A batch, filled and decoded; `wanted` are the places whose scores are asked for."""

    def __init__(self, context):
        self.context, self.batch = context, llama.llama_batch_init(READ_AT_ONCE, 0, 1)

    def decode(self, tokens, choose):
        """Decode (token, position, row, wanted) in portions; returns {row: choose(place in the portion)}."""
        chosen = {}
        for start in range(0, len(tokens), READ_AT_ONCE):
            portion = tokens[start : start + READ_AT_ONCE]
            batch = self.batch
            batch.n_tokens = len(portion)
            for at, (token, position, row, wanted) in enumerate(portion):
                batch.token[at], batch.pos[at], batch.logits[at] = token, position, wanted
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, row
            if code := llama.llama_decode(self.context, batch):
                raise RuntimeError(f"llama_decode returned {code}")
            for at, (_, _, row, wanted) in enumerate(portion):
                if wanted:
                    chosen[row] = choose(at)
        return chosen


def requantize(source, target):
    """Q4_1 -> Q8_0: loses next to nothing, and has faster kernels on some processors."""
    params = llama.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = llama.LLAMA_FTYPE_MOSTLY_Q8_0, True
    if code := llama.llama_model_quantize(source.encode(), target.encode(), params):
        raise RuntimeError(f"llama_model_quantize returned {code}")
    return target


def load(job):
    setting, cores = job["setting"], int(os.environ["OMP_NUM_THREADS"])
    llama.llama_backend_init()
    model_params = llama.llama_model_default_params()
    model_params.use_extra_bufts = setting["amx_layout"]
    with tempfile.TemporaryDirectory() as folder:
        path = job["gguf"] if setting["format"] == "Q4_1" else requantize(job["gguf"], f"{folder}/model.gguf")
        model = llama.llama_model_load_from_file(path.encode(), model_params)
    params = llama.llama_context_default_params()
    params.n_ctx, params.n_seq_max, params.n_batch = ROWS * ROW_TOKENS, ROWS, READ_AT_ONCE
    params.n_threads = params.n_threads_batch = cores
    params.flash_attn_type = int(setting["flash_attention"])
    params.kv_unified = setting["one_buffer"]
    context = llama.llama_init_from_model(model, params)
    memory, loop = llama.llama_get_memory(context), Loop(context)
    greedy, drawing = llama.llama_sampler_init_greedy(), llama.llama_sampler_init_dist(1)

    def answer(work, prompts, new_tokens):
        if {"num_beams", "force_words_ids"} & set(work["knobs"]):
            raise ValueError("llama.cpp has no beam search")
        sampler = drawing if work["knobs"].get("do_sample") else greedy

        def choose(place):
            return llama.llama_sampler_sample(sampler, context, place)

        def read(at, ids):
            return [(token, place, at, place == len(ids) - 1) for place, token in enumerate(ids)]

        llama.llama_memory_clear(memory, True)
        if work["rows"] == 1:
            chosen = loop.decode([one for at, ids in enumerate(prompts) for one in read(at, ids)], choose)
            rows = [[chosen[at]] for at in range(len(prompts))]
        else:  # one prompt, several answers: read once, every further row gets its keys and values
            drawn = loop.decode(read(0, prompts[0]), lambda place: [choose(place) for _ in range(work["rows"])])[0]
            rows = [[token] for token in drawn]
            for row in range(1, len(rows)):
                llama.llama_memory_seq_cp(memory, 0, row, -1, -1)
        lengths = [len(ids) for ids in prompts] if work["rows"] == 1 else [len(prompts[0])] * len(rows)
        for step in range(new_tokens - 1):
            tokens = [
                (row[-1], length + step, at, True) for at, (row, length) in enumerate(zip(rows, lengths, strict=True))
            ]
            chosen = loop.decode(tokens, choose)
            for at, row in enumerate(rows):
                row.append(chosen[at])
        return rows

    return answer, llama.__version__


if __name__ == "__main__":
    run(load)
