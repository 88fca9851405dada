"""llama.cpp as the judge of the GGUF files that ft writes: its converter, its reader and its arithmetic.

  decide MODEL                       makes the next token of a random model a matter of few: its head eight times as large
  convert MODEL OUT TYPE             llama.cpp's own converter
  compare OURS THEIRS [KEY...]       the same keys, types, values and tensors, byte for byte; KEYs may differ
  parts WHOLE PART...                a split file holds what the whole one holds, and llama.cpp loads it
  prompts FILE [VOCABULARY]          token ids that reach past the sliding window
  logprobs GGUF PROMPTS OUT [LORA]   what llama.cpp computes
  agree ONE OTHER BOUND              two such answers differ by the bound at most
  judge ANSWER LOGITS BOUND          such an answer and the logits of `ft logits`
"""

import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy

LLAMA_CPP = Path(__file__).resolve().parent.parent.parent / "third_party/llama.cpp"

# Keys that the converter guesses from the name of a folder.
NAMES = {"general.name", "general.basename", "general.finetune", "general.version", "general.size_label"}
LENGTHS = (1, 17, 100, 127, 128, 129, 130, 200, 260)
TOP = 20


def decide(model):
    from safetensors.torch import load_file, save_file

    path = Path(model) / "model.safetensors"
    tensors = load_file(path)
    # A power of two changes no bit but those of the exponent.
    tensors["lm_head.weight"] = tensors["lm_head.weight"] * 8
    save_file(tensors, path, metadata={"format": "pt"})


def convert(model, out, kind):
    environment = {key: value for key, value in os.environ.items() if key != "NO_LOCAL_GGUF"} | {"HF_HUB_OFFLINE": "1"}
    script = LLAMA_CPP / "convert_hf_to_gguf.py"
    assert script.is_file(), f"{script} is missing: run `make peers`"
    command = [sys.executable, script, model, "--outtype", kind, "--outfile", out]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def read(path):
    """Keys with types and values, tensors with types, shapes and bytes, by the gguf package."""
    import gguf

    reader = gguf.GGUFReader(path)
    keys = {}
    for field in reader.fields.values():
        if not field.name.startswith("GGUF."):
            keys[field.name] = ([kind.name for kind in field.types], field.contents())
    tensors = {tensor.name: (tensor.tensor_type.name, [int(size) for size in tensor.shape], tensor.data) for tensor in reader.tensors}
    return keys, tensors


class Header:
    """A file read by the specification: the package above takes a quarter of a minute for half a million merges."""

    NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

    def __init__(self, path, mode="r"):
        import gguf

        self.content, self.at = memoryview(numpy.memmap(path, numpy.uint8, mode)), 0
        assert self.take("4s") == b"GGUF" and self.take("I") == 3
        num_tensors, num_keys = self.take("Q"), self.take("Q")
        self.keys, self.places = {}, {}
        for _ in range(num_keys):
            key, kind = self.text(), self.take("I")
            assert key not in self.keys
            self.places[key] = self.at
            self.keys[key] = (kind, self.value(kind))
        listed = []
        for _ in range(num_tensors):
            name, dims = self.text(), self.take("I")
            listed.append((name, [self.take("Q") for _ in range(dims)], gguf.GGMLQuantizationType(self.take("I")), self.take("Q")))
        start = -self.at % 32 + self.at
        self.tensors = {}
        for name, dims, kind, offset in listed:
            elements, size = gguf.GGML_QUANT_SIZES[kind]
            length = int(numpy.prod(dims, dtype=object)) // elements * size
            assert offset % 32 == 0 and start + offset + length <= len(self.content)
            self.tensors[name] = (kind.name, dims, self.content[start + offset : start + offset + length])

    def take(self, kind):
        (value,) = struct.unpack_from("<" + kind, self.content, self.at)
        self.at += struct.calcsize("<" + kind)
        return value

    def text(self):
        length = self.take("Q")
        self.at += length
        return bytes(self.content[self.at - length : self.at]).decode()

    def value(self, kind):
        if kind == 8:
            return self.text()
        if kind == 9:
            inner, count = self.take("I"), self.take("Q")
            return inner, [self.value(inner) for _ in range(count)]
        return self.take(self.NUMBERS[kind])


