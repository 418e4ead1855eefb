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
    adapted = []  # PEFT's model, once it is asked for
    cache = {"cache_implementation": "static"} if setting["static_cache"] else {}

    def answer(work, prompts, new_tokens):
        ids = torch.tensor(prompts)
        plain = {"top_k": 0} if work["knobs"].get("do_sample") else {}  # its default of 50 is a work of its own
        given = {}
        if any(work["adapters"]):
            if not adapted:
                adapted.append(with_adapters(model, job["adapters"]))
            given["adapter_names"] = work["adapters"]
        made = (adapted[0] if given else model).generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            pad_token_id=0,
            **cache,
            **plain,
            **given,
            **{"do_sample": False, **work["knobs"]},
        )
        return made[:, ids.shape[1] :].tolist()

    return answer, transformers.__version__


def with_adapters(model, adapters):
    """The model as PEFT's; each row of a batch has an adapter of its own then."""
    from peft import PeftModel

    (first, directory), *others = adapters.items()
    made = PeftModel.from_pretrained(model, directory, adapter_name=first)
    for name, directory in others:
        made.load_adapter(directory, name)
    return made.eval()


if __name__ == "__main__":
    run(load)
