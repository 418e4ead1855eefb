"""transformers' side of benchmarks/formats.py: prompts on standard input -> greedy answers."""

import json
import sys


def main():
    import torch
    import transformers

    job = json.load(sys.stdin)
    model = transformers.AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.bfloat16, local_files_only=True)
    answers = []
    for ids in job["prompts"]:
        whole = model.generate(
            torch.tensor([ids]),
            max_new_tokens=job["new_tokens"],
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
        found = torch.cat(whole.logits).float().log_softmax(-1).topk(job["likeliest"])
        places = zip(found.indices.tolist(), found.values.tolist(), strict=True)
        likely = [list(zip(*one, strict=True)) for one in places]
        answers.append((whole.sequences[0, len(ids) :].tolist(), likely))
    print("ANSWERS" + json.dumps({"version": transformers.__version__, "answers": answers}))


if __name__ == "__main__":
    main()