def compare(ours, theirs, *may_differ):
    ours, theirs = Header(ours), Header(theirs)
    assert set(ours.keys) - NAMES == set(theirs.keys) - NAMES, set(ours.keys) ^ set(theirs.keys)
    marks = re.compile(r"\{%([-+]?)\s*(?:end)?generation\s*([-+]?)%\}")
    kind, template = theirs.keys["tokenizer.chat_template"]
    # Not every engine that reads GGUF knows them.
    theirs.keys["tokenizer.chat_template"] = (kind, marks.sub(r"{#\1 \2#}", template))
    for key, expected in theirs.keys.items():
        if key not in may_differ and (key not in NAMES or key == "general.size_label"):
            assert ours.keys[key] == expected, (key, str(ours.keys[key])[:200], str(expected)[:200])
    assert set(ours.tensors) == set(theirs.tensors), set(ours.tensors) ^ set(theirs.tensors)
    for name, (kind, dims, content) in theirs.tensors.items():
        assert ours.tensors[name][:2] == (kind, dims), (name, ours.tensors[name][:2], kind, dims)
        assert ours.tensors[name][2] == content, (name, kind)
    kinds = sorted({kind for kind, _, _ in ours.tensors.values()})
    print(f"{len(ours.keys)} keys and {len(ours.tensors)} tensors of {', '.join(kinds)} as the converter writes them")


def parts(whole, *paths):
    (keys, tensors), split = read(whole), [read(path) for path in paths]
    assert len(split) > 2
    for index, (part_keys, _) in enumerate(split):
        told = {key: part_keys.pop(f"split.{key}") for key in ("no", "count", "tensors.count")}
        expected = {"no": (["UINT16"], index), "count": (["UINT16"], len(paths)), "tensors.count": (["INT32"], len(tensors))}
        assert told == expected, told
        assert part_keys == (keys if index == 0 else {})
    joined = {name: tensor for _, part in split for name, tensor in part.items()}
    assert list(joined) == list(tensors)
    for name, (kind, shape, content) in tensors.items():
        assert joined[name][:2] == (kind, shape) and joined[name][2].tobytes() == content.tobytes(), name


def prompts(out, vocabulary=200019):
    random = numpy.random.default_rng(201088)
    Path(out).write_text(json.dumps([random.integers(0, int(vocabulary), length).tolist() for length in LENGTHS]))


def server(path, *adapters):
    """llama.cpp with a model and the LoRA adapters for it, on two cores."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(adapter, 1.0) for adapter in adapters]
    parameters.model.path = path
    parameters.n_ctx = 512
    parameters.n_parallel = 1
    parameters.n_gpu_layers = 0
    parameters.cpuparams.n_threads = 2
    parameters.warmup = False
    parameters.fit_params = False
    parameters.verbosity = 4
    # The cache of keys and values is f16 otherwise, which is no matter of the file.
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return xllamacpp.Server(parameters)


def complete(server, request):
    answer = server.handle_completions(request | {"temperature": 0, "cache_prompt": False})
    answer = json.loads(answer) if isinstance(answer, str) else answer
    assert "choices" in answer, answer
    return answer


def logprobs(path, prompt_file, out, *adapters):
    judge = server(path, *adapters)
    answers = []
    for prompt in json.loads(Path(prompt_file).read_text()):
        answer = complete(judge, {"prompt": prompt, "n_predict": 1, "n_probs": TOP})
        top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        answers.append({str(token["id"]): token["logprob"] for token in top})
    assert all(len(answer) == TOP for answer in answers)
    Path(out).write_text(json.dumps(answers))


def agree(one, other, bound):
    one, other = (json.loads(Path(path).read_text()) for path in (one, other))
    worst = 0.0
    for left, right in zip(one, other, strict=True):
        assert left.keys() == right.keys()
        worst = max(worst, *(abs(left[token] - right[token]) for token in left))
    print(f"{worst:.1e}")
    assert worst <= float(bound), worst


def judge(answer, logits, bound):
    from safetensors.numpy import load_file

    answers, logits = json.loads(Path(answer).read_text()), load_file(logits)
    worst, likeliest = 0.0, []
    for index, found in enumerate(answers):
        last = logits[f"logits.{index}"][-1].astype(numpy.float64)
        expected = last - last.max() - numpy.log(numpy.exp(last - last.max()).sum())
        differences = [abs(expected[int(token)] - logprob) for token, logprob in found.items()]
        worst = max(worst, *differences)
        likeliest.append(expected.max())
    # Were all tokens about as likely, nothing could go wrong.
    assert max(likeliest) > -3 and min(likeliest) > -8, likeliest
    print(f"{worst:.4f} (bound {bound}); the likeliest token has {min(likeliest):.1f} to {max(likeliest):.1f}")
    assert worst <= float(bound), worst


if __name__ == "__main__":
    verbs = {verb.__name__: verb for verb in (decide, convert, compare, parts, prompts, logprobs, agree, judge)}
    verbs[sys.argv[1]](*sys.argv[2:])
