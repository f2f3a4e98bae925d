//! Opening a Hugging Face folder: `config.json`, safetensors (one file, or shards with an index), and what lies beside them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pagoda_backend::WeightFormat;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use super::templates::{self, ConfiguredTemplates};
use super::{Checkpoint, CheckpointFormat};
use crate::config::HfConfig;
use crate::generation::GenerationConfig;
use crate::mapping::Mapping;
use crate::tensors::{DeclaredTensor, TensorTable};
use crate::text_assets::is_end_token;
use crate::{GenerationDefaults, ModelConfig, ModelError, TextAssets};

/// Real tokenizer files reach some 40 MB.
const MAX_JSON_BYTES: u64 = 256 << 20;

/// Opens the folder.
pub(super) fn open(folder: &Path) -> Result<Checkpoint, ModelError> {
    let Description { config, text_assets, generation_defaults, .. } = describe(folder)?;
    let mut tensors = TensorTable::default();
    for path in weight_files(folder)? {
        let mapping = Mapping::open(&path)?;
        let declared = read_header(&mapping)?;
        tensors.add_part(mapping, declared)?;
    }
    Ok(Checkpoint {
        config,
        text_assets,
        generation_defaults,
        tensors,
        format: CheckpointFormat::Safetensors,
    })
}

/// Everything about a checkpoint but its weights.
pub(super) struct Description {
    pub(super) hf_config: HfConfig,
    pub(super) config: ModelConfig,
    pub(super) text_assets: TextAssets,
    pub(super) generation_defaults: GenerationDefaults,
}

/// Reads `config.json` and what lies beside it.
pub(super) fn describe(folder: &Path) -> Result<Description, ModelError> {
    let hf_config = read_json(&folder.join("config.json"))?.ok_or_else(|| ModelError::InvalidFile {
        path: folder.to_owned(),
        problem: "has no config.json (give a safetensors folder or a .gguf file)".to_owned(),
    })?;
    let generation: GenerationConfig = read_json(&folder.join("generation_config.json"))?.unwrap_or_default();
    Description::new(hf_config, generation, read_text_assets(folder)?)
}

/// Reads a `config.json` under any name, without anything beside it.
pub(super) fn describe_file(path: &Path) -> Result<Description, ModelError> {
    let hf_config = read_json(path)?.ok_or_else(|| ModelError::InvalidFile {
        path: path.to_owned(),
        problem: "is not there".to_owned(),
    })?;
    Description::new(hf_config, GenerationConfig::default(), TextAssets::default())
}

impl Description {
    fn new(
        hf_config: HfConfig,
        generation: GenerationConfig,
        mut text_assets: TextAssets,
    ) -> Result<Self, ModelError> {
        let config = hf_config.resolve()?;
        let named_ids = generation.eos_token_id.clone().or(hf_config.eos_token_id.clone());
        text_assets.stop_token_ids.extend(named_ids.into_iter().flat_map(|ids| ids.into_vec()));
        text_assets.stop_token_ids.sort_unstable();
        text_assets.stop_token_ids.dedup();
        Ok(Description { hf_config, config, text_assets, generation_defaults: generation.defaults()? })
    }
}

/// `model.safetensors.index.json`.
#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

