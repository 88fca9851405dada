"""Training on a GPU: ft against its bars and against transformers + PEFT, in one command. It makes all that it needs.

    run.py FT [--stages kernels,20b,memory,long,peer,120b] [--work DIR] [--runs DIR] [--binaries DIR] [--set a.b=c] [--smoke]

`make bench-gpu` builds ft and runs it. It takes an NVIDIA GPU, torch 2.11.0 with CUDA, and disk for the models: 15 GB, for the stage 120b 66 GB
(which drops the 20b model where both do not fit). Prints the table of the bars, and writes bench/results/DATE-GPU-NAME.md and .json.

Stages, each under 10 minutes:
  kernels  the kernels against the CPU and against a copy, and the tests on the device; none may be skipped
  20b      tokens/s: LoRA r=16 on attention and experts of a random gpt-oss-20b, packs of 4,096 tokens
  memory   its peak memory at one sequence of 2,048 tokens
  long     the same at one sequence of 60,000 tokens
  peer     transformers + PEFT on the same weights, texts and tokens a step
  120b     peak memory of gpt-oss-120b at 2,048 tokens: LoRA on attention, and on attention + experts

What the JSON has is not run again: a command that was cut off goes on where it was, and a stage that failed is tried again. Delete the file, or
name its stage with --again, to measure anew. A run of ft is killed once its steps are measured: it writes no checkpoint, but ft wants room for
one (--runs /dev/shm/runs where the disk is small). With --smoke everything runs on the CPU on tiny models, to try the program itself.
"""

import argparse
import dataclasses
import datetime
import json
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

import inputs
import kernels
import report

WARM_UP_STEPS = 2
# A stage has to end by itself within 10 minutes: nothing that it starts may take longer.
STAGE_SECONDS = 570
POLL_SECONDS = 0.25


@dataclasses.dataclass
class Row:
    """A run of ft: sequences of `tokens` tokens, `sequences` of them a step, until `steps` steps are measured."""

    preset: str
    tokens: int
    sequences: int
    steps: int
    targets: tuple = ("attention", "experts")


ROWS = {
    "20b": {"20b": Row("gpt-oss-20b", 4096, 8, 6)},
    "memory": {"20b-2048": Row("gpt-oss-20b", 2048, 1, 4)},
    "long": {"20b-60000": Row("gpt-oss-20b", 60000, 1, 2)},
    "120b": {
        "120b-attention": Row("gpt-oss-120b", 2048, 1, 3, ("attention",)),
        "120b": Row("gpt-oss-120b", 2048, 1, 3),
    },
}
TINY = ["hidden_size=64", "intermediate_size=96", "num_hidden_layers=2", "num_local_experts=6", "num_attention_heads=4"]
TINY += ["num_key_value_heads=2", "head_dim=32"]


