//! What can go wrong with the files of a model.

use std::io;
use std::path::{Path, PathBuf};

use crate::checkpoint::{ConfigProblem, IndexProblem};
use crate::dtype::Dtype;
use crate::gguf::{GgufProblem, TensorProblem, TensorType, TokenizerProblem};
use crate::peft::AdapterProblem;
use crate::safetensors::HeaderProblem;
use crate::tokenizer::TokenizerFileError;

/// The result of this crate's fallible functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error that may know the next step to take.
pub trait Hint {
    /// What the user can do about it, as one sentence without a full stop.
    fn hint(&self) -> Option<String>;
}

/// What went wrong: the thing, the place, what was expected and what was found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried: `read`, `write`, `create`.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A directory or device where a file should be.
    #[error("{} is no file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// A place that already holds something.
    #[error("{} already exists and is not empty", path.display())]
    Exists {
        /// The directory.
        path: PathBuf,
    },
    /// A file that would be replaced.
    #[error("{} already exists", path.display())]
    FileExists {
        /// The file.
        path: PathBuf,
    },
    /// A file that is not JSON.
    #[error("{} is not JSON", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Place and reason.
        #[source]
        source: serde_json::Error,
    },
    /// A file of text that is not UTF-8.
    #[error("{} is not text in UTF-8", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
    },
    /// A JSON file that holds something other than an object.
    #[error("{} does not hold a JSON object", path.display())]
    NotAnObject {
        /// The file.
        path: PathBuf,
    },
    /// A JSON object with a key twice.
    #[error("{} has the key `{key}` twice", path.display())]
    DuplicateKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// A file that exceeds what its kind ever needs.
    #[error("{} has more than {limit_bytes} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Bytes allowed.
        limit_bytes: u64,
    },
    /// A file that breaks a rule of safetensors.
    #[error("{} is not a valid safetensors file: {problem}", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// The rule.
        problem: HeaderProblem,
    },
    /// A file that breaks a rule of GGUF, or holds no model of gpt-oss.
    #[error("{} cannot be read as a GGUF model: {problem}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// The rule, or what it says instead.
        problem: GgufProblem,
    },
    /// A directory without a GGUF file.
    #[error("{} holds no GGUF file", path.display())]
    NoGguf {
        /// The directory.
        path: PathBuf,
    },
    /// A directory with several models in GGUF.
    #[error("{} holds several GGUF models, {} and {} among them", path.display(), found[0].display(), found[1].display())]
    SeveralGguf {
        /// The directory.
        path: PathBuf,
        /// Two of them.
        found: [PathBuf; 2],
    },
    /// A directory without a model.
    #[error("{} holds no model: there is no `config.json` in it", path.display())]
    NoConfig {
        /// The directory.
        path: PathBuf,
    },
    /// A config that says nothing, nothing sensible, or what this program cannot do.
    #[error("{}: {problem}", path.display())]
    Config {
        /// The config.
        path: PathBuf,
        /// What it says.
        problem: ConfigProblem,
    },
    /// A setting of a config in the making.
    #[error("model config: {0}")]
    Setting(ConfigProblem),
    /// Shards and their index that do not fit together.
    #[error("{}: {problem}", path.display())]
    Index {
        /// The index, or the directory without one.
        path: PathBuf,
        /// What does not fit.
        problem: IndexProblem,
    },
    /// A tensor that should be there.
    #[error("{} has no tensor `{tensor}`", path.display())]
    MissingTensor {
        /// The tensor.
        tensor: String,
        /// The file or directory without it.
        path: PathBuf,
    },
    /// A tensor that the model has no place for.
    #[error("{} has a tensor `{tensor}`, for which the model has no place", path.display())]
    UnexpectedTensor {
        /// The tensor.
        tensor: String,
        /// The file.
        path: PathBuf,
    },
    /// A tensor that stands twice.
    #[error("tensor `{tensor}` stands a second time in {}", path.display())]
    DuplicateTensor {
        /// The tensor.
        tensor: String,
        /// The file in which it stands again.
        path: PathBuf,
    },
    /// A tensor whose shape is not what the config says.
    #[error("tensor `{tensor}` in {} has shape {found:?}, expected {expected:?}", path.display())]
    WrongShape {
        /// The tensor.
        tensor: String,
        /// The file.
        path: PathBuf,
        /// The shape that follows from the config.
        expected: Vec<usize>,
        /// Its shape.
        found: Vec<usize>,
    },
    /// A tensor of another type than its place needs.
    #[error("tensor `{tensor}` in {} is {found}, expected {expected}", path.display())]
    WrongDtype {
        /// The tensor.
        tensor: String,
        /// The file.
        path: PathBuf,
        /// The types that its place takes.
        expected: &'static str,
        /// Its type.
        found: Dtype,
    },
    /// A checkpoint in a layout that is recognised and not read.
    #[error("{} holds {layout} (tensor `{tensor}`), which is not supported", path.display())]
    UnsupportedLayout {
        /// The file.
        path: PathBuf,
        /// The layout, in words.
        layout: &'static str,
        /// A tensor by which it was recognised.
        tensor: String,
    },
    /// MXFP4 bytes that stand for no number, or those of another type.
    #[error("tensor `{tensor}` in {} cannot be unpacked, expert {expert}", path.display())]
    Packed {
        /// The tensor of scales, or of blocks that hold their scales.
        tensor: String,
        /// The file.
        path: PathBuf,
        /// Index of the expert; the indices of the source count from its first scale.
        expert: usize,
        /// Which scale.
        #[source]
        source: ft_quant::Error,
    },
    /// Blocks of a quantized tensor that stand for no numbers.
    #[error("tensor `{tensor}` in {} cannot be read", path.display())]
    Quantized {
        /// The tensor.
        tensor: String,
        /// The file.
        path: PathBuf,
        /// Which block.
        #[source]
        source: ft_quant::Error,
    },
    /// Experts that cannot be packed.
    #[error("tensor `{tensor}` in {} cannot be converted, expert {expert}", path.display())]
    Unpackable {
        /// The tensor.
        tensor: String,
        /// The file.
        path: PathBuf,
        /// Index of the expert; the indices of the source count from its first element.
        expert: usize,
        /// Which element.
        #[source]
        source: ft_quant::Error,
    },
    /// An update by an adapter that makes of a weight what is no number, or none of the weight's type.
    #[error("adapter {} makes a value of `{tensor}` that is not a finite number, at {index}{}", adapter.display(), of_expert(*expert))]
    Unmergeable {
        /// The adapter's directory.
        adapter: PathBuf,
        /// The weight.
        tensor: String,
        /// Index of the expert, where it is of one.
        expert: Option<usize>,
        /// Index of the element, in the tensor or in the matrix of the expert.
        index: usize,
    },
    /// A device that was to convert weights and did not.
    #[error("the GPU could not convert the weights")]
    Device {
        /// What it said.
        #[source]
        source: ft_quant::cuda::CudaError,
    },
    /// A weight that is NaN or infinite.
    #[error("tensor `{tensor}` in {} holds a value that is not a finite number, at {index}", path.display())]
    NotFinite {
        /// The tensor.
        tensor: String,
        /// The file.
        path: PathBuf,
        /// Index of the element, in the order of the file.
        index: usize,
    },
    /// A weight too large for the type that it was to have.
    #[error("tensor `{tensor}` in {} holds {value:e} at {index}, which {tensor_type} has no place for", path.display())]
    OutOfRange {
        /// The tensor; by its name in GGUF where the value is that of an MXFP4 expert, and no bytes of its own.
        tensor: String,
        /// The file that it comes from.
        path: PathBuf,
        /// Index of the element; of an MXFP4 expert among all [e, out, in], else in the order of the file.
        index: usize,
        /// The element.
        value: f32,
        /// The type.
        tensor_type: TensorType,
    },
    /// Scales that are taken from a model of other sizes.
    #[error("the scales of {} do not fit: `{tensor}` has shape {found:?} there, expected {expected:?}", path.display())]
    ForeignHints {
        /// The model that they were taken from.
        path: PathBuf,
        /// The tensor of scales.
        tensor: String,
        /// The shape that fits.
        expected: Vec<usize>,
        /// Its shape.
        found: Vec<usize>,
    },
    /// A model that is compared with one that computes otherwise, whatever the weights.
    #[error("{} is not {} in another form: `{key}` is {found} there, expected {expected}", path.display(), source_model.display())]
    OtherModel {
        /// The model in question.
        path: PathBuf,
        /// The model that it was to be.
        source_model: PathBuf,
        /// The key in `config.json`.
        key: &'static str,
        /// Its value in the latter.
        expected: f64,
        /// Its value in the former.
        found: f64,
    },
    /// A tensor that was read back and is not what was written.
    #[error("tensor `{tensor}` in {} does not hold what was written to it", path.display())]
    Differs {
        /// The tensor.
        tensor: String,
        /// The file.
        path: PathBuf,
    },
    /// An index that the model does not reach.
    #[error("there is no {what} {index}: the model has {count}")]
    NoSuch {
        /// `layer` or `expert`.
        what: &'static str,
        /// The index.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// Experts that are asked for in another form than they have.
    #[error("the experts in {} are not in MXFP4", path.display())]
    NotPacked {
        /// The model.
        path: PathBuf,
    },
    /// A tensor too large for any file.
    #[error("tensor `{tensor}` of shape {shape:?} and {dtype} exceeds 2^63 bytes or ends within a byte")]
    TensorTooLarge {
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Its type.
        dtype: Dtype,
    },
    /// A tensor that GGUF cannot hold that way.
    #[error("tensor `{tensor}` of shape {shape:?} cannot be {tensor_type} in GGUF: {problem}")]
    GgufTensor {
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// The type that it was to have.
        tensor_type: TensorType,
        /// Why not.
        problem: TensorProblem,
    },
    /// A config that a format has no words for: its readers would compute otherwise.
    #[error("the model in {} has `{key}` {found}, and {format} has no place for another than {supported}", path.display())]
    NotIn {
        /// The format.
        format: &'static str,
        /// The model.
        path: PathBuf,
        /// The key of its config.
        key: &'static str,
        /// What it says there.
        found: String,
        /// What its readers compute with.
        supported: &'static str,
    },
    /// A model that reads text in another way.
    #[error("{} is not the tokenizer of gpt-oss: {problem}", path.display())]
    ForeignTokenizer {
        /// The tokenizer's file.
        path: PathBuf,
        /// Where it differs.
        problem: TokenizerProblem,
    },
    /// A value of metadata that makes no file.
    #[error("the value of `{key}` is no power of two from 8 to 2^16, in 32 bits without a sign")]
    GgufAlignment {
        /// The key.
        key: String,
    },
    /// Too small a part of a model to a file.
    #[error("{} would be split into {count} files, and {limit} is the limit", path.display())]
    TooManySplits {
        /// The file that is split.
        path: PathBuf,
        /// Files that it would take.
        count: usize,
        /// Files allowed.
        limit: usize,
    },
    /// A safetensors file of too many tensors.
    #[error("the header of {} would take {bytes} bytes, and {limit_bytes} is the limit", path.display())]
    HeaderTooLarge {
        /// The file.
        path: PathBuf,
        /// Bytes that it would take.
        bytes: u64,
        /// Bytes allowed.
        limit_bytes: u64,
    },
    /// A write to a tensor that was not announced.
    #[error("tensor `{tensor}` has no place in {}", path.display())]
    UnknownTensor {
        /// The tensor.
        tensor: String,
        /// The file or directory.
        path: PathBuf,
    },
    /// A tensor written to another length than was announced.
    #[error("tensor `{tensor}` for {} takes {expected} bytes, and {found} were written", path.display())]
    WrittenLength {
        /// The tensor.
        tensor: String,
        /// The file.
        path: PathBuf,
        /// Bytes that it takes.
        expected: u64,
        /// Bytes given.
        found: u64,
    },
    /// An adapter that cannot be used.
    #[error("adapter {}: {problem}", path.display())]
    Adapter {
        /// The adapter's file, or its directory.
        path: PathBuf,
        /// What is wrong with it.
        problem: AdapterProblem,
    },
    /// A tokenizer file that could not be written.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerFileError),
}

