//! The way to our own server: only while its postmaster lives, through its socket where there is one, and never with a password that the
//! other side could read.
//!
//! A user who may run a program on this host can bind the server's port while the server is down. So a socket is asked who listens on it, a
//! password goes out by SASL only, which keeps it from a false server, and nobody is asked while no server of this data directory runs.

use super::postmaster::{PidFile, Postmaster};
use anyhow::{Context, Result, bail};
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context as Task, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// By which way the local server is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// Its first socket directory (`use_unix_socket: true`).
    Socket,
    /// This address of this host (`use_unix_socket: false`).
    Tcp(String),
}

/// Where the local server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalServer {
    /// Its data; what runs there is asked and nothing else.
    pub data_dir: PathBuf,
    /// Its port, which is also its socket's number.
    pub port: u16,
    /// The ways to it, the first one first.
    pub ways: Vec<Way>,
}

impl LocalServer {
    /// A connection to the server of this data directory by this way.
    pub async fn reach(&self, way: &Way) -> Result<Stream> {
        let Some(postmaster) = Postmaster::adopt(&self.data_dir).await? else {
            bail!("no server runs on {}", self.data_dir.display());
        };
        let inner = match way {
            Way::Socket => Inner::Socket(self.socket(&postmaster).await?),
            Way::Tcp(host) => {
                let stream = TcpStream::connect((host.as_str(), self.port)).await;
                let stream = stream.with_context(|| format!("connect to {host} port {}", self.port))?;
                // A question is one small packet and waits for nothing.
                stream.set_nodelay(true)?;
                Inner::Tcp(stream)
            }
        };
        // It may have ended meanwhile, and another may have come to its port.
        if !postmaster.is_alive() {
            bail!("the server of {} has ended", self.data_dir.display());
        }
        Ok(Stream { inner, held: Vec::new(), judged: false })
    }

    async fn socket(&self, postmaster: &Postmaster) -> Result<UnixStream> {
        let file = PidFile::read(&self.data_dir).await?.filter(|file| file.pid == postmaster.pid());
        let directory = file.and_then(|file| file.socket_dir).context("the server has no socket (yet)")?;
        let path = self.data_dir.join(directory).join(format!(".s.PGSQL.{}", self.port));
        let stream = UnixStream::connect(&path).await.with_context(|| format!("connect to {}", path.display()))?;
        listens(&stream, postmaster.pid(), &path)?;
        Ok(stream)
    }
}

/// The kernel says who listens on the socket: it must be this process, and run as we do.
fn listens(stream: &UnixStream, pid: i32, path: &Path) -> Result<()> {
    let peer = stream.peer_cred().with_context(|| format!("ask who listens on {}", path.display()))?;
    let mine = rustix::process::geteuid().as_raw();
    if peer.uid() != mine || peer.pid() != Some(pid) {
        bail!(
            "{} is not our server's: process {} of user {} listens there, expected process {pid} of user {mine}",
            path.display(),
            peer.pid().map_or("?".to_owned(), |pid| pid.to_string()),
            peer.uid()
        );
    }
    Ok(())
}

enum Inner {
    Socket(UnixStream),
    Tcp(TcpStream),
}

/// A connection whose other side may ask for a password by SASL, or for none.
pub struct Stream {
    inner: Inner,
    /// What was read and is not handed on yet.
    held: Vec<u8>,
    /// The server's first message is one that may be answered.
    judged: bool,
}

/// May the server's first message be answered? None while too little of it has come.
///
/// After the startup packet it is either an error or a request for authentication: `R`, four bytes of length, four bytes of kind.
fn judge(head: &[u8]) -> Option<Result<(), &'static str>> {
    const HINT: &str = "the server asks for the password in a form that a false server could use; hint: have scram-sha-256 or peer for this role in pg_hba, \
        and store an old md5 password again with password_encryption = scram-sha-256";
    match head.first()? {
        b'E' => Some(Ok(())),
        b'R' => match i32::from_be_bytes(head.get(5..9)?.try_into().ok()?) {
            // Not asked for anything (trust, peer, a certificate), or SASL.
            0 | 10 => Some(Ok(())),
            3 | 5 => Some(Err(HINT)),
            _ => Some(Err(
                "the server asks for a kind of authentication that is not served for the arbiter's own session: peer and scram-sha-256 are",
            )),
        },
        _ => Some(Err("what listens there is no PostgreSQL server")),
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, task: &mut Task<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while !self.judged {
            let mut space = [0; 64];
            let mut some = ReadBuf::new(&mut space);
            ready!(self.inner.poll_read(task, &mut some))?;
            if some.filled().is_empty() {
                self.judged = true;
                break;
            }
            self.held.extend_from_slice(some.filled());
            match judge(&self.held) {
                None => {}
                Some(Ok(())) => self.judged = true,
                Some(Err(why)) => return Poll::Ready(Err(io::Error::new(io::ErrorKind::PermissionDenied, why))),
            }
        }
        if self.held.is_empty() {
            return self.inner.poll_read(task, buffer);
        }
        let count = self.held.len().min(buffer.remaining());
        buffer.put_slice(&self.held[..count]);
        self.held.drain(..count);
        Poll::Ready(Ok(()))
    }
}

