//! REST as others use it: by its description, by a monitor, by a load balancer.

use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use stories::cluster::{Cluster, PATIENCE};
use stories::haproxy::Haproxy;
use stories::node::{self, Node, PASSWORD};
use stories::ports::Port;
use stories::{programs, wait};

/// docs/openapi.yaml.
fn description() -> Value {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.yaml");
    serde_saphyr::from_str(&std::fs::read_to_string(file).expect("read the description")).expect("understand the description")
}

/// What `reference` (`#/components/...`) or the value itself says.
fn resolved<'a>(root: &'a Value, value: &'a Value) -> &'a Value {
    match value["$ref"].as_str() {
        Some(reference) => root.pointer(&reference[1..]).unwrap_or_else(|| panic!("{reference} is not described")),
        None => value,
    }
}

/// Every path that only looks: what is wrong with this node's answers by the description.
async fn faults(root: &Value, node: &Node) -> Vec<String> {
    let mut faults = Vec::new();
    for (path, methods) in root["paths"].as_object().expect("paths") {
        if methods["get"].is_null() {
            continue;
        }
        // A stream has no end to wait for; day_two.rs reads it.
        if !methods["get"]["responses"]["200"]["content"]["text/event-stream"].is_null() {
            continue;
        }
        let answer = node.get(path).await.expect("an answer");
        let Some(response) = methods["get"]["responses"].get(answer.status.to_string()) else {
            faults.push(format!("GET {path} answers {}, which is not described", answer.status));
            continue;
        };
        let schema = &resolved(root, response)["content"]["application/json"]["schema"];
        if schema.is_null() {
            continue;
        }
        let body: Value = serde_json::from_str(&answer.body).unwrap_or_else(|error| panic!("GET {path}: {error} in {}", answer.body));
        let whole = json!({"allOf": [schema], "components": root["components"]});
        let validator = jsonschema::validator_for(&whole).expect("a schema");
        faults.extend(validator.iter_errors(&body).map(|error| format!("GET {path}: {error} at {}", error.instance_path())));
    }
    faults
}

#[tokio::test]
async fn every_answer_is_as_the_description_says() {
    let root = description();
    let cluster = Cluster::of(2).synchronous(true).start().await;
    let leader = cluster.leader().await;
    leader
        .patch("/config", &json!({"failsafe_mode": true, "postgresql": {"parameters": {"max_connections": 111}}}))
        .await
        .expect("configure");
    wait::until("the failsafe key", PATIENCE, async || {
        let answer = leader.get("/failsafe").await?;
        anyhow::ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    })
    .await;
    for node in &cluster.nodes {
        assert_eq!(faults(&root, node).await, Vec::<String>::new(), "{}", node.name());
    }
}

/// check_patroni's exit code and line.
fn check(program: &Path, cluster: &Cluster, nodes: &[&Node], arguments: &[&str]) -> (i32, String) {
    let mut command = Command::new(program);
    command.current_dir(cluster.room.path());
    for node in nodes {
        command.args(["-e", &format!("http://127.0.0.1:{}", node.rest_port())]);
    }
    let output = command.args(arguments).output().expect("run check_patroni");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.code().unwrap_or(-1), said)
}

