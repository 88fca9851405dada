"""Reads what a run left for TensorBoard and for Weights & Biases, with their own packages.

    trackers.py RUN

Prints JSON: `scalars` of the event file as tensorboard's accumulator reads it ({tag: [[step, value], ...]}), and of the transaction log the
`numbers` of its records, the `run`, the rows of its `history`, its `summary` and the `exit_code`, parsed with wandb's protocol buffers. The
log's chunks are read here: the package reads them in its compiled core alone.
"""

import json
import struct
import sys
import zlib
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2

BLOCK_BYTES = 32 * 1024
CHUNK_HEADER_BYTES = 7
FULL, LAST = 1, 4


def scalars(folder: Path) -> dict:
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {tag: [[event.step, event.value] for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def records(data: bytes) -> list:
    assert data[:7] == b":W&B" + struct.pack("<HB", 0xBEE1, 0), data[:7]
    at, found, parts = 7, [], b""
    while at < len(data):
        room = BLOCK_BYTES - at % BLOCK_BYTES
        if room < CHUNK_HEADER_BYTES:
            assert not any(data[at : at + room])
            at += room
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, at)
        chunk = data[at + CHUNK_HEADER_BYTES : at + CHUNK_HEADER_BYTES + length]
        assert zlib.crc32(bytes([kind]) + chunk) == checksum, f"checksum at {at}"
        parts += chunk
        if kind in (FULL, LAST):
            found.append(wandb_internal_pb2.Record.FromString(parts))
            parts = b""
        at += CHUNK_HEADER_BYTES + length
    return found


def items(holder) -> dict:
    return {item.key: json.loads(item.value_json) for item in holder}


def log(path: Path) -> dict:
    found = records(path.read_bytes())
    said = {"numbers": [record.num for record in found], "history": [], "exit_code": None, "kinds": []}
    for record in found:
        kind = record.WhichOneof("record_type")
        said["kinds"].append(kind)
        if kind == "run":
            run = record.run
            said["run"] = {"id": run.run_id, "project": run.project, "name": run.display_name, "tags": list(run.tags), "notes": run.notes}
            said["config"] = items(run.config.update)
        elif kind == "history":
            said["history"].append(items(record.history.item))
        elif kind == "summary":
            said["summary"] = items(record.summary.update)
        elif kind == "exit":
            said["exit_code"] = record.exit.exit_code
    return said


def main() -> None:
    run = Path(sys.argv[1])
    said = {"scalars": scalars(run / "tensorboard")} if (run / "tensorboard").exists() else {}
    for path in run.glob("wandb/*/run-*.wandb"):
        said["log"] = log(path)
    print(json.dumps(said))


main()
