//! Reading a request's body: the right type, within its size, within its time.

use axum::body::{Bytes, HttpBody};
use axum::extract::Request;
use http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};

use crate::RequestLimits;
use crate::error::ApiError;

/// The bytes of a JSON body.
pub(crate) async fn read(request: Request, limits: &RequestLimits) -> Result<Bytes, ApiError> {
    check_type(request.headers())?;
    let max_body_bytes = limits.max_body_bytes;
    let too_large = || ApiError::BodyTooLarge { max_body_bytes };
    let body = request.into_body();
    if body.size_hint().lower() > max_body_bytes as u64 {
        return Err(too_large());
    }
    let collected = Limited::new(body, max_body_bytes).collect();
    match tokio::time::timeout(limits.body_timeout, collected).await {
        Err(_elapsed) => Err(ApiError::SlowBody),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_broken)) => Err(ApiError::MalformedRequest("the body is broken or incomplete")),
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
    }
}

/// Only JSON, and only if it says so: a browser may send a body without a type, or as plain text, to any server without
/// asking; it may not send this one.
fn check_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let essence = content_type.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    let is_json = essence == "application/json"
        || essence.strip_prefix("application/").is_some_and(|rest| rest.ends_with("+json"));
    let is_plain = headers.get(header::CONTENT_ENCODING).is_none_or(|encoding| encoding == "identity");
    if is_json && is_plain { Ok(()) } else { Err(ApiError::ContentType) }
}
