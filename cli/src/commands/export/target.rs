//! The words of `--to`.

use ft_formats::gguf::{GgufTarget, TensorType};

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    Gguf(GgufTarget),
    Ollama(GgufTarget),
    /// The experts as they are, or stored otherwise.
    Safetensors(Option<Experts>),
    OpenAi,
    GgufLora(TensorType),
    Peft,
}

/// How experts are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Experts {
    Mxfp4,
    Bf16,
}

const TARGETS: &str =
    "gguf, gguf:TYPE, ollama, ollama:TYPE, safetensors, safetensors:mxfp4, safetensors:bf16, openai, gguf-lora, gguf-lora:TYPE, peft";

pub(super) fn parse(text: &str) -> Result<Target, String> {
    let (target, kind) = text.split_once(':').map_or((text, None), |(target, kind)| (target, Some(kind)));
    match (target, kind) {
        ("gguf", kind) => gguf_type(kind).map(Target::Gguf),
        ("ollama", kind) => gguf_type(kind).map(Target::Ollama),
        ("safetensors", None) => Ok(Target::Safetensors(None)),
        ("safetensors", Some("mxfp4")) => Ok(Target::Safetensors(Some(Experts::Mxfp4))),
        ("safetensors", Some("bf16")) => Ok(Target::Safetensors(Some(Experts::Bf16))),
        ("safetensors", Some(_)) => Err("the experts of safetensors are mxfp4 or bf16".to_owned()),
        ("openai", None) => Ok(Target::OpenAi),
        ("peft", None) => Ok(Target::Peft),
        ("gguf-lora", None | Some("f32")) => Ok(Target::GgufLora(TensorType::F32)),
        ("gguf-lora", Some("f16")) => Ok(Target::GgufLora(TensorType::F16)),
        ("gguf-lora", Some("bf16")) => Ok(Target::GgufLora(TensorType::Bf16)),
        ("gguf-lora", Some(_)) => Err("the tensors of an adapter are f32, f16 or bf16".to_owned()),
        _ => Err(format!("one of: {TARGETS}")),
    }
}

fn gguf_type(name: Option<&str>) -> Result<GgufTarget, String> {
    let Some(name) = name else { return Ok(GgufTarget::Native) };
    GgufTarget::from_name(name).ok_or_else(|| {
        let names: Vec<String> = GgufTarget::all().map(|target| target.name().to_lowercase()).collect();
        format!("one of these types: {}", names.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use ft_formats::gguf::Mix;

    use super::*;

    #[test]
    fn every_target_has_its_word() {
        assert_eq!(parse("gguf"), Ok(Target::Gguf(GgufTarget::Native)));
        assert_eq!(parse("gguf:Q4_K_M"), Ok(Target::Gguf(GgufTarget::Mix(Mix::Q4KM))));
        assert_eq!(parse("ollama:mxfp4"), Ok(Target::Ollama(GgufTarget::Mix(Mix::Mxfp4))));
        assert_eq!(parse("safetensors:bf16"), Ok(Target::Safetensors(Some(Experts::Bf16))));
        assert_eq!(parse("gguf-lora:f16"), Ok(Target::GgufLora(TensorType::F16)));
        for text in ["", "gguf:", "gguf:q9", "openai:bf16", "safetensors:f32", "gguf-lora:q8_0", "onnx"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
