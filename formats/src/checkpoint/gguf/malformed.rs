//! GGUF files that make no model, each damaged in one way.

use half::f16;

use super::tests::{Models, usual, with_key};
use crate::checkpoint::{Checkpoint, CheckpointWriter, ConfigProblem, ExpertStorage, Projection};
use crate::error::Error;
use crate::gguf::testing::File;
use crate::gguf::{Array, GgufProblem, TensorType, Value};

#[test]
fn metadata_that_makes_no_model_is_named() {
    let models = Models::new(ExpertStorage::Mxfp4);
    let problem = |key: &str, value: Option<Value>| match with_key(&models, key, value) {
        Err(Error::Gguf { problem, .. }) => problem,
        other => panic!("`{key}`: {other:?}"),
    };
    for key in ["general.architecture", "gpt-oss.block_count", "gpt-oss.expert_feed_forward_length", "gpt-oss.rope.freq_base"] {
        assert_eq!(problem(key, None), GgufProblem::MissingKey { key: key.to_owned() });
    }
    let text = |text: &str| Some(Value::String(text.to_owned()));
    assert!(matches!(problem("general.architecture", text("llama")), GgufProblem::Architecture { found } if found == "llama"));
    assert!(matches!(problem("general.type", text("adapter")), GgufProblem::Kind { .. }));
    assert!(matches!(problem("gpt-oss.block_count", text("3")), GgufProblem::WrongType { .. }));
    assert!(matches!(problem("gpt-oss.block_count", Some(Value::I32(-3))), GgufProblem::WrongType { .. }));
    assert!(matches!(problem("gpt-oss.rope.freq_base", Some(Value::U32(150_000))), GgufProblem::WrongType { .. }));
    assert!(matches!(problem("gpt-oss.attention.value_length", Some(Value::U32(12))), GgufProblem::Unsupported { .. }));
    assert!(matches!(problem("gpt-oss.rope.scaling.type", text("linear")), GgufProblem::Unsupported { .. }));
    assert!(matches!(problem("gpt-oss.rope.scaling.type", None), GgufProblem::Unsupported { .. }));
    assert!(matches!(problem("gpt-oss.rope.scaling.attn_factor", Some(Value::F32(2.0))), GgufProblem::Unsupported { .. }));
    let pattern = Some(Value::Array(Array::Bool(vec![true; 4])));
    assert!(matches!(problem("gpt-oss.attention.sliding_window_pattern", pattern), GgufProblem::Unsupported { .. }));
    let config_problem = |key: &str, value: Value| match with_key(&models, key, Some(value)) {
        Err(Error::Config { problem, .. }) => problem,
        other => panic!("`{key}`: {other:?}"),
    };
    for value in [Value::U64(u64::MAX), Value::U32(0), Value::U32(5000)] {
        assert!(matches!(config_problem("gpt-oss.block_count", value), ConfigProblem::OutOfRange { key: "num_hidden_layers", .. }));
    }
    let nan = config_problem("gpt-oss.attention.layer_norm_rms_epsilon", Value::F32(f32::NAN));
    assert!(matches!(nan, ConfigProblem::OutOfRange { key: "rms_norm_eps", .. }));
    assert!(matches!(config_problem("gpt-oss.expert_used_count", Value::U32(6)), ConfigProblem::Contradiction { .. }));
    assert!(matches!(config_problem("gpt-oss.attention.head_count", Value::U32(0)), ConfigProblem::OutOfRange { .. }));
}

