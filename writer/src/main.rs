//! `pause`: writes every ten milliseconds while a command runs, and prints the longest pause a client saw.
//!
//!     pause --ports 15431,15432,15433 --user postgres --password secret -- tenure -c n1.yml switchover --force

use anyhow::{Context, Result, bail};
use std::process::{Command, ExitCode};
use std::time::Duration;
use tokio_postgres::NoTls;
use writer::workload::{Targets, Writer};

/// What the command line says.
struct Arguments {
    ports: Vec<u16>,
    user: String,
    password: String,
    database: String,
    command: Vec<String>,
}

fn arguments() -> Result<Arguments> {
    let mut found = Arguments {
        ports: Vec::new(),
        user: "postgres".to_owned(),
        password: String::new(),
        database: "postgres".to_owned(),
        command: Vec::new(),
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} needs a value"));
        match word.as_str() {
            "--ports" => {
                let ports = value()?;
                let ports: Result<Vec<u16>, _> = ports.split(',').map(str::parse).collect();
                found.ports = ports.context("--ports is a list of numbers, joined by commas")?;
            }
            "--user" => found.user = value()?,
            "--password" => found.password = value()?,
            "--database" => found.database = value()?,
            "--" => found.command = words.by_ref().collect(),
            _ => bail!("{word} is unknown; usage: pause --ports A,B,C --user U --password P [--database D] -- COMMAND ..."),
        }
    }
    if found.ports.is_empty() || found.command.is_empty() {
        bail!("usage: pause --ports A,B,C --user U --password P [--database D] -- COMMAND ...");
    }
    Ok(found)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode> {
    let given = arguments()?;
    make_table(&given).await?;
    let targets = Targets::on_loopback(given.ports).user(&given.user, &given.password).database(&given.database);
    let writer = Writer::start(targets);
    writer.goes_on(100, Duration::from_secs(30)).await;
    let status = Command::new(&given.command[0]).args(&given.command[1..]).status().with_context(|| format!("run {}", given.command[0]))?;
    writer.goes_on(100, Duration::from_secs(60)).await;
    let ledger = writer.finish();
    println!("The writer, one insert every 10 ms: {}", ledger.summary());
    println!("Write pause: {} ms", ledger.longest_pause().as_millis());
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// On whichever server takes writes.
async fn make_table(given: &Arguments) -> Result<()> {
    let mut last = anyhow::anyhow!("no server was asked");
    for port in &given.ports {
        let made = async {
            let mut config = tokio_postgres::Config::new();
            config.host("127.0.0.1").port(*port).user(&given.user).password(&given.password).dbname(&given.database);
            let (client, connection) = config.connect(NoTls).await.with_context(|| format!("connect to port {port}"))?;
            // Its errors reach us through the client.
            tokio::spawn(connection);
            client.batch_execute("CREATE TABLE IF NOT EXISTS written(id bigint, at timestamptz DEFAULT now())").await?;
            anyhow::Ok(())
        };
        match tokio::time::timeout(Duration::from_secs(5), made).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => last = error,
            Err(_) => last = anyhow::anyhow!("port {port}: no answer within 5 s"),
        }
    }
    Err(last.context("no server takes writes"))
}
