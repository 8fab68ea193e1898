//! Meeting the other validators: hellos out, hellos in, until the members are agreed.

use std::{collections::BTreeMap, future::Future, pin::Pin};

use domain::Hotkey;
use futures::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};
use tracing::{debug, info, instrument};

use crate::{
    calls::{CallError, Caller},
    members::{Meeting, Members, Stage},
    messages::Hello,
    plan::Timetable,
    report::LeftOut,
    round::{Heard, Shown},
};

/// What came of a meeting.
#[derive(Debug)]
pub(crate) struct Met {
    /// The members, if they were agreed in time.
    pub(crate) members: Option<Members>,
    /// The validators of the round that are not among them.
    pub(crate) missing: Vec<LeftOut>,
    /// How many others were met.
    pub(crate) others: usize,
}

type Call<'a> = Pin<Box<dyn Future<Output = (&'a Hotkey, Result<Hello, CallError>)> + Send + 'a>>;

/// Says hello to `others` every `interval` and listens to theirs, until all agree on the members or
/// it is too late.
#[instrument(skip_all, fields(others = others.len()))]
pub(crate) async fn meet(
    caller: &Caller,
    mut meeting: Meeting,
    others: &[Hotkey],
    times: Timetable,
    interval: std::time::Duration,
    heard: &mut mpsc::Receiver<Heard>,
    shown: &watch::Sender<Shown>,
) -> Met {
    let greet = |meeting: &Meeting, to, at: Instant| -> Call<'_> {
        let (offer, met) = (meeting.offer().clone(), meeting.met().clone());
        Box::pin(async move {
            sleep_until(at).await;
            (to, caller.hello(to, offer, met).await)
        })
    };
    let mut steps = vec![
        (times.agreed(), None),
        (times.last(), Some(Stage::Last)),
        (times.dropping(), Some(Stage::Dropping)),
        (times.deciding(), Some(Stage::Deciding)),
        (times.closed(), Some(Stage::Closed)),
    ];
    let mut failed: BTreeMap<&Hotkey, CallError> = BTreeMap::new();
    let mut calls: FuturesUnordered<Call<'_>> =
        others.iter().map(|to| greet(&meeting, to, Instant::now())).collect();
    let members = loop {
        if let Some(members) = meeting.agreed() {
            break Some(members);
        }
        let (at, stage) = steps.last().copied().unwrap_or((times.agreed(), None));
        tokio::select! {
            Some(said) = heard.recv() => {
                if let Heard::Hello(hello, tell) = said {
                    meeting.hear(&hello);
                    let _ = tell.send(meeting.met().clone());
                }
            }
            Some((to, answer)) = calls.next() => {
                match answer {
                    Ok(hello) => {
                        failed.remove(to);
                        meeting.hear(&hello);
                    }
                    Err(error) => {
                        debug!(peer = %to, %error, "hello failed");
                        failed.insert(to, error);
                    }
                }
                calls.push(greet(&meeting, to, Instant::now() + interval));
            }
            () = sleep_until(at) => {
                let Some(stage) = stage else { break None };
                debug!(?stage, met = meeting.met().len(), "next stage of the agreement");
                meeting.advance(stage);
                steps.pop();
            }
        }
        shown.send_if_modified(|shown| {
            let changed = shown.met != *meeting.met();
            if changed {
                shown.met = meeting.met().clone();
            }
            changed
        });
    };
    let missing: Vec<LeftOut> = meeting
        .missing()
        .into_iter()
        .map(|(hotkey, reason)| {
            let detail = failed.get(&hotkey).map(ToString::to_string).unwrap_or_default();
            LeftOut { hotkey, reason: reason.to_owned(), detail }
        })
        .collect();
    for one in &missing {
        info!(peer = %one.hotkey, reason = one.reason, detail = one.detail, "not in the merge");
    }
    Met { others: meeting.met().len() - 1, members, missing }
}
