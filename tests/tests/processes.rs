//! The same subnet with every service as its own process, on Redis: one trace through all of them,
//! nothing listening but on loopback, and each of them killed in mid-cycle.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, BTreeSet};

use connito::demo::{Args, Closed, Plan, Report, SERVICES, Service, Subnet, Watched, check};
use kit::Shutdown;
use testkit::OtlpReceiver;

/// Runs until every validator has closed `cycles` cycles; `meddle` sees every view first.
async fn play(
    plan: &Plan,
    subnet: &mut Subnet,
    cycles: u64,
    mut meddle: impl AsyncFnMut(&mut Subnet, usize, u64, &str),
) -> Vec<Closed> {
    let wanted = plan.validators.len() * usize::try_from(cycles).unwrap();
    let mut closed = Vec::new();
    while closed.len() < wanted {
        let Watched::View(validator, view) = subnet.listen().await.unwrap() else { continue };
        let phase = plan.schedule.phase_at(domain::BlockNumber(view.block));
        meddle(subnet, validator, view.cycle, phase.phase_name.name()).await;
        let news = subnet.take_in(validator, &view);
        closed.extend(news.closed.filter(|closed| closed.cycle < cycles));
    }
    closed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_cycle_is_one_trace_through_all_five_services_and_nothing_listens_beyond_loopback() {
    let folder = testkit::tempdir().unwrap();
    let collector = OtlpReceiver::start().await.unwrap();
    let args = Args {
        cycles: 1,
        processes: true,
        otlp_endpoint: Some(collector.endpoint()),
        ..Args::default()
    };
    let plan = Plan::new(&args, folder.path());
    let mut subnet = Subnet::start(plan.clone(), Shutdown::default()).await.unwrap();
    let ports: BTreeSet<u16> = (0..2)
        .flat_map(|n| subnet.ports(n).grpc.into_iter().chain([subnet.ports(n).http]))
        .collect();
    let open = listening();
    for port in &ports {
        assert!(open.contains_key(port), "nothing listens on {port}");
    }
    for (port, addresses) in &open {
        if ports.contains(port) {
            assert!(addresses.iter().all(|a| a == LOOPBACK), "{port} is open to {addresses:?}");
        }
    }

    let closed = play(&plan, &mut subnet, 1, async |_, _, _, _| {}).await;
    let report = check(&plan, &subnet, closed, 1).await.unwrap();
    subnet.stop().await;
    assert_eq!(report.broken, Vec::<String>::new());

    for trace_id in &report.trace_ids {
        let services: BTreeSet<String> =
            collector.trace(trace_id).into_iter().map(|span| span.service_name).collect();
        let wanted: BTreeSet<String> = SERVICES.iter().map(ToString::to_string).collect();
        assert!(services.is_superset(&wanted), "trace {trace_id} has only {services:?}");
    }
}

const LOOPBACK: &str = "0100007F";

/// Listening TCP sockets of this network namespace: local addresses, as the kernel writes them, by
/// port.
fn listening() -> BTreeMap<u16, Vec<String>> {
    let mut open: BTreeMap<u16, Vec<String>> = BTreeMap::new();
    for file in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let table = std::fs::read_to_string(file).unwrap_or_default();
        for line in table.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (address, port) = fields[1].rsplit_once(':').unwrap();
            if fields[3] == "0A" {
                let port = u16::from_str_radix(port, 16).unwrap();
                open.entry(port).or_default().push(address.to_owned());
            }
        }
    }
    open
}

/// Who is killed, in which cycle and phase. It is started again when the next block is seen by the
/// other validator.
const KILLS: [(u64, &str, Service); 6] = [
    (0, "Submission", "svc-gateway"),
    (0, "Validate", "svc-evaluator"),
    (1, "Submission", "svc-scheduler"),
    (1, "ValidatorCommit2", "svc-chain"),
    (2, "Merge", "svc-peer"),
    (2, "MinerCommit2", "svc-scheduler"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn each_service_killed_in_mid_cycle_loses_nothing_and_doubles_nothing() {
    let folder = testkit::tempdir().unwrap();
    let args = Args { cycles: 3, processes: true, ..Args::default() };
    let plan = Plan::new(&args, folder.path());
    let mut subnet = Subnet::start(plan.clone(), Shutdown::default()).await.unwrap();

    let mut killed: BTreeSet<usize> = BTreeSet::new();
    let closed = play(&plan, &mut subnet, 3, async |subnet, _, cycle, phase| {
        for (n, (in_cycle, in_phase, service)) in KILLS.into_iter().enumerate() {
            if (cycle, phase) == (in_cycle, in_phase) && killed.insert(n) {
                eprintln!("cycle {cycle}, {phase}: killing {service} of validator 0");
                subnet.kill(0, service).await.unwrap();
                tokio::time::sleep(std::time::Duration::from_millis(500)).await;
                subnet.restart(0, service).unwrap();
            }
        }
    })
    .await;
    let report = check(&plan, &subnet, closed, 3).await.unwrap();
    let extrinsics = subnet.chain.extrinsics().await.unwrap();
    subnet.stop().await;

    assert_eq!(killed.len(), KILLS.len(), "everyone was killed once");
    every_cycle_is_complete_or_says_why_not(&report);
    for cycle in &report.cycles {
        for validator in &cycle.validators {
            let set = validator.weight_extrinsics.len();
            assert!(set <= 1, "cycle {}: weights were set {set} times", cycle.cycle);
        }
    }
    let failed: Vec<_> = extrinsics.iter().filter(|extrinsic| extrinsic.error.is_some()).collect();
    assert!(failed.is_empty(), "extrinsics that failed on chain: {failed:?}");
}

fn every_cycle_is_complete_or_says_why_not(report: &Report) {
    for cycle in &report.cycles {
        assert_eq!(cycle.validators.len(), 2);
        for validator in &cycle.validators {
            let better = validator
                .baseline_after
                .zip(validator.baseline_before)
                .is_some_and(|(after, before)| after < before);
            let complete = better
                && validator.weight_extrinsics.len() == 1
                && validator.committed_hash == validator.model_hash;
            assert!(
                complete || !validator.degradations.is_empty(),
                "cycle {} of {} failed without a reason",
                cycle.cycle,
                validator.hotkey
            );
        }
    }
}