impl Error {
    /// True when disk space or memory ran out.
    #[must_use]
    pub fn is_out_of_resources(&self) -> bool {
        let kind = match self {
            Self::Io { source, .. } | Self::Tokenizer(TokenizerFileError::Write { source, .. }) => source.kind(),
            Self::Device { source: ft_quant::cuda::CudaError::OutOfMemory { .. } } => return true,
            _ => return false,
        };
        matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge | io::ErrorKind::OutOfMemory)
    }
}

impl Hint for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Device { .. } => Some("`--device cpu` gives the same bytes".to_owned()),
            _ if self.is_out_of_resources() => Some("free some space, or choose another place".to_owned()),
            Self::Exists { .. } => Some("choose another directory, or remove this one".to_owned()),
            Self::FileExists { .. } => Some("choose another name, or remove this file".to_owned()),
            Self::NoConfig { .. } => Some(
                "a model is a directory with `config.json` and `*.safetensors`, or a GGUF file; `ft init DIR --preset nano` makes one"
                    .to_owned(),
            ),
            Self::Safetensors {
                problem: HeaderProblem::Truncated { .. } | HeaderProblem::HeaderBeyondEnd { .. } | HeaderProblem::TooShort { .. },
                ..
            } => Some("the file is incomplete: copy or download it again".to_owned()),
            Self::Safetensors { .. } => Some("the file is damaged or no safetensors file: copy or download it again".to_owned()),
            Self::Gguf { problem, .. } => problem.hint(),
            Self::SeveralGguf { .. } => Some("name the file of the model instead of its directory".to_owned()),
            Self::Config { problem, .. } | Self::Setting(problem) => problem.hint(),
            Self::Index { problem, .. } => problem.hint(),
            Self::WrongShape { .. } => Some("the config and the tensors belong to different models, or the file is damaged".to_owned()),
            Self::Unpackable { .. } | Self::NotFinite { .. } => {
                Some("a model with NaN or infinite weights computes nothing: convert an earlier checkpoint".to_owned())
            }
            Self::OutOfRange { .. } => Some("choose a type of a wider range: `bf16` or `f32`".to_owned()),
            Self::Unmergeable { .. } => {
                Some("the training diverged, or `lora_alpha` is not what it was trained with: merge an earlier adapter".to_owned())
            }
            Self::ForeignHints { .. } => Some("give the MXFP4 model that this one was trained from".to_owned()),
            Self::NotPacked { .. } => Some("give a model whose experts are in MXFP4; `ft quantize --to mxfp4` makes one".to_owned()),
            Self::Packed { .. } | Self::Quantized { .. } => Some("the file is damaged: copy or download it again".to_owned()),
            Self::UnsupportedLayout { .. } => Some("use a checkpoint in the layout of openai/gpt-oss-20b, in MXFP4 or bf16".to_owned()),
            Self::Adapter { problem, .. } => problem.hint(),
            _ => None,
        }
    }
}

/// The end of a message about a weight that may be of an expert.
fn of_expert(expert: Option<usize>) -> String {
    expert.map_or(String::new(), |expert| format!(" of expert {expert}"))
}

/// Says which file an error of the operating system is about.
pub(crate) trait InFile<T> {
    /// Names the file and what was tried with it.
    fn in_file(self, action: &'static str, path: &Path) -> Result<T>;
}

impl<T> InFile<T> for io::Result<T> {
    fn in_file(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| Error::Io { action, path: path.to_owned(), source })
    }
}
