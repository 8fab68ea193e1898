//! The gateway as a process of its own.

fn main() -> anyhow::Result<()> {
    kit::main(
        "svc-gateway",
        "gateway",
        |config: &svc_gateway::Config| config.admin_addr,
        svc_gateway::run,
    )
}
