# ruff: noqa: E501  # templates are written as they are found in checkpoints
"""Whole conversations against transformers: the same text and the same tokens, or the same refusal.

The templates are in the manner of families of models that are in wide use: what they ask of the environment (methods of
texts, tests, filters, namespaces, refusals of their own) differs from one to the next.
"""

import json
import random
import re

import pytest

from edgewise.bundle import pack_generator
from edgewise.dialogue import Message, Prompt, Role, Tool, ToolCall
from edgewise.edge import EdgeGenerator
from edgewise.errors import InputError

SMOL = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a small model.<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""

LLAMA = """{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if not tools_in_user_message is defined %}{%- set tools_in_user_message = true %}{%- endif %}
{%- if not date_string is defined %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{#- The system's own words come out of the messages first. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if builtin_tools is defined or tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none and not tools_in_user_message %}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
{%- endif %}
{{- system_message }}{{- "<|eot_id|>" }}
{%- if tools_in_user_message and not tools is none %}
    {%- if messages | length != 0 %}
        {%- set first_user_message = messages[0]['content']|trim %}
        {%- set messages = messages[1:] %}
    {%- else %}
        {{- raise_exception("Cannot put tools in the first user message when there's no first user message!") }}
    {%- endif %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\n' -}}
    {{- 'Respond in the format {"name": function name, "parameters": dictionary}.\\n\\n' }}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
    {{- first_user_message + "<|eot_id|>"}}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {%- if builtin_tools is defined and tool_call.name in builtin_tools %}
            {%- for arg_name, arg_val in tool_call.arguments | items %}{{- arg_name + '="' + arg_val + '"' }}{%- endfor %}
        {%- else %}
            {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
            {{- '{"name": "' + tool_call.name + '", ' }}{{- '"parameters": ' }}{{- tool_call.arguments | tojson }}{{- "}" }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}{{- message.content | tojson }}
        {%- else %}{{- message.content }}{%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""

QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n\\nYou are provided with function signatures within <tools></tools> XML tags:\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools>\\n\\n{\\"name\\": <function-name>, \\"arguments\\": <args-json-object>}<|im_end|>\\n" }}
{%- else %}
    {%- if messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}{%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or (not loop.last and reasoning_content)) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{%- endif %}
                {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
                {{- '<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}{{- tool_call.arguments }}{%- else %}{{- tool_call.arguments | tojson }}{%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' }}{{- content }}{{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""

MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{#- This block checks for alternating user/assistant messages, skipping tool calling messages #}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or message.role == "tool_results" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, conversation roles must alternate user/assistant/user/assistant/...") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}{{- '"' + key + '": "' + val + '"' }}{%- else %}{{- '"' + key + '": ' + val|tojson }}{%- endif %}
                    {%- if not loop.last %}{{- ", " }}{%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" }}{%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}
            {{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id|length != 9 %}
                {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}
            {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" + eos_token }}{%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- elif message["role"] == "tool_results" or message["role"] == "tool" %}
        {%- if message.content is defined and message.content.content is defined %}
            {%- set content = message.content.content %}
        {%- else %}
            {%- set content = message.content %}
        {%- endif %}
        {{- '[TOOL_RESULTS] {"content": ' + content|string + ", " }}
        {%- if not message.tool_call_id is defined or message.tool_call_id|length != 9 %}
            {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
        {%- endif %}
        {{- '"call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, with the exception of an initial optional system message!") }}
    {%- endif %}
{%- endfor %}
"""

GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '
' + message['content'] | trim + '<end_of_turn>
' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model
'}}{% endif %}"""

MACROS = """{%- macro told(one, depth) -%}
    {%- if one is mapping -%}{ {%- for key, value in one|dictsort -%}{{ key }}:{{ told(value, depth + 1) }}{{ ";" if not loop.last }}{%- endfor -%} }
    {%- elif one is string -%}{{ one | replace("\\n", " ") | upper if depth > 1 else one }}
    {%- elif one is sequence -%}[{{ one | map("string") | join("|") }}]
    {%- else -%}{{ one }}{%- endif -%}
{%- endmacro -%}
{%- set calls = messages | selectattr("tool_calls", "defined") | map(attribute="tool_calls") | list -%}
{%- set words = messages | rejectattr("role", "in", ["system", "tool"]) | list -%}
{{ bos_token }}({{ calls | length }},{{ words | length }})
{%- for tool in tools or [] %}<tool>{{ told(tool.function.parameters, 0) }}</tool>{% endfor -%}
{%- for message in messages %}
    {%- set parts = message.content.split("\\n") %}
    {{- "<|im_start|>%s %d/%d" | format(message.role | capitalize, loop.index, loop.length) }}
    {%- if loop.previtem is defined and loop.previtem.role == message.role %}{{ " again" }}{% endif %}
    {{- " " ~ parts[-1] ~ (parts | length) }}{{ message.content[:3] | e if message.content }}
    {%- for call in message.tool_calls or [] %}{{ " " ~ told(call.function.arguments, 1) }}{% endfor %}
    {{- "<|im_end|>" }}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<|im_start|>Assistant" }}{% endif -%}
"""

