//! What is wrong with a node's configuration or surroundings is said in a sentence, and the end is told by the exit code.

use std::net::TcpListener;
use stories::cluster::{Cluster, PATIENCE};
use stories::etcd::Etcd;
use stories::node::{Config, Node};
use stories::programs;
use stories::room::Room;
use stories::view::{self, View};
use stories::wait::{self, seconds};

/// Starts one node with this change; it has to end in failure, and its log to hold all of the words.
async fn ends_saying(change: impl FnOnce(&mut Config), words: &[&str]) {
    let room = Room::new();
    let etcd = Etcd::start(&room).await;
    let node = Node::planned(&room, "n1", &etcd.hosts(), change);
    node.start(&room);
    let status = node.ended(seconds(30)).await;
    assert!(!status.success(), "it ended as if all were well:\n{}", node.log());
    node.logged(words, seconds(1)).await;
}

#[tokio::test]
async fn a_wrong_type_ends_it_and_names_the_key() {
    ends_saying(|config| config["postgresql"]["parameters"] = "many".into(), &["postgresql.parameters"]).await;
}

#[tokio::test]
async fn a_missing_key_ends_it_and_names_the_key() {
    ends_saying(
        |config| {
            config["postgresql"].as_object_mut().map(|section| section.remove("data_dir"));
        },
        &["data_dir"],
    )
    .await;
}

#[tokio::test]
async fn a_directory_without_postgres_programs_ends_it_and_names_the_key() {
    ends_saying(|config| config["postgresql"]["bin_dir"] = "/nowhere".into(), &["/nowhere"]).await;
}

#[tokio::test]
async fn a_file_that_is_not_there_ends_it() {
    let room = Room::new();
    let node = Node::bare(&room, "n1");
    node.start(&room);
    let status = node.ended(seconds(30)).await;
    assert!(!status.success(), "{}", node.log());
    node.logged(&["node.yml"], seconds(1)).await;
}

#[tokio::test]
async fn an_unknown_key_is_named_with_the_nearest_known_one() {
    let room = Room::new();
    let etcd = Etcd::start(&room).await;
    let node = Node::planned(&room, "n1", &etcd.hosts(), |config| {
        config["postgresql"]["parametres"] = serde_json::json!({});
    });
    node.start(&room);
    node.logged(&["postgresql.parametres", "parameters"], seconds(30)).await;
}

#[tokio::test]
async fn a_taken_rest_port_ends_it_and_names_the_address() {
    let room = Room::new();
    let etcd = Etcd::start(&room).await;
    let node = Node::planned(&room, "n1", &etcd.hosts(), |_| ());
    let _taken = TcpListener::bind(("127.0.0.1", node.rest_port())).expect("take the port");
    node.start(&room);
    let status = node.ended(seconds(30)).await;
    assert!(!status.success(), "{}", node.log());
    node.logged(&[&node.rest_port().to_string(), "in use"], seconds(1)).await;
}

#[tokio::test]
async fn a_taken_postgres_port_is_named_and_freed_it_goes_on() {
    let room = Room::new();
    let etcd = Etcd::start(&room).await;
    let node = Node::planned(&room, "n1", &etcd.hosts(), |_| ());
    let taken = TcpListener::bind(("127.0.0.1", node.port())).expect("take the port");
    node.start(&room);
    node.logged(&[&node.port().to_string(), "in use"], seconds(30)).await;
    drop(taken);
    leads(&etcd, "n1").await;
}

#[tokio::test]
async fn an_etcd_that_is_not_there_is_named_and_when_it_comes_the_node_goes_on() {
    let room = Room::new();
    let etcd = Etcd::planned(&room, 1);
    let node = Node::planned(&room, "n1", &etcd.hosts(), |_| ());
    node.start(&room);
    node.logged(&["etcd", &etcd.hosts()], seconds(30)).await;
    etcd.run(&room).await;
    leads(&etcd, "n1").await;
}

