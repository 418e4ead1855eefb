"""transformers' side of benchmarks/generate.py; the same file for 5.x and, in its own environment, for 4.56."""

import torch
import transformers
from timing import run


def load(job):
    setting = job["setting"]
    transformers.utils.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        job["model"], dtype=getattr(torch, setting["weights"]), attn_implementation=setting["attention"]
    ).eval()
    model.generation_config.eos_token_id = None
    cache = {"cache_implementation": "static"} if setting["static_cache"] else {}

    def answer(work, prompts, new_tokens):
        ids = torch.tensor(prompts)
        plain = {"top_k": 0} if work["knobs"].get("do_sample") else {}  # its default of 50 is a work of its own
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            pad_token_id=0,
            **cache,
            **plain,
            **{"do_sample": False, **work["knobs"]},
        )
        return made[:, ids.shape[1] :].tolist()

    return answer, transformers.__version__


if __name__ == "__main__":
    run(load)
