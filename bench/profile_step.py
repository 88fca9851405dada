"""Where the time of a training step of ft goes on the CPU: shares by group, from `perf`.

    profile_step.py FT [--cases half,all] [--steps N] [--threads N] [--top N]

The model and the data are those of train_step.py. Only what happens between the end of the first step and the end of the last one is
counted. One thread by default: with more, the waiting of threads for each other is counted too, under `waiting`, and beside other programs it
is most of what there is. A second run asks oneDNN which matrix products those in bf16 were (ONEDNN_VERBOSE), all steps counted.
It takes Linux's `perf`; oneDNN names the kernels that it compiles (ONEDNN_JIT_PROFILE).
"""

import argparse
import collections
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import train_step

# The first group whose expression finds something in "OBJECT SYMBOL" takes the sample.
GROUPS = {
    "matrix products": r"brgemm_kernel|gemm_(kernel|mscale|api)|gemm.*kernel|_gemv|xgemm|gemm_driver|jit_\w*gemm\w*_kern",
    "packing for the products": r"copy_[ab]_|copy_b_chunk|jit_\w*copy|gemm_s?copy|gemm_pack|reorder|jit_brgemm_\w*trans",
    "handling of the products": r"dnnl|jit_|mkl_blas|mkl_serv",
    "our kernels": r"^ft ",
    "libtorch's elementwise operators": r"at::native|at::vec|at::internal|mkl_vml|vs\w+_rare|Sleef|c10::function_ref",
    "memory: page faults": r"^\[kernel",
    "memory: allocating and copying": r"malloc|free|unlink_chunk|mem(move|cpy|set|cmp)|c10::.*[Aa]lloc",
    "waiting": r"libgomp|sched_yield",
    "libtorch: everything else": r"libtorch|libc10|libstdc|ld-linux",
}


def kernels(objects_and_symbols):
    """The group of each pair, by the table above."""
    for (place, symbol), count in objects_and_symbols.items():
        group = next((name for name, found in GROUPS.items() if re.search(found, f"{place} {symbol}")), "other")
        yield group, re.sub(r"\.\d+$", "", symbol), count


def environment(threads, **more):
    return os.environ | {"OMP_NUM_THREADS": str(threads), "RAYON_NUM_THREADS": str(threads)} | more


def record(ft, work, threads):
    """Trains under perf; where the samples are, and the moments at which the first and the last step were done."""
    samples, metrics = work / "perf.data", work / "runs/profile/metrics.jsonl"
    command = ["perf", "record", "--clockid", "mono", "--freq", "499", "--output", samples, ft, "train", work / "recipe.toml"]
    ends, settings = [], environment(threads, ONEDNN_JIT_PROFILE="2")
    with subprocess.Popen(command, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            done = metrics.read_text().count("step_seconds") if metrics.exists() else 0
            ends += [time.monotonic()] * (done - len(ends))
            time.sleep(0.005)
    if process.returncode != 0:
        sys.exit(f"{command} failed")
    return samples, ends[0], ends[-1]


def counted(samples, begin, end):
    """How often each symbol was found at work between the two moments, and the processes."""
    command = ["perf", "script", "--input", samples, "--fields", "pid,ip,sym,dso", "--time", f"{begin:.6f},{end:.6f}"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.findall(r"^\s*(\d+)\s+[0-9a-f]+ (.*) \((.*)\)$", said, re.MULTILINE)
    return collections.Counter((Path(place).name, symbol) for _, symbol, place in found), {process for process, _, _ in found}


def products(ft, work, threads, vocabulary, rank):
    """Milliseconds of oneDNN's matrix products by what they multiply with, the rows left out: `512:512x1024`."""
    command = [ft, "train", work / "recipe.toml", "--set", 'output.name="products"']
    said = subprocess.run(command, env=environment(threads, ONEDNN_VERBOSE="1"), check=True, capture_output=True, text=True).stdout
    taken = collections.Counter()
    # The last two fields are the sizes, batch first where there is one, and the milliseconds.
    for sizes, milliseconds in re.findall(r"^onednn_verbose,.*?exec,cpu,matmul,.*,([\dx:]+),([\d.]+)$", said, re.MULTILINE):
        dims = [int(size) for size in re.findall(r"\d+", sizes)]
        what = "output head" if vocabulary in dims else "LoRA" if rank in dims else "t x " + sizes.partition("x")[2]
        taken[what] += float(milliseconds)
    return taken


def profile(ft, work, case):
    model, _ = train_step.make_models(ft, work, "bf16")
    train_step.make_conversations(ft, work, case, arguments.steps)
    train_step.write_recipe(work, model, "bf16", "profile", arguments.steps, checkpoint=False)
    samples, begin, end = record(ft, work, arguments.threads)
    counts, processes = counted(samples, begin, end)
    groups, symbols = collections.Counter(), collections.defaultdict(collections.Counter)
    for group, symbol, count in kernels(counts):
        groups[group] += count
        symbols[group][symbol] += count
    whole = groups.total()
    print(f"\n{case}: {(end - begin) / (arguments.steps - 1):.2f} s a step on {arguments.threads} thread(s), {whole} samples")
    for group, count in groups.most_common():
        print(f"  {count / whole:6.1%}  {group}")
        for symbol, part in symbols[group].most_common(arguments.top):
            if part / whole >= 0.003:
                print(f"      {part / whole:6.1%}  {symbol[:150]}")
    taken = products(ft, work, arguments.threads, vocabulary=201088, rank=16)
    print("  oneDNN's matrix products")
    for what, milliseconds in taken.most_common(arguments.top):
        print(f"      {milliseconds / taken.total():6.1%}  {what}")
    for process in processes:
        Path(f"/tmp/perf-{process}.map").unlink(missing_ok=True)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("ft", type=Path)
parser.add_argument("--cases", default="half,all")
parser.add_argument("--steps", type=int, default=6)
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--top", type=int, default=6, help="symbols named in each group")
arguments = parser.parse_args()
if not shutil.which("perf"):
    sys.exit("perf is not installed: it comes with the tools of the kernel (linux-perf, linux-tools)")
for name in arguments.cases.split(","):
    with tempfile.TemporaryDirectory(prefix="ft-profile-") as folder:
        profile(arguments.ft.resolve(), Path(folder), name)
