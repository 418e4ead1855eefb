"""vLLM's side of benchmarks/formats.py: prompts on standard input -> greedy answers. Runs in vLLM's own environment."""

import json
import os
import sys


def main():
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"}
    import vllm

    job = json.load(sys.stdin)
    engine = vllm.LLM(job["model"], dtype="bfloat16", enforce_eager=True, max_model_len=1024, disable_log_stats=True)
    params = vllm.SamplingParams(max_tokens=job["new_tokens"], temperature=0.0, logprobs=job["likeliest"])
    outputs = engine.generate([{"prompt_token_ids": ids} for ids in job["prompts"]], params, use_tqdm=False)
    answers = []
    for output in outputs:
        (answer,) = output.outputs
        likely = [[(token, one.logprob) for token, one in place.items()] for place in answer.logprobs]
        answers.append((list(answer.token_ids), likely))
    print("ANSWERS" + json.dumps({"version": vllm.__version__, "answers": answers}))


if __name__ == "__main__":
    main()
