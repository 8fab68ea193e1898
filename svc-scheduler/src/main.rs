//! The scheduler as a process of its own.

fn main() -> anyhow::Result<()> {
    kit::main(
        "svc-scheduler",
        "scheduler",
        |config: &svc_scheduler::Config| config.admin_addr,
        svc_scheduler::run,
    )
}
