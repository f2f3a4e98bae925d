//! The tiny model as a Hugging Face folder: configuration, tokenizer, safetensors in one file or in shards.

use std::io;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use pagoda_backend::WeightFormat;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::{GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG, TinyModel};

impl TinyModel {
    /// Writes a Hugging Face folder: one file, or shards with an index. The format is `f32`, `bf16` or `f16`.
    pub fn write_safetensors(
        &self,
        folder: &Path,
        format: WeightFormat,
        num_shards: usize,
    ) -> io::Result<PathBuf> {
        self.write_json_files(folder)?;
        let tensors = self.tensors();
        let encoded = tensors.iter().map(|tensor| encode(&tensor.values, format));
        let encoded = encoded.collect::<io::Result<Vec<_>>>()?;
        let views = tensors.iter().zip(&encoded).map(|(tensor, (dtype, bytes))| {
            let view = TensorView::new(*dtype, tensor.shape.clone(), bytes).map_err(io::Error::other)?;
            Ok((tensor.hf_name.clone(), view))
        });
        let views = views.collect::<io::Result<Vec<_>>>()?;
        if num_shards == 1 {
            write_safetensors_file(&folder.join("model.safetensors"), views)?;
            return Ok(folder.to_owned());
        }
        let mut weight_map = serde_json::Map::new();
        for (shard, views) in views.chunks(views.len().div_ceil(num_shards)).enumerate() {
            let file_name = format!("model-{:05}-of-{num_shards:05}.safetensors", shard + 1);
            for (name, _) in views {
                weight_map.insert(name.clone(), file_name.clone().into());
            }
            write_safetensors_file(&folder.join(file_name), views.to_vec())?;
        }
        let index = serde_json::json!({"metadata": {}, "weight_map": weight_map});
        std::fs::write(folder.join("model.safetensors.index.json"), index.to_string())?;
        Ok(folder.to_owned())
    }

    fn write_json_files(&self, folder: &Path) -> io::Result<()> {
        std::fs::create_dir_all(folder)?;
        std::fs::write(folder.join("config.json"), self.config_json())?;
        std::fs::write(folder.join("generation_config.json"), GENERATION_CONFIG)?;
        std::fs::write(folder.join("tokenizer.json"), TOKENIZER)?;
        std::fs::write(folder.join("tokenizer_config.json"), TOKENIZER_CONFIG)
    }
}

fn encode(values: &[f32], format: WeightFormat) -> io::Result<(Dtype, Vec<u8>)> {
    Ok(match format {
        WeightFormat::F32 => (Dtype::F32, values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        WeightFormat::Bf16 => {
            (Dtype::BF16, values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect())
        }
        WeightFormat::F16 => {
            (Dtype::F16, values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect())
        }
        WeightFormat::Q8_0 | WeightFormat::Q4_0 | WeightFormat::Q4_1 => {
            let problem = format!("safetensors hold no {format}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
    })
}

fn write_safetensors_file(path: &Path, views: Vec<(String, TensorView<'_>)>) -> io::Result<()> {
    safetensors::serialize_to_file(views, None, path).map_err(io::Error::other)
}
