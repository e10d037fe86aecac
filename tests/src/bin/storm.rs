//! `storm`: faults drawn from a seed over a real cluster, clients that keep account, and a verdict; see docs/storm.md.
//!
//!     storm [seed=N] [minutes=M] [sync=true|false|quorum] [net=true|false] [modes=true|false] [only=FAULT] [heal=SECONDS] [ttl=SECONDS]
//!         [deposition=true|false]
//!     storm seed=N plan=ROUNDS        prints what would happen

use anyhow::{Context, Result, bail};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use stories::storm::mode::Base;
use stories::storm::{self, Weather};

fn weather() -> Result<(Weather, Option<usize>)> {
    let mut plan = None;
    let root = rustix::process::geteuid().is_root();
    let seed = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() % 100_000;
    let mut weather = Weather {
        seed,
        lasts: Duration::from_secs(300),
        base: Base::Synchronous,
        networked: root,
        modes: false,
        only: String::new(),
        heal: Duration::from_secs(60),
        ttl: 5,
        deposition: false,
    };
    for word in std::env::args().skip(1) {
        let (name, value) = word.split_once('=').with_context(|| format!("{word} is no name=value"))?;
        let wrong = || format!("{name} can't be {value}");
        match name {
            "seed" => weather.seed = value.parse().with_context(wrong)?,
            "minutes" => weather.lasts = Duration::from_secs_f64(value.parse::<f64>().with_context(wrong)? * 60.0),
            "sync" => weather.base = Base::named(value).with_context(wrong)?,
            "net" => weather.networked = value.parse().with_context(wrong)?,
            "modes" => weather.modes = value.parse().with_context(wrong)?,
            "only" => value.clone_into(&mut weather.only),
            "heal" => weather.heal = Duration::from_secs(value.parse().with_context(wrong)?),
            "ttl" => weather.ttl = value.parse().with_context(wrong)?,
            "deposition" => weather.deposition = value.parse().with_context(wrong)?,
            "plan" => plan = Some(value.parse().with_context(wrong)?),
            _ => bail!("{name} is unknown; there are seed, minutes, sync, net, modes, only, heal, ttl, deposition and plan"),
        }
    }
    Ok((weather, plan))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode> {
    let (weather, plan) = weather()?;
    if let Some(rounds) = plan {
        storm::print_plan(&weather, rounds);
        return Ok(ExitCode::SUCCESS);
    }
    let calm = Box::pin(storm::run(&weather)).await;
    Ok(if calm { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
