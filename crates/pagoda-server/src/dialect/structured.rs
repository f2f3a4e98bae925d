//! The fields that ask for structured output, under all their names: OpenAI's `response_format`, the newer
//! `structured_outputs`, the older `guided_*`, and `grammar`. At most one may be given.

use pagoda_text::GrammarSource;
use serde_json::Value;

use crate::constraint::ConstraintSpec;
use crate::error::ApiError;
use crate::fields::Fields;

/// Reads them all; `None` if the answer is free.
pub(super) fn read(fields: &mut Fields) -> Result<Option<ConstraintSpec>, ApiError> {
    let mut found = Found(None);
    if let Some(format) = fields.object("response_format")? {
        found.add(response_format(format)?)?;
    }
    if let Some(mut options) = fields.object("structured_outputs")? {
        let asks_for_something = options.has_values();
        for (name, read) in READERS {
            let param = options.param(name);
            found.add(take(&mut options, name, &param, read)?)?;
        }
        let param = options.param("json_object");
        let is_json_object = options.bool("json_object")?;
        found.add(
            (is_json_object == Some(true))
                .then(|| ConstraintSpec { source: GrammarSource::JsonObject, param }),
        )?;
        refuse_structural_tag(&mut options)?;
        if options.take("whitespace_pattern").is_some() {
            let what = "white space is at most one space behind `,` and `:`";
            return Err(ApiError::unsupported(options.param("whitespace_pattern"), what));
        }
        if found.0.is_none() && is_json_object.is_none() && asks_for_something {
            let rule = "must have one of `json`, `json_object`, `regex`, `choice` and `grammar`";
            return Err(ApiError::invalid("structured_outputs", rule));
        }
    }
    for (name, read) in READERS {
        let param = format!("guided_{name}");
        found.add(take(fields, &param, &param, read)?)?;
    }
    found.add(take(fields, "grammar", "grammar", lark)?)?;
    Ok(found.0)
}

type Reader = fn(Value, &str) -> Result<GrammarSource, ApiError>;

/// What `structured_outputs` and, behind `guided_`, the older fields have in common.
const READERS: [(&str, Reader); 4] =
    [("json", json), ("regex", regex), ("choice", choice), ("grammar", lark)];

/// The one constraint of a request.
struct Found(Option<ConstraintSpec>);

impl Found {
    fn add(&mut self, spec: Option<ConstraintSpec>) -> Result<(), ApiError> {
        let Some(spec) = spec else { return Ok(()) };
        if let Some(first) = &self.0 {
            let rule = format!("cannot be given together with '{}'", first.param);
            return Err(ApiError::invalid(spec.param, rule));
        }
        self.0 = Some(spec);
        Ok(())
    }
}

fn take(
    fields: &mut Fields,
    name: &str,
    param: &str,
    read: Reader,
) -> Result<Option<ConstraintSpec>, ApiError> {
    let Some(value) = fields.take(name) else { return Ok(None) };
    Ok(Some(ConstraintSpec { source: read(value, param)?, param: param.to_owned() }))
}

fn response_format(mut format: Fields) -> Result<Option<ConstraintSpec>, ApiError> {
    let kind = format.string("type", 64)?;
    match kind.as_deref() {
        Some("text") => Ok(None),
        Some("json_object") => {
            // Some servers take a schema here; it says more than "an object".
            let param = format.param("schema");
            let schema = take(&mut format, "schema", &param, json)?;
            let any = || ConstraintSpec { source: GrammarSource::JsonObject, param: format.param("type") };
            Ok(Some(schema.unwrap_or_else(any)))
        }
        Some("json_schema") => {
            let param = format.param("json_schema");
            let missing = || ApiError::invalid(&*param, "must be an object with a `schema`");
            let mut named = format.object("json_schema")?.ok_or_else(missing)?;
            named.bool("strict")?;
            let param = named.param("schema");
            take(&mut named, "schema", &param, json)?.ok_or_else(missing).map(Some)
        }
        Some("structural_tag") => {
            Err(ApiError::unsupported(format.param("type"), "structural tags are not supported"))
        }
        _ => Err(ApiError::invalid(format.param("type"), "must be `text`, `json_object` or `json_schema`")),
    }
}

/// A schema, as an object or as its text.
fn json(value: Value, param: &str) -> Result<GrammarSource, ApiError> {
    let schema = match value {
        Value::String(text) => crate::json::parse(text.as_bytes(), 127).map_err(|_| {
            ApiError::invalid(param, "must be a JSON schema, but is a string that is not JSON")
        })?,
        value => value,
    };
    match schema {
        Value::Object(_) | Value::Bool(_) => Ok(GrammarSource::JsonSchema(schema)),
        _ => Err(ApiError::invalid(param, "must be a JSON schema")),
    }
}