impl Inner {
    fn poll_read(&mut self, task: &mut Task<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Inner::Socket(stream) => Pin::new(stream).poll_read(task, buffer),
            Inner::Tcp(stream) => Pin::new(stream).poll_read(task, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, task: &mut Task<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.inner {
            Inner::Socket(stream) => Pin::new(stream).poll_write(task, bytes),
            Inner::Tcp(stream) => Pin::new(stream).poll_write(task, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<io::Result<()>> {
        match &mut self.inner {
            Inner::Socket(stream) => Pin::new(stream).poll_flush(task),
            Inner::Tcp(stream) => Pin::new(stream).poll_flush(task),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<io::Result<()>> {
        match &mut self.inner {
            Inner::Socket(stream) => Pin::new(stream).poll_shutdown(task),
            Inner::Tcp(stream) => Pin::new(stream).poll_shutdown(task),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ground::secret::Secret;
    use crate::postgres::credentials::Credentials;
    use crate::postgres::query::LocalSql;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, UnixListener};

    fn superuser() -> Credentials {
        Credentials { username: "postgres".to_owned(), password: Some(Secret::new("s3cret")), connection: Vec::new() }
    }

    /// A false server that asks for authentication of this kind; gives all that it was told within a second.
    async fn told(listener: &TcpListener, kind: i32) -> Vec<u8> {
        let Ok(Ok((mut stream, _))) = tokio::time::timeout(std::time::Duration::from_secs(1), listener.accept()).await else {
            return Vec::new();
        };
        let mut heard = vec![0; 4096];
        let count = stream.read(&mut heard).await.unwrap();
        heard.truncate(count);
        let mut ask = vec![b'R', 0, 0, 0, if kind == 5 { 12 } else { 8 }];
        ask.extend(kind.to_be_bytes());
        ask.extend([7; 4].iter().take(if kind == 5 { 4 } else { 0 }));
        stream.write_all(&ask).await.unwrap();
        let mut rest = Vec::new();
        let _ = tokio::time::timeout(std::time::Duration::from_secs(1), stream.read_to_end(&mut rest)).await;
        heard.extend(rest);
        heard
    }

    /// A data directory that says that this process is its server.
    async fn reached(port: u16, inner: Inner) -> Result<()> {
        let sql = LocalSql::new(LocalServer { data_dir: "/nowhere".into(), port, ways: Vec::new() }, &superuser(), "postgres");
        sql.over(Stream { inner, held: Vec::new(), judged: false }, "").await.map(drop)
    }

    #[tokio::test]
    async fn a_false_server_does_not_learn_the_password() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        for (kind, word) in [(3, "scram-sha-256"), (5, "scram-sha-256"), (7, "peer and scram-sha-256")] {
            let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let (told, done) = tokio::join!(told(&listener, kind), reached(port, Inner::Tcp(stream)));
            let why = format!("{:#}", done.unwrap_err());
            assert!(why.contains(word), "{kind}: {why}");
            let text = String::from_utf8_lossy(&told).into_owned();
            assert!(text.contains("postgres") && !text.contains("s3cret") && !text.contains("md5"), "{kind}: {text}");
        }
    }

    #[tokio::test]
    async fn nobody_is_asked_while_no_server_runs() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = LocalServer { data_dir: directory.path().into(), port, ways: vec![Way::Socket, Way::Tcp("127.0.0.1".to_owned())] };
        let sql = LocalSql::new(server, &superuser(), "postgres");
        let (told, asked) = tokio::join!(told(&listener, 3), sql.facts());
        assert!(told.is_empty(), "{told:?}");
        let why = format!("{:#}", asked.unwrap_err());
        assert!(why.contains("no server runs"), "{why}");
    }

    #[tokio::test]
    async fn a_socket_of_another_process_is_not_our_servers() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(".s.PGSQL.1");
        let _listener = UnixListener::bind(&path).unwrap();
        let stream = UnixStream::connect(&path).await.unwrap();
        let mine = i32::try_from(std::process::id()).unwrap();
        assert!(listens(&stream, mine, &path).is_ok());
        let why = format!("{:#}", listens(&stream, mine + 1, &path).unwrap_err());
        assert!(why.contains("is not our server's"), "{why}");
    }

    #[test]
    fn what_may_be_answered() {
        for (head, expected) in [
            (&b"R\0\0\0\x08\0\0\0\0"[..], Some(true)),
            (b"R\0\0\0\x17\0\0\0\x0aSCRAM", Some(true)),
            (b"R\0\0\0\x08\0\0\0\x03", Some(false)),
            (b"R\0\0\0\x0c\0\0\0\x05abcd", Some(false)),
            (b"R\0\0\0\x08\0\0\0", None),
            (b"E", Some(true)),
            (b"N\0\0\0\x05\0R\0\0\0\x08\0\0\0\x03", Some(false)),
            (b"HTTP/1.1", Some(false)),
            (b"", None),
        ] {
            assert_eq!(judge(head).map(|judged| judged.is_ok()), expected, "{head:?}");
        }
    }
}
