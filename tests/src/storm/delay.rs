//! What one host sends arrives late: a relay between its link and the bridge, for kernels without `sch_netem`.

use crate::process::{self, Pid, Signal};
use crate::room::Room;
use crate::storm::network::Network;
use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The relay, compiled once.
pub struct Delay {
    program: PathBuf,
    room: PathBuf,
}

/// One host's packets are late until this is dropped. Those on their way then still arrive, behind later ones.
pub struct Late<'a> {
    network: &'a Network,
    name: String,
    relay: Child,
}

impl Delay {
    /// An error where there is no C compiler.
    pub fn in_room(room: &Room) -> Result<Delay> {
        let (source, program) = (room.path().join("delay.c"), room.path().join("delay"));
        std::fs::write(&source, include_str!("delay.c")).context("write the relay's source")?;
        let made = Command::new("cc").args(["-O2", "-o"]).arg(&program).arg(&source).output().context("run cc")?;
        if !made.status.success() {
            bail!("cc: {}", String::from_utf8_lossy(&made.stderr).trim());
        }
        Ok(Delay { program, room: room.path().to_owned() })
    }

    /// From now on what `name` sends to anybody arrives so much later; what is sent to it arrives as before.
    pub fn begin<'a>(&self, network: &'a Network, name: &str, by: Duration) -> Result<Late<'a>> {
        let (inner, outer) = network.detour(name)?;
        let mut relay = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", network.switch()))
            .arg("--")
            .arg(&self.program)
            .args([&inner, &outer, &by.as_millis().to_string()])
            .current_dir(&self.room)
            .stdout(Stdio::piped())
            .spawn()
            .context("start the relay")?;
        let said = relay.stdout.take().map(|said| BufReader::new(said).lines().next());
        let late = Late { network, name: name.to_owned(), relay };
        if !matches!(said, Some(Some(Ok(_)))) {
            bail!("the relay ended");
        }
        // It relays already, so that nothing is lost between the one way and the other; some packets may arrive twice.
        network.leave(name)?;
        Ok(late)
    }
}

impl Drop for Late<'_> {
    fn drop(&mut self) {
        process::signal(Pid::from_child(&self.relay), Signal::TERM);
        self.network.plug(&self.name);
        let _ = self.relay.wait();
        self.network.straight(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    /// The round trip of one connection from here to a host, which refuses it: nobody listens there.
    fn round_trip(host: &str) -> Duration {
        let began = Instant::now();
        let at = format!("{host}:9").parse().expect("an address");
        let _ = std::net::TcpStream::connect_timeout(&at, Duration::from_secs(5));
        began.elapsed()
    }

    /// Tries until one takes so long, or so short; the first after a change asks for the hardware address, too.
    fn comes_to(host: &str, wanted: impl Fn(Duration) -> bool) -> bool {
        let began = Instant::now();
        std::iter::repeat_with(|| round_trip(host)).take_while(|_| began.elapsed() < Duration::from_secs(10)).any(wanted)
    }

    #[test]
    fn what_a_host_sends_is_late_and_on_time_again() {
        let Ok(network) = Network::new(&["late"]) else {
            return;
        };
        let host = network.place("late").host;
        let room = Room::new();
        let delay = Delay::in_room(&room).expect("compile the relay");
        assert!(comes_to(&host, |took| took < Duration::from_millis(150)));
        let late = delay.begin(&network, "late", Duration::from_millis(200)).expect("begin");
        assert!(comes_to(&host, |took| took >= Duration::from_millis(200) && took < Duration::from_secs(1)));
        drop(late);
        assert!(comes_to(&host, |took| took < Duration::from_millis(150)));
    }
}