#[test]
fn tensors_that_make_no_model_are_named() {
    let models = Models::new(ExpertStorage::Mxfp4);
    let open = |change: &dyn Fn(&mut File)| {
        let mut file = models.gguf(usual(TensorType::F32));
        change(&mut file);
        Checkpoint::open(&file.write(&models.path("model.gguf"))).unwrap_err()
    };
    let rename = |from: &'static str, to: &'static str| {
        open(&move |file: &mut File| file.tensors.iter_mut().find(|tensor| tensor.name == from).unwrap().name = to.to_owned())
    };
    assert!(matches!(rename("blk.1.attn_k.bias", "blk.1.k.bias"), Error::MissingTensor { tensor, .. } if tensor == "blk.1.attn_k.bias"));
    assert!(matches!(rename("token_embd.weight", "embd.weight"), Error::MissingTensor { .. }));
    assert!(matches!(rename("blk.0.ffn_up_exps.weight", "blk.0.ffn_gate_up_exps.weight"), Error::UnsupportedLayout { .. }));
    let more = open(&|file: &mut File| *file = file.clone().with_tensor("rope_freqs.weight", TensorType::F32, &[5], &[0; 20]));
    assert!(matches!(more, Error::UnexpectedTensor { tensor, .. } if tensor == "rope_freqs.weight"));
    let turned = open(&|file: &mut File| {
        file.tensors.iter_mut().find(|tensor| tensor.name == "blk.2.attn_output.weight").unwrap().dims.reverse();
    });
    assert!(matches!(turned, Error::WrongShape { expected, found, .. } if expected == [96, 60] && found == [60, 96]));
    let mut wide = Models::new(ExpertStorage::Mxfp4);
    wide.config.hidden_size = 256;
    let mut file = wide.gguf(usual(TensorType::F32));
    let k_quant = file.tensors.iter_mut().find(|tensor| tensor.name == "output.weight").unwrap();
    (k_quant.number, k_quant.bytes) = (TensorType::Q6K.number(), vec![0; 17 * 210]);
    match (Checkpoint::open(&file.write(&wide.path("model.gguf"))), TensorType::Q6K.block_type()) {
        (Err(Error::Gguf { problem: GgufProblem::Undecodable { tensor_type: TensorType::Q6K, .. }, .. }), None) => {}
        (found, codec) => assert!(found.is_ok() && codec.is_some(), "{found:?}"),
    }
}

#[test]
fn blocks_that_stand_for_no_numbers_are_named() {
    let models = Models::new(ExpertStorage::Mxfp4);
    let mut file = models.gguf(usual(TensorType::F32));
    for tensor in &mut file.tensors {
        match tensor.name.as_str() {
            // Expert 2 of 5, each of 64 rows of 3 blocks.
            "blk.1.ffn_up_exps.weight" => tensor.bytes[(2 * 64 * 3 + 100) * 17] = 255,
            "output.weight" => {
                (tensor.number, tensor.bytes) = (TensorType::Q8_0.number(), vec![0; 17 * 3 * 34]);
                tensor.bytes[7 * 34..][..2].copy_from_slice(&f16::INFINITY.to_le_bytes());
            }
            _ => {}
        }
    }
    let found = Checkpoint::open(&file.write(&models.path("model.gguf"))).unwrap();
    assert!(found.expert(1, Projection::GateUp, 1).is_ok());
    let expected = |error: Error| matches!(error, Error::Packed { tensor, expert: 2, source: ft_quant::Error::ReservedScale { index: 100 }, .. } if tensor == "blk.1.ffn_up_exps.weight");
    assert!(expected(found.expert(1, Projection::GateUp, 2).unwrap_err()));
    assert!(expected(found.tensor("model.layers.1.mlp.experts.gate_up_proj_scales").unwrap_err()));
    let error = found.tensor("lm_head.weight").unwrap_err();
    assert!(
        matches!(error, Error::Quantized { tensor, source: ft_quant::Error::ScaleNotFinite { index: 7 }, .. } if tensor == "output.weight")
    );
}

#[test]
fn a_vocabulary_has_to_be_that_of_o200k() {
    let models = Models::new(ExpertStorage::Mxfp4);
    let tokens = |change: &dyn Fn(&mut Vec<String>)| {
        let mut tokens: Vec<String> = (0..17).map(|id| crate::tokenizer::Tokenizer::o200k_harmony().token_text(id).into_owned()).collect();
        change(&mut tokens);
        let file = models.gguf(usual(TensorType::F32)).with("tokenizer.ggml.tokens", &Value::Array(Array::String(tokens)));
        Checkpoint::open(&file.write(&models.path("model.gguf"))).unwrap()
    };
    tokens(&|_| ()).check_vocabulary().unwrap();
    let problem = |checkpoint: Checkpoint| match checkpoint.check_vocabulary() {
        Err(Error::Gguf { problem, .. }) => problem,
        other => panic!("{other:?}"),
    };
    assert_eq!(problem(tokens(&|tokens| tokens.truncate(16))), GgufProblem::TokenCount { expected: 17, found: 16 });
    let expected = GgufProblem::OtherToken { id: 3, expected: "$".to_owned(), found: "\u{120}the".to_owned() };
    assert_eq!(problem(tokens(&|tokens| tokens[3] = "\u{120}the".to_owned())), expected);
    let other = tokens(&|tokens| tokens[3] = "x".to_owned());
    let error = CheckpointWriter::restored(&models.path("target"), &other, ExpertStorage::Mxfp4, u64::MAX).unwrap_err();
    assert!(matches!(error, Error::Gguf { problem: GgufProblem::OtherToken { .. }, .. }));
    assert!(!models.path("target").exists());
}
