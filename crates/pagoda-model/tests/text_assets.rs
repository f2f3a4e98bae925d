//! What a checkpoint brings for text is found wherever its writer put it.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use pagoda_backend::WeightFormat;
use pagoda_model::{Checkpoint, TextAssets, tiny};

fn folder_with(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    tiny::write_safetensors(folder.path(), WeightFormat::Bf16).unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

fn assets(folder: &Path) -> TextAssets {
    Checkpoint::open(folder).unwrap().text_assets()
}

/// The default template, and the one for tools.
fn templates(folder: &Path) -> Option<(String, Option<String>)> {
    assets(folder).chat_templates.map(|found| (found.default, found.tool_use))
}

const NAMED: &str = r#"{"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": null,
    "chat_template": [{"name": "tool_use", "template": "T"}, {"name": "rag", "template": "R"},
        {"name": "default", "template": "D"}]}"#;

#[test]
fn a_template_file_wins_over_the_tokenizer_configuration() {
    let folder =
        folder_with(&[("chat_template.jinja", "{{ 'from the file' }}"), ("tokenizer_config.json", NAMED)]);
    assert_eq!(templates(folder.path()), Some(("{{ 'from the file' }}".into(), None)));
}

#[test]
fn a_template_for_tools_lies_in_a_folder_beside_the_default() {
    let folder = folder_with(&[("chat_template.jinja", "F")]);
    std::fs::create_dir(folder.path().join("additional_chat_templates")).unwrap();
    std::fs::write(folder.path().join("additional_chat_templates/tool_use.jinja"), "U").unwrap();
    assert_eq!(templates(folder.path()), Some(("F".into(), Some("U".into()))));
}

#[test]
fn of_several_named_templates_the_default_and_the_one_for_tools_are_taken_and_tokens_may_be_objects() {
    let folder = folder_with(&[("tokenizer_config.json", NAMED)]);
    assert_eq!(templates(folder.path()), Some(("D".into(), Some("T".into()))));
    let assets = assets(folder.path());
    assert_eq!((assets.bos_token.as_deref(), assets.eos_token), (Some("<s>"), None));
}

#[test]
fn stop_tokens_are_those_listed_and_those_known_to_end_a_turn() {
    // generation_config.json lists 77; the tokenizer's <|endoftext|> 0 and <|im_end|> 2 end turns, <|im_start|> 1 does not.
    let folder = folder_with(&[("generation_config.json", r#"{"eos_token_id": 77}"#)]);
    assert_eq!(assets(folder.path()).stop_token_ids, [0, 2, 77]);
    // Without it config.json's eos_token_id counts, which is 2.
    let folder = folder_with(&[("generation_config.json", "{}")]);
    assert_eq!(assets(folder.path()).stop_token_ids, [0, 2]);
}

#[test]
fn a_folder_without_a_tokenizer_opens_and_may_choose_every_token() {
    let folder = folder_with(&[]);
    std::fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    std::fs::remove_file(folder.path().join("tokenizer_config.json")).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.text_assets().tokenizer_json, None);
    assert_eq!(checkpoint.num_choosable_tokens(), 512);
}

#[test]
fn a_file_that_is_not_the_json_expected_is_named() {
    for name in ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
        for text in [
            "{",
            "[1, 2",
            "\"text\"",
            "{\"architectures\": 7, \"temperature\": \"hot\", \"chat_template\": 3, \"model\": 4}",
        ] {
            let folder = folder_with(&[(name, text)]);
            let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
            assert!(error.contains(name), "{name} {text}: {error}");
        }
    }
}
