//! The text of docs/scale.md: what many groups cost one etcd, where and with what it was measured, and what is not in it.

use crate::Seen;
use crate::crowd::{BEGIN_WITHIN, MEMBERS, configuration};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::time::Duration;
use stories::machine::Machine;

/// The words of one row of a table: what it is, and its value of each size.
type Row<'a> = (String, Box<dyn Fn(&Seen) -> String + 'a>);

/// What it is, its value of all members, its unit.
type Cost = (&'static str, fn(&Seen) -> f64, &'static str);

/// What a member costs, by which sizes are compared.
const COSTS: [Cost; 5] = [
    ("requests a second", |seen| seen.rates.all_requests(), ""),
    ("bytes to etcd a second", |seen| seen.rates.received_bytes, ""),
    ("bytes from etcd a second", |seen| seen.rates.sent_bytes, ""),
    ("etcd's processor time a second", |seen| seen.rates.processor_ms, " ms"),
    ("etcd's memory", |seen| seen.rates.resident_bytes / 1024.0, " KiB"),
];

/// All of it.
pub fn page(machine: &Machine, command: &str, all: &[Seen]) -> String {
    let mut page = head(machine, command, all);
    page.push_str("\n## At rest\n\n");
    page.push_str(&table(all, &at_rest(all)));
    page.push_str(&costs(all));
    page.push_str("\n## etcd killed and started again with its data\n\n");
    page.push_str(&table(all, &restart()));
    page.push_str("\n## Leaders lost at once\n\n");
    page.push_str(
        "Each one's worker and arbiter end without a word: nothing is revoked, their connections are closed, and its standbys see their receivers end. \
         A promotion takes no time here.\n\n",
    );
    page.push_str(&table(all, &failovers()));
    page.push_str(&renewals(all));
    page.push_str(LIMITS);
    page
}

fn head(machine: &Machine, command: &str, all: &[Seen]) -> String {
    let Machine { date, processor, memory_mib, kernel, versions, load_before, load_after } = machine;
    let timing = configuration().timing();
    let (ttl, loop_wait, begin) = (timing.ttl.as_secs(), timing.loop_wait.as_secs(), BEGIN_WITHIN.as_secs());
    let watched = all.first().map_or(0, |seen| seen.watched.as_secs());
    let mut text = format!(
        "# Many clusters on one etcd\n\n\
         Written by `{command}` on {date}; whoever runs it gets a page of their own. {processor}, {memory_mib} MiB, Linux {kernel}; {}. \
         Load before the run {load_before:.2}, at its end {load_after:.2}.\n\n",
        versions.join(", ")
    );
    if *load_before >= 1.0 {
        text.push_str(
            "**The machine was busy with other work when this began: times are upper bounds. Requests and bytes depend on the load little.**\n\n",
        );
    }
    let _ = writeln!(
        text,
        "One etcd with one member, and groups of {MEMBERS} members with default settings (`ttl` {ttl}, `loop_wait` {loop_wait}, asynchronous), begun within {begin} s. \
         A member is the lease worker as it ships, its loops (`keeper`) over the real client of etcd (`dcs`), with a connection and a watch of its own; \
         and what its arbiter asks of etcd at rest: a second connection with a watch, and a view of the cluster at each change. Behind it is no Postgres but a role and a position that \
         moves by 16 KiB a second. All members are in one process, on as many threads as the machine has processors (at most four); its processor time is not etcd's, and takes from it. \
         Watched for {watched} s after they had settled. etcd counts its requests, bytes and processor time itself (`/metrics`)."
    );
    text
}

fn table(all: &[Seen], rows: &[Row<'_>]) -> String {
    let heads: Vec<String> = all.iter().map(|seen| format!("{} groups", seen.groups)).collect();
    let mut text = format!("| | {} |\n|---|{}\n", heads.join(" | "), "---|".repeat(all.len()));
    for (what, value) in rows {
        let cells: Vec<String> = all.iter().map(value).collect();
        let _ = writeln!(text, "| {what} | {} |", cells.join(" | "));
    }
    text
}

fn row<'a>(what: &str, value: impl Fn(&Seen) -> String + 'a) -> Row<'a> {
    (what.to_owned(), Box::new(value))
}