def smaller(row):
    return dataclasses.replace(row, preset="nano", tokens=min(row.tokens, 4096) // 16, sequences=min(row.sequences, 2), steps=2)


def asked_of_card(field):
    """What nvidia-smi says of the first card; None where there is none."""
    try:
        said = subprocess.run(["nvidia-smi", "--id=0", f"--query-gpu={field}", "--format=csv,noheader,nounits"], capture_output=True, text=True)
    except OSError:
        return None
    return said.stdout.strip() if said.returncode == 0 else None


class CardWatch(threading.Thread):
    """Asks the card, while a run lasts, how much of its memory is in use."""

    def __enter__(self):
        self.most, self.done = None, threading.Event()
        self.start()
        return self

    def run(self):
        while (used := asked_of_card("memory.used")) and not self.done.wait(0.5):
            self.most = max(self.most or 0, int(used) << 20)

    def __exit__(self, *_):
        self.done.set()
        self.join()


def step_lines(metrics):
    text = metrics.read_text() if metrics.exists() else ""
    lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return [line for line in lines if "step_seconds" in line]


def train(name, row, deadline):
    """Runs ft until the steps are measured; its figures."""
    work = arguments.work
    model = inputs.make_model(arguments.ft, work, row.preset, deadline, TINY if arguments.smoke else ())
    steps = WARM_UP_STEPS + row.steps
    conversations = work / f"{name}.jsonl"
    rendered = inputs.make_conversations(arguments.ft, conversations, steps * row.sequences, row.tokens)
    (work / f"{name}.rendered.json").write_text(json.dumps({"conversations": rendered}))
    shutil.rmtree(arguments.runs / name, ignore_errors=True)
    # A step more than is measured, so that no checkpoint is written in the last of them.
    recipe = inputs.write_recipe(
        work / f"{name}.toml", model=model, conversations=conversations, tokens=row.tokens, targets=row.targets, steps=steps + 1,
        sequences=row.sequences, runs=arguments.runs, name=name,
    )
    command = [arguments.ft, "train", recipe, *(part for setting in arguments.set for part in ("--set", setting))]
    metrics = arguments.runs / name / "metrics.jsonl"
    with tempfile.TemporaryFile("w+") as said, CardWatch() as card:
        process = subprocess.Popen(command, stdout=said, stderr=said)
        try:
            while process.poll() is None and len(step_lines(metrics)) < steps and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
        finally:
            process.kill()
            process.wait()
        lines = step_lines(metrics)
        if len(lines) <= WARM_UP_STEPS:
            said.seek(0)
            raise RuntimeError(f"ft train {recipe} measured no step: {said.read()[-1500:].strip()}")
    return figures(lines[:steps], card.most)


def figures(lines, card_bytes):
    """Medians of the steps after the warm-up."""
    timed = lines[WARM_UP_STEPS:]
    last = lines[-1]
    # With a GPU `peak_memory_bytes` is the device's, and the host's has a name of its own.
    is_known = arguments.smoke or "host_peak_memory_bytes" in last
    utilization = [line["model_flops_utilization"] for line in timed if line.get("model_flops_utilization") is not None]
    return {
        "tokens": timed[0]["tokens"],
        "measured_steps": len(timed),
        "step_seconds": statistics.median(line["step_seconds"] for line in timed),
        "tokens_per_second": statistics.median(line["tokens_per_second"] for line in timed),
        "peak_memory_bytes": last["peak_memory_bytes"] if is_known else card_bytes,
        "host_peak_memory_bytes": last.get("host_peak_memory_bytes"),
        "card_bytes": card_bytes,
        "utilization": statistics.median(utilization) if utilization else None,
        "losses": [line["loss"] for line in lines],
    }


def train_rows(stage, deadline, earlier):
    """The runs of a stage; one that fails is recorded with its reason, and the others go on."""
    rows = {name: row for name, row in earlier.get("rows", {}).items() if "error" not in row}
    for name, row in ROWS[stage].items():
        if name in rows:
            continue
        try:
            rows[name] = train(name, smaller(row) if arguments.smoke else row, deadline)
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            rows[name] = {"error": reason(error)}
    failed = [f"{name}: {row['error']}" for name, row in rows.items() if "error" in row]
    return {"rows": rows} | ({"error": "; ".join(failed)} if failed else {})


def train_peer(deadline):
    """transformers + PEFT on what stage 20b trained on."""
    row = smaller(ROWS["20b"]["20b"]) if arguments.smoke else ROWS["20b"]["20b"]
    work = arguments.work
    model = inputs.make_model(arguments.ft, work, row.preset, deadline, TINY if arguments.smoke else ())
    rendered, result = work / "20b.rendered.json", work / "peer.json"
    if not rendered.exists():
        conversations = inputs.make_conversations(arguments.ft, work / "20b.jsonl", (WARM_UP_STEPS + row.steps) * row.sequences, row.tokens)
        rendered.write_text(json.dumps({"conversations": conversations}))
    result.unlink(missing_ok=True)
    budget = deadline - time.monotonic()
    command = [sys.executable, Path(__file__).parent / "peer.py", model, rendered, result]
    command += ["--sequences", str(row.sequences), "--attention", arguments.attention, "--budget", f"{budget * 0.6:.0f}"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=budget)
        problem = said.stderr[-1500:].strip() if said.returncode else None
    except subprocess.TimeoutExpired:
        problem = f"took longer than {budget:.0f} s"
    found = json.loads(result.read_text()) if result.exists() else {"tries": []}
    if not any("tokens_per_second" in one for one in found["tries"]):
        return found | {"error": problem or "no way of training fits or works"}
    return found | ({"cut_short": problem} if problem else {})


def reason(error):
    said = getattr(error, "stderr", None)
    return f"{error}{': ' + said[-1500:].strip() if isinstance(said, str) and said else ''}"


# A stage's result, given when it has to end and what an earlier command found.
STAGES = {
    "kernels": lambda deadline, earlier: kernels.measure(arguments.binaries, deadline),
    "20b": lambda deadline, earlier: train_rows("20b", deadline, earlier),
    "memory": lambda deadline, earlier: train_rows("memory", deadline, earlier),
    "long": lambda deadline, earlier: train_rows("long", deadline, earlier),
    "peer": lambda deadline, earlier: train_peer(deadline),
    "120b": lambda deadline, earlier: train_rows("120b", deadline, earlier),
}


def commit_of_tree():
    said = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=inputs.REPOSITORY, capture_output=True, text=True).stdout
    return said.strip() or "unknown"


