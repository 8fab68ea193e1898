//! `connito demo`: a whole subnet on this machine: a development chain, validators, miners honest
//! and not, complete cycles on real tensors, and a check of what must hold.

mod check;
mod liar;
mod report;
mod screen;
mod setup;
mod subnet;
mod validators;
mod watch;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
pub use check::check;
use kit::{Common, Shutdown};
pub use report::{Cycle, MinerReport, Report, ValidatorReport};
use screen::Screen;
pub use setup::{Behaviours, Plan};
pub use subnet::{Subnet, Watched};
pub use validators::{SERVICES, Service};
pub use watch::{Closed, News};

/// Arguments of `connito demo`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Complete cycles to run
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub cycles: u64,

    /// Miners: honest, idle, copying, NaN, absent, then honest ones of different effort
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=200))]
    pub miners: u16,

    /// Validators
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=16))]
    pub validators: u16,

    /// Let the last validator lie once: it signs for a chunk that it has reduced wrongly
    #[arg(long)]
    pub liar: bool,

    /// What keys, model, texts and trainings are drawn from
    #[arg(long, default_value_t = 1)]
    pub seed: u64,

    /// Time between blocks, at least 50 ms
    #[arg(long, default_value = "250", value_name = "MS", value_parser = clap::value_parser!(u64).range(50..=60_000))]
    pub block_time: u64,

    /// Run every service as its own process on Redis, instead of all in this one
    #[arg(long)]
    pub processes: bool,

    /// Write the same as data
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Work in this folder and leave everything there
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,

    /// OTLP collector to send traces to
    #[arg(long, value_name = "URL")]
    pub otlp_endpoint: Option<String>,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            cycles: 3,
            miners: 5,
            validators: 2,
            liar: false,
            seed: 1,
            block_time: 250,
            processes: false,
            json: None,
            keep: None,
            otlp_endpoint: None,
        }
    }
}

/// Runs the demonstration; an error when anything that must hold did not.
pub(crate) fn main(args: &Args) -> anyhow::Result<()> {
    let (folder, _scratch) = working_folder(args.keep.as_deref())?;
    let common = Common {
        otlp_endpoint: args.otlp_endpoint.clone(),
        log_file: Some(folder.join("demo.log")),
        instance: "demo".to_owned(),
        ..Common::default()
    };
    let args = args.clone();
    kit::run("connito", &common, None, async move |shutdown| {
        let report = run(&args, &folder, shutdown).await?;
        anyhow::ensure!(report.ok, "{} of what must hold did not", report.broken.len());
        Ok(())
    })
}

/// The folder to work in; a temporary one goes with its handle.
fn working_folder(keep: Option<&Path>) -> anyhow::Result<(PathBuf, Option<tempfile::TempDir>)> {
    match keep {
        Some(folder) => {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("make {}", folder.display()))?;
            let mut entries = std::fs::read_dir(folder)?;
            anyhow::ensure!(
                entries.next().is_none(),
                "{} is not empty: a demonstration begins with nothing",
                folder.display()
            );
            Ok((folder.canonicalize()?, None))
        }
        None => {
            let scratch = tempfile::Builder::new().prefix("connito-demo-").tempdir()?;
            Ok((scratch.path().to_owned(), Some(scratch)))
        }
    }
}

/// Runs the cycles in `folder`, shows them, checks them, and writes the report.
pub async fn run(args: &Args, folder: &Path, shutdown: Shutdown) -> anyhow::Result<Report> {
    let started = tokio::time::Instant::now();
    let plan = Plan::new(args, folder);
    let mut screen = Screen::new(plan.schedule);
    screen.say("setting up keys, texts and a random model …");
    let mut subnet = Subnet::start(plan.clone(), shutdown.child()).await?;
    screen.introduce(&plan);

    let cycles = watch_cycles(args, &plan, &mut subnet, &mut screen, &shutdown).await;
    let checked = match cycles {
        Ok(cycles) => check::check(&plan, &subnet, cycles, args.cycles).await,
        Err(error) => Err(error),
    };
    subnet.stop().await;
    let mut report = checked?;
    report.seconds = started.elapsed().as_secs_f64();
    screen.finish(&report);
    if let Some(path) = &args.json {
        let json = serde_json::to_vec_pretty(&report)?;
        tokio::fs::write(path, json).await.with_context(|| format!("write {}", path.display()))?;
    }
    Ok(report)
}

/// Shows what happens until every validator has closed its last cycle.
async fn watch_cycles(
    args: &Args,
    plan: &Plan,
    subnet: &mut Subnet,
    screen: &mut Screen,
    shutdown: &Shutdown,
) -> anyhow::Result<Vec<watch::Closed>> {
    let blocks = plan.schedule.cycle_length() * (args.cycles + 1);
    let patience = plan.block_time * u32::try_from(blocks).unwrap_or(u32::MAX);
    let deadline = tokio::time::sleep(patience + Duration::from_secs(60));
    tokio::pin!(deadline);
    let mut closed = Vec::new();
    let wanted = plan.validators.len() * usize::try_from(args.cycles).unwrap_or(usize::MAX);
    while closed.len() < wanted {
        let heard = tokio::select! {
            heard = subnet.listen() => heard?,
            () = &mut deadline => anyhow::bail!(
                "{} of {wanted} rounds were closed after {:?}: {}",
                closed.len(), patience, "see the log in the working folder (--keep DIR)"
            ),
            () = shutdown.cancelled() => anyhow::bail!("stopped"),
        };
        match heard {
            Watched::Said(said) => screen.said(&said, plan),
            Watched::View(validator, view) => {
                let news = subnet.take_in(validator, &view);
                screen.view(validator, &view, &news, plan);
                closed.extend(news.closed.filter(|closed| closed.cycle < args.cycles));
            }
        }
    }
    Ok(closed)
}
