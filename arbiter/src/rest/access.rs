//! Who may change something: the one check that every mutating route passes.

use crate::secret::Secret;
use axum::http::{HeaderMap, header};
use base64::Engine;

/// What a caller has to show.
pub struct Access {
    /// The value of `Authorization`, where one is asked for.
    expected: Option<Secret>,
}

impl Access {
    /// From `restapi.authentication`; without it, whoever reaches the port may act, as with Patroni.
    pub fn new(authentication: Option<&(String, Secret)>) -> Access {
        let basic = |(user, password): &(String, Secret)| {
            let pair = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{}", password.reveal()));
            Secret::new(format!("Basic {pair}"))
        };
        Access { expected: authentication.map(basic) }
    }

    /// Does the caller show what is asked for?
    pub fn admits(&self, headers: &HeaderMap) -> bool {
        let Some(expected) = &self.expected else { return true };
        let given = headers.get(header::AUTHORIZATION).map_or(&b""[..], |value| value.as_bytes());
        same(given, expected.reveal().as_bytes())
    }
}

/// Compares in a time that does not depend on where they differ.
fn same(given: &[u8], expected: &[u8]) -> bool {
    let differences = expected.iter().enumerate().fold(0, |found, (at, byte)| found | (byte ^ given.get(at).copied().unwrap_or(!byte)));
    differences == 0 && given.len() == expected.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_pair_is_admitted() {
        let access = Access::new(Some(&("admin".to_owned(), Secret::new("s3cret"))));
        let with = |value: &str| HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]);
        assert!(access.admits(&with("Basic YWRtaW46czNjcmV0")));
        for wrong in ["", "Basic ", "Basic YWRtaW46czNjcmV", "Basic YWRtaW46czNjcmV0x", "Bearer YWRtaW46czNjcmV0"] {
            assert!(!access.admits(&with(wrong)), "{wrong}");
        }
        assert!(!access.admits(&HeaderMap::new()));
        assert!(Access::new(None).admits(&HeaderMap::new()));
    }
}