fn regex(value: Value, param: &str) -> Result<GrammarSource, ApiError> {
    match value {
        Value::String(regex) => Ok(GrammarSource::Regex(regex)),
        _ => Err(ApiError::invalid(param, "must be a string")),
    }
}

fn choice(value: Value, param: &str) -> Result<GrammarSource, ApiError> {
    let wrong = || ApiError::invalid(param, "must be a list of strings with at least one entry");
    let Value::Array(texts) = value else { return Err(wrong()) };
    let texts: Option<Vec<String>> = texts
        .into_iter()
        .map(|text| match text {
            Value::String(text) => Some(text),
            _ => None,
        })
        .collect();
    match texts {
        Some(texts) if !texts.is_empty() => Ok(GrammarSource::Choice(texts)),
        _ => Err(wrong()),
    }
}

fn lark(value: Value, param: &str) -> Result<GrammarSource, ApiError> {
    match value {
        Value::String(text) if text.contains("::=") => Err(ApiError::unsupported(
            param,
            "grammars are written in Lark (`rule: ..`), not in GBNF or EBNF",
        )),
        Value::String(text) => Ok(GrammarSource::Lark(text)),
        _ => Err(ApiError::invalid(param, "must be a string")),
    }
}

fn refuse_structural_tag(options: &mut Fields) -> Result<(), ApiError> {
    match options.take("structural_tag") {
        None => Ok(()),
        Some(_) => {
            Err(ApiError::unsupported(options.param("structural_tag"), "structural tags are not supported"))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(body: Value) -> Result<Option<ConstraintSpec>, ApiError> {
        read(&mut Fields::of_body(body).unwrap())
    }

    fn param_of(body: Value) -> String {
        match of(body).unwrap_err() {
            ApiError::Invalid { param, .. } | ApiError::Unsupported { param, .. } => param,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_name_reaches_the_same_source() {
        let schema = json!({"type": "integer"});
        for body in [
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}}),
            json!({"response_format": {"type": "json_object", "schema": schema}}),
            json!({"structured_outputs": {"json": schema}}),
            json!({"structured_outputs": {"json": schema.to_string()}}),
            json!({"guided_json": schema, "guided_regex": null}),
        ] {
            assert_eq!(of(body).unwrap().unwrap().source, GrammarSource::JsonSchema(schema.clone()));
        }
        for body in [
            json!({"response_format": {"type": "json_object"}}),
            json!({"structured_outputs": {"json_object": true}}),
        ] {
            assert_eq!(of(body).unwrap().unwrap().source, GrammarSource::JsonObject);
        }
        for body in [
            json!({}),
            json!({"response_format": {"type": "text"}}),
            json!({"structured_outputs": {}}),
            json!({"structured_outputs": {"json": null, "json_object": false, "whitespace_pattern": null}}),
        ] {
            assert!(of(body).unwrap().is_none());
        }
    }

    #[test]
    fn two_constraints_are_refused_in_the_name_of_the_second() {
        let format = json!({"type": "json_object"});
        assert_eq!(param_of(json!({"response_format": format, "grammar": "start: \"a\""})), "grammar");
        assert_eq!(param_of(json!({"guided_regex": "a", "guided_choice": ["a"]})), "guided_choice");
        let both = json!({"structured_outputs": {"regex": "a", "json_object": true}});
        assert_eq!(param_of(both), "structured_outputs.json_object");
    }

    #[test]
    fn what_cannot_be_a_constraint_names_its_field() {
        for (body, param) in [
            (json!({"response_format": "json"}), "response_format"),
            (json!({"response_format": {"type": "xml"}}), "response_format.type"),
            (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema"),
            (json!({"structured_outputs": {"json": 7}}), "structured_outputs.json"),
            (json!({"structured_outputs": {"json": "{"}}), "structured_outputs.json"),
            (json!({"structured_outputs": {"structural_tag": {}}}), "structured_outputs.structural_tag"),
            (json!({"structured_outputs": {"jsonschema": {}}}), "structured_outputs"),
            (
                json!({"structured_outputs": {"json": {}, "whitespace_pattern": "[ ]*"}}),
                "structured_outputs.whitespace_pattern",
            ),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "strict": "yes"}}}),
                "response_format.json_schema.strict",
            ),
            (json!({"guided_choice": []}), "guided_choice"),
            (json!({"guided_choice": ["a", 1]}), "guided_choice"),
            (json!({"grammar": "root ::= \"a\""}), "grammar"),
        ] {
            assert_eq!(param_of(body), param);
        }
    }
}
