//! What may stand in the dynamic configuration: every known key's kind and range, for refusal before it is stored, and what is
//! accepted but will not do what it seems to say.

use crate::admission::{self, Section as Place};
use crate::citus::{Prefer, address_of as address};
use crate::config::{ConfigError, DynamicConfig};
use crate::given::{self, seconds, switch};
use crate::lease;
use serde_json::{Map, Value};

/// What belongs at a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A whole number, at least this; as text, too, and then with an `s` for seconds.
    Whole(i64),
    /// The same with a greatest value, which is given with its reason.
    Between(i64, i64, &'static str),
    /// `on`, `off`, `true`, `false`, as YAML or as text.
    Switch,
    /// A switch, or the word `quorum`.
    SwitchOrQuorum,
    /// `off`, `observe` or `act`.
    SickPrimary,
    /// `true` or `false`, nothing else.
    Boolean,
    /// Seconds, or text with a unit: `30min`.
    Span,
    /// A section.
    Section,
    /// A list.
    List,
    /// A section or a list.
    Options,
    /// Text.
    Text,
    /// `host` or `host:port`.
    HostPort,
    /// What comes first in a planned change of a Citus worker.
    Preference,
    /// It counts from the node's own file only.
    FromTheFile,
}

use Kind::*;

/// The keys at the top, as the field knows them.
const TOP: [(&str, Kind); 38] = [
    (
        "ttl",
        Between(
            lease::TTL_MINIMUM.as_secs() as i64,
            lease::TTL_MAXIMUM.as_secs() as i64,
            ": after a failure writes would wait longer than a day, and tenure.ttl takes no more",
        ),
    ),
    ("loop_wait", Whole(1)),
    ("retry_timeout", Whole(1)),
    ("maximum_lag_on_failover", Whole(0)),
    ("maximum_lag_on_syncnode", Whole(-1)),
    ("max_timelines_history", Whole(0)),
    ("primary_start_timeout", Whole(0)),
    ("master_start_timeout", Whole(0)),
    ("primary_stop_timeout", Whole(0)),
    ("master_stop_timeout", Whole(0)),
    ("primary_race_backoff", Whole(0)),
    ("synchronous_node_count", Whole(0)),
    ("synchronous_domains", Between(0, 1, ": 1 asks for a confirmation in another failure domain, and more than that is not served")),
    ("check_timeline", Switch),
    ("failsafe_mode", Switch),
    ("pause", Switch),
    ("synchronous_mode", SwitchOrQuorum),
    ("synchronous_mode_strict", Switch),
    ("member_slots_ttl", Span),
    ("missed_member_ttl", Span),
    ("backup_within", Span),
    ("slots", Section),
    ("permanent_slots", Section),
    ("permanent_replication_slots", Section),
    ("ignore_slots", List),
    ("hold_back_logical", Switch),
    ("sick_primary", SickPrimary),
    ("sick_primary_slow", Span),
    ("sick_primary_after", Span),
    ("sick_primary_pause", Span),
    ("sick_primary_disk_free_mb", Whole(0)),
    ("sick_primary_reserve_mb", Whole(0)),
    ("deposition", Switch),
    ("standby_cluster", Section),
    ("postgresql", Section),
    ("tags", Section),
    ("watchdog", Section),
    ("citus", Section),
];

/// The keys below `postgresql`.
const POSTGRESQL: [(&str, Kind); 34] = [
    ("parameters", Section),
    ("parameters_primary", Section),
    ("parameters_replica", Section),
    ("parameters_standby_leader", Section),
    ("use_slots", Boolean),
    ("use_pg_rewind", Boolean),
    ("remove_data_directory_on_rewind_failure", Boolean),
    ("remove_data_directory_on_diverged_timelines", Boolean),
    ("pg_hba", List),
    ("pg_hba_primary", List),
    ("pg_hba_replica", List),
    ("pg_hba_standby_leader", List),
    ("pg_ident", List),
    ("pg_ident_primary", List),
    ("pg_ident_replica", List),
    ("pg_ident_standby_leader", List),
    ("recovery_conf", Section),
    ("basebackup", Options),
    ("rewind", Options),
    ("create_replica_methods", List),
    ("create_replica_method", List),
    ("pg_ctl_timeout", Whole(1)),
    ("krbsrvname", Text),
    ("use_unix_socket", Boolean),
    ("use_unix_socket_repl", Boolean),
    ("config_base_name", FromTheFile),
    ("custom_conf", FromTheFile),
    ("database", FromTheFile),
    ("bin_name", FromTheFile),
    ("callbacks", FromTheFile),
    ("pre_promote", FromTheFile),
    ("before_stop", FromTheFile),
    ("authentication", FromTheFile),
    ("pgpass", FromTheFile),
];

