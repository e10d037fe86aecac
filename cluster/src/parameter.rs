//! May PostgreSQL take this value? Judged from what a running server says of the parameter, before a wrong one is stored: a value
//! that the server refuses keeps it from starting.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What `pg_settings` says of a parameter.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Parameter {
    /// `bool`, `enum`, `integer`, `real` or `string`.
    pub vartype: String,
    /// The unit of a bare number.
    #[serde(default)]
    pub unit: Option<String>,
    /// The least value, in that unit.
    #[serde(default)]
    pub min_val: Option<String>,
    /// The greatest value, in that unit.
    #[serde(default)]
    pub max_val: Option<String>,
    /// The words of an enum.
    #[serde(default)]
    pub enumvals: Option<Vec<String>>,
    /// `internal`, `postmaster`, `sighup`, ...
    #[serde(default)]
    pub context: String,
}

/// The parameters that a server knows, by their names in small letters.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Catalogue {
    /// By name.
    pub parameters: BTreeMap<String, Parameter>,
    /// It is what a running server says, with its libraries and with units and ranges. Otherwise it comes from the program, which
    /// lists neither what an extension brings nor what is for developers.
    pub complete: bool,
}

impl Catalogue {
    /// From `postgres --describe-config`: one line each, with tabs between name, context, group, type, default, least, most and two texts.
    pub fn described(text: &str) -> Catalogue {
        let parameter = |line: &str| {
            let mut words = line.split('\t');
            let (name, context, _group, kind) = (words.next()?, words.next()?, words.next()?, words.next()?);
            let vartype = match kind {
                "BOOLEAN" => "bool",
                "ENUM" => "enum",
                "INTEGER" => "integer",
                "REAL" => "real",
                // A kind that nobody knows is judged like the most dangerous one.
                _ => "string",
            };
            let parameter = Parameter { vartype: vartype.to_owned(), context: context.to_owned(), ..Parameter::default() };
            Some((name.to_lowercase(), parameter))
        };
        Catalogue { parameters: text.lines().filter_map(parameter).collect(), complete: false }
    }

    /// What the server says of this parameter.
    pub fn get(&self, name: &str) -> Option<&Parameter> {
        self.parameters.get(&name.to_lowercase())
    }

    /// The server does not know it, and yet it may be a library's that will be loaded one day: its name has a prefix under which nothing
    /// is known here.
    pub fn may_be_known_later(&self, name: &str) -> bool {
        let Some((prefix, _)) = name.split_once('.') else { return false };
        let prefix = format!("{}.", prefix.to_lowercase());
        !self.parameters.range(prefix.clone()..).next().is_some_and(|(known, _)| known.starts_with(&prefix))
    }
}

/// Units of memory in bytes and of time in microseconds, by PostgreSQL's words.
fn unit(word: &str) -> Option<(f64, bool)> {
    let kib = 1024.0;
    Some(match word {
        "B" => (1.0, true),
        "kB" => (kib, true),
        "MB" => (kib * kib, true),
        "GB" => (kib * kib * kib, true),
        "TB" => (kib * kib * kib * kib, true),
        "us" => (1.0, false),
        "ms" => (1e3, false),
        "s" => (1e6, false),
        "min" => (6e7, false),
        "h" => (3.6e9, false),
        "d" => (8.64e10, false),
        _ => return None,
    })
}

/// A number in the parameter's own unit; None where it is no number, or its unit measures something else.
fn number(text: &str, own: Option<&str>) -> Option<f64> {
    let text = text.trim();
    if let Some(hexadecimal) = text.strip_prefix("0x") {
        return i64::from_str_radix(hexadecimal, 16).ok().map(|number| number as f64);
    }
    // As in C: modes of files are written and shown so.
    if text.len() > 1 && text.starts_with('0') && text.chars().all(|c| c.is_digit(8)) {
        return i64::from_str_radix(text, 8).ok().map(|number| number as f64);
    }
    let split = text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '-' | '+' | 'e' | 'E'))).unwrap_or(text.len());
    let value: f64 = text[..split].parse().ok()?;
    let word = text[split..].trim();
    if word.is_empty() {
        return Some(value);
    }
    let own = own?;
    // `8kB` is a block: a number of them and a unit.
    let digits = own.find(|c: char| !c.is_ascii_digit()).unwrap_or(0);
    let (own_scale, own_memory) = unit(&own[digits..])?;
    let own_scale = own_scale * own[..digits].parse::<f64>().unwrap_or(1.0);
    let (scale, memory) = unit(word)?;
    (memory == own_memory).then_some(value * scale / own_scale)
}

