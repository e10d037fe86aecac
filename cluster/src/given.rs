//! What a person writes into a document, read: switches, whole numbers and times. What checks a document before it is stored and what goes by
//! it afterwards read it here, so that nothing is taken and then understood otherwise.

use serde_json::Value;

/// Longest time in a document, some thirty years: sums of several still fit, whatever stands in etcd.
pub const SECONDS_MAX: u64 = 1_000_000_000;

/// The words that YAML 1.1, which the field's files are in, and PostgreSQL take for yes and no.
pub fn yes_or_no(text: &str) -> Option<bool> {
    match text.to_lowercase().as_str() {
        "true" | "yes" | "on" => Some(true),
        "false" | "no" | "off" => Some(false),
        _ => None,
    }
}

/// A switch: a truth value, a word for one, or 1 and 0.
pub fn switch(value: &Value) -> Option<bool> {
    let number = |number: i64| match number {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    };
    match value {
        Value::Bool(set) => Some(*set),
        Value::String(text) => yes_or_no(text).or_else(|| text.parse().ok().and_then(number)),
        Value::Number(given) => given.as_i64().and_then(number),
        _ => None,
    }
}

/// A whole number; one of seconds may say so.
pub fn whole(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => number.as_i64().or_else(|| number.as_f64().map(|value| value as i64)),
        Value::String(text) => text.trim().trim_end_matches('s').trim().parse().ok(),
        _ => None,
    }
}

/// A time in seconds: a number, or one with its unit. What is less than nothing is nothing.
pub fn seconds(value: &Value) -> Option<u64> {
    match value {
        Value::Number(number) => {
            let seconds = number.as_u64().or_else(|| number.as_f64().map(|seconds| seconds.max(0.0) as u64));
            seconds.map(|seconds| seconds.min(SECONDS_MAX))
        }
        Value::String(text) => seconds_of(text.trim()),
        _ => None,
    }
}

/// A time as a number of seconds, or with its unit; None where it is none.
pub fn seconds_of(text: &str) -> Option<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..split].parse().ok()?;
    let scale = match text[split..].trim() {
        "" | "s" => 1,
        "min" | "m" => 60,
        "h" => 3600,
        "d" => 86400,
        _ => return None,
    };
    Some(number.saturating_mul(scale).min(SECONDS_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn switches_read_in_every_form_of_the_field() {
        for (value, set) in [
            (json!(true), Some(true)),
            (json!(false), Some(false)),
            (json!("On"), Some(true)),
            (json!("yes"), Some(true)),
            (json!("1"), Some(true)),
            (json!(1), Some(true)),
            (json!("OFF"), Some(false)),
            (json!("0"), Some(false)),
            (json!(0), Some(false)),
            (json!(2), None),
            (json!("perhaps"), None),
            (json!(""), None),
            (json!(null), None),
            (json!([]), None),
        ] {
            assert_eq!(switch(&value), set, "{value}");
        }
    }

    #[test]
    fn numbers_and_times_read_with_and_without_a_unit() {
        for (value, number, time) in [
            (json!(30), Some(30), Some(30)),
            (json!("30"), Some(30), Some(30)),
            (json!(" 30s "), Some(30), Some(30)),
            (json!("30 s"), Some(30), Some(30)),
            (json!("2min"), None, Some(120)),
            (json!("2 h"), None, Some(7200)),
            (json!(2.9), Some(2), Some(2)),
            (json!(-1), Some(-1), Some(0)),
            (json!("-1"), Some(-1), None),
            (json!("18446744073709551615 d"), None, Some(SECONDS_MAX)),
            (json!(1e300), Some(i64::MAX), Some(SECONDS_MAX)),
            (json!("soon"), None, None),
            (json!(true), None, None),
        ] {
            assert_eq!((whole(&value), seconds(&value)), (number, time), "{value}");
        }
    }
}
