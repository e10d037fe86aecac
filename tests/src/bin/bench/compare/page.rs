//! The text of docs/performance.md: tables of what was seen, where, with what, and what was not.

use super::auto_failover::FAST;
use super::rounds::{CONTENDERS, Contender, EVENTS, Event, Manager, PATRONI_FAST, SETTINGS, Setting, rounds};
use super::run::Run;
use super::seen::{Summary, summaries};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;
use stories::machine::Machine;

/// All of it.
pub fn page(run: &Run) -> String {
    let all = summaries(&run.seen);
    let mut page = String::new();
    page.push_str(&head(&run.machine, &run.command, run.failed.len()));
    page.push_str("\n![Longest pause of a writer, in seconds](performance.svg)\n");
    for setting in SETTINGS {
        let these: Vec<&Summary> = all.iter().filter(|one| one.setting == setting && one.idle.is_none()).collect();
        if !these.is_empty() {
            let _ = write!(page, "\n{}\n{}\n{}", title(setting), pauses(&these), details(&these));
        }
    }
    page.push_str(&idle(&all));
    page.push_str(&limits(run, &all));
    page
}

fn head(machine: &Machine, command: &str, failed: usize) -> String {
    let Machine { date, processor, memory_mib, kernel, versions, load_before, load_after } = machine;
    let mut text = format!(
        "# Performance, beside Patroni\n\n\
         Written by `{command}` on {date}; each run writes a page of its own. {processor}, {memory_mib} MiB, Linux {kernel}; {}. \
         Load before the run {load_before:.2}, at its end {load_after:.2}.\n\n",
        versions.join(", ")
    );
    if *load_before >= 1.0 {
        text.push_str("**The machine was busy with other work when this began: every figure is an upper bound, for both sides.**\n\n");
    }
    if failed > 0 {
        let _ = write!(text, "**{failed} of the rounds did not come to their end; the last section names them.**\n\n");
    }
    text.push_str(
        "Three nodes and one etcd on one machine (three of etcd's members where its leader dies, else one), each round a new cluster, contenders by turns. One writer with an open loop: an insert is due every 10 ms \
         whatever became of those before, and its delay counts from that moment. It asks all addresses at once for a session fit for writing, gives a server up that \
         leaves it without any answer for 1 s, and sends nothing twice. *Pause* is the longest time in which nothing was acknowledged (at a cold start, the whole time). \
         Only ratios travel from one machine to another.\n",
    );
    text
}

fn title(setting: Setting) -> String {
    let mode = if setting.quorum { "Synchronous (`synchronous_mode: quorum`)" } else { "Asynchronous" };
    if !setting.haproxy {
        return format!("## {mode}\n");
    }
    format!(
        "## Through HAProxy: {mode}\n\n\
         The same writer with one address, HAProxy's. It runs with the recipe of docs/routing.md, the same for all: `/primary` is asked of each node every 0.5 s, \
         two answers that are not 200 take the server out and end its sessions, one that is 200 takes it in. So a change waits for the next check.\n"
    )
}

/// One line an event, one column a contender: the middle, and in brackets the least and the most.
fn pauses(these: &[&Summary]) -> String {
    let columns: Vec<Contender> = CONTENDERS.into_iter().filter(|contender| these.iter().any(|one| one.contender == *contender)).collect();
    let mut text =
        format!("| longest pause | {} |\n|---|{}\n", columns.map_join(|one| one.label.to_owned(), " | "), "---|".repeat(columns.len()));
    for event in EVENTS.into_iter().filter(|event| these.iter().any(|one| one.event == *event)) {
        let cell = |contender: &Contender| {
            these
                .iter()
                .find(|one| one.event == event && one.contender == *contender)
                .map_or_else(String::new, |one| spread(&one.pauses, one.pause()))
        };
        let _ = writeln!(text, "| {event} | {} |", columns.map_join(cell, " | "));
    }
    text
}

trait MapJoin<T> {
    fn map_join(&self, of: impl Fn(&T) -> String, between: &str) -> String;
}

impl<T> MapJoin<T> for Vec<T> {
    fn map_join(&self, of: impl Fn(&T) -> String, between: &str) -> String {
        self.iter().map(of).collect::<Vec<_>>().join(between)
    }
}

fn spread(sorted: &[Duration], middle: Duration) -> String {
    match sorted {
        [first, .., last] => format!("{} ({} to {})", seconds(middle), seconds(*first), seconds(*last)),
        _ => seconds(middle),
    }
}

/// As people say it: hundredths below ten seconds, tenths above.
pub fn seconds(took: Duration) -> String {
    let seconds = took.as_secs_f64();
    if seconds < 10.0 { format!("{seconds:.2} s") } else { format!("{seconds:.1} s") }
}

