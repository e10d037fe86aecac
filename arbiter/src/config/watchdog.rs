//! The section `watchdog`: which device, whether it must be there, and how long before the TTL it fires.

use super::WatchdogConfig;
use super::tree::{At, truth};
use cluster::watchdog::Mode;
use std::path::PathBuf;

impl Default for WatchdogConfig {
    /// As with Patroni: the device is used where the arbiter's user may open it.
    fn default() -> WatchdogConfig {
        WatchdogConfig { mode: Mode::default(), device: PathBuf::from("/dev/watchdog"), safety_margin_s: 5 }
    }
}

/// The defaults where the section is absent.
pub fn watchdog(at: &At<'_>) -> WatchdogConfig {
    let default = WatchdogConfig::default();
    if at.map().is_none() {
        return default;
    }
    let (mode, margin) = (at.at("mode"), at.at("safety_margin"));
    WatchdogConfig {
        mode: mode.value.map_or(Some(default.mode), |_| read_mode(&mode)).unwrap_or(default.mode),
        device: at.at("device").path().unwrap_or(default.device),
        safety_margin_s: margin.value.map_or(Some(default.safety_margin_s), |_| read_margin(&margin)).unwrap_or(default.safety_margin_s),
    }
}

/// A bare `off` is a truth value to YAML 1.1.
fn read_mode(at: &At<'_>) -> Option<Mode> {
    let off = at.value.and_then(truth) == Some(false);
    let mode = if off { Some(Mode::Off) } else { at.value.and_then(|value| Mode::parse(value.as_str()?)) };
    if mode.is_none() {
        at.note("expected off, automatic or required");
    }
    mode
}

fn read_margin(at: &At<'_>) -> Option<i64> {
    let number = at.value.and_then(|value| value.as_i64().or_else(|| value.as_str()?.trim().parse().ok())).filter(|number| *number >= -1);
    if number.is_none() {
        at.note("expected a whole number of seconds, or -1 for half the TTL");
    }
    number
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    fn read(yaml: &str) -> (WatchdogConfig, Vec<String>) {
        let root = super::super::tree::parse(yaml).unwrap();
        let errors = RefCell::default();
        let config = watchdog(&At::root(&root, "watchdog", &errors));
        (config, errors.into_inner())
    }

    #[test]
    fn as_patronis_users_know_it() {
        for (yaml, mode, device, margin) in [
            ("scope: x", Mode::Automatic, "/dev/watchdog", 5),
            ("watchdog: {mode: off}", Mode::Off, "/dev/watchdog", 5),
            ("watchdog: {mode: 'off'}", Mode::Off, "/dev/watchdog", 5),
            ("watchdog: {mode: required, device: /dev/watchdog1, safety_margin: -1}", Mode::Required, "/dev/watchdog1", -1),
            ("watchdog: {safety_margin: '3'}", Mode::Automatic, "/dev/watchdog", 3),
        ] {
            let expected = WatchdogConfig { mode, device: PathBuf::from(device), safety_margin_s: margin };
            assert_eq!(read(yaml), (expected, vec![]), "{yaml}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (yaml, key) in [
            ("watchdog: {mode: always}", "watchdog.mode"),
            ("watchdog: {mode: on}", "watchdog.mode"),
            ("watchdog: {safety_margin: -2}", "watchdog.safety_margin"),
            ("watchdog: {device: 5}", "watchdog.device"),
            ("watchdog: 5", "watchdog"),
        ] {
            let errors = read(yaml).1;
            assert!(errors.len() == 1 && errors[0].starts_with(key), "{yaml}: {errors:?}");
        }
    }
}
