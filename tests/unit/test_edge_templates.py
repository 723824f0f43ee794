# ruff: noqa: E501  # templates are written as they are found in checkpoints
"""Chat templates: the text of transformers, the template's refusals, and limits."""

import json
import random
import re
from datetime import datetime

import pytest

from edgewise.dialogue import Message, Prompt, Role, Tool, ToolCall
from edgewise.edge import costs
from edgewise.edge.templates import ChatTemplate
from edgewise.errors import BundleError, InputError, MissingExtraError

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HEADERS = """{{- bos_token }}
{%- set today = strftime_now("%d %b %Y") %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\nToday: " + today + "\n" }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\n\n" }}
    {%- endfor %}
{%- endif %}
{{- system + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'tool' or 'tool_calls' in message) %}
        {%- generation %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}
        {%- endgeneration %}
    {%- elif 'tool_calls' in message %}
        {%- for call in message.tool_calls %}
            {{- '{"name": "' + call.function.name + '", "parameters": ' }}{{- call.function.arguments | tojson }}{{- "}" }}
        {%- endfor %}
    {%- else %}
        {{- '<|start_header_id|>ipython<|end_header_id|>' + (message.content | tojson) }}
        {%- continue %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""
HERMES = """{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\n\n' }}
    {%- endif %}
    {{- "# Tools\n\n<tools>" }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\n</tools><|im_end|>\n" }}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if message.role == "user" %}
        {%- set ns.last = index %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "assistant" and message.tool_calls %}
        {{- '<|im_start|>' + message.role + '\n' + message.content }}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\n<tool_call>\n{"name": "' ~ tool_call.name ~ '", "arguments": ' ~ (tool_call.arguments | tojson) ~ '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {{- '<tool_response>\n' + message.content + '\n</tool_response>' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + ('!' if loop.index0 == ns.last else '') + '\n' + message.content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}
"""
STRICT = """{{ bos_token }}
{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
    {% if message['role'] == 'user' %}
{{ '[INST] ' + message['content'] + ' [/INST]' }}
    {% elif message['role'] == 'assistant' %}
{{ message['content'] + eos_token}}
    {% else %}
{{ raise_exception('Only user and assistant roles are supported!') }}
    {% endif %}
{% endfor %}
"""
TEMPLATES = {"chatml": CHATML, "headers": HEADERS, "hermes": HERMES, "strict": STRICT}
WORDS = [
    "naïve",
    "<b>&amp;</b>",
    "  padded  ",
    "日本語",
    "👩‍👩‍👧",
    "{{ x }}",
    "{% endfor %}",
    '"quoted"',
    "line\nbreak",
    "",
    "\\n",
]


def files_of(template, **config):
    return {"tokenizer_config.json": json.dumps({**TOKENS, "chat_template": template, **config}).encode()}


def user(text):
    return Message(role=Role.USER, content=text)


def conversation(draw):
    """Messages, and what transformers is given for them."""
    messages, plain = [], []
    for _ in range(draw.randint(1, 6)):
        role = draw.choice(list(Role))
        text = " ".join(draw.choices(WORDS, k=draw.randint(0, 4)))
        entry = {"role": str(role), "content": text}
        calls, answered = (), None
        if role is Role.ASSISTANT and draw.random() < 0.5:
            arguments = {"q": draw.choice(WORDS), "n": draw.randint(0, 9)}
            calls = (ToolCall(id="abcdefghi", name="find", arguments=json.dumps(arguments)),)
            function = {"name": "find", "arguments": arguments}
            entry["tool_calls"] = [{"id": "abcdefghi", "type": "function", "function": function}]
        if role is Role.TOOL:
            answered = entry["tool_call_id"] = "abcdefghi"
        messages.append(Message(role=role, content=text, tool_calls=calls, tool_call_id=answered))
        plain.append(entry)
    parameters = {"type": "object", "properties": {"q": {"type": "string", "description": draw.choice(WORDS)}}}
    described = [{"name": "find", "description": "Finds <things>", "parameters": parameters}] * draw.randint(0, 2)
    tools = tuple(Tool(**{**tool, "parameters": json.dumps(tool["parameters"])}) for tool in described)
    return (
        Prompt(messages=tuple(messages), tools=tools),
        plain,
        [{"type": "function", "function": f} for f in described],
    )


@pytest.mark.slow
def test_the_text_is_that_of_transformers():
    """On 100 random conversations; what it refuses is refused, for the same reason."""
    import jinja2
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **TOKENS)
    ours = {name: ChatTemplate(files_of(source)) for name, source in TEMPLATES.items()}
    draw, refused = random.Random(7), 0
    for _ in range(100):
        prompt, plain, tools = conversation(draw)
        for name, source in TEMPLATES.items():
            try:
                expected = tokenizer.apply_chat_template(
                    plain, tools=tools or None, chat_template=source, tokenize=False, add_generation_prompt=True
                )
            except jinja2.TemplateError as e:
                refused += 1
                with pytest.raises(InputError, match=re.escape(str(e))):
                    ours[name].render(prompt)
            else:
                assert ours[name].render(prompt) == expected
    assert 10 < refused < 200


def test_a_role_order_that_the_template_refuses_is_named():
    template = ChatTemplate(files_of(STRICT))
    assert template.render(Prompt(messages=(user("Hi"),))) == "<s>\n[INST] Hi [/INST]\n"
    with pytest.raises(InputError, match="must alternate"):
        template.render(Prompt(messages=(user("Hi"), user("there"))))


def test_tools_that_must_not_be_called_are_not_shown():
    template = ChatTemplate(files_of(HERMES))
    tool = Tool(name="find")
    assert "find" in template.render(Prompt(messages=(user("Hi"),), tools=(tool,)))
    assert "find" not in template.render(Prompt(messages=(user("Hi"),), tools=(tool,), tool_choice="none"))


def test_a_template_takes_tools_or_would_drop_them():
    assert ChatTemplate(files_of(HERMES)).takes_tools
    assert not ChatTemplate(files_of("{{ messages[0].content }}")).takes_tools
    assert not ChatTemplate(files_of("{{ raise_exception('no') }}")).takes_tools


def test_the_day_is_the_one_that_it_is_told():
    template = ChatTemplate(files_of("{{ strftime_now('%d %B %Y') }}"), now=lambda: datetime(2026, 2, 3))
    assert template.render(Prompt(messages=(user("Hi"),))) == "03 February 2026"


def test_templates_by_name_and_from_a_file_of_their_own():
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "with tools"}]
    template = ChatTemplate(files_of(named))
    assert template.render(Prompt(messages=(user("Hi"),))) == "plain"
    assert template.render(Prompt(messages=(user("Hi"),), tools=(Tool(name="f"),))) == "with tools"
    files = {**files_of("old"), "chat_template.jinja": b"new {{ eos_token }}{{ additional_special_tokens }}"}
    files["special_tokens_map.json"] = b'{"eos_token": {"content": "<e>"}, "additional_special_tokens": ["<x>"]}'
    assert ChatTemplate(files).render(Prompt(messages=(user("Hi"),))) == "new </s>['<x>']"


def test_without_a_template_messages_cannot_be_read():
    with pytest.raises(InputError, match="no chat template"):
        ChatTemplate({"tokenizer_config.json": b"{}"})


@pytest.mark.parametrize("source", ["{% for %}", "{{ 'a' ", "{% nonsense %}"])
def test_what_is_no_template(source):
    with pytest.raises(BundleError, match="cannot be read"):
        ChatTemplate(files_of(source))


# Two values that are alike and take for ever to compare, and one that takes as long to hash.
DOUBLED = (
    "{% set ns = namespace(x=[1], y=[1]) %}"
    "{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}"
)
HASHED = "{% set ns = namespace(x=(1,)) %}{% for i in range(60) %}{% set ns.x = (ns.x, ns.x) %}{% endfor %}"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ 'a' * 1000000000000 }}",
        "{{ [1] * 1000000000000 }}",
        "{{ 10 ** 10000000000 }}",
        "{% for i in range(10000000000) %}{{ i }}{% endfor %}",
        "{% for i in range(90000) %}{{ 'a' * 1000 }}{% endfor %}",
        "{% set ns = namespace(s='aaaaaaaaaaaaaaaa') %}{% for i in range(26) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set ns = namespace(s='aaaaaaaaaaaaaaaa') %}{% for i in range(26) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(n=2) %}{% for i in range(40) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
        "{% set ns = namespace(n=1000000000) %}{{ 'a' | center(ns.n) }}",
        "{{ ('a' | center(1000000000)) | length }}",
        "{{ 'a'.center(1000000000) | length }}",
        "{{ ('%1000000000d' % 1) | length }}",
        "{{ ('%*d' % (1000000000, 1)) | length }}",
        "{{ '%1000000000d' | format(1) | length }}",
        "{{ '{:1000000000}'.format(1) | length }}",
        "{{ '{:{w}}'.format(1, w=1000000000) | length }}",
        "{{ [1] | tojson(indent=1000000000) | length }}",
        "{{ 'a\nb' | indent(1000000000) | length }}",
        "{{ ([1] | batch(1000000000, 1) | list)[0] | length }}",
        "{% set a = 'a' * 4000 %}{{ a | replace('a', a) | length }}",
        "{% set a = 'a' * 4000 %}{{ a.replace('a', a) | length }}",
        "{% set a = 'a' * 4000 %}{{ ([a] * 4000) | join | length }}",
        "{% set a = 'a' * 4000 %}{{ a.join(a) | length }}",
        "{% set a = '\t' * 4000 %}{{ a.expandtabs(1000000) | length }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x|tojson }}",
        f"{DOUBLED}{{{{ ns.x == ns.y }}}}",
        f"{DOUBLED}{{{{ 1 if ns.y in [ns.x] }}}}",
        f"{DOUBLED}{{{{ ns.x is eq ns.y }}}}",
        f"{DOUBLED}{{{{ [ns.y] | select('in', [ns.x]) | list }}}}",
        f"{DOUBLED}{{{{ [ns.x].index(ns.y) }}}}",
        f"{DOUBLED}{{{{ [ns.x, ns.y] | sort | length }}}}",
        f"{DOUBLED}{{{{ [ns.x, ns.y] | max | length }}}}",
        f"{DOUBLED}{{% for i in (1, 2) %}}{{{{ loop.changed(ns.x if i == 1 else ns.y) }}}}{{% endfor %}}",
        f"{DOUBLED}{{{{ {{1: ns.x}}.values() | list == [ns.y] }}}}",
        f"{DOUBLED}{{{{ {{1: ns.x}}.items() == {{1: ns.y}}.items() }}}}",
        f"{DOUBLED}{{{{ ns.y in ([ns.x] | map('default')) }}}}",
        f"{HASHED}{{{{ {{ns.x: 1}} }}}}",
        f"{HASHED}{{{{ {{}}[ns.x] }}}}",
        f"{HASHED}{{{{ {{}}.get(ns.x) }}}}",
        f"{HASHED}{{{{ dict([(ns.x, 1)]) }}}}",
        f"{HASHED}{{{{ {{}}.fromkeys([ns.x]) }}}}",
        f"{HASHED}{{{{ [ns.x] | unique | list }}}}",
        "{% set ns = namespace(x=(1,)) %}{% for i in range(90000) %}{% set ns.x = (ns.x,) %}{% endfor %}{{ {ns.x: 1} }}",
        "{% set a = 'a' * 200000 %}{{ ('b' ~ a)[1:] in [a[1:] ~ 'b'] * 200000 }}",
        "{% set ns = namespace(k=[]) %}{% for i in range(3000) %}{% set ns.k = ns.k + [(i * 2305843009213693951, 1)] %}"
        "{% endfor %}{{ dict(ns.k) }}",
        "{% set a = 'a' * 200000 %}{% for i in range(1000) %}{% set b = a[1:] %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
        "{% macro m(n) %}{% if n > 0 %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
        "{{ 1 / 0 }}",
        "{{ messages[0].content.nothing.at_all }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ messages[7]['content'] }}",
    ],
)
def test_a_hostile_template_gets_nowhere(source, monkeypatch):
    monkeypatch.setattr(costs, "WORK", costs.WORK // 16)
    monkeypatch.setattr(costs, "LIMIT", costs.LIMIT // 16)
    with pytest.raises(InputError, match="messages"):
        ChatTemplate(files_of(source)).render(Prompt(messages=(user("Hi"),)))


def test_a_long_conversation_is_far_from_the_limits():
    messages = tuple(user("word " * 190) for _ in range(1024))
    for source in (CHATML, HEADERS, HERMES):
        assert len(ChatTemplate(files_of(source)).render(Prompt(messages=messages))) > 970_000


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ '-'.join(messages | map(attribute='role')) }}", "user-user"),
        ("{{ messages | map(attribute='content') | join(', ') }}", "Hi, you"),
        ("{{ messages | join(', ', attribute='content') }}", "Hi, you"),
        ("{{ 'a' ~ 1 ~ nothing ~ none }}", "a1None"),
        ("{{ '%5s|%-3d' % (messages[0].content, 7) }}{{ '%d%%' | format(5) }}", "   Hi|7  5%"),
        ("{{ '{:>4}{}'.format('a', 1) }}{{ 'a b'.replace(' ', '--') | replace('a', 'c') }}", "   a1c--b"),
        ("{% for m in messages if m.content == 'you' %}{{ loop.length }}{{ loop.last }}{% endfor %}", "1True"),
        ("{{ messages[0] == messages[1] }}{{ 'i' in messages[0].content != 'you' > 'us' }}", "FalseTrue"),
        (
            "{{ 2 in [1, 2] | map('abs') }}{{ 2 is in [1, 2] }}{{ {(1, 'a'): 3}[1, 'a'] }}{{ 1 < 2 < 3 }}",
            "TrueTrue3True",
        ),
        ("{{ [3, 1, 3] | unique | sort | list }}{{ messages | groupby('role') | length }}", "[1, 3]1"),
        ("{{ messages[::-1][0]['content'][:2] }}{{ dict(messages[0], a=1).get('a') }}", "yo1"),
        (
            "{{ nothing == none }}{{ nothing is defined }}{{ none is none }}{{ 4 is divisibleby 2 }}",
            "FalseFalseTrueTrue",
        ),
        ("{{ messages[1:] + [1] | list }}{{ [1, 2] | sum }}", "[{'role': 'user', 'content': 'you'}, 1]3"),
        ("{{ 'a\nb' | indent(2, true) }}{{ {'a': [1]} | tojson(indent=1) }}", '  a\n  b{\n "a": [\n  1\n ]\n}'),
    ],
)
def test_what_templates_do_is_what_it_was(source, text):
    assert ChatTemplate(files_of(source)).render(Prompt(messages=(user("Hi"), user("you")))) == text


def test_without_jinja2_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    monkeypatch.setitem(__import__("sys").modules, "jinja2.ext", None)
    with pytest.raises(MissingExtraError, match="generate"):
        ChatTemplate(files_of(CHATML))
