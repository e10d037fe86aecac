//! The section `vip`: virtual addresses that the arbiter holds for the primary and for reads, and the interface they are on.

use super::VipConfig;
use super::tree::{At, described};
use ipnet::IpNet;
use serde_json::Value;
use std::net::IpAddr;

/// No addresses where the section is absent.
pub fn vip(at: &At<'_>) -> VipConfig {
    if at.map().is_none() {
        return VipConfig::default();
    }
    let interface = at.at("interface");
    let config = VipConfig {
        primary: addresses(&at.at("primary")),
        replica: addresses(&at.at("replica")),
        interface: interface.text().unwrap_or_default(),
    };
    if let Some(twice) = config.primary.iter().find(|one| config.replica.iter().any(|other| one.addr() == other.addr())) {
        at.at("replica").note(format!("{} is the primary's address already", twice.addr()));
    }
    if !config.is_empty() && config.interface.is_empty() && interface.value.is_none() {
        interface.note("is missing: say on which network interface the addresses are to be, as in `interface: eth0`");
    }
    config
}

impl VipConfig {
    /// Nothing is to be held.
    pub fn is_empty(&self) -> bool {
        self.primary.is_empty() && self.replica.is_empty()
    }
}

/// A list, or a text with commas: `10.0.0.9`, `10.0.0.9/24`, `2001:db8::9`. Without a prefix it is one address and no network.
fn addresses(at: &At<'_>) -> Vec<IpNet> {
    let texts: Vec<String> = match at.value {
        None => return Vec::new(),
        Some(Value::String(text)) => text.split(',').map(|one| one.trim().to_owned()).filter(|one| !one.is_empty()).collect(),
        Some(Value::Array(_)) => at.lines().unwrap_or_default(),
        Some(other) => {
            at.note(format!("found {}, expected a list of addresses", described(other)));
            return Vec::new();
        }
    };
    let mut found: Vec<IpNet> = Vec::new();
    for text in texts {
        let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        match net {
            Ok(net) if usable(net.addr()) && found.iter().all(|one| one.addr() != net.addr()) => found.push(net),
            Ok(net) if !usable(net.addr()) => at.note(format!("{} is no address that a host could have for itself alone", net.addr())),
            Ok(net) => at.note(format!("{} stands there twice", net.addr())),
            Err(_) => at.note(format!("\"{text}\" is no address: expected one as in 10.0.0.9, 10.0.0.9/24 or 2001:db8::9")),
        }
    }
    found
}

fn usable(address: IpAddr) -> bool {
    let link_local = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
    let broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    !(address.is_unspecified() || address.is_loopback() || address.is_multicast() || link_local || broadcast)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    fn read(yaml: &str) -> (VipConfig, Vec<String>) {
        let root = super::super::tree::parse(yaml).unwrap();
        let errors = RefCell::default();
        let config = vip(&At::root(&root, "vip", &errors));
        (config, errors.into_inner())
    }

    #[test]
    fn addresses_of_both_kinds() {
        let (config, errors) = read("vip: {primary: [10.0.0.9/24, '2001:db8::9'], replica: '10.0.0.10, 2001:db8::10', interface: eth0}");
        assert_eq!(errors, Vec::<String>::new());
        let texts = |list: &[IpNet]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(texts(&config.primary), ["10.0.0.9/24", "2001:db8::9/128"]);
        assert_eq!(texts(&config.replica), ["10.0.0.10/32", "2001:db8::10/128"]);
        assert!(read("scope: x").0.is_empty());
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (yaml, words) in [
            ("vip: {primary: [10.0.0.9]}", "vip.interface: is missing"),
            ("vip: {primary: [ten], interface: e}", "vip.primary: \"ten\" is no address"),
            ("vip: {primary: 5, interface: e}", "vip.primary: found a number"),
            ("vip: {primary: [127.0.0.1], interface: e}", "vip.primary: 127.0.0.1 is no address that a host"),
            ("vip: {primary: ['fe80::1'], interface: e}", "vip.primary: fe80::1 is no address that a host"),
            ("vip: {primary: [10.0.0.9, 10.0.0.9/24], interface: e}", "vip.primary: 10.0.0.9 stands there twice"),
            ("vip: {primary: [10.0.0.9], replica: [10.0.0.9], interface: e}", "vip.replica: 10.0.0.9 is the primary's address"),
        ] {
            let errors = read(yaml).1;
            assert!(errors.len() == 1 && errors[0].starts_with(words), "{yaml}: {errors:?}");
        }
    }
}
