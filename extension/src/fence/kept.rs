//! What this server has bound itself to, in files with its data, so that no crash undoes it: a bond, and that it has said a word in a vacancy.

use crate::ground::server::data_directory;
use cluster::failsafe::{SPOKEN_FILE, Spoken};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::Path;

/// What lies in this file with the data. An error is what can't be understood.
pub fn read<T: DeserializeOwned>(name: &str) -> Result<Option<T>, String> {
    let directory = data_directory().ok_or("there is no data directory")?;
    let text = match std::fs::read_to_string(directory.join(name)) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("could not read {name}: {error}")),
    };
    serde_json::from_str(&text).map(Some).map_err(|error| format!("{name} can't be understood: {error}"))
}

/// Keeps it so that no crash undoes it, or takes it away. Blocks: not for an async task.
pub fn write<T: Serialize>(directory: &Path, name: &str, what: Option<&T>) -> Result<(), String> {
    let path = directory.join(name);
    let first = !path.exists();
    let done = match what {
        Some(what) => replace(directory, &path, &serde_json::to_vec(what).map_err(|error| error.to_string())?).inspect_err(|_| {
            // Nothing was said yet by the first one; one that its worker does not know of would be taken away by nobody.
            if first {
                let _ = std::fs::remove_file(&path);
            }
        }),
        None => match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            // One that comes back after a crash of the host binds for nothing, until it is taken away again.
            _ => Ok(()),
        },
    };
    done.map_err(|error| format!("{}: {error}", path.display()))
}

/// In which vacancy this server has said a word that counts.
pub fn spoken() -> Result<Option<Spoken>, String> {
    read(SPOKEN_FILE)
}

fn replace(directory: &Path, path: &Path, text: &[u8]) -> std::io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let mut file = File::create(&new)?;
    file.write_all(text)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    File::open(directory)?.sync_all()
}
