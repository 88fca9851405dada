//! Model directories: in the Hugging Face layout, and in OpenAI's.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use ft_formats::card::CardKind;
use ft_formats::checkpoint::{Checkpoint, ExpertStorage, SealedCheckpoint};
use ft_formats::original::write_original;
use ft_formats::requantize::{ExpertTarget, Requantization};
use ft_quant::Codec;
use ft_quant::mxfp4::ScaleRule;
use ft_trainer::run::directory::write_atomically;

use super::card::{CARD, card};
use super::outcome::Exported;
use super::target::Experts;
use super::{Arguments, model_name, verify};
use crate::conversion::storage_name;
use crate::disk::check_room;
use crate::error::{Error, Result};
use crate::progress::ByteProgress;
use crate::terminal::Terminal;

/// Bytes of tensors in a file, unless the user says otherwise. Source: transformers, `save_pretrained`, `max_shard_size`.
const SHARD_BYTES: u64 = 5_000_000_000;

pub(super) fn export(arguments: &Arguments, experts: Option<Experts>, terminal: &Terminal) -> Result<Exported> {
    let started = Instant::now();
    let source = Checkpoint::open(&arguments.model)?;
    let to = match (experts, source.expert_storage()) {
        (Some(Experts::Mxfp4), _) | (None, ExpertStorage::Mxfp4) => ExpertTarget::Mxfp4(ScaleRule::Hint.into()),
        (Some(Experts::Bf16), _) | (None, ExpertStorage::Float(_)) => ExpertTarget::Bf16,
    };
    let request = Requantization {
        source: &arguments.model,
        target: &arguments.out,
        to,
        hints_from: None,
        max_shard_bytes: arguments.split_size.unwrap_or(SHARD_BYTES),
    };
    check_room(&arguments.out, request.target_bytes()?)?;
    let mut progress = ByteProgress::new(format!("exporting {}", arguments.model.display()), terminal);
    let written = request.run(&Codec::Cpu, &mut |done, total| progress.set(done, total))?;
    progress.finish();
    finish(
        arguments,
        &source,
        Written { sealed: written.into_sealed(), kind: CardKind::Safetensors, to: storage_name(to.storage()) },
        started,
        terminal,
    )
}

pub(super) fn export_original(arguments: &Arguments, terminal: &Terminal) -> Result<Exported> {
    let started = Instant::now();
    let source = Checkpoint::open(&arguments.model)?;
    check_room(&arguments.out, source.total_bytes())?;
    let mut progress = ByteProgress::new(format!("exporting {}", arguments.model.display()), terminal);
    let shard_bytes = arguments.split_size.unwrap_or(SHARD_BYTES);
    let sealed = write_original(&source, &arguments.out, shard_bytes, &mut |done, total| progress.set(done, total))?;
    progress.finish();
    finish(arguments, &source, Written { sealed, kind: CardKind::OpenAi, to: "mxfp4" }, started, terminal)
}

/// A directory that is not published yet.
struct Written {
    sealed: SealedCheckpoint,
    kind: CardKind,
    to: &'static str,
}

fn finish(arguments: &Arguments, source: &Checkpoint, written: Written, started: Instant, terminal: &Terminal) -> Result<Exported> {
    let Written { sealed, kind, to } = written;
    let verification = verify(arguments, sealed.path(), terminal)?;
    let readme = sealed.path().join(CARD);
    // The model's own is carried along.
    if !readme.exists() {
        let from = storage_name(source.expert_storage());
        let text = card(&arguments.model, &model_name(arguments), kind, from, to, verification.as_ref());
        write_atomically(&readme, text.as_bytes())?;
    }
    let target = sealed.publish()?;
    let files = files_in(&target).map_err(|source| Error::File { action: "read", path: target.clone(), source })?;
    let next = format!("ft inspect {}", arguments.out.display());
    Ok(Exported { verification, ..Exported::new(files, started, next) })
}

fn files_in(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<PathBuf>>>()?;
    files.sort();
    Ok(files)
}