/// The longest `citus.grace` in seconds.
pub const GRACE_MAX_S: i64 = 300;

/// The keys below `citus`: what the coordinator is to know of this group.
const CITUS: [(&str, Kind); 11] = [
    ("primary_address", HostPort),
    ("standby_address", HostPort),
    ("use_proxy", Boolean),
    ("grace", Between(0, GRACE_MAX_S, ": clients would wait for longer than anybody waits")),
    ("prefer", Preference),
    ("hold_reads", FromTheFile),
    ("group", FromTheFile),
    ("database", FromTheFile),
    ("databases", FromTheFile),
    ("lock_cooldown", FromTheFile),
    ("end_sessions_at_promotion", FromTheFile),
];

/// The names that are nearest to an unknown one, where one is near enough to be what was meant.
fn nearest(name: &str, known: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    let near = known.min_by_key(|known| strsim::damerau_levenshtein(name, known))?;
    (strsim::damerau_levenshtein(name, near) <= 1 + name.chars().count() / 4).then_some(near)
}

/// YAML reads a bare `off` as false.
fn is_sick_primary(value: &Value) -> bool {
    let word = value.as_str().map(str::to_lowercase);
    *value == Value::Bool(false) || matches!(word.as_deref(), Some("off" | "observe" | "act"))
}

/// A number of seconds has no fraction here, and is not less than nothing.
fn is_span(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.as_u64().is_some(),
        value => seconds(value).is_some(),
    }
}

/// The same for a whole number.
fn whole(value: &Value) -> Option<i64> {
    given::whole(value).filter(|_| !value.is_f64())
}

/// What stands there, in as many words as an error has room for.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 { text } else { text.chars().take(57).chain("...".chars()).collect() }
}

impl Kind {
    fn fault(self, key: &str, value: &Value) -> Option<ConfigError> {
        let expected = match self {
            Whole(_) | Between(..) if whole(value).is_none() => "a whole number",
            Whole(least) => return too_small(key, value, least),
            Between(least, most, why) => return too_small(key, value, least).or_else(|| too_great(key, value, most, why)),
            Switch if switch(value).is_none() => "on or off",
            SwitchOrQuorum if switch(value).is_none() && *value != "quorum" => "on, off or quorum",
            SickPrimary if !is_sick_primary(value) => "off, observe or act",
            Boolean if !value.is_boolean() => "true or false",
            Span if !is_span(value) => "seconds, or a number with s, min, h or d",
            Section if !value.is_object() => "a section",
            List if !value.is_array() => "a list",
            Options if !value.is_object() && !value.is_array() => "a section or a list",
            Text if !value.is_string() => "text",
            Preference if value.as_str().and_then(Prefer::of).is_none() => "change or statements",
            HostPort if address(value).is_none() => "host or host:port",
            _ => return None,
        };
        Some(ConfigError::Type { key: key.to_owned(), found: shown(value), expected })
    }
}

fn too_small(key: &str, value: &Value, least: i64) -> Option<ConfigError> {
    let number = whole(value).filter(|number| *number < least)?;
    let why = match key {
        "ttl" => ": etcd grants no shorter lease that survives one missed answer",
        _ => "",
    };
    Some(ConfigError::Range { key: key.to_owned(), found: number.to_string(), rule: format!("at least {least}{why}") })
}

fn too_great(key: &str, value: &Value, most: i64, why: &str) -> Option<ConfigError> {
    let number = whole(value).filter(|number| *number > most)?;
    Some(ConfigError::Range { key: key.to_owned(), found: number.to_string(), rule: format!("at most {most}{why}") })
}

/// A parameter's value has to be one value, and its name one that this section may set on some server.
fn parameter_faults(section: &str, place: Place, parameters: &Map<String, Value>, faults: &mut Vec<ConfigError>) {
    for (name, value) in parameters {
        let key = format!("{section}.{name}");
        if value.is_null() && admission::is_name(name) {
            continue;
        }
        if let Some(why) = admission::never(place, name) {
            faults.push(ConfigError::Range { key, found: shown(value), rule: why.to_owned() });
        } else if value.is_object() || value.is_array() || value.as_str().is_some_and(|text| text.contains(['\n', '\r', '\0'])) {
            faults.push(ConfigError::Type { key, found: shown(value), expected: "one value on one line" });
        }
    }
}

