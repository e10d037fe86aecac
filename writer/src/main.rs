//! `pause`: writes every ten milliseconds while a command runs, and prints the longest pause a client saw, and what
//! it was promised and is not there.
//!
//!     pause --ports 15431,15432,15433 --user postgres --password secret -- tenure -c n1.yml switchover --force
//!
//! The password may be given as PGPASSWORD.

use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::process::{Command, ExitCode};
use std::time::Duration;
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::{NoTls, SimpleQueryMessage};
use writer::workload::{Targets, Writer};

/// What the command line says.
struct Arguments {
    /// Host and port.
    servers: Vec<(String, u16)>,
    user: String,
    password: String,
    database: String,
    command: Vec<String>,
}

fn arguments() -> Result<Arguments> {
    let mut found = Arguments {
        servers: Vec::new(),
        user: "postgres".to_owned(),
        password: std::env::var("PGPASSWORD").unwrap_or_default(),
        database: "postgres".to_owned(),
        command: Vec::new(),
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} needs a value"));
        match word.as_str() {
            "--ports" => {
                let server = |text: &str| {
                    let (host, port) = text.rsplit_once(':').unwrap_or(("127.0.0.1", text));
                    Ok::<_, std::num::ParseIntError>((host.to_owned(), port.parse()?))
                };
                let servers: Result<Vec<_>, _> = value()?.split(',').map(server).collect();
                found.servers = servers.context("--ports is a list of PORT or HOST:PORT, joined by commas")?;
            }
            "--user" => found.user = value()?,
            "--password" => found.password = value()?,
            "--database" => found.database = value()?,
            "--" => found.command = words.by_ref().collect(),
            _ => bail!("{word} is unknown; usage: pause --ports A,B,C [--user U] [--password P] [--database D] -- COMMAND ..."),
        }
    }
    if found.servers.is_empty() || found.command.is_empty() {
        bail!("usage: pause --ports A,B,C [--user U] [--password P] [--database D] -- COMMAND ...");
    }
    Ok(found)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode> {
    let given = arguments()?;
    // No unique index on purpose: a doubled row has to be seen, not refused.
    let made = "CREATE TABLE IF NOT EXISTS written(id bigint, at timestamptz DEFAULT now()); SELECT coalesce(max(id), 0) + 1 FROM written";
    let first_id = on_primary(&given, made).await?.first().and_then(|row| row.first().copied()).context("no answer")?;
    let targets = Targets::at(given.servers.clone()).user(&given.user, &given.password).database(&given.database);
    let writer = Writer::start(targets.first_id(first_id));
    writer.goes_on(100, Duration::from_secs(30)).await;
    let status = Command::new(&given.command[0]).args(&given.command[1..]).status().with_context(|| format!("run {}", given.command[0]))?;
    writer.goes_on(100, Duration::from_secs(60)).await;
    let ledger = writer.finish();
    println!("The writer, one insert every 10 ms: {}", ledger.summary());
    println!("Write pause: {} ms", ledger.longest_pause().as_millis());
    let query = format!("SELECT id, count(*) FROM written WHERE id >= {first_id} GROUP BY id");
    let there: BTreeMap<u64, u64> =
        on_primary(&given, &query).await?.iter().filter_map(|row| Some((*row.first()?, *row.get(1)?))).collect();
    let lost = ledger.acknowledged().filter(|attempt| !there.contains_key(&attempt.id)).count();
    let doubled = there.values().filter(|count| **count > 1).count();
    println!("Acknowledged: {}, of these lost: {lost}; doubled: {doubled}", ledger.acknowledged().count());
    Ok(if status.success() && lost + doubled == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// On whichever server takes writes. Gives the rows, numbers all.
async fn on_primary(given: &Arguments, sql: &str) -> Result<Vec<Vec<u64>>> {
    let mut last = anyhow::anyhow!("no server was asked");
    for (host, port) in &given.servers {
        let asked = async {
            let mut config = tokio_postgres::Config::new();
            config.host(host).port(*port).user(&given.user).password(&given.password).dbname(&given.database);
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
            let (client, connection) = config.connect(NoTls).await.with_context(|| format!("connect to {host}:{port}"))?;
            // Its errors reach us through the client.
            tokio::spawn(connection);
            let mut rows = Vec::new();
            for message in client.simple_query(sql).await? {
                if let SimpleQueryMessage::Row(row) = message {
                    let cells = (0..row.len()).map(|at| row.get(at).unwrap_or_default().parse().context("read a number"));
                    rows.push(cells.collect::<Result<Vec<u64>>>()?);
                }
            }
            anyhow::Ok(rows)
        };
        match tokio::time::timeout(Duration::from_secs(5), asked).await {
            Ok(Ok(rows)) => return Ok(rows),
            Ok(Err(error)) => last = error,
            Err(_) => last = anyhow::anyhow!("{host}:{port}: no answer within 5 s"),
        }
    }
    Err(last.context("no server takes writes"))
}