fn at_rest(all: &[Seen]) -> Vec<Row<'static>> {
    let methods: BTreeSet<&String> = all.iter().flat_map(|seen| seen.rates.requests.keys()).collect();
    let mut rows = vec![
        row("members", |seen| (seen.groups * MEMBERS).to_string()),
        row("load of the machine", |seen| format!("{:.1}", seen.load)),
        row("requests a second", |seen| number(seen.rates.all_requests())),
    ];
    for method in methods {
        let of = method.clone();
        rows.push(row(&format!("of them `{method}`"), move |seen| number(seen.rates.requests.get(&of).copied().unwrap_or_default())));
    }
    rows.extend([
        row("bytes to etcd a second", |seen| number(seen.rates.received_bytes)),
        row("bytes from etcd a second", |seen| number(seen.rates.sent_bytes)),
        row("waits for etcd's disk a second (fsync)", |seen| number(seen.rates.syncs)),
        row("etcd's processor time a second", |seen| format!("{} ms", number(seen.rates.processor_ms))),
        row("processor time a second of all members", |seen| format!("{} ms", number(seen.rates.own_processor_ms))),
        row("etcd's memory, resident", |seen| format!("{:.0} MiB", seen.rates.resident_bytes / 1024.0 / 1024.0)),
        row("a renewal (keep-alive, then a linearizable read): p50, p99, longest", |seen| {
            let renewals = &seen.renewals;
            format!("{}, {}, {}", ms(renewals.at(500)), ms(renewals.at(990)), ms(renewals.at(1000)))
        }),
        row("renewals a second and member", |seen| format!("{:.2}", a_member(seen, renewals_a_second(seen)))),
    ]);
    rows
}

fn renewals_a_second(seen: &Seen) -> f64 {
    seen.renewals.count() as f64 / seen.watched.as_secs_f64().max(f64::MIN_POSITIVE)
}

fn a_member(seen: &Seen, of: f64) -> f64 {
    of / (seen.groups * MEMBERS) as f64
}

/// What one member costs, and the ratio of the largest size to the smallest: 1 where the cost is constant.
fn costs(all: &[Seen]) -> String {
    let heads: Vec<String> = all.iter().map(|seen| format!("{} groups", seen.groups)).collect();
    let (first, last) = (all.first(), all.last());
    let mut text = format!("\nFor each member:\n\n| | {} | last / first |\n|---|{}---|\n", heads.join(" | "), "---|".repeat(all.len()));
    for (what, value, unit) in COSTS {
        let of = |seen: &Seen| a_member(seen, value(seen));
        let cells: Vec<String> = all.iter().map(|seen| format!("{}{unit}", number(of(seen)))).collect();
        let ratio =
            first.zip(last).filter(|_| all.len() > 1).map_or_else(String::new, |(first, last)| format!("{:.2}", of(last) / of(first)));
        let _ = writeln!(text, "| {what} | {} | {ratio} |", cells.join(" | "));
    }
    text
}

fn restart() -> Vec<Row<'static>> {
    vec![
        row("until it answered again", |seen| seconds(seen.restart.away)),
        row("from its death until a group's leader had renewed: middle, last", |seen| pair(seen.restart.renewed)),
        row("groups whose leader's lease had run out by its own count (commits wait then)", |seen| seen.restart.lapsed.to_string()),
        row("groups in which the leader key was taken", |seen| seen.restart.changed.to_string()),
        row("renewals in the 10 s after: p50, p99", |seen| {
            format!("{}, {}", ms(seen.restart.renewals.at(500)), ms(seen.restart.renewals.at(990)))
        }),
    ]
}

fn failovers() -> Vec<Row<'static>> {
    vec![
        row("leaders lost", |seen| seen.failovers.dropped.to_string()),
        row("from the loss until another member had the key: middle, last", |seen| pair(seen.failovers.after_drop)),
        row("from the end of the lease (as its holder counted it) until then: middle, last", |seen| pair(seen.failovers.after_lease)),
        row("other groups in which the key was taken meanwhile", |seen| seen.failovers.needless.to_string()),
        row("renewals of all members meanwhile: p50, p99", |seen| {
            format!("{}, {}", ms(seen.failovers.renewals.at(500)), ms(seen.failovers.renewals.at(990)))
        }),
        row("requests a second meanwhile", |seen| number(seen.failovers.rates.all_requests())),
        row("etcd's processor time a second meanwhile", |seen| format!("{} ms", number(seen.failovers.rates.processor_ms))),
    ]
}

/// What renewals are necessary, and why.
fn renewals(all: &[Seen]) -> String {
    let seen = all.last().map_or_else(String::new, |seen| {
        let (renewals, requests) = (a_member(seen, renewals_a_second(seen)), a_member(seen, seen.rates.all_requests()));
        format!("Here it was {renewals:.2}, three requests each (below), of {requests:.1} requests in all. ")
    });
    format!("\n## How often a lease is renewed, and why\n\n{RENEWALS_BEFORE} {seen}{RENEWALS_AFTER}")
}

const RENEWALS_BEFORE: &str = "A member renews each quarter of the `ttl`: 0.4 times a second at `ttl` 10, 0.13 at `ttl` 30. \
    Patroni with its defaults (`ttl` 30, `loop_wait` 10) renews 0.1 times a second.";

