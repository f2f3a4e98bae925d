//! Files that are cut off, damaged or lie about themselves give an error that names what is wrong: no panic reaches the
//! caller, and nothing is allocated on a file's word.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use pagoda_backend::WeightFormat;
use pagoda_backend_cpu::{CpuBackend, CpuOptions};
use pagoda_model::tiny::{self, TinyModel};
use pagoda_model::{Checkpoint, ModelError, ModelRunner, RunnerConfig};

/// The smallest GGUF that opens: an embedding of four tokens.
fn small_gguf(extra: &[(&str, Value)], tensor: (&str, GgmlDType)) -> Vec<u8> {
    let number = Value::U32;
    let architecture = Value::String("llama".to_owned());
    let eps = Value::F32(1e-5);
    let (one, two, width) = (number(1), number(2), number(32));
    let mut metadata = vec![
        ("general.architecture", &architecture),
        ("llama.block_count", &one),
        ("llama.context_length", &width),
        ("llama.embedding_length", &width),
        ("llama.feed_forward_length", &width),
        ("llama.attention.head_count", &two),
        ("llama.attention.layer_norm_rms_epsilon", &eps),
    ];
    metadata.extend(extra.iter().map(|(key, value)| (*key, value)));
    let values = Tensor::zeros((4, 256), candle_core::DType::F32, &Device::Cpu).unwrap();
    let values = QTensor::quantize(&values, tensor.1).unwrap();
    let embedding = Tensor::zeros((4, 32), candle_core::DType::F32, &Device::Cpu).unwrap();
    let embedding = QTensor::quantize(&embedding, GgmlDType::F32).unwrap();
    let mut tensors = vec![("token_embd.weight", &embedding)];
    if tensor.0 != "token_embd.weight" {
        tensors.push((tensor.0, &values));
    }
    let mut bytes = std::io::Cursor::new(Vec::new());
    gguf_file::write(&mut bytes, &metadata, &tensors).unwrap();
    bytes.into_inner()
}

fn plain_gguf() -> Vec<u8> {
    small_gguf(&[], ("token_embd.weight", GgmlDType::F32))
}

fn open_bytes(folder: &Path, bytes: &[u8]) -> Result<Checkpoint, ModelError> {
    let path = folder.join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    Checkpoint::open(path)
}

fn message(result: Result<Checkpoint, ModelError>) -> String {
    result.expect_err("the file is broken").to_string()
}

#[test]
fn a_gguf_cut_at_any_byte_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = plain_gguf();
    open_bytes(folder.path(), &bytes).expect("the whole file opens");
    for len in 0..bytes.len() {
        let result = open_bytes(folder.path(), &bytes[..len]);
        assert!(result.is_err(), "{len} of {} bytes opened", bytes.len());
    }
}

#[test]
fn a_gguf_with_any_byte_changed_never_panics() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = plain_gguf();
    let header_len = bytes.len() - 4 * 32 * 4;
    let mut num_errors = 0;
    for place in 0..header_len {
        for value in [0, 1, 0x7f, 0xff] {
            let mut changed = bytes.clone();
            changed[place] = value;
            num_errors += usize::from(open_bytes(folder.path(), &changed).is_err());
        }
    }
    assert!(num_errors > header_len, "{num_errors} errors in {header_len} bytes");
}

#[test]
fn a_safetensors_file_cut_at_any_byte_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    tiny::write_safetensors(folder.path(), WeightFormat::Bf16).unwrap();
    let tensor = Tensor::zeros((4, 32), candle_core::DType::BF16, &Device::Cpu).unwrap();
    let path = folder.path().join("model.safetensors");
    tensor.save_safetensors("model.embed_tokens.weight", &path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    Checkpoint::open(folder.path()).expect("the whole file opens");
    for len in 0..bytes.len() {
        std::fs::write(&path, &bytes[..len]).unwrap();
        assert!(Checkpoint::open(folder.path()).is_err(), "{len} of {} bytes opened", bytes.len());
    }
}

#[test]
fn a_large_gguf_cut_in_its_vocabulary_or_weights_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(tiny::write_gguf(folder.path(), WeightFormat::Q4_0).unwrap()).unwrap();
    for len in (1..bytes.len() - 32).step_by(997) {
        assert!(open_bytes(folder.path(), &bytes[..len]).is_err(), "{len} of {} bytes opened", bytes.len());
    }
}

#[test]
fn counts_and_lengths_beyond_the_file_are_refused_before_anything_is_allocated() {
    let folder = tempfile::tempdir().unwrap();
    for (place, what) in [(8, "tensors"), (16, "metadata entries"), (24, "the first key's length")] {
        let mut bytes = plain_gguf();
        bytes[place..place + 8].copy_from_slice(&(1u64 << 29).to_le_bytes());
        let text = message(open_bytes(folder.path(), &bytes));
        assert!(text.contains("remaining"), "{what}: {text}");
    }
}

