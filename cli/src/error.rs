//! What can go wrong between the command line and the libraries.

use std::io;
use std::path::PathBuf;

use ft_formats::Hint;

use crate::units::bytes;

pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Trainer(Box<ft_trainer::Error>),
    #[error("cannot {action} {}", path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot write the result")]
    Output { source: io::Error },
    #[error("cannot read what is typed")]
    Input { source: io::Error },
    #[error("there is nothing at {}", path.display())]
    Nothing { path: PathBuf },
    #[error("{} is neither a model, an adapter, a run, nor a GGUF or safetensors file", path.display())]
    Unrecognised { path: PathBuf },
    #[error("{} holds no run", path.display())]
    NoRun { path: PathBuf },
    #[error("{} already exists", path.display())]
    Exists { path: PathBuf },
    #[error("{} is not a JSON array of token ids, or of such arrays", path.display())]
    Tokens { path: PathBuf, source: serde_json::Error },
    #[error("{} holds no token", path.display())]
    NoTokens { path: PathBuf },
    #[error("{} has token {token}, but the vocabulary of the model has {vocabulary} entries", path.display())]
    TokenOutsideVocabulary { path: PathBuf, token: u32, vocabulary: usize },
    #[error("`--set {argument}` is not of the form key=value")]
    Setting { argument: String },
    #[error("`--set {argument}` changes a recipe, and this is data")]
    SettingWithoutRecipe { argument: String },
    #[error("{failures} of the checks failed")]
    Doctor { failures: usize },
    #[error("the prompt is empty")]
    EmptyPrompt,
    #[error("there is no recipe `{name}`")]
    UnknownRecipe { name: String, known: Vec<&'static str> },
    #[error("the mean KL divergence of {} from its reference is {mean}, above the bound of {bound}", model.display())]
    KlAboveBound { model: PathBuf, mean: f64, bound: f64 },
    #[error("{tensor} is {found_db:.2} dB above its error, and --fail-below asks for {bound_db:.2} dB")]
    AccuracyBelowBound { tensor: String, found_db: f64, bound_db: f64 },
    #[error("{tensor} is {found_db:.2} dB above its error, below the bound of {bound_db:.2} dB")]
    TensorBelowBound { tensor: String, found_db: f64, bound_db: f64 },
    #[error("{tensor} is not what it was, although its type holds that exactly: it is {found_db:.2} dB above its error")]
    TensorChanged { tensor: String, found_db: f64 },
    #[error("the model that {} changes is not known", adapter.display())]
    NoBase { adapter: PathBuf, base: Option<PathBuf> },
    #[error("there can be no Modelfile with this name")]
    Modelfile { source: ft_formats::ollama::ModelfileError },
    #[error("no GPU can be used")]
    NoGpu { source: ft_quant::cuda::Unavailable },
    #[error("`{argument}` has no effect here: {reason}")]
    NoEffect { argument: &'static str, reason: &'static str },
    #[error("this model takes {}, but {} are free at {}", bytes(*needed_bytes), bytes(*available_bytes), path.display())]
    DiskSpace { needed_bytes: u64, available_bytes: u64, path: PathBuf },
}

impl From<ft_trainer::Error> for Error {
    fn from(error: ft_trainer::Error) -> Self {
        Self::Trainer(Box::new(error))
    }
}

impl From<ft_formats::Error> for Error {
    fn from(error: ft_formats::Error) -> Self {
        ft_trainer::Error::from(error).into()
    }
}

impl From<ft_trainer::data::DataError> for Error {
    fn from(error: ft_trainer::data::DataError) -> Self {
        ft_trainer::Error::from(error).into()
    }
}

impl From<ft_trainer::recipe::RecipeError> for Error {
    fn from(error: ft_trainer::recipe::RecipeError) -> Self {
        ft_trainer::Error::from(error).into()
    }
}

impl Hint for Error {
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Trainer(error) => return error.hint().or_else(|| general_hint(error)),
            Self::File { .. } | Self::Nothing { .. } => "check the path; relative ones start at the current directory",
            Self::Unrecognised { .. } => "a model has `config.json`, an adapter `adapter_config.json`, a run `metrics.jsonl`",
            Self::NoRun { .. } => {
                "a run has `metrics.jsonl`, `run.json` or `recipe.toml`; it is the folder that `ft train` names as its output"
            }
            Self::Exists { .. } => "choose another name, or remove it",
            Self::Tokens { .. } => "for example `[200006, 1428]`, or `[[200006], [1428, 2]]`; `ft render FILE --tokens` prints ids",
            Self::NoTokens { .. } => "give at least one id",
            Self::TokenOutsideVocabulary { .. } => "were these ids made with another tokenizer?",
            Self::Setting { .. } => "for example `--set hidden_size=96`",
            Self::SettingWithoutRecipe { .. } => "preview a recipe, or leave --set out",
            Self::Doctor { .. } => "each failure above has its fix",
            Self::EmptyPrompt => "give the question: --prompt \"...\"",
            Self::UnknownRecipe { known, .. } => return Some(format!("there are: {}", known.join(", "))),
            Self::KlAboveBound { .. } => {
                "what is furthest off stands in the table: channels, the largest divergences, layers of the router"
            }
            Self::AccuracyBelowBound { .. } => {
                "nothing was written; other scales, such as those of the model it was trained from (--hint-from), may lose less"
            }
            Self::TensorBelowBound { .. } => "quantized this much, weights keep 15 dB and more: was it made of another model?",
            Self::TensorChanged { .. } => "was it made of another model, or damaged? what may differ is given with --fail-below",
            Self::NoBase { base: Some(base), .. } => {
                return Some(format!(
                    "it names {}, which is not here: give --base MODEL, of which `config.json` is enough",
                    base.display()
                ));
            }
            Self::NoBase { base: None, .. } => "give --base MODEL, of which `config.json` is enough",
            Self::Modelfile { .. } => "give another --name",
            Self::NoGpu { .. } => "`--device cpu` gives the same bytes",
            Self::NoEffect { .. } => "leave it out",
            Self::DiskSpace { .. } => "free some space, or choose another directory",
            Self::Output { .. } | Self::Input { .. } => return None,
        };
        Some(hint.to_owned())
    }
}

/// A next step for errors that know none themselves.
fn general_hint(error: &ft_trainer::Error) -> Option<String> {
    use ft_trainer::Error::{AdapterRecipe, Format};
    let hint = match io_error(error).map(io::Error::kind) {
        Some(io::ErrorKind::NotFound) => "check the path; relative ones start at the current directory",
        Some(io::ErrorKind::PermissionDenied) => "check the permissions, or choose another place",
        Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => "free some space, or choose another place",
        _ => match error {
            Format(_) => "the file is damaged, or its parts belong to different models: correct it, copy or download it again",
            AdapterRecipe { .. } => "change the recipe to what the adapter is, or leave `lora.initial_adapter` out",
            _ => return None,
        },
    };
    Some(hint.to_owned())
}

/// The error of the operating system behind `error`, if there is one.
pub(crate) fn io_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a io::Error> {
    std::iter::successors(Some(error), |error| error.source()).find_map(|error| error.downcast_ref())
}
