"""What the commands `generate` and `chat` say beside an answer: what kind of model it is, and how the answer ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from danlu.data.records import Message
from danlu.errors import ConfigError, ModelError
from danlu.generate.engine import Engine, Prompt
from danlu.generate.params import GenerationParams
from danlu.generate.search.strategies import FinishReason
from danlu.hub import Say
from danlu.model.turns import Finding

TEACH = (
    "danlu train --model.name {model} --data.path chats.jsonl teaches it to chat (danlu run chinese-qa is an example)"
)


def system_message(text: str | None) -> list[Message]:
    """The beginning of a talk."""
    return [] if text is None else [{"role": "system", "content": text}]


def prompt_for(
    engine: Engine, name: str, text: str, system: str | None, say: Say, prefill: str | None = None
) -> Prompt:
    """The prompt as this kind of model reads it; `say` hears if it is only continued. Raises ConfigError.

    Args:
        prefill: how the answer begins.
    """
    if not (finding := engine.kind()).is_base:
        return begun(engine, [*system_message(system), {"role": "user", "content": text}], prefill)
    for flag, given, place in (("--system", system, "before"), ("--prefill", prefill, "after")):
        if given is not None:
            raise ConfigError(
                f"{flag} has no effect: {name} is a base model ({finding.reason})",
                fix=f"put it {place} the prompt, or say --kind instruct",
            )
    say(note_on_base(name, finding))
    return text


def check_prefill(prefill: str | None) -> None:
    """Raise ConfigError where an answer is to begin with nothing."""
    if prefill is not None and not prefill.strip():
        raise ConfigError("--prefill has no words", fix="give the words that the answer begins with, or leave it out")


def begun(engine: Engine, messages: list[Message], prefill: str | None) -> Prompt:
    """Messages whose answer begins with `prefill`, as the engine is asked."""
    if prefill is None:
        return messages
    answer: Message = {"role": "assistant", "content": prefill}
    return engine.chat_of().prompt([*messages, answer], continue_final_message=True)


def note_on_base(model: str, finding: Finding) -> str:
    """For a text that is continued as it is, though it was perhaps meant as a question."""
    return (
        f"note: {model} is a base model ({finding.reason}): it continues the text as it is, and answers no questions.\n"
        f"      {TEACH.format(model=model)}; --kind instruct asks it all the same"
    )


def no_talk(model: str, finding: Finding) -> ModelError:
    """Why a base model is no partner for a talk."""
    return ModelError(
        f"{model} is a base model: it continues text and has not learnt to answer ({finding.reason})",
        allowed="an instruct model; `danlu models` says which are",
        fix=f'danlu generate {model} "…" continues a text; {TEACH.format(model=model)}; --kind instruct talks all the '
        "same",
    )


def notes_on_end(
    tokens: int, reason: FinishReason, params: GenerationParams, forced: Sequence[object] | None = None
) -> Iterator[str]:
    """What a reader of the text alone would not know.

    Args:
        tokens: that the answer has.
        forced: where each forced phrase stands, None where it does not (`Answer.forced`).
    """
    limit = "max_new_tokens" if params.max_new_tokens is not None else "max_length"
    more = f"--{limit} {2 * (getattr(params, limit) or tokens)} allows more"
    if reason == "length":
        yield f"note: cut off after {tokens} tokens; {more}"
    if reason == "unsatisfied":
        missing = ", ".join(_missing(params, forced)) or "some forced phrase"
        yield f"note: unsatisfied: cut off after {tokens} tokens, without {missing}; {more}"


def _missing(params: GenerationParams, forced: Sequence[object] | None) -> Iterator[str]:
    for place, alternatives in zip(forced or (), params.forced, strict=forced is not None):
        if place is None:
            yield " or ".join(str(list(words)) if isinstance(words, tuple) else words for words in alternatives)
