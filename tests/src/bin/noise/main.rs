//! `noise`: an hour of noise without a fault over a real cluster, and how often it was taken for one: needless changes of leader, words of
//! voters, members called sick. See docs/noise.md.
//!
//!     noise [seed=N] [minutes=M] [ttl=SECONDS] [deposition=true|false] [percent=5] [late=MILLISECONDS] [proof=true|false]
//!     noise seed=N minutes=M plan=true    prints what would happen
//!
//! `proof=true` freezes the leader's whole node for six seconds, and then demands more space than any disk has: the counts must show it.
//! Ends with 1 where the leader changed.

mod ground;
mod load;
mod made;
mod plan;
mod told;

use anyhow::{Context, Result, bail};
use ground::Ground;
use made::Made;
use plan::Plan;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use stories::wait;
use told::{Told, Watched};

/// What a run is.
#[derive(Debug, Clone)]
pub struct Wanted {
    seed: u64,
    lasts: Duration,
    ttl: u64,
    deposition: bool,
    percent: u64,
    late: Duration,
    proof: bool,
}

fn wanted() -> Result<(Wanted, bool)> {
    let mut wanted = Wanted {
        seed: SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() % 100_000,
        lasts: Duration::from_secs(3600),
        ttl: 10,
        deposition: true,
        percent: 5,
        late: Duration::from_millis(200),
        proof: false,
    };
    let mut only_the_plan = false;
    for word in std::env::args().skip(1) {
        let (name, value) = word.split_once('=').with_context(|| format!("{word} is no name=value"))?;
        let wrong = || format!("{name} can't be {value}");
        match name {
            "seed" => wanted.seed = value.parse().with_context(wrong)?,
            "minutes" => wanted.lasts = Duration::from_secs_f64(value.parse::<f64>().with_context(wrong)? * 60.0),
            "ttl" => wanted.ttl = value.parse().with_context(wrong)?,
            "deposition" => wanted.deposition = value.parse().with_context(wrong)?,
            "percent" => wanted.percent = value.parse().with_context(wrong)?,
            "late" => wanted.late = Duration::from_millis(value.parse().with_context(wrong)?),
            "proof" => wanted.proof = value.parse().with_context(wrong)?,
            "plan" => only_the_plan = value.parse().with_context(wrong)?,
            _ => bail!("{name} is unknown; there are seed, minutes, ttl, deposition, percent, late, proof and plan"),
        }
    }
    Ok((wanted, only_the_plan))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode> {
    let (wanted, only_the_plan) = wanted()?;
    let plan = Plan::new(wanted.seed, wanted.lasts);
    if only_the_plan {
        print!("{plan}");
        return Ok(ExitCode::SUCCESS);
    }
    if !rustix::process::geteuid().is_root() {
        bail!("root is needed, for network namespaces");
    }
    Ok(if Box::pin(run(&wanted, &plan)).await? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints as it goes; true where the leader stayed.
async fn run(wanted: &Wanted, plan: &Plan) -> Result<bool> {
    let ground = Ground::settle(wanted).await?;
    let cluster = &ground.cluster;
    let room = cluster.room.path().display().to_string();
    println!(
        "noise: seed {}, {:.0} min, quorum mode, ttl {} s, deposition {}, sick_primary observe, {} % loss, {} ms late, in {room}",
        wanted.seed,
        wanted.lasts.as_secs_f64() / 60.0,
        wanted.ttl,
        if wanted.deposition { "on" } else { "off" },
        wanted.percent,
        wanted.late.as_millis(),
    );
    load::fill(&ground).await?;
    cluster.healthy().await;
    let first = cluster.leader().await;
    let term = first.one("SELECT fencing_token FROM tenure.lease()").await?;
    let before = Told::by(cluster);
    let writer = cluster.writer().await;
    let began = Instant::now();
    let made = Made::new(&ground, began);
    let (watched, load) = {
        let watch = told::watch(&ground, wanted, began, &before);
        let load = load::run(&ground, began, wanted.lasts);
        let (watched, load, ()) = tokio::join!(watch, load, made.all(plan, wanted));
        (watched, load)
    };
    made.end();
    let said = made.table();
    drop(made);
    let ledger = writer.finish();
    cluster.healthy().await;
    let told = Told::by(cluster).since(&before);
    let last = cluster.leader().await;
    let term_now = wait::until("the term", Duration::from_secs(60), async || {
        last.one("SELECT fencing_token FROM tenure.lease()").await.map_err(|error| format!("{error:#}"))
    })
    .await;
    let verdict = cluster.verdict(&ledger).await;
    println!("\n{said}");
    let Watched { changes, without, unanswered, load_average } = watched;
    let needless = changes.max(told.promotions).max(usize::from(term != term_now));
    println!("| what | |\n|---|---|");
    println!("| minutes | {:.1} |\n| load average, median and most | {load_average} |", began.elapsed().as_secs_f64() / 60.0);
    println!("| **needless changes of leader** | **{needless}** |");
    println!("| of these by deposition; promotions | {}; {} |", told.taken, told.promotions);
    println!("| terms, first and last | {term}, {term_now} |");
    println!("| looks at etcd without a leader; without an answer | {without}; {unanswered} |");
    println!("| words of voters spoken; called off | {}; {} |", told.spoken, told.called_off);
    println!("| members called sick | {} |", told.sick.len());
    println!("| pgbench: transactions; failed clients | {}; {} |", load.transactions, load.failed.len());
    println!("| the writer | {} |", ledger.summary());
    println!(
        "| of its rows lost; doubled; refused and there | {}; {}; {} |",
        verdict.lost.len(),
        verdict.doubled.len(),
        verdict.wrongly_refused.len()
    );
    for line in &told.sick {
        println!("said: {line}");
    }
    for line in load.failed.iter().take(10) {
        println!("pgbench: {line}");
    }
    if needless + told.spoken + told.sick.len() > 0 {
        cluster.room.keep();
        println!("noise: left for you to look at: {room}");
    }
    println!("noise: seed {}: {}", wanted.seed, if needless == 0 { "the leader stayed" } else { "THE LEADER CHANGED NEEDLESSLY" });
    Ok(needless == 0)
}
