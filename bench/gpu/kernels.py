"""The CUDA kernels on the card: their speed against a copy, and their tests against the CPU."""

import json
import os
import re
import shlex
import subprocess
import time

import inputs

# Name of a built binary, what it is given, and the command that builds and runs the same.
RUNS = [
    ("cuda_codec", [], "cargo run --release --locked -p ft-quant --example cuda_codec"),
    ("cuda_device", ["--test-threads=1"], "cargo test --release --locked -p ft-tests --test cuda_device -- --test-threads=1"),
    ("ft_trainer", ["torch::"], "cargo test --release --locked -p ft-trainer --lib torch::"),
]


def built(name, binaries):
    """The newest binary of this name under --binaries, where cargo adds a hash to those of tests."""
    found = [path for path in binaries.rglob(f"{name}*") if re.fullmatch(rf"{name}(-[0-9a-f]{{16}})?", path.name)]
    return max((path for path in found if path.is_file() and os.access(path, os.X_OK)), key=lambda path: path.stat().st_mtime, default=None)


def run(name, given, cargo, binaries, deadline):
    """One of them: how it ended, what it skipped, and the figures that it printed."""
    if binaries:
        binary = built(name, binaries)
        if binary is None:
            return {"command": name, "rc": None, "seconds": 0, "skipped": [], "figures": [], "said": f"not under {binaries}"}
        command = [binary, *given]
    else:
        command = shlex.split(cargo)
    start = time.monotonic()
    try:
        ran = subprocess.run(command, cwd=inputs.REPOSITORY, capture_output=True, text=True, timeout=max(1, deadline - start))
        rc, said = ran.returncode, ran.stdout + ran.stderr
    except subprocess.TimeoutExpired:
        rc, said = None, f"took longer than {deadline - start:.0f} s"
    except OSError as error:
        rc, said = None, str(error)
    return {
        "command": cargo,
        "rc": rc,
        "seconds": time.monotonic() - start,
        "skipped": re.findall(r"SKIPPED .*", said),
        "figures": [json.loads(line) for line in said.splitlines() if line.startswith('{"device"')],
        "said": said[-3000:],
    }


def measure(binaries, deadline):
    """All of them; a test that was skipped counts as failed."""
    runs = [run(*each, binaries, deadline) for each in RUNS]
    failed = [f"`{run['command']}` ended with {run['rc']}: {run['said'][-400:].strip()}" for run in runs if run["rc"] != 0]
    failed += [line for run in runs for line in run["skipped"]]
    return {"runs": runs} | ({"error": "; ".join(failed)} if failed else {})