/// A logical slot's plugin is a library that the server loads: one of those that are installed, by its name.
fn slot_faults(section: &str, slots: &Map<String, Value>, faults: &mut Vec<ConfigError>) {
    for (name, slot) in slots {
        let Some(plugin) = slot.get("plugin").and_then(Value::as_str).filter(|plugin| !crate::slots::is_plugin(plugin)) else { continue };
        let rule = "a plugin is named without a path".to_owned();
        faults.push(ConfigError::Range { key: format!("{section}.{name}.plugin"), found: shown(&Value::from(plugin)), rule });
    }
}

fn walk(section: &Map<String, Value>, path: &str, known: &'static [(&'static str, Kind)], more: &[&str], faults: &mut Vec<ConfigError>) {
    for (name, value) in section.iter().filter(|(_, value)| !value.is_null()) {
        let key = format!("{path}{name}");
        match known.iter().find(|(known, _)| known == name) {
            Some((_, kind)) => faults.extend(kind.fault(&key, value)),
            None if more.contains(&name.as_str()) => {}
            None => faults.push(ConfigError::Unknown { key, nearest: nearest(name, known.iter().map(|(known, _)| *known)) }),
        }
    }
}

/// Takes a dotted key out; the last part may hold dots itself.
fn remove(section: &mut Map<String, Value>, key: &str) {
    if section.remove(key).is_some() {
        return;
    }
    if let Some((first, rest)) = key.split_once('.')
        && let Some(below) = section.get_mut(first).and_then(Value::as_object_mut)
    {
        remove(below, rest);
    }
}

impl DynamicConfig {
    /// Everything in the document that could not be used as it stands, for refusal before it is stored.
    pub fn faults(&self) -> Vec<ConfigError> {
        let mut faults = Vec::new();
        walk(&self.0, "", &TOP, &[], &mut faults);
        if let Some(section) = self.postgresql() {
            // A section named by the list of methods belongs to that method.
            let lists = ["create_replica_methods", "create_replica_method"].into_iter().filter_map(|key| section.get(key)?.as_array());
            let methods: Vec<&str> = lists.flatten().filter_map(Value::as_str).collect();
            walk(section, "postgresql.", &POSTGRESQL, &methods, &mut faults);
            for name in ["parameters", "parameters_primary", "parameters_replica", "parameters_standby_leader", "recovery_conf"] {
                let place = if name == "recovery_conf" { Place::RecoveryConf } else { Place::Parameters };
                if let Some(parameters) = section.get(name).and_then(Value::as_object) {
                    parameter_faults(&format!("postgresql.{name}"), place, parameters, &mut faults);
                }
            }
        }
        for name in ["slots", "permanent_slots", "permanent_replication_slots"] {
            if let Some(slots) = self.0.get(name).and_then(Value::as_object) {
                slot_faults(name, slots, &mut faults);
            }
        }
        if let Some(section) = self.0.get("citus").and_then(Value::as_object) {
            walk(section, "citus.", &CITUS, &[], &mut faults);
        }
        if let Some(value) = self.0.get("standby_cluster").filter(|value| value.is_object())
            && self.standby_cluster().is_none()
        {
            let expected = "a section with host, port or restore_command";
            faults.push(ConfigError::Type { key: "standby_cluster".to_owned(), found: shown(value), expected });
        }
        faults
    }

    /// This document as the first one of a cluster: what cannot be used and is no mistake in another's name is left out (told in the second
    /// place), since with it every later change would be refused. What has the wrong type or looks like a slip of the pen is an error:
    /// a cluster must not be founded on a guess.
    pub fn for_founding(&self) -> Result<(DynamicConfig, Vec<ConfigError>), Vec<ConfigError>> {
        let parameter = |key: &str| {
            key.strip_prefix("postgresql.").is_some_and(|key| key.starts_with("parameters") || key.starts_with("recovery_conf"))
        };
        let passed = |fault: &ConfigError| match fault {
            ConfigError::Unknown { nearest, .. } => nearest.is_none(),
            ConfigError::Type { key, .. } | ConfigError::Range { key, .. } => parameter(key) && key.matches('.').count() > 1,
        };
        let (left_out, wrong): (Vec<_>, Vec<_>) = self.faults().into_iter().partition(passed);
        if !wrong.is_empty() {
            return Err(wrong);
        }
        let mut document = self.0.clone();
        for fault in &left_out {
            remove(&mut document, fault.key());
        }
        Ok((DynamicConfig(document), left_out))
    }

