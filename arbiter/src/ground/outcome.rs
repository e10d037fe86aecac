//! What became of a request for another leader: judged from a view, by REST and by the CLI alike.

use cluster::name::MemberName;
use cluster::view::ClusterView;

/// A request as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requested {
    /// The revision at which it stands in `failover`.
    pub revision: i64,
    /// Who led then.
    pub before: Option<MemberName>,
    /// Who was asked to lead, where one was named.
    pub candidate: Option<String>,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing yet.
    Pending,
    /// Another member leads.
    Done(MemberName),
    /// The request is gone and the leader is the same.
    Dropped,
}

/// Judges a view that may be older than the request.
pub fn judge(view: &ClusterView, asked: &Requested) -> Outcome {
    if view.revision < asked.revision {
        return Outcome::Pending;
    }
    let stands = ClusterView::revision_of(&view.failover) == asked.revision;
    match &view.leader {
        Some(leader) if Some(&leader.name) != asked.before.as_ref() => Outcome::Done(leader.name.clone()),
        _ if stands => Outcome::Pending,
        Some(_) => Outcome::Dropped,
        // The member that took the request is between two leaders.
        None => Outcome::Pending,
    }
}

/// The sentence that scripts look for.
pub fn success(action: &str, asked: &Requested, leader: &MemberName) -> String {
    let done = if action == "failover" { "failed over" } else { "switched over" };
    match &asked.candidate {
        Some(candidate) if candidate != leader.as_str() => format!("Successfully {done} to \"{leader}\" instead of \"{candidate}\""),
        _ => format!("Successfully {done} to \"{leader}\""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ground::present::tests::sample;
    use cluster::failover::FailoverRequest;
    use cluster::view::Versioned;

    #[test]
    fn every_end_of_a_request_is_told_apart() {
        let name = |name: &str| MemberName::new(name).unwrap();
        let asked = Requested { revision: 10, before: Some(name("n0")), candidate: Some("n1".to_owned()) };
        let mut view = sample();
        view.revision = 9;
        assert_eq!(judge(&view, &asked), Outcome::Pending, "an older view says nothing");
        view.revision = 11;
        view.failover = Some(Versioned { value: FailoverRequest { leader: Some("n0".into()), ..Default::default() }, revision: 10 });
        assert_eq!(judge(&view, &asked), Outcome::Pending);
        view.failover = Some(Versioned { value: FailoverRequest::default(), revision: 11 });
        assert_eq!(judge(&view, &asked), Outcome::Dropped);
        let leader = view.leader.take();
        assert_eq!(judge(&view, &asked), Outcome::Pending);
        view.leader = leader.map(|leader| cluster::leader::Leader { name: name("n2"), ..leader });
        assert_eq!(judge(&view, &asked), Outcome::Done(name("n2")));
        assert_eq!(success("switchover", &asked, &name("n2")), r#"Successfully switched over to "n2" instead of "n1""#);
        assert_eq!(success("failover", &asked, &name("n1")), r#"Successfully failed over to "n1""#);
    }
}
