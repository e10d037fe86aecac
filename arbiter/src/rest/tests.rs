//! The whole way of a request: access, dispatch, bounds.

use super::*;
use crate::config::{Credentials, NodeConfig};
use crate::node::snapshot::Command;
use crate::postgres::local::LocalServer;
use crate::postgres::query::LocalSql;
use axum::body::Body;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};

pub(crate) struct World {
    pub(super) shared: Arc<Shared>,
    pub(crate) commands: mpsc::Receiver<Command>,
    _snapshot: watch::Sender<Snapshot>,
}

/// A node without a server and without an etcd that answers.
pub(crate) fn world(authentication: &str) -> World {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("postgres"), "").unwrap();
    let file = directory.path().join("node.yml");
    let yaml = format!(
        "{{scope: demo, name: n0, restapi: {{listen: '127.0.0.1:8008'{authentication}}}, etcd3: {{host: '127.0.0.1:1'}}, postgresql: {{listen: '127.0.0.1:5432', data_dir: /data}}}}"
    );
    std::fs::write(&file, yaml).unwrap();
    let config = NodeConfig::load(&file, [("PATH".to_owned(), directory.path().display().to_string())]).unwrap();
    let (sender, snapshot) = watch::channel(health::tests::snapshot("n0", health::tests::primary()));
    let (commands, received) = mpsc::channel(8);
    let keys = dcs::key::Keys::new("service", &config.scope);
    let settings = dcs::Settings { try_timeout: Duration::from_millis(100), ..Default::default() };
    let nobody = Credentials { username: "nobody".to_owned(), password: None, connection: Vec::new() };
    let gate = watch::channel(Arc::new(Door::load(&config.rest).unwrap())).1;
    let node = NodeHandle {
        journal: Default::default(),
        snapshot,
        commands,
        etcd: Arc::new(dcs::Etcd::new(keys, settings)),
        promise: Default::default(),
        timings: Default::default(),
        certificates: Default::default(),
        knowledge: Arc::default(),
        twin: Arc::default(),
        config: Arc::new(config),
        sql: Arc::new(LocalSql::new(LocalServer { data_dir: "/nowhere".into(), port: 1, ways: Vec::new() }, &nobody, "postgres")),
    };
    World { shared: Arc::new(Shared::new(node, gate)), commands: received, _snapshot: sender }
}

pub(super) const PASSWORD: &str = ", authentication: {username: admin, password: s3cret}";