/// The shards that the index names, or the one file.
fn weight_files(folder: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let index_path = folder.join("model.safetensors.index.json");
    let Some(index) = read_json::<ShardIndex>(&index_path)? else {
        return Ok(vec![folder.join("model.safetensors")]);
    };
    let mut names: Vec<String> = index.weight_map.into_values().collect();
    names.sort_unstable();
    names.dedup();
    for name in &names {
        // The index is foreign data: a shard lies in the folder and nowhere else.
        if name.contains(['/', '\\']) || !name.ends_with(".safetensors") {
            let problem = format!("names '{name}', which is not a safetensors file of the same folder");
            return Err(ModelError::InvalidFile { path: index_path, problem });
        }
    }
    if names.is_empty() {
        return Err(ModelError::InvalidFile { path: index_path, problem: "names no shard".to_owned() });
    }
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

/// The tensors of one file. The reader checks that the offsets cover the file exactly.
fn read_header(mapping: &Mapping) -> Result<Vec<DeclaredTensor>, ModelError> {
    let bytes = mapping.bytes();
    let file = SafeTensors::deserialize(bytes).map_err(|error| ModelError::InvalidFile {
        path: mapping.path().to_owned(),
        problem: format!("is not a readable safetensors file: {error}"),
    })?;
    let declared = file.tensors().into_iter().map(|(name, view)| DeclaredTensor {
        name,
        shape: view.shape().to_vec(),
        format: weight_format(view.dtype()),
        start: Some(view.data().as_ptr().addr() - bytes.as_ptr().addr()),
    });
    Ok(declared.collect())
}

fn weight_format(dtype: Dtype) -> Result<WeightFormat, String> {
    match dtype {
        Dtype::F32 => Ok(WeightFormat::F32),
        Dtype::BF16 => Ok(WeightFormat::Bf16),
        Dtype::F16 => Ok(WeightFormat::F16),
        other => Err(format!("{other:?}")),
    }
}

/// `tokenizer_config.json`.
#[derive(Default, Deserialize)]
struct TokenizerConfig {
    bos_token: Option<SpecialToken>,
    eos_token: Option<SpecialToken>,
    unk_token: Option<SpecialToken>,
    pad_token: Option<SpecialToken>,
    chat_template: Option<ConfiguredTemplates>,
}

/// A token's text, or an object around it.
#[derive(Deserialize)]
#[serde(untagged)]
enum SpecialToken {
    Text(String),
    Object { content: String },
}

impl SpecialToken {
    fn into_text(self) -> String {
        match self {
            SpecialToken::Text(text) | SpecialToken::Object { content: text } => text,
        }
    }
}

/// The parts of `tokenizer.json` that say which ids exist and which of them are special.
#[derive(Deserialize)]
struct TokenizerJson {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    model: TokenizerModel,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct TokenizerModel {
    vocab: Option<Vocabulary>,
}

/// BPE and WordPiece map texts to ids; Unigram lists texts with scores.
#[derive(Deserialize)]
#[serde(untagged)]
enum Vocabulary {
    Ids(BTreeMap<String, u32>),
    List(Vec<IgnoredAny>),
}

impl TokenizerJson {
    fn num_token_ids(&self) -> usize {
        let from_model = match &self.model.vocab {
            Some(Vocabulary::Ids(ids)) => ids.values().max().map_or(0, |id| *id as usize + 1),
            Some(Vocabulary::List(list)) => list.len(),
            None => 0,
        };
        self.added_tokens.iter().map(|token| token.id as usize + 1).fold(from_model, usize::max)
    }

    fn stop_token_ids(&self) -> Vec<u32> {
        let ends = |token: &&AddedToken| token.special && is_end_token(&token.content);
        self.added_tokens.iter().filter(ends).map(|token| token.id).collect()
    }
}

fn read_text_assets(folder: &Path) -> Result<TextAssets, ModelError> {
    let tokenizer_path = folder.join("tokenizer.json");
    let tokenizer_json = read_file(&tokenizer_path)?;
    let tokenizer =
        tokenizer_json.as_deref().map(|bytes| parse_json::<TokenizerJson>(&tokenizer_path, bytes));
    let tokenizer = tokenizer.transpose()?;
    let config: TokenizerConfig = read_json(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
    Ok(TextAssets {
        gguf_tokenizer: None,
        chat_templates: templates::read(folder, config.chat_template)?,
        bos_token: config.bos_token.map(SpecialToken::into_text),
        eos_token: config.eos_token.map(SpecialToken::into_text),
        unk_token: config.unk_token.map(SpecialToken::into_text),
        pad_token: config.pad_token.map(SpecialToken::into_text),
        stop_token_ids: tokenizer.as_ref().map(TokenizerJson::stop_token_ids).unwrap_or_default(),
        num_token_ids: tokenizer.as_ref().map_or(usize::MAX, TokenizerJson::num_token_ids),
        tokenizer_json,
    })
}

/// A file's bytes; `None` if there is no such file.
pub(crate) fn read_file(path: &Path) -> Result<Option<Vec<u8>>, ModelError> {
    let io = |source| ModelError::Io { path: path.to_owned(), source };
    let metadata = match path.metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    if metadata.len() > MAX_JSON_BYTES {
        let problem = format!("has {} bytes; at most {MAX_JSON_BYTES} are read", metadata.len());
        return Err(ModelError::InvalidFile { path: path.to_owned(), problem });
    }
    std::fs::read(path).map(Some).map_err(io)
}

/// A file's JSON; `None` if there is no such file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, ModelError> {
    read_file(path)?.map(|bytes| parse_json(path, &bytes)).transpose()
}

fn parse_json<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T, ModelError> {
    serde_json::from_slice(bytes).map_err(|error| ModelError::InvalidFile {
        path: path.to_owned(),
        problem: format!("is not the JSON expected: {error}"),
    })
}
