//! `scale`: what many clusters cost one etcd: their members speak the real protocol by the lease worker's own loops, without Postgres; written to docs/scale.md.
//!
//!     scale [GROUPS ...] [settle=SECONDS] [for=SECONDS] [into=DIRECTORY]     100 and 300 groups of three, 30 s, 60 s, docs

mod counters;
mod crowd;
mod member;
mod meter;
mod page;

use anyhow::{Context, Result, bail};
use cluster::time::Moment;
use counters::{Counters, Rates};
use crowd::Crowd;
use member::boottime;
use meter::{Meter, Renewals, quantile};
use rustix::process::{Resource, getrlimit, setrlimit};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use stories::etcd::Etcd;
use stories::machine::{self, Machine};
use stories::room::Room;
use stories::wait;

/// So many leaders are dropped at once.
const DROPPED: usize = 32;

/// How long renewals are watched after etcd was started again.
const AFTER_RESTART: Duration = Duration::from_secs(10);

/// How long any of it may take at most, beyond what it waits for on purpose.
const PATIENCE: Duration = Duration::from_secs(180);

/// What is asked for.
struct Wanted {
    sizes: Vec<usize>,
    settle: Duration,
    watch: Duration,
    into: PathBuf,
}

/// What was seen of one number of groups.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// So many groups.
    pub groups: usize,
    /// The mean of the machine's last minute when the watched span ended.
    pub load: f64,
    /// etcd in the watched span.
    pub rates: Rates,
    /// How long that was.
    pub watched: Duration,
    /// The renewals in it.
    pub renewals: Renewals,
    /// etcd killed and started again.
    pub restart: Restart,
    /// Leaders dropped at once.
    pub failovers: Failovers,
}

/// What a restart of etcd cost.
#[derive(Debug, Clone, Default)]
pub struct Restart {
    /// From its death until it answered again.
    pub away: Duration,
    /// From its death until a group's leader had renewed: the middle one and the last.
    pub renewed: [Duration; 2],
    /// Groups whose leader's lease had run out by its own count before.
    pub lapsed: usize,
    /// Groups in which another member, or the same again, took the key.
    pub changed: usize,
    /// The renewals of all members right after.
    pub renewals: Renewals,
}

/// What it cost that many leaders were lost at once.
#[derive(Debug, Clone, Default)]
pub struct Failovers {
    /// So many.
    pub dropped: usize,
    /// From the drop until another member had the key: the middle one and the last.
    pub after_drop: [Duration; 2],
    /// From the lease's end by its holder's count until then.
    pub after_lease: [Duration; 2],
    /// The renewals of all members meanwhile.
    pub renewals: Renewals,
    /// etcd meanwhile.
    pub rates: Rates,
    /// Groups without a fault in which the key was taken meanwhile.
    pub needless: usize,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let wanted = wanted(&words)?;
    many_files()?;
    let mut machine = Machine::here(&mut [Command::new("etcd")]);
    let mut all = Vec::new();
    for groups in &wanted.sizes {
        let seen = measure(*groups, &wanted).await.with_context(|| format!("{groups} groups"))?;
        all.push(seen);
        machine.load_after = machine::load();
        let path = wanted.into.join("scale.md");
        std::fs::write(&path, page::page(&machine, &command(&words), &all)).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn wanted(words: &[String]) -> Result<Wanted> {
    let mut wanted = Wanted {
        sizes: Vec::new(),
        settle: Duration::from_secs(30),
        watch: Duration::from_secs(60),
        into: Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs"),
    };
    for word in words {
        let seconds = |text: &str| text.parse().map(Duration::from_secs).with_context(|| format!("{word}: no number of seconds"));
        match word.split_once('=') {
            Some(("settle", text)) => wanted.settle = seconds(text)?,
            Some(("for", text)) => wanted.watch = seconds(text)?,
            Some(("into", text)) => wanted.into = PathBuf::from(text),
            Some(_) => bail!("{word} is not known; hint: scale 100 300 settle=30 for=60 into=/tmp"),
            None => wanted.sizes.push(word.parse().with_context(|| format!("{word}: no number of groups"))?),
        }
    }
    if wanted.sizes.is_empty() {
        wanted.sizes = vec![100, 300];
    }
    Ok(wanted)
}

/// How to do it again.
fn command(words: &[String]) -> String {
    let words: Vec<&str> = words.iter().filter(|word| !word.starts_with("into=")).map(String::as_str).collect();
    if words.is_empty() { "make bench-scale".to_owned() } else { format!("make bench-scale SCALE=\"{}\"", words.join(" ")) }
}

/// Two connections a member, and etcd has the other end of each.
fn many_files() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, rustix::process::Rlimit { current: limit.maximum, ..limit }).context("raise the number of open files")
}

