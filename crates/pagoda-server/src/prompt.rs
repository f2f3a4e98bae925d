//! From a prompt to token ids: template, tokenizer, limits. Runs on blocking threads, a bounded number at a time, behind a
//! panic boundary; the reactor never tokenises.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pagoda_engine::TokenConstraint;
use pagoda_text::{ChatTemplateInput, TemplateError, TokenizerError, ToolsOrder, ToolsPlace};
use tokio::sync::Semaphore;

use crate::dialect::messages;
use crate::error::ApiError;
use crate::generation::{ChatPrompt, PromptSource, ToolsFirst, Truncation};
use crate::model::ServedModel;

/// Bounds how many prompts are worked on at the same time, and how many wait for it with their bodies in memory.
pub(crate) struct PromptPool {
    permits: Arc<Semaphore>,
    /// One for each prompt that is worked on or waits.
    places: Arc<Semaphore>,
    retry_after: Duration,
}

impl PromptPool {
    /// `max_waiting` prompts may wait for the `max_concurrent` that are worked on.
    pub(crate) fn new(max_concurrent: usize, max_waiting: usize, retry_after: Duration) -> Self {
        let max_concurrent = max_concurrent.max(1);
        PromptPool {
            permits: Arc::new(Semaphore::new(max_concurrent)),
            places: Arc::new(Semaphore::new(max_concurrent + max_waiting)),
            retry_after,
        }
    }

    /// Runs `work` off the reactor. A panic in it is the input's fault as far as anyone can tell, and repeats with it:
    /// it becomes a 400. With every place taken it is a 429 at once.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let places = Arc::clone(&self.places);
        let place = places
            .try_acquire_owned()
            .map_err(|_full| ApiError::QueueFull { retry_after: self.retry_after })?;
        let permits = Arc::clone(&self.permits);
        let permit = permits.acquire_owned().await.map_err(|_closed| ApiError::Internal)?;
        let span = tracing::Span::current();
        let work = move || {
            let result = span.in_scope(work);
            drop((permit, place));
            result
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result,
            Err(error) if error.is_panic() => {
                tracing::error!("preparing a prompt panicked");
                Err(ApiError::MalformedRequest("the prompt cannot be processed"))
            }
            Err(_cancelled) => Err(ApiError::Internal),
        }
    }
}

/// A prompt as the engine takes it.
pub(crate) struct PreparedPrompt {
    pub(crate) token_ids: Vec<u32>,
    /// The prompt as its client wrote it, for echo.
    pub(crate) text: String,
    /// What its answers must be.
    pub(crate) constraint: Option<Box<dyn TokenConstraint>>,
}

/// What preparing needs to know besides the prompt.
#[derive(Clone, Copy)]
pub(crate) struct PrepareContext<'a> {
    pub(crate) model: &'a ServedModel,
    /// The field to blame.
    pub(crate) param: &'static str,
    /// Tokens to be generated, as the client wishes.
    pub(crate) max_tokens: u64,
    pub(crate) truncation: Option<Truncation>,
    pub(crate) skip_special_tokens: bool,
}

/// Renders and tokenises, and checks that the result fits the window.
pub(crate) fn prepare(source: PromptSource, context: PrepareContext<'_>) -> Result<PreparedPrompt, ApiError> {
    let model = context.model;
    let tokenizer = &model.tokenizer;
    let mut prompt = match source {
        PromptSource::TokenIds(token_ids) => {
            let text = tokenizer.decode(&token_ids, context.skip_special_tokens);
            PreparedPrompt { token_ids, text, constraint: None }
        }
        PromptSource::Text { text, add_special_tokens } => {
            let token_ids = tokenizer.encode(&text, add_special_tokens);
            PreparedPrompt {
                token_ids: token_ids.map_err(|error| refused(&error, context.param))?,
                text,
                constraint: None,
            }
        }
        PromptSource::Chat(chat) => {
            let text = render(chat, model)?;
            // The template writes the special tokens itself.
            let token_ids = tokenizer.encode(&text, false);
            PreparedPrompt {
                token_ids: token_ids.map_err(|error| refused(&error, context.param))?,
                text,
                constraint: None,
            }
        }
    };
    if let Some(truncation) = context.truncation {
        truncate(&mut prompt, truncation, context)?;
    }
    check_length(prompt.token_ids.len(), context)?;
    Ok(prompt)
}

fn refused(error: &TokenizerError, param: &'static str) -> ApiError {
    // The error's text names limits of the tokenizer, never the prompt; the log is the right place for the rest.
    tracing::debug!(%error, "the tokenizer refused a prompt");
    ApiError::invalid(param, "cannot be tokenised")
}

