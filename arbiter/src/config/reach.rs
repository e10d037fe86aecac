//! Addresses in the file: where something listens, and where others reach it.

use super::address;
use super::tree::At;
use cluster::host::Address;

pub(super) fn host_port(at: &At<'_>, default_port: u16) -> Option<Address> {
    Address::parse(&at.text()?, default_port).map_err(|expected| at.note(format!("expected {expected}"))).ok()
}

/// An address to listen on.
pub(super) fn to_listen(at: &At<'_>, default_port: u16) -> Option<Address> {
    address::to_listen(&at.text()?, default_port).map_err(|expected| at.note(format!("expected {expected}"))).ok()
}

/// Where others reach something: as given, or where it listens if that is one real address.
pub(super) fn reachable(at: &At<'_>, listen: &Address) -> Option<Address> {
    if at.value.is_some() {
        let address = host_port(at, listen.port)?;
        if address.is_wildcard() {
            at.note(format!("{address} is no address that other members can connect to"));
            return None;
        }
        return Some(address);
    }
    if listen.is_wildcard() {
        at.note("is missing, and the listen address is no address that other members can connect to");
        return None;
    }
    Some(listen.clone())
}
