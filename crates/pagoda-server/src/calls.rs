//! When an answer's tool calls follow a grammar, and which.

use pagoda_text::{GrammarSource, Otherwise, SchemaBounds, ToolGrammar, bounded};
use serde_json::json;

use crate::constraint::ConstraintSpec;
use crate::error::ApiError;
use crate::generation::{Generation, ToolChoice, ToolUse};
use crate::model::ServedModel;

/// Whether every call follows a grammar: calls that must come, calls of strict tools, and calls beside a value that must
/// follow a grammar itself.
pub(crate) fn are_constrained(generation: &Generation, tools: &ToolUse) -> bool {
    let is_strict = tools.set.tools().iter().any(|tool| tool.is_strict);
    tools.choice != ToolChoice::Auto || is_strict || generation.constraint.is_some()
}

/// What the answers to a generation must be, its calls included, if they may have `room` tokens.
pub(crate) fn constraint(
    generation: &Generation,
    model: &ServedModel,
    room: usize,
) -> Result<Option<ConstraintSpec>, ApiError> {
    let own = &generation.constraint;
    let Some((tools, support)) = generation.tools.as_ref().zip(model.parsing.tools()) else {
        return Ok(own.clone());
    };
    if !are_constrained(generation, tools) {
        return Ok(None);
    }
    let Some(compiler) = &model.grammars else {
        return Err(ApiError::unsupported("tools", "this model's vocabulary cannot follow a grammar"));
    };
    let only = match &tools.choice {
        ToolChoice::Named(name) => Some(name.as_str()),
        ToolChoice::Auto | ToolChoice::Required => None,
    };
    // A named function is called once. Several calls share the room.
    let has_several_calls = tools.parallel && only.is_none();
    let bounds = compiler.bounds_within(if has_several_calls { room / ToolGrammar::MAX_CALLS } else { room });
    let otherwise = match (&tools.choice, own) {
        // A call that must come leaves no room for anything else.
        (ToolChoice::Required | ToolChoice::Named(_), _) => Otherwise::Nothing,
        (ToolChoice::Auto, Some(spec)) => value(spec, &bounds)?,
        (ToolChoice::Auto, None) => Otherwise::Text,
    };
    let grammar = ToolGrammar {
        format: support.format(),
        tools: &tools.set,
        only,
        has_several_calls,
        otherwise,
        may_lead_with_space: model.parsing.reasoning().is_some(),
        tokenizer: &model.tokenizer,
        stop_ids: &model.stop_token_ids,
        bounds: &bounds,
    };
    if tracing::enabled!(tracing::Level::DEBUG) {
        log_dropped(&grammar);
    }
    let lark = grammar.to_lark().map_err(|error| {
        let path = error.error.path.strip_prefix('$').unwrap_or(&error.error.path);
        ApiError::invalid(format!("tools[{}].function.parameters{path}", error.tool), &error.error.reason)
    })?;
    Ok(Some(ConstraintSpec { source: GrammarSource::Lark(lark), param: "tools".into() }))
}

/// Says whose schemas are followed in part only: no text of the client's.
fn log_dropped(grammar: &ToolGrammar<'_>) {
    for (tool, num_keywords) in grammar.num_dropped().into_iter().enumerate() {
        if num_keywords > 0 {
            tracing::debug!(
                tool,
                num_keywords,
                "a tool that is not strict is followed without some keywords"
            );
        }
    }
}

/// The value that may come instead of a call.
fn value(spec: &ConstraintSpec, bounds: &SchemaBounds) -> Result<Otherwise, ApiError> {
    let any_object = json!({"type": "object"});
    let schema = match &spec.source {
        GrammarSource::JsonObject => &any_object,
        GrammarSource::JsonSchema(schema) => schema,
        GrammarSource::Regex(_) | GrammarSource::Choice(_) | GrammarSource::Lark(_) => {
            return Err(ApiError::unsupported(
                &*spec.param,
                "cannot be given together with `tools`; a schema can",
            ));
        }
    };
    bounded(schema, bounds).map(Otherwise::Value).map_err(|error| {
        let path = error.path.strip_prefix('$').unwrap_or(&error.path);
        ApiError::invalid(format!("{}{path}", spec.param), &error.reason)
    })
}
