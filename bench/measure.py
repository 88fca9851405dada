"""What the comparisons share: the clock, peak memory, cold files, and moving bytes without converting them."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PIECE_BYTES = 16 << 20


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def peak_bytes(command):
    """Runs `command`, and says how much memory it had at most; what it said is shown where it fails."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            said.seek(0)
            sys.stderr.buffer.write(said.read())
            sys.exit(f"{' '.join(map(str, command))} failed")
    return usage.ru_maxrss * 1024


def drop_caches():
    subprocess.run(["sync"], check=True)
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        print("the cache of the system could not be dropped: files are read warm", file=sys.stderr)


def move(source, target, size):
    """Reads all of `source` and writes `size` bytes to `target`, spread evenly, synced: what a conversion moves, without the conversion."""
    whole = source.stat().st_size
    piece = bytearray(PIECE_BYTES)
    done = written = 0
    with open(source, "rb", buffering=0) as reader, open(target, "wb", buffering=0) as writer:
        while count := reader.readinto(piece):
            done += count
            goal = size * done // whole
            while written < goal:
                written += writer.write(memoryview(piece)[: min(goal - written, PIECE_BYTES)])
        os.fsync(writer.fileno())