TEMPLATES = {"smol": SMOL, "llama": LLAMA, "qwen": QWEN, "mistral": MISTRAL, "gemma": GEMMA, "macros": MACROS}
SPECIALS = ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "[INST]", "[/INST]")
SPECIALS += ("[TOOL_CALLS]", "<start_of_turn>", "<end_of_turn>")
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
WORDS = (
    "Where is it?", "naïve", "<b>&amp;</b>", "  padded  ", "日本語", "👩‍👩‍👧", "e\u0301", "שלום", "a\u0000b", "\ufffd", "{{ x }}",
    '"quoted" \\', "line\nbreak\n", "", "<think>\nhm\n</think>\n\nYes", "<tool_response>1</tool_response>", "<|im_end|>", "</s>", "İ ß",
)  # fmt: skip


def conversation(draw: random.Random) -> tuple[Prompt, list[dict], list[dict]]:
    """One that most templates take: turns in order, with calls and their results; now and then one that is out of order."""
    said: list[Message] = []
    if draw.random() < 0.5:
        said.append(Message(role=Role.SYSTEM, content=text(draw)))
    for _ in range(draw.randint(1, 3)):
        said.append(Message(role=Role.USER, content=text(draw)))
        if draw.random() < 0.4:
            calls = tuple(call(draw, number) for number in range(1 + (draw.random() < 0.2)))
            said.append(Message(role=Role.ASSISTANT, content=draw.choice(["", text(draw)]), tool_calls=calls))
            said += [Message(role=Role.TOOL, content=text(draw), tool_call_id=one.id) for one in calls]
        said.append(Message(role=Role.ASSISTANT, content=text(draw)))
    if draw.random() < 0.8:
        said.append(Message(role=Role.USER, content=text(draw)))
    if draw.random() < 0.1:
        draw.shuffle(said)
    described = [
        {"name": name, "description": f"Finds {text(draw)}", "parameters": parameters(draw)}
        for name in ("find", "look_up")[: draw.choice([0, 0, 1, 2])]
    ]
    tools = tuple(Tool(**{**one, "parameters": json.dumps(one["parameters"])}) for one in described)
    plain = [plainly(message) for message in said]
    return (
        Prompt(messages=tuple(said), tools=tools),
        plain,
        [{"type": "function", "function": one} for one in described],
    )


def text(draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(0, 4)))


def call(draw: random.Random, number: int) -> ToolCall:
    arguments = {"q": text(draw), "deep": {"n": [draw.randint(-9, 9), 1.5, None, True]}}
    return ToolCall(
        id=f"call{number:05}" if draw.random() < 0.9 else "c1", name="find", arguments=json.dumps(arguments)
    )


def parameters(draw: random.Random) -> dict:
    return {"type": "object", "properties": {"q": {"type": "string", "description": text(draw)}}, "required": ["q"]}


def plainly(message: Message) -> dict:
    """The message as transformers is given it."""
    told = {"role": str(message.role), "content": message.content}
    if message.tool_calls:
        told["tool_calls"] = [
            {"id": one.id, "type": "function", "function": {"name": one.name, "arguments": json.loads(one.arguments)}}
            for one in message.tool_calls
        ]
    return told if message.tool_call_id is None else {**told, "tool_call_id": message.tool_call_id}


@pytest.fixture(scope="module")
def conversations():
    draw = random.Random(11)
    return [conversation(draw) for _ in range(100)]


@pytest.fixture(scope="module")
def tokenizer(tiny_generator):
    from tokenizers import AddedToken

    built = tiny_generator.tokenizer()
    built.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIALS])
    return built


@pytest.mark.slow
@pytest.mark.parametrize("manner", list(TEMPLATES))
def test_the_tokens_are_those_of_transformers(manner, conversations, tokenizer, tiny_generator, tmp_path):
    """Of 100 random conversations; what transformers refuses is refused for the same reason."""
    import jinja2
    from transformers import PreTrainedTokenizerFast

    folder = tiny_generator.write_folder(tmp_path / "built")
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"tokenizer_class": "GPT2Tokenizer", **TOKENS, "chat_template": TEMPLATES[manner]}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    pack_generator(tiny_generator.source(folder), tmp_path / "bundle")
    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=TEMPLATES[manner], **TOKENS)
    rendered, refused = 0, 0
    with EdgeGenerator.load(tmp_path / "bundle") as ours:
        for prompt, plain, tools in conversations:
            asked = {"tools": tools or None, "add_generation_prompt": True}
            try:
                expected = theirs.apply_chat_template(plain, tokenize=True, **asked)
            except jinja2.TemplateError as e:
                refused += 1
                with pytest.raises(InputError, match=re.escape(str(e))):
                    ours.prompt_ids(prompt)
            else:
                rendered += 1
                assert ours.prompt_ids(prompt).tolist() == expected
    assert rendered >= 15
    assert refused >= {"llama": 5, "mistral": 5, "gemma": 15}.get(manner, 0)
