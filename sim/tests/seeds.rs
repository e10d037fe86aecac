//! Fixed seeds that must stay green, fresh ones that may find something, and that a seed is a seed.

#![expect(clippy::print_stdout, reason = "the seeds of a test are part of its result")]

use sim::{Options, Report};
use std::time::SystemTime;

const STEPS: u64 = 25;

fn run(seed: u64) -> Report {
    sim::run(&Options {
        seed,
        steps: STEPS,
        verbose: false,
        forgets: false,
        copies: false,
        deposes: false,
        focus: None,
        wishes: false,
        founds: false,
        crashes: false,
    })
}

fn check(seeds: impl Iterator<Item = u64>) {
    for seed in seeds {
        let report = run(seed);
        println!("{report}");
        assert!(report.violation.is_none(), "{report}");
        assert!(report.commits.0 > 0, "nothing was written: {report}");
    }
}

#[test]
fn fixed_seeds_break_nothing() {
    check(1..=40);
}

/// What these once broke stands in docs/simulation.md.
#[test]
fn seeds_that_found_something_break_nothing_now() {
    check([116, 123, 144, 148, 161, 167, 266, 267, 341, 474, 716, 917, 216_272_929].into_iter());
}

/// With the last answer of a founding lost (39), and its arbiter killed in the middle (76).
#[test]
fn a_cluster_is_founded_whatever_befalls_the_one_that_founds_it() {
    for seed in (1..=8).chain([39, 76]) {
        let report = sim::run(&Options {
            seed,
            steps: 2,
            verbose: false,
            forgets: false,
            copies: false,
            deposes: false,
            focus: None,
            wishes: false,
            founds: true,
            crashes: false,
        });
        println!("{report}");
        assert!(report.violation.is_none() && report.commits.0 > 0, "{report}");
    }
}

/// PANIC after PANIC under a postmaster that lives, and single crashes (ADR 61).
#[test]
fn a_server_that_crashes_in_place_breaks_nothing() {
    for seed in 1..=6 {
        let report = sim::run(&Options {
            seed,
            steps: STEPS,
            verbose: false,
            forgets: false,
            copies: false,
            deposes: false,
            focus: None,
            wishes: false,
            founds: false,
            crashes: true,
        });
        println!("{report}");
        assert!(report.violation.is_none() && report.commits.0 > 0, "{report}");
    }
}

#[test]
fn fresh_seeds_break_nothing() {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let first = u64::try_from(now.as_nanos() % 1_000_000_000).unwrap();
    println!("fresh seeds from {first}; replay one with: make sim SEED=<seed>");
    check(first..first + 12);
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in [7, 8] {
        assert_eq!(run(seed).to_string(), run(seed).to_string());
    }
}
