//! A plan and the counts of a dataset, in words.

use ft_trainer::data::{LengthHistogram, Shape, Statistics};
use ft_trainer::recipe::{Layers, Recipe};
use ft_trainer::run::PlanReport;
use ft_trainer::run::plan::{EXPECTED_UTILIZATION, MemoryPlace};

use crate::terminal::Palette;
use crate::units::{bytes, counted, duration, flops, parameters, share, whole};

/// Width of the first column.
const LABEL: usize = 12;

/// Width of the first column of a table.
const CLASS: usize = 17;

/// Cells of the longest bar of a histogram.
const BAR: usize = 40;

/// What will be trained, on what, and where it goes.
pub(crate) fn header(plan: &PlanReport, recipe: &Recipe, palette: Palette) -> String {
    let line = |label: &str, text: String| format!("{}{text}\n", palette.heading(&format!("{label:LABEL$}")));
    let determinism = if recipe.training.deterministic || plan.machine.is_cpu() { "repeats exactly" } else { "repeats within rounding" };
    let mut text = line("model", format!("{}, {} parameters", plan.model.display(), parameters(plan.total_parameters)));
    text += &line("training", training(plan, recipe));
    text += &line("data", data(&plan.dataset));
    if plan.validation_samples > 0 {
        text += &line("", format!("{} to train on, {} held out", samples(plan.train_samples), samples(plan.validation_samples)));
    }
    text += &line("", trained(&plan.dataset));
    text += &line(
        "batches",
        format!(
            "{} of at most {} tokens, {:.0}% full; {} x {} in a step",
            counted(plan.sequences, if recipe.dataset.packing { "pack" } else { "sequence" }),
            whole(recipe.dataset.max_tokens as u64),
            plan.packing_efficiency * 100.0,
            recipe.training.batch_sequences,
            recipe.training.accumulation_steps,
        ),
    );
    text += &line(
        "run",
        format!(
            "{} ({} in an epoch), about {} tokens, learning rate {:e} with {} of warm-up; {} {}, {determinism}",
            counted(plan.steps, "step"),
            plan.steps_per_epoch,
            whole(plan.tokens),
            recipe.optimizer.learning_rate,
            counted(plan.warmup_steps, "step"),
            plan.dtype,
            if plan.machine.is_cpu() { "on the CPU".to_owned() } else { device(plan) },
        ),
    );
    text += &line("work", work(plan));
    let (memory, machine) = (&plan.memory, &plan.machine);
    let host = format!("about {}{}", bytes(memory.host_bytes), free(machine.host_available_bytes));
    if machine.is_cpu() {
        text += &line("memory", host);
    } else {
        let device = format!("about {}{}", bytes(memory.device_bytes), free(machine.device_available_bytes));
        text += &line("memory", format!("{device} on the device; {host} on the host"));
    }
    let disk = format!("about {}{}", bytes(plan.disk.needed_bytes), free(plan.disk_available_bytes));
    text += &line("output", format!("{}, {disk}", plan.run_directory.display()));
    text.trim_end().to_owned()
}

fn free(available: Option<u64>) -> String {
    available.map_or(String::new(), |free| format!(" of {} free", bytes(free)))
}

/// The device by its names.
fn device(plan: &PlanReport) -> String {
    let machine = &plan.machine;
    match (&machine.device_name, machine.device_available_bytes) {
        (Some(name), _) => format!("on {} ({name})", machine.device),
        (None, Some(size)) if !machine.is_here => format!("on a device of {}", bytes(size)),
        _ => format!("on {}", machine.device),
    }
}

/// Operations, and the time that they take where that can be said.
fn work(plan: &PlanReport) -> String {
    let amounts = format!("{} a step, {} in all", flops(plan.work_of_step.total_flops()), flops(plan.work.total_flops()));
    match (plan.expected_seconds, plan.peak()) {
        (Some(seconds), Some(peak)) => format!(
            "{amounts}; about {} at {:.0}% of {:.0} TFLOP/s ({})",
            duration(seconds),
            EXPECTED_UTILIZATION * 100.0,
            peak.flops_per_second / 1e12,
            peak.name
        ),
        _ => amounts,
    }
}

