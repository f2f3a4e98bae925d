//! Every refusal and failure of the API, with its status, its OpenAI type and code, and the field it is about. One enum,
//! one translation to the wire. Messages carry names of fields and limits, never a value that the client sent.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

/// Why a request is not answered as it was asked.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(crate) enum ApiError {
    #[error("{message}")]
    Invalid { param: String, message: String },
    #[error("{message}")]
    Unsupported { param: String, message: String },
    #[error("the body is not valid JSON: {0}")]
    MalformedJson(String),
    #[error("{0}")]
    MalformedRequest(&'static str),
    #[error("this model's maximum context length is {max_model_len} tokens. {found}. Shorten the {param}")]
    ContextLength { max_model_len: usize, found: String, param: &'static str },
    #[error("an API key is required: send `Authorization: Bearer <key>`")]
    MissingKey,
    #[error("the API key is not valid")]
    BadKey,
    #[error("this key does not open this route")]
    Forbidden,
    #[error("there is no such route")]
    UnknownRoute,
    #[error("there is no such model; `GET /v1/models` lists the names")]
    UnknownModel,
    #[error("this server has no embedding model")]
    NoEmbeddingModel,
    #[error("this route does not answer this method")]
    MethodNotAllowed,
    #[error("the body did not arrive in time")]
    SlowBody,
    #[error("the body is larger than {max_body_bytes} bytes")]
    BodyTooLarge { max_body_bytes: usize },
    #[error("the body must be sent as `Content-Type: application/json`, without a content encoding")]
    ContentType,
    #[error("the request's head is too large")]
    HeadTooLarge,
    #[error("the request's path is too long")]
    UriTooLong,
    #[error("the queue is full, try again later")]
    QueueFull { retry_after: Duration },
    #[error("{reason}, try again later")]
    Unavailable { reason: &'static str, retry_after: Duration },
    #[error("the model failed on this request")]
    Model,
    #[error("the server failed on this request")]
    Internal,
}

/// The classes of OpenAI's `error.type`.
const INVALID_REQUEST: &str = "invalid_request_error";

impl ApiError {
    /// A field that cannot be used, with the rule that it breaks.
    pub(crate) fn invalid(param: impl Into<String>, rule: impl std::fmt::Display) -> Self {
        let param = param.into();
        ApiError::Invalid { message: format!("'{param}' {rule}"), param }
    }

    /// A field that means something that this server cannot do.
    pub(crate) fn unsupported(param: impl Into<String>, what: impl std::fmt::Display) -> Self {
        let param = param.into();
        ApiError::Unsupported { message: format!("'{param}': {what}"), param }
    }

    pub(crate) fn status(&self) -> StatusCode {
        match self {
            ApiError::Invalid { .. }
            | ApiError::Unsupported { .. }
            | ApiError::MalformedJson(_)
            | ApiError::MalformedRequest(_)
            | ApiError::ContextLength { .. } => StatusCode::BAD_REQUEST,
            ApiError::MissingKey | ApiError::BadKey => StatusCode::UNAUTHORIZED,
            ApiError::Forbidden => StatusCode::FORBIDDEN,
            ApiError::UnknownRoute | ApiError::UnknownModel | ApiError::NoEmbeddingModel => {
                StatusCode::NOT_FOUND
            }
            ApiError::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            ApiError::SlowBody => StatusCode::REQUEST_TIMEOUT,
            ApiError::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            ApiError::ContentType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            ApiError::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            ApiError::UriTooLong => StatusCode::URI_TOO_LONG,
            ApiError::QueueFull { .. } => StatusCode::TOO_MANY_REQUESTS,
            ApiError::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
            ApiError::Model | ApiError::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            ApiError::MissingKey | ApiError::BadKey => "authentication_error",
            ApiError::Forbidden => "permission_error",
            ApiError::UnknownRoute | ApiError::UnknownModel | ApiError::NoEmbeddingModel => "not_found_error",
            ApiError::QueueFull { .. } => "rate_limit_error",
            ApiError::Unavailable { .. } => "unavailable_error",
            ApiError::Model | ApiError::Internal => "server_error",
            _ => INVALID_REQUEST,
        }
    }

    /// A stable word that programs may compare.
    fn code(&self) -> &'static str {
        match self {
            ApiError::Invalid { .. } => "invalid_value",
            ApiError::Unsupported { .. } => "unsupported_value",
            ApiError::MalformedJson(_) => "malformed_json",
            ApiError::MalformedRequest(_) => "malformed_request",
            ApiError::ContextLength { .. } => "context_length_exceeded",
            ApiError::MissingKey => "missing_api_key",
            ApiError::BadKey => "invalid_api_key",
            ApiError::Forbidden => "forbidden",
            ApiError::UnknownRoute => "unknown_route",
            ApiError::UnknownModel | ApiError::NoEmbeddingModel => "model_not_found",
            ApiError::MethodNotAllowed => "method_not_allowed",
            ApiError::SlowBody => "request_timeout",
            ApiError::BodyTooLarge { .. } => "body_too_large",
            ApiError::ContentType => "unsupported_media_type",
            ApiError::HeadTooLarge => "head_too_large",
            ApiError::UriTooLong => "uri_too_long",
            ApiError::QueueFull { .. } => "queue_full",
            ApiError::Unavailable { .. } => "unavailable",
            ApiError::Model => "model_error",
            ApiError::Internal => "internal_error",
        }
    }

    fn param(&self) -> Option<&str> {
        match self {
            ApiError::Invalid { param, .. } | ApiError::Unsupported { param, .. } => Some(param),
            ApiError::ContextLength { param, .. } => Some(param),
            ApiError::UnknownModel | ApiError::NoEmbeddingModel => Some("model"),
            _ => None,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            ApiError::QueueFull { retry_after } | ApiError::Unavailable { retry_after, .. } => {
                Some(*retry_after)
            }
            _ => None,
        }
    }

    /// The body, also used for an error in the middle of a stream.
    pub(crate) fn to_json(&self) -> String {
        let body = ErrorBody {
            error: ErrorFields {
                message: self.to_string(),
                kind: self.kind(),
                param: self.param(),
                code: self.code(),
            },
        };
        serde_json::to_string(&body).expect("strings serialise")
    }
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    error: ErrorFields<'a>,
}

#[derive(Serialize)]
struct ErrorFields<'a> {
    message: String,
    #[serde(rename = "type")]
    kind: &'a str,
    param: Option<&'a str>,
    code: &'a str,
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status(), self.to_json()).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(retry_after) = self.retry_after() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(retry_after.as_secs().clamp(1, 60)));
        }
        if self.status() == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.status() == StatusCode::INTERNAL_SERVER_ERROR {
            // The same request would fail again; the SDKs retry a 500 unless told otherwise.
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        if matches!(self, ApiError::SlowBody | ApiError::BodyTooLarge { .. }) {
            // The rest of the body is still on its way and nobody will read it.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_has_openai_shape_and_names_the_field() {
        let error = ApiError::invalid("temperature", "must lie between 0 and 2");
        assert_eq!(
            error.to_json(),
            r#"{"error":{"message":"'temperature' must lie between 0 and 2","type":"invalid_request_error","param":"temperature","code":"invalid_value"}}"#
        );
    }

    #[test]
    fn overflow_is_what_agents_look_for() {
        let error = ApiError::ContextLength {
            max_model_len: 2048,
            found: "The prompt has 3000 tokens".into(),
            param: "messages",
        };
        assert_eq!(error.status(), StatusCode::BAD_REQUEST);
        assert_eq!(error.code(), "context_length_exceeded");
        assert!(error.to_string().contains("maximum context length is 2048 tokens"));
    }

    #[test]
    fn overload_says_when_to_come_back() {
        let full = ApiError::QueueFull { retry_after: Duration::from_millis(10) }.into_response();
        assert_eq!(full.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(full.headers()[header::RETRY_AFTER], "1");
        let draining =
            ApiError::Unavailable { reason: "the server is draining", retry_after: Duration::from_secs(5) };
        let draining = draining.into_response();
        assert_eq!(draining.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(draining.headers()[header::RETRY_AFTER], "5");
    }
}