fn details(these: &[&Summary]) -> String {
    let cells =
        ["event", "whose", "runs", "p50", "p99", "max", "acknowledged", "lost", "doubled", "errors", "pause of Patroni's fastest / this"];
    let mut text = format!("| {} |\n|{}\n", cells.join(" | "), "---|".repeat(cells.len()));
    for one in these.iter().filter(|one| one.event != Event::ColdStart) {
        let delays = [one.delays.p50, one.delays.p99, one.delays.max].map(|delay| format!("{} ms", delay.as_millis()));
        let counts = [one.acknowledged, one.lost, one.doubled].map(|count| count.to_string());
        let ratio = one.ratio.map_or_else(String::new, |ratio| format!("{ratio:.1}"));
        let (event, whose, runs) = (one.event, one.contender.label, one.pauses.len());
        let _ = writeln!(
            text,
            "| {event} | {whose} | {runs} | {} | {} | {} | {ratio} |",
            delays.join(" | "),
            counts.join(" | "),
            told(&one.errors)
        );
    }
    text
}

fn told(errors: &BTreeMap<String, usize>) -> String {
    let told: Vec<String> = errors.iter().map(|(what, count)| format!("{what}: {count}")).collect();
    if told.is_empty() { "none".to_owned() } else { told.join(", ") }
}

fn idle(all: &[Summary]) -> String {
    let mib = |kib: u64| format!("{:.1}", kib as f64 / 1024.0);
    let of_a_minute = |ms: u64| format!("{:.2} s", ms as f64 / 1000.0);
    let lines: Vec<String> = all
        .iter()
        .filter_map(|one| {
            let idle = one.idle?;
            Some(format!(
                "| {} | {} / {} MiB | {} MiB | {} | {} | {} |\n",
                one.contender.label,
                mib(idle.agent_resident_kib),
                mib(idle.agent_proportional_kib),
                mib(idle.inside_private_kib),
                of_a_minute(idle.processor_ms),
                idle.etcd_requests,
                of_a_minute(idle.etcd_processor_ms)
            ))
        })
        .collect();
    if lines.is_empty() {
        return String::new();
    }
    format!(
        "\n## Idle\n\nA node of a cluster of three with nothing to do. Ours has a process inside of Postgres besides, the lease worker; Patroni has none. \
         The last two columns are of the whole cluster.\n\n\
         | whose | agent, resident / proportional | inside of Postgres, private | processor time a minute and node | etcd: requests a minute | etcd: processor time a minute |\n\
         |---|---|---|---|---|---|\n{}",
        lines.concat()
    )
}

fn limits(run: &Run, all: &[Summary]) -> String {
    let mut text = String::from(
        "\n## What these figures don't say\n\n\
         * *lost 0* of an asynchronous cluster says that replication had caught up at 100 rows a second, not that it loses nothing.\n\
         * A delay counts what waited in the client, too: after a pause of 20 s, 2000 inserts are due at once. p50, p99 and max are of acknowledged commits, over the whole of a \
         round's event, which is longer where the pause is longer; the middle run of each.\n\
         * All processes share one machine: what a network and three disks cost is not in it, and a node that dies leaves its processor to the others.\n",
    );
    if all.iter().any(|one| one.contender.manager == Manager::AutoFailover) {
        let set: Vec<String> = FAST.iter().map(|(name, milliseconds)| format!("`{name}` {milliseconds}")).collect();
        let _ = writeln!(
            text,
            "* pg_auto_failover has a monitor in place of etcd, which is not replicated, and is in quorum mode by its defaults. Its manual names what decides on the time of a failover and no least \
             value; *fast* is {} (ms), and `network_partition_timeout` 1 s. Its keepers look and report once a second, which can't be set.",
            set.join(", ")
        );
    }
    let missing: Vec<String> = rounds()
        .into_iter()
        .flat_map(|round| round.events.into_iter().map(move |event| (event, round.contender, round.setting)))
        .filter(|(event, contender, setting)| {
            !all.iter().any(|one| (one.event, one.contender, one.setting) == (*event, *contender, *setting))
        })
        .map(|(event, contender, setting)| format!("{event} ({}, {setting})", contender.label))
        .collect();
    if !missing.is_empty() {
        let _ = writeln!(text, "* Not in this run, though the long form has it: {}.", missing.join("; "));
    }
    for left_out in &run.left_out {
        let _ = writeln!(text, "* Left out: {left_out}.");
    }
    for failed in &run.failed {
        let _ = writeln!(text, "* Did not come to its end, so that nothing of it is above: {failed}.");
    }
    let _ = writeln!(text, "* The ratio is to {}.", PATRONI_FAST.label);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::run::sample;

    #[test]
    fn the_page_of_fixed_figures() {
        insta::assert_snapshot!("page", page(&sample()));
    }

    #[test]
    fn a_busy_machine_and_what_failed_are_said_at_the_top() {
        let mut run = sample();
        run.machine.load_before = 3.0;
        run.failed = vec!["node frozen, Patroni".to_owned()];
        run.left_out = vec!["through HAProxy, which is not installed".to_owned()];
        let page = page(&run);
        assert!(page.contains("* Left out: through HAProxy, which is not installed."), "{page}");
        assert!(page.contains("**The machine was busy") && page.contains("**1 of the rounds"), "{page}");
        assert!(page.contains("nothing of it is above: node frozen, Patroni."), "{page}");
    }

    #[test]
    fn seconds_are_rounded_as_people_say_them() {
        let told = [4, 216, 9994, 10_040, 57_700].map(|ms| seconds(Duration::from_millis(ms)));
        assert_eq!(told, ["0.00 s", "0.22 s", "9.99 s", "10.0 s", "57.7 s"]);
    }
}
