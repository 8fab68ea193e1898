//! What a person sees: a line for everything that happens, a bar for the phase, a table per cycle.

use std::io::IsTerminal as _;

use comfy_table::{Attribute, Cell, CellAlignment, Color, Table, presets::UTF8_FULL_CONDENSED};
use console::{Style, style};
use domain::{BlockNumber, Schedule};
use indicatif::{ProgressBar, ProgressStyle};
use proto::scheduler::v1::{Miner, RoundView};

use super::{report::Report, setup::Plan, watch::News};
use crate::{config::write_out, miner::Said};

/// The screen. Without a terminal there is no bar, and phases get lines of their own.
pub(super) struct Screen {
    schedule: Schedule,
    bar: Option<ProgressBar>,
    block: u64,
    phase: String,
}

impl Screen {
    pub(super) fn new(schedule: Schedule) -> Self {
        let bar = std::io::stdout().is_terminal().then(|| {
            let bar = ProgressBar::no_length();
            let form = " block {prefix:>5}  {msg:<28} {bar:32.cyan/black} {pos:>3}/{len:<3}";
            if let Ok(form) = ProgressStyle::with_template(form) {
                bar.set_style(form.progress_chars("━╸─"));
            }
            bar
        });
        Self { schedule, bar, block: 0, phase: String::new() }
    }

    /// A line.
    pub(super) fn say(&self, line: impl AsRef<str>) {
        match &self.bar {
            Some(bar) => bar.println(line.as_ref()),
            None => write_out(&format!("{}\n", line.as_ref())),
        }
    }

    /// A line about something that happened at the newest block.
    fn event(&self, who: &str, what: &str) {
        self.say(format!(
            "{} {} {what}",
            style(format!("{:>6}", self.block)).dim(),
            style(format!("{who:<12}")).bold()
        ));
    }

    pub(super) fn introduce(&mut self, plan: &Plan) {
        let cast: Vec<String> = plan
            .miners
            .iter()
            .zip(&plan.behaviours)
            .map(|(miner, behaviour)| format!("uid {} {}", miner.uid, behaviour.as_str()))
            .collect();
        let kind = if plan.processes { "processes on Redis" } else { "in this process" };
        self.say(format!(
            "{} validators ({kind}), {} miners: {}",
            plan.validators.len(),
            plan.miners.len(),
            cast.join(", ")
        ));
        self.say(format!(
            "a block every {} ms, {} blocks per cycle\n",
            plan.block_time.as_millis(),
            plan.schedule.cycle_length()
        ));
    }

    pub(super) fn said(&self, said: &Said, plan: &Plan) {
        let uid = plan.miners.get(said.miner).map_or(0, |miner| miner.uid);
        let behaviour = plan.behaviours.get(said.miner).map_or("", |b| b.as_str());
        let what = style(format!("({behaviour}) {}", said.what)).dim();
        self.event(&format!("miner uid {uid}"), &what.to_string());
    }

    pub(super) fn view(&mut self, n: usize, view: &RoundView, news: &News, plan: &Plan) {
        self.advance(view.block);
        let who = plan.validators.get(n).map_or("?", |player| player.name.as_str());
        let Some(round) = &view.round else { return };
        if news.frozen {
            let roster = round.miners.iter().filter(|miner| miner.may_upload).count();
            self.event(
                who,
                &format!("froze the round: {roster} of {} miners may submit", round.miners.len()),
            );
        }
        for miner in &news.miners {
            if let Some(line) = miner_line(miner, round.baseline) {
                self.event(who, &line);
            }
        }
        if let Some(merge) = &news.merged {
            let hash = merge.model.as_ref().map_or("", |model| short(&model.model_hash));
            let line = match merge.outcome.as_str() {
                "failed" => style(format!("✘ merge failed: {}", merge.detail)).red(),
                outcome => {
                    let members = merge.members.len();
                    style(format!("✔ {outcome} with {members} members → model {hash}")).green()
                }
            };
            self.event(who, &line.to_string());
        }
        for write in &news.writes {
            let hash = short(&write.extrinsic_hash);
            let what = match write.kind.as_str() {
                "weights" => {
                    let weights =
                        round.weights.iter().map(|w| format!("uid {} {:.3}", w.uid, w.value));
                    format!("weights {}", weights.collect::<Vec<_>>().join(", "))
                }
                kind => kind.replace('_', " "),
            };
            let line = match write.state.as_str() {
                "done" => format!("⛓ {what} on chain in block {} ({hash})", write.block),
                _ => style(format!("✘ {what} failed: {}", write.reason)).red().to_string(),
            };
            self.event(who, &line);
        }
        for degradation in &news.degradations {
            let line = format!("! {}: {}", degradation.kind, degradation.detail);
            self.event(who, &style(line).yellow().to_string());
        }
        if let Some(closed) = &news.closed {
            let number =
                |loss: Option<f64>| loss.map_or("?".to_owned(), |loss| format!("{loss:.4}"));
            self.event(
                who,
                &style(format!(
                    "closed cycle {}: held-out loss {} → {}, model {}",
                    closed.cycle,
                    number(closed.round.held_out_before),
                    number(closed.round.held_out_after),
                    short(&closed.model_hash),
                ))
                .bold()
                .to_string(),
            );
        }
    }

