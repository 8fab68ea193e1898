//! Has the peer service fetch the stake majority's model from the validators that have it.

use std::time::Duration;

use domain::{Cause, Event, LeftOut, ResyncPlan};
use proto::{
    convert,
    peer::v1::{GetResyncRequest, ResyncStatus, StartResyncRequest, Validator},
};
use tonic::Code;

use crate::{
    effects::{Failure, Outside},
    engine::Engine,
    merge::{left_out, model, ms},
    view,
};

/// Starts to fetch, or finds it running, and waits until the model is here.
pub(crate) async fn run(
    plan: &ResyncPlan,
    engine: &Engine,
    outside: &Outside,
) -> Result<Event, Failure> {
    let request = request(plan, &engine.view().borrow(), outside);
    let mut status = outside.resync().start_resync(request).await?.into_inner();
    loop {
        match status.state.as_str() {
            "done" => return done(plan, status),
            "failed" => {
                let cause = Cause { reason: status.reason, detail: status.detail };
                return Err(Failure::Resync { cause, blamed: left_out(status.blamed)? });
            }
            _ => {}
        }
        tokio::time::sleep(outside.poll(Duration::from_millis(50))).await;
        let request = GetResyncRequest { model_hash: plan.model.model_hash.to_hex() };
        status = outside.resync().get_resync(request).await?.into_inner();
    }
}

fn request(
    plan: &ResyncPlan,
    view: &proto::scheduler::v1::RoundView,
    outside: &Outside,
) -> StartResyncRequest {
    let left = outside.time_of(plan.until.0.saturating_sub(view.block));
    let holders = plan.holders.iter().map(|holder| Validator {
        hotkey: holder.hotkey.to_string(),
        axon: holder.axon.clone(),
        stake: holder.stake,
    });
    StartResyncRequest {
        round_id: plan.round.0,
        model: Some(view::model_ref(&plan.model)),
        expert_group: view.expert_group,
        holders: holders.collect(),
        hotkey: view.hotkey.clone(),
        deadline_ms: ms(left).max(1),
        traceparent: plan.traceparent.clone(),
    }
}

fn done(plan: &ResyncPlan, status: ResyncStatus) -> Result<Event, Failure> {
    let blamed = left_out(status.blamed)?;
    let model = model(convert::required("model", status.model)?)?;
    if model.model_hash != plan.model.model_hash {
        let detail = format!("{} instead of {}", model.model_hash, plan.model.model_hash);
        let cause = Cause { reason: "other_model".to_owned(), detail };
        return Err(Failure::Resync { cause, blamed });
    }
    Ok(Event::Resynced { cycle: plan.cycle, model, blamed })
}

/// Why it failed, in the words of the view: the peer service's own, where it has told.
pub(crate) fn cause(failure: &Failure) -> (Cause, Vec<LeftOut>) {
    let reason = match failure {
        Failure::Resync { cause, blamed } => return (cause.clone(), blamed.clone()),
        Failure::Call(status) if status.code() == Code::Unavailable => "unavailable",
        Failure::Call(_) => "refused",
        Failure::Answer(_) => "unusable_answer",
        Failure::Artifacts(_) | Failure::Other(_) => "failed",
    };
    (Cause { reason: reason.to_owned(), detail: failure.to_string() }, Vec::new())
}
