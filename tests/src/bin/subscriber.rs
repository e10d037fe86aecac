//! `subscriber`: a logical subscriber through failovers and switchovers by turns, ten unless a number is given.
//!
//!     subscriber [ROUNDS] [--asynchronous]
//!
//! Asynchronous: no commit waits for a standby, and `hold_back_logical` is on.

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut rounds = 10;
    let mut synchronous = true;
    for word in std::env::args().skip(1) {
        if word == "--asynchronous" {
            synchronous = false;
        } else {
            rounds = word.parse()?;
        }
    }
    let report = stories::subscriber::through(rounds, synchronous).await;
    println!("{report:#?}");
    report.nothing_missing_or_repeated();
    Ok(())
}