#[test]
fn an_alignment_of_zero_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = small_gguf(&[("general.alignment", Value::U32(0))], ("token_embd.weight", GgmlDType::F32));
    assert!(message(open_bytes(folder.path(), &bytes)).contains("alignment is 0"));
}

#[test]
fn a_tensor_of_an_unsupported_type_is_named_with_its_type() {
    let folder = tempfile::tempdir().unwrap();
    let mut bytes = plain_gguf();
    // The type follows the name (17 bytes), the number of axes and two axes.
    let name = bytes.windows(17).position(|window| window == b"token_embd.weight").unwrap();
    let type_id = name + 17 + 4 + 16;
    bytes[type_id..type_id + 4].copy_from_slice(&39u32.to_le_bytes());
    let text = message(open_bytes(folder.path(), &bytes));
    assert!(text.contains("'token_embd.weight'") && text.contains("MXFP4"), "{text}");
    // A type that the reader knows and no backend does is named when the tensor is loaded.
    bytes[type_id..type_id + 4].copy_from_slice(&6u32.to_le_bytes());
    let text = load_error(open_bytes(folder.path(), &bytes).unwrap());
    assert!(text.contains("'token_embd.weight'") && text.contains("Q5_0"), "{text}");
}

#[test]
fn a_tensor_that_the_family_does_not_have_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["blk.0.ffn_gate_exps.weight", "blk.1.attn_q.weight", "blk.0.attn_q_norm.weight"] {
        let text = message(open_bytes(folder.path(), &small_gguf(&[], (name, GgmlDType::F32))));
        assert_eq!(text, format!("tensor '{name}' is not part of architecture 'llama'"));
    }
}

#[test]
fn a_missing_tensor_or_a_wrong_shape_is_named_at_load() {
    let folder = tempfile::tempdir().unwrap();
    let text = load_error(open_bytes(folder.path(), &plain_gguf()).unwrap());
    assert_eq!(text, "tensor 'output_norm.weight' is missing");
    let wrong = small_gguf(&[], ("output_norm.weight", GgmlDType::F32));
    let text = load_error(open_bytes(folder.path(), &wrong).unwrap());
    assert_eq!(text, "tensor 'output_norm.weight' has shape [4, 256], expected [32]");
}

#[test]
fn a_split_with_a_part_missing_or_misnamed_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let first = TinyModel::default().write_split_gguf(folder.path(), WeightFormat::F16, 3).unwrap();
    let part = |number| folder.path().join(format!("tiny-0000{number}-of-00003.gguf"));
    let aside = folder.path().join("aside");
    std::fs::rename(part(2), &aside).unwrap();
    assert!(message(Checkpoint::open(&first)).contains("tiny-00002-of-00003.gguf"));
    std::fs::copy(part(3), part(2)).unwrap();
    assert!(message(Checkpoint::open(&first)).contains("is part 3 of 3, but its name says part 2 of 3"));
    std::fs::rename(&aside, part(2)).unwrap();
    Checkpoint::open(&first).unwrap();
    let renamed = folder.path().join("renamed.gguf");
    std::fs::copy(&first, &renamed).unwrap();
    assert!(message(Checkpoint::open(renamed)).contains("is part 1 of 3"));
}

#[test]
fn an_index_cannot_name_files_outside_of_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    TinyModel::default().write_safetensors(folder.path(), WeightFormat::F32, 2).unwrap();
    let index = folder.path().join("model.safetensors.index.json");
    for name in ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "weights.bin"] {
        std::fs::write(&index, format!(r#"{{"weight_map": {{"x": "{name}"}}}}"#)).unwrap();
        assert!(
            message(Checkpoint::open(folder.path())).contains("not a safetensors file of the same folder")
        );
    }
    std::fs::write(&index, r#"{"weight_map": {}}"#).unwrap();
    assert!(message(Checkpoint::open(folder.path())).contains("names no shard"));
}

#[test]
fn what_is_no_checkpoint_says_what_was_expected() {
    let folder = tempfile::tempdir().unwrap();
    assert!(message(Checkpoint::open(folder.path())).contains("has no config.json"));
    assert!(message(open_bytes(folder.path(), b"PK\x03\x04 something else")).contains("is not a GGUF file"));
    assert!(message(open_bytes(folder.path(), b"")).contains("is empty"));
    let absent: PathBuf = folder.path().join("absent.gguf");
    assert!(message(Checkpoint::open(absent)).contains("absent.gguf"));
}

fn load_error(checkpoint: Checkpoint) -> String {
    let limits = RunnerConfig {
        block_size: 16,
        num_blocks: 4,
        max_num_seqs: 1,
        max_num_batched_tokens: 16,
        max_model_len: 32,
    };
    let backend = CpuBackend::new(CpuOptions { num_threads: 1, isa: None }).unwrap();
    match ModelRunner::load(&checkpoint, backend, limits) {
        Ok(_) => panic!("a broken checkpoint was loaded"),
        Err(error) => error.to_string(),
    }
}
