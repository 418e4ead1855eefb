"""Prompts -> answers, in batches, by transformers' own generate.

Rows are left-padded in batches of similar length. Rendering is data/chat.py's; loading is model/load.py's.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from threading import Event, Thread
from typing import Any, Literal

import torch

from danlu.config import validate
from danlu.data.chat import Chat
from danlu.data.formats import Message
from danlu.device import DtypeName, read_device
from danlu.errors import ConfigError
from danlu.generate.params import GenerationParams
from danlu.hub import Say, cache_directory, quiet_transformers, silent
from danlu.model.attention import causal_attention
from danlu.model.load import ModelOptions, load

# Rows decoded together; more rows cost more memory and save no time on a CPU.
BATCH_ROWS = 32

Prompt = str | Sequence[Message] | Sequence[int]


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        token_ids: new tokens only, without the stop token.
        text: their text, without control tokens.
        finish_reason: "stop" (a stop token came) or "length" (max_new_tokens were made).
    """

    token_ids: tuple[int, ...]
    text: str
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True)
class Generation:
    """The answers to one prompt."""

    sequences: tuple[Answer, ...]

    @property
    def text(self) -> str:
        return self.sequences[0].text


class Engine:
    """A model ready to answer.

    Args:
        model_name_or_path: a name that `danlu models` lists, a directory, a .gguf file, or a hub id.
        dtype: "auto" is bfloat16 where the hardware has it, else float32.
        adapter: directory of a PEFT adapter to put on the model.
        accept_licence: you accept the licence of a model that asks for it.
        say: hears what is fetched and unpacked.
    """

    def __init__(
        self,
        model_name_or_path: str,
        dtype: DtypeName = "auto",
        adapter: str | None = None,
        *,
        accept_licence: bool = False,
        say: Say = silent,
    ) -> None:
        chosen = {"name": model_name_or_path, "dtype": dtype, "adapter": adapter, "accept_licence": accept_licence}
        options = validate(ModelOptions, chosen, where="Engine")
        loaded = load(options, read_device(), cache=cache_directory(), say=say)
        self._model = loaded.model
        self.chat = Chat.of(loaded.tokenizer, loaded.model.generation_config)

    @classmethod
    def around(cls, model: Any, chat: Chat) -> Engine:
        """An engine around a model that is in memory already."""
        engine = cls.__new__(cls)
        engine._model, engine.chat = model, chat
        return engine

    def generate(self, prompts: Sequence[Prompt], params: GenerationParams | None = None) -> list[Generation]:
        """One Generation a prompt, in order.

        Args:
            prompts: each a string (continued as it is), a list of messages (rendered by the chat template),
                or a list of token ids.
        """
        params = params or GenerationParams()
        ids = [self.token_ids(prompt) for prompt in prompts]
        order = sorted(range(len(ids)), key=lambda at: len(ids[at]))
        answers: dict[int, Generation] = {}
        # Padding would count as seen tokens, and a seeded draw would depend on its neighbours: such rows go alone.
        at_once = 1 if params.repetition_penalty != 1 or params.seed is not None else BATCH_ROWS
        for start in range(0, len(order), at_once):
            rows = order[start : start + at_once]
            answers.update(zip(rows, self._batch([ids[at] for at in rows], params), strict=True))
        return [answers[at] for at in range(len(ids))]

    def stream(self, prompt: Prompt, params: GenerationParams | None = None) -> Iterator[str]:
        """Pieces of one answer's text as they come; work ends when the caller stops asking."""
        from transformers import TextIteratorStreamer

        params = params or GenerationParams()
        ids = self.token_ids(prompt)
        streamer = TextIteratorStreamer(self.chat.tokenizer, skip_prompt=True, skip_special_tokens=True)
        faults: list[BaseException] = []
        left = Event()

        def work() -> None:
            try:
                self._run([ids], params, streamer=streamer, left=left)
            except BaseException as error:
                faults.append(error)
                streamer.on_finalized_text("", stream_end=True)  # end() decodes once more, and may fail again

        thread = Thread(target=work, daemon=True)
        thread.start()
        try:
            yield from streamer
        finally:
            left.set()
            thread.join()
        if faults:
            raise faults[0]

    @torch.inference_mode()
    def logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        """The model's scores for the next token after each of `token_ids`: (tokens, vocabulary) float32."""
        self._model.eval()
        with causal_attention(self._model):
            output = self._model(input_ids=torch.tensor([list(token_ids)], device=self._model.device))
        scores: torch.Tensor = output.logits[0].float()
        return scores

    def token_ids(self, prompt: Prompt) -> list[int]:
        """The ids that the model is fed for `prompt`."""
        if len(prompt) == 0:
            ids = []
        elif isinstance(prompt, str):
            ids = self.chat.text_prompt(prompt)
        elif isinstance(prompt[0], Integral):
            ids = [int(token) for token in prompt]
        else:
            ids = self.chat.prompt(prompt)  # type: ignore[arg-type]
        if not ids:
            raise ConfigError("an empty prompt", fix="give some text, messages or token ids")
        return ids

    def _batch(self, ids: list[list[int]], params: GenerationParams) -> list[Generation]:
        rows = self._run(ids, params)
        longest = max(map(len, ids))
        return [Generation((self._sequence(row[longest:]),)) for row in rows.tolist()]

    def _sequence(self, new: list[int]) -> Answer:
        stop = next((at for at, token in enumerate(new) if token in self.chat.stop_ids), None)
        kept = new if stop is None else new[:stop]
        return Answer(tuple(kept), self.chat.decode(kept), "length" if stop is None else "stop")

    @torch.inference_mode()
    def _run(
        self, ids: list[list[int]], params: GenerationParams, streamer: Any = None, left: Event | None = None
    ) -> torch.Tensor:
        """(rows, longest prompt + new tokens) token ids, left-padded; ends early once `left` is set."""
        from transformers import GenerationConfig, StoppingCriteriaList

        longest = max(map(len, ids))
        pad = min(self.chat.stop_ids)
        device = self._model.device
        input_ids = torch.tensor([[pad] * (longest - len(row)) + row for row in ids], device=device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids], device=device)
        sampling = {"temperature": params.temperature, "top_p": params.top_p, "top_k": params.top_k or 0}
        config = GenerationConfig(
            max_new_tokens=params.max_new_tokens,
            do_sample=params.do_sample,
            repetition_penalty=params.repetition_penalty,
            eos_token_id=sorted(self.chat.stop_ids),
            pad_token_id=pad,
            **(sampling if params.do_sample else {}),
        )
        stopping = StoppingCriteriaList([_Left(left)] if left else [])
        self._model.eval()
        with (
            causal_attention(self._model),
            _no_other_knobs(self._model),
            torch.random.fork_rng(),
            quiet_transformers(),
        ):
            if params.do_sample:
                # Without a seed too: what fork_rng puts back afterwards would be drawn from again.
                torch.manual_seed(secrets.randbits(63) if params.seed is None else params.seed)
            result: torch.Tensor = self._model.generate(
                input_ids=input_ids,
                attention_mask=mask,
                generation_config=config,
                stopping_criteria=stopping,
                streamer=streamer,
            )
        return result


class _Left:
    """transformers' stopping criterion: nobody waits for the rest."""

    def __init__(self, left: Event) -> None:
        self._left = left

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_options: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self._left.is_set(), device=input_ids.device)


@contextmanager
def _no_other_knobs(model: Any) -> Iterator[None]:
    """Inside, the model's own generation_config is bare: transformers would fill every knob not given from it."""
    from transformers import GenerationConfig

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    own, base.generation_config = base.generation_config, GenerationConfig()
    try:
        yield
    finally:
        base.generation_config = own