const RENEWALS_AFTER: &str = "What asks for it:\n\n\
    * **The leader's.** Its fence closes one `ttl` after the last renewal that succeeded was *sent*, to the millisecond, so what is left when a renewal falls due is the time in which etcd may elect a leader, \
    be started again, or lose a packet without a commit that waits. With a quarter that is three quarters of the `ttl`: 2.25 s at `ttl` 3, the shortest, in which etcd's own election (1 to 2 s) fits once. \
    With a half it would be 1.5 s, and each such election would stop the commits of every cluster with `ttl` 3. Patroni refuses no commit by the clock, and its `ttl` is three times as long.\n\
    * **The read after the keep-alive** is the third request of a renewal; the first two are keep-alives on one stream, because the client library keeps the header of the first answer to itself. A keep-alive alone proves nothing: etcd before 3.4.31 and 3.5.13 answers it from a member that was deposed (`cluster/src/lease.rs` has the argument).\n\
    * **A standby's.** No fence rests on it. Its lease carries its member key and its word in a race, and a member that is gone is waited for until its lease has ended. A standby would do with a third or a half of the `ttl`, and \
    without the read: two thirds of all members are standbys, so that would save four of nine of the renewals' requests. It is not done: one rule for every member is simpler, and a standby that takes the key has a fresh lease.\n\
    * **At `ttl` 10 or more** a third would leave time for an election as well. It is not done either: renewals are about a third of the requests above; most of the rest are views, which a change of any member's position asks of every \
    worker and arbiter of the group, once in `loop_wait`.\n";

const LIMITS: &str = "\n## What these figures don't say\n\n\
    * Not in it: the members' REST among themselves and to proxies (etcd has no part in it), the arbiter's share while something is done, what SQL asks, the snapshot that the worker makes for SQL.\n\
    * An arbiter's turn takes longer than a view, so changes that come together cost it one view; here they may cost two. Its part is an upper bound.\n\
    * A member key is shorter here than a real one (no vitals, no tags): bytes are a lower bound.\n\
    * A renewal's time has in it what it waits for the thread that its member shares with hundreds of others; each worker has a process of its own in life.\n\
    * etcd, its disk and all members share one machine. One member of etcd: a majority of three adds a round trip and a disk to each write and to each linearizable read.\n\
    * Deposition is off (the groups are asynchronous): it makes no request of etcd before a leader is lost.\n\
    * A Citus cluster with 32 worker groups was not measured: the time from a worker's death to the coordinator's metadata needs Postgres and Citus in each.\n";

fn pair([middle, last]: [Duration; 2]) -> String {
    format!("{}, {}", seconds(middle), seconds(last))
}

fn seconds(took: Duration) -> String {
    format!("{:.2} s", took.as_secs_f64())
}

fn ms(took: Duration) -> String {
    let ms = took.as_secs_f64() * 1000.0;
    if ms < 100.0 { format!("{ms:.1} ms") } else { format!("{ms:.0} ms") }
}

/// Three figures at least, and no more behind the point than that takes.
fn number(value: f64) -> String {
    if value >= 100.0 {
        format!("{value:.0}")
    } else if value >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::Rates;

    fn machine(load: f64) -> Machine {
        Machine {
            date: "2026-01-02 03:04 UTC".to_owned(),
            processor: "2 x Example CPU".to_owned(),
            memory_mib: 4096,
            kernel: "6.1.0".to_owned(),
            versions: vec!["etcd 0.0.0".to_owned()],
            load_before: load,
            load_after: 1.5,
        }
    }

    fn seen(groups: usize, range: f64) -> Seen {
        let rates = Rates { requests: [("Range".to_owned(), range)].into(), processor_ms: 30.0, ..Rates::default() };
        Seen { groups, rates, watched: Duration::from_secs(60), ..Seen::default() }
    }

    #[test]
    fn a_members_cost_is_compared_between_the_sizes() {
        let page = page(&machine(0.2), "make bench-scale", &[seen(100, 600.0), seen(300, 1980.0)]);
        assert!(page.contains("| | 100 groups | 300 groups |\n|---|---|---|\n| members | 300 | 900 |"), "{page}");
        assert!(page.contains("| of them `Range` | 600 | 1980 |"), "{page}");
        assert!(page.contains("| requests a second | 2.00 | 2.20 | 1.10 |"), "{page}");
        assert!(page.contains("| etcd's processor time a second | 0.10 ms | 0.03 ms | 0.33 |"), "{page}");
        assert!(!page.contains("The machine was busy"), "{page}");
    }

    #[test]
    fn one_size_has_no_ratio_and_a_busy_machine_is_said() {
        let page = page(&machine(3.0), "make bench-scale SCALE=\"10\"", &[seen(10, 60.0)]);
        assert!(page.contains("| requests a second | 2.00 |  |"), "{page}");
        assert!(page.contains("**The machine was busy"), "{page}");
    }
}
