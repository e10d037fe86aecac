//! Place: where a program runs and is reached: loopback, or a network namespace with an address of its own.

/// An address, and the network namespace that has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The IPv4 address that programs here listen on.
    pub host: String,
    /// The name under `/run/netns`; None is the caller's own network.
    pub namespace: Option<String>,
}

impl Place {
    /// Loopback.
    pub fn loopback() -> Place {
        Place { host: "127.0.0.1".to_owned(), namespace: None }
    }
}
