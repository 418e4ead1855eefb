"""Chat templates that write calls as widely used models do, each shortened to what its form is."""

from __future__ import annotations

_TURNS = (
    "{%- if tools %}<|im_start|>system\nTools: {% for tool in tools %}{{ tool | tojson }}{% endfor %}<|im_end|>\n"
    "{% endif %}"
    "{%- for message in messages %}"
    "{%- if message.role == 'tool' %}<|im_start|>user\nResult: {{ message.content }}<|im_end|>\n"
    "{%- elif message.role == 'assistant' %}<|im_start|>assistant\n@THOUGHT@{{ message.content }}"
    "{%- if message.tool_calls %}@CALLS@{% endif %}<|im_end|>\n"
    "{%- else %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n@OPENING@{% endif %}"
)


def template(calls: str, thought: str = "", opening: str = "") -> str:
    return _TURNS.replace("@CALLS@", calls).replace("@THOUGHT@", thought).replace("@OPENING@", opening)


_EACH = "{% for call in message.tool_calls %}"
_ARGUMENTS = "{{ call.function.arguments | tojson }}"
_TAGS = (
    "{% for key, value in call.function.arguments.items() %}@OPEN@{{ key }}@MIDDLE@"
    "{{ value if value is string else value | tojson }}@CLOSE@{% endfor %}"
)


def _tags(opening: str, middle: str, close: str) -> str:
    return _TAGS.replace("@OPEN@", opening).replace("@MIDDLE@", middle).replace("@CLOSE@", close)


HERMES = template(
    _EACH
    + '\n<tool_call>\n{"name": "{{ call.function.name }}", "arguments": '
    + _ARGUMENTS
    + "}\n</tool_call>{% endfor %}"
)
CODER = template(
    _EACH
    + "\n<tool_call>\n<function={{ call.function.name }}>\n"
    + _tags("<parameter=", ">\n", "\n</parameter>\n")
    + "</function>\n</tool_call>{% endfor %}"
)
GLM = template(
    _EACH
    + "\n<tool_call>{{ call.function.name }}\n"
    + _tags("<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>\n")
    + "</tool_call>{% endfor %}"
)
LLAMA = template(
    "{% if message.tool_calls | length > 1 %}{{ raise_exception('one call alone') }}{% endif %}"
    '{% set call = message.tool_calls[0] %}{"name": "{{ call.function.name }}", "parameters": ' + _ARGUMENTS + "}"
)
MISTRAL = template(
    "[TOOL_CALLS][" + _EACH + "{% if call.id | length != 9 %}{{ raise_exception('nine letters') }}{% endif %}"
    '{"name": "{{ call.function.name }}", "arguments": ' + _ARGUMENTS + ', "id": "{{ call.id }}"}'
    "{% if not loop.last %}, {% endif %}{% endfor %}]"
)
MISTRAL_LATER = template(_EACH + "[TOOL_CALLS]{{ call.function.name }}[ARGS]" + _ARGUMENTS + "{% endfor %}")
DEEPSEEK = template(
    "<｜tool▁calls▁begin｜>" + _EACH + "<｜tool▁call▁begin｜>{{ call.function.name }}<｜tool▁sep｜>"
    + _ARGUMENTS + "<｜tool▁call▁end｜>{% endfor %}<｜tool▁calls▁end｜>"
).replace("{%- if tools %}", "{%- if false %}")  # fmt: skip
DEEPSEEK_R1 = template(
    "<｜tool▁calls▁begin｜>" + _EACH + "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{{ call.function.name }}\n```json\n"
    "{{ '' + call.function.arguments }}\n```<｜tool▁call▁end｜>{% if not loop.last %}\n{% endif %}{% endfor %}"
)
KIMI = template(
    "<|calls_begin|>" + _EACH + "<|call_begin|>{{ call.id }}<|arguments|>" + _ARGUMENTS + "<|call_end|>{% endfor %}"
    "<|calls_end|>"
)
GEMMA = template(
    "{% macro written(value) %}{% if value is string %}<|q|>{{ value }}<|q|>{% elif value is mapping %}{{ '{' }}"
    "{% for key, one in value | dictsort %}{{ key }}:{{ written(one) }}{% if not loop.last %},{% endif %}{% endfor %}"
    "{{ '}' }}"
    "{% elif value is boolean or value is number %}{{ value | tojson }}{% else %}["
    "{% for one in value %}{{ written(one) }}{% if not loop.last %},{% endif %}{% endfor %}]{% endif %}{% endmacro %}"
    + _EACH
    + "<|call>call:{{ call.function.name }}{{ written(call.function.arguments) }}<call|>{% endfor %}"
)
PLAIN = template("").replace("{%- if tools %}", "{%- if false %}").replace("Result: {{ message.content }}", "")

# Answers begin with reasoning or without; a prompt has it open already; or closed, where thinking is switched off.
THINKING = template(
    _EACH
    + '<tool_call>\n{"name": "{{ call.function.name }}", "arguments": '
    + _ARGUMENTS
    + "}\n</tool_call>{% endfor %}",
    "{% if message.reasoning_content %}<think>\n{{ message.reasoning_content }}\n</think>\n\n{% endif %}",
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}",
)
THINKS_AT_ONCE = THINKING.replace("{% if enable_thinking is defined and", "<think>\n{% if false and")

# Reasoning between marks of another kind, which stand only before a call.
CHANNEL = GEMMA.replace(
    "<|im_start|>assistant\n{{ message.content }}",
    "<|im_start|>assistant\n{% if message.reasoning_content and message.tool_calls %}<|channel>thought\n"
    "{{ message.reasoning_content }}\n<channel|>{% endif %}{{ message.content }}",
)