/// Renders a conversation with the model's template.
pub(crate) fn render(mut chat: ChatPrompt, model: &ServedModel) -> Result<String, ApiError> {
    let Some(template) = &model.chat_template else {
        return Err(ApiError::unsupported("messages", "the model has no chat template; use /v1/completions"));
    };
    let place = match chat.tools_first {
        ToolsFirst::No => ToolsPlace::BehindSystem,
        ToolsFirst::IfPossible | ToolsFirst::Required => ToolsPlace::BeforeSystem,
    };
    let tools = model.parsing.prepare(&mut chat.messages, chat.tools, place);
    if template.content_support().strings {
        messages::join_parts(&mut chat.messages);
    } else {
        messages::split_strings(&mut chat.messages);
    }
    let input = ChatTemplateInput {
        messages: &chat.messages,
        tools: tools.as_ref(),
        documents: None,
        add_generation_prompt: chat.add_generation_prompt,
        continue_final_message: chat.continue_final_message,
        kwargs: &chat.template_kwargs,
        now: SystemTime::now(),
    };
    if chat.tools_first == ToolsFirst::No {
        return template.render(&input).map_err(|error| template_refused(&error));
    }
    let prompt = template.render_tools_first(&input).map_err(|error| template_refused(&error))?;
    if chat.tools_first == ToolsFirst::Required && prompt.order == ToolsOrder::Elsewhere {
        let what = "the model's chat template has no place for the tools before the system's text";
        return Err(ApiError::unsupported("tools_first", what));
    }
    Ok(prompt.text)
}

fn template_refused(error: &TemplateError) -> ApiError {
    match error {
        // The template's author wrote this for the caller: which orders of roles it takes, and the like.
        TemplateError::Raised { .. } => ApiError::invalid(
            "messages",
            "are refused by the model's chat template (order of roles, or content)",
        ),
        TemplateError::ReservedArgument { .. } => {
            ApiError::invalid("chat_template_kwargs", "replaces a variable that is reserved")
        }
        _ => ApiError::invalid("messages", "cannot be rendered by the model's chat template"),
    }
}

/// Drops the beginning of a prompt that is too long.
fn truncate(
    prompt: &mut PreparedPrompt,
    truncation: Truncation,
    context: PrepareContext<'_>,
) -> Result<(), ApiError> {
    let max_model_len = context.model.max_model_len;
    let num_kept = match truncation {
        Truncation::Last(num) if num > max_model_len => {
            let rule = format!("must be at most the context length, {max_model_len}");
            return Err(ApiError::invalid("truncate_prompt_tokens", rule));
        }
        Truncation::Last(num) => num,
        // An answer that may fill the window leaves the prompt all but one token of it.
        Truncation::Window if context.max_tokens >= max_model_len as u64 => max_model_len - 1,
        Truncation::Window => max_model_len - context.max_tokens as usize,
    };
    let num_dropped = prompt.token_ids.len().saturating_sub(num_kept);
    if num_dropped > 0 {
        prompt.token_ids.drain(..num_dropped);
        prompt.text = context.model.tokenizer.decode(&prompt.token_ids, context.skip_special_tokens);
    }
    Ok(())
}

fn check_length(num_prompt_tokens: usize, context: PrepareContext<'_>) -> Result<(), ApiError> {
    let max_model_len = context.model.max_model_len;
    if num_prompt_tokens == 0 {
        return Err(ApiError::invalid(context.param, "must have at least one token"));
    }
    if num_prompt_tokens + usize::from(context.max_tokens > 0) > max_model_len {
        let found = format!("Your {} resulted in {num_prompt_tokens} tokens", context.param);
        return Err(ApiError::ContextLength { max_model_len, found, param: context.param });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_over_a_prompt_is_its_clients_400_and_frees_its_place() {
        let pool = PromptPool::new(1, 1, Duration::ZERO);
        for _ in 0..3 {
            let answer = pool.run(|| -> Result<(), ApiError> { panic!("a secret of the prompt") }).await;
            let error = answer.unwrap_err();
            assert_eq!(error.status(), http::StatusCode::BAD_REQUEST);
            assert!(!error.to_string().contains("secret"));
        }
        assert_eq!(pool.run(|| Ok(7)).await, Ok(7));
    }

    #[tokio::test]
    async fn a_prompt_beyond_the_waiting_places_is_refused_at_once() {
        let pool = Arc::new(PromptPool::new(1, 1, Duration::from_secs(1)));
        let (release, released) = std::sync::mpsc::channel::<()>();
        let working = Arc::clone(&pool);
        let first = tokio::spawn(async move {
            working.run(move || released.recv().map_err(|_gone| ApiError::Internal)).await
        });
        let waiting = Arc::clone(&pool);
        let second = tokio::spawn(async move { waiting.run(|| Ok(2)).await });
        while pool.places.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let refused = pool.run(|| Ok(3)).await.unwrap_err();
        assert_eq!(refused.status(), http::StatusCode::TOO_MANY_REQUESTS);
        release.send(()).unwrap();
        first.await.unwrap().unwrap();
        assert_eq!(second.await.unwrap(), Ok(2));
    }
}
