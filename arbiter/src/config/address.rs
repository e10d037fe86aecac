//! What the file says of addresses beyond one host and its port: "every address", and the server's list of hosts with one port.

use cluster::host::{Address, EXPECTED, split, unbracketed};

/// An address to listen on: `host:port` as elsewhere, and `:port` and `*:port` for every address.
pub fn to_listen(text: &str, default_port: u16) -> Result<Address, String> {
    Address::parse(&everywhere(text), default_port)
}

/// The addresses the server listens on, with one port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// Never empty; `*` for all.
    pub hosts: Vec<String>,
    /// The port.
    pub port: u16,
}

impl Listen {
    /// Parses `host[,host...][:port]`.
    pub fn parse(text: &str, default_port: u16) -> Result<Listen, String> {
        let (hosts, port) = split(&everywhere(text), default_port)?;
        let hosts: Vec<String> = hosts.split(',').map(|host| unbracketed(host.trim()).to_owned()).filter(|host| !host.is_empty()).collect();
        if hosts.is_empty() { Err(EXPECTED.to_owned()) } else { Ok(Listen { hosts, port }) }
    }

    /// For `listen_addresses`.
    pub fn addresses(&self) -> String {
        self.hosts.join(",")
    }

    /// The first address that one can connect to: this host itself where the list says "all".
    pub fn local_host(&self) -> String {
        let everywhere = self.hosts.iter().any(|host| matches!(host.as_str(), "*" | "0.0.0.0"));
        let here = self.hosts.iter().find(|host| matches!(host.as_str(), "127.0.0.1" | "localhost" | "::1"));
        match here {
            Some(host) => host.clone(),
            None if everywhere => "127.0.0.1".to_owned(),
            None if self.hosts[0] == "::" => "::1".to_owned(),
            None => self.hosts[0].clone(),
        }
    }
}

/// `:port` says no host, and so means every one.
fn everywhere(text: &str) -> String {
    let text = text.trim();
    let bare = text.strip_prefix(':').is_some_and(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()));
    if bare { format!("*{text}") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_means_every_address_for_a_listener_only() {
        assert_eq!(to_listen(":8008", 1).unwrap().to_string(), "*:8008");
        assert_eq!(Listen::parse(":5433", 1).unwrap().addresses(), "*");
        assert!(Address::parse(":8008", 1).is_err() && to_listen(":x", 1).is_err());
    }

    #[test]
    fn a_server_listens_on_several_addresses_with_one_port() {
        let listen = Listen::parse("127.0.0.1, [::1],10.0.0.1:5433", 5432).unwrap();
        assert_eq!((listen.addresses().as_str(), listen.port), ("127.0.0.1,::1,10.0.0.1", 5433));
        for (text, host) in
            [("*:1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("10.0.0.1,127.0.0.1", "127.0.0.1"), ("10.0.0.1", "10.0.0.1"), ("::", "::1")]
        {
            assert_eq!(Listen::parse(text, 5432).unwrap().local_host(), host);
        }
    }
}
