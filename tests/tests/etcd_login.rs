//! etcd with TLS, client certificates, users and passwords: served, said aloud where it refuses, and no secret shown.

use serde_json::json;
use stories::cluster::{Cluster, PATIENCE};
use stories::etcd::{Etcd, Guard};
use stories::node::{self, Config, Node};
use stories::place::Place;
use stories::process;
use stories::room::Room;
use stories::tls::{Authority, text};
use stories::view;
use stories::wait::{self, seconds};

const USER: &str = "tenure";
const SECRET: &str = "correct-horse-battery";

/// One guarded etcd with a user for the story's keys and nothing else; and what a node's file says of it.
async fn guarded(room: &Room, authority: &Authority, guard: Guard) -> (Etcd, serde_json::Value) {
    let etcd = Etcd::guarded(room, vec![Place::loopback()], &guard.tls(room, authority).client_certificates());
    etcd.run(room).await;
    etcd.add_user(USER, SECRET, &view::prefix()).await.expect("add a user");
    etcd.add_user("stranger", SECRET, "/elsewhere/").await.expect("add another user");
    etcd.ask_for_users("root-of-the-story").await.expect("ask for users");
    let client = authority.sign(room, "client");
    let section = json!({
        "hosts": etcd.hosts(),
        "protocol": "https",
        "cacert": text(&authority.file),
        "cert": text(&client.certificate),
        "key": text(&client.key),
        "username": USER,
        "password": SECRET,
    });
    (etcd, section)
}

#[tokio::test]
async fn a_cluster_on_an_etcd_with_tls_certificates_and_users_outlives_forgotten_logins() {
    let room = Room::new();
    let authority = Authority::new(&room, "authority");
    // Shorter than the time between two looks of an arbiter: its login is forgotten again and again.
    let (etcd, section) = guarded(&room, &authority, Guard::default().token_ttl(1)).await;
    let plan = Cluster::of(2).synchronous(true).dynamic("loop_wait", json!(4));
    let cluster = plan.planned_on(room, etcd, |config: &mut Config| config["etcd3"] = section.clone());
    cluster.start_all().await;
    let leader = cluster.leader().await;
    let writer = cluster.writer().await;
    // Each change of a user's password makes etcd forget the logins of that user, and nothing else.
    for _ in 0..3 {
        cluster.etcd.change_password(USER, SECRET).await.expect("change the password");
        writer.goes_on(100, PATIENCE).await;
    }
    cluster.etcd.add_user("another", SECRET, "/another/").await.expect("change the roles");
    wait::lasting(seconds(11)).await;
    cluster.etcd.kill();
    cluster.etcd.run(&cluster.room).await;
    writer.goes_on(300, PATIENCE).await;
    let view = cluster.healthy().await;
    assert_eq!((view.leader(), view.leader_timeline()), (Some(leader.name()), Some(1)), "{view}");
    cluster.cli_ok(&["switchover", "--force"]).await;
    let view = cluster.healthy().await;
    assert!(view.leads_other_than(leader.name()), "{view}");
    writer.goes_on(50, PATIENCE).await;
    let ledger = writer.finish();
    println!("etcd with TLS and users: {}", ledger.summary());
    // The commit that waits while the switchover ends its session is told to try again (40001).
    assert!(ledger.refused().count() <= 1, "{}", ledger.summary());
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
    no_secret_is_shown(&cluster).await;
}

/// Neither in a log, in a command line, in etcd, nor in what every user of the database may read.
async fn no_secret_is_shown(cluster: &Cluster) {
    let leader = cluster.leader().await;
    leader.query("CREATE ROLE anybody LOGIN PASSWORD 'anybody'").await.expect("make a user");
    for node in &cluster.nodes {
        let server = std::fs::read_to_string(node.server_log()).unwrap_or_default();
        for (what, shown) in [("the arbiter's log", node.log()), ("the server's log", server)] {
            assert!(!shown.contains(SECRET), "{what} of {} has the password", node.name());
        }
    }
    for pid in cluster.nodes.iter().flat_map(|node| process::below(&node.data_dir())) {
        let environment = std::fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&environment).contains(SECRET), "the server has the password in its environment");
    }
    for pid in process::below(cluster.room.path()) {
        let title = process::title(pid);
        assert!(!title.contains(SECRET), "a command line has the password: {title}");
    }
    let view = cluster.view().await.expect("look into etcd");
    assert!(!format!("{view:?}").contains(SECRET), "etcd has the password");
    let anybody =
        wait::until("a session of anybody", PATIENCE, async || node::connect_as(leader.port(), "anybody", "anybody", seconds(3)).await)
            .await;
    let shown = node::rows(&anybody, "SELECT name, setting FROM pg_settings WHERE name LIKE 'tenure.%'").await.expect("ask");
    assert!(!shown.is_empty(), "tenure's settings are there");
    for row in &shown {
        assert!(!row[0].contains("etcd") && !row[1].contains(SECRET), "anybody sees {row:?}");
    }
    node::rows(&anybody, "SHOW tenure.etcd_password_file").await.expect_err("anybody sees where the password is");
}

#[tokio::test]
async fn what_etcd_refuses_is_said_in_one_sentence_that_names_what_to_do() {
    let room = Room::new();
    let authority = Authority::new(&room, "authority");
    let foreign = Authority::new(&room, "foreign");
    let stolen = foreign.sign(&room, "client");
    let (etcd, section) = guarded(&room, &authority, Guard::default()).await;
    let changed = |changes: serde_json::Value| {
        let mut section = section.clone();
        for (key, value) in changes.as_object().into_iter().flatten() {
            section[key] = value.clone();
        }
        section
    };
    let without = |keys: &[&str]| {
        let mut section = section.clone();
        keys.iter().for_each(|key| drop(section.as_object_mut().expect("a section").remove(*key)));
        section
    };
    let cases = [
        ("wrong password", changed(json!({"password": "guess"})), "correct etcd3.username and etcd3.password"),
        ("no login", without(&["username", "password"]), "give etcd3.username and etcd3.password of a user"),
        ("no right", changed(json!({"username": "stranger"})), "role grant-permission ROLE --prefix=true readwrite /service/story/"),
        ("wrong authority", changed(json!({"cacert": text(&foreign.file)})), "etcd3.cacert is not the authority"),
        ("no authority", without(&["cacert"]), "give etcd3.cacert"),
        ("no certificate", without(&["cert", "key"]), "give etcd3.cert and etcd3.key"),
        (
            "a stranger's certificate",
            changed(json!({"cert": text(&stolen.certificate), "key": text(&stolen.key)})),
            "may not take the certificate in etcd3.cert and etcd3.key",
        ),
        ("no TLS", changed(json!({"protocol": "http"})), "set etcd3.protocol to https"),
    ];
    for (number, (what, section, expected)) in cases.into_iter().enumerate() {
        let node = Node::bare(&room, &format!("n{number}"));
        let mut config = node.default_config(&etcd.hosts());
        config["etcd3"] = section;
        node.configure(&room, &config);
        let listed = node.command(&room).arg("-c").arg(node.config_file()).arg("list").output().expect("run tenure list");
        let said = String::from_utf8_lossy(&listed.stderr).into_owned();
        println!("{what}: {said}");
        assert!(!listed.status.success() && said.contains(expected), "{what}: tenure list says {said}");
        node.start(&room);
        node.logged(&[expected], seconds(20)).await;
        assert!(!node.log().contains(SECRET) && !said.contains(SECRET), "{what}: the password is shown");
        node.kill();
    }
}