pub(crate) async fn ask(world: &World, method: &Method, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> (u16, String) {
    let mut request = Request::builder().method(method.clone()).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(body.into()).unwrap();
    let response = answer(&world.shared, &Peer::from_address("127.0.0.1", false), request).await;
    let status = response.status().as_u16();
    let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn every_route_that_changes_something_asks_for_credentials() {
    let mut world = world(PASSWORD);
    let mut walked = 0;
    for route in ROUTES.iter().filter(|route| changes(&route.method)) {
        for headers in [&[][..], &[("authorization", "Basic d3Jvbmc6d3Jvbmc=")]] {
            assert_eq!(ask(&world, &route.method, route.path, headers, "{}").await.0, 401, "{} {}", route.method, route.path);
        }
        walked += 1;
    }
    assert_eq!(walked, 13);
    assert_eq!(ask(&world, &Method::POST, "/anything", &[], "{}").await.0, 401);
    assert!(world.commands.try_recv().is_err(), "nothing reached the daemon");
    let right = [("authorization", "Basic YWRtaW46czNjcmV0")];
    assert_eq!(ask(&world, &Method::DELETE, "/restart", &right, "").await.0, 503, "nobody answers for the daemon here");
    assert_eq!(ask(&world, &Method::POST, "/anything", &right, "").await.0, 501);
    let (status, says) = ask(&world, &Method::POST, "/citus", &right, r#"{"type":"after_promote","group":1}"#).await;
    assert!(status == 501 && says.contains("speak through etcd"), "{status} {says}");
}

#[tokio::test]
async fn who_speaks_another_form_is_refused_and_may_look() {
    let mut world = world("");
    for (told, why) in [("9/8", "upgrade this one"), ("three", "no form of keys and calls")] {
        for route in ROUTES.iter().filter(|route| changes(&route.method)) {
            let (status, says) = ask(&world, &route.method, route.path, &[("tenure-speech", told)], "{}").await;
            assert!(status == 409 && says.contains(why), "{} {}: {status} {says}", route.method, route.path);
        }
        let (status, says) = ask(&world, &Method::GET, "/patroni", &[("tenure-speech", told)], "").await;
        assert!(status == 200 && says.contains(r#""speech":"1/1""#), "{status} {says}");
    }
    assert!(world.commands.try_recv().is_err(), "nothing reached the daemon");
    // A neighbour, and a program of the field's, which says nothing.
    for headers in [&[("tenure-speech", "2/1")][..], &[]] {
        assert_eq!(ask(&world, &Method::DELETE, "/restart", headers, "").await.0, 503, "nobody answers for the daemon here");
    }
}

#[tokio::test]
async fn looks_are_open_and_answer_while_etcd_is_away() {
    let world = world(PASSWORD);
    for (path, status, part) in [
        ("/patroni", 200, r#""patroni":{"name":"n0","scope":"demo","version":"4.1.5"}"#),
        ("/cluster", 200, r#""scope":"demo""#),
        ("/history", 200, "[]"),
        ("/config", 200, r#"{"synchronous_mode":true}"#),
        ("/failsafe", 502, "failsafe"),
        ("/metrics", 200, "patroni_primary{"),
        ("/", 200, r#""role":"primary""#),
        ("/primary", 200, r#""role":"primary""#),
        ("/replica?lag=1MB", 503, r#""role":"primary""#),
        ("/foo", 503, r#""state":"running""#),
        ("/foo/health", 200, r#""state":"running""#),
    ] {
        let (got, body) = ask(&world, &Method::GET, path, &[], "").await;
        assert_eq!(got, status, "{path}: {body}");
        assert!(body.contains(part), "{path}: {body}");
        for method in [Method::HEAD, Method::OPTIONS] {
            assert_eq!(ask(&world, &method, path, &[], "").await, (status, String::new()), "{method} {path}");
        }
    }
    assert_eq!(ask(&world, &Method::GET, "/liveness", &[], "").await, (200, String::new()));
}

#[tokio::test]
async fn without_etcd_a_request_is_refused_and_says_so() {
    let world = world("");
    let (status, body) = ask(&world, &Method::POST, "/switchover", &[], r#"{"leader":"n0"}"#).await;
    assert_eq!(status, 503);
    assert!(body.contains("etcd can't be reached"), "{body}");
    assert_eq!(ask(&world, &Method::POST, "/switchover", &[], "nonsense").await.0, 400);
    assert_eq!(ask(&world, &Method::PATCH, "/config", &[], vec![b' '; BODY_MOST + 1]).await.0, 413);
}

#[tokio::test]
async fn commands_reach_the_daemon_and_its_answer_comes_back() {
    let World { shared, mut commands, _snapshot } = world("");
    let daemon = tokio::spawn(async move {
        while let Some(command) = commands.recv().await {
            let _ = match command {
                Command::Restart(answer) => answer.send(Ok(())),
                Command::Reload(answer) => answer.send(Err("no such file".to_owned())),
                Command::Reinitialize { answer, .. } => answer.send(Ok(())),
                Command::Schedule(plan, answer) => {
                    answer.send(if plan.schedule.contains("2999") { Ok(()) } else { Err("taken".to_owned()) })
                }
                Command::ForgetRestart(answer) => answer.send(Err("no restarts are scheduled".to_owned())),
                Command::Replay(_, answer) => answer.send(Ok(String::new())).map_err(|_| Ok(())),
                Command::Restore(_, answer) => answer.send(Ok(())),
                Command::Upgrade(_, answer) => answer.send(Err("busy".to_owned())),
                Command::LookNow => Ok(()),
            };
        }
    });
    let (_never, commands) = mpsc::channel(1);
    let world = World { shared, commands, _snapshot };
    assert_eq!(ask(&world, &Method::POST, "/restart", &[], "").await, (200, "restarted successfully".to_owned()));
    for (at, status) in
        [("2999-01-01T00:00Z", 202), ("2998-01-01T00:00Z", 409), ("2020-01-01T00:00Z", 422), ("soon", 422), ("2999-01-01T00:00", 400)]
    {
        let body = format!(r#"{{"schedule":"{at}","role":"primary"}}"#);
        assert_eq!(ask(&world, &Method::POST, "/restart", &[], body).await.0, status, "{at}");
    }
    assert_eq!(ask(&world, &Method::DELETE, "/restart", &[], "").await, (404, "no restarts are scheduled".to_owned()));
    assert_eq!(ask(&world, &Method::POST, "/reload", &[], "").await, (503, "no such file".to_owned()));
    assert_eq!(ask(&world, &Method::POST, "/reinitialize", &[], "").await, (503, "I am the leader, can not reinitialize".to_owned()));
    daemon.abort();
}

#[tokio::test]
async fn a_socket_serves_and_cuts_off_who_does_not_finish_a_request() {
    let world = world("");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(serve(listener, world.shared.node.clone(), world.shared.door.clone()));
    let mut good = tokio::net::TcpStream::connect(address).await.unwrap();
    good.write_all(b"GET /primary HTTP/1.0\r\n\r\n").await.unwrap();
    let mut text = String::new();
    good.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.0 200 OK"), "{text}");

    let mut slow = tokio::net::TcpStream::connect(address).await.unwrap();
    slow.write_all(b"GET /primary HTT").await.unwrap();
    let mut buffer = [0; 16];
    let cut = tokio::time::timeout(Duration::from_secs(20), slow.read(&mut buffer)).await;
    assert!(matches!(cut, Ok(Ok(_) | Err(_))), "the connection was left open");
    server.abort();
}

/// Serves the sample, sends these bytes in two pieces, closes, and says whether a good request is answered after that.
pub(crate) async fn over_a_socket(bytes: &[u8]) -> bool {
    let mut world = world("");
    let mut commands = std::mem::replace(&mut world.commands, mpsc::channel(1).1);
    tokio::spawn(async move {
        while let Some(command) = commands.recv().await {
            command.refuse("not now");
        }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(serve(listener, world.shared.node.clone(), world.shared.door.clone()));
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (first, second) = bytes.split_at(bytes.len() / 2);
    for part in [first, second] {
        // It may have been refused by now.
        let _ = stream.write_all(part).await;
        tokio::task::yield_now().await;
    }
    let mut answer = [0; 64];
    let _ = tokio::time::timeout(Duration::from_millis(20), stream.read(&mut answer)).await;
    drop(stream);
    let mut good = tokio::net::TcpStream::connect(address).await.unwrap();
    good.write_all(b"GET /primary HTTP/1.0\r\n\r\n").await.unwrap();
    let mut text = String::new();
    let read = tokio::time::timeout(Duration::from_secs(10), good.read_to_string(&mut text)).await;
    let lives = !server.is_finished();
    server.abort();
    read.is_ok() && lives && text.starts_with("HTTP/1.0 200 OK")
}