/// Waits until this node leads as a running primary.
async fn leads(etcd: &Etcd, name: &str) {
    wait::until("the node to lead", PATIENCE, async || {
        let view = View::new(etcd.keys(&view::prefix()).await?);
        anyhow::ensure!(view.leader() == Some(name) && view.fault(1, false).is_none(), "{view}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn files_that_init_wrote_start_a_cluster_as_they_are() {
    let room = Room::new();
    let etcd = Etcd::start(&room).await;
    let first = Node::bare(&room, "n1");
    let init = |node: &Node, arguments: &[&str]| {
        let mut command = node.command(&room);
        let output = command.arg("init").arg(node.config_file()).args(arguments).output().expect("run tenure init");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{said}");
        let text = std::fs::read_to_string(node.config_file()).expect("read the file");
        // Of two servers with one port on one machine each needs a directory for its socket.
        let sockets = format!("  parameters:\n    unix_socket_directories: {}\n  pg_hba:", node.dir().display());
        let data = format!("data_dir: \"{}\"", node.data_dir().display());
        let own = |line: &str| if line.trim_start().starts_with("data_dir:") { format!("  {data}\n") } else { format!("{line}\n") };
        let text: String = text.lines().filter(|line| !line.contains("parameters") && !line.contains("unix_socket_dir")).map(own).collect();
        room.file(&node.config_file(), &text.replace("  pg_hba:", &sockets));
        said
    };
    let (hosts, port, rest) = (etcd.hosts(), first.port().to_string(), first.rest_port().to_string());
    let (bin, data) = (programs::postgres_bin().display().to_string(), first.data_dir().display().to_string());
    let said = init(
        &first,
        &[
            "--scope",
            stories::node::SCOPE,
            "--name",
            "n1",
            "--address",
            "127.0.0.1",
            "--etcd",
            &hosts,
            "--bin-dir",
            &bin,
            "--data-dir",
            &data,
            "--port",
            &port,
            "--rest-port",
            &rest,
        ],
    );
    assert!(said.contains("is valid: member n1 of story") && !said.contains("note:"), "{said}");
    first.start(&room);
    leads(&etcd, "n1").await;
    // The same ports on another address: another host.
    let second = Node::bare(&room, "n2");
    let said = init(&second, &["--like", &first.config_file().display().to_string(), "--name", "n2", "--address", "127.0.0.2"]);
    assert!(said.contains("is valid: member n2 of story"), "{said}");
    second.start(&room);
    wait::until("a standby", PATIENCE, async || {
        let view = View::new(etcd.keys(&view::prefix()).await?);
        anyhow::ensure!(view.fault(2, false).is_none(), "{view}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn data_of_another_cluster_ends_it_and_names_both_identities() {
    let cluster = Cluster::of(2).start().await;
    let stranger = Node::planned(&cluster.room, "n3", &cluster.etcd.hosts(), |_| ());
    let status = cluster
        .room
        .command(programs::postgres_bin().join("initdb"), stranger.dir())
        .arg("-D")
        .arg(stranger.data_dir())
        .args(["-U", "postgres"])
        .stdout(std::process::Stdio::null())
        .status()
        .expect("run initdb");
    assert!(status.success(), "{status}");
    stranger.start(&cluster.room);
    let status = stranger.ended(seconds(30)).await;
    assert!(!status.success(), "{}", stranger.log());
    let view = cluster.view().await.expect("look");
    let ours = view.key("initialize").expect("initialized").to_owned();
    stranger.logged(&[&ours, "system"], seconds(1)).await;
    assert!(!view.members().contains(&"n3"), "{view}");
    cluster.healthy().await;
}

#[tokio::test]
async fn a_second_node_of_the_same_name_ends_and_the_first_goes_on() {
    let cluster = Cluster::of(2).start().await;
    let leader = cluster.leader().await;
    let postmaster = leader.postmaster();
    let twin = Node::bare_in(&cluster.room, leader.name(), "twin");
    twin.configure(&cluster.room, &twin.default_config(&cluster.etcd.hosts()));
    twin.start(&cluster.room);
    let status = twin.ended(seconds(30)).await;
    assert!(!status.success(), "{}", twin.log());
    twin.logged(&[leader.name(), "in use", "another name"], seconds(1)).await;
    let view = cluster.healthy().await;
    assert_eq!(view.leader(), Some(leader.name()), "{view}");
    assert_eq!(leader.postmaster(), postmaster);
}

#[tokio::test]
async fn no_password_is_ever_logged() {
    let cluster = Cluster::of(2).planned().await;
    let secret = "correct-horse-battery";
    for node in &cluster.nodes {
        let mut config = node.default_config(&cluster.etcd.hosts());
        for user in ["replication", "rewind"] {
            config["postgresql"]["authentication"][user]["password"] = secret.into();
        }
        node.configure(&cluster.room, &config);
        cluster.start(node);
    }
    let view = cluster.healthy().await;
    for node in &cluster.nodes {
        assert!(!node.log().contains(secret), "{}'s log has a password", node.name());
    }
    let keys = format!("{view:?}");
    assert!(!keys.contains(secret), "etcd has a password");
}
