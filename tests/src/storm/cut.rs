//! A cut of the network as pairs of hosts: which of them no longer hears which.

use crate::node::Node;
use crate::storm::fault::{Cut, ETCDS, Ground};

impl Ground {
    /// The host that speaks, and the one that no longer hears it.
    pub(super) fn pairs(&self, cut: Cut, name: &str, choice: usize) -> Vec<(String, String)> {
        let nodes: Vec<&str> = self.cluster.nodes.iter().map(Node::name).filter(|other| *other != name).collect();
        let (mut outgoing, mut incoming) = (true, true);
        let (one_side, other_side): (Vec<&str>, Vec<&str>) = match cut {
            Cut::All => return Vec::new(),
            Cut::Cluster => (vec![name], [nodes, ETCDS.to_vec()].concat()),
            Cut::Etcd => (vec![name], ETCDS.to_vec()),
            Cut::Nodes => (vec![name], nodes),
            Cut::Outgoing => {
                incoming = false;
                (vec![name], [nodes, ETCDS.to_vec()].concat())
            }
            Cut::Incoming => {
                outgoing = false;
                (vec![name], [nodes, ETCDS.to_vec()].concat())
            }
            Cut::Minority => {
                let alone = ETCDS[choice % ETCDS.len()];
                let rest = ETCDS.iter().copied().filter(|member| *member != alone).collect();
                (vec![name, alone], [nodes, rest].concat())
            }
        };
        let mut pairs = Vec::new();
        for one in &one_side {
            for other in &other_side {
                if outgoing {
                    pairs.push(((*one).to_owned(), (*other).to_owned()));
                }
                if incoming {
                    pairs.push(((*other).to_owned(), (*one).to_owned()));
                }
            }
        }
        pairs
    }
}
