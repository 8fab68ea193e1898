//! The merger as a process of its own.

fn main() -> anyhow::Result<()> {
    kit::main("svc-peer", "peer", |config: &svc_peer::Config| config.admin_addr, svc_peer::run)
}
