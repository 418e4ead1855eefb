"""Tools, answers that call them, and an engine that says what it is told."""

from __future__ import annotations

import json
from dataclasses import replace

import scripts
import templates
from serving import chat

from danlu import Engine

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
PARIS = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris", "days": 2}}\n</tool_call>'
NOON = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'


class Told:
    """An engine that says `answer`, with a template of one's own. `prompts` are those that it was asked."""

    def __init__(self, directory):
        self.engine = Engine(directory, dtype="float32")
        self.own, self.answer, self.prompts = self.engine.chat, "", []
        scripts.say(self.engine, self._said)

    def _said(self, prompt):
        self.prompts.append(prompt)
        return self.answer

    def says(self, answer, template=templates.HERMES):
        self.engine.chat = replace(self.own, template=template)
        self.answer, self.prompts = answer, []


def asked(**more):
    return chat(tools=[WEATHER, CLOCK], max_tokens=200, temperature=0, **more)


def calls_of(message):
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in message["tool_calls"]]
