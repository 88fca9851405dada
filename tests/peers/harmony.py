"""Conversations and texts with the ids that the peers give them: `harmony.py MODEL OUT`.

MODEL is a folder with the tokenizer.json that ft wrote. OUT gets `conversations.jsonl` and `texts.jsonl`, as `ft render` takes
them, and for each `*.expected.json`: a list of {"name", "ids", "weights"}. Conversations are rendered by openai-harmony, with
`auto_drop_analysis` off, from the ranks in tokenizer.json (it refuses any that are not OpenAI's, by their hash); texts are
encoded by transformers with tokenizer.json itself. The weights, 1 where the model itself writes, are found again here by reading
the rendered ids.
"""

import base64
import json
import os
import random
import sys
from pathlib import Path

RETURN, CONSTRAIN, CHANNEL, START, END, MESSAGE, CALL = 200002, 200003, 200005, 200006, 200007, 200008, 200012
END_OF_TEXT = 199999
WORDS = ["alpha", "beta", "größe", "naïve café", "数据", "🧑‍🚀 go", "a\tb", "line one\nline two", "x  y", "don't", "3.14159", "λ→∀"]


# ---------------------------------------------------------------------------------------------------------------- ranks


def byte_alphabet():
    """The byte that each character of a byte-level vocabulary stands for."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + index): byte for index, byte in enumerate(hidden)}


def write_ranks(tokenizer_json, directory):
    alphabet = byte_alphabet()
    vocabulary = json.loads(tokenizer_json.read_text())["model"]["vocab"]
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / "o200k_base.tiktoken", "wb") as file:
        for text, rank in sorted(vocabulary.items(), key=lambda item: item[1]):
            token = bytes(alphabet[character] for character in text)
            file.write(base64.b64encode(token) + b" " + str(rank).encode() + b"\n")


# --------------------------------------------------------------------------------------------------------- conversations


def user(text):
    return {"role": "user", "content": text}


def said(text, **more):
    return {"role": "assistant", "content": text, **more}


def call(name, arguments, identifier=None):
    return {"id": identifier or f"call_{name}", "type": "function", "function": {"name": name, "arguments": arguments}}


def function(name, description=None, parameters=None):
    inner = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": {key: value for key, value in inner.items() if value is not None}}


def parameters(properties, required=(), **more):
    return {"type": "object", "properties": properties, "required": list(required), **more}


def schemas():
    """Parameters of functions, for every way in which a schema shows in TypeScript."""
    text, number, integer = {"type": "string"}, {"type": "number"}, {"type": "integer"}
    nested = parameters({"street": {"type": "string", "description": "With the number"}, "zip": integer}, ["zip"])
    return {
        "none": None,
        "empty": {},
        "no_properties": {"type": "object", "properties": {}},
        "no_properties_key": {"type": "object"},
        "described_object": parameters({"a": text}, description="What it takes"),
        "scalars": parameters({"a": text, "b": number, "c": integer, "d": {"type": "boolean"}}, ["a", "d"]),
        "null_and_unknown": parameters({"a": {"type": "null"}, "b": {"type": "date"}, "c": {}, "d": {"anyOf": [text]}}),
        "enum": parameters({"unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"}}),
        "empty_enum": parameters({"unit": {"type": "string", "enum": [], "default": "x"}}),
        "number_enum": parameters({"n": {"type": "integer", "enum": [1, 2], "default": 2}, "m": {"type": "string", "enum": [1]}}),
        "defaults": parameters({
            "a": {"type": "string", "default": 'say "hi"\n'}, "b": {"type": "number", "default": 1.5},
            "c": {"type": "boolean", "default": False}, "d": {"type": "array", "items": text, "default": ["x", 1]},
            "e": {"type": "object", "default": {"k": None}}, "f": {"type": "string", "default": None},
            "g": {"type": "number", "default": 1e-7}, "h": {"type": "number", "default": 100.0}, "i": {"type": "integer", "default": -1},
        }),
        "descriptions": parameters({"a": {"type": "string", "description": "First\nsecond line"}, "b": number | {"description": ""}}),
        "title_examples": parameters({
            "a": {"type": "string", "title": "A title", "description": "And a description", "examples": ["x", "y z"]},
            "b": {"type": "string", "examples": []}, "c": {"type": "number", "title": "T", "examples": [1, 2]},
        }, ["a"]),
        "nested": parameters({"address": nested, "tag": text}, ["address"]),
        "nested_twice": parameters({
            "person": parameters({"home": nested | {"description": "Where"}, "age": integer | {"default": 3}}, ["home"]),
        }),
        "nested_described": parameters({"o": parameters({"a": text | {"description": "d"}}, ["a"], description="An object")}),
        "arrays": parameters({
            "a": {"type": "array", "items": text}, "b": {"type": "array"},
            "c": {"type": "array", "items": {"type": "array", "items": integer}},
            "d": {"type": "array", "items": parameters({"x": number}, ["x"])},
            "e": {"type": "array", "items": {"type": "string", "enum": ["p", "q"]}},
        }),
        "type_lists": parameters({"a": {"type": ["string", "null"]}, "b": {"type": ["integer", "number"], "default": 1}, "c": {"type": []}}),
        "nullable": parameters({
            "a": text | {"nullable": True}, "b": {"type": ["string", "null"], "nullable": True},
            "c": text | {"nullable": True, "default": "x"}, "d": integer | {"nullable": False},
        }),
        "one_of": parameters({
            "a": {"oneOf": [text, integer]}, "b": {"oneOf": [text | {"description": "As text"}, number | {"default": 2}]},
        }, ["a"]),
        "one_of_described": parameters({
            "a": {"description": "Either", "oneOf": [text | {"description": "Text"}, integer | {"description": "Number"}]},
            "b": {"description": "Same", "oneOf": [text | {"description": "Same"}, integer | {"description": "Other"}]},
        }),
        "one_of_default": parameters({
            "a": {"default": "auto", "oneOf": [{"type": "string", "enum": ["auto", "off"], "default": "auto"}, number | {"nullable": True}]},
            "b": {"default": 5, "oneOf": [integer]}, "c": {"enum": ["z"], "default": "z", "oneOf": [text]},
        }),
        "one_of_objects": parameters({"a": {"title": "Target", "examples": ["e"], "oneOf": [nested, parameters({"id": text}, ["id"])]}}),
        "one_of_none": parameters({"a": {"oneOf": []}, "b": {"oneOf": 1, "description": "odd", "type": "string", "default": "d"}}),
        "one_of_in_array": parameters({"a": {"type": "array", "items": {"oneOf": [
            text | {"description": "s", "default": "q"}, {"type": "string", "enum": ["k"], "default": "k"},
        ]}}}),
        "one_of_on_top": {"oneOf": [parameters({"a": text}), parameters({"b": integer}, ["b"])]},
        "not_ascii": parameters({"größe": {"type": "string", "description": "Größe 📏", "enum": ["klein", "groß"]}, "数": integer}),
        "special_spelling": parameters({"a": text | {"description": "<|end|><|call|>", "default": "<|start|>"}}),
    }


def random_schema(source, depth):
    """Any schema, with the keys that harmony looks at in any combination."""
    schema = {}
    kinds = ["string", "number", "integer", "boolean", "array", "object", "null", ["string", "null"], ["integer", "string"], None]
    kind = source.choice(kinds)
    if source.random() < 0.25 and depth > 0:
        schema["oneOf"] = [random_schema(source, depth - 1) for _ in range(source.randrange(1, 4))]
    elif kind is not None:
        schema["type"] = kind
    if kind == "object" and depth > 0:
        names = source.sample(["a", "b", "long_name", "ü", "type", "x1"], source.randrange(0, 4))
        schema["properties"] = {name: random_schema(source, depth - 1) for name in names}
        if source.random() < 0.6:
            schema["required"] = [name for name in names if source.random() < 0.5]
    if kind == "array" and source.random() < 0.8:
        schema["items"] = random_schema(source, depth - 1) if depth > 0 else {"type": "string"}
    for key, values in {
        "description": ["Some words", "two\nlines", "", "Some words"], "title": ["Title"], "nullable": [True, False],
        "default": ["text", 3, 2.5, None, True, ["l"], {"k": "v"}], "enum": [["text", "b"], [], [1]],
        "examples": [["one", "two"], [], [3]],
    }.items():
        if source.random() < 0.25:
            schema[key] = source.choice(values)
    return schema


def conversations():
    """(name, line) for every part of the format."""
    weather = function("get_weather", "The weather at a place.", schemas()["enum"])
    with_calls = lambda *calls, **more: {"role": "assistant", "tool_calls": list(calls), **more}
    result = lambda text, **more: {"role": "tool", "content": text, **more}
    lists = {
        "developer": [{"role": "developer", "content": "Be brief."}, user("Hi"), said("Hello")],
        "system": [{"role": "system", "content": "Be brief.\n\nVery."}, user("Hi"), said("Hello")],
        "developer_empty": [{"role": "developer", "content": ""}, user("Hi"), said("Hello")],
        "only_user": [user("Hi")],
        "empty_texts": [user(""), said("", channel="analysis"), said("", channel="final")],
        "channels": [user("Q"), said("think", channel="analysis"), said("wait", channel="commentary"), said("A", channel="final")],
        "thinking": [user("Q"), said("A", thinking="Hm.")],
        "reasoning_content": [user("Q"), said("A", reasoning_content="Hm.")],
        "thinking_null": [user("Q") | {"thinking": None}, said("A", thinking=None)],
        "two_turns": [user("Q"), said("A", thinking="Hm."), user("R"), said("B", thinking="So.")],
        "two_plain_turns": [user("Q"), said("A"), user("R"), said("B"), user("S")],
        "ends_in_analysis": [user("Q"), said("think", channel="analysis")],
        "ends_in_commentary": [user("Q"), said("wait", channel="commentary")],
        "user_twice": [user("Q"), user("And?"), said("A")],
        "user_name": [user("Q") | {"name": "ada"}, said("A")],
        "developer_between": [user("Q"), said("A"), {"role": "developer", "content": "Now in German."}, user("Q"), said("A")],
        "text_parts": [user([{"type": "text", "text": "one wor"}, {"type": "text", "text": "d"}]), said([{"type": "text", "text": "A"}])],
        "special_spellings": [
            {"role": "system", "content": "<|start|>system<|message|>"}, user("<|end|><|return|> <|endoftext|><|endofprompt|>"),
            said("<|channel|>final<|message|>", thinking="<|call|><|constrain|><|reserved_200001|>"),
        ],
        "call_full_name": [
            user("Q"), with_calls(call("functions.get_weather", "{}")), result("", name="functions.get_weather"), said("A"),
        ],
        "call_last": [user("Q"), with_calls(call("f", ""), thinking="Hm.")],
        "call_after_preamble": [
            user("Q"), with_calls(call("f", "{}"), content="I will look.", thinking="Plan."), result("done"), said("A", thinking="Good."),
        ],
        "parallel_calls": [
            user("Q"), with_calls(call("f", '{"a":1}', "1"), call("g", '{"b":2}', "2"), content=""),
            result("two", tool_call_id="2"), result("one", tool_call_id="1"), said("A"),
        ],
        "recipient": [
            user("Q"), said('{"a": 1}', channel="commentary", recipient="functions.f", content_type="<|constrain|>json"),
            result("r", name="functions.f", channel="commentary"), said("A", channel="final"),
        ],
        "python_on_analysis": [
            user("Q"), said("print(1)", channel="analysis", recipient="python", content_type="code"),
            result("1", name="python", channel="analysis"), said("A", channel="final"),
        ],
        "long": [user("word " * 3000), said("\n".join(f"{i}: " + " " * i + "x" for i in range(300)))],
        "many_turns": [
            message for turn in range(12)
            for message in (user(f"Q{turn}"), said(f"A{turn}", **({"thinking": f"T{turn}"} if turn % 3 else {})))
        ],
    }
    lines = {name: {"messages": messages} for name, messages in lists.items()}
    greeting = [user("Hi"), said("Hello")]
    lines |= {f"reasoning_{level}": {"messages": greeting, "reasoning": level} for level in ["low", "medium", "high"]}
    lines |= {
        "effort": {"messages": greeting, "reasoning_effort": "high"},
        "date": {"messages": [user("What day is it?"), said("Saturday")], "current_date": "2025-06-28"},
        "call": {"tools": [weather], "messages": [
            user("Weather in Oslo?"), with_calls(call("get_weather", '{"city": "Oslo"}'), thinking="Call it.", content=None),
            result('{"t": 3}', tool_call_id="call_get_weather"), said("Three degrees."),
        ]},
        "call_by_name": {"tools": [weather], "messages": [
            user("Q"), with_calls({"function": {"name": "get_weather", "arguments": {"city": "Zürich", "n": [1, 2.5]}}}),
            result('raw "text"\n', name="get_weather"), said("A"),
        ]},
        "calls_in_a_row": {"tools": [weather, function("g")], "messages": [
            user("Q"), with_calls(call("f", "{}", "1"), thinking="1"), result("x", tool_call_id="1"),
            with_calls(call("g", "{}", "2"), thinking="2"), result("y", tool_call_id="2"), said("A", thinking="3"),
            user("R"), said("B", thinking="4"),
        ]},
        "two_tools": {"tools": [weather, function("now", "The time.\nIn UTC.")], "messages": [{"role": "system", "content": "Use tools."}, *greeting]},
        "bare_tools": {"tools": [weather["function"], {"name": "now"}], "messages": greeting},
        "tools_as_text": {"tools": json.dumps([weather]), "messages": greeting},
        "tool_nulls": {"messages": greeting, "tools": [
            {"type": "function", "function": {"name": "f", "description": None, "parameters": None, "strict": True}},
        ]},
        "no_tools": {"tools": [], "messages": greeting},
    }
    for index, word in enumerate(WORDS):
        lines[f"words_{index}"] = {"messages": [{"role": "system", "content": word}, user(word), said(word + " ", thinking=" " + word)]}
    for name, schema in schemas().items():
        lines[f"schema_{name}"] = {"messages": greeting, "tools": [function("f", f"Takes {name}.", schema)]}
    source = random.Random(1)
    for index in range(60):
        tools = [
            function(f"f{which}", source.choice([None, "", "Does it.", "One\nTwo"]),
                     {"type": "object", "properties": {"p": random_schema(source, 3), "q": random_schema(source, 2)}})
            for which in range(source.randrange(1, 3))
        ]
        lines[f"random_schema_{index}"] = {"messages": greeting, "tools": tools}
    for index in range(40):
        lines[f"random_{index}"] = random_conversation(source)
    return lines


def random_conversation(source):
    def words():
        return " ".join(source.choice(WORDS) for _ in range(source.randrange(0, 6)))

    messages = [{"role": source.choice(["system", "developer"]), "content": words() or "."}] if source.random() < 0.5 else []
    for turn in range(source.randrange(1, 5)):
        messages.append(user(words()))
        for step in range(source.randrange(0, 3)):
            calls = [call(source.choice(["f", "g"]), json.dumps({"x": words()}), f"{turn}.{step}.{which}") for which in range(source.randrange(1, 3))]
            thought = {"thinking": words()} if source.random() < 0.7 else {}
            messages.append({"role": "assistant", "content": source.choice([None, "", words()]), "tool_calls": calls} | thought)
            messages += [{"role": "tool", "tool_call_id": each["id"], "content": words()} for each in calls]
        messages.append(said(words(), **({"thinking": words()} if source.random() < 0.6 else {})))
    line = {"messages": messages}
    if source.random() < 0.5:
        line["reasoning"] = source.choice(["low", "medium", "high"])
    if source.random() < 0.5:
        line["tools"] = [function("f", words(), random_schema(source, 1) | {"type": "object"}), function("g")]
    return line


# ------------------------------------------------------------------------------------------------------------ their side


def opening_messages(line):
    """The system message, the developer message where there is one, and the messages that are left."""
    from openai_harmony import DeveloperContent, Message, ReasoningEffort, Role, SystemContent, ToolDescription

    effort = {"low": ReasoningEffort.LOW, "medium": ReasoningEffort.MEDIUM, "high": ReasoningEffort.HIGH}
    system = SystemContent.new().with_reasoning_effort(effort[line.get("reasoning", line.get("reasoning_effort", "medium"))])
    if "current_date" in line:
        system = system.with_conversation_start_date(line["current_date"])
    out = [Message.from_role_and_content(Role.SYSTEM, system)]

    messages = list(line["messages"])
    instructions = messages.pop(0)["content"] if messages[0]["role"] in ("system", "developer") else None
    tools = line.get("tools") or []
    tools = [each.get("function", each) for each in (json.loads(tools) if isinstance(tools, str) else tools)]
    if instructions or tools:
        content = DeveloperContent.new()
        if instructions:
            content = content.with_instructions(instructions)
        if tools:
            content = content.with_function_tools([
                ToolDescription.new(each["name"], each.get("description") or "", parameters=each.get("parameters")) for each in tools
            ])
        out.append(Message.from_role_and_content(Role.DEVELOPER, content))
    return out, messages


def harmony_messages(line):
    """The same conversation in openai-harmony's own classes."""
    from openai_harmony import Author, DeveloperContent, Message, Role, TextContent

    def full(name):
        return name if name.startswith("functions.") or name == "python" else f"functions.{name}"

    out, messages = opening_messages(line)
    names, unanswered = {}, []
    for message in messages:
        role, content = message["role"], message.get("content")
        texts = [TextContent(text=part["text"]) for part in content] if isinstance(content, list) else [TextContent(text=content or "")]
        if role == "developer":
            out.append(Message.from_role_and_content(Role.DEVELOPER, DeveloperContent.new().with_instructions(content)))
        elif role == "user":
            made = Message.from_role_and_contents(Role.USER, texts)
            made.author.name = message.get("name")
            out.append(made)
        elif role == "tool":
            name = names[message["tool_call_id"]] if "tool_call_id" in message else full(message.get("name", unanswered[0] if unanswered else ""))
            made = Message.from_author_and_content(Author.new(Role.TOOL, name), texts[0])
            out.append(made.with_recipient("assistant").with_channel(message.get("channel", "commentary")))
        else:
            thought = message.get("thinking") or message.get("reasoning_content")
            if thought:
                out.append(Message.from_role_and_content(Role.ASSISTANT, thought).with_channel("analysis"))
            calls = message.get("tool_calls") or []
            if content or not calls:
                made = Message.from_role_and_contents(Role.ASSISTANT, texts)
                made = made.with_channel(message.get("channel", "commentary" if calls else "final"))
                if "recipient" in message:
                    made = made.with_recipient(message["recipient"]).with_content_type(message["content_type"])
                out.append(made)
            for each in calls:
                name, arguments = full(each["function"]["name"]), each["function"]["arguments"]
                names[each.get("id")] = name
                unanswered.append(name)
                if not isinstance(arguments, str):
                    arguments = json.dumps(arguments, separators=(",", ":"), ensure_ascii=False)
                made = Message.from_role_and_content(Role.ASSISTANT, arguments).with_channel("commentary")
                out.append(made.with_recipient(name).with_content_type("<|constrain|>json"))
    return out


