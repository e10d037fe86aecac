//! A client's session: what it was told, word for word, refused, cut or still waiting.

use crate::node;
use crate::wait::{self, seconds};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// How long anything may take that is no measurement.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What a client was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// It is done; the rows.
    Done(Vec<Vec<String>>),
    /// It is not: SQLSTATE, then message and hint.
    Refused(String, String),
    /// Nothing: the connection is gone.
    Cut,
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Told::Done(rows) => write!(f, "acknowledged {rows:?}"),
            Told::Refused(state, message) => write!(f, "refused with {state}: {message}"),
            Told::Cut => f.write_str("cut"),
        }
    }
}

impl Told {
    /// It has to be done; gives the first cell.
    #[track_caller]
    pub fn done(self) -> String {
        match self {
            Told::Done(rows) => rows.into_iter().next().and_then(|row| row.into_iter().next()).unwrap_or_default(),
            other => panic!("expected an acknowledgement, got: {other}"),
        }
    }

    /// It has to be done; gives all of its rows.
    #[track_caller]
    pub fn rows(self) -> Vec<Vec<String>> {
        match self {
            Told::Done(rows) => rows,
            other => panic!("expected an acknowledgement, got: {other}"),
        }
    }

    /// It has to be refused with this SQLSTATE; gives message and hint.
    #[track_caller]
    pub fn refused(self, wanted: &str) -> String {
        match self {
            Told::Refused(state, message) if state == wanted => message,
            other => panic!("expected {wanted}, got: {other}"),
        }
    }

    /// The connection has to be gone without a word.
    #[track_caller]
    pub fn cut(self) {
        assert_eq!(self, Told::Cut, "expected a cut connection, got: {self}");
    }
}

/// One client session.
#[derive(Clone)]
pub struct Session(Arc<Client>);

impl Session {
    /// Connects to a port of loopback.
    pub async fn on(port: u16) -> Session {
        wait::until("a session", PATIENCE, async || {
            node::connect(port, seconds(5)).await.map(|client| Session(Arc::new(client))).map_err(|error| format!("{error:#}"))
        })
        .await
    }

    /// Sends SQL and gives what the client is told.
    pub async fn tell(&self, sql: &str) -> Told {
        let answer = tokio::time::timeout(PATIENCE, self.0.simple_query(sql)).await.unwrap_or_else(|_| panic!("no answer to {sql}"));
        match answer {
            Ok(messages) => {
                let row = |message| match message {
                    SimpleQueryMessage::Row(row) => {
                        Some((0..row.len()).map(|column| row.get(column).unwrap_or_default().to_owned()).collect())
                    }
                    _ => None,
                };
                Told::Done(messages.into_iter().filter_map(row).collect())
            }
            Err(error) => match error.as_db_error() {
                Some(error) => Told::Refused(
                    error.code().code().to_owned(),
                    format!("{} ({}) hint: {}", error.message(), error.detail().unwrap_or(""), error.hint().unwrap_or("")),
                ),
                None => Told::Cut,
            },
        }
    }

    /// Sends SQL that has to succeed; gives the first cell.
    pub async fn ok(&self, sql: &str) -> String {
        match self.tell(sql).await {
            told @ Told::Done(_) => told.done(),
            other => panic!("{sql}: {other}"),
        }
    }

    /// Sends SQL and leaves it to run.
    pub fn begin(&self, sql: &str) -> Pending {
        let (session, sql) = (self.clone(), sql.to_owned());
        Pending { sql: sql.clone(), answer: tokio::spawn(async move { session.tell(&sql).await }) }
    }

    /// Its backend.
    pub async fn pid(&self) -> i32 {
        self.ok("SELECT pg_backend_pid()").await.parse().expect("a process id")
    }

    /// The client's own cancel request, as libpq's PQcancel sends it.
    pub async fn cancel(&self) {
        self.0.cancel_token().cancel_query(NoTls).await.expect("send a cancel request");
    }
}

/// A statement under way.
pub struct Pending {
    sql: String,
    answer: JoinHandle<Told>,
}

impl Pending {
    /// It must not be answered for a while.
    pub async fn waits(&mut self, span: Duration) {
        if let Ok(told) = tokio::time::timeout(span, &mut self.answer).await {
            panic!("{} was to wait for {span:?}; it was {}", self.sql, told.expect("the session's task"));
        }
    }

    /// Its answer, waited for.
    pub async fn told(self) -> Told {
        self.answer.await.expect("the session's task")
    }

    /// Its answer, which has to come soon.
    pub async fn told_within(self, span: Duration) -> Told {
        match tokio::time::timeout(span, self.answer).await {
            Ok(told) => told.expect("the session's task"),
            Err(_) => panic!("{} has no answer after {span:?}", self.sql),
        }
    }
}
