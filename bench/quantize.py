"""Requantizing on the CPU: the MXFP4 codec of ft against copies, numpy, torch and ggml; `ft quantize` against copying a checkpoint.

    quantize.py FT EXAMPLES [--rounds N] [--layers N]

FT is the program, EXAMPLES the folder with `mxfp4_speed` and `ggml_speed`. The codec runs on one core, on matrices larger than the caches.
Files are read and written cold: the cache of the system is dropped before each run where that is allowed (it takes root), and every
byte written is synced. Prints medians of rounds in turn, and ratios above 1 where ft is faster.
"""

import argparse
import ctypes
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}

import numpy
import torch
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

sys.path.insert(0, str(Path(__file__).parent.parent / "tests/peers"))
import ggml
from measure import drop_caches, move, seconds

ROWS, COLUMNS = 5760, 2880
MXFP4 = 39


def numpy_unpack(blocks, scales):
    table = numpy.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=numpy.float32)
    codes = numpy.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*scales.shape, 32)
    return table[codes] * numpy.exp2(scales.astype(numpy.float32) - 127)[..., None]


def peers():
    """Billions of elements a second of each peer, on one core."""
    torch.set_num_threads(1)
    random = numpy.random.default_rng(1)
    blocks = random.integers(0, 256, (1, ROWS, COLUMNS // 32, 16), dtype=numpy.uint8)
    scales = random.integers(115, 125, (1, ROWS, COLUMNS // 32), dtype=numpy.uint8)
    rows = (random.standard_normal((ROWS, COLUMNS)) * 0.02).astype(numpy.float32)
    packed = numpy.zeros(ROWS * COLUMNS // 32 * 17, dtype=numpy.uint8)
    library = ggml.load()

    def ggml_pack():
        library.ggml_quantize_chunk(
            MXFP4, ggml.pointer(rows), ctypes.c_void_p(packed.ctypes.data), ctypes.c_int64(0), ctypes.c_int64(ROWS), ctypes.c_int64(COLUMNS), None
        )

    torch_blocks, torch_scales = torch.from_numpy(blocks), torch.from_numpy(scales)
    works = {
        "unpack, numpy": lambda: numpy_unpack(blocks, scales),
        "unpack_transposed, torch (transformers)": lambda: convert_moe_packed_tensors(torch_blocks, torch_scales, dtype=torch.bfloat16),
        "pack, ggml's reference": ggml_pack,
    }
    return {name: ROWS * COLUMNS / statistics.median(seconds(work) for _ in range(3)) / 1e9 for name, work in works.items()}


def quantize(ft, source, target, to, work):
    """Seconds of a conversion and of moving the same bytes, taking turns."""
    taken = {"ft": [], "copy": []}
    environment = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")}
    for _ in range(arguments.rounds):
        shutil.rmtree(target, ignore_errors=True)
        drop_caches()
        command = [ft, "quantize", source, target, "--to", to, "--json"]
        taken["ft"].append(seconds(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)))
        size = (target / "model.safetensors").stat().st_size
        drop_caches()
        taken["copy"].append(seconds(lambda: move(source / "model.safetensors", work / "copy", size)))
        (work / "copy").unlink()
    return statistics.median(taken["ft"]), statistics.median(taken["copy"])


def main():
    figures = json.loads(subprocess.run([arguments.examples / "mxfp4_speed"], check=True, capture_output=True, text=True).stdout)
    print("MXFP4 on one core, 1e9 elements/s; `copy` is memcpy of the bytes that a conversion reads and writes")
    for name, value in figures.items():
        if name != "unit":
            print(f"  {name:<24} {value:7.2f}   {value / figures['copy']:.2f} of copy")
    for name, value in peers().items():
        ours = figures["pack_even" if name.startswith("pack") else name.split(",")[0]]
        print(f"  {name:<40} {value:7.3f}   ft is {ours / value:.1f} times as fast")
    print("ggml's block types on one core")
    print("  " + subprocess.run([arguments.examples / "ggml_speed"], check=True, capture_output=True, text=True).stdout.strip())
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        work = Path(folder)
        sizes = [f"num_hidden_layers={arguments.layers}", "vocab_size=50000"]
        settings = [part for size in sizes for part in ("--set", size)]
        init = [arguments.ft, "init", work / "bf16", "--preset", "gpt-oss-20b", "--experts", "bf16", *settings]
        subprocess.run(init, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        gigabytes = (work / "bf16/model.safetensors").stat().st_size / 1e9
        for source, target, to in (("bf16", "mxfp4", "mxfp4"), ("mxfp4", "plain", "bf16")):
            ours, copy = quantize(arguments.ft, work / source, work / target, to, work)
            print(
                f"`ft quantize --to {to}`, {gigabytes:.1f} GB in bf16: {ours:.2f} s; moving the same bytes: {copy:.2f} s; ratio"
                f" {ours / copy:.2f}"
            )


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("ft", type=Path)
parser.add_argument("examples", type=Path)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--layers", type=int, default=2)
parser.add_argument("--folder", type=Path, default=None, help="where the checkpoints go, 12 GB: the disk that is measured")
arguments = parser.parse_args()
main()
