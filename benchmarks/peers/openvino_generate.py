"""OpenVINO GenAI's side of benchmarks/generate.py; reads the GGUF file itself. Runs in its own environment."""

import numpy
import openvino
import openvino_genai
from timing import run


def load(job):
    setting = job["setting"]
    properties = {"INFERENCE_PRECISION_HINT": setting["precision"]}
    if setting["paged"]:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = 2  # GB
        scheduler.max_num_seqs = 64
        scheduler.enable_prefix_caching = True
        properties["scheduler_config"] = scheduler
    else:
        properties["ATTENTION_BACKEND"] = "SDPA"
    pipeline = openvino_genai.LLMPipeline(job["gguf"], "CPU", **properties)

    def answer(work, prompts, new_tokens):
        knobs = dict(work["knobs"])
        if "force_words_ids" in knobs:
            raise ValueError("OpenVINO GenAI has no forced phrases")
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = new_tokens
        config.ignore_eos = True
        for name, value in knobs.items():
            setattr(config, name, value)
        ids = openvino.Tensor(numpy.array(prompts, dtype=numpy.int64))
        inputs = openvino_genai.TokenizedInputs(ids, openvino.Tensor(numpy.ones_like(ids.data)))
        return pipeline.generate(inputs, config).tokens

    return answer, openvino_genai.__version__.split("-")[0]


if __name__ == "__main__":
    run(load)
