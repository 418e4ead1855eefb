"""vLLM's side of benchmarks/generate.py. Runs in vLLM's own environment."""

import os

import vllm
from timing import run
from vllm.lora.request import LoRARequest
from vllm.sampling_params import BeamSearchParams


def load(job):
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "2"  # GB
    if job["setting"]["all_cores"]:  # left to itself it keeps one for its scheduler
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    loras = job["setting"].get("loras")
    engine = vllm.LLM(
        job["model"],
        dtype=job["setting"]["weights"],
        enforce_eager=job["setting"]["eager"],
        max_model_len=1024,
        max_num_seqs=64,
        disable_log_stats=True,
        **({"enable_lora": True, "max_loras": loras, "max_lora_rank": 8} if loras else {}),
    )
    numbers = {name: number + 1 for number, name in enumerate(job.get("adapters", {}))}

    def adapter(name):
        return None if name is None else LoRARequest(name, numbers[name], job["adapters"][name])

    def answer(work, prompts, new_tokens):
        knobs = work["knobs"]
        unknown = {"num_beam_groups", "force_words_ids"} & set(knobs)
        if unknown:
            raise ValueError(f"vLLM has no {', '.join(unknown)}")
        asked = [{"prompt_token_ids": ids} for ids in prompts]
        if "num_beams" in knobs:
            beams = BeamSearchParams(beam_width=knobs["num_beams"], max_tokens=new_tokens, ignore_eos=True)
            outputs = engine.beam_search(asked, beams)
            return [one.tokens[-new_tokens:] for output in outputs for one in output.sequences]
        drawn = {"temperature": 1.0 if knobs.get("do_sample") else 0.0, "n": knobs.get("num_return_sequences", 1)}
        params = vllm.SamplingParams(max_tokens=new_tokens, ignore_eos=True, detokenize=False, **drawn)
        given = {"lora_request": [adapter(name) for name in work["adapters"]]} if any(work["adapters"]) else {}
        outputs = engine.generate(asked, params, use_tqdm=False, **given)
        return [list(one.token_ids) for output in outputs for one in output.outputs]

    return answer, vllm.__version__


if __name__ == "__main__":
    run(load)
