//! A road to the gateway on which connections break: after so many bytes as a seed says, in either direction.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// Numbers that look random: splitmix64.
#[derive(Debug, Clone)]
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

/// Where a connection breaks.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Cut {
    /// After so many bytes towards the gateway.
    Up(u64),
    /// After so many bytes from the gateway.
    Down(u64),
}

/// Decides where the next connection breaks; `None` lets it live.
type Plan = Box<dyn FnMut() -> Option<Cut> + Send>;

#[derive(Clone)]
pub(crate) struct Proxy {
    pub(crate) url: String,
    to: Arc<Mutex<SocketAddr>>,
    plan: Arc<Mutex<Plan>>,
    cuts: Arc<AtomicU64>,
}

impl Proxy {
    /// Leads to the gateway at `url`; every connection lives until [`Self::cut`].
    pub(crate) async fn start(url: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Self {
            url: format!("http://{}", listener.local_addr().unwrap()),
            to: Arc::new(Mutex::new(address(url))),
            plan: Arc::new(Mutex::new(Box::new(|| None))),
            cuts: Arc::default(),
        };
        let this = proxy.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (to, cut) = (*this.to.lock().unwrap(), (this.plan.lock().unwrap())());
                let cuts = Arc::clone(&this.cuts);
                tokio::spawn(async move {
                    let Ok(gateway) = TcpStream::connect(to).await else { return };
                    if carry(client, gateway, cut).await {
                        cuts.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        proxy
    }

    /// From now on connections break where this says.
    pub(crate) fn cut(&self, plan: impl FnMut() -> Option<Cut> + Send + 'static) {
        *self.plan.lock().unwrap() = Box::new(plan);
    }

    /// Leads to another gateway from now on.
    pub(crate) fn lead_to(&self, url: &str) {
        *self.to.lock().unwrap() = address(url);
    }

    /// How many connections were cut.
    pub(crate) fn cuts(&self) -> u64 {
        self.cuts.load(Ordering::Relaxed)
    }
}

fn address(url: &str) -> SocketAddr {
    url.strip_prefix("http://").unwrap().parse().unwrap()
}

/// Carries bytes both ways until both ends are done, or the cut. Returns whether it was cut.
async fn carry(client: TcpStream, gateway: TcpStream, cut: Option<Cut>) -> bool {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_gateway, mut to_gateway) = gateway.into_split();
    let (up, down) = match cut {
        Some(Cut::Up(bytes)) => (Some(bytes), None),
        Some(Cut::Down(bytes)) => (None, Some(bytes)),
        None => (None, None),
    };
    let up = pass(&mut from_client, &mut to_gateway, up);
    let down = pass(&mut from_gateway, &mut to_client, down);
    tokio::pin!(up, down);
    // A cut in one direction ends both; an end that was not one lets the other go on.
    tokio::select! {
        cut = &mut up => cut || down.await,
        cut = &mut down => cut || up.await,
    }
}

async fn pass(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    mut left: Option<u64>,
) -> bool {
    let mut piece = vec![0; 16 << 10];
    loop {
        let most = left.map_or(piece.len(), |left| piece.len().min(left as usize));
        if most == 0 {
            return true;
        }
        let Ok(read @ 1..) = from.read(&mut piece[..most]).await else {
            let _ = to.shutdown().await;
            return false;
        };
        if to.write_all(&piece[..read]).await.is_err() {
            return false;
        }
        left = left.map(|left| left - read as u64);
    }
}
