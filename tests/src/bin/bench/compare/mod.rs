//! `bench compare`: the same faults, by turns, to pg_tenure, Patroni and pg_auto_failover; one writer, one machine, one run; written to docs/performance.md and .svg.

mod act;
mod auto_failover;
mod chart;
mod idle;
mod page;
mod rounds;
mod run;
mod seen;

use act::Others;
use anyhow::{Context, Result, bail};
use rounds::{CONTENDERS, EVENTS, Event, Form, Manager, Round, WAYS};
use run::Run;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;
use stories::machine::{self, Machine};
use stories::programs;

/// The name on bench's command line.
pub const NAME: &str = "compare";
/// The word for everything, in place of what ends within a quarter of an hour.
const LONG: &str = "long";
/// The word before the directory that is written to, in place of docs.
const INTO: &str = "into=";

/// Runs it all, and writes what it has after every round, so that a run that is stopped leaves what it saw.
pub async fn compare(runs: usize, words: &[String]) -> Result<()> {
    let form = if words.iter().any(|word| word == LONG) { Form::Long } else { Form::Short };
    let into = words.iter().find_map(|word| word.strip_prefix(INTO)).map_or_else(docs, PathBuf::from);
    let wanted: Vec<String> = words.iter().filter(|word| *word != LONG && !word.starts_with(INTO)).cloned().collect();
    let known = |word: &String| {
        EVENTS.iter().any(|one| one.key() == word) || CONTENDERS.iter().any(|one| one.key == word) || WAYS.contains(&word.as_str())
    };
    if let Some(unknown) = wanted.iter().find(|word| !known(word)) {
        let all: Vec<&str> = EVENTS.iter().map(|one| one.key()).chain(CONTENDERS.iter().map(|one| one.key)).chain(WAYS).collect();
        bail!("{unknown} is no event, no contender and no way to the cluster; hint: {}", all.join(", "));
    }
    let patroni = programs::patroni().context("no Patroni to compare with; hint: `make patroni`, or PATRONI=/path/of/patroni")?;
    let patronictl = programs::patronictl().context("no patronictl; hint: `make patroni`, or PATRONICTL=/path/of/patronictl")?;
    let others = Others { patroni, patronictl, haproxy: programs::haproxy(), auto_failover: auto_failover::installed() };
    let mut turns = rounds::turns(form, runs, &wanted);
    let mut left_out = Vec::new();
    let mut leave_out = |installed: bool, needs: fn(&Round) -> bool, what: &str| {
        if !installed && turns.iter().any(|(_, round)| needs(round)) {
            turns.retain(|(_, round)| !needs(round));
            left_out.push(what.to_owned());
        }
    };
    let through_haproxy = |round: &Round| round.setting.haproxy;
    let auto_failover = |round: &Round| round.contender.manager == Manager::AutoFailover;
    leave_out(others.haproxy.is_some(), through_haproxy, "through HAProxy, which is not installed here (`make setup-tests` does it)");
    leave_out(
        others.auto_failover.is_some(),
        auto_failover,
        "pg_auto_failover, which is not installed here (`make auto-failover` does it)",
    );
    left_out.iter().for_each(|what| say(&format!("LEFT OUT: {what}")));
    if turns.is_empty() {
        if !left_out.is_empty() {
            bail!("nothing to do: {}", left_out.join("; "));
        }
        if form == Form::Long {
            bail!("nothing to do: no round has all of {}", wanted.join(", "));
        }
        bail!("nothing to do: {} is in the long form only; hint: bench compare {runs} {LONG} ...", wanted.join(", "));
    }
    let minutes = |turns: &[(usize, Round)]| turns.iter().map(|(run, round)| rounds::expected_s(*run, round)).sum::<u64>().div_ceil(60);
    let mut programs = vec![programs::tenure(), others.patroni.clone(), programs::postgres_bin().join("postgres"), "etcd".into()];
    programs.extend(others.haproxy.clone().filter(|_| turns.iter().any(|(_, round)| through_haproxy(round))));
    programs.extend(others.auto_failover.clone().filter(|_| turns.iter().any(|(_, round)| auto_failover(round))));
    let mut programs: Vec<Command> = programs.into_iter().map(Command::new).collect();
    let mut run =
        Run { machine: Machine::here(&mut programs), command: command(runs, words), seen: Vec::new(), left_out, failed: Vec::new() };
    say(&format!("{} rounds, about {} minutes on a quiet machine; into {}", turns.len(), minutes(&turns), into.display()));
    let began = Instant::now();
    for (number, (of_run, round)) in turns.iter().enumerate() {
        let name = act::name(round);
        // A wait that comes to its bound panics: that round is lost, and said; the others are not.
        let (of_run, of_round, others) = (*of_run, round.clone(), others.clone());
        let task = tokio::task::LocalSet::new();
        let done = task.run_until(async move { tokio::task::spawn_local(act::round(of_run, of_round, others)).await }).await;
        match done {
            Ok(Ok(seen)) => {
                for one in &seen {
                    let (event, pause, lost) = (one.event, page::seconds(one.pause), one.lost);
                    let what =
                        if event == Event::Idle { format!("{:?}", one.idle) } else { format!("{pause}, lost {lost}, {:?}", one.errors) };
                    say(&format!("run {of_run}: {name}: {event}: {what}"));
                }
                run.seen.extend(seen);
            }
            Ok(Err(error)) => run.failed.push(format!("{name}, run {of_run}: {error:#}")),
            Err(_) => run.failed.push(format!("{name}, run {of_run}: a wait came to its bound (it is in what bench printed)")),
        }
        run.machine.load_after = machine::load();
        write(&run, &into)?;
        say(&format!(
            "{} of {} rounds, {} minutes gone, about {} left",
            number + 1,
            turns.len(),
            began.elapsed().as_secs() / 60,
            minutes(&turns[number + 1..])
        ));
    }
    run.failed.iter().for_each(|failed| say(&format!("FAILED: {failed}")));
    if run.seen.is_empty() { bail!("no round came to its end") } else { Ok(()) }
}

fn command(runs: usize, words: &[String]) -> String {
    let words: Vec<&str> = words.iter().filter(|word| !word.starts_with(INTO)).map(String::as_str).collect();
    let what = if words.is_empty() { String::new() } else { format!(" COMPARE=\"{}\"", words.join(" ")) };
    format!("make bench-compare RUNS={runs}{what}")
}

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

fn write(run: &Run, into: &Path) -> Result<()> {
    for (name, text) in [("performance.md", page::page(run)), ("performance.svg", chart::chart(run))] {
        let path = into.join(name);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn say(words: &str) {
    let _ = writeln!(std::io::stderr(), "{words}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_says_how_to_do_it_again() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        assert_eq!(command(3, &[]), "make bench-compare RUNS=3");
        assert_eq!(command(5, &words(&["long", "into=/tmp/x", "cut"])), "make bench-compare RUNS=5 COMPARE=\"long cut\"");
    }
}
