//! LoRA adapters for llama.cpp.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use ft_formats::bundle::Bundle;
use ft_formats::card::CardKind;
use ft_formats::checkpoint::Config;
use ft_formats::gguf::{GgufAdapter, GgufFile, TensorType};
use ft_formats::peft::PeftAdapter;

use super::card::card;
use super::outcome::Exported;
use super::{Arguments, name_of};
use crate::error::{Error, Result};
use crate::terminal::Terminal;

pub(super) fn export(arguments: &Arguments, tensor_type: TensorType, terminal: &Terminal) -> Result<Exported> {
    let started = Instant::now();
    let (directory, base) = places(arguments)?;
    let model = Config::read(&base)?;
    let adapter = PeftAdapter::open_for(directory, &model)?;
    let name = arguments.name.clone().unwrap_or_else(|| name_of(directory));
    let request = GgufAdapter { adapter: &adapter, model: &model, name: &name, tensor_type };
    let is_file = arguments.out.extension().is_some_and(|ending| ending == "gguf");
    let bundle = if is_file { None } else { Some(Bundle::create(&arguments.out)?) };
    let file_name = format!("{}.gguf", name.replace(['/', ' '], "-"));
    let target = bundle.as_ref().map_or_else(|| arguments.out.clone(), |bundle| bundle.path().join(&file_name));
    let sealed = request.write(&target)?;
    if !arguments.no_verify {
        request.check(&GgufFile::open(&sealed.path())?)?;
    }
    let num_tensors = GgufFile::open(&sealed.path())?.num_tensors();
    let mut files = sealed.publish()?;
    if let Some(bundle) = bundle {
        let kind = CardKind::GgufAdapter { file: file_name.clone() };
        bundle.write("README.md", &card(directory, &name, kind, "", "", None))?;
        let target = bundle.publish()?;
        files = vec![target.join(&file_name), target.join("README.md")];
    }
    if !is_file {
        terminal.note(&format!("the model that it changes is {}", base.display()));
    }
    let bytes = files.iter().filter_map(|file| fs::metadata(file).ok()).map(|status| status.len()).sum();
    let next = format!("llama-server --model BASE.gguf --lora {} --jinja", files.first().unwrap_or(&target).display());
    let types = BTreeMap::from([(tensor_type.name(), num_tensors)]);
    Ok(Exported { files, bytes, seconds: started.elapsed().as_secs_f64(), types, verification: None, next })
}

/// The adapter, and the model that it changes.
fn places(arguments: &Arguments) -> Result<(&Path, PathBuf)> {
    if let Some(adapter) = &arguments.adapter {
        return Ok((adapter, arguments.model.clone()));
    }
    let adapter = &arguments.model;
    if let Some(base) = &arguments.base {
        return Ok((adapter, base.clone()));
    }
    match ft_formats::peft::AdapterConfig::read(adapter)?.base_model.map(PathBuf::from) {
        Some(base) if base.exists() => Ok((adapter, base)),
        base => Err(Error::NoBase { adapter: adapter.clone(), base }),
    }
}
