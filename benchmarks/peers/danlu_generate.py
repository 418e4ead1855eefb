"""Danlu's side of benchmarks/generate.py, through the public API alone."""

from timing import run

import danlu


def load(job):
    engine = danlu.Engine(job["model"], dtype=job["setting"]["dtype"])

    def answer(work, prompts, new_tokens):
        params = danlu.GenerationParams(max_new_tokens=new_tokens, eos_token_id=(), **work["knobs"])
        generations = engine.generate(prompts, params)
        return [sequence.token_ids for generation in generations for sequence in generation.sequences]

    return answer, danlu.__version__


if __name__ == "__main__":
    run(load)
