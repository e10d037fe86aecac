//! The second day: alerts, the runbook, the page and its stream, what `check` looks at beside the keys, an incident told, a fleet.

use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};
use stories::cluster::{Cluster, PATIENCE};
use stories::etcd::{Etcd, Guard};
use stories::node::Node;
use stories::place::Place;
use stories::room::Room;
use stories::tls::{Authority, text};
use stories::{http, programs, wait};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn file(name: &str) -> String {
    let path = root().join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The names of metrics in this text: whatever begins like one of ours, the field's or etcd's.
fn metrics(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let ours = words.filter(|word| ["tenure_", "patroni_", "etcd_"].iter().any(|kind| word.starts_with(kind)));
    ours.map(str::to_owned).collect()
}

/// What the rules and the dashboard ask for.
fn asked_for() -> BTreeSet<String> {
    let alerts: Value = serde_saphyr::from_str(&file("monitoring/alerts.yml")).expect("understand the rules");
    let dashboard: Value = serde_json::from_str(&file("monitoring/dashboard.json")).expect("understand the dashboard");
    let mut expressions = Vec::new();
    fn collect(value: &Value, expressions: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    match value {
                        Value::String(text) if key == "expr" || key == "query" => expressions.push(text.clone()),
                        other => collect(other, expressions),
                    }
                }
            }
            Value::Array(list) => list.iter().for_each(|value| collect(value, expressions)),
            _ => {}
        }
    }
    collect(&alerts, &mut expressions);
    collect(&dashboard, &mut expressions);
    assert!(expressions.len() > 40, "only {} expressions", expressions.len());
    metrics(&expressions.join("\n"))
}

/// The first word of each sample.
fn given(page: &str) -> BTreeSet<String> {
    let name = |line: &str| line.split(['{', ' ']).next().map(str::to_owned);
    page.lines().filter(|line| !line.starts_with('#')).filter_map(name).collect()
}

