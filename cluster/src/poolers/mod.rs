//! PgBouncer around a planned change: which of its databases lead here, who lets them go on and when, and the lines of its file.
//!
//! The arbiter that pauses writes `tenure/poolers` first, so that every arbiter knows what may be paused: the arbiter that paused may die, and a pooler
//! stays paused when the session that paused it is gone (PgBouncer 1.18, tried).

pub mod paused;

pub use paused::Paused;

use crate::host::Address;
use crate::member::MemberRole;
use crate::name::MemberName;
use crate::view::ClusterView;
use std::collections::BTreeMap;
use std::time::Duration;

/// One node, as far as poolers go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Here {
    /// Its server is the primary, its fence is open, and no drain is under way.
    pub writes: bool,
    /// A procedure of this arbiter that paused them is under way.
    pub changing: bool,
    /// So long this node has known of the pause.
    pub known_for: Duration,
}

/// What an arbiter does about poolers that are paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The change is under way.
    Wait,
    /// This node writes: each goes on as soon as it leads here.
    GoOn,
    /// Another node writes: those that nobody else re-points or reaches go on.
    GoOnWithOwn,
    /// It took too long, or who paused is gone: all go on.
    GoOnAnyway,
}

/// Judges a pause.
pub fn judge(paused: &Paused, view: &ClusterView, me: &MemberName, here: Here) -> Step {
    if here.known_for >= Duration::from_secs(paused.at_most_s) {
        return Step::GoOnAnyway;
    }
    match &view.leader {
        _ if here.changing => Step::Wait,
        // Also where etcd was not read yet: its own page says that it writes.
        leader if here.writes && leader.as_ref().is_none_or(|leader| leader.name == *me) => Step::GoOn,
        Some(leader) if leader.name != *me && leader.term != paused.term && writer(view).is_some() => Step::GoOnWithOwn,
        _ => Step::Wait,
    }
}

/// The leader, once its member key says that it serves as primary, and where it is reached.
pub fn writer(view: &ClusterView) -> Option<(&MemberName, Address)> {
    let leader = view.leader.as_ref()?;
    let member = &view.members.get(&leader.name)?.member;
    let address = member.address()?;
    (member.is_running() && member.role == MemberRole::Primary).then_some((&leader.name, address))
}

/// A database of a pooler, as `SHOW DATABASES` has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Database {
    /// Its name there.
    pub name: String,
    /// The server's host: a name, an address, a directory; empty for the pooler's own machine.
    pub host: String,
    /// The server's port.
    pub port: u16,
    /// `PAUSE` was said of it.
    pub paused: bool,
}

impl Database {
    /// Whose server this is.
    pub fn leads_to<'a>(&self, view: &'a ClusterView) -> Option<&'a MemberName> {
        let is_there = |address: Option<Address>| address.is_some_and(|address| address.port == self.port && address.host == self.host);
        view.members.iter().find(|(_, entry)| is_there(entry.member.address())).map(|(name, _)| name)
    }

    /// The server is reached on the pooler's own machine.
    pub fn is_beside(&self) -> bool {
        is_own_machine(&self.host)
    }
}

/// A host by which a program reaches its own machine.
pub fn is_own_machine(host: &str) -> bool {
    host.is_empty() || host.starts_with('/') || host == "localhost" || host == "::1" || host.starts_with("127.")
}

/// Those that are to be paused: the ones named, or where none are, those whose server is a member.
pub fn ours<'a>(databases: &'a [Database], named: Option<&[String]>, view: &ClusterView) -> Vec<&'a Database> {
    let is_ours = |database: &&Database| match named {
        Some(names) => names.contains(&database.name),
        None => database.leads_to(view).is_some(),
    };
    databases.iter().filter(is_ours).collect()
}

/// A host as it may stand in PgBouncer's file. What a member key says is data: nothing else of the file may come from it.
pub fn is_host(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':'))
}

