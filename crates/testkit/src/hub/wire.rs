//! One request per connection: its head is read, the answer written, and the connection closed.

use std::{
    io,
    sync::{Arc, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::{HubRequest, Mischief, Told, answer};

/// Largest head of a request.
const MAX_HEAD: usize = 64 << 10;

/// What is written.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    /// The length that is announced; if none, none is.
    pub(super) length: Option<usize>,
}

impl Answer {
    pub(super) fn new(status: u16, body: Vec<u8>) -> Self {
        Self { status, headers: Vec::new(), length: Some(body.len()), body }
    }

    pub(super) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

/// Answers on `listener` for ever.
pub(super) async fn serve(listener: TcpListener, told: Arc<Told>, elsewhere: bool) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let told = Arc::clone(&told);
                // Whoever asked may be gone.
                connections.spawn(async move { drop(connection(stream, &told, elsewhere).await) });
            }
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

async fn connection(stream: TcpStream, told: &Told, elsewhere: bool) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let head = read_head(&mut stream).await?;
    let Some(request) = parse(&head, elsewhere) else { return Ok(()) };
    told.requests.lock().unwrap_or_else(PoisonError::into_inner).push(request.clone());
    let mischief = told.script.lock().unwrap_or_else(PoisonError::into_inner)(&request);
    if mischief == Mischief::HangUp {
        return Ok(());
    }
    let answer = answer::answer(told, &request, &mischief);
    write(&mut stream, &answer, &mischief).await
}

async fn read_head(stream: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < MAX_HEAD {
        head.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

fn parse(head: &str, elsewhere: bool) -> Option<HubRequest> {
    let mut lines = head.lines();
    let target = lines.next()?.strip_prefix("GET ")?.split(' ').next()?;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let headers: Vec<_> = lines.filter_map(|line| line.split_once(": ")).collect();
    let header = |name: &str| {
        let found = headers.iter().find(|(given, _)| given.eq_ignore_ascii_case(name));
        found.map(|(_, value)| (*value).to_owned())
    };
    Some(HubRequest {
        elsewhere,
        path: path.to_owned(),
        query: query.to_owned(),
        from: header("range")
            .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()),
        if_range: header("if-range"),
        authorization: header("authorization"),
    })
}

async fn write(
    stream: &mut BufReader<TcpStream>,
    answer: &Answer,
    mischief: &Mischief,
) -> io::Result<()> {
    let mut head = format!("HTTP/1.1 {} Told\r\nConnection: close\r\n", answer.status);
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if let Some(length) = answer.length {
        head.push_str(&format!("Content-Length: {length}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).await?;
    let body = answer.body.as_slice();
    match mischief {
        Mischief::Cut(after) => stream.write_all(body.get(..*after).unwrap_or(body)).await?,
        Mischief::Stall(after) => {
            stream.write_all(body.get(..*after).unwrap_or(body)).await?;
            stream.flush().await?;
            // Until the other side has had enough.
            drop(stream.read_u8().await);
        }
        Mischief::Trickle(wait) => {
            for byte in body {
                stream.write_u8(*byte).await?;
                stream.flush().await?;
                tokio::time::sleep(*wait).await;
            }
        }
        _ => stream.write_all(body).await?,
    }
    stream.shutdown().await?;
    // What was sent is only sure to arrive when the other side closes first; a moment is enough.
    drop(tokio::time::timeout(Duration::from_secs(1), stream.read_u8()).await);
    Ok(())
}