async fn measure(groups: usize, wanted: &Wanted) -> Result<Seen> {
    let room = Room::new();
    let etcd = Etcd::start(&room).await;
    let meter = Arc::new(Meter::default());
    let crowd = Crowd::begin(groups, &format!("http://{}", etcd.hosts()), &meter)?;
    wait::until("every group to have a leader", PATIENCE, async || match meter.complete() {
        all if all == groups => Ok(()),
        some => Err(format!("{some} of {groups} have one; {:?}", meter.take_said())),
    })
    .await;
    say(&format!("{groups} groups run; settling for {} s", wanted.settle.as_secs()));
    wait::lasting(wanted.settle).await;
    tell(&meter, "while they began");
    let (began, before) = (boottime(), Counters::look(&etcd).await?);
    wait::lasting(wanted.watch).await;
    let (ended, after) = (boottime(), Counters::look(&etcd).await?);
    let load = machine::load();
    let (rates, renewals, watched) = (after.since(&before), meter.renewals(began, ended), ended.since(began));
    say(&format!(
        "{groups} groups: {:.0} requests a second, {:.0} ms of etcd's processor time; {} renewals, p50 {:?}, p99 {:?}",
        rates.all_requests(),
        rates.processor_ms,
        renewals.count(),
        renewals.at(500),
        renewals.at(990)
    ));
    tell(&meter, "while they were watched");
    if meter.taken(began, ended) != 0 {
        bail!(
            "{} groups changed their leader although nothing befell them: the figures are not of groups at rest",
            meter.taken(began, ended)
        );
    }
    let restart = restart(groups, &etcd, &room, &meter).await;
    say(&format!(
        "etcd killed and started again: answers after {:?}, leaders renewed after {:?}, {} leases lapsed, {} keys taken",
        restart.away, restart.renewed, restart.lapsed, restart.changed
    ));
    tell(&meter, "around the restart");
    wait::lasting(wanted.settle).await;
    let failovers = failovers(groups, &etcd, &crowd, &meter).await?;
    say(&format!(
        "{} leaders dropped: {:?} after the drop, {:?} after the lease",
        failovers.dropped, failovers.after_drop, failovers.after_lease
    ));
    tell(&meter, "around the failovers");
    Ok(Seen { groups, load, rates, watched, renewals, restart, failovers })
}

async fn restart(groups: usize, etcd: &Etcd, room: &Room, meter: &Meter) -> Restart {
    etcd.kill();
    let killed = boottime();
    etcd.run(room).await;
    let away = boottime().since(killed);
    let renewed = wait::until("every leader to have renewed", PATIENCE, async || {
        let renewed = meter.first_renewals_since(killed);
        if renewed.len() == groups { Ok(renewed) } else { Err(format!("{} of {groups} have", renewed.len())) }
    })
    .await;
    let renewed = middle_and_last(renewed.into_values().collect());
    let then = boottime();
    wait::lasting(AFTER_RESTART).await;
    let now = boottime();
    Restart {
        away,
        renewed,
        lapsed: meter.lapsed(killed, now, crowd::configuration().timing().ttl),
        changed: meter.taken(killed, now),
        renewals: meter.renewals(then, now),
    }
}

async fn failovers(groups: usize, etcd: &Etcd, crowd: &Crowd, meter: &Meter) -> Result<Failovers> {
    let victims = DROPPED.min(groups);
    let (began, before) = (boottime(), Counters::look(etcd).await?);
    crowd.drop_leaders((0..victims).map(|number| number * groups / victims));
    let successions = wait::until("every group to have a leader again", PATIENCE, async || {
        let seen = meter.successions();
        if seen.len() == victims {
            Ok(seen)
        } else {
            Err(format!("{} of {victims} have; {} dropped", seen.len(), meter.count_of_dropped()))
        }
    })
    .await;
    let last = successions.iter().map(|one| one.at).max().unwrap_or(Moment::default());
    let rates = Counters::look(etcd).await?.since(&before);
    Ok(Failovers {
        dropped: victims,
        after_drop: middle_and_last(successions.iter().map(|one| one.after_drop).collect()),
        after_lease: middle_and_last(successions.iter().map(|one| one.after_lease).collect()),
        renewals: meter.renewals(began, last),
        rates,
        needless: meter.taken(began, boottime()).saturating_sub(victims),
    })
}

fn middle_and_last(mut spans: Vec<Duration>) -> [Duration; 2] {
    spans.sort();
    [quantile(&spans, 500), quantile(&spans, 1000)]
}

fn tell(meter: &Meter, when: &str) {
    for (what, times) in meter.take_said().into_iter().take(8) {
        say(&format!("  said {when}, {times} times: {what}"));
    }
}

fn say(words: &str) {
    let _ = writeln!(std::io::stderr(), "{words}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn the_command_says_how_to_do_it_again() {
        assert_eq!(command(&words(&["into=/tmp"])), "make bench-scale");
        assert_eq!(command(&words(&["10", "for=5", "into=/tmp"])), "make bench-scale SCALE=\"10 for=5\"");
    }

    #[test]
    fn sizes_and_spans_are_given_by_words() {
        assert_eq!(wanted(&[]).unwrap().sizes, [100, 300]);
        let given = wanted(&words(&["10", "20", "settle=1", "for=5", "into=/x"])).unwrap();
        assert_eq!((given.sizes, given.settle.as_secs(), given.watch.as_secs()), (vec![10, 20], 1, 5));
        assert!(wanted(&words(&["ten"])).is_err() && wanted(&words(&["until=5"])).is_err());
    }
}
