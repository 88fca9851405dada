"""Lets Python import the torch of third_party/libtorch on a machine that has no CUDA libraries.

The Python side of the torch wheel is linked against cuBLAS, cuDNN, NCCL and others even when only the CPU is
used: 2.5 GB that a machine without a GPU has no use for (ft itself does not load them). For each library that is
absent this builds an empty stand-in with the symbols that torch asks of it, all of them `abort()`, into DIRECTORY, and a
module `ft_libtorch` that loads them before torch is imported.

    cuda_stand_ins.py LIBTORCH DIRECTORY
"""

import re
import subprocess
import sys
from pathlib import Path

# Symbols without a version do not say which library they come from; their prefix does. The rest are versioned.
UNVERSIONED = re.compile(r"^(nccl|cuFile|cusparseLt|curand|cufft|cublas|cudnn|cusolver|cusparse|nvshmem)\w*$")


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def needed_libraries(library):
    return re.findall(r"\(NEEDED\)\s+Shared library: \[(.+?)\]", output("readelf", "--dynamic", "--wide", library))


def version_owners(library):
    """The library that each version name of `library`'s undefined symbols belongs to."""
    owners, owner = {}, None
    for line in output("readelf", "--version-info", "--wide", library).splitlines():
        if found := re.search(r"Version: 1\s+File: (\S+)", line):
            owner = found.group(1)
        elif found := re.search(r"Name: (\S+)\s+Flags", line):
            owners.setdefault(found.group(1), set()).add(owner)
    return owners


def main():
    libtorch, directory = Path(sys.argv[1]), Path(sys.argv[2])
    directory.mkdir(parents=True, exist_ok=True)
    libraries = sorted((libtorch / "torch/lib").glob("*.so*"))
    present = {path.name for path in [*libraries, *libtorch.glob("nvidia/*/lib/*.so*")]}
    absent = {
        name
        for library in libraries
        for name in needed_libraries(library)
        if name not in present and re.match(r"lib(cu|nccl|nvshmem|nvrtc)", name) and name != "libcuda.so.1"
    }
    versioned = {name: {} for name in absent}
    unversioned = set()
    for library in libraries:
        owners = version_owners(library)
        for line in output("nm", "--dynamic", "--undefined-only", library).splitlines():
            symbol, _, version = line.split()[-1].partition("@")
            for owner in owners.get(version, set()) & absent:
                versioned[owner].setdefault(version, set()).add(symbol)
            if not version and UNVERSIONED.match(symbol):
                unversioned.add(symbol)

    for index, name in enumerate(sorted(absent)):
        symbols = {symbol for group in versioned[name].values() for symbol in group}
        if index == 0:
            symbols |= unversioned
        source = "extern void abort(void);\n" + "".join(f"void {symbol}(void) {{ abort(); }}\n" for symbol in sorted(symbols))
        versions = "".join(
            f"{version} {{ global: {' '.join(f'{symbol};' for symbol in sorted(group))} }};\n"
            for version, group in versioned[name].items()
        )
        script = directory / "versions"
        script.write_text(versions)
        link = [f"-Wl,--version-script={script}"] if versions else []
        subprocess.run(
            ["cc", "-w", "-shared", "-fPIC", "-fno-builtin", *link, f"-Wl,-soname,{name}", "-x", "c", "-", "-o", directory / name],
            input=source, text=True, check=True,
        )
        script.unlink()

    loads = "".join(f"ctypes.CDLL({str(directory / name)!r}, ctypes.RTLD_GLOBAL)\n" for name in sorted(absent))
    print(f"import ctypes\n{loads}" if absent else "", end="")


if __name__ == "__main__":
    main()
