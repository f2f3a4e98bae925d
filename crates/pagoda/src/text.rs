//! A checkpoint's text assets as tokenizer and chat template. Knows neither flags nor the rest of the binary, so that the
//! tests can build the same parts around an executor of their own.

use std::path::Path;

use anyhow::Context;
use pagoda_model::{GgufTokenizer, TextAssets};
use pagoda_text::{
    ChatTemplate, GgufVocab, SpecialTokens, TemplateLimits, TemplateSources, Tokenizer, TokenizerSource,
};

/// The checkpoint's vocabulary, ready to encode.
pub(crate) fn tokenizer(assets: TextAssets) -> anyhow::Result<Tokenizer> {
    Tokenizer::new(tokenizer_source(assets)?).context("building the tokenizer")
}

/// The template of the flag, else the model's own ones; a model without any serves completions only.
pub(crate) fn chat_template(
    assets: &TextAssets,
    file: Option<&Path>,
) -> anyhow::Result<Option<ChatTemplate>> {
    let sources = match (file, &assets.chat_templates) {
        (Some(file), _) => {
            let source = std::fs::read_to_string(file);
            let default = source.with_context(|| format!("reading {}", file.display()))?;
            TemplateSources { default, tool_use: None }
        }
        (None, Some(templates)) => {
            TemplateSources { default: templates.default.clone(), tool_use: templates.tool_use.clone() }
        }
        (None, None) => return Ok(None),
    };
    let special_tokens = SpecialTokens {
        bos_token: assets.bos_token.clone(),
        eos_token: assets.eos_token.clone(),
        unk_token: assets.unk_token.clone(),
        pad_token: assets.pad_token.clone(),
        ..SpecialTokens::default()
    };
    let template = ChatTemplate::with_sources(sources, special_tokens, TemplateLimits::default());
    template.map(Some).context("reading the chat template")
}

fn tokenizer_source(assets: TextAssets) -> anyhow::Result<TokenizerSource> {
    match (assets.tokenizer_json, assets.gguf_tokenizer) {
        (Some(json), _) => Ok(TokenizerSource::Json(json)),
        (None, Some(gguf)) => Ok(TokenizerSource::Gguf(gguf_vocab(gguf))),
        (None, None) => {
            anyhow::bail!("the checkpoint has no tokenizer: put tokenizer.json beside the weights")
        }
    }
}

fn gguf_vocab(gguf: GgufTokenizer) -> GgufVocab {
    GgufVocab {
        model: gguf.model,
        pre: gguf.pre,
        tokens: gguf.tokens,
        token_types: gguf.token_types,
        merges: gguf.merges,
        scores: gguf.scores,
        bos_token_id: gguf.bos_token_id,
        eos_token_id: gguf.eos_token_id,
        unknown_token_id: gguf.unknown_token_id,
        padding_token_id: gguf.padding_token_id,
        add_bos_token: Some(gguf.add_bos_token),
        add_eos_token: Some(gguf.add_eos_token),
        add_space_prefix: gguf.add_space_prefix,
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use pagoda_model::ChatTemplates;
    use pagoda_text::ChatTemplateInput;
    use serde_json::{Map, Value, json};

    use super::*;

    fn render(template: &ChatTemplate, tools: Option<&Value>) -> String {
        let input = ChatTemplateInput {
            messages: &json!([{"role": "user", "content": "Hi"}]),
            tools,
            documents: None,
            add_generation_prompt: true,
            continue_final_message: false,
            kwargs: &Map::new(),
            now: SystemTime::UNIX_EPOCH,
        };
        template.render(&input).unwrap()
    }

    #[test]
    fn a_models_own_template_for_tools_is_used_for_requests_with_tools_and_no_others() {
        let templates = ChatTemplates {
            default: "plain: {{ messages[0].content }}".into(),
            tool_use: Some("{{ tools | length }} tools: {{ messages[0].content }}".into()),
        };
        let assets = TextAssets { chat_templates: Some(templates), ..TextAssets::default() };
        let template = chat_template(&assets, None).unwrap().unwrap();
        assert_eq!(render(&template, None), "plain: Hi");
        assert_eq!(render(&template, Some(&json!([{"type": "function"}]))), "1 tools: Hi");
    }

    #[test]
    fn the_template_of_the_flag_stands_for_all_of_the_models() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("own.jinja");
        std::fs::write(&file, "own: {{ messages[0].content }}").unwrap();
        let templates = ChatTemplates { default: "D".into(), tool_use: Some("T".into()) };
        let assets = TextAssets { chat_templates: Some(templates), ..TextAssets::default() };
        let template = chat_template(&assets, Some(&file)).unwrap().unwrap();
        assert_eq!(render(&template, Some(&json!([{"type": "function"}]))), "own: Hi");
        assert!(chat_template(&TextAssets::default(), None).unwrap().is_none());
    }
}
