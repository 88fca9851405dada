//! LoRA adapters: for llama.cpp, for Ollama, and for PEFT.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use ft_formats::bundle::Bundle;
use ft_formats::card::CardKind;
use ft_formats::checkpoint::Config;
use ft_formats::gguf::{GgufAdapter, GgufFile, SealedGguf, TensorType};
use ft_formats::ollama::Modelfile;
use ft_formats::peft::{PeftAdapter, write_adapter};

use super::card::{CARD, card};
use super::outcome::Exported;
use super::{Arguments, in_file_name, in_ollama, name_of};
use crate::error::{Error, Result};
use crate::terminal::Terminal;

/// An adapter for llama.cpp: a file, or a folder with one and its card.
pub(super) fn export(arguments: &Arguments, tensor_type: TensorType, terminal: &Terminal) -> Result<Exported> {
    let started = Instant::now();
    let opened = Opened::open(arguments)?;
    if arguments.out.extension().is_some_and(|ending| ending == "gguf") {
        let written = opened.write(arguments, &arguments.out, tensor_type)?;
        let files = written.sealed.publish()?;
        return Ok(Exported { types: written.types, ..Exported::new(files, started, next(&arguments.out)) });
    }
    terminal.note(&format!("the model that it changes is {}", opened.base.display()));
    let folder = opened.write_folder(arguments, tensor_type)?;
    let target = folder.bundle.publish()?;
    let files = [&folder.file, CARD].map(|file| target.join(file)).to_vec();
    let next = next(&target.join(&folder.file));
    Ok(Exported { types: folder.types, ..Exported::new(files, started, next) })
}

/// A folder with an adapter and a Modelfile that puts it on a model that Ollama has.
pub(super) fn export_for_ollama(arguments: &Arguments) -> Result<Exported> {
    let started = Instant::now();
    let opened = Opened::open(arguments)?;
    let folder = opened.write_folder(arguments, TensorType::F32)?;
    let name = in_ollama(&opened.name);
    let modelfile = Modelfile { name: name.clone(), from: opened.ollama_name(), adapter: Some(format!("./{}", folder.file)) };
    folder.bundle.write("Modelfile", &modelfile.text().map_err(|source| Error::Modelfile { source })?)?;
    let target = folder.bundle.publish()?;
    let files = [&*folder.file, "Modelfile", CARD].map(|file| target.join(file)).to_vec();
    let next = format!("cd {} && ollama create {name} -f Modelfile", arguments.out.display());
    Ok(Exported { types: folder.types, ..Exported::new(files, started, next) })
}

/// An adapter in PEFT's usual layout, whatever the one that it was read in.
pub(super) fn export_peft(arguments: &Arguments) -> Result<Exported> {
    let started = Instant::now();
    let opened = Opened::open(arguments)?;
    let bundle = Bundle::create(&arguments.out)?;
    write_adapter(bundle.path(), opened.adapter.config(), opened.adapter.pairs())?;
    bundle.write(CARD, &card(opened.directory, &opened.name, CardKind::PeftAdapter, "", "", None))?;
    let target = bundle.publish()?;
    let files = ["adapter_config.json", "adapter_model.safetensors", CARD].map(|file| target.join(file)).to_vec();
    let next = format!("ft generate {} --adapter {} --prompt \"...\"", opened.base.display(), arguments.out.display());
    Ok(Exported::new(files, started, next))
}

fn next(adapter: &Path) -> String {
    format!("llama-server --model BASE.gguf --lora {} --jinja", adapter.display())
}

/// True when `arguments` are about an adapter.
pub(super) fn is_meant(arguments: &Arguments) -> bool {
    let model = &arguments.model;
    arguments.adapter.is_some() || (model.join("adapter_config.json").exists() && !model.join("config.json").exists())
}

/// The adapter that is exported.
struct Opened<'a> {
    directory: &'a Path,
    base: PathBuf,
    model: Config,
    adapter: PeftAdapter,
    name: String,
}

/// A file that is not published yet.
struct Written {
    sealed: SealedGguf,
    types: BTreeMap<&'static str, usize>,
}

/// A folder that is not published yet, with a file and its card in it.
struct Folder {
    bundle: Bundle,
    file: String,
    types: BTreeMap<&'static str, usize>,
}

impl<'a> Opened<'a> {
    fn open(arguments: &'a Arguments) -> Result<Self> {
        let (directory, base) = places(arguments)?;
        let model = Config::read(&base)?;
        let adapter = PeftAdapter::open_for(directory, &model)?;
        let name = arguments.name.clone().unwrap_or_else(|| name_of(directory));
        Ok(Self { directory, base, model, adapter, name })
    }

    /// The name of the model in Ollama: of the published ones that of its library, of others the one that their own export tells to use.
    fn ollama_name(&self) -> String {
        match (self.model.num_hidden_layers, self.model.hidden_size) {
            (24, 2880) => "gpt-oss:20b".to_owned(),
            (36, 2880) => "gpt-oss:120b".to_owned(),
            _ => in_ollama(&name_of(&self.base)),
        }
    }

    /// Writes the file, and its card, into a folder.
    fn write_folder(&self, arguments: &Arguments, tensor_type: TensorType) -> Result<Folder> {
        let bundle = Bundle::create(&arguments.out)?;
        let file = format!("{}.gguf", in_file_name(&self.name));
        let written = self.write(arguments, &bundle.path().join(&file), tensor_type)?;
        written.sealed.publish()?;
        bundle.write(CARD, &card(self.directory, &self.name, CardKind::GgufAdapter { file: file.clone() }, "", "", None))?;
        Ok(Folder { bundle, file, types: written.types })
    }

    /// Writes the file and reads it back.
    fn write(&self, arguments: &Arguments, target: &Path, tensor_type: TensorType) -> Result<Written> {
        let request = GgufAdapter { adapter: &self.adapter, model: &self.model, name: &self.name, tensor_type };
        let sealed = request.write(target)?;
        let file = GgufFile::open(&sealed.path())?;
        if !arguments.no_verify {
            request.check(&file)?;
        }
        Ok(Written { sealed, types: BTreeMap::from([(tensor_type.name(), file.num_tensors())]) })
    }
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
