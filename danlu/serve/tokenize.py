"""/tokenize and /detokenize, by vLLM's names: what a body is read as, and what tokens spell, without an answer.

A body of /tokenize is one of /v1/chat/completions or of /v1/completions, so its tokens are those that an answer would
be made from.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from pydantic import Field

from danlu.config import Options, Some
from danlu.errors import DanluError
from danlu.serve.faults import ApiFault, as_fault
from danlu.serve.service import Service
from danlu.serve.wire.schema import Ask, read_body, read_chat, read_completion


class TokenizeWishes(Options):
    """What /tokenize reads beside messages with what renders them, or a prompt."""

    add_special_tokens: bool | None = Field(
        None,
        description="of a prompt: with the tokenizer's own beginning, as by default; messages have their template's",
    )
    return_token_strs: bool = Field(False, description="the tokens' names as well")


class DetokenizeBody(Options):
    """What /detokenize reads."""

    model: str = Field(description="the name that /v1/models lists")
    tokens: Some[int] = Field(description="token ids; control tokens are written as well")


async def tokenized(service: Service, document: dict[str, Any]) -> dict[str, Any]:
    """The tokens of a body. Raises ApiFault."""
    wishes, ask = await asyncio.to_thread(_read, document)
    token_ids = await _tokens(service, ask, wishes.add_special_tokens is not False)
    answer = {"count": len(token_ids), "max_model_len": service.engine.context_length, "tokens": token_ids}
    if wishes.return_token_strs:
        answer["token_strs"] = await service.engine.aside(
            partial(service.engine.chat.tokenizer.convert_ids_to_tokens, token_ids)
        )
    return answer


def _read(document: dict[str, Any]) -> tuple[TokenizeWishes, Ask]:
    own = {name: document[name] for name in TokenizeWishes.model_fields if document.get(name) is not None}
    rest = {name: value for name, value in document.items() if name not in TokenizeWishes.model_fields}
    wishes, is_chat = read_body(TokenizeWishes, own), "messages" in rest
    ask = read_chat(rest) if is_chat else read_completion(rest)
    if is_chat and wishes.add_special_tokens:
        raise ApiFault(400, "the chat template writes the special tokens of messages", "add_special_tokens")
    if len(ask.prompts) > 1 or not (is_chat or isinstance(ask.prompts[0], str)):
        raise ApiFault(400, "give one text", "prompt")
    return wishes, ask


async def _tokens(service: Service, ask: Ask, with_beginning: bool) -> list[int]:
    (prompt,) = ask.prompts
    try:
        if isinstance(prompt, str) and not with_beginning:
            return await service.engine.aside(partial(_bare, service, prompt))
        token_ids, _ = await service.read(prompt, ask)
    except DanluError as error:
        raise as_fault(error, ask.given, ask.in_client_words) from error
    return token_ids


def _bare(service: Service, text: str) -> list[int]:
    return list(service.engine.chat.tokenizer(text, add_special_tokens=False)["input_ids"])


async def detokenized(service: Service, document: dict[str, Any]) -> dict[str, Any]:
    """The text of tokens. Raises ApiFault."""
    tokenizer = service.engine.chat.tokenizer
    body = await asyncio.to_thread(_read_tokens, document, len(tokenizer))
    service.adapter_of(body.model)
    return {"prompt": await service.engine.aside(partial(tokenizer.decode, list(body.tokens)))}


def _read_tokens(document: dict[str, Any], vocabulary: int) -> DetokenizeBody:
    body = read_body(DetokenizeBody, document)
    for at, token in enumerate(body.tokens):
        if not 0 <= token < vocabulary:
            raise ApiFault(400, f"{token} is no token: there are {vocabulary}, from 0 on", f"tokens.{at}")
    return body