/// The lines of a `[databases]` section with another server in them; all else stays as it is. `named`: only of these databases.
pub fn repointed(text: &str, server: &Address, named: Option<&[String]>) -> String {
    let line = |line: &str| -> String {
        let trimmed = line.trim_start();
        let is_entry = !(trimmed.is_empty() || trimmed.starts_with([';', '#', '[', '%']));
        let Some((name, pairs)) = line.split_once('=').filter(|_| is_entry) else { return line.to_owned() };
        let wanted = named.is_none_or(|names| names.iter().any(|listed| listed == name.trim().trim_matches('"')));
        if wanted { format!("{name}={}", with_server(pairs, server)) } else { line.to_owned() }
    };
    let mut out: String = text.split('\n').map(line).collect::<Vec<_>>().join("\n");
    if !out.is_empty() && !out.ends_with('\n') {
        out.push('\n');
    }
    out
}

/// `key=value` pairs, a value perhaps in single quotes with `''` for one of them.
fn with_server(pairs: &str, server: &Address) -> String {
    let (mut out, mut rest) = (String::new(), pairs);
    let mut missing: BTreeMap<&str, String> = BTreeMap::from([("host", server.host.clone()), ("port", server.port.to_string())]);
    let mut said: BTreeMap<&str, String> = missing.clone();
    while let Some(begin) = rest.find(|c: char| !c.is_whitespace()) {
        out.push_str(&rest[..begin]);
        rest = &rest[begin..];
        let Some(equals) = rest.find('=') else { break };
        let key = rest[..equals].trim();
        let after = rest[equals + 1..].trim_start();
        let end = if let Some(quoted) = after.strip_prefix('\'') {
            1 + end_of_quoted(quoted)
        } else {
            after.find(char::is_whitespace).unwrap_or(after.len())
        };
        match said.remove_entry(key) {
            Some((key, value)) => {
                missing.remove(key);
                out.push_str(&format!("{key}={value}"));
            }
            // A second one of the same key would count over the first.
            None if key == "host" || key == "port" => {}
            None => out.push_str(&format!("{key}={}", &after[..end])),
        }
        rest = &after[end..];
    }
    out.push_str(rest);
    let tail = out.len() - out.trim_end().len();
    let at = out.len() - tail;
    let more: String = missing.iter().map(|(key, value)| format!(" {key}={value}")).collect();
    out.insert_str(at, &more);
    out
}