/// Memory, class by class, in a column for the device and one for the host; with what fuller batches would take.
pub(crate) fn memory(plan: &PlanReport, palette: Palette) -> String {
    let (memory, full) = (&plan.memory, &plan.memory_of_full_batches);
    let is_cpu = plan.machine.is_cpu();
    let cell = |count: u64| if count > 0 { bytes(count) } else { String::new() };
    let row = |name: &str, device: u64, host: u64| {
        let text = if is_cpu {
            format!("  {name:CLASS$}  {:>9}", cell(host))
        } else {
            format!("  {name:CLASS$}  {:>9}  {:>9}", cell(device), cell(host))
        };
        text.trim_end().to_owned()
    };
    let mut names: Vec<&str> = Vec::new();
    for class in memory.classes.iter().filter(|class| class.bytes > 0) {
        if !names.contains(&class.name) {
            names.push(class.name);
        }
    }
    let heading =
        if is_cpu { "memory by class".to_owned() } else { format!("{:CLASS$}    {:>9}  {:>9}", "memory by class", "device", "host") };
    let mut lines = vec![palette.heading(&heading)];
    lines.extend(names.iter().map(|&name| {
        let bytes_in =
            |place| memory.classes.iter().filter(|class| class.name == name && class.place == place).map(|class| class.bytes).sum();
        row(name, bytes_in(MemoryPlace::Device), bytes_in(MemoryPlace::Host))
    }));
    lines.push(row("together", memory.device_bytes, memory.host_bytes));
    lines.push(row("at most", full.device_bytes, full.host_bytes));
    lines.push(format!(
        "  The largest forward pass of this data has {} tokens, {} trained; `at most` is for sequences of max_tokens.",
        whole(plan.largest_pass.tokens),
        whole(plan.largest_pass.trained_tokens)
    ));
    lines.join("\n")
}

/// Operations, by what they are for.
pub(crate) fn operations(plan: &PlanReport, palette: Palette) -> String {
    let step = &plan.work_of_step;
    let row = |name: &str, count: f64| format!("  {name:CLASS$}  {:>13}", flops(count));
    [
        palette.heading("operations of a step"),
        row("forward", step.forward_flops),
        row("backward", step.backward_flops),
        row("again", step.recomputation_flops),
        format!("  {} of {} parameters are active for a token.", parameters(plan.active_parameters), parameters(plan.total_parameters)),
    ]
    .join("\n")
}

/// What is written where.
pub(crate) fn disk(plan: &PlanReport, palette: Palette) -> String {
    let disk = &plan.disk;
    let row = |name: &str, text: String| format!("  {name:CLASS$}  {text:>9}");
    let count = if disk.checkpoints == 1 { "1 checkpoint".to_owned() } else { format!("{} checkpoints", disk.checkpoints) };
    let mut lines = vec![
        palette.heading("disk"),
        row(&count, bytes(disk.checkpoint_bytes.saturating_mul(disk.checkpoints))),
        row(if plan.training == "lora" { "adapter" } else { "model" }, bytes(disk.result_bytes)),
    ];
    if let Some(merged) = disk.merged_model_bytes {
        lines.push(row("merged model", format!("{:>9}  if you merge it, experts as they are stored", bytes(merged))));
    }
    lines.join("\n")
}

/// What is odd about a dataset, though it can be trained on.
pub(crate) fn data_warnings(statistics: &Statistics) -> Vec<String> {
    let mut warnings = Vec::new();
    if statistics.truncated > 0 {
        warnings.push(format!(
            "{} cut at `dataset.max_tokens`: their ends, and their stop tokens, are not trained",
            samples(statistics.truncated)
        ));
    }
    if statistics.dropped > 0 {
        warnings.push(format!("{} left out for their length", samples(statistics.dropped)));
    }
    if let Some((first, second)) = statistics.duplicates.examples.first() {
        let count = statistics.duplicates.count;
        warnings.push(format!(
            "{} {} the same as one before, such as {second} as {first}",
            counted(count, "conversation"),
            if count == 1 { "is" } else { "are" }
        ));
    }
    warnings.extend(warnings_of_lines(statistics));
    warnings
}

/// What is odd about a dataset that a model is evaluated on.
pub(crate) fn evaluation_warnings(statistics: &Statistics) -> Vec<String> {
    let mut warnings = Vec::new();
    if statistics.truncated > 0 {
        warnings.push(format!("{} cut at --max-tokens: their ends are not counted", samples(statistics.truncated)));
    }
    if statistics.dropped > 0 {
        warnings.push(format!("{} left out: the assistant writes nothing within --max-tokens", samples(statistics.dropped)));
    }
    warnings.extend(warnings_of_lines(statistics));
    warnings
}

fn warnings_of_lines(statistics: &Statistics) -> Vec<String> {
    let mut warnings = Vec::new();
    if statistics.untrained > 0 {
        warnings.push(format!("{} left out: every message in them has loss weight 0", counted(statistics.untrained, "turn")));
    }
    if !statistics.ignored_keys.is_empty() {
        let keys: Vec<String> = statistics.ignored_keys.iter().map(|(key, count)| format!("`{key}` ({count})")).collect();
        warnings.push(format!("keys of the data that mean nothing here: {}", keys.join(", ")));
    }
    warnings
}