    /// What is accepted and yet differs from what people will expect of it, one sentence each.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let given = |key: &str| self.0.get(key).and_then(whole);
        let timing = self.timing();
        let (ttl, loop_wait, retry) = (timing.ttl.as_secs(), timing.loop_wait.as_secs(), timing.retry_timeout.as_secs());
        let changed = |key: &str, used: u64| given(key).is_some_and(|given| u64::try_from(given).is_ok_and(|given| given != used));
        if changed("loop_wait", loop_wait) || changed("retry_timeout", retry) {
            notes.push(format!(
                "loop_wait + 2 * retry_timeout may not be more than ttl, so that a member can look and try twice while its lease runs: with ttl {ttl} the members use loop_wait {loop_wait} and retry_timeout {retry}"
            ));
        }
        for section in ["parameters", "parameters_primary", "parameters_replica", "parameters_standby_leader"] {
            if let Some(parameters) = self.postgresql().and_then(|map| map.get(section)).and_then(Value::as_object) {
                notes.extend(crate::renamed::notes(&format!("postgresql.{section}"), parameters));
            }
        }
        let sections = [("postgresql", &POSTGRESQL[..]), ("citus", &CITUS[..])];
        for (section, name, kind) in
            sections.into_iter().flat_map(|(section, known)| known.iter().map(move |(name, kind)| (section, *name, *kind)))
        {
            let given = self.0.get(section).and_then(Value::as_object).is_some_and(|values| values.contains_key(name));
            if kind == FromTheFile && given {
                notes.push(format!("{section}.{name} has no effect here: it counts from each node's own file only"));
            }
        }
        notes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(json: &str) -> String {
        let config = DynamicConfig(serde_json::from_str(json).unwrap());
        config.faults().iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn what_people_write_is_accepted() {
        for json in [
            "{}",
            r#"{"ttl":30,"loop_wait":10,"retry_timeout":"10s","maximum_lag_on_failover":1048576,"maximum_lag_on_syncnode":-1}"#,
            r#"{"synchronous_mode":"quorum","synchronous_mode_strict":"on","failsafe_mode":true,"pause":null,"member_slots_ttl":"30min"}"#,
            r#"{"postgresql":{"use_slots":true,"parameters":{"work_mem":"4MB","pg_stat_statements.max":100,"fsync":true,"x":null}}}"#,
            r#"{"postgresql":{"create_replica_methods":["wal_e","basebackup"],"wal_e":{"command":"x"},"pg_hba":["local all all trust"]}}"#,
            r#"{"sick_primary":false,"sick_primary_slow":"2s","sick_primary_disk_free_mb":0}"#,
            r#"{"sick_primary":"act","sick_primary_pause":"10min"}"#,
            r#"{"slots":{"a":{"type":"physical"}},"ignore_slots":[{"name":"b"}],"standby_cluster":{"host":"h"}}"#,
            r#"{"citus":{"primary_address":"rw.example","standby_address":"10.0.0.9:6000","use_proxy":true}}"#,
        ] {
            assert_eq!(faults(json), "", "{json}");
        }
    }

    #[test]
    fn each_fault_names_the_key_and_what_belongs_there() {
        for (json, expected) in [
            (r#"{"ttl":2}"#, "ttl is 2: at least 3: etcd grants no shorter lease that survives one missed answer"),
            (
                r#"{"standby_cluster":{"hosts":"a"}}"#,
                r#"standby_cluster is {"hosts":"a"}, expected a section with host, port or restore_command"#,
            ),
            (r#"{"loop_wait":"soon"}"#, r#"loop_wait is "soon", expected a whole number"#),
            (r#"{"loop_wait":0}"#, "loop_wait is 0: at least 1"),
            (r#"{"tll":30}"#, "tll is not a known setting; did you mean ttl?"),
            (r#"{"synchronus_mode":true}"#, "synchronus_mode is not a known setting; did you mean synchronous_mode?"),
            (r#"{"favourite_colour":1}"#, "favourite_colour is not a known setting"),
            (r#"{"synchronous_mode":"sometimes"}"#, r#"synchronous_mode is "sometimes", expected on, off or quorum"#),
            (r#"{"sick_primary":"on"}"#, r#"sick_primary is "on", expected off, observe or act"#),
            (r#"{"pause":3}"#, "pause is 3, expected on or off"),
            (r#"{"member_slots_ttl":"soon"}"#, r#"member_slots_ttl is "soon", expected seconds, or a number with s, min, h or d"#),
            (r#"{"postgresql":3}"#, "postgresql is 3, expected a section"),
            (r#"{"postgresql":{"use_slots":"yes"}}"#, r#"postgresql.use_slots is "yes", expected true or false"#),
            (r#"{"postgresql":{"paramters":{}}}"#, "postgresql.paramters is not a known setting; did you mean parameters?"),
            (r#"{"postgresql":{"parameters":{"work_mem":[1]}}}"#, "postgresql.parameters.work_mem is [1], expected one value on one line"),
            (
                r#"{"postgresql":{"parameters":{"work mem":1}}}"#,
                "postgresql.parameters.work mem is 1: that is no name of a PostgreSQL parameter",
            ),
            (r#"{"slots":[]}"#, "slots is [], expected a section"),
            (
                r#"{"ttl":90000}"#,
                "ttl is 90000: at most 86400: after a failure writes would wait longer than a day, and tenure.ttl takes no more",
            ),
            (
                r#"{"slots":{"a":{"type":"logical","database":"d","plugin":"/tmp/evil"}}}"#,
                r#"slots.a.plugin is "/tmp/evil": a plugin is named without a path"#,
            ),
            (
                r#"{"postgresql":{"parameters":{"include_if_exists":"/tmp/x"}}}"#,
                r#"postgresql.parameters.include_if_exists is "/tmp/x": it reads another file, and no configuration of ours does"#,
            ),
            (
                r#"{"postgresql":{"parameters_replica":{"Tenure.Etcd_Endpoints":"http://x"}}}"#,
                r#"postgresql.parameters_replica.Tenure.Etcd_Endpoints is "http://x": of the tenure.* settings only fence_wait, fence_reads and minimum_synchronous_commit can be set for the whole cluster"#,
            ),
            (
                r#"{"postgresql":{"recovery_conf":{"work_mem":"1MB"}}}"#,
                r#"postgresql.recovery_conf.work_mem is "1MB": that is no setting of recovery: it belongs in postgresql.parameters"#,
            ),
        ] {
            assert_eq!(faults(json), expected, "{json}");
        }
    }

    #[test]
    fn a_cluster_is_not_founded_on_a_guess_and_not_kept_from_it_by_what_nobody_knows() {
        let founding = |json: &str| DynamicConfig(serde_json::from_str(json).unwrap()).for_founding();
        for json in [r#"{"ttl":"abc"}"#, r#"{"tttl":5}"#, r#"{"postgresql":{"paramters":{}}}"#, r#"{"synchronus_mode":true}"#] {
            assert_eq!(founding(json).unwrap_err().len(), 1, "{json}");
        }
        let (document, left_out) = founding(
            r#"{"ttl":10,"favourite_colour":1,"postgresql":{"frobnicate":2,"parameters":{"a.b":"x","work mem":1,"include":"/x","work_mem":"4MB"}}}"#,
        )
        .unwrap();
        assert_eq!(left_out.len(), 4, "{left_out:?}");
        let expected = r#"{"ttl":10,"postgresql":{"parameters":{"a.b":"x","work_mem":"4MB"}}}"#;
        assert_eq!(document, DynamicConfig(serde_json::from_str(expected).unwrap()));
        assert_eq!(document.faults(), []);
    }

    #[test]
    fn what_will_be_otherwise_is_said() {
        let notes = |json: &str| DynamicConfig(serde_json::from_str(json).unwrap()).notes();
        assert_eq!(notes(r#"{"ttl":30,"loop_wait":10,"retry_timeout":10}"#), Vec::<String>::new());
        assert_eq!(notes(r#"{"ttl":5}"#), Vec::<String>::new(), "nobody gave the others");
        let said = notes(r#"{"ttl":5,"loop_wait":2,"retry_timeout":2}"#);
        assert!(said.len() == 1 && said[0].contains("with ttl 5 the members use loop_wait 1 and retry_timeout 2"), "{said:?}");
        assert!(notes(r#"{"postgresql":{"callbacks":{}}}"#)[0].contains("postgresql.callbacks has no effect"));
    }
}