/// Why the server would refuse this value, if it would, as far as `pg_settings` tells.
pub fn refusal(parameter: &Parameter, value: &str) -> Option<String> {
    if parameter.context == "internal" {
        return Some("it can't be set at all".to_owned());
    }
    let limit = |text: &Option<String>| text.as_ref().and_then(|text| text.parse::<f64>().ok());
    match parameter.vartype.as_str() {
        "bool" => {
            let word = value.trim().to_ascii_lowercase();
            let long = ["true", "false", "yes", "no"].iter().any(|known| !word.is_empty() && known.starts_with(&word));
            (!long && !matches!(word.as_str(), "on" | "of" | "off" | "1" | "0")).then(|| "expected on or off".to_owned())
        }
        "enum" => {
            let known = parameter.enumvals.as_ref()?;
            // Hidden words (true for on, ...) are not listed: booleans among them are let through.
            let hidden = ["true", "false", "yes", "no", "1", "0"].contains(&value.trim().to_ascii_lowercase().as_str());
            (!hidden && !known.iter().any(|word| word.eq_ignore_ascii_case(value.trim())))
                .then(|| format!("expected one of {}", known.join(", ")))
        }
        "integer" | "real" => {
            let unit = parameter.unit.as_deref();
            let Some(number) = number(value, unit) else {
                return Some(match unit {
                    Some(unit) => format!("expected a number, or one with a unit that measures the same as {unit}"),
                    None => "expected a number without a unit".to_owned(),
                });
            };
            let (least, most) = (limit(&parameter.min_val), limit(&parameter.max_val));
            let within = least.is_none_or(|least| number >= least) && most.is_none_or(|most| number <= most);
            let text = |limit: &Option<String>| limit.clone().unwrap_or_else(|| "any".to_owned());
            (!within).then(|| {
                let unit = unit.map(|unit| format!(" {unit}")).unwrap_or_default();
                format!("expected {} to {}{unit}", text(&parameter.min_val), text(&parameter.max_val))
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_program_describes_is_half_a_catalogue() {
        let text = "archive_command\tsighup\tWrite-Ahead Log / Archiving\tSTRING\t\t\t\tSets.\t\nDateStyle\tuser\tx\tSTRING\tISO\t\t\ty\t\nfsync\tsighup\tx\tBOOLEAN\tTRUE\t\t\ty\t\nodd\n";
        let known = Catalogue::described(text);
        assert_eq!(known.parameters.len(), 3);
        assert_eq!(known.get("datestyle").map(|known| known.vartype.as_str()), Some("string"));
        assert_eq!(known.get("FSYNC").map(|known| known.vartype.as_str()), Some("bool"));
        assert!(!known.complete && known.may_be_known_later("citus.x") && !known.may_be_known_later("shared_bufers"));
        let mut known = known;
        known.parameters.insert("citus.shard_count".to_owned(), Parameter::default());
        assert!(!known.may_be_known_later("Citus.shard_cout") && known.may_be_known_later("citu.x"));
    }

    fn parameter(vartype: &str, unit: Option<&str>, range: Option<(&str, &str)>, words: &[&str]) -> Parameter {
        Parameter {
            vartype: vartype.to_owned(),
            unit: unit.map(str::to_owned),
            min_val: range.map(|(least, _)| least.to_owned()),
            max_val: range.map(|(_, most)| most.to_owned()),
            enumvals: (!words.is_empty()).then(|| words.iter().map(|word| (*word).to_owned()).collect()),
            context: "user".to_owned(),
        }
    }

    #[test]
    fn values_are_judged_as_the_server_would() {
        let work_mem = parameter("integer", Some("kB"), Some(("64", "2147483647")), &[]);
        let shared_buffers = parameter("integer", Some("8kB"), Some(("16", "1073741823")), &[]);
        let timeout = parameter("integer", Some("ms"), Some(("0", "2147483647")), &[]);
        let connections = parameter("integer", None, Some(("1", "262143")), &[]);
        let mode = parameter("integer", None, Some(("0", "511")), &[]);
        let cost = parameter("real", None, Some(("0", "1e308")), &[]);
        let switch = parameter("bool", None, None, &[]);
        let level = parameter("enum", None, None, &["minimal", "replica", "logical"]);
        let text = parameter("string", None, None, &[]);
        for (parameter, value, accepted) in [
            (&work_mem, "4MB", true),
            (&work_mem, "64", true),
            (&work_mem, "63", false),
            (&work_mem, "4 GB", true),
            (&work_mem, "9TB", false),
            (&work_mem, "4 seconds", false),
            (&work_mem, "5s", false),
            (&work_mem, "much", false),
            (&shared_buffers, "128MB", true),
            (&shared_buffers, "64kB", false),
            (&timeout, "1min", true),
            (&timeout, "1MB", false),
            (&connections, "100", true),
            (&connections, "0", false),
            (&connections, "100MB", false),
            (&mode, "0600", true),
            (&mode, "384", true),
            (&mode, "01000", false),
            (&cost, "1.1", true),
            (&cost, "-1", false),
            (&switch, "on", true),
            (&switch, "t", true),
            (&switch, "maybe", false),
            (&level, "Logical", true),
            (&level, "everything", false),
            (&text, "anything at all", true),
        ] {
            assert_eq!(refusal(parameter, value).is_none(), accepted, "{value} for {parameter:?}");
        }
        assert!(refusal(&Parameter { context: "internal".into(), ..Default::default() }, "1").is_some());
        assert_eq!(refusal(&level, "x").as_deref(), Some("expected one of minimal, replica, logical"));
    }
}
