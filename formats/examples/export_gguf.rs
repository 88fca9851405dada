//! Writes a model as GGUF: `export_gguf MODEL FILE [native|f32|bf16|f16|q8_0|mxfp4] [BYTES of tensors in a file at most]`.

#![expect(clippy::print_stdout, reason = "the result of this program")]

use std::path::Path;
use std::process::ExitCode;

use ft_formats::checkpoint::Checkpoint;
use ft_formats::gguf::{GgufExport, GgufTarget, GgufTensor};
use ft_formats::{Error, Hint};
use ft_quant::mxfp4::ScaleRule;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (Some(model), Some(file)) = (arguments.first(), arguments.get(1)) else {
        eprintln!("usage: export_gguf MODEL FILE [TYPE] [BYTES]");
        return ExitCode::FAILURE;
    };
    let word = arguments.get(2).map_or("native", String::as_str);
    let Some((to, _)) = GgufTarget::ALL.into_iter().find(|(_, known)| *known == word) else {
        eprintln!("no type `{word}`");
        return ExitCode::FAILURE;
    };
    let split_bytes = arguments.get(3).and_then(|bytes| bytes.parse().ok());
    match export(Path::new(model), Path::new(file), to, split_bytes) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let source = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
            eprintln!("error: {error}{source}");
            error.hint().iter().for_each(|hint| eprintln!("hint: {hint}"));
            ExitCode::FAILURE
        }
    }
}

fn export(model: &Path, file: &Path, to: GgufTarget, split_bytes: Option<u64>) -> Result<(), Error> {
    let source = Checkpoint::open(model)?;
    let types = |tensor: &GgufTensor| to.tensor_type(&source, tensor);
    let export = GgufExport {
        source: &source,
        target: file,
        types: &types,
        file_type: to.file_type(&source),
        packing: ScaleRule::Even.into(),
        split_bytes,
        name: None,
        template: None,
    };
    let exported = export.run(&mut |_, _| ())?;
    let report = exported.report().clone();
    for path in exported.publish()? {
        println!("{}", path.display());
    }
    eprintln!("{} tensors, {} bytes, {} ms", report.tensors.len(), report.target_bytes, report.elapsed_ms);
    Ok(())
}
