//! Where something is reached: a host and its port, read from a file, a URL or a member key by one reader.

use std::fmt;

/// What an address looks like, for whom it was read in vain.
pub const EXPECTED: &str = "host:port, as in 10.0.0.1:5432 or [::1]:5432";

/// PostgreSQL's own port.
pub const POSTGRES: u16 = 5432;

/// One host and its port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// A name or an address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') { write!(f, "[{}]:{}", self.host, self.port) } else { write!(f, "{}:{}", self.host, self.port) }
    }
}

impl Address {
    /// This host, this port.
    pub fn new(host: impl Into<String>, port: u16) -> Address {
        Address { host: host.into(), port }
    }

    /// Reads `host`, `host:port` or `[v6]:port`.
    pub fn parse(text: &str, default_port: u16) -> Result<Address, String> {
        let (host, port) = split(text, default_port)?;
        if host.contains([',', '[', ']']) {
            return Err("one host and port, as in 10.0.0.1:5432".to_owned());
        }
        Ok(Address { host, port })
    }

    /// Where a URL points: `http` and `https` to their own ports where it names none, `postgres` and `postgresql` to PostgreSQL's. None for
    /// everything else, and where it names no host.
    pub fn of_url(url: &str) -> Option<Address> {
        let (scheme, rest) = url.split_once("://")?;
        let default_port = match scheme {
            "http" => 80,
            "https" => 443,
            "postgres" | "postgresql" => POSTGRES,
            _ => return None,
        };
        let authority = rest.split(['/', '?', '#']).next()?;
        let place = authority.rsplit_once('@').map_or(authority, |(_, place)| place);
        Address::parse(place, default_port).ok()
    }

    /// True for "every address", which nobody can connect to.
    pub fn is_wildcard(&self) -> bool {
        matches!(self.host.as_str(), "*" | "0.0.0.0" | "::" | "")
    }
}

/// Without the brackets that tell an IPv6 address from its port.
pub fn unbracketed(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// Hosts and one port: split at the last colon, unless the whole is one bare IPv6 address. Several hosts are left as they are, with commas.
pub fn split(text: &str, default_port: u16) -> Result<(String, u16), String> {
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
            assert_eq!(Address::parse(text, 5432).unwrap().to_string(), shown);
        }
        for text in ["", ":5432", "a:port", "a:0", "a:70000", "a b:1", "a,b:1", "[::1:5432", "::1]:5432"] {
            assert!(Address::parse(text, 5432).is_err(), "{text}");
        }
    }

    #[test]
    fn urls_read_with_the_port_of_their_scheme() {
        for (url, found) in [
            ("http://10.0.0.1:2379", Some("10.0.0.1:2379")),
            ("https://[::1]:2380/", Some("[::1]:2380")),
            ("https://etcd1", Some("etcd1:443")),
            ("http://[::1]/patroni", Some("[::1]:80")),
            ("http://10.0.0.1:8008/patroni?x=a:b@c", Some("10.0.0.1:8008")),
            ("postgres://h:1/postgres", Some("h:1")),
            ("postgresql://u:p@h/postgres", Some("h:5432")),
            ("postgres://[::1]:7/x", Some("[::1]:7")),
            ("postgres:///x", None),
            ("postgres://a,b:1/x", None),
            ("http://h:port/", None),
            ("ftp://h:1", None),
            ("h:1", None),
            ("nonsense", None),
        ] {
            assert_eq!(Address::of_url(url).map(|address| address.to_string()).as_deref(), found, "{url}");
        }
    }
}