def weights(ids, assistant):
    """1 for every id that the model itself writes: after `<|start|>assistant`, and that too where it goes on after `<|end|>`."""
    found = [0] * len(ids)
    starts = [index for index, each in enumerate(ids) if each == START] + [len(ids)]
    goes_on = False
    for start, stop in zip(starts, starts[1:]):
        is_assistant = ids[start + 1] == assistant
        if is_assistant:
            first = start if goes_on else start + 2
            found[first:stop] = [1] * (stop - first)
        goes_on = is_assistant and ids[stop - 1] == END
    return found


# ----------------------------------------------------------------------------------------------------------------- texts


def texts():
    """Texts on which tokenizers are known to part ways."""
    here = Path(__file__).resolve().parent
    found = {path.name: path.read_text() for path in sorted(here.glob("*.py"))}
    found |= {f"words_{index}": word for index, word in enumerate(WORDS)}
    found |= {
        "line": "\n", "blanks": " " * 1000, "blanks_then_word": " " * 257 + "x", "tabs": "\t" * 33 + "end",
        "lines": "\r\n" * 50 + "\n\n \n  x\r\n", "mixed_blanks": " \t \n \u00a0\u2003x \u3000y\u2028z\u0085w",
        "digits": "1234567890 12 123 1234 ٣٤٥ 四五", "contractions": "I'll don't WE'VE it'S 'tis '' 'ſ",
        "emoji": "👩‍👩‍👧‍👦🏳️‍🌈🇩🇪👍🏽" * 20, "scripts": "Ελληνικά русский العربية עברית हिन्दी ไทย 日本語 한국어 中文",
        "combining": "e\u0301 a\u0308\u0323 Z\u0351\u036b\u0343", "repeat": "ab" * 5000, "one_letter": "a" * 20000,
        "punctuation": "!?.,;:—…/*+-=<>{}[]()\n//--##" * 30, "controls": "".join(map(chr, range(1, 32))) + "\x7f",
        "every_kind": "".join(map(chr, range(32, 0x3000, 7))), "astral": "".join(map(chr, range(0x1D400, 0x1F9FF, 37))),
        "json": json.dumps({"a": [1, 2.5, None, True], "ü": '"quoted"\n'}, indent=4),
        "camel": "getHTTPResponseCode XMLHttpRequest snake_case_name SCREAMING_CASE",
    }
    source = random.Random(2)
    alphabet = " \t\n\r'abcABC019.,/_-éÉßǅʰ中あ한👍\u0301\u00a0\u200d"
    for index in range(200):
        found[f"random_{index}"] = "".join(source.choice(alphabet) for _ in range(source.randrange(1, 200)))
    return found


