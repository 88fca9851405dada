"""The chat template in llama.cpp's own engine: `template_llama.py MODEL TEMPLATE CASES`.

MODEL is a model that ft made, TEMPLATE the text that goes into a GGUF, CASES what template.py wrote. A GGUF with MODEL's tokenizer, the
template and two small layers of zeros is served by llama.cpp, and every case that can be said over its chat API is put through
`/apply-template`: the prompt must be harmony's text. Left out is what the API does not carry (channels, recipients, names) and what its
server refuses or changes before the template sees it (see `is_carried`).
"""

import json
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import gguf
import numpy
import xllamacpp

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, EXPERTS, LAYERS, VOCABULARY = 32, 4, 2, 16, 4, 2, 201088


def write_gguf(path, model, template):
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokens, kinds = [f"[PAD{index}]" for index in range(VOCABULARY)], [gguf.TokenType.UNUSED] * VOCABULARY
    for text, index in tokenizer["model"]["vocab"].items():
        tokens[index], kinds[index] = text, gguf.TokenType.NORMAL
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]], kinds[added["id"]] = added["content"], gguf.TokenType.CONTROL
    writer = gguf.GGUFWriter(path, "gpt-oss")
    writer.add_block_count(LAYERS)
    writer.add_context_length(131072)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_rope_freq_base(150000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(2)
    writer.add_sliding_window(128)
    writer.add_expert_feed_forward_length(HIDDEN)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-4o")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(199998)
    writer.add_eos_token_id(200002)
    writer.add_pad_token_id(199999)
    writer.add_chat_template(template)

    def add(name, *shape, dtype=numpy.float32):
        writer.add_tensor(name, numpy.zeros(shape, dtype))

    add("token_embd.weight", VOCABULARY, HIDDEN, dtype=numpy.float16)
    add("output.weight", VOCABULARY, HIDDEN, dtype=numpy.float16)
    add("output_norm.weight", HIDDEN)
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        add(f"{block}.attn_norm.weight", HIDDEN)
        add(f"{block}.post_attention_norm.weight", HIDDEN)
        for name, heads in {"q": HEADS, "k": KV_HEADS, "v": KV_HEADS}.items():
            add(f"{block}.attn_{name}.weight", heads * HEAD_DIM, HIDDEN)
            add(f"{block}.attn_{name}.bias", heads * HEAD_DIM)
        add(f"{block}.attn_output.weight", HIDDEN, HEADS * HEAD_DIM)
        add(f"{block}.attn_output.bias", HIDDEN)
        add(f"{block}.attn_sinks.weight", HEADS)
        add(f"{block}.ffn_gate_inp.weight", EXPERTS, HIDDEN)
        add(f"{block}.ffn_gate_inp.bias", EXPERTS)
        for name in ("gate", "up", "down"):
            add(f"{block}.ffn_{name}_exps.weight", EXPERTS, HIDDEN, HIDDEN)
            add(f"{block}.ffn_{name}_exps.bias", EXPERTS, HIDDEN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def is_carried(variables):
    """Whether llama.cpp's server hands its template the conversation as it was sent."""
    messages = variables["messages"]
    if any(key in message for message in messages for key in ("channel", "recipient", "content_type")):
        return False
    for message in messages:
        content, calls = message.get("content"), message.get("tool_calls") or []
        # It takes names on tool messages only, and knows no JSON as content.
        if message["role"] != "tool" and "name" in message or isinstance(content, dict) or isinstance(content, list) and "text" not in content[0]:
            return False
        # Words beside a call are erased where there is thinking too.
        if calls and content and (message.get("thinking") or message.get("reasoning_content")):
            return False
        if any(parsed(call["function"].get("arguments")) is None for call in calls):
            return False
    # A function without a schema gets an empty one; nulls are refused.
    functions = [tool.get("function", {}) for tool in variables["tools"] or []]
    return all(None not in (each.get("description", ""), each.get("parameters")) and is_printed_alike(each) for each in functions)


def parsed(arguments):
    """The arguments of a call when they are a text that its server reads, and its engine prints again, as what it says."""
    try:
        value = json.loads(arguments) if isinstance(arguments, str) else None
    except ValueError:
        return None
    return value if isinstance(value, dict) and is_printed_alike(value) else None


def is_printed_alike(value):
    """Whether its engine prints the numbers in `value` as JSON does: floats have six digits there, and no `.0`."""
    if isinstance(value, dict):
        return all(map(is_printed_alike, value.values()))
    if isinstance(value, list):
        return all(map(is_printed_alike, value))
    return not isinstance(value, float) or f"{value:g}" == str(value)


def expected_text(case):
    """Harmony's text less what llama.cpp changes: arguments stand without blanks, and no prompt ends in `<|return|>`."""
    text = case["text"]
    if text.endswith("<|return|>"):
        text = text.removesuffix("<|return|>") + "<|end|>"
    for message in case["variables"]["messages"]:
        for call in message.get("tool_calls") or []:
            arguments = call["function"]["arguments"]
            compact = json.dumps(parsed(arguments), separators=(",", ":"), ensure_ascii=False)
            text = text.replace(f"json<|message|>{arguments}<|call|>", f"json<|message|>{compact}<|call|>")
    return text


def request_of(variables):
    """The case as a request: thinking has another name there."""
    messages = json.loads(json.dumps(variables["messages"]))
    for message in messages:
        if message.get("thinking"):
            message["reasoning_content"] = message.pop("thinking")
        message.pop("thinking", None)
    rest = {key: value for key, value in variables.items() if key in ("reasoning_effort", "current_date", "builtin_tools")}
    # Not to be chosen from, or it makes a grammar of the schemas first and refuses some.
    tools = {"tools": variables["tools"], "tool_choice": "none"} if variables["tools"] else {}
    return tools | {"messages": messages, "add_generation_prompt": variables["add_generation_prompt"], "chat_template_kwargs": rest}


def main():
    model, template, cases = Path(sys.argv[1]), Path(sys.argv[2]).read_text(), json.loads(Path(sys.argv[3]).read_text())
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "template.gguf"
        write_gguf(path, model, template)
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(path)
        parameters.n_ctx = 256
        parameters.n_parallel = 1
        parameters.cpuparams.n_threads = 1
        parameters.use_jinja = True
        parameters.prefill_assistant = False
        parameters.warmup = False
        parameters.fit_params = False
        parameters.verbosity = -1
        parameters.port = 0
        server = xllamacpp.Server(parameters)
        failed, compared = [], 0
        for case in cases:
            if not is_carried(case["variables"]):
                continue
            compared += 1
            request = request_of(case["variables"])
            made = urllib.request.Request(
                f"{server.listening_address}/apply-template", json.dumps(request).encode(), {"Content-Type": "application/json"})
            try:
                found = json.loads(urllib.request.urlopen(made).read())["prompt"]
            except urllib.error.HTTPError as error:
                found = error.read().decode()
            expected = expected_text(case)
            if found != expected:
                failed.append((case["name"], found, expected))
        for name, found, expected in failed[:6]:
            print(f"{name}:\n  found    {found!r}\n  expected {expected!r}", file=sys.stderr)
        if failed:
            sys.exit(f"{len(failed)} of {compared} prompts of llama.cpp are not harmony's")
        print(json.dumps({"compared": compared}))


if __name__ == "__main__":
    main()
