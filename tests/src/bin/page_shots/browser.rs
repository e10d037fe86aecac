//! A headless Chromium, spoken to through a pair of pipes by its debugging protocol.

use anyhow::{Context, Result, bail};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use stories::room::Room;

/// One answer.
const BOUND: Duration = Duration::from_secs(30);

/// A browser with one page.
pub struct Browser {
    process: Child,
    to: File,
    from: Receiver<Value>,
    next: u64,
    session: Option<String>,
    /// What the page's console and the browser complained of.
    pub complaints: Vec<String>,
}

impl Browser {
    /// Starts it.
    pub fn start(room: &Room, program: &Path) -> Result<Browser> {
        let dir = room.directory("browser");
        let (commands, answers) = (dir.join("commands"), dir.join("answers"));
        for pipe in [&commands, &answers] {
            anyhow::ensure!(room.command("mkfifo", &dir).arg(pipe).status()?.success(), "make {}", pipe.display());
        }
        // The protocol's descriptors are 3 and 4. Both ends are opened for both ways, so that nobody waits for the other.
        let line = format!(
            "exec '{}' --headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars --no-first-run --disable-extensions --disable-background-networking --user-data-dir='{}' --remote-debugging-pipe about:blank 3<>'{}' 4<>'{}'",
            program.display(),
            dir.join("profile").display(),
            commands.display(),
            answers.display()
        );
        let mut command: Command = room.command("/bin/sh", &dir);
        command.env("HOME", &dir).arg("-c").arg(line).stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(dir.join("log"))?);
        let both = |path: &Path| File::options().read(true).write(true).open(path);
        let (to, answers) = (both(&commands)?, both(&answers)?);
        let process = command.spawn().context("start the browser")?;
        let (sender, from) = channel();
        std::thread::spawn(move || {
            let mut answers = BufReader::new(answers);
            let mut bytes = Vec::new();
            while answers.read_until(0, &mut bytes).is_ok_and(|count| count > 0) {
                bytes.pop();
                if serde_json::from_slice(&bytes).is_ok_and(|value: Value| sender.send(value).is_err()) {
                    return;
                }
                bytes.clear();
            }
        });
        let mut browser = Browser { process, to, from, next: 1, session: None, complaints: Vec::new() };
        let target = browser.ask("Target.createTarget", json!({"url": "about:blank"}))?["targetId"].clone();
        let session = browser.ask("Target.attachToTarget", json!({"targetId": target, "flatten": true}))?;
        browser.session = session["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log"] {
            browser.ask(&format!("{domain}.enable"), json!({}))?;
        }
        Ok(browser)
    }

    /// One command and its answer.
    pub fn ask(&mut self, method: &str, parameters: Value) -> Result<Value> {
        let number = self.next;
        self.next += 1;
        let mut message = json!({"id": number, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        self.to.write_all(format!("{message}\0").as_bytes())?;
        let until = Instant::now() + BOUND;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let answer = self.from.recv_timeout(left).with_context(|| format!("{method}: no answer"))?;
            if answer["id"] == number {
                if let Some(why) = answer["error"]["message"].as_str() {
                    bail!("{method}: {why}");
                }
                return Ok(answer["result"].clone());
            }
            self.hear(&answer);
        }
    }

    fn hear(&mut self, event: &Value) {
        match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => self.complaints.push(event["params"]["exceptionDetails"].to_string()),
            Some("Log.entryAdded") if event["params"]["entry"]["level"] == "error" => {
                self.complaints.push(event["params"]["entry"]["text"].as_str().unwrap_or_default().to_owned());
            }
            _ => {}
        }
    }

    /// How large the window is, and whether it is dark.
    pub fn look(&mut self, width: u32, height: u32, dark: bool) -> Result<()> {
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}),
        )?;
        let scheme = if dark { "dark" } else { "light" };
        self.ask("Emulation.setEmulatedMedia", json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]})).map(drop)
    }

    /// Opens a page.
    pub fn open(&mut self, url: &str) -> Result<()> {
        self.ask("Page.navigate", json!({"url": url})).map(drop)
    }

    /// What an expression is worth there.
    pub fn value(&mut self, expression: &str) -> Result<Value> {
        let answer = self.ask("Runtime.evaluate", json!({"expression": expression, "returnByValue": true}))?;
        Ok(answer["result"]["value"].clone())
    }

    /// Waits until an expression is true.
    pub fn until(&mut self, what: &str, expression: &str) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(60);
        while self.value(expression)? != true {
            if Instant::now() > until {
                bail!("waited for {what}; the page says: {}", self.value("document.body.innerText")?);
            }
            // Whatever the page tells meanwhile is heard.
            if let Ok(event) = self.from.recv_timeout(Duration::from_millis(100)) {
                self.hear(&event);
            }
        }
        Ok(())
    }

    /// Presses a key: Tab, Enter, Escape.
    pub fn press(&mut self, key: &str) -> Result<()> {
        let (code, text) = match key {
            "Tab" => (9, ""),
            "Enter" => (13, "\r"),
            _ => (27, ""),
        };
        let event = |kind: &str| json!({"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": if kind == "keyDown" { text } else { "" }});
        self.ask("Input.dispatchKeyEvent", event("keyDown"))?;
        self.ask("Input.dispatchKeyEvent", event("keyUp")).map(drop)
    }

    /// Presses Tab until the element of this id has the focus.
    pub fn tab_to(&mut self, id: &str) -> Result<()> {
        for _ in 0..40 {
            if self.value("document.activeElement.id")? == id {
                return Ok(());
            }
            self.press("Tab")?;
        }
        bail!("the keyboard does not reach {id}")
    }

    /// Types words where the focus is.
    pub fn write(&mut self, words: &str) -> Result<()> {
        self.ask("Input.insertText", json!({"text": words})).map(drop)
    }

    /// The whole page as a picture.
    pub fn shoot(&mut self, file: &Path) -> Result<()> {
        let answer = self.ask("Page.captureScreenshot", json!({"format": "png", "captureBeyondViewport": true}))?;
        let bytes = BASE64.decode(answer["data"].as_str().context("no picture")?)?;
        std::fs::write(file, bytes).with_context(|| format!("write {}", file.display()))
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