#[tokio::test]
async fn check_patroni_judges_our_cluster_unchanged() {
    let Some(program) = programs::check_patroni() else {
        println!("SKIPPED: no check_patroni here; `make patroni` installs it");
        return;
    };
    let cluster = Cluster::of(3).synchronous(true).start().await;
    let leader = cluster.leader().await;
    let standby = cluster.others(leader)[0];
    let all: Vec<&Node> = cluster.nodes.iter().collect();
    // Exit codes of the trade: 0 well, 1 warning, 2 critical, 3 unknown.
    for (nodes, arguments, expected) in [
        (&all[..], &["cluster_has_leader"][..], 0),
        (&all, &["cluster_has_replica", "--critical", "2:"], 0),
        (&all, &["cluster_has_replica", "--critical", "3:"], 2),
        (&all, &["cluster_has_replica", "--sync-critical", "1:", "--max-lag", "1MB"], 0),
        (&all, &["cluster_node_count", "--critical", "3:", "--healthy-critical", "3:"], 0),
        (&all, &["cluster_is_in_maintenance"], 0),
        (&all, &["cluster_has_scheduled_action"], 0),
        (&[leader], &["node_is_alive"], 0),
        (&[leader], &["node_is_primary"], 0),
        (&[leader], &["node_is_leader"], 0),
        (&[leader], &["node_is_replica"], 2),
        (&[leader], &["node_is_pending_restart"], 0),
        (&[leader], &["node_patroni_version", "--patroni-version", "4.1.5"], 0),
        (&[leader], &["node_tl_has_changed", "--timeline", "1"], 0),
        (&[standby], &["node_is_replica"], 0),
        (&[standby], &["node_is_replica", "--max-lag", "10MB"], 0),
        (&[standby], &["node_is_primary"], 2),
    ] {
        let (code, said) = check(&program, &cluster, nodes, arguments);
        assert_eq!(code, expected, "check_patroni {arguments:?} on {:?}: {said}", nodes.iter().map(|node| node.name()).collect::<Vec<_>>());
    }
    leader.patch("/config", &json!({"pause": true})).await.expect("pause");
    wait::until("check_patroni to see the pause", PATIENCE, async || {
        let (code, said) = check(&program, &cluster, &all, &["cluster_is_in_maintenance"]);
        if code == 2 { Ok(()) } else { Err(format!("{code}: {said}")) }
    })
    .await;
}

/// The server that answers at this port: its address in the cluster, and whether it is a standby.
async fn server_at(port: &Port) -> anyhow::Result<(String, bool)> {
    let client = node::connect_as(port.number(), "postgres", PASSWORD, Duration::from_secs(5)).await?;
    let rows = node::rows(&client, "SELECT current_setting('port'), pg_is_in_recovery()").await?;
    Ok((rows[0][0].clone(), rows[0][1] == "t" || rows[0][1] == "true"))
}

#[tokio::test]
async fn haproxy_with_the_usual_recipe_moves_the_traffic() {
    let Some(program) = programs::haproxy() else {
        println!("SKIPPED: no HAProxy here; `make setup` installs it");
        return;
    };
    let cluster = Cluster::of(3).start().await;
    let haproxy = Haproxy::before(&cluster, &program);
    let old = cluster.leader().await;
    let reaches = async |wanted: &Node| {
        wait::until("HAProxy to lead to the primary and to the standbys", PATIENCE, async || {
            let (writer, reader) = (server_at(&haproxy.writes).await?, server_at(&haproxy.reads).await?);
            anyhow::ensure!(writer == (wanted.port().to_string(), false) && reader.1, "writes {writer:?}, reads {reader:?}");
            Ok(())
        })
        .await;
    };
    reaches(old).await;
    let candidate = cluster.others(old)[0];
    cluster.cli_ok(&["switchover", "--candidate", candidate.name(), "--force"]).await;
    reaches(candidate).await;
    // A standby that is asked not to be read from leaves the pool; with one down and one reloading nothing else changes.
    candidate.kill_postmaster();
    cluster.healthy().await;
    reaches(cluster.leader().await).await;
}

/// So many sockets full of questions that never read an answer, on a node's REST.
async fn deaf(node: &Node, count: usize) -> Vec<tokio::net::TcpStream> {
    let questions = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(400);
    let mut sockets = Vec::new();
    for _ in 0..count {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(4096).expect("a small buffer");
        let address = format!("{}:{}", node.host(), node.rest_port()).parse().expect("an address");
        let stream = socket.connect(address).await.expect("connect to REST");
        let _ = stream.try_write(&questions);
        sockets.push(stream);
    }
    sockets
}

