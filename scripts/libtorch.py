"""Puts libtorch 2.11.0 into third_party/libtorch, taken from the torch wheel and the CUDA wheels it links against.

A machine without an NVIDIA GPU gets the two CUDA wheels that libtorch_cpu.so itself loads; one with a GPU gets them all.
A wheel that is already there, whole, is not fetched again. Needs nothing but Python and its pip.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

LIBTORCH = Path(__file__).resolve().parent.parent / "third_party/libtorch"
STAMP = LIBTORCH / ".complete"

CPU = {
    "torch": "2.11.0",
    "nvidia-cuda-runtime": "13.0.96",
    "nvidia-cuda-cupti": "13.0.85",
}
# What torch 2.11.0 and its cuda-toolkit 13.0.2 name, less what only Python uses (triton, cuda-bindings).
GPU = CPU | {
    "nvidia-cublas": "13.1.0.3",
    "nvidia-cuda-nvrtc": "13.0.88",
    "nvidia-cudnn-cu13": "9.19.0.56",
    "nvidia-cufft": "12.0.0.61",
    "nvidia-cufile": "1.15.1.6",
    "nvidia-curand": "10.4.0.35",
    "nvidia-cusolver": "12.0.4.66",
    "nvidia-cusparse": "12.6.3.3",
    "nvidia-cusparselt-cu13": "0.8.0",
    "nvidia-nccl-cu13": "2.28.9",
    "nvidia-nvjitlink": "13.0.88",
    "nvidia-nvshmem-cu13": "3.4.5",
    "nvidia-nvtx": "13.0.85",
}


def has_gpu():
    try:
        return subprocess.run(["nvidia-smi"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


def is_whole(name, version):
    """Whether every file that the wheel's own record lists is there with its size (pip leaves bytecode to us)."""
    record = LIBTORCH / f"{name.replace('-', '_')}-{version}.dist-info/RECORD"
    if not record.is_file():
        return False
    for line in record.read_text().splitlines():
        path, _, size = line.rsplit(",", 2)
        # Programs of the wheel are recorded relative to the folder that pip first unpacked it in.
        if path.startswith("..") or not size:
            continue
        file = LIBTORCH / path.strip('"')
        if not file.is_file() or file.stat().st_size != int(size):
            return False
    return True


def fetch(packages):
    """Installs beside the final place and moves the files over only once all of them have arrived."""
    partial = LIBTORCH.with_name("libtorch.partial")
    shutil.rmtree(partial, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-compile", "--disable-pip-version-check"]
    # The pip settings of a person may say `--user`, which pip refuses together with `--target`.
    environment = os.environ | {"PIP_USER": "0", "PIP_ROOT_USER_ACTION": "ignore"}
    if subprocess.run([*command, "--quiet", "--target", str(partial), *packages], env=environment).returncode != 0:
        sys.exit("error: libtorch could not be fetched\nhint: pip's own message is above; `python3 -m pip download torch==2.11.0` must work")
    LIBTORCH.mkdir(parents=True, exist_ok=True)
    for source in sorted(partial.rglob("*")):
        target = LIBTORCH / source.relative_to(partial)
        if source.is_dir() and not source.is_symlink():
            target.mkdir(parents=True, exist_ok=True)
        else:
            os.replace(source, target)
    shutil.rmtree(partial)


def main():
    wanted = GPU if has_gpu() else CPU
    lines = "".join(f"{name}=={version}\n" for name, version in wanted.items())
    if STAMP.is_file() and set(lines.split()) <= set(STAMP.read_text().split()):
        return
    missing = [f"{name}=={version}" for name, version in wanted.items() if not is_whole(name, version)]
    if missing:
        size = "0.6 GB" if wanted is CPU else "2.5 GB"
        print(f"fetching libtorch 2.11.0 (up to {size}, once): {' '.join(missing)}", file=sys.stderr)
        fetch(missing)
    STAMP.write_text(lines)


if __name__ == "__main__":
    main()