/// The length up to and with the quote that ends it.
fn end_of_quoted(text: &str) -> usize {
    let mut characters = text.char_indices().peekable();
    while let Some((at, character)) = characters.next() {
        if character == '\'' && characters.next_if(|(_, next)| *next == '\'').is_none() {
            return at + 1;
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::leader::{Leader, LeaseId, Term};
    use crate::member::{Member, MemberEntry};
    use serde_json::Map;

    fn name(text: &str) -> MemberName {
        MemberName::new(text).unwrap()
    }

    fn member(port: u16, role: &str, state: &str) -> MemberEntry {
        let text = format!(r#"{{"conn_url":"postgres://10.0.0.1:{port}/postgres","api_url":"","state":"{state}","role":"{role}"}}"#);
        MemberEntry { member: serde_json::from_str::<Member>(&text).unwrap(), lease: LeaseId(1), revision: 1 }
    }

    fn view(leader: &str, term: i64, state: &str) -> ClusterView {
        let role = |of: &str| if of == leader { "primary" } else { "replica" };
        ClusterView {
            leader: Some(Leader { name: name(leader), lease: LeaseId(1), term: Term(term) }),
            members: [(name("n1"), member(1, role("n1"), state)), (name("n2"), member(2, role("n2"), state))].into(),
            ..ClusterView::default()
        }
    }

    fn paused() -> Paused {
        let poolers = [("h:6432".to_owned(), ["app".to_owned()].into())].into();
        Paused { by: name("n1"), term: Term(7), at_most_s: 15, poolers, other: Map::new() }
    }

    #[test]
    fn who_lets_poolers_go_on_and_when() {
        use Step::*;
        let here = |writes, changing, seconds| Here { writes, changing, known_for: Duration::from_secs(seconds) };
        for (what, view, me, here, wanted) in [
            ("the change is under way", view("n1", 7, "running"), "n1", here(true, true, 1), Wait),
            ("called off, or a restart that is over", view("n1", 7, "running"), "n1", here(true, false, 1), GoOn),
            ("stopped, or draining yet", view("n1", 7, "running"), "n1", here(false, false, 1), Wait),
            ("another's arbiter can't tell", view("n1", 7, "running"), "n2", here(false, false, 1), Wait),
            ("handed over, not promoted yet", view("n2", 9, "starting"), "n2", here(false, false, 1), Wait),
            ("handed over and promoted", view("n2", 9, "running"), "n2", here(true, false, 1), GoOn),
            ("the old one sees that", view("n2", 9, "running"), "n1", here(false, false, 1), GoOnWithOwn),
            ("the old one's procedure has not ended", view("n2", 9, "running"), "n1", here(false, true, 1), Wait),
            ("it takes too long", view("n1", 7, "running"), "n1", here(false, true, 15), GoOnAnyway),
            ("who paused is gone", view("n1", 7, "running"), "n2", here(false, false, 15), GoOnAnyway),
            ("nobody leads", ClusterView::default(), "n2", here(false, false, 3), Wait),
            ("etcd was never read here, the page is open", ClusterView::default(), "n1", here(true, false, 3), GoOn),
        ] {
            assert_eq!(judge(&paused(), &view, &name(me), here), wanted, "{what}");
        }
    }

    #[test]
    fn databases_of_the_cluster_are_told_from_others() {
        let database = |name: &str, host: &str, port| Database { name: name.to_owned(), host: host.to_owned(), port, paused: false };
        let all =
            [database("a", "10.0.0.1", 1), database("b", "10.0.0.1", 9), database("c", "haproxy", 5000), database("pgbouncer", "", 6432)];
        let view = view("n1", 7, "running");
        let found = |named: Option<&[String]>| ours(&all, named, &view).iter().map(|found| found.name.clone()).collect::<Vec<_>>();
        assert_eq!(found(None), ["a"]);
        assert_eq!(found(Some(&["c".to_owned(), "none".to_owned()])), ["c"]);
        assert_eq!((all[0].leads_to(&view), all[1].leads_to(&view)), (Some(&name("n1")), None));
    }

    #[test]
    fn another_server_comes_into_the_lines_and_nothing_else_changes() {
        for (line, wanted) in [
            ("app = host=a port=1 dbname=app", "app = host=h port=2 dbname=app"),
            ("app=dbname=app", "app=dbname=app host=h port=2"),
            ("* = port=1", "* = port=2 host=h"),
            ("app = dbname='x y''z' host='a b' pool_size=3  ", "app = dbname='x y''z' host=h pool_size=3 port=2  "),
            ("app = host = a port = 1 host=b", "app = host=h port=2 "),
            ("app =", "app = host=h port=2"),
            ("; app = host=a", "; app = host=a"),
            ("[databases]", "[databases]"),
            ("%include other.ini", "%include other.ini"),
            ("", ""),
        ] {
            assert_eq!(repointed(line, &Address::new("h", 2), None).trim_end_matches('\n'), wanted, "{line}");
        }
        let text = "[databases]\r\napp = host=a port=1\r\nother = host=a\n";
        let named = ["app".to_owned()];
        assert_eq!(repointed(text, &Address::new("h", 2), Some(&named)), "[databases]\r\napp = host=h port=2\r\nother = host=a\n");
        let once = repointed(text, &Address::new("h", 2), None);
        assert_eq!(repointed(&once, &Address::new("h", 2), None), once);
    }

    #[test]
    fn a_host_brings_nothing_else_along() {
        for (host, good) in [("db-1.example", true), ("fe80::1", true), ("", false), ("a b", false), ("a\nb", false), ("a'b", false)] {
            assert_eq!(is_host(host), good, "{host:?}");
        }
    }

    #[test]
    fn what_an_earlier_change_left_is_kept() {
        let mut before = paused();
        before.poolers.insert("k:6432".to_owned(), ["x".to_owned()].into());
        assert_eq!(paused().and(Some(&before)).poolers, before.poolers);
        assert_eq!(paused().and(None), paused());
    }
}
