//! The chat templates of a Hugging Face folder, found as `transformers` finds them: files (`chat_template.jinja` and
//! `additional_chat_templates/NAME.jinja`) win over `tokenizer_config.json`, whose field is a text or a list of named texts.

use std::path::Path;

use serde::Deserialize;

use super::hf::read_file;
use crate::{ChatTemplates, ModelError};

/// The template of conversations with tools, where a model has one of its own for them.
const TOOL_USE: &str = "tool_use";

/// `chat_template` of `tokenizer_config.json`.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum ConfiguredTemplates {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
pub(super) struct NamedTemplate {
    name: String,
    template: String,
}

/// The templates of `folder`, whose `tokenizer_config.json` said `configured`.
pub(super) fn read(
    folder: &Path,
    configured: Option<ConfiguredTemplates>,
) -> Result<Option<ChatTemplates>, ModelError> {
    let default = read_text(&folder.join("chat_template.jinja"))?;
    let tool_use = read_text(&folder.join("additional_chat_templates").join(format!("{TOOL_USE}.jinja")))?;
    let configured = configured.and_then(ConfiguredTemplates::into_templates);
    Ok(match (default, tool_use) {
        (Some(default), tool_use) => Some(ChatTemplates { default, tool_use }),
        (None, Some(tool_use)) => {
            configured.map(|configured| ChatTemplates { tool_use: Some(tool_use), ..configured })
        }
        (None, None) => configured,
    })
}

impl ConfiguredTemplates {
    /// None where no template is for every conversation.
    fn into_templates(self) -> Option<ChatTemplates> {
        let mut named = match self {
            ConfiguredTemplates::One(default) => return Some(ChatTemplates { default, tool_use: None }),
            ConfiguredTemplates::Named(named) => named,
        };
        let mut take = |name: &str| {
            let position = named.iter().position(|entry| entry.name == name)?;
            Some(named.swap_remove(position).template)
        };
        let tool_use = take(TOOL_USE);
        Some(ChatTemplates { default: take("default")?, tool_use })
    }
}

fn read_text(path: &Path) -> Result<Option<String>, ModelError> {
    let text = read_file(path)?.map(String::from_utf8).transpose();
    text.map_err(|error| ModelError::InvalidFile {
        path: path.to_owned(),
        problem: format!("is not UTF-8: {}", error.utf8_error()),
    })
}