    fn advance(&mut self, block: u64) {
        if block <= self.block {
            return;
        }
        self.block = block;
        let at = self.schedule.phase_at(BlockNumber(block));
        let phase = format!("cycle {} · {}", at.cycle_index, at.phase_name);
        if let Some(bar) = &self.bar {
            bar.set_prefix(block.to_string());
            bar.set_message(phase.clone());
            bar.set_length(at.blocks_into_phase + at.blocks_remaining_in_phase + 1);
            bar.set_position(at.blocks_into_phase + 1);
        } else if phase != self.phase {
            self.say(format!("{:>6} ── {phase} ──", block));
        }
        self.phase = phase;
    }

    pub(super) fn finish(&self, report: &Report) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        for cycle in &report.cycles {
            write_out(&format!("\n{}\n", style(format!("Cycle {}", cycle.cycle)).bold()));
            let mut table =
                new_table(["validator", "held-out loss", "", "model", "weights on chain"]);
            for validator in &cycle.validators {
                let number = |loss: Option<f64>| loss.map_or("?".to_owned(), |l| format!("{l:.4}"));
                let weights: Vec<String> =
                    validator.weights.iter().map(|(uid, w)| format!("uid {uid}: {w:.3}")).collect();
                table.add_row([
                    Cell::new(short(&validator.hotkey)),
                    Cell::new(format!(
                        "{} → {}",
                        number(validator.baseline_before),
                        number(validator.baseline_after)
                    )),
                    trend(validator.baseline_before, validator.baseline_after),
                    Cell::new(short(&validator.model_hash)),
                    Cell::new(weights.join("  ")),
                ]);
            }
            write_out(&format!("{table}\n"));
            let mut table = new_table(["uid", "behaviour", "outcome", "reason", "loss", "score"]);
            for miner in &cycle.miners {
                let number =
                    |value: Option<f64>| value.map_or(String::new(), |v| format!("{v:.4}"));
                table.add_row([
                    Cell::new(miner.uid).set_alignment(CellAlignment::Right),
                    Cell::new(&miner.behaviour),
                    Cell::new(&miner.outcome),
                    Cell::new(&miner.reason),
                    Cell::new(number(miner.loss)).set_alignment(CellAlignment::Right),
                    Cell::new(number(miner.score)).set_alignment(CellAlignment::Right),
                ]);
            }
            write_out(&format!("{table}\n"));
        }
        for broken in &report.broken {
            write_out(&format!("{}\n", style(format!("✘ {broken}")).red()));
        }
        let verdict = match report.ok {
            true => style("✔ everything held that must hold".to_owned()).green().bold(),
            false => style(format!("✘ {} things did not hold", report.broken.len())).red().bold(),
        };
        write_out(&format!("\n{verdict} ({:.0} s)\n", report.seconds));
    }
}

fn new_table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED);
    table.set_header(header.map(|text| Cell::new(text).add_attribute(Attribute::Bold)));
    table
}

/// What has become of a miner, if that is worth a line.
fn miner_line(miner: &Miner, baseline: Option<f64>) -> Option<String> {
    let uid = miner.uid;
    let base = baseline.map_or(String::new(), |base| format!(" (base {base:.4})"));
    let loss = miner.loss.map_or(String::new(), |loss| format!("loss {loss:.4}{base}"));
    let red = Style::new().red();
    match (miner.outcome.as_str(), miner.score) {
        ("queued", _) => Some(format!("✔ took the submission of uid {uid}")),
        ("scored", None) => Some(format!("measured uid {uid}: {loss}")),
        ("scored", Some(score)) => Some(format!("score of uid {uid}: {score} · {loss}")),
        ("refused" | "invalid", None) => {
            let prefix = format!("{}: ", miner.reason);
            let detail = miner.detail.strip_prefix(&prefix).unwrap_or(&miner.detail);
            let line = format!("✘ refused uid {uid}: {} · {detail}", miner.reason);
            Some(red.apply_to(line).to_string())
        }
        ("refused" | "invalid" | "absent" | "not_evaluated", Some(score)) => {
            Some(format!("score of uid {uid}: {score} · {} {}", miner.outcome, miner.reason))
        }
        _ => None,
    }
}

/// Colours are the table's: an escape sequence of our own would count as width.
fn trend(before: Option<f64>, after: Option<f64>) -> Cell {
    match (before, after) {
        (Some(before), Some(after)) if after < before => {
            Cell::new(format!("↓ {:.4}", before - after)).fg(Color::Green)
        }
        (Some(_), Some(_)) => Cell::new("not better").fg(Color::Red),
        _ => Cell::new(""),
    }
}

fn short(text: &str) -> &str {
    text.get(..10).unwrap_or(text)
}