#[test]
fn promtool_takes_the_rules_and_their_cases() {
    let Some(promtool) = programs::promtool() else {
        println!("SKIPPED: no promtool here; Debian's package `prometheus` has it");
        return;
    };
    for arguments in [&["check", "rules", "alerts.yml"][..], &["test", "rules", "alerts_test.yml"]] {
        let output =
            std::process::Command::new(&promtool).args(arguments).current_dir(root().join("monitoring")).output().expect("run promtool");
        assert!(
            output.status.success(),
            "{arguments:?}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

/// What a heading is called in a link.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

/// Heading and text of each case of the runbook.
fn cases() -> Vec<(String, String)> {
    let runbook = file("docs/runbook.md");
    let case = |part: &str| part.split_once('\n').map(|(heading, text)| (heading.to_owned(), text.to_owned()));
    runbook.split("\n## ").skip(1).filter_map(case).collect()
}

#[test]
fn each_case_of_the_runbook_names_a_story_and_each_alert_a_case() {
    let cases = cases();
    assert!(cases.len() >= 15, "{} cases", cases.len());
    for (heading, text) in &cases {
        let shown = text.lines().find_map(|line| line.strip_prefix("Shown by: ")).unwrap_or_else(|| panic!("{heading} names no story"));
        let (place, story) = shown.split_once(": ").unwrap_or_else(|| panic!("{heading}: {shown}"));
        assert!(file(&format!("tests/tests/{place}.rs")).contains(&format!("fn {story}()")), "{heading}: there is no story {shown}");
        assert!(text.lines().any(|line| line.starts_with("    ")), "{heading} has no command");
    }
    let anchors: BTreeSet<String> = cases.iter().map(|(heading, _)| anchor(heading)).collect();
    let alerts = file("monitoring/alerts.yml");
    let named: BTreeSet<&str> =
        alerts.lines().filter_map(|line| line.split_once("docs/runbook.md#").map(|(_, anchor)| anchor.trim())).collect();
    assert!(named.len() > 10, "{named:?}");
    for anchor in named {
        assert!(anchors.contains(anchor), "the runbook has no case {anchor}: {anchors:?}");
    }
}

/// Begins to read the stream; gives what came until `enough`.
async fn stream(node: &Node, enough: impl Fn(&str) -> bool) -> String {
    let mut socket = tokio::net::TcpStream::connect((node.host(), node.rest_port())).await.expect("connect");
    socket.write_all(b"GET /ui/events HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n").await.expect("ask");
    let (mut heard, mut bytes) = (String::new(), [0; 4096]);
    let until = Instant::now() + Duration::from_secs(30);
    while !enough(&heard) {
        let read = tokio::time::timeout(Duration::from_secs(15), socket.read(&mut bytes)).await;
        let count = read.expect("the stream is silent").expect("read the stream");
        assert!(count > 0 && Instant::now() < until, "the stream ended: {heard}");
        heard.push_str(&String::from_utf8_lossy(&bytes[..count]));
    }
    heard
}

#[tokio::test]
async fn the_page_its_stream_and_every_metric_that_is_asked_for_are_there() {
    let room = Room::new();
    let etcd = Etcd::start(&room).await;
    let shown = Authority::new(&room, "cluster").sign_until(&room, "shown", 2030);
    let cluster = Cluster::of(2).ttl(5).dynamic("backup_within", json!("26h")).planned_on(room, etcd, |config| {
        config["postgresql"]["parameters"]["ssl"] = json!("on");
        config["postgresql"]["parameters"]["ssl_cert_file"] = json!(text(&shown.certificate));
        config["postgresql"]["parameters"]["ssl_key_file"] = json!(text(&shown.key));
    });
    cluster.start_all().await;
    let leader = cluster.leader().await;
    let wanted = asked_for();
    wait::until("every metric that rules and dashboard name", PATIENCE, async || {
        let mut there = BTreeSet::new();
        for node in &cluster.nodes {
            there.extend(given(&node.get("/metrics").await?.body));
        }
        there.extend(given(&http::get(cluster.etcd.members()[0].port(), "/metrics").await?.body));
        let missing: Vec<&String> = wanted.difference(&there).collect();
        anyhow::ensure!(missing.is_empty(), "{missing:?}");
        Ok(())
    })
    .await;
    cluster.cli_ok(&["backup-done", "--at", "2026-11-01T03:00:00Z"]).await;
    wait::until("the backup and the certificates in the metrics of all", PATIENCE, async || {
        for node in &cluster.nodes {
            let page = node.get("/metrics").await?.body;
            let labels = format!("scope=\"story\",name=\"{}\"", node.name());
            for line in [
                format!("tenure_backup_timestamp_seconds{{{labels}}} 1793502000"),
                format!("tenure_backup_within_seconds{{{labels}}} 93600"),
                format!("tenure_certificate_expiry_timestamp_seconds{{{labels},certificate=\"Postgres\"}} 1893456000"),
            ] {
                anyhow::ensure!(page.lines().any(|known| known == line), "{line}");
            }
        }
        Ok(())
    })
    .await;

    let page = leader.get("/ui").await.expect("the page");
    let head = page.head.to_lowercase();
    assert!(
        page.status == 200 && head.contains("content-security-policy: default-src 'none'") && head.contains("x-frame-options: deny"),
        "{head}"
    );
    assert!(page.body.contains("<title>pg_tenure</title>") && page.body.contains("new EventSource"), "{}", page.body);
    assert_eq!(leader.get("/").await.expect("the health check").status, 200, "`/` is the field's health check still");

    // A stream outlives the time that a request or an answer may take (10 s), and tells a switchover as it happens.
    let standby = cluster.others(leader)[0];
    let began = Instant::now();
    let heard = stream(leader, |heard| began.elapsed() > Duration::from_secs(12) && heard.matches("event: state").count() > 4).await;
    assert!(heard.contains("event: past\ndata: [") && heard.contains("\"faults\":["), "{heard}");
    let told = format!("\"leader\":\"{}\"", standby.name());
    let watching = stream(leader, |heard| heard.contains(&told));
    let switching = async {
        wait::lasting(Duration::from_millis(500)).await;
        cluster.cli_ok(&["switchover", "--candidate", standby.name(), "--force"]).await
    };
    let began = Instant::now();
    tokio::join!(watching, switching);
    println!("the stream told the next leader {} ms after the request", began.elapsed().as_millis().saturating_sub(500));

    // Eight may watch; the ninth is told so, and a place is free again when one leaves.
    let mut watching = Vec::new();
    for _ in 0..8 {
        watching.push(wait::until("a place", PATIENCE, async || place(leader).await).await);
    }
    assert_eq!(leader.get("/ui/events").await.expect("an answer").status, 503);
    drop(watching);
    wait::until("a place to be free again", PATIENCE, async || place(leader).await).await;
}

/// A stream that has begun.
async fn place(node: &Node) -> anyhow::Result<tokio::net::TcpStream> {
    let mut socket = tokio::net::TcpStream::connect((node.host(), node.rest_port())).await?;
    socket.write_all(b"GET /ui/events HTTP/1.1\r\nHost: x\r\n\r\n").await?;
    let mut head = [0; 15];
    socket.read_exact(&mut head).await?;
    anyhow::ensure!(&head == b"HTTP/1.1 200 OK", "{}", String::from_utf8_lossy(&head));
    Ok(socket)
}

#[tokio::test]
async fn an_incident_is_told_from_all_journals() {
    let cluster = Cluster::of(2).ttl(3).start().await;
    let old = cluster.leader().await;
    let next = cluster.others(old)[0];
    let told = async || -> Value {
        let text = cluster.cli_ok(&["explain", "--incident", "-f", "json"]).await;
        serde_json::from_str::<Value>(&text).unwrap_or_else(|error| panic!("{error} in {text}"))[0]["incident"].clone()
    };
    old.kill();
    let name = old.name().to_owned();
    cluster.wait_until("another to lead", |view| view.leads_other_than(&name)).await;
    wait::until("the new leader to serve", PATIENCE, async || match next.one("SELECT pg_is_in_recovery()").await {
        Ok(recovers) if recovers == "f" => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let incident = told().await;
    assert_eq!(
        (&incident["from"], &incident["to"], &incident["how"]),
        (&json!(old.name()), &json!(next.name()), &json!("taken")),
        "{incident}"
    );
    assert_eq!(incident["lost"]["is"], "unknown", "{incident}");
    assert!(incident["why"].to_string().contains(&format!("{} stood with timeline 1", next.name())), "{incident}");
    let page = cluster.cli_ok(&["explain", "--incident"]).await;
    println!("{page}");
    assert!(page.contains(&format!("{} was not heard", old.name())) && page.contains("promote"), "{page}");
    cluster.start(old);
    cluster.healthy().await;
    let incident = told().await;
    println!("{}", incident["lost"]);
    assert_eq!(incident["unheard"], json!([]), "{incident}");
    cluster.cli_ok(&["switchover", "--candidate", old.name(), "--force"]).await;
    cluster.healthy().await;
    let incident = told().await;
    assert_eq!(
        (&incident["to"], &incident["how"], &incident["lost"]["is"]),
        (&json!(old.name()), &json!("handed over"), &json!("nothing")),
        "{incident}"
    );
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn check_looks_around_the_cluster_too() {
    let room = Room::new();
    // Three on one host.
    let etcd = Etcd::planned(&room, 3);
    etcd.run(&room).await;
    let authority = Authority::new(&room, "cluster");
    let old = authority.sign_until(&room, "old", 2020);
    let good = authority.sign(&room, "good");
    let cluster = Cluster::of(1).ttl(5).planned_on(room, etcd, |config| {
        config["restapi"]["certfile"] = json!(text(&old.certificate));
        config["restapi"]["keyfile"] = json!(text(&old.key));
        config["postgresql"]["parameters"]["ssl"] = json!("on");
        config["postgresql"]["parameters"]["ssl_cert_file"] = json!(text(&good.certificate));
        config["postgresql"]["parameters"]["ssl_key_file"] = json!(text(&good.key));
    });
    cluster.start_all().await;
    cluster.cli_ok(&["edit-config", "-s", "backup_within=26h", "--force", "-q"]).await;
    let output = cluster.cli(&["check"]).await;
    let told = said(&output);
    for part in [
        "members of etcd are on one host, 127.0.0.1: etcd1, etcd2, etcd3",
        "n1: the certificate of its REST has run out",
        "no backup was ever told of",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert!(!told.contains("of its Postgres") && output.status.code() == Some(1), "{told}");
    cluster.cli_ok(&["backup-done", "--label", "full"]).await;
    let told = said(&cluster.cli(&["check"]).await);
    assert!(!told.contains("backup"), "{told}");
    cluster.cli_ok(&["backup-done", "--at", "2026-11-01T03:00:00Z"]).await;
    let told = said(&cluster.cli(&["check"]).await);
    assert!(told.contains("the last backup is "), "{told}");

    // A copy of the cluster that somebody started under another name, in the same etcd.
    let lease = cluster.etcd.lease_of("/service/story/members/n1").await.expect("its lease");
    let keys = cluster.etcd.keys("/service/story/").await.expect("its keys");
    let copy: Vec<(String, String, i64)> = ["initialize", "config", "leader", "members/n1"]
        .map(|key| (format!("/service/copied/{key}"), keys[key].clone(), if matches!(key, "leader" | "members/n1") { lease } else { 0 }))
        .into();
    cluster.etcd.put_many(&copy).await.expect("write the copy's keys");
    let told = said(&cluster.cli(&["check"]).await);
    assert!(
        told.contains("there is another writable server of this database system") && told.contains("leads the cluster copied"),
        "{told}"
    );
    let fleet = said(&cluster.cli(&["fleet", "check"]).await);
    assert!(fleet.contains("copied: critical: cluster: it has the same database system as story"), "{fleet}");
}

#[tokio::test]
async fn three_hundred_clusters_are_looked_at_in_a_few_requests() {
    let cluster = Cluster::of(2).ttl(10).start().await;
    // What two real members wrote, under 299 other names and identities; each key on the lease that it was on.
    let keys = cluster.etcd.keys("/service/story/").await.expect("its keys");
    let mut leases = std::collections::BTreeMap::new();
    for name in ["n1", "n2"] {
        leases
            .insert(format!("members/{name}"), cluster.etcd.lease_of(&format!("/service/story/members/{name}")).await.expect("its lease"));
    }
    let leader = cluster.leader().await.name().to_owned();
    leases.insert("leader".to_owned(), leases[&format!("members/{leader}")]);
    let mut pairs = Vec::new();
    for number in 1..300 {
        for (key, value) in &keys {
            let value = if key == "initialize" { format!("70000000000000{number:05}") } else { value.clone() };
            pairs.push((format!("/service/fleet{number:03}/{key}"), value, leases.get(key).copied().unwrap_or(0)));
        }
    }
    cluster.etcd.put_many(&pairs).await.expect("write the keys");
    let began = Instant::now();
    let listed = cluster.cli_ok(&["fleet", "list"]).await;
    let last = listed.lines().last().unwrap_or_default().to_owned();
    println!("fleet list: {last}; the whole command {} ms", began.elapsed().as_millis());
    assert!(last.starts_with("300 cluster(s) of /service/"), "{last}");
    let requests: u32 =
        last.split(" keys in ").nth(1).and_then(|rest| rest.split(' ').next()).and_then(|count| count.parse().ok()).expect("requests");
    assert!(requests <= 8, "{last}");
    let rows: Vec<Value> = serde_json::from_str(&cluster.cli_ok(&["fleet", "list", "-f", "json"]).await).expect("rows");
    assert!(
        rows.len() == 300 && rows.iter().all(|row| row["leader"] == leader.as_str() && row["members"] == 2 && row["critical"] == 0),
        "{rows:?}"
    );
    cluster.etcd.delete("/service/fleet150/leader").await.expect("delete a leader key");
    let output = cluster.cli(&["fleet", "check", "-f", "json"]).await;
    let faults: Vec<Value> = serde_json::from_str(&said(&output)).expect("faults");
    assert!(output.status.code() == Some(1) && faults[0]["scope"] == "fleet150" && faults[0]["severity"] == "critical", "{faults:?}");
}

#[tokio::test]
async fn an_etcd_that_is_full_keeps_the_leader_and_is_put_right_by_the_runbook() {
    let room = Room::new();
    let etcd = Etcd::guarded(&room, vec![Place::loopback()], &Guard::default().quota(16 << 20));
    etcd.run(&room).await;
    let cluster = Cluster::of(2).ttl(3).planned_on(room, etcd, |_| ());
    cluster.start_all().await;
    let leader = cluster.leader().await.name().to_owned();
    let writer = cluster.writer().await;
    let much = "x".repeat(1 << 20);
    let mut refused = None;
    for _ in 0..40 {
        if let Err(why) = cluster.etcd.put("/other/filler", &much).await {
            refused = Some(format!("{why:#}"));
            break;
        }
    }
    println!("etcd: {}", refused.expect("etcd to be full"));
    let told = said(&cluster.cli(&["check"]).await);
    assert!(told.contains("is full: it takes no write and grants no lease"), "{told}");
    // Longer than a lease: it is renewed, and nobody takes the key.
    let before = writer.acknowledged();
    wait::lasting(Duration::from_secs(6)).await;
    assert!(writer.acknowledged() > before, "writes go on");
    for command in commands(&case("etcd fills")).into_iter().filter(|command| command.starts_with("etcdctl")) {
        let output = run(&cluster, &command).await;
        assert!(output.status.success(), "{command}: {}{}", said(&output), String::from_utf8_lossy(&output.stderr));
    }
    let view = cluster.healthy().await;
    assert_eq!(view.leader(), Some(leader.as_str()), "{view}");
    let told = said(&cluster.cli(&["check"]).await);
    assert!(!told.contains("etcd"), "{told}");
    let ledger = writer.finish();
    println!("{}", ledger.summary());
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}

fn case(heading: &str) -> String {
    cases().into_iter().find(|(known, _)| known.eq_ignore_ascii_case(heading)).unwrap_or_else(|| panic!("no case {heading}")).1
}

/// What a case tells to run.
fn commands(text: &str) -> Vec<String> {
    text.lines().filter_map(|line| line.strip_prefix("    ")).map(str::to_owned).collect()
}

/// Runs a line of the runbook as it stands, with the first node's file and the story's etcd.
async fn run(cluster: &Cluster, line: &str) -> Output {
    let first = &cluster.nodes[0];
    let mut command = tokio::process::Command::from(cluster.room.command(Path::new("/bin/sh"), first.dir()));
    command.env("ETCDCTL_API", "3").env("ETCDCTL_ENDPOINTS", cluster.etcd.hosts()).env("PATRONICTL_CONFIG_FILE", first.config_file());
    let directory = programs::tenure().parent().map(|path| path.display().to_string()).unwrap_or_default();
    let path = format!("{directory}:{}", std::env::var("PATH").unwrap_or_default());
    command.env("PATH", path).arg("-c").arg(line).kill_on_drop(true);
    tokio::time::timeout(PATIENCE, command.output()).await.unwrap_or_else(|_| panic!("{line} does not end")).expect("run it")
}

#[tokio::test]
async fn every_command_of_the_runbook_is_taken() {
    let cluster = Cluster::of(3).ttl(5).start().await;
    let runbook = file("docs/runbook.md");
    let (mut tried, mut surprises) = (0, Vec::new());
    // There is an incident to explain.
    if cluster.leader().await.name() == "n1" {
        cluster.cli_ok(&["switchover", "--candidate", "n2", "--force"]).await;
    }
    for part in runbook.split("\n## ") {
        let heading = part.lines().next().unwrap_or_default();
        // The book says that n1 leads.
        cluster.healthy().await;
        if cluster.leader().await.name() != "n1" {
            cluster.cli_ok(&["switchover", "--candidate", "n1", "--force"]).await;
        }
        cluster.healthy().await;
        for line in commands(part) {
            let output = run(&cluster, &line).await;
            let words = String::from_utf8_lossy(&output.stderr).into_owned();
            // On a cluster that is well some of them have nothing to do, and say so.
            let expected = match line.as_str() {
                "tenure rebuild-keys --force" => Some("no member doubts"),
                "tenure resume" => Some("Cluster is not paused"),
                _ => None,
            };
            let as_expected = match expected {
                Some(part) => output.status.code() == Some(1) && words.contains(part),
                None => output.status.success(),
            };
            if !as_expected {
                surprises.push(format!("{heading}: {line}: {}{words}", said(&output)));
            }
            tried += 1;
        }
    }
    println!("{tried} commands");
    assert!(tried > 35 && surprises.is_empty(), "{tried} commands; {surprises:#?}");
    cluster.healthy().await;
}
