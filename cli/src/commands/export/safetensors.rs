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

use super::card::card;
use super::outcome::Exported;
use super::target::Experts;
use super::{Arguments, model_name};
use crate::conversion::storage_name;
use crate::disk::check_room;
use crate::error::{Error, Result};
use crate::progress::ByteProgress;
use crate::terminal::Terminal;
use crate::verification::verified;

/// Bytes of tensors in a file, unless the user says otherwise. Source: transformers, `save_pretrained`, `max_shard_size`.
const SHARD_BYTES: u64 = 5_000_000_000;

const README: &str = "README.md";

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
    let verification = if arguments.no_verify {
        None
    } else {
        let verification = verified(sealed.path(), &arguments.model, None, terminal)?;
        arguments.bounds.judge(&arguments.out, &verification)?;
        Some(verification)
    };
    let readme = sealed.path().join(README);
    // The model's own is carried along.
    if !readme.exists() {
        let from = storage_name(source.expert_storage());
        let text = card(&arguments.model, &model_name(arguments), kind, from, to, verification.as_ref());
        write_atomically(&readme, text.as_bytes())?;
    }
    let target = sealed.publish()?;
    let files = files_in(&target).map_err(|source| Error::File { action: "read", path: target.clone(), source })?;
    let bytes = files.iter().filter_map(|file| fs::metadata(file).ok()).map(|status| status.len()).sum();
    let next = format!("ft inspect {}", arguments.out.display());
    Ok(Exported { files, bytes, seconds: started.elapsed().as_secs_f64(), types: Default::default(), verification, next })
}

fn files_in(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<PathBuf>>>()?;
    files.sort();
    Ok(files)
}
