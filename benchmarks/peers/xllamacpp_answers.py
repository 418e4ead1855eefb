"""llama.cpp's side of benchmarks/formats.py: prompts on standard input -> greedy answers, in its own environment.

xllamacpp is llama.cpp's server as a library, compiled already.
"""

import json
import sys
from importlib.metadata import version


def main():
    import xllamacpp

    job = json.load(sys.stdin)
    params = xllamacpp.CommonParams()
    params.model.path = job["model"]
    params.n_ctx = 2048
    server = xllamacpp.Server(params)
    answers = []
    for ids in job["prompts"]:
        asked = {"prompt": ids, "max_tokens": job["new_tokens"], "temperature": 0}
        asked["logprobs"] = job["likeliest"]
        (choice,) = server.handle_completions(asked)["choices"]
        places = choice["logprobs"]["content"]
        likely = [[(token["id"], token["logprob"]) for token in place["top_logprobs"]] for place in places]
        answers.append(([place["id"] for place in places], likely))
    print("ANSWERS" + json.dumps({"version": version("xllamacpp"), "answers": answers}))


if __name__ == "__main__":
    main()
