"""The chat template against openai-harmony and transformers, and its conversations for other engines: `template.py MODEL OUT`.

MODEL is a model that ft made, with its tokenizer and chat_template.jinja. Every conversation of harmony.py, and those below, is
rendered by transformers with the template, once as it is trained and once as a prompt: the ids must be openai-harmony's, with the
analysis dropped that inference does not show, and the assistant mask must be the ids that the model itself writes. OUT gets
`cases.json`: for each rendering {"name", "variables", "text", "in_data"}, what the template was given and the text that harmony has
for it; `in_data` is a line for `ft render --training` that stands for the same text, where there is one.
"""

import datetime
import json
import os
import sys
from pathlib import Path

from harmony import call, conversations, function, harmony_messages, said, schemas, user, weights, write_ranks


def more_conversations():
    """(name, line) for what a template alone must know: what is dropped, and what runtimes send."""
    weather = function("get_weather", "The weather at a place.", schemas()["enum"])
    calls = lambda *all, **more: {"role": "assistant", "tool_calls": list(all), **more}
    result = lambda text, **more: {"role": "tool", "content": text, **more}
    pending = [user("Q"), calls(call("f", "{}", "1"), thinking="First."), result("x", tool_call_id="1")]
    later = [calls(call("g", '{"a":"b"}', "2"), thinking="Second.", content="Wait."), result("y", tool_call_id="2")]
    lists = {
        "pending_call": pending,
        "pending_calls": pending + later,
        "answered_calls": pending + later + [said("A", thinking="Third.")],
        "answered_calls_and_on": pending + later + [said("A", thinking="Third."), user("R")],
        "answered_calls_and_pending": pending + later + [said("A", thinking="Third."), user("R"), *pending[1:]],
        "never_answered": [user("Q"), said("T", channel="analysis"), user("R"), said("B", thinking="U"), user("S"), said("C")],
        "preamble_of_the_past": [
            user("Q"), said("T", channel="analysis"), said("wait", channel="commentary"), said("A", channel="final"), user("R"),
        ],
        "python_of_the_past": [
            user("Q"), said("print(1)", channel="analysis", recipient="python", content_type="code"),
            result("1", name="python", channel="analysis"), said("A", channel="final"), user("R"), said("B"),
        ],
        "prefilled": [user("Q"), said("A", thinking="Hm."), said("and more")],
        "several_instructions": [{"role": "system", "content": "One."}, {"role": "developer", "content": "Two."}, user("Hi"), said("Hello")],
        "control_characters": [user("\u0001\u001b[0m\u007f\u2028"), calls(call("f", {"a": "\u0001\b\f\"\\\n\t/<>&'\u2028é"}))],
        "argument_values": [user("Q"), calls(call("f", {"a": [], "b": {}, "c": [None, True, {"d": [0.5, -3, 1e-7]}], "items": 1, "": 2}))],
        "no_arguments": [user("Q"), calls({"function": {"name": "f"}})],
    }
    lines = {name: {"messages": messages} for name, messages in lists.items()}
    lines["result_as_json"] = {"messages": [user("Q"), calls(call("f", "{}")), result({"t": [1, "x"], "ü": None})], "tools": [weather]}
    lines["result_as_list"] = {"messages": [user("Q"), calls(call("f", "{}")), result([{"t": 1}, 2])]}
    for names in (["browser"], ["python"], ["python", "browser"]):
        lines[f"builtin_{'_'.join(names)}"] = {"messages": [user("Q"), said("A")], "tools": [weather], "builtin_tools": names}
    return lines


def for_harmony(line):
    """What harmony.py does not read: JSON as content, instructions in several messages, calls without arguments."""
    line = json.loads(json.dumps(line))
    messages = line["messages"]
    opening = []
    while messages and messages[0]["role"] in ("system", "developer"):
        opening.append(messages.pop(0)["content"])
    if opening or not messages:
        messages.insert(0, {"role": "developer", "content": "\n\n".join(opening)})
    for message in messages:
        content = message.get("content")
        is_json = isinstance(content, dict) or isinstance(content, list) and not all("type" in part for part in content if isinstance(part, dict))
        if is_json:
            message["content"] = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
        for each in message.get("tool_calls") or []:
            arguments = each["function"].get("arguments", {})
            if not isinstance(arguments, str):
                each["function"]["arguments"] = json.dumps(arguments, separators=(",", ":"), ensure_ascii=False).replace("e-0", "e-")
    return line


