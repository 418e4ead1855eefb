"""Danlu's side of benchmarks/generate.py, through the public API alone."""

from timing import run

import danlu


def load(job):
    engine = danlu.Engine(job["model"], dtype=job["setting"]["dtype"])
    loaded = set()

    def answer(work, prompts, new_tokens):
        params = danlu.GenerationParams(max_new_tokens=new_tokens, eos_token_id=(), **work["knobs"])
        for name in set(filter(None, work["adapters"])) - loaded:
            engine.load_adapter(name, job["adapters"][name])
            loaded.add(name)
        generations = engine.generate(prompts, params, work["adapters"])
        return [sequence.token_ids for generation in generations for sequence in generation.sequences]

    return answer, danlu.__version__


if __name__ == "__main__":
    run(load)
