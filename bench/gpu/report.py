"""The bars of training on a GPU, and the page that says how they were met."""

import json

GIGABYTE = 1e9


def figure(results, *path):
    """What is at `path` in the results; None where a stage did not get there."""
    for key in path:
        results = results.get(key) if isinstance(results, dict) else None
    return results


def best_try(results):
    fitting = [one for one in figure(results, "peer", "tries") or [] if "tokens_per_second" in one]
    return max(fitting, key=lambda one: one["tokens_per_second"], default=None)


def peer_ratio(results):
    ours, best = figure(results, "20b", "rows", "20b", "tokens_per_second"), best_try(results)
    return ours / best["tokens_per_second"] if ours and best else None


def memory(stage, row):
    return lambda results: figure(results, stage, "rows", row, "peak_memory_bytes")


def slowest_unpack(results):
    lines = [line for run in figure(results, "kernels", "runs") or [] for line in run["figures"]]
    return min((line["of_copy"] for line in lines if "unpack" in line["kernel"] and line.get("of_copy")), default=None)


def kernels_run(results):
    runs = figure(results, "kernels", "runs")
    return None if runs is None else float(all(run["rc"] == 0 and not run["skipped"] for run in runs))


# What is asked, the figure, how it is written, and the least or the most that it may be; "H200" where the bar is of that card.
BARS = [
    ("20b LoRA r=16, attention + experts, 4,096-token packs: 14,000 tokens/s and more on an H200",
     lambda results: figure(results, "20b", "rows", "20b", "tokens_per_second"), "{:,.0f} tokens/s", 14000, None, "H200"),
    ("the same: at least 3 times transformers + PEFT", peer_ratio, "{:.2f} times", 3, None, None),
    ("20b LoRA, one sequence of 2,048 tokens: under 16 GB", memory("memory", "20b-2048"), "memory", None, 16 * GIGABYTE, None),
    ("20b LoRA, one sequence of 60,000 tokens: under 72 GB", memory("long", "20b-60000"), "memory", None, 72 * GIGABYTE, None),
    ("120b LoRA on attention, 2,048 tokens: under 72 GB", memory("120b", "120b-attention"), "memory", None, 72 * GIGABYTE, None),
    ("120b LoRA on attention + experts, 2,048 tokens: under 72 GB", memory("120b", "120b"), "memory", None, 72 * GIGABYTE, None),
    ("kernels and their tests ran on the card, none was skipped", kernels_run, "yes", 1, None, None),
    ("unpacking MXFP4 at 90% of the copy bandwidth", slowest_unpack, "{:.2f} of copy", 0.9, None, None),
]


def written(value, form):
    if form == "memory":
        return f"{value / GIGABYTE:.1f} GB"
    return ("yes" if value else "no") if form == "yes" else form.format(value)


def bars(record):
    """Each bar with its figure and `pass`, `FAIL`, or why there is no verdict."""
    for text, find, form, least, most, card in BARS:
        value = find(record["stages"])
        if value is None:
            yield text, "-", "not measured"
        elif card and card not in record["device"]["name"]:
            yield text, written(value, form), f"not an {card}"
        else:
            kept = (least is None or value >= least) and (most is None or value < most)
            yield text, written(value, form), "pass" if kept else "FAIL"


def rows(record):
    for stage in record["stages"].values():
        yield from (stage.get("rows") or {}).items()


def gigabytes(count):
    return f"{count / GIGABYTE:.1f}" if count else "-"


def page(record):
    """The Markdown page of a record."""
    device = record["device"]
    title = "smoke run on the CPU, of tiny models: no bars" if record["smoke"] else device["name"]
    yield f"# {record['date']}, {title}"
    yield ""
    commits = ", ".join(sorted({stage["commit"] for stage in record["stages"].values() if "commit" in stage}))
    yield f"Driver {device['driver']}, {device['memory']}; torch {record['torch']}; ft at commit {commits}. `{record['command']}`"
    if not record["smoke"]:
        yield "\n| bar | measured | |\n| --- | --- | --- |"
        yield from ("| " + " | ".join(bar) + " |" for bar in bars(record))
    yield "\n| ft | tokens a step | tokens/s | s/step | peak GB | on the card GB | MFU | losses |\n| --- | --- | --- | --- | --- | --- | --- | --- |"
    for name, row in rows(record):
        if "error" in row:
            yield f"| {name} | {row['error'][:200]} | | | | | | |"
            continue
        used = f"{row['utilization']:.1%}" if row["utilization"] else "-"
        losses = f"{row['losses'][0]:.3f} to {row['losses'][-1]:.3f}"
        cells = [name, f"{row['tokens']:,}", f"{row['tokens_per_second']:,.0f}", f"{row['step_seconds']:.2f}"]
        yield "| " + " | ".join([*cells, gigabytes(row["peak_memory_bytes"]), gigabytes(row["card_bytes"]), used, losses]) + " |"
    yield ""
    yield "The peak is what tensors held at most, as the allocator counts it; on the card is what nvidia-smi saw in use, caches and CUDA's own"
    yield "memory included."
    if tries := figure(record["stages"], "peer", "tries"):
        yield "\n| transformers + PEFT | sequences at once | tokens/s | s/step | peak GB | losses |\n| --- | --- | --- | --- | --- | --- |"
        for one in tries:
            if "error" in one:
                yield f"| {one['attention']} | {one['batch_sequences'] or '-'} | {one['error'][:160]} | | | |"
            else:
                cells = [one["attention"], str(one["batch_sequences"]), f"{one['tokens_per_second']:,.0f}", f"{one['step_seconds']:.2f}"]
                losses = f"{one['losses'][0]:.3f} to {one['losses'][-1]:.3f}"
                yield "| " + " | ".join([*cells, gigabytes(one["peak_memory_bytes"]), losses]) + " |"
    for run in figure(record["stages"], "kernels", "runs") or []:
        skipped = f", {len(run['skipped'])} SKIPPED" if run["skipped"] else ""
        yield f"\n`{run['command']}`: exit code {run['rc']}{skipped}, {run['seconds']:.0f} s\n"
        yield from (f"    {json.dumps(line)}" for line in run["figures"])
    for name, stage in record["stages"].items():
        if "error" in stage:
            yield f"\nStage {name} failed: {stage['error'][:1500]}"
