"""llama.cpp's side of benchmarks/formats.py: prompts on standard input -> greedy answers, in its own environment."""

import json
import sys


def main():
    import llama_cpp

    job = json.load(sys.stdin)
    model = llama_cpp.Llama(job["model"], n_ctx=1024, verbose=False)
    answers = []
    for ids in job["prompts"]:
        answer = []
        for token in model.generate(ids, temp=0.0, repeat_penalty=1.0):
            answer.append(token)
            if len(answer) == job["new_tokens"] or token == model.token_eos():
                break
        answers.append(answer)
    print("ANSWERS" + json.dumps({"version": llama_cpp.__version__, "answers": answers}))


if __name__ == "__main__":
    main()
