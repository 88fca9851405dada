"""Exporting an MXFP4 checkpoint to GGUF: `ft export` against llama.cpp's converter and against copying the bytes.

    export.py FT [--rounds N] [--layers N]

FT is the program. The checkpoint has layers of gpt-oss-20b and its whole vocabulary: 4 GB with four layers. Files are read cold (the cache
of the system is dropped before each run where that is allowed: it takes root), and every byte written is synced, the converter's too.
Prints medians of rounds in turn, and the peak memory of each.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import drop_caches, move, peak_bytes, seconds

CONVERTER = Path(__file__).parent.parent / "third_party/llama.cpp/convert_hf_to_gguf.py"


def synced(command, target):
    peak = peak_bytes(command)
    with open(target, "rb") as file:
        os.fsync(file.fileno())
    return peak


def main():
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        work = Path(folder)
        model, ours, theirs, copy = work / "model", work / "ours.gguf", work / "theirs.gguf", work / "copy"
        init = [arguments.ft, "init", model, "--preset", "gpt-oss-20b", "--experts", "mxfp4", "--set", f"num_hidden_layers={arguments.layers}"]
        subprocess.run(init, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # One file, so that moving reads what the others read.
        whole = work / "whole"
        subprocess.run(
            [arguments.ft, "export", model, whole, "--to", "safetensors", "--split-size", "100GB", "--no-verify"],
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        shutil.rmtree(model)
        source = whole / "model.safetensors"
        works = {
            "ft": (ours, lambda: synced([arguments.ft, "export", whole, ours, "--to", "gguf", "--no-verify"], ours)),
            "converter": (theirs, lambda: synced([sys.executable, CONVERTER, whole, "--outfile", theirs], theirs)),
            "copy": (copy, lambda: move(source, copy, source.stat().st_size)),
        }
        taken, peaks = {name: [] for name in works}, {}
        for _ in range(arguments.rounds):
            for name, (target, job) in works.items():
                target.unlink(missing_ok=True)
                drop_caches()
                taken[name].append(seconds(lambda: peaks.__setitem__(name, job())))
        medians = {name: statistics.median(times) for name, times in taken.items()}
        gigabytes = source.stat().st_size / 1e9
        print(f"MXFP4 checkpoint of {gigabytes:.1f} GB to GGUF, medians of {arguments.rounds} rounds, files cold, written bytes synced")
        for name, median in medians.items():
            peak = f", {peaks[name] / 1e6:.0f} MB at most" if peaks.get(name) else ""
            print(f"  {name:<10} {median:6.2f} s{peak}   {[round(time, 2) for time in taken[name]]}")
        print(f"  ft takes {medians['ft'] / medians['copy']:.2f} of a copy, and is {medians['converter'] / medians['ft']:.1f} times as fast as the converter")
        same = ours.stat().st_size, theirs.stat().st_size
        print(f"  bytes of the files: {same[0]} and {same[1]}")


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("ft", type=Path)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--layers", type=int, default=4)
parser.add_argument("--folder", type=Path, default=None, help="where the files go, 20 GB: the disk that is measured")
arguments = parser.parse_args()
arguments.ft = arguments.ft.resolve()
main()
