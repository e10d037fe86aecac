//! Addresses as the file gives them: `host:port`, `[v6]:port`, and for the server a list of hosts with one port.

use std::fmt;

/// One host and its port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// A name or an address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl HostPort {
    /// Parses `host`, `host:port` or `[v6]:port`.
    pub fn parse(text: &str, default_port: u16) -> Result<HostPort, String> {
        let (host, port) = split(text, default_port)?;
        if host.contains(',') {
            return Err("one host and port, as in 10.0.0.1:5432".to_owned());
        }
        Ok(HostPort { host, port })
    }

    /// An address to listen on: as above, and `:port` and `*:port` for every address.
    pub fn to_listen(text: &str, default_port: u16) -> Result<HostPort, String> {
        HostPort::parse(&everywhere(text), default_port)
    }

    /// True for "every address", which nobody can connect to.
    pub fn is_wildcard(&self) -> bool {
        is_wildcard(&self.host)
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') { write!(f, "[{}]:{}", self.host, self.port) } else { write!(f, "{}:{}", self.host, self.port) }
    }
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

const EXPECTED: &str = "host:port, as in 10.0.0.1:5432 or [::1]:5432";

/// `:port` says no host, and so means every one.
fn everywhere(text: &str) -> String {
    let text = text.trim();
    let bare = text.strip_prefix(':').is_some_and(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()));
    if bare { format!("*{text}") } else { text.to_owned() }
}

fn is_wildcard(host: &str) -> bool {
    matches!(host, "*" | "0.0.0.0" | "::" | "")
}

fn unbracketed(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// Splits at the last colon, unless the whole is one bare IPv6 address.
fn split(text: &str, default_port: u16) -> Result<(String, u16), String> {
    let text = text.trim();
    if text.is_empty() || text.chars().any(char::is_whitespace) && !text.contains(',') {
        return Err(EXPECTED.to_owned());
    }
    let bare = |host: &str| Ok((unbracketed(host).to_owned(), default_port));
    if text.ends_with(']') || text.parse::<std::net::Ipv6Addr>().is_ok() {
        return bare(text);
    }
    match text.rsplit_once(':') {
        None => bare(text),
        Some((host, port)) => match port.parse::<u16>() {
            Ok(port) if port > 0 && !host.is_empty() => Ok((unbracketed(host).to_owned(), port)),
            _ => Err(EXPECTED.to_owned()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_in_every_form_of_the_field() {
        for (text, shown) in [
            ("10.0.0.1:5433", "10.0.0.1:5433"),
            ("db1.example", "db1.example:5432"),
            ("[::1]:5433", "[::1]:5433"),
            ("::1", "[::1]:5432"),
            ("[fe80::1]", "[fe80::1]:5432"),
            ("*:5432", "*:5432"),
        ] {
            assert_eq!(HostPort::parse(text, 5432).unwrap().to_string(), shown);
        }
        for text in ["", ":5432", "a:port", "a:0", "a:70000", "a b:1", "a,b:1"] {
            assert!(HostPort::parse(text, 5432).is_err(), "{text}");
        }
    }

    #[test]
    fn a_port_alone_means_every_address_for_a_listener_only() {
        assert_eq!(HostPort::to_listen(":8008", 1).unwrap().to_string(), "*:8008");
        assert_eq!(Listen::parse(":5433", 1).unwrap().addresses(), "*");
        assert!(HostPort::parse(":8008", 1).is_err() && HostPort::to_listen(":x", 1).is_err());
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