def with_builtin_tools(messages, line):
    system = messages[0].content[0]
    for name in line.get("builtin_tools", []):
        system = {"browser": system.with_browser_tool, "python": system.with_python_tool}[name]()
    messages[0].content[0] = system
    return messages


def shown(messages, is_prompt):
    """`messages` without the analysis that inference does not show in the coming turn, or in the last one."""
    from openai_harmony import Role

    turn = len(messages)
    while not is_prompt and turn > 0 and messages[turn - 1].author.role in (Role.ASSISTANT, Role.TOOL):
        turn -= 1
    finals = [index for index in range(turn) if messages[index].channel == "final"]
    last = finals[-1] if finals else -1
    return [message for index, message in enumerate(messages) if message.channel != "analysis" or message.author.role != Role.ASSISTANT or index > last]


def variables_of(line):
    tools = line.get("tools")
    found = {"messages": line["messages"], "tools": json.loads(tools) if isinstance(tools, str) else tools}
    effort = line.get("reasoning", line.get("reasoning_effort"))
    found |= {key: line[key] for key in ("current_date", "builtin_tools") if key in line}
    return found | ({"reasoning_effort": effort} if effort else {})


def has_its_own_ids(line):
    """Whether the text alone does not say how it becomes ids: a spelled special token, a text in several parts."""
    is_spelled = any(spelling in json.dumps(line) for spelling in ("<|start|>", "<|end|>", "<|call|>"))
    return is_spelled or any(isinstance(message.get("content"), list) and len(message["content"]) > 1 for message in line["messages"])


def main():
    model, out = Path(sys.argv[1]), Path(sys.argv[2])
    write_ranks(model / "tokenizer.json", out / "ranks")
    os.environ["TIKTOKEN_ENCODINGS_BASE"] = str(out / "ranks")
    from openai_harmony import Conversation, HarmonyEncodingName, RenderConversationConfig, Role, load_harmony_encoding
    from transformers import AutoTokenizer

    harmony = load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS)
    as_it_stands = RenderConversationConfig(auto_drop_analysis=False)
    assistant = harmony.encode("assistant")[0]
    tokenizer = AutoTokenizer.from_pretrained(model)
    cases, compared_ids, failed = [], 0, []
    for name, line in (conversations() | more_conversations()).items():
        for is_prompt in (False, True):
            whole = with_builtin_tools(harmony_messages(for_harmony(line)), line)
            messages = shown(whole, is_prompt)
            conversation = Conversation.from_messages(messages)
            if is_prompt:
                ids = harmony.render_conversation_for_completion(conversation, Role.ASSISTANT, config=as_it_stands)
            else:
                ids = harmony.render_conversation_for_training(conversation, config=as_it_stands)
            text = harmony.decode(ids)
            variables = variables_of(line) | {"add_generation_prompt": is_prompt}
            rest = {key: value for key, value in variables.items() if key not in ("messages", "tools")}
            rendered = tokenizer.apply_chat_template(
                variables["messages"], tools=variables["tools"], tokenize=True, return_dict=True,
                return_assistant_tokens_mask=True, **rest)
            if tokenizer.decode(rendered["input_ids"]) != text:
                failed.append((name, is_prompt, tokenizer.decode(rendered["input_ids"]), text))
            elif not has_its_own_ids(line):
                compared_ids += 1
                mask = weights(ids[:-2], assistant) + [0, 0] if is_prompt else weights(ids, assistant)
                if rendered["input_ids"] != ids:
                    failed.append((name, is_prompt, "ids", "ids"))
                elif rendered["assistant_masks"] != mask:
                    failed.append((name, is_prompt, rendered["assistant_masks"], mask))
            is_whole = not is_prompt and len(messages) == len(whole) and "builtin_tools" not in line
            cases.append({"name": name, "variables": variables, "text": text, "in_data": line if is_whole else None})
    days = [str(datetime.date.today())]
    dated = tokenizer.apply_chat_template([user("Q")], tokenize=False, current_date=True)
    days.append(str(datetime.date.today()))
    if not any(f"2024-06\nCurrent date: {day}\n\nReasoning" in dated for day in days):
        failed.append(("today's date", False, dated, days))
    for name, is_prompt, found, expected in failed[:8]:
        print(f"{name}{' as a prompt' if is_prompt else ''}:\n  found    {found!r}\n  expected {expected!r}", file=sys.stderr)
    if failed:
        sys.exit(f"{len(failed)} of {len(cases)} renderings are not harmony's")
    (out / "cases.json").write_text(json.dumps(cases, ensure_ascii=False))
    print(json.dumps({"renderings": len(cases), "compared_ids": compared_ids}))


if __name__ == "__main__":
    main()
