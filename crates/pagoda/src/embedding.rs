//! The embedding model: which one the flags mean, and how the server gets it when it is first asked for.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use pagoda_model::Encoder;
use pagoda_server::{EmbeddingError, EmbeddingSource, LoadedEncoder};
use pagoda_text::{Tokenizer, TokenizerSource};

use crate::args::ServeArgs;
use crate::config::{check_names, num_threads, served_name};
use crate::pull::{ModelReference, ModelStore};

/// Turns embeddings off.
const NONE: &str = "none";

/// The embedding model that the flags mean.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct EmbeddingChoice {
    model: String,
    /// What `/v1/models` lists.
    pub(crate) names: Vec<String>,
    max_len: usize,
    num_threads: usize,
}

impl EmbeddingChoice {
    /// Checks the flags. A folder is looked into, a catalogue model need not be there yet.
    pub(crate) fn resolve(args: &ServeArgs, store: &ModelStore) -> anyhow::Result<Option<Self>> {
        let model = match (args.embedding_model.as_deref(), &store.catalogue.default_embedding) {
            (Some(NONE), _) | (None, None) => return Ok(None),
            (Some(model), _) => model,
            (None, Some(default)) => default,
        };
        let max_len = match ModelReference::parse(model).context("--embedding-model")? {
            ModelReference::Path(folder) => {
                Encoder::read_max_len(folder).context("--embedding-model cannot be served")?
            }
            ModelReference::Catalogue(name) => {
                let found = store.catalogue.find(name).and_then(|model| model.embedding_max_tokens);
                found.with_context(|| {
                    format!("--embedding-model: the catalogue knows no embedding model {name:?}")
                })?
            }
            ModelReference::Hub { .. } => {
                bail!(
                    "--embedding-model takes a catalogue name or a folder: fetch {model} first (pagoda pull) and name its folder"
                )
            }
        };
        let names = match &args.embedding_name[..] {
            [] => vec![served_name(model)],
            names => names.to_vec(),
        };
        check_names("--embedding-name", &names)?;
        // The decoder keeps half of the threads to itself even while texts are embedded.
        let num_threads = (num_threads(&args.model)? / 2).max(1);
        Ok(Some(EmbeddingChoice { model: model.to_owned(), names, max_len, num_threads }))
    }

    /// What the server is handed.
    pub(crate) fn source(self, store: Arc<ModelStore>) -> EmbeddingSource {
        let (model, num_threads) = (self.model, self.num_threads);
        let load = move || {
            let located = store.locate(&model).and_then(|folder| load(folder, num_threads));
            located.map_err(|error| EmbeddingError::from(format!("{error:#}")))
        };
        EmbeddingSource { names: self.names, max_len: self.max_len, load: Box::new(load) }
    }
}

fn load(folder: PathBuf, num_threads: usize) -> anyhow::Result<LoadedEncoder> {
    let encoder = Encoder::load(&folder, num_threads)?;
    let tokenizer = Tokenizer::new(TokenizerSource::Json(encoder.tokenizer_json().to_vec()))?;
    Ok(LoadedEncoder {
        tokenizer: Arc::new(tokenizer),
        max_len: encoder.max_len(),
        width: encoder.width(),
        vocab_size: encoder.vocab_size(),
        embed: Box::new(move |sequences| encoder.embed(sequences).map_err(EmbeddingError::from)),
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};
    use crate::pull::Catalogue;

    fn resolve(flags: &[&str]) -> anyhow::Result<Option<EmbeddingChoice>> {
        let folder = tempfile::tempdir().unwrap();
        let store = ModelStore::new(
            Catalogue::load(None).unwrap(),
            folder.path().to_owned(),
            "http://127.0.0.1:1",
            None,
        );
        match Cli::parse_from(["pagoda", "serve"].iter().chain(flags)).command {
            Command::Serve(args) => EmbeddingChoice::resolve(&args, &store),
            _ => unreachable!(),
        }
    }

    #[test]
    fn embeddings_are_on_by_default_without_fetching_anything() {
        let choice = resolve(&["--threads", "8"]).unwrap().unwrap();
        assert_eq!((choice.names, choice.max_len), (vec!["all-minilm-l6-v2".to_owned()], 256));
        assert_eq!(choice.num_threads, 4);
        let one = resolve(&["--threads", "1", "--embedding-name", "a,b"]).unwrap().unwrap();
        assert_eq!((one.names, one.num_threads), (vec!["a".to_owned(), "b".to_owned()], 1));
    }

    #[test]
    fn none_turns_them_off_and_what_is_no_encoder_is_refused_at_start() {
        assert_eq!(resolve(&["--embedding-model", "none"]).unwrap(), None);
        for wrong in ["smollm2-135m-instruct", "no-such-model", "org/repo", "./gone"] {
            let error = format!("{:#}", resolve(&["--embedding-model", wrong]).unwrap_err());
            assert!(error.contains("--embedding-model"), "{error}");
        }
        let folder = tempfile::tempdir().unwrap();
        let error =
            format!("{:#}", resolve(&["--embedding-model", folder.path().to_str().unwrap()]).unwrap_err());
        assert!(error.contains("config.json"), "{error}");
    }
}