/// Conversations and samples of a dataset.
pub(crate) fn data(statistics: &Statistics) -> String {
    let shapes = &statistics.shapes;
    let named = |(shape, count): (&Shape, &usize)| match shapes.len() {
        1 => format!("`{}`", shape.as_str()),
        _ => format!("{} of `{}`", whole(*count as u64), shape.as_str()),
    };
    format!(
        "{} (shape {}), {} of {} to {} tokens",
        counted(statistics.conversations, "conversation"),
        shapes.iter().map(named).collect::<Vec<_>>().join(", "),
        samples(statistics.samples),
        whole(statistics.lengths.shortest as u64),
        whole(statistics.lengths.longest as u64),
    )
}

/// Tokens of a dataset, and those with a weight by channel.
pub(crate) fn trained(statistics: &Statistics) -> String {
    let all = statistics.trained;
    let channels: Vec<String> = [("analysis", all.analysis), ("commentary", all.commentary), ("final", all.final_), ("text", all.text)]
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| format!("{name} {}", whole(count as u64)))
        .collect();
    format!(
        "{} tokens, {} trained ({}): {}",
        whole(statistics.tokens as u64),
        whole(all.total() as u64),
        share(all.total() as u64, statistics.tokens as u64),
        channels.join(", ")
    )
}

/// Conversations and tokens of what is held out.
pub(crate) fn held_out(statistics: &Statistics) -> String {
    let (conversations, made) = (counted(statistics.conversations, "conversation"), samples(statistics.samples));
    format!("{conversations}, {made}, {} tokens, {} trained", whole(statistics.tokens as u64), whole(statistics.trained.total() as u64))
}

/// Tokens of a dataset by who says them.
pub(crate) fn spoken(statistics: &Statistics) -> String {
    let said = statistics.spoken.named();
    let words =
        |(name, count): &(&str, usize)| format!("{name} {} ({})", whole(*count as u64), share(*count as u64, statistics.tokens as u64));
    said.iter().filter(|(_, count)| *count > 0).map(words).collect::<Vec<_>>().join(", ")
}

/// Lengths as bars.
pub(crate) fn histogram(lengths: &LengthHistogram) -> String {
    let most = lengths.buckets.iter().map(|(_, count)| *count).max().unwrap_or(0).max(1);
    let lines: Vec<String> = lengths
        .buckets
        .iter()
        .map(|(bound, count)| {
            let cells = (count * BAR).div_ceil(most);
            let line = format!("  up to {:>7} {:>8}  {}", whole(*bound as u64), whole(*count as u64), "#".repeat(cells));
            line.trim_end().to_owned()
        })
        .collect();
    lines.join("\n")
}

/// How long something took and how fast it was.
pub(crate) fn speed(tokens: usize, seconds: f64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "one digit is shown")]
    let rate = if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 };
    format!("{} in {}, {rate:.1} tokens/s", counted(tokens, "token"), duration(seconds))
}

fn samples(count: usize) -> String {
    counted(count, "sample")
}

fn training(plan: &PlanReport, recipe: &Recipe) -> String {
    let part = format!("{} of them ({})", parameters(plan.trained_parameters), share(plan.trained_parameters, plan.total_parameters));
    let Some(lora) = recipe.lora() else { return "every weight".to_owned() };
    let targets: Vec<String> = lora.targets.iter().map(word).collect();
    let layers = match &lora.layers {
        Layers::All => "all layers".to_owned(),
        Layers::List(list) => format!("layers {list:?}"),
    };
    let from = lora.initial_adapter.as_ref().map_or(String::new(), |path| format!(", from {}", path.display()));
    let kind = if lora.rslora { "rsLoRA" } else { "LoRA" };
    format!(
        "{kind} of rank {}, alpha {}, on {} of {layers}{from}: {} in {}",
        lora.rank,
        lora.alpha,
        targets.join(", "),
        part.replace(" of them", " parameters"),
        counted(plan.trained_tensors, "weight")
    )
}

/// A setting's word as the recipe spells it.
fn word(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_bar_is_the_most_frequent_length() {
        let lengths = LengthHistogram { shortest: 3, median: 5, longest: 20, buckets: vec![(4, 2), (8, 80), (16, 0), (32, 1)] };
        let text = histogram(&lengths);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "  up to       4        2  #");
        assert_eq!(lines[1].matches('#').count(), BAR);
        assert_eq!(lines[2], "  up to      16        0");
        assert_eq!(lines[3].matches('#').count(), 1);
    }

    #[test]
    fn odd_data_is_named() {
        assert!(data_warnings(&Statistics::default()).is_empty());
        let statistics =
            Statistics { truncated: 2, dropped: 1, untrained: 3, ignored_keys: [("id".to_owned(), 4)].into(), ..Statistics::default() };
        let warnings = data_warnings(&statistics);
        assert_eq!(warnings.len(), 4);
        assert!(warnings[0].starts_with("2 samples cut"), "{warnings:?}");
        assert!(warnings[3].contains("`id` (4)"), "{warnings:?}");
    }
}
