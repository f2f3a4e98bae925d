//! The template texts that a model brings, and the tokens it names.

use std::collections::BTreeMap;

use serde_json::Value;

/// The tokens that templates write by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// `bos_token`.
    pub bos_token: Option<String>,
    /// `eos_token`.
    pub eos_token: Option<String>,
    /// `unk_token`.
    pub unk_token: Option<String>,
    /// `pad_token`.
    pub pad_token: Option<String>,
    /// Further ones by the name of their variable (`image_token`).
    pub others: BTreeMap<String, String>,
}

impl SpecialTokens {
    /// Every token that is set, with the name of its variable.
    pub(crate) fn variables(&self) -> impl Iterator<Item = (&str, &str)> {
        let named = [
            ("bos_token", &self.bos_token),
            ("eos_token", &self.eos_token),
            ("unk_token", &self.unk_token),
            ("pad_token", &self.pad_token),
        ];
        let named = named.into_iter().filter_map(|(name, token)| Some((name, token.as_deref()?)));
        named.chain(self.others.iter().map(|(name, token)| (name.as_str(), token.as_str())))
    }
}

/// A model's templates: one for everything, and maybe one of its own for requests with tools.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TemplateSources {
    /// The template for every conversation.
    pub default: String,
    /// The template for conversations with tools, where the model has one.
    pub tool_use: Option<String>,
}

/// Names of the two templates.
pub(crate) const DEFAULT: &str = "default";
pub(crate) const TOOL_USE: &str = "tool_use";

impl TemplateSources {
    /// The texts that there are, by name.
    pub(crate) fn by_name(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let tool_use = self.tool_use.as_deref().map(|source| (TOOL_USE, source));
        std::iter::once((DEFAULT, self.default.as_str())).chain(tool_use)
    }

    /// Reads the `chat_template` field of a `tokenizer_config.json`: a string, or a list of `{"name", "template"}`.
    /// `None` where there is no template, or none by the name `default`.
    pub fn from_tokenizer_config(chat_template: &Value) -> Option<Self> {
        if let Some(source) = chat_template.as_str() {
            return Some(Self { default: source.to_owned(), tool_use: None });
        }
        let named = |name: &str| {
            let entry = chat_template.as_array()?.iter().find(|entry| entry["name"] == name)?;
            entry["template"].as_str().map(str::to_owned)
        };
        Some(Self { default: named(DEFAULT)?, tool_use: named(TOOL_USE) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn templates_come_as_one_string_or_by_name() {
        let one = TemplateSources::from_tokenizer_config(&json!("{{ x }}")).unwrap();
        assert_eq!(one, TemplateSources { default: "{{ x }}".into(), tool_use: None });
        let named = json!([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]);
        let two = TemplateSources::from_tokenizer_config(&named).unwrap();
        assert_eq!(two, TemplateSources { default: "d".into(), tool_use: Some("t".into()) });
        assert_eq!(TemplateSources::from_tokenizer_config(&json!([{"name": "rag", "template": "r"}])), None);
        assert_eq!(TemplateSources::from_tokenizer_config(&Value::Null), None);
    }
}
