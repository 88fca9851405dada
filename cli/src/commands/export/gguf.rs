//! GGUF: a file, a folder with a file and its card, or one for Ollama.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use ft_formats::bundle::Bundle;
use ft_formats::card::CardKind;
use ft_formats::checkpoint::Checkpoint;
use ft_formats::gguf::{ExportedGguf, GgufExport, GgufReport, GgufTarget, GgufTensor};
use ft_formats::ollama::Modelfile;
use ft_formats::template::{CHAT_TEMPLATE, without_generation_marks};
use ft_quant::mxfp4::ScaleRule;

use super::card::{CARD, card};
use super::outcome::Exported;
use super::{Arguments, in_file_name, in_ollama, model_name, verify};
use crate::conversion::storage_name;
use crate::disk::check_room;
use crate::error::{Error, Result};
use crate::progress::ByteProgress;
use crate::terminal::Terminal;

pub(super) fn export(arguments: &Arguments, to: GgufTarget, is_for_ollama: bool, terminal: &Terminal) -> Result<Exported> {
    let started = Instant::now();
    let source = Checkpoint::open(&arguments.model)?;
    source.check_vocabulary()?;
    let name = model_name(arguments);
    if arguments.out.extension().is_some_and(|ending| ending == "gguf") && !is_for_ollama {
        let written = write(arguments, &source, &arguments.out, &name, to, terminal)?;
        let verification = verify(arguments, &written.path(), terminal)?;
        let report = written.report().clone();
        let files = written.publish()?;
        let next = format!("llama-server --model {} --jinja", files.first().unwrap_or(&arguments.out).display());
        return Ok(Exported { verification, ..exported(files, &report, started, next) });
    }
    let bundle = Bundle::create(&arguments.out)?;
    let kind = to.file_type(&source).name().replace("MXFP4_MOE", "MXFP4");
    let file = format!("{}-{kind}.gguf", in_file_name(&name));
    let written = write(arguments, &source, &bundle.path().join(&file), &name, to, terminal)?;
    let verification = verify(arguments, &written.path(), terminal)?;
    let report = written.report().clone();
    let files: Vec<String> = written.publish()?.iter().filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).collect();
    let first = files.first().cloned().unwrap_or(file);
    let card_kind = if is_for_ollama { CardKind::Ollama { file: first.clone() } } else { CardKind::Gguf { file: first.clone() } };
    let from = storage_name(source.expert_storage());
    bundle.write(CARD, &card(&arguments.model, &name, card_kind, from, &kind, verification.as_ref()))?;
    if is_for_ollama {
        let modelfile = Modelfile { name: in_ollama(&name), from: format!("./{first}"), adapter: None };
        bundle.write("Modelfile", &modelfile.text().map_err(|source| Error::Modelfile { source })?)?;
    }
    let next = if is_for_ollama {
        format!("cd {} && ollama create {} -f Modelfile", arguments.out.display(), in_ollama(&name))
    } else {
        format!("llama-server --model {} --jinja", arguments.out.join(&first).display())
    };
    let target = bundle.publish()?;
    let mut files: Vec<PathBuf> = files.into_iter().map(|file| target.join(file)).collect();
    files.extend(["Modelfile", CARD].map(|file| target.join(file)).into_iter().filter(|path| path.exists()));
    Ok(Exported { verification, ..exported(files, &report, started, next) })
}

/// Writes the file, hidden until it is published.
fn write(
    arguments: &Arguments,
    source: &Checkpoint,
    target: &Path,
    name: &str,
    to: GgufTarget,
    terminal: &Terminal,
) -> Result<ExportedGguf> {
    let types = |tensor: &GgufTensor| to.tensor_type(source, tensor);
    let template = without_generation_marks(CHAT_TEMPLATE);
    let export = GgufExport {
        source,
        target,
        types: &types,
        file_type: to.file_type(source),
        packing: ScaleRule::Even.into(),
        split_bytes: arguments.split_size,
        name: Some(name),
        template: Some(&template),
    };
    let mut target_bytes = 0_u64;
    for spec in export.plan()? {
        target_bytes = target_bytes.saturating_add(spec.byte_length()?);
    }
    check_room(&arguments.out, target_bytes)?;
    let mut progress = ByteProgress::new(format!("exporting {}", arguments.model.display()), terminal);
    let written = export.run(&mut |done, total| progress.set(done, total))?;
    progress.finish();
    Ok(written)
}

fn exported(files: Vec<PathBuf>, report: &GgufReport, started: Instant, next: String) -> Exported {
    let mut types = BTreeMap::new();
    for spec in &report.tensors {
        *types.entry(spec.tensor_type.name()).or_insert(0) += 1;
    }
    Exported { types, ..Exported::new(files, started, next) }
}
