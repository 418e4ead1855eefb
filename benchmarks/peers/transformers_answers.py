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
        whole = model.generate(torch.tensor([ids]), max_new_tokens=job["new_tokens"], do_sample=False)
        answers.append(whole[0, len(ids) :].tolist())
    print("ANSWERS" + json.dumps({"version": transformers.__version__, "answers": answers}))


if __name__ == "__main__":
    main()
