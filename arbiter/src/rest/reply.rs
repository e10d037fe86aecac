//! An answer of REST in the making: status, text, and what its headers say besides.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use serde::Serialize;

/// An answer in the making.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Status code.
    pub status: u16,
    pub(super) content: &'static str,
    /// Its text.
    pub body: String,
    /// What the client should know besides: headers `Warning`, so that the body stays what the field's tools expect.
    pub warnings: Vec<String>,
    /// What there is to say beside a text that tools compare as a whole; goes into the header `X-Tenure-Reason`.
    pub reason: Option<String>,
}

impl Reply {
    /// A sentence; the field calls it HTML, as old clients expect.
    pub fn text(status: u16, body: impl Into<String>) -> Reply {
        Reply { status, content: "text/html", body: body.into(), warnings: Vec::new(), reason: None }
    }

    /// With what the text, which is the field's, does not tell.
    pub fn because(self, reason: impl Into<String>) -> Reply {
        Reply { reason: Some(reason.into()), ..self }
    }

    /// A JSON document.
    pub fn json(status: u16, value: &impl Serialize) -> Reply {
        match serde_json::to_string(value) {
            Ok(body) => Reply { status, content: "application/json", body, warnings: Vec::new(), reason: None },
            Err(error) => Reply::text(500, error.to_string()),
        }
    }

    pub(super) fn response(self, bare: bool) -> Response {
        let mut response = Response::new(if bare { Body::empty() } else { Body::from(self.body) });
        *response.status_mut() = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if !bare {
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(self.content));
        }
        for warning in &self.warnings {
            // A header is one line of ASCII: what else it holds is shown escaped.
            let text: String = warning.replace('"', "'").chars().flat_map(char::escape_default).collect();
            if let Ok(value) = HeaderValue::from_str(&format!("299 tenure \"{}\"", text.replace("\\'", "'"))) {
                response.headers_mut().append(header::WARNING, value);
            }
        }
        if let Some(reason) = self.reason.and_then(|reason| HeaderValue::from_str(&reason).ok()) {
            response.headers_mut().insert("x-tenure-reason", reason);
        }
        if self.status == 401 {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"Patroni\""));
        }
        response
    }
}

/// An answer of one sentence, for people.
pub(super) fn sentence(status: StatusCode, text: &'static str) -> Response {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