def main():
    model, out = Path(sys.argv[1]), Path(sys.argv[2])
    write_ranks(model / "tokenizer.json", out / "ranks")
    os.environ["TIKTOKEN_ENCODINGS_BASE"] = str(out / "ranks")
    from openai_harmony import Conversation, HarmonyEncodingName, RenderConversationConfig, load_harmony_encoding
    from transformers import AutoTokenizer

    harmony = load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS)
    as_it_stands = RenderConversationConfig(auto_drop_analysis=False)
    assistant = harmony.encode("assistant")[0]
    lines, expected = [], []
    for name, line in conversations().items():
        messages = harmony_messages(json.loads(json.dumps(line)))
        ids = harmony.render_conversation_for_training(Conversation.from_messages(messages), config=as_it_stands)
        lines.append(line)
        expected.append({"name": name, "ids": ids, "weights": weights(ids, assistant)})
    write(out, "conversations", lines, expected)

    tokenizer = AutoTokenizer.from_pretrained(model)
    lines, expected = [], []
    for name, text in texts().items():
        # As text, so that a spelling is no special token, which is how ft reads texts.
        ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        if ids != harmony.encode(text, disallowed_special=()):
            sys.exit(f"{name}: transformers with our tokenizer.json and openai-harmony give different ids")
        if tokenizer.decode(ids) != text:
            sys.exit(f"{name}: transformers does not decode what it encoded")
        lines.append({"text": text})
        expected.append({"name": name, "ids": [*ids, END_OF_TEXT], "weights": [0] + [1] * len(ids)})
    write(out, "texts", lines, expected)

    for key, identifier in {"bos_token_id": 199998, "eos_token_id": RETURN, "pad_token_id": END_OF_TEXT}.items():
        if getattr(tokenizer, key) != identifier:
            sys.exit(f"{key} is {getattr(tokenizer, key)} instead of {identifier}")
    spelled = "<|start|>assistant<|channel|>final<|message|>Hi<|return|>"
    if tokenizer.encode(spelled) != [START, assistant, CHANNEL, *harmony.encode("final"), MESSAGE, *harmony.encode("Hi"), RETURN]:
        sys.exit("tokenizer.json does not take the spellings of special tokens for them")


def write(out, name, lines, expected):
    (out / f"{name}.jsonl").write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    (out / f"{name}.expected.json").write_text(json.dumps(expected))


if __name__ == "__main__":
    main()
