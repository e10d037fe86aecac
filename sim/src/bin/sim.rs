//! Runs seeds: `sim --seed 7` replays one, `sim --runs 1000` tries as many, `sim --minutes 8` goes on that long.

#![expect(clippy::print_stdout, reason = "a command that tells its result")]

use clap::Parser;
use sim::{Focus, Options, Report};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// Simulates clusters from seeds and says which invariant breaks, if one does.
#[derive(Debug, Parser)]
struct Arguments {
    /// The first seed; drawn from the clock where none is given.
    #[arg(long)]
    seed: Option<u64>,
    /// Faults in each schedule.
    #[arg(long, default_value_t = 25)]
    steps: u64,
    /// Seeds to run, one after another from the first.
    #[arg(long, default_value_t = 1)]
    runs: u64,
    /// Runs seeds for this long instead.
    #[arg(long)]
    minutes: Option<f64>,
    /// Goes on after a seed that fails, and counts.
    #[arg(long)]
    keep_going: bool,
    /// Tells every event and decision.
    #[arg(long)]
    verbose: bool,
    /// Restores etcd from backups and empties it, in four of ten runs.
    #[arg(long)]
    forgets: bool,
    /// Starts copies of nodes' disks on another host, in four of ten runs.
    #[arg(long)]
    copies: bool,
    /// Sets `deposition`, in seven of ten synchronous runs.
    #[arg(long)]
    deposes: bool,
    /// Draws one kind of event far more often than others: moves, promises, votes or copies.
    #[arg(long, value_parser = |word: &str| Focus::of(word).ok_or("moves, promises, votes or copies"))]
    focus: Option<Focus>,
    /// Operators wish for something: maintenance mode, tags, a failover by name, an arbiter's end, a new copy; in seven of ten runs.
    #[arg(long)]
    wishes: bool,
    /// The cluster is founded in the run, in four of ten runs: all nodes are empty when it begins.
    #[arg(long)]
    founds: bool,
    /// Processes of servers crash, once or over and over, and their postmasters live on; in seven of ten runs.
    #[arg(long)]
    crashes: bool,
}

#[derive(Default)]
struct Total {
    runs: u64,
    steps: u64,
    simulated: Duration,
    acknowledged: usize,
    refused: u64,
    cut: u64,
    tenures: u64,
    goes_on_by_promises: u64,
    deposed: u64,
    confirmed_after_standing: u64,
    slowest: Option<(Duration, u64)>,
    failures: Vec<(u64, String)>,
    /// Runs that ended at the documented limit.
    limits: Vec<u64>,
}

impl Total {
    fn add(&mut self, report: &Report) {
        self.runs += 1;
        self.steps += report.steps;
        self.simulated += report.simulated;
        self.acknowledged += report.commits.0;
        self.refused += report.commits.1;
        self.cut += report.commits.2;
        self.tenures += report.leaders;
        self.goes_on_by_promises += report.goes_on_by_promises;
        self.deposed += report.deposed;
        self.confirmed_after_standing += report.confirmed_after_standing;
        self.slowest = self.slowest.max(report.healed_after.map(|after| (after, report.seed)));
        self.limits.extend(report.limit.as_ref().map(|_| report.seed));
        self.failures.extend(report.violation.as_ref().map(|(name, _)| (report.seed, name.clone())));
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let clock = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(1, |since| since.as_millis());
    let first = arguments.seed.unwrap_or_else(|| u64::try_from(clock() % 1_000_000_000).unwrap_or(1));
    let began = Instant::now();
    let over = |seed: u64, total: &Total| {
        let by_time = arguments.minutes.is_some_and(|minutes| began.elapsed().as_secs_f64() > minutes * 60.0);
        let by_count = arguments.minutes.is_none() && seed >= first + arguments.runs;
        by_time || by_count || !(arguments.keep_going || total.failures.is_empty())
    };
    let next = AtomicU64::new(first);
    let total = Mutex::new(Total::default());
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if over(seed, &total.lock().unwrap_or_else(PoisonError::into_inner)) {
                return;
            }
            let Arguments { steps, verbose, forgets, copies, deposes, focus, wishes, founds, crashes, .. } = arguments;
            let report = sim::run(&Options { seed, steps, verbose, forgets, copies, deposes, focus, wishes, founds, crashes });
            let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
            if arguments.verbose && report.violation.is_none() {
                report.schedule.iter().for_each(|line| println!("{line}"));
            }
            if report.violation.is_some() && (total.failures.is_empty() || !arguments.keep_going)
                || arguments.minutes.is_none() && arguments.runs <= 20
            {
                println!("{report}");
            }
            total.add(&report);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let total = total.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!(
        "{} runs from seed {first}, {} faults each: {} steps, {:.1} simulated hours, {} tenures; commits {} acknowledged, {} refused, {} cut; \
         {} times on by promises, {} deposed, received after standing {}; slowest to heal {}; {:.0} s",
        total.runs,
        arguments.steps,
        total.steps,
        total.simulated.as_secs_f64() / 3600.0,
        total.tenures,
        total.acknowledged,
        total.refused,
        total.cut,
        total.goes_on_by_promises,
        total.deposed,
        total.confirmed_after_standing,
        total.slowest.map_or("-".to_owned(), |(after, seed)| format!("{:.0} s (seed {seed})", after.as_secs_f64())),
        began.elapsed().as_secs_f64(),
    );
    if !total.limits.is_empty() {
        println!("{} runs ended where a documented limit was reached (docs/failure-modes.md): {:?}", total.limits.len(), total.limits);
    }
    if total.failures.is_empty() {
        return ExitCode::SUCCESS;
    }
    for (seed, name) in &total.failures {
        println!("FAILED seed {seed}: {name}");
    }
    ExitCode::FAILURE
}
