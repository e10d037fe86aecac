//! Every path, once: `/<namespace>/<scope>/{leader,members/,sync,history,failover,config,status,…}`.

use cluster::name::{MemberName, Scope};

/// The keys of one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    prefix: String,
}

/// What a key below the prefix is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the key of its name, see Keys")]
pub enum Known<'a> {
    Initialize,
    Config,
    Leader,
    Member(&'a str),
    Sync,
    History,
    Failover,
    Status,
    Failsafe,
    LastTerm,
    ClaimedTimeline,
    Store,
    Announcement(&'a str),
    Request(&'a str),
    Hold,
    Held,
    Gate,
    Gated,
    Coordinator,
    Poolers,
    Backup,
    Other,
}

impl Keys {
    /// Keys under `/<namespace>/<scope>/`; slashes around the namespace don't matter.
    pub fn new(namespace: &str, scope: &Scope) -> Keys {
        let namespace = namespace.trim_matches('/');
        let prefix = if namespace.is_empty() { format!("/{scope}/") } else { format!("/{namespace}/{scope}/") };
        Keys { prefix }
    }

    /// The keys of one group of a Citus cluster.
    pub fn group(&self, group: u32) -> Keys {
        Keys { prefix: format!("{}{group}/", self.prefix) }
    }

    /// What all keys begin with; ends in a slash.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    fn at(&self, tail: &str) -> String {
        format!("{}{tail}", self.prefix)
    }

    /// `initialize`
    pub fn initialize(&self) -> String {
        self.at("initialize")
    }
    /// `config`
    pub fn config(&self) -> String {
        self.at("config")
    }
    /// `leader`
    pub fn leader(&self) -> String {
        self.at("leader")
    }
    /// `members/<name>`
    pub fn member(&self, name: &MemberName) -> String {
        self.at(&format!("members/{name}"))
    }
    /// `sync`
    pub fn sync(&self) -> String {
        self.at("sync")
    }
    /// `history`
    pub fn history(&self) -> String {
        self.at("history")
    }
    /// `failover`
    pub fn failover(&self) -> String {
        self.at("failover")
    }
    /// `status`
    pub fn status(&self) -> String {
        self.at("status")
    }
    /// `failsafe`
    pub fn failsafe(&self) -> String {
        self.at("failsafe")
    }
    /// `tenure/timeline`
    pub fn claimed_timeline(&self) -> String {
        self.at("tenure/timeline")
    }
    /// `tenure/store`
    pub fn store(&self) -> String {
        self.at("tenure/store")
    }
    /// `tenure/term`
    pub fn last_term(&self) -> String {
        self.at("tenure/term")
    }
    /// `tenure/race/<name>`
    pub fn announcement(&self, name: &MemberName) -> String {
        self.at(&format!("tenure/race/{name}"))
    }

    /// `tenure/request/<name>`
    pub fn request(&self, name: &MemberName) -> String {
        self.at(&format!("tenure/request/{name}"))
    }

    /// `tenure/hold`
    pub fn hold(&self) -> String {
        self.at("tenure/hold")
    }
    /// `tenure/held`
    pub fn held(&self) -> String {
        self.at("tenure/held")
    }

    /// `tenure/gate`
    pub fn gate(&self) -> String {
        self.at("tenure/gate")
    }
    /// `tenure/gated`
    pub fn gated(&self) -> String {
        self.at("tenure/gated")
    }

    /// `tenure/poolers`
    pub fn poolers(&self) -> String {
        self.at("tenure/poolers")
    }
    /// `tenure/reader`
    pub fn reader(&self) -> String {
        self.at("tenure/reader")
    }

    /// `tenure/backup`
    pub fn backup(&self) -> String {
        self.at("tenure/backup")
    }

    /// `tenure/coordinator`
    pub fn coordinator(&self) -> String {
        self.at("tenure/coordinator")
    }

    /// The group that a key below the scope belongs to; what is no group's (Patroni's rule: a number without leading zeros) is nobody's.
    pub fn group_of(&self, key: &str) -> Option<u32> {
        let (group, _) = key.strip_prefix(&self.prefix)?.split_once('/')?;
        group.parse().ok().filter(|number: &u32| number.to_string() == group)
    }

    /// Every key that is no member's own.
    pub fn singles(&self) -> Vec<String> {
        let names = [
            Keys::initialize,
            Keys::config,
            Keys::leader,
            Keys::sync,
            Keys::history,
            Keys::failover,
            Keys::status,
            Keys::failsafe,
            Keys::last_term,
            Keys::claimed_timeline,
            Keys::store,
            Keys::hold,
            Keys::held,
            Keys::gate,
            Keys::gated,
            Keys::coordinator,
            Keys::poolers,
            Keys::backup,
        ];
        names.iter().map(|name| name(self)).collect()
    }

    /// What `key` is.
    pub fn know<'a>(&self, key: &'a str) -> Known<'a> {
        let Some(tail) = key.strip_prefix(&self.prefix) else { return Known::Other };
        match tail {
            "initialize" => Known::Initialize,
            "config" => Known::Config,
            "leader" => Known::Leader,
            "sync" => Known::Sync,
            "history" => Known::History,
            "failover" => Known::Failover,
            "status" => Known::Status,
            "failsafe" => Known::Failsafe,
            "tenure/term" => Known::LastTerm,
            "tenure/timeline" => Known::ClaimedTimeline,
            "tenure/store" => Known::Store,
            "tenure/hold" => Known::Hold,
            "tenure/held" => Known::Held,
            "tenure/gate" => Known::Gate,
            "tenure/gated" => Known::Gated,
            "tenure/coordinator" => Known::Coordinator,
            "tenure/poolers" => Known::Poolers,
            "tenure/backup" => Known::Backup,
            _ => match (tail.strip_prefix("members/"), tail.strip_prefix("tenure/race/"), tail.strip_prefix("tenure/request/")) {
                (Some(name), ..) => Known::Member(name),
                (_, Some(name), _) => Known::Announcement(name),
                (.., Some(name)) => Known::Request(name),
                _ => Known::Other,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slashes_around_the_namespace_do_not_matter() {
        let scope = Scope::new("demo").unwrap();
        for namespace in ["service", "/service", "/service/"] {
            assert_eq!(Keys::new(namespace, &scope).leader(), "/service/demo/leader");
        }
        assert_eq!(Keys::new("/", &scope).group(2).leader(), "/demo/2/leader");
    }

    #[test]
    fn a_key_tells_its_group() {
        let keys = Keys::new("service", &Scope::new("demo").unwrap());
        for (key, group) in [
            (keys.group(12).leader(), Some(12)),
            (keys.leader(), None),
            ("/service/demo/007/leader".to_owned(), None),
            ("/service/demo/members/n1".to_owned(), None),
            ("/service/other/1/leader".to_owned(), None),
        ] {
            assert_eq!(keys.group_of(&key), group, "{key}");
        }
    }

    #[test]
    fn every_path_is_known_again() {
        let name = MemberName::new("n1").unwrap();
        let keys = Keys::new("service", &Scope::new("demo").unwrap());
        assert_eq!(keys.know(&keys.member(&name)), Known::Member("n1"));
        assert_eq!(keys.know(&keys.announcement(&name)), Known::Announcement("n1"));
        assert_eq!(keys.know(&keys.request(&name)), Known::Request("n1"));
        assert_eq!(keys.know(&keys.last_term()), Known::LastTerm);
        assert_eq!(keys.know(&keys.store()), Known::Store);
        assert_eq!(keys.know(&keys.hold()), Known::Hold);
        assert_eq!(keys.know(&keys.held()), Known::Held);
        assert_eq!(keys.know(&keys.gate()), Known::Gate);
        assert_eq!(keys.know(&keys.gated()), Known::Gated);
        assert_eq!(keys.know(&keys.coordinator()), Known::Coordinator);
        assert_eq!(keys.know(&keys.poolers()), Known::Poolers);
        assert_eq!(keys.know("/service/demo/optime/leader"), Known::Other);
        assert_eq!(keys.know("/service/demo2/leader"), Known::Other);
    }
}