#[tokio::test]
async fn deaf_sockets_and_a_flood_of_clients_leave_the_lease_and_a_switchover_alone() {
    let cluster = Cluster::of(2).start().await;
    let leader = cluster.leader().await;
    let candidate = cluster.others(leader)[0];
    let term = cluster.view().await.expect("a view").to_string();
    let mut sockets = deaf(leader, 150).await;
    sockets.extend(deaf(candidate, 150).await);
    let writer = cluster.writer().await;
    let flood = |node: &Node| {
        let address = format!("{}:{}", node.host(), node.rest_port());
        async move {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let (mut answered, until) = (0_u32, tokio::time::Instant::now() + Duration::from_secs(10));
            while tokio::time::Instant::now() < until {
                let Ok(mut stream) = tokio::net::TcpStream::connect(&address).await else { continue };
                let mut answer = Vec::new();
                let _ = stream.write_all(b"GET /patroni HTTP/1.0\r\n\r\n").await;
                let read = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await;
                answered += u32::from(read.is_ok() && answer.starts_with(b"HTTP/1.0 200"));
            }
            answered
        }
    };
    let clients: Vec<_> = (0..100).flat_map(|_| [tokio::spawn(flood(leader)), tokio::spawn(flood(candidate))]).collect();
    let mut answered = 0;
    for client in clients {
        answered += client.await.expect("a client");
    }
    let before = writer.acknowledged();
    println!("200 clients for 10 s: {answered} looks answered, {before} commits beside them; before: {term}");
    let view = cluster.view().await.expect("a view");
    assert_eq!(view.leader(), Some(leader.name()), "{view}");
    // The sockets are still there, and they keep nobody from asking the candidate what it has.
    sockets.extend(deaf(candidate, 150).await);
    wait::lasting(Duration::from_secs(2)).await;
    cluster.cli_ok(&["switchover", "--candidate", candidate.name(), "--force"]).await;
    writer.goes_on(20, PATIENCE).await;
    let ledger = writer.finish();
    println!("{}", ledger.summary());
    assert!(ledger.longest_pause() < Duration::from_secs(8), "{}", ledger.summary());
    drop(sockets);
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}

/// A local user without rights binds the port while Postgres is down for a moment, and asks for the password in the open.
#[tokio::test]
async fn who_binds_the_port_of_a_server_that_is_down_learns_no_password() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let cluster = Cluster::of(1).start().await;
    let node = cluster.leader().await;
    cluster.cli_ok(&["pause", "--wait"]).await;
    let postmaster = node.postmaster().expect("a postmaster");
    rustix::process::kill_process(postmaster, rustix::process::Signal::INT).expect("stop Postgres by hand");
    let listener = wait::until("the port to be free", PATIENCE, async || {
        tokio::net::TcpListener::bind((node.host(), node.port())).await.map_err(|error| error.to_string())
    })
    .await;
    let until = tokio::time::Instant::now() + Duration::from_secs(6);
    let mut heard = Vec::new();
    let looks = async {
        while tokio::time::Instant::now() < until {
            let _ = node.get("/patroni").await;
            wait::lasting(Duration::from_millis(200)).await;
        }
    };
    let false_server = async {
        while let Ok(Ok((mut stream, _))) = tokio::time::timeout_at(until, listener.accept()).await {
            let mut bytes = vec![0; 4096];
            let _ = tokio::time::timeout(Duration::from_secs(1), stream.read(&mut bytes)).await;
            let _ = stream.write_all(b"R\0\0\0\x08\0\0\0\x03").await;
            let count = tokio::time::timeout(Duration::from_secs(1), stream.read(&mut bytes)).await;
            let count = count.ok().and_then(Result::ok).unwrap_or(0);
            heard.push(String::from_utf8_lossy(&bytes[..count]).into_owned());
        }
    };
    tokio::join!(looks, false_server);
    println!("the false server was asked {} times", heard.len());
    assert_eq!(heard, Vec::<String>::new(), "nobody is asked while the known postmaster is gone");
    drop(listener);
    cluster.cli_ok(&["resume", "--wait"]).await;
    cluster.healthy_members(1).await;
}

#[tokio::test]
async fn without_etcd_list_check_and_explain_ask_the_members() {
    let cluster = Cluster::of(2).ttl(5).start().await;
    let leader = cluster.leader().await;
    cluster.etcd.freeze();
    wait::until("the leader to say that its lease has run out", PATIENCE, async || {
        let told: Value = serde_json::from_str(&leader.get("/patroni").await?.body)?;
        anyhow::ensure!(told["tenure"]["leader"].is_null(), "{told}");
        anyhow::ensure!(told["tenure"]["why"].as_str().is_some_and(|why| why.contains("lease has run out")), "{told}");
        Ok(())
    })
    .await;
    for command in ["list", "check", "explain"] {
        let output = cluster.cli(&[command]).await;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(!output.status.success(), "{command}: {said}");
        for node in &cluster.nodes {
            assert!(said.lines().any(|line| line.contains(node.name()) && line.contains("s ago")), "{command}: {said}");
        }
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(error.contains("etcd can't be reached"), "{command}: {error}");
    }
    cluster.etcd.thaw();
    cluster.healthy().await;
}