def new_record():
    import torch

    name = None if arguments.smoke else asked_of_card("name")
    if name is None and not arguments.smoke:
        sys.exit("nvidia-smi finds no NVIDIA GPU; --smoke tries the program on the CPU")
    device = {"name": name or "CPU", "driver": asked_of_card("driver_version") or "none", "memory": f"{asked_of_card('memory.total') or 0} MiB"}
    command = shlex.join(["bench/gpu/run.py", *sys.argv[1:]])
    date = str(datetime.date.today())
    return {"version": 1, "date": date, "smoke": arguments.smoke, "device": device, "torch": torch.__version__, "command": command, "stages": {}}


def write(record, path):
    """Both files, each whole or not at all."""
    for suffix, text in ((".json", json.dumps(record, indent=1)), (".md", "\n".join(report.page(record)) + "\n")):
        unfinished = path.with_suffix(suffix + ".new")
        unfinished.write_text(text)
        unfinished.replace(path.with_suffix(suffix))


def main():
    record, commit = new_record(), commit_of_tree()
    name = re.sub(r"[^A-Za-z0-9]+", "-", record["device"]["name"])
    path = arguments.results / f"{record['date']}-{'smoke' if arguments.smoke else name}.json"
    for folder in (arguments.results, arguments.work, arguments.runs):
        folder.mkdir(parents=True, exist_ok=True)
    if path.exists():
        record["stages"] = json.loads(path.read_text())["stages"]
    for stage in arguments.stages:
        earlier = {} if stage in arguments.again else record["stages"].get(stage, {})
        if earlier and "error" not in earlier:
            print(f"{stage}: measured already", file=sys.stderr)
            continue
        start = time.monotonic()
        try:
            record["stages"][stage] = STAGES[stage](start + STAGE_SECONDS, earlier)
        except Exception as error:
            traceback.print_exc()
            record["stages"][stage] = {"error": reason(error)}
        record["stages"][stage] |= {"stage_seconds": time.monotonic() - start, "commit": commit}
        write(record, path)
        print(f"{stage}: {record['stages'][stage].get('error', 'done')}, {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    print("\n".join(report.page(record)))
    print(f"\nwritten to {path.with_suffix('.md')} and {path.name}", file=sys.stderr)


def names(text):
    chosen = [name for name in text.split(",") if name]
    if unknown := [name for name in chosen if name not in STAGES]:
        raise argparse.ArgumentTypeError(f"no such stage: {', '.join(unknown)}; there are {', '.join(STAGES)}")
    return chosen


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ft", type=Path)
    parser.add_argument("--stages", type=names, default=list(STAGES))
    parser.add_argument("--again", type=names, default=[], help="stages to run again although they are measured")
    parser.add_argument("--work", type=Path, default=Path("models/bench"), help="where models and texts are made")
    parser.add_argument("--runs", type=Path, help="where ft's runs go; WORK/runs where it is not given")
    parser.add_argument("--results", type=Path, default=inputs.REPOSITORY / "bench/results")
    parser.add_argument("--binaries", type=Path, help="a folder with cuda_codec, cuda_device and ft_trainer as cargo built them, in place of cargo")
    parser.add_argument("--attention", default="eager,flex_attention", help="attention implementations that the peer is tried with")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of every recipe of ft")
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    arguments.runs = arguments.runs or arguments.work / "runs"
    for path in ("ft", "work", "runs", "results", "binaries"):
        setattr(arguments, path, getattr(arguments, path) and getattr(arguments, path).resolve())
    main()
