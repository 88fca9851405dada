"""Writes conversations as every kind of file that holds tables, by pyarrow.

    tables.py CONVERSATIONS.jsonl FOLDER

Prints the names of the files, a line each. Each holds the conversations of the JSONL file, in its order.
"""

import gzip
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq


def table_of(conversations: list[dict]) -> pa.Table:
    """`messages` as a list of structs in which every key stands in every row, as the `datasets` library writes it."""
    return pa.table({
        "id": list(range(len(conversations))),
        "messages": pa.array([conversation["messages"] for conversation in conversations]),
        "reasoning": pa.array([conversation.get("reasoning") for conversation in conversations], pa.string()),
    })


def write_parquet(table: pa.Table, folder: Path) -> None:
    for compression in ["none", "snappy", "gzip", "brotli", "lz4", "zstd"]:
        for version in ["1.0", "2.0"]:
            path = folder / f"{compression}-{version}.parquet"
            pq.write_table(table, path, compression=compression, data_page_version=version, row_group_size=37, data_page_size=512)
    pq.write_table(table, folder / "plain.parquet", use_dictionary=False, write_statistics=False, store_schema=False)
    pq.write_table(table, folder / "split.parquet", use_byte_stream_split=False, column_encoding=None, version="2.6")


def write_arrow(table: pa.Table, folder: Path) -> None:
    for compression in [None, "lz4", "zstd"]:
        options = pa.ipc.IpcWriteOptions(compression=compression)
        with pa.ipc.new_file(folder / f"file-{compression}.arrow", table.schema, options=options) as writer:
            writer.write_table(table, max_chunksize=41)
        with pa.ipc.new_stream(folder / f"stream-{compression}.arrow", table.schema, options=options) as writer:
            writer.write_table(table, max_chunksize=41)
    pyarrow.feather.write_feather(table, folder / "v2.feather")


def other_types(conversations: list[dict], folder: Path) -> None:
    messages = [conversation["messages"] for conversation in conversations]
    reasoning = [conversation.get("reasoning") for conversation in conversations]
    text = pa.array([json.dumps(list_of_messages) for list_of_messages in messages], pa.large_string())
    pq.write_table(pa.table({"messages": text, "reasoning": reasoning}), folder / "json-text.parquet")
    inner = pa.array(messages).type.value_type
    columns = {
        "messages": pa.array(messages, pa.large_list(inner)),
        "reasoning": pa.array(reasoning, pa.string()).dictionary_encode(),
    }
    for name, write in [("wide.arrow", pa.ipc.new_file), ("wide-stream.arrow", pa.ipc.new_stream)]:
        table = pa.table(columns)
        with write(folder / name, table.schema) as writer:
            writer.write_table(table)
    views = {"messages": pa.array(messages), "reasoning": pa.array(reasoning, pa.string_view())}
    with pa.ipc.new_file(folder / "views.arrow", pa.table(views).schema) as writer:
        writer.write_table(pa.table(views))


def write_text(path: Path, conversations: list[dict], folder: Path) -> None:
    lines = path.read_bytes()
    (folder / "lines.jsonl.gz").write_bytes(gzip.compress(lines[:1000]) + gzip.compress(lines[1000:]))
    (folder / "array.json").write_text(json.dumps(conversations, indent=1))
    packed = pa.compress(lines, codec="zstd", asbytes=True)
    (folder / "lines.jsonl.zst").write_bytes(packed)


def main() -> None:
    path, folder = Path(sys.argv[1]), Path(sys.argv[2])
    conversations = [json.loads(line) for line in path.read_text().splitlines()]
    table = table_of(conversations)
    write_parquet(table, folder)
    write_arrow(table, folder)
    other_types(conversations, folder)
    write_text(path, conversations, folder)
    print("\n".join(sorted(file.name for file in folder.iterdir())))


main()
